"""What people do in the console, with a real browser and a real worker."""

import re
import time
from urllib.parse import quote

import pytest
from django.urls import reverse
from playwright.sync_api import expect

from sequences.models import StepFailure
from tests.acceptance.app.sequences import SCRIPT, Delivery, Held, Parallel, Struck
from tests.acceptance.workers import wait_for

from .conftest import LIMIT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only_on("postgresql"),
    pytest.mark.timeout(300),
]

RUN = "admin:job_sequences_sequencerun"
RUNS = f"{RUN}_changelist"


def path_of(run):
    return reverse("admin:job_sequences_sequencerun_change", args=[run.pk])


def state(page, step=None):
    """Where the page says the state of the run, or of a step."""
    return page.locator(f"#step-{step} .seq-state" if step else "#head .seq-state").first


def comes_to(page, status, step=None):
    """The page says so: by itself, or, without JavaScript, when it is loaded anew."""
    deadline = time.monotonic() + LIMIT / 1000
    while not page.has_javascript and f"seq-{status}" not in state(page, step).get_attribute(
        "class"
    ):
        assert time.monotonic() < deadline, f"not {status}: {page.inner_text('#content-main')}"
        page.wait_for_timeout(100)
        page.reload()
    expect(state(page, step)).to_have_class(re.compile(rf"\bseq-{status}\b"))


def test_somebody_logs_in_and_sees_the_runs(visitors, admin_user, gate):
    run = Held(gate=str(gate)).run
    wait_for(gate.visitors)
    page = visitors.page()
    page.goto(reverse(RUNS))
    page.fill("#id_username", admin_user.username)
    page.fill("#id_password", "password")
    page.click("input[type=submit]")
    row = page.locator("#result_list tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("held")
    expect(row.locator(".seq-running").first).to_be_visible()
    row.locator("a").first.click()
    expect(page).to_have_url(re.compile(re.escape(path_of(run))))
    gate.open()


def test_a_run_moves_on_its_page_and_in_the_list_without_a_reload(visitors, admin_user, gate):
    run = Held(gate=str(gate)).run
    wait_for(gate.visitors)
    page, runs = (visitors.page(user=admin_user) for _ in range(2))
    page.goto(path_of(run))
    runs.goto(reverse(RUNS))
    for one in (page, runs):
        one.evaluate("window.isTheSame = true")
    expect(state(page, "held")).to_have_class(re.compile(r"\bseq-running\b"))
    gate.open()
    expect(state(page)).to_have_class(re.compile(r"\bseq-succeeded\b"))
    expect(state(page, "last")).to_have_class(re.compile(r"\bseq-succeeded\b"))
    runs.bring_to_front()
    expect(runs.locator("#result_list .seq-succeeded").first).to_be_visible()
    for one in (page, runs):
        assert one.evaluate("window.isTheSame") is True


def test_a_failed_order_is_approved_read_mended_and_retried(either):
    page, run = either, Delivery(order="7").run
    head = page.locator("#head")
    page.goto(path_of(run))
    comes_to(page, "waiting", "approval")
    head.get_by_role("link", name="Deliver “approval”").click()
    page.get_by_role("button", name="Deliver").click()
    comes_to(page, "failed")
    attempt = page.locator("#failures details.seq-attempt").first
    assert attempt.get_attribute("open") is not None
    traceback = attempt.locator(".seq-traceback")
    expect(traceback).to_contain_text("Traceback (most recent call last)")
    expect(traceback).to_contain_text("KeyError: 'address'")
    head.get_by_role("link", name="Edit data").click()
    text = page.locator("textarea[name=text]")
    text.fill(text.input_value().replace("{", '{"address": "12 Main Street",', 1))
    page.get_by_role("button", name="Review changes").click()
    expect(page.locator("#content-main")).to_contain_text("12 Main Street")
    page.get_by_role("button", name="Save", exact=True).click()
    head.get_by_role("button", name="Retry").click()
    comes_to(page, "succeeded")
    expect(page.locator("#operations")).to_contain_text("by admin")
    run.refresh_from_db()
    assert run.data["sent_to"] == "12 Main Street"
    assert run.operations.count() == 3


def test_a_script_is_shown_as_text_wherever_people_can_put_it(page):
    run = Struck.start({SCRIPT: SCRIPT}, key=SCRIPT).run
    wait_for(lambda: run.failures.exists())
    step_run = run.steps.get()
    for path in (
        reverse(RUNS),
        path_of(run),
        *(reverse(f"{RUN}_action", args=[run.pk, name]) for name in ("retry", "edit", "erase")),
        f"{reverse(f'{RUN}_action', args=[run.pk, 'skip'])}?step=fails",
        reverse(f"{RUN}_failures", args=[run.pk]),
        reverse(f"{RUN}_failure_groups"),
        reverse("admin:job_sequences_steprun_changelist"),
        reverse("admin:job_sequences_steprun_change", args=[step_run.pk]),
        f"{reverse(RUNS)}?q={quote(SCRIPT)}&text=1",
    ):
        assert page.goto(path).ok, path
        assert page.evaluate("window.struck") is None, path
        assert page.locator("img[src=x]").count() == 0, path
    page.goto(path_of(run))
    for place in ("#head", "#steps", "#failures", "#data"):
        expect(page.locator(place)).to_contain_text("<script>window.struck = true</script>")


def test_what_is_open_and_what_has_the_focus_survive_a_refresh(page, gate):
    run = Parallel(gate=str(gate)).run
    wait_for(gate.visitors)
    StepFailure.objects.bulk_create(
        StepFailure(run=run, step="work", attempt=n, error=f"E{n}", failed_at=run.created_at)
        for n in (1, 2)
    )
    page.goto(path_of(run))
    expect(state(page, "approval")).to_have_class(re.compile(r"\bseq-waiting\b"))
    delivery = page.locator("#head").get_by_role("link", name="Deliver “approval”")
    older = page.locator("#failures details.seq-attempt").nth(1)
    older.locator("summary").first.click()
    delivery.focus()
    with page.expect_response(lambda one: run.pk.hex in one.url.replace("-", "")):
        gate.open()
    expect(state(page, "work")).to_have_class(re.compile(r"\bseq-succeeded\b"))
    expect(delivery).to_be_focused()
    expect(older).to_have_attribute("open", "")
    delivery.click()
    page.locator("textarea[name=payload]").fill('{"by": "Ada"}')
    page.get_by_role("button", name="Deliver").click()
    expect(state(page)).to_have_class(re.compile(r"\bseq-succeeded\b"))
    run.refresh_from_db()
    assert run.data["approval"] == {"by": "Ada"}


def test_a_live_page_is_sent_only_what_has_changed(page, gate):
    run = Held(gate=str(gate)).run
    wait_for(gate.visitors)
    page.goto(path_of(run))
    with page.expect_response(lambda one: run.pk.hex in one.url.replace("-", "")) as news:
        pass
    whole = page.request.get(path_of(run)).text()
    sent = news.value.text()
    assert sent.count("data-seq-same") >= 2, "its data and its failed attempts are the same"
    assert len(sent) < len(whole) / 2
    gate.open()
    expect(state(page)).to_have_class(re.compile(r"\bseq-succeeded\b"))
    expect(page.locator("[data-seq-says]")).to_have_text("Finished; no longer updating")


@pytest.mark.parametrize("javascript", [True, False], ids=["with script", "without script"])
def test_the_visitor_of_a_form_sees_what_becomes_of_it(visitors, javascript):
    page = visitors.page(javascript=javascript)
    page.goto("/contact/")
    page.fill("#id_name", "Ada")
    page.fill("#id_email", "ada@example.com")
    page.locator("#id_topic").select_option(index=1)
    page.fill("#id_body", "Hello")
    page.get_by_role("button", name="Send").click()
    bar = page.locator("progress")
    expect(bar).to_be_visible()
    begun = float(bar.get_attribute("value"))
    link = page.get_by_role("link", name="See who will reply")
    expect(link).to_be_visible()
    assert begun < float(bar.get_attribute("value")) == 100
    link.click()
    expect(page.locator("h1")).to_have_text("Your message")
