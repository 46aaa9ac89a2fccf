"""The page of a signed link to an event: on every screen, and without a script."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from django import forms

from sequences import Sequence, event
from sequences.testing import drain, isolate_sequences

from .test_pages import AXE, WIDTHS, too_wide

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only_on("postgresql"),
    pytest.mark.timeout(600),
    pytest.mark.django_db(transaction=True),
]


class Approval(forms.Form):
    approved = forms.BooleanField(required=False)
    limit = forms.IntegerField(help_text="In euros, without cents.")
    note = forms.CharField(widget=forms.Textarea)


@pytest.fixture
def run():
    with isolate_sequences():

        class Offer(Sequence):
            class Meta:
                app_label = "shop"

            reply = event(after=[], choices={"Accept": {"text": "x" * 200, "yes": True}})
            checked = event(after=[], form=Approval)
            later = event(after=[])

        run = Offer().run
        drain()
        yield run


def test_every_page_of_a_link_fits_on_every_screen_and_axe_has_nothing_to_say(
    browser, live_server, run
):
    page = browser.new_page(base_url=live_server.url)
    used = run.deliver_url("later", by="ann")
    assert page.request.post(used).ok
    paths = [
        run.deliver_url("reply", {"text": "x" * 200, "yes": True}, by="ann@example.com"),
        run.deliver_url("checked"),
        used,
        "/sequences/deliver/nonsense/",
    ]
    for path in paths:
        page.goto(path)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert not too_wide(page), (path, width)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            violations = Axe().run(page, options=AXE).response["violations"]
            assert not violations, (path, [rule["id"] for rule in violations])
    page.close()


def test_it_delivers_without_a_script_and_says_so_at_the_second_click(browser, live_server, run):
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
    page = context.new_page()
    url = run.deliver_url("reply", {"text": "x" * 200, "yes": True}, by="ann")
    page.goto(url)
    assert not run.delivered("reply")
    page.get_by_role("button", name="Accept").click()
    assert "Thank you" in page.content()
    assert run.payload("reply")["yes"] is True
    page.goto(url)
    assert "This was answered by ann" in page.content()
    context.close()
