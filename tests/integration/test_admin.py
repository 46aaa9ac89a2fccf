"""The admin shows runs and step runs, escaped and redacted, and changes nothing."""

from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from sequences import Abort, Sequence, step
from sequences.admin import base
from sequences.models import SequenceRun, StepFailure, StepRun
from sequences.testing import run_sequence
from tests.console import RUNS, STEPS, content_of, user_with

pytestmark = pytest.mark.django_db

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def sequence():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card.*", "pay.token"]

        @step
        def pay(self):
            self.data["paid"] = True
            return {"token": "tok-secret", "note": SCRIPT}

        @step(throws=Abort)
        def ship(self):
            if self.data.get("fail"):
                raise Abort(f"no {SCRIPT}")

    return Order


def change_url(row):
    return reverse(f"admin:job_sequences_{row._meta.model_name}_change", args=[row.pk])


def found(client, term, path=RUNS):
    response = client.get(path, {"q": term})
    assert response.status_code == 200
    return {row.pk for row in response.context["cl"].result_list}


def queries_of(client, path):
    with CaptureQueriesContext(connection) as queries:
        content_of(client, path)
    return len(queries), " ".join(query["sql"] for query in queries)


def test_data_keys_errors_tracebacks_and_results_are_shown_as_text(admin_client, sequence):
    started = run_sequence(sequence, name=SCRIPT, fail=True)
    SequenceRun.objects.filter(pk=started.run.pk).update(key=SCRIPT)
    StepFailure.objects.update(traceback=f"Traceback {SCRIPT}", error=SCRIPT)
    step_run = started.run.steps.get(step="pay")
    for path in (RUNS, STEPS, change_url(started.run), change_url(step_run)):
        page = content_of(admin_client, path)
        assert SCRIPT not in page
        assert escape(SCRIPT) in page
    page = content_of(admin_client, change_url(started.run))
    assert page.count(escape(SCRIPT)) >= 6, "name, key, error, message, traceback, result"


def test_what_meta_redact_names_is_shown_as_stars(admin_client, sequence):
    started = run_sequence(sequence, name="Joel", card={"number": "4111-secret"})
    page = content_of(admin_client, change_url(started.run))
    assert "Joel" in page
    assert "4111-secret" not in page
    assert "tok-secret" not in page, "a result is redacted as what stands in data by its step"
    step_run = started.run.steps.get(step="pay")
    page = content_of(admin_client, change_url(step_run))
    assert "tok-secret" not in page
    assert '<div class="readonly">-1</div>' not in page, "that it is no item"


def test_the_values_of_a_run_without_a_class_are_hidden(admin_client, sequence):
    started = run_sequence(sequence, name="Joel")
    SequenceRun.objects.update(sequence="shop.Removed")
    page = content_of(admin_client, change_url(started.run))
    assert "&quot;name&quot;: &quot;***&quot;" in page
    assert "Joel" not in page
    assert "tok-secret" not in page
    assert found(admin_client, "Joel") == set()


def test_nobody_adds_changes_or_deletes(admin_client, sequence):
    started = run_sequence(sequence)
    step_run = started.run.steps.first()
    for row in (started.run, step_run):
        name = f"admin:job_sequences_{row._meta.model_name}"
        assert admin_client.get(reverse(f"{name}_add")).status_code == 403
        assert admin_client.post(change_url(row), {"status": "failed"}).status_code == 403
        delete = reverse(f"{name}_delete", args=[row.pk])
        assert admin_client.post(delete, {"post": "yes"}).status_code == 403
    actions = {"action": "delete_selected", "_selected_action": str(started.run.pk), "post": "yes"}
    admin_client.post(RUNS, actions)
    started.run.refresh_from_db()
    assert started.run.status == "succeeded"


def test_a_user_needs_the_permission_to_view(client, sequence):
    started = run_sequence(sequence)
    client.force_login(user := user_with())
    assert client.get(RUNS).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_sequencerun"))
    assert client.get(RUNS).status_code == 200
    page = content_of(client, change_url(started.run))
    assert "failed attempts" not in page, "an inline has a permission of its own"


def test_the_list_filters_by_sequence_status_and_creation(admin_client, sequence):
    good, bad = run_sequence(sequence), run_sequence(sequence, fail=True)
    page = content_of(admin_client, RUNS)
    assert "?sequence=shop.Order" in page
    assert "created=day" in page
    for query, expected in [
        ("status__exact=failed", {bad.run.pk}),
        ("sequence=shop.Order", {good.run.pk, bad.run.pk}),
        ("sequence=shop.Other", set()),
    ]:
        rows = admin_client.get(f"{RUNS}?{query}").context["cl"].result_list
        assert {row.pk for row in rows} == expected
    rows = admin_client.get(f"{STEPS}?sequence=shop.Order&status__exact=failed")
    assert [str(row) for row in rows.context["cl"].result_list] == ["ship"]


def test_runs_are_found_by_id_key_and_data(admin_client):
    class Letter(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def write(self): ...

    one = Letter.start({"name": 'Zoë "Zo" Quiñones', "n": 17}, key="order-7001").run.pk
    two = Letter.start({"name": "Ann", "other": str(one)}, key="order-7002").run.pk
    assert found(admin_client, str(one)) == {one}
    assert found(admin_client, one.hex) == {one}
    assert found(admin_client, "7002") == {two}
    assert found(admin_client, "quiñones") == {one}
    assert found(admin_client, '"Zo"') == {one}
    assert found(admin_client, '"n": 17') == {one}
    assert found(admin_client, "ANN") == {two}
    assert found(admin_client, str(uuid4())) == set()
    assert found(admin_client, "100%") == set()
    assert found(admin_client, str(one), STEPS) == {StepRun.objects.get(run=one).pk}
    assert found(admin_client, "order-7002", STEPS) == {StepRun.objects.get(run=two).pk}
    assert found(admin_client, "7002", STEPS) == set(), "millions are not searched for a part"


def test_a_search_does_not_find_what_is_redacted(admin_client, sequence):
    started = run_sequence(sequence, name="Joel", card={"number": "4111-secret"})
    assert found(admin_client, "joel") == {started.run.pk}
    assert found(admin_client, "4111") == set()


def test_lists_need_a_constant_number_of_queries_and_leave_large_columns_alone(
    admin_client, sequence
):
    run_sequence(sequence, name="Joel", fail=True)
    before = [queries_of(admin_client, path)[0] for path in (RUNS, STEPS)]
    for _ in range(5):
        run_sequence(sequence, name="Joel", fail=True)
    after = [queries_of(admin_client, path) for path in (RUNS, STEPS)]
    assert [count for count, _ in after] == before
    quote = connection.ops.quote_name
    for columns, (_, statements) in zip(
        (("inbox", "result"), ("data", "inbox", "result", "payload")), after, strict=True
    ):
        for column in columns:
            assert f".{quote(column)}" not in statements
    # Of the runs on the page that have failed it is read, for their secrets.
    assert after[0][1].count(f".{quote('data')}") == 1


def test_the_page_of_a_run_needs_a_constant_number_of_queries(admin_client, sequence):
    started = run_sequence(sequence, fail=True)

    def restart(number):
        started.run.restart_from("pay", by=f"user {number}")
        StepFailure.objects.create(
            run=started.run, step="ship", attempt=9, error="E", failed_at=started.run.created_at
        )

    for number in range(2):
        restart(number)
    before, _ = queries_of(admin_client, change_url(started.run))
    for number in range(2, 7):
        restart(number)
    after, _ = queries_of(admin_client, change_url(started.run))
    assert after == before


def test_the_page_of_a_run_shows_the_newest_failures_only(admin_client, sequence):
    started = run_sequence(sequence, fail=True)
    now = started.run.created_at
    StepFailure.objects.bulk_create(
        StepFailure(run=started.run, step="ship", attempt=n, error=f"Error{n}.", failed_at=now)
        for n in range(1, base.MAX_NEWEST_ROWS + 1)
    )
    page = content_of(admin_client, change_url(started.run))
    assert "Error1." in page
    assert "Abort" not in page, "it is older than the newest hundred"
    failures = page[page.index('id="failures-title"') :]
    assert failures.index("Error2.") < failures.index("Error1."), "the newest first"


def test_a_list_counts_no_further_than_it_must(admin_client, sequence, monkeypatch):
    monkeypatch.setattr(base, "COUNTED", 2)
    for _ in range(3):
        run_sequence(sequence)
    response = admin_client.get(RUNS)
    assert str(response.context["cl"].result_count) == "2+"
    assert "2+ runs" in response.content.decode()


def test_operations_show_who_did_what_and_edits_are_redacted(admin_client, sequence):
    started = run_sequence(sequence, name="Joel", card={"number": "4111-secret"})
    started.run.edit({"name": "Ann", "card": {"number": "5222-secret"}}, by="Mia", reason="typo")
    page = content_of(admin_client, change_url(started.run))
    assert "Mia" in page
    assert "typo" in page
    assert "Ann" in page
    assert "-secret" not in page
