"""A run's page in the admin: what is the matter, what can be done, all that happened."""

import html
import json
import re
from datetime import timedelta

import pytest
from django.contrib.admin import AdminSite
from django.core.management import call_command
from django.test import override_settings
from django.urls import reverse
from django.utils.html import escape

from sequences import Abort, Sequence, event, step, subsequence
from sequences.admin import SequenceRunAdmin, StepRunAdmin, run_context
from sequences.exceptions import ItemsFailed
from sequences.models import Operation, SequenceRun, StepFailure, StepRun, StoredPlan
from sequences.testing import drain
from sequences.transitions import plans
from sequences.utils.text import fingerprint_of
from tests.console import FAILURES, content_of, count_queries, step_url, url_of, user_with, words
from tests.engine import claim, fail, fresh, perform, take

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("caught")]

SCRIPT = "<script>alert(1)</script>"


class CardError(Exception):
    pass


def order():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def carry(self): ...

    class Order(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card.*", "charge.token"]
            verbose_name = f"order {SCRIPT}"

        @step
        def charge(self):
            return {"token": "tok-secret", "ok": SCRIPT}

        @step(each="items")
        def pack(self, item): ...

        ship = subsequence(Child, data=lambda self: {})
        approval = event(timeout=timedelta(days=3))

        @step
        def thank(self): ...

    return Order


def started(**data):
    key = data.pop("key", None)
    return order().start({"items": [], **data}, key=key).run


def page_of(client, run, **headers):
    return content_of(client, url_of(run), headers)


def test_the_head_says_what_why_and_what_can_be_done(admin_client):
    run = started(key="order-7")
    fail(claim(run, "charge"), error=CardError("insufficient funds"))
    page = page_of(admin_client, run)
    text = words(page)
    assert "“charge” failed" in text
    assert "CardError: insufficient funds. Later steps are blocked." in text
    assert "order-7" in text
    assert str(run.pk) in text
    assert '<span class="seq-state seq-failed">failed</span>' in page
    assert url_of(run, "action", "retry") in page
    assert f"{url_of(run, 'action', 'skip')}?step=charge" in page
    assert url_of(run, "action", "pause") not in page, "it does not run"
    assert "Deliver" not in page


def test_a_run_that_was_undone_can_begin_again_from_its_head(admin_client):
    class Undone(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def reserve(self): ...

        @reserve.undo
        def release(self): ...

        @step
        def pay(self): ...

    run = Undone.start({}).run
    perform(claim(run, "reserve"))
    fail(claim(run, "pay"))
    drain()
    page = page_of(admin_client, run)
    head = page[page.index('id="head"') : page.index('id="steps"')]
    assert url_of(run, "action", "retry") not in page
    assert f"{url_of(run, 'action', 'restart_from')}?step=reserve" in head
    assert "Restart from “reserve”" in words(head)


def test_every_text_of_a_run_is_shown_as_text(admin_client):
    run = started(key=SCRIPT, name=SCRIPT)
    fail(claim(run, "charge"), error=CardError(SCRIPT))
    SequenceRun.objects.filter(pk=run.pk).update(inbox={"approval": SCRIPT})
    StepRun.objects.filter(run=run.pk).update(worker=SCRIPT, progress={"text": SCRIPT})
    StepRun.objects.filter(run=run.pk).update(result={"ok": SCRIPT})
    run.refresh_from_db()
    run.edit({"name": f"2{SCRIPT}"}, by=SCRIPT, reason=SCRIPT)
    for path in (
        url_of(run),
        url_of(run, "failures"),
        url_of(run, "action", "retry"),
        url_of(run, "action", "edit"),
    ):
        page = admin_client.get(path).content.decode()
        assert SCRIPT not in page
        assert escape(SCRIPT) in page
    page = page_of(admin_client, run)
    assert page.count(escape(SCRIPT)) > 10, "title, key, error, data, inbox, result, worker, acts"
    whole = admin_client.get(url_of(run, "value", "data"))
    assert whole["Content-Type"] == "text/plain; charset=utf-8"
    assert whole["X-Content-Type-Options"] == "nosniff"


def test_secrets_are_stars_wherever_they_stand(admin_client):
    run = started(card={"number": "4111-secret"})
    perform(claim(run, "charge"))
    fail(claim(run, "pack"), error=CardError("refused 4111-secret"))
    run.refresh_from_db()
    run.edit({"card": {"number": "5222-secret"}, "items": []})
    StepFailure.objects.update(message="5222-secret", traceback="card 5222-secret")
    pages = [("change",), ("failures",), ("action", "edit"), ("value", "data")]
    paths = [url_of(run, *page) for page in pages]
    for path in [*paths, f"{url_of(run, 'value', 'result')}?step=charge"]:
        page = admin_client.get(path).content.decode()
        assert "***" in page
        assert "-secret" not in page


def test_a_table_shows_each_step_and_links_to_its_items(admin_client):
    run = started(items=[1, 2, 3])
    perform(claim(run, "charge"))
    perform(claim(run, "pack"))
    one, two, _three = StepRun.objects.filter(run=run.pk, kind="item").order_by("pk")
    perform(take(one.pk))
    fail(take(two.pk), error=Abort("broken"))
    page = page_of(admin_client, run)
    for name in ("charge", "pack", "ship", "approval", "thank"):
        assert f'<tr id="step-{name}"' in page
    assert "not started" in page
    assert "67 %" in page
    link = re.search(r'<a href="([^"]+)"><span class="seq-state seq-failed">1 failed', page)
    rows = admin_client.get(link[1].replace("&amp;", "&"))
    assert [row.pk for row in rows.context["cl"].result_list] == [two.pk]


def test_a_picture_and_a_timeline_lead_to_the_rows_of_the_steps(admin_client):
    run = started()
    fail(claim(run, "charge"), error=CardError(SCRIPT))
    page = page_of(admin_client, run)
    assert len(re.findall("<svg", page[page.index('id="picture"') : page.index('id="data"')])) >= 2
    assert 'href="#step-charge"' in page
    assert SCRIPT not in page


def test_beyond_some_dozens_of_steps_the_table_takes_the_place_of_the_picture(admin_client):
    steps = {f"step_{n}": step(lambda self: None) for n in range(70)}
    meta = type("Meta", (), {"app_label": "shop"})
    long = type("Long", (Sequence,), {"__module__": __name__, "Meta": meta, **steps})
    page = page_of(admin_client, long.start({}).run)
    assert "Plan</h2>" not in page
    assert '<tr id="step-step_69"' in page


def test_the_newest_failed_attempt_is_open_and_comes_first(admin_client):
    run = started()
    fail(claim(run, "charge"), final=False, error=CardError("first"))
    fail(claim(run, "charge"), error=CardError("second"))
    page = page_of(admin_client, run)
    attempts = re.findall(r'<details id="attempt-\d+" class="seq-attempt"( open)?>', page)
    assert attempts == [" open", ""]
    listed = page[page.index('<section id="failures"') :]
    assert listed.index("attempt 2") < listed.index("attempt 1")


def test_an_attempt_that_only_reports_those_of_items_is_not_the_one_that_is_open(admin_client):
    run = started(items=["a", "b"])
    perform(claim(run, "charge"))
    perform(claim(run, "pack"))
    for row in StepRun.objects.filter(run=run.pk, item__gte=0):
        fail(take(row.pk, row.attempts), error=CardError("no funds"))
    fan_out = StepRun.objects.get(run=run.pk, step="pack", item=-1)
    with pytest.raises(ItemsFailed) as caught:
        perform(again := take(fan_out.pk))
    fail(again, error=caught.value)
    page = page_of(admin_client, run)
    opened = re.findall(r'seq-attempt"( open)?>\s*<summary><strong>([^<]+)<', page)
    assert opened == [("", "pack"), (" open", "pack[1]")]
    assert "CardError: no funds (item 0; 2 of 2 items failed)." in words(page)


@override_settings(USE_THOUSAND_SEPARATOR=True)
def test_an_id_in_an_address_has_no_separators(admin_client):
    run = started()
    library = '  File "/venv/lib/python3.13/site-packages/x.py", line 1, in f\n    f()'
    StepFailure.objects.bulk_create(
        StepFailure(pk=1_234_567 + n, run=run, step="charge", attempt=n + 1, error="E",
                    traceback=library, failed_at=run.created_at)
        for n in range(2)
    )  # fmt: skip
    Operation.objects.create(
        pk=1_234_567,
        run=run,
        action="edit",
        before={"a": 1},
        after={"a": 2},
        done_at=run.created_at,
    )
    page = page_of(admin_client, run)
    assert 'id="attempt-1234568"' in page
    assert "?like=1234568" in page
    assert 'id="operation-1234567"' in page
    assert 'id="frames-1234568-' in page


def test_of_many_failed_attempts_the_older_ones_are_a_link_away(admin_client, monkeypatch):
    monkeypatch.setattr(run_context, "TRACEBACKS", 2)
    run = started()
    now = run.created_at
    StepFailure.objects.bulk_create(
        StepFailure(run=run, step="charge", attempt=n, error=f"E{n}", traceback=f"T{n}.",
                    failed_at=now)
        for n in range(1, 105)
    )  # fmt: skip
    page = page_of(admin_client, run)
    assert "T104." in page
    assert "T103." in page
    assert "T102." not in page, "its traceback is on the page of all"
    assert ">E5<" in page
    assert ">E4<" not in page
    assert url_of(run, "failures") in page
    assert "T102." in admin_client.get(url_of(run, "failures")).content.decode()
    assert "T1." in admin_client.get(f"{url_of(run, 'failures')}?page=3").content.decode()


def failed_items(run):
    """Three hundred items that have failed for three reasons."""
    reasons = [
        ("shop.CardError", "card {n} declined: limit of {n} EUR"),
        ("shop.CardError", "no such card: 'c-{n}'"),
        ("shop.StockError", "no such card: 'c-{n}'"),
    ]
    rows = []
    for n in range(300):
        error, message = reasons[n % 3]
        text = message.format(n=n)
        rows.append(
            StepFailure(
                run=run, step="pack", item=n, attempt=1, error=error, message=text,
                fingerprint=fingerprint_of(text), traceback=f"T{n}.", failed_at=run.created_at,
            )
        )  # fmt: skip
    StepFailure.objects.bulk_create(rows)


def test_three_hundred_failed_items_are_three_groups(admin_client):
    run = started()
    failed_items(run)
    page = page_of(admin_client, run)
    assert len(re.findall(r'<details id="attempt-\d+" class="seq-attempt"', page)) == 3
    assert page.count("<strong>100 similar</strong>") == 3
    address = re.search(r'href="([^"]+\?like=\d+)"', page)[1]
    alike = admin_client.get(address).content.decode()
    assert "T299." in alike
    assert "T298." not in alike
    assert f"like={address.rpartition('=')[2]}" in alike, "its second page is of the same ones"
    for wrong in ("x", "0", "9" * 30):
        assert admin_client.get(f"{url_of(run, 'failures')}?like={wrong}").status_code == 200
    timeline = page[page.index("seq-timeline") :]
    assert "charge" in timeline


def test_they_are_three_on_the_failures_page_too_and_each_leads_to_its_runs(admin_client):
    run, other = started(), started()
    failed_items(run)
    StepFailure.objects.create(
        run=other, step="pack", attempt=1, error="shop.CardError", message="card expired",
        fingerprint=fingerprint_of("card expired"), failed_at=other.created_at,
    )  # fmt: skip
    page = admin_client.get(FAILURES).content.decode()
    links = [html.unescape(link) for link in re.findall(r'href="([^"]+)">100</a>', page)]
    links = [link for link in links if "since=hour" in link]
    assert len(links) == 3
    listed = admin_client.get(links[0]).content.decode()
    assert str(run.pk) in listed
    assert str(other.pk) not in listed


def test_a_recorded_failure_has_the_shape_of_its_message_until_it_is_erased():
    run = started()
    fail(claim(run, "charge"), error=CardError("card 4111 declined"))
    assert run.failures.get().fingerprint == fingerprint_of("card 5222 declined")
    assert run.failures.get().fingerprint != fingerprint_of("card 5222 expired")
    fresh(run).erase()
    assert run.failures.get().fingerprint == ""


def test_a_traceback_begins_with_the_projects_own_frames(admin_client):
    run = started()
    text = (
        "Traceback (most recent call last):\n"
        '  File "/venv/lib/python3.13/site-packages/dramatiq/worker.py", line 1, in process\n'
        "    act()\n"
        '  File "/srv/shop/orders.py", line 7, in charge\n'
        "    self.gateway.charge()\n"
        "shop.CardError: <no> funds\n"
    )
    StepFailure.objects.create(
        run=run, step="charge", attempt=1, error="E", traceback=text, failed_at=run.created_at
    )
    page = page_of(admin_client, run)
    shown = page[page.index('<div class="seq-traceback">') :]
    assert shown.index("orders.py") < shown.index("1 library frame</summary>")
    assert shown.index("1 library frame</summary>") < shown.index("dramatiq/worker.py")
    assert "&lt;no&gt; funds" in shown


def test_large_values_are_cut_and_the_whole_is_a_link_away(admin_client):
    run = started(text="x" * 300_000)
    perform(claim(run, "charge"))
    StepRun.objects.filter(run=run.pk, step="charge").update(result="y" * 50_000)
    page = page_of(admin_client, run)
    assert len(page) < 250_000
    assert "yyyy" not in page
    assert url_of(run, "value", "data") in page
    whole = json.loads(admin_client.get(url_of(run, "value", "data")).content)
    assert whole == run.data
    result = admin_client.get(f"{url_of(run, 'value', 'result')}?step=charge")
    assert json.loads(result.content) == "y" * 50_000


def test_the_number_of_queries_does_not_grow(admin_client):
    run = started(items=[1])
    perform(claim(run, "charge"))
    perform(claim(run, "pack"))
    fail(take(StepRun.objects.get(run=run.pk, kind="item").pk), error=Abort("no"))
    fresh(run).edit({"a": 1})
    child = SequenceRun.objects.create(
        plan=run.plan, sequence="shop.Child", created_at=run.created_at, updated_at=run.updated_at,
        parent=StepRun.objects.get(run=run.pk, step="charge"),
    )  # fmt: skip
    before = count_queries(admin_client, url_of(run))
    now = run.created_at
    StepRun.objects.bulk_create(
        StepRun(run=run, step="pack", item=n, kind="item", ready_at=now, queued_at=now)
        for n in range(10, 200)
    )
    StepFailure.objects.bulk_create(
        StepFailure(run=run, step="pack", item=n, attempt=1, error="E", failed_at=now)
        for n in range(200)
    )
    for n in range(5):
        fresh(run).edit({"a": n + 2})
        SequenceRun.objects.create(
            plan=run.plan, sequence="shop.Child", created_at=now, updated_at=now,
            parent=child.parent,
        )  # fmt: skip
    after = count_queries(admin_client, url_of(run))
    assert after <= before + 1, "older attempts, without tracebacks"
    assert before <= 27, "a run with a child reads that one, and its steps, too"


def test_operations_are_shown_with_who_why_and_what_changed(admin_client):
    run = started(name="Joel")
    run.edit({"name": "Ann", "items": []}, by="mia", reason="typo")
    run.pause(by="anna")
    page = page_of(admin_client, run)
    assert words(page).index("Pause by anna") < words(page).index("Edit data by mia")
    assert "typo" in page
    assert re.search(r'seq-removed">-\s+&quot;name&quot;: &quot;Joel&quot;', page)
    assert re.search(r'seq-added">\+\s+&quot;name&quot;: &quot;Ann&quot;', page)


def test_parents_and_children_are_linked_as_far_as_the_user_may_see_them(admin_client):
    run = started()
    drain()
    child = SequenceRun.objects.get(parent__run=run.pk)
    assert url_of(child) in page_of(admin_client, run)
    assert url_of(run) in page_of(admin_client, child)


def test_a_page_is_live_only_while_something_moves(admin_client):
    run = started()
    page = page_of(admin_client, run)
    assert 'data-seq-live="2000"' in page
    assert f'data-seq-url="{url_of(run)}"' in page
    assert "sequences/live.js" in page
    run.cancel()
    page = page_of(admin_client, run)
    assert 'data-seq-live=""' in page
    regions = re.findall(r'<(?:header|section) id="([\w-]+)"[^>]* data-seq-region', page)
    assert len(regions) == len(set(regions)) > 5


def test_a_refresh_leaves_the_messages_for_the_reader(admin_client):
    run = started()
    admin_client.post(url_of(run, "action", "pause"), {"confirm": "yes"})
    page_of(admin_client, run, X_Requested_With="sequences-live")
    assert "Paused. No new step" in page_of(admin_client, run)
    assert "Paused. No new step" not in page_of(admin_client, run)


def test_there_is_no_script_and_no_style_inside_of_the_page(admin_client):
    run = started()
    drain()
    page = page_of(admin_client, run)
    content = page[page.index('id="content-main"') : page.index('id="footer"')]
    assert not re.search(r"<script|<style|\son\w+=|\sstyle=|javascript:", content)
    assert not re.search(r"<script>", page)


def test_what_a_user_may_not_view_is_left_out(client):
    run = started()
    fail(claim(run, "charge"), error=CardError("no funds"))
    client.force_login(user_with("view_sequencerun"))
    page = page_of(client, run)
    assert "“charge” failed" in page
    assert "Traceback" not in page
    for region in ("failures", "results", "operations"):
        assert f'id="{region}"' not in page
    assert "/action/" not in page, "the permission to view gives no other"
    assert client.get(url_of(run, "failures")).status_code == 403
    assert client.get(f"{url_of(run, 'value', 'result')}?step=charge").status_code == 403
    assert client.get(url_of(run, "value", "data")).status_code == 200


def test_nobody_sees_a_run_without_the_permission(client):
    run = started()
    client.force_login(user_with("retry_sequencerun"))
    for path in (url_of(run), url_of(run, "failures"), url_of(run, "value", "data")):
        assert client.get(path).status_code == 403
    client.logout()
    assert client.get(url_of(run)).status_code == 302


def test_a_run_that_is_not_there_is_said_so(admin_client):
    gone = SequenceRun()
    assert admin_client.get(url_of(gone)).status_code == 302
    assert admin_client.get(url_of(gone, "failures")).status_code == 404
    path = reverse("admin:job_sequences_sequencerun_change", args=["no-uuid"])
    assert admin_client.get(path).status_code == 302


def test_values_are_only_those_that_there_are(admin_client):
    run = started()
    assert admin_client.get(url_of(run, "value", "active_key")).status_code == 404
    assert admin_client.get(f"{url_of(run, 'value', 'result')}?step=none").status_code == 404


def test_a_run_of_a_class_that_is_gone_says_that_its_values_are_hidden(admin_client):
    run = started(name="Joel")
    SequenceRun.objects.update(sequence="shop.Removed")
    page = page_of(admin_client, run)
    assert "Its data is hidden: without the class shop.Removed, there is no way" in page
    assert "Joel" not in page


def test_a_waiting_event_is_delivered_from_its_page(admin_client):
    run = started()
    drain()
    page = page_of(admin_client, run)
    assert f'href="{url_of(run, "action", "deliver")}?step=approval"' in page
    assert "Deliver “approval”" in page


def test_an_erased_run_says_so_in_place_of_its_data(admin_client):
    run = started(name="Joel")
    run.cancel()
    assert "were erased" not in page_of(admin_client, run)
    fresh(run).erase(by="mia")
    page = page_of(admin_client, run)
    assert "Its data was erased by mia" in page
    assert "The data, payloads, results and error texts of this run were erased." in page


def test_what_is_erased_offers_neither_an_edit_nor_to_be_erased_again(admin_client):
    def offered(run):
        page = page_of(admin_client, run)
        return [name for name in ("edit", "erase") if url_of(run, "action", name) in page]

    run, kept = started(key="o-1"), started(key="o-2")
    for each in (run, kept):
        each.cancel()
        assert offered(each) == ["edit", "erase"]
    fresh(run).erase()
    fresh(kept).erase(keep_key=True)
    assert offered(run) == []
    assert offered(kept) == ["erase"], "its key is left"
    fresh(run).restart_from("charge")
    assert offered(run) == ["edit"]
    fresh(run).cancel()
    assert offered(run) == ["edit", "erase"], "there may be results and errors again"


def test_a_run_of_a_newer_release_says_so_and_cannot_be_changed_here(admin_client, capsys):
    run = started()
    stored = StoredPlan.objects.get()
    StoredPlan.objects.update(graph={**stored.graph, "format": 99})
    plans.forget()
    page = page_of(admin_client, run)
    assert "A newer release started this run" in page
    assert url_of(run, "action", "pause") not in page
    answer = admin_client.post(url_of(run, "action", "finish"), {"confirm": "yes"}, follow=True)
    assert "Upgrade this process to the release that wrote the plan." in answer.content.decode()
    assert fresh(run).status == "running"
    call_command("sequences", "show", str(run.pk))
    assert "A newer release started this run" in capsys.readouterr().out


def test_the_pages_of_a_step_that_has_succeeded_show_no_unfinished_progress(admin_client):
    run = started()
    claim(run, "charge")
    StepRun.objects.update(progress={"done": 7, "total": 8, "text": "packing"})
    address = step_url(StepRun.objects.get())
    assert "packing" in admin_client.get(address).content.decode()
    assert "88 % packing" in words(page_of(admin_client, run))
    StepRun.objects.update(status="succeeded")
    assert "packing" not in admin_client.get(address).content.decode()
    page = words(page_of(admin_client, run))
    assert "packing" not in page
    assert "88 %" not in page


def test_the_text_of_a_progress_on_the_page_of_its_step_has_no_secrets(admin_client):
    run = started(card={"number": "4111-secret"})
    claim(run, "charge")
    StepRun.objects.update(progress={"done": 1, "text": "With 4111-secret"})
    address = step_url(StepRun.objects.get())
    page = admin_client.get(address).content.decode()
    assert "With ***" in page
    assert "4111-secret" not in page


def test_a_site_may_have_runs_without_step_runs_and_the_other_way_round(rf, admin_user):
    run = started()
    only_runs, only_steps = AdminSite("admin"), AdminSite("admin")
    only_runs.register(SequenceRun, SequenceRunAdmin)
    only_steps.register(StepRun, StepRunAdmin)
    request = rf.get("/")
    request.user = admin_user
    page = only_runs.get_model_admin(SequenceRun).change_view(request, str(run.pk))
    assert not [line for line in page.context_data["steps"] if line.url]
    row = StepRun.objects.select_related("run").get()
    assert only_steps.get_model_admin(StepRun).run_column(row) == str(run)
