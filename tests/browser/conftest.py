"""A real browser, on this process's own web server, beside a real worker.

Debian's chromium is found by its name, or by CHROMIUM. Without it the tests skip; in CI they fail.
"""

import pytest
from django.test import Client
from playwright.sync_api import expect, sync_playwright

from testproject.browser import FLAGS, NAMES, chromium
from tests.acceptance.app.gates import Gate
from tests.acceptance.app.sequences import QUEUE
from tests.acceptance.workers import SETTINGS, Crew
from tests.conftest import missing

LIMIT = 20_000  # milliseconds for anything that is waited for


def the_browser():
    names = ", ".join(NAMES)
    return chromium() or missing(f"no browser: none of {names} is installed, nor named by CHROMIUM")


# Playwright's loop runs in this thread as long as this lives: not beyond the tests that need it.
@pytest.fixture(scope="module")
def browser():
    path = the_browser()
    expect.set_options(timeout=LIMIT)
    with sync_playwright() as playwright, pytest.MonkeyPatch.context() as patch:
        # Django takes that loop for a sign of asynchronous code, and would refuse all queries.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def worker(django_db_setup, tmp_path_factory, redis_url):
    """One worker process for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMAIL_DIR", str(tmp_path_factory.mktemp("mail")))
        crew = Crew("redis", redis_url, tmp_path_factory.mktemp("worker"))
        yield crew
        crew.dismiss()


@pytest.fixture
def crew(worker, transactional_db, settings):
    """The worker is there, and what this process starts goes to it."""
    settings.SEQUENCES = SETTINGS
    if not worker.workers:
        worker.start(threads=4, queues=(QUEUE, "default"))
    with worker:
        yield worker
    worker.show()


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


class Visitors:
    """Pages for several people, all of them watched."""

    def __init__(self, browser, server):
        self.browser, self.server = browser, server
        self.contexts, self.problems = [], []

    def page(self, *, user=None, javascript=True, **options):
        """A page of somebody: of a user who is logged in, or of nobody."""
        context = self.browser.new_context(
            base_url=self.server.url, java_script_enabled=javascript, **options
        )
        context.set_default_timeout(LIMIT)
        self.contexts.append(context)
        if user:
            context.add_cookies([self._session(user)])
        page = context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", self._follow)
        page.on("response", self._check)
        return page

    def _session(self, user):
        client = Client()
        client.force_login(user)
        session = client.cookies["sessionid"].value
        return {"name": "sessionid", "value": session, "url": self.server.url}

    def _hear(self, message):
        # The browser itself asks for an icon, once.
        is_icon = message.location.get("url", "").endswith("/favicon.ico")
        if message.type in ("error", "warning") and not is_icon:
            self.problems.append(f"{message.type}: {message.text}")

    def _follow(self, request):
        if not request.url.startswith((f"{self.server.url}/", "data:", "blob:")):
            self.problems.append(f"a request to another server: {request.url}")

    def _check(self, response):
        if response.status >= 400 and not response.url.endswith("/favicon.ico"):
            self.problems.append(f"{response.status}: {response.url}")

    def leave(self):
        for context in self.contexts:
            context.close()


@pytest.fixture
def visitors(browser, live_server, crew):
    """Pages; at the end none may have complained, or asked another server for anything."""
    visitors = Visitors(browser, live_server)
    yield visitors
    visitors.leave()
    assert not visitors.problems


@pytest.fixture
def console(browser, live_server, admin_user):
    """A page of a superuser, on this process's own web server, without a worker."""
    visitors = Visitors(browser, live_server)
    yield visitors.page(user=admin_user)
    visitors.leave()
    assert not visitors.problems


@pytest.fixture
def page(visitors, admin_user):
    """A page of a superuser."""
    return visitors.page(user=admin_user)


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def either(request, visitors, admin_user):
    """A page of a superuser, once with and once without JavaScript."""
    page = visitors.page(user=admin_user, javascript=request.param)
    page.has_javascript = request.param
    return page


@pytest.fixture
def anonymous(visitors):
    """A page of nobody."""
    return visitors.page()
