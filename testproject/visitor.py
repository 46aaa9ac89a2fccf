"""A visitor who fills in the forms, over HTTP."""

import re
import time
from http.cookiejar import CookieJar
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, build_opener
from uuid import UUID

Form = dict[str, str | list[str]]

MESSAGES: list[Form] = [
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
#: A small order, a large order that waits for an approval, and one that cannot be packed.
ORDERS: list[Form] = [
    {"name": "Joan", "email": "joan@example.com", "products": ["tea", "pot"]},
    {"name": "Alan", "email": "alan@example.com", "products": ["clock", "tea"]},
    {"name": "Hedy", "email": "hedy@example.com", "products": ["pot", "lamp"]},
]
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


class Visitor:
    """A browser with its own cookies."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.browser = build_opener(HTTPCookieProcessor(CookieJar()))

    def wait(self, seconds: float) -> None:
        """Wait until the site answers. Raises URLError if it never does."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.read("/")
                return
            except URLError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def write(self, message: Form) -> UUID:
        """Submit the contact form; return the id of the run that it started."""
        return identifier(self.send("/contact/", message, leads_to="/contact/thanks/"))

    def order(self, order: Form) -> UUID:
        """Order and pay; return the id of the order."""
        return identifier(self.send("/orders/", order, leads_to="/orders/"))

    def log_in(self, username: str, password: str) -> None:
        """Log in as a member of the staff."""
        form: Form = {"username": username, "password": password, "next": "/orders/"}
        self.send("/admin/login/", form, leads_to="/orders/")

    def approve(self, order: UUID) -> None:
        """Press the button on the order's page."""
        page = f"/orders/{order}/"
        self.send(page, {}, to=f"{page}approve/", leads_to=page)

    def send(self, page: str, form: Form, *, leads_to: str, to: str = "") -> str:
        """Submit the form on this page; return the path of the next page."""
        token = TOKEN.search(self.read(page))
        assert token, f"{page} has no form with a CSRF token."
        body = urlencode(form | {"csrfmiddlewaretoken": token[1]}, doseq=True).encode()
        with self.browser.open(self.address + (to or page), body, timeout=10) as answer:
            text, path = answer.read().decode(), urlsplit(answer.url).path
        if not path.startswith(leads_to) or (path == page and not to):
            raise ValueError(f"The form of {page} was not accepted:\n{text}")
        return path

    def read(self, page: str) -> str:
        with self.browser.open(self.address + page, timeout=10) as answer:
            return answer.read().decode()


def identifier(path: str) -> UUID:
    """The id at the end of a path."""
    return UUID(path.strip("/").split("/")[-1])
