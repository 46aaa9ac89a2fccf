"""The script of a visitor's progress bar: what it shows, when it asks, and when it stops.

The server is played here: its pages are the app's own templates, its answers what a test says.
"""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from django.contrib.staticfiles import finders
from django.template.loader import render_to_string
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

SITE = "http://shop.test"
#: What a screen reader watches, as it was when the page was loaded.
REGION = """
    addEventListener("DOMContentLoaded", () => {
        window.region = document.querySelector("[role=status]");
    });
"""
POLICY = {"Content-Security-Policy": "default-src 'self'"}


def progress(*texts, poll=100, percent=10, link=None, redirects=False):
    return SimpleNamespace(
        texts=texts,
        notes=[],
        poll=poll,
        percent=percent,
        state="running" if poll else "succeeded",
        link=link,
        redirects=redirects,
        snapshot=SimpleNamespace(title="Your order"),
    )


def part(*texts, **given):
    return render_to_string("sequences/_progress.html", {"progress": progress(*texts, **given)})


def gone(text):
    return render_to_string("sequences/_gone.html", {"text": text})


class Shop:
    """A page with a bar that has just begun, and the answers that its script gets in turn."""

    def __init__(self, browser):
        self.context = browser.new_context()
        self.page = self.context.new_page()
        self.page.add_init_script(REGION)
        self.page.route("**/*", self.answer)
        self.answers, self.asked, self.errors = [], [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, *answers):
        self.answers = list(answers)
        self.page.goto(f"{SITE}/thanks/")
        return self.page

    def answer(self, route):
        path = route.request.url.removeprefix(SITE)
        if path == "/news/":
            self.tell(route)
        elif path == "/thanks/":
            context = {"progress": progress("Begun"), "url": "/news/"}
            bar = render_to_string("sequences/progress.html", context)
            html = f"<!doctype html><title>Thanks</title>{bar}"
            route.fulfill(body=html, content_type="text/html", headers=POLICY)
        elif path.startswith("/static/"):
            route.fulfill(path=finders.find(path.removeprefix("/static/")))
        else:
            route.fulfill(body="<h1>Elsewhere</h1>", content_type="text/html")

    def tell(self, route):
        self.asked.append(route)
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status:
            route.fulfill(status=status, body=body, content_type="text/html")
        else:
            route.abort()

    def waits(self):
        """How many of the browser's milliseconds it lets pass before it asks the next time."""
        before, passed = len(self.asked), 0
        while len(self.asked) == before:
            assert passed < 10_000
            self.page.clock.run_for(50)
            passed += 50
            self.page.wait_for_timeout(20)
        self.page.wait_for_timeout(100)  # for the answer
        return passed

    def is_silent(self):
        """It asks no more, within a time in which it would have asked again."""
        before = len(self.asked)
        self.page.wait_for_timeout(1_000)
        return len(self.asked) == before


@pytest.fixture
def shop(browser):
    shop = Shop(browser)
    yield shop
    shop.context.close()
    assert shop.errors == []


def text_of(page):
    return page.locator("[data-seq-part=text]")


def test_the_bar_moves_in_place_until_the_end(shop):
    page = shop.open((200, part("Packing", percent=50)))
    expect(text_of(page)).to_have_text("Packing")
    expect(page.locator("progress")).to_have_attribute("value", "50")
    end = part("Done.", poll=None, percent=100, link=("/next/", "Continue"))
    shop.answers = [(200, end)]

    expect(text_of(page)).to_have_text("Done.")
    expect(page.locator("progress")).to_have_attribute("value", "100")
    expect(page.get_by_role("link", name="Continue")).to_be_visible()
    assert page.evaluate("window.region.isConnected"), "a screen reader tells what changes in it"
    assert shop.is_silent()


def test_an_address_that_has_expired_is_told_and_asked_no_more(shop):
    page = shop.open((410, gone("This link has expired.")))

    expect(text_of(page)).to_have_text("This link has expired.")
    expect(page.locator("progress")).to_be_visible()
    assert shop.is_silent()


def test_a_server_in_trouble_is_asked_less_and_less_until_it_answers(shop):
    # The browser's time goes on by our hand only.
    shop.page.clock.install(time=datetime(2026, 1, 1, tzinfo=UTC))
    shop.page.clock.pause_at(datetime(2026, 1, 2, tzinfo=UTC))
    page = shop.open(
        (0, ""), (500, "<h1>Error</h1>"), (404, "<h1>A proxy's</h1>"), (200, part("Up", poll=None))
    )

    waits = [shop.waits() for _ in range(4)]

    expect(text_of(page)).to_have_text("Up")
    for wait, least in zip(waits, (100, 200, 400, 800), strict=True):
        assert wait >= least


def test_a_page_of_something_else_is_not_shown(shop):
    page = shop.open((200, "<form>Log in</form>"), (200, part("Packing", poll=None)))

    expect(text_of(page)).to_have_text("Packing")
    assert page.locator("form").count() == 0


def test_a_hidden_tab_asks_nothing_and_asks_at_once_when_it_is_seen(shop):
    page = shop.open((200, part("Packing", poll=200)))
    expect(text_of(page)).to_have_text("Packing")
    turn = """is => {
        Object.defineProperty(document, "hidden", { get: () => is, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(turn, True)
    page.wait_for_timeout(300)  # for what was asked before

    assert shop.is_silent()
    shop.answers = [(200, part("Done.", poll=None))]
    page.evaluate(turn, False)
    expect(text_of(page)).to_have_text("Done.")


def test_a_bar_that_has_left_the_page_neither_asks_nor_leads_away(shop):
    page = shop.open((200, part("Packing")))
    expect(text_of(page)).to_have_text("Packing")
    shop.answers = [(200, part("Done.", poll=None, link=("/next/", "x"), redirects=True))]
    page.evaluate("document.querySelector('.seq-progress').remove()")
    page.wait_for_timeout(300)  # for what was asked before

    assert shop.is_silent()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert shop.is_silent()
    assert page.url == f"{SITE}/thanks/"


def test_a_good_end_leads_on_to_this_site_only(shop):
    page = shop.open((200, part("Done.", poll=None, link=("/next/", "x"), redirects=True)))
    expect(page.get_by_role("heading", name="Elsewhere")).to_be_visible()
    assert page.url == f"{SITE}/next/"

    for address in ("https://other.test/", "javascript:document.title='x'"):
        answer = part("Done.", poll=None, link=(address, "x"), redirects=True)
        page = shop.open((200, answer))
        expect(text_of(page)).to_have_text("Done.")
        page.wait_for_timeout(300)
        assert (page.url, page.title()) == (f"{SITE}/thanks/", "Thanks")
