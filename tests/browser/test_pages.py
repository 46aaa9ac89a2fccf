"""The pages of the console on every screen: what is too wide, too small, or unreadable to some."""

import re
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.admin import site
from django.urls import resolve, reverse

from sequences.models import Schedule

from . import scenes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only_on("postgresql"),
    pytest.mark.timeout(600),
    pytest.mark.django_db(transaction=True),
]

WIDTHS = (320, 390, 768, 1024, 1440, 2000)
AXE = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    # It would fetch every style sheet once more, and those that Django's import at wrong addresses.
    # What a browser itself gets is watched: whatever is missing is a problem (`Visitors`).
    "preload": False,
}


def too_wide(page):
    """What sticks out of the page, if it scrolls sideways."""
    return page.evaluate("""() => {
        const width = document.documentElement.clientWidth;
        const list = document.querySelector(".seq-list #result_list, .seq-failures table")
            ?.closest(".results");
        if (list && list.scrollWidth > list.clientWidth + 1)
            return [`the list: ${list.scrollWidth} in ${list.clientWidth}`];
        const body = document.body ? document.body.scrollWidth : 0;
        if (document.documentElement.scrollWidth <= width && body <= width) return [];
        const out = Array.from(document.querySelectorAll("body *")).filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width && box.right > width + 1 && !one.closest(".seq-scroll, pre, .results");
        });
        return [`scrolls: ${document.documentElement.scrollWidth}`,
                ...out.slice(0, 6).map((one) => `${one.tagName}.${one.className} ${one.id}`)];
    }""")


def test_no_page_scrolls_sideways_on_any_screen(console):
    wide, seen = {}, set()
    for name in scenes.walk(console):
        seen.add(resolve(urlsplit(console.url).path).url_name)
        for width in WIDTHS:
            console.set_viewport_size({"width": width, "height": 900})
            if found := too_wide(console):
                wide[name, width] = found
    assert not wide, "\n".join(f"{where}: {what}" for where, what in wide.items())
    assert addresses() <= seen, "pages of the console that nobody looks at"


def addresses():
    """The names of what the console has an address for, but for what is refused to everybody."""
    admins = [found for model, found in site._registry.items()
              if model._meta.app_label == "job_sequences"]  # fmt: skip
    names = {url.name for found in admins for url in found.urls if url.name}
    refused = {f"{found.opts.app_label}_{found.opts.model_name}_delete" for found in admins}
    added = {f"job_sequences_{name}_add" for name in ("storedlimit", "sequencerun", "steprun")}
    return names - refused - added


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1440)])
def test_axe_has_nothing_to_say_on_any_page(console, width, scheme):
    console.emulate_media(color_scheme=scheme)
    console.set_viewport_size({"width": width, "height": 900})
    violations = {}
    for name in scenes.walk(console):
        if name == "value":  # plain text, and no page of HTML
            continue
        response = Axe().run(console, context=CONTENT, options=AXE).response
        for rule in response["violations"]:
            where = [node["target"][0] for node in rule["nodes"][:3]]
            violations.setdefault((rule["id"], str(where)), []).append(name)
    assert not violations, "\n".join(f"{rule}: {names}" for rule, names in violations.items())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_an_object_shows_its_runs_on_every_screen(console, scheme):
    run = scenes.play()["waiting_for_an_event"]
    console.emulate_media(color_scheme=scheme)
    console.goto(reverse("admin:orders_order_change", args=[run.subject.pk]))
    panel = console.locator(".seq-inline")
    assert "approval" in panel.inner_text()
    for width in WIDTHS:
        console.set_viewport_size({"width": width, "height": 900})
        assert panel.evaluate("(one) => one.scrollWidth <= one.clientWidth"), width
        assert panel.evaluate("(one) => one.getBoundingClientRect().right") <= width
        response = Axe().run(console, context=".seq-inline", options=AXE).response
        assert response["violations"] == [], width


def test_an_approval_is_two_clicks_from_the_object_and_one_back(console):
    run = scenes.play()["waiting_for_an_event"]
    order = reverse("admin:orders_order_change", args=[run.subject.pk])
    console.goto(order)
    console.locator(".seq-inline").get_by_role("link", name="Deliver “approval”").click()
    console.get_by_role("button", name="Deliver").click()
    console.wait_for_url(f"**{reverse(f'{scenes.RUN}_change', args=[run.pk])}")
    assert run.delivered("approval")
    console.locator("#head").get_by_role("link", name=str(run.subject)).click()
    console.wait_for_url(f"**{order}")


def test_a_schedule_is_paused_and_its_run_leads_back_to_it(console):
    run = scenes.play()["of_a_schedule"]
    schedule = Schedule.objects.get(last_run=run)
    page = reverse("admin:job_sequences_schedule_change", args=[schedule.pk])
    console.goto(reverse(f"{scenes.RUN}_change", args=[run.pk]))
    console.locator("#head").get_by_role("link", name="nightly").click()
    console.wait_for_url(f"**{page}")
    console.get_by_role("link", name="Pause").click()
    console.get_by_label("Reason").fill("stocktaking")
    console.get_by_role("button", name="Pause").click()
    console.wait_for_url(f"**{page}")
    assert "paused" in console.locator("#head").inner_text()
    assert "stocktaking" in console.locator("#operations").inner_text()
    schedule.refresh_from_db()
    assert schedule.paused_at is not None


#: What is ours of a page: the rest is Django's own.
CONTENT = "#content"


#: Counts what somebody really clicks, on whatever page.
COUNTER = """addEventListener("click", (event) => {
    if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks || 0) + 1;
}, true);"""


def clicks(page):
    """How many there were since this was asked last."""
    return page.evaluate(
        "() => { const n = Number(sessionStorage.clicks); sessionStorage.clicks = 0; return n; }"
    )


def start_from_the_index(page, key):
    """By clicks alone, from the admin's first page to that of a run."""
    page.add_init_script(COUNTER)
    page.goto(reverse("admin:index"))
    page.get_by_role("link", name="Runs", exact=True).click()
    page.locator("#result_list bdi.seq-key", has_text=re.compile(f"^{re.escape(key)}$")).click()
    return page.locator("#head")


def test_an_order_that_is_stuck_five_runs_down_is_mended_in_six_clicks(console, monkeypatch):
    order = scenes.play()["failed_five_levels_down"]
    head = start_from_the_index(console, "order-1")
    assert "card expired" in head.inner_text()
    head.get_by_role("link", name="Leaf").click()
    assert "5 runs above this one failed while waiting for it, up to order-1." in head.inner_text()
    assert 1 <= clicks(console) <= 3
    monkeypatch.setattr(scenes.card, "is_valid", True)
    head.get_by_role("button", name="Retry the parents").click()
    assert 1 <= clicks(console) <= 3
    scenes.drain()
    order.refresh_from_db()
    assert order.status == "succeeded"


def test_an_order_that_waits_for_somebody_goes_on_after_four_clicks(console):
    order = scenes.play()["waiting_for_an_event"]
    head = start_from_the_index(console, scenes.BIDI)
    assert "Waiting for the event “approval”" in head.inner_text()
    assert 1 <= clicks(console) <= 3
    head.get_by_role("link", name="Deliver “approval”").click()
    console.get_by_role("button", name="Deliver").click()
    assert 1 <= clicks(console) <= 3
    scenes.drain()
    order.refresh_from_db()
    assert order.status == "succeeded"


def test_what_is_written_from_right_to_left_does_not_turn_the_page_around(console):
    run = scenes.play()["waiting_for_an_event"]
    for path in (
        reverse(f"{scenes.RUN}_changelist"),
        reverse(f"{scenes.RUN}_change", args=[run.pk]),
    ):
        console.goto(path)
        isolated = console.evaluate(
            """(text) => {
            const walk = document.createTreeWalker(
                document.querySelector("#content"), NodeFilter.SHOW_TEXT);
            const bad = [];
            while (walk.nextNode()) {
                const node = walk.currentNode, parent = node.parentElement;
                if (!node.data.includes(text)) continue;
                const style = getComputedStyle(parent);
                const isAlone = /isolate|plaintext/.test(style.unicodeBidi);
                if (!isAlone && !parent.closest("bdi, pre, option, script, style"))
                    bad.push(parent.outerHTML.slice(0, 150));
            }
            return bad;
        }""",
            scenes.BIDI,
        )
        assert isolated == []
    directions = console.evaluate("""() => Array.from(
        document.querySelectorAll("#content pre, #content code, #content .seq-length"),
        (one) => getComputedStyle(one).direction)""")
    assert set(directions) == {"ltr"}


def test_times_have_seconds_and_their_zone_where_people_compare_them_with_logs(console):
    runs = scenes.play()
    paths = scenes.pages(runs)
    for name in ("run failed", "failed attempts", "step runs", "step run", "run on hold"):
        console.goto(paths[name])
        texts = console.locator("#content time").all_inner_texts()
        assert any(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", text) for text in texts)
