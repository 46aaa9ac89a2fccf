"""Somebody who fills in the contact form, over HTTP."""

import re
import time
from http.cookiejar import CookieJar
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, build_opener
from uuid import UUID

MESSAGES = [
    {
        "name": "Ada",
        "email": "ada@example.com",
        "topic": "questions",
        "body": "Can your engine weave algebraic patterns?",
    },
    {
        "name": "Grace",
        "email": "grace@example.com",
        "topic": "orders",
        "body": "My order arrived with a moth in it.",
    },
    {
        "name": "Zoë",
        "email": "zoe@example.com",
        "topic": "press",
        "body": "May I quote you? “Exactly once”, really? 🙂",
    },
    {
        "name": "Linus",
        "email": "linus@example.com",
        "topic": "questions",
        "body": "Do you ship to Helsinki?",
    },
    {
        "name": "Mary <b>",
        "email": "mary@example.com",
        "topic": "orders",
        "body": "Please send three & a half more.\n\nThank you!",
    },
]
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


class Visitor:
    """A browser with cookies of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.browser = build_opener(HTTPCookieProcessor(CookieJar()))

    def wait(self, seconds: float) -> None:
        """Until the site answers. Raises URLError if it never does."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.read()
                return
            except URLError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def write(self, message: dict[str, str]) -> UUID:
        """Send the form; the id of the run that this started."""
        token = TOKEN.search(self.read())
        assert token, "The form has no CSRF token."
        form = urlencode(message | {"csrfmiddlewaretoken": token[1]}).encode()
        with self.browser.open(self.address, form, timeout=10) as answer:
            page, path = answer.read().decode(), urlsplit(answer.url).path
        if not path.startswith("/thanks/"):
            raise ValueError(f"The form was not accepted:\n{page}")
        return UUID(path.strip("/").split("/")[-1])

    def read(self) -> str:
        with self.browser.open(self.address, timeout=10) as answer:
            return answer.read().decode()
