"""A run as people are shown it: how far it is, where it is, and nothing that is secret."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from sequences import Abort, Sequence, event, step, subsequence
from sequences.inspection import snapshot
from sequences.models import SequenceRun, StepRun
from sequences.testing import drain
from sequences.testing import run_sequence as run_all
from tests.engine import change, claim, fail, fresh, now, perform, row, take

pytestmark = pytest.mark.django_db


def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card.*", "charge.token"]
            verbose_name = "big order"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        @step(each="items")
        def pack_all(self, item): ...

        approval = event(timeout=timedelta(days=3))

        @step
        def thank(self): ...

    return Order


def started(**data):
    return order().start({"items": [], **data}).run


def of(run):
    return snapshot.of(fresh(run))


def test_a_run_that_has_begun_is_at_its_first_step():
    shown = of(started())
    assert shown.title == "Big order"
    assert [one.name for one in shown.steps][-1] == "refund", "what a failure begins comes last"
    assert [one.name for one in shown.at] == ["charge"]
    assert (shown.done, shown.total, shown.fraction) == (0, 4, 0.0)
    assert shown.is_moving
    assert not shown.is_failing
    assert shown.step("pack_all").label == "pack all"
    assert shown.step("pack_all").status == snapshot.NOT_BEGUN
    assert shown.step("none") is None


def half_packed():
    """A run with a fan-out of four items, of which one has succeeded and one, returned, failed."""
    run = started(items=[1, 2, 3, 4])
    perform(claim(run, "charge"))
    perform(claim(run, "pack_all"))
    one, two = StepRun.objects.filter(run=run.pk, kind="item").order_by("pk")[:2]
    perform(take(one.pk))
    fail(take(two.pk), error=Abort("no"))
    return run, two


def test_a_fan_out_counts_by_its_items():
    run, _ = half_packed()
    shown = of(run)
    packed = shown.step("pack_all")
    assert packed.items == {"queued": 2, "succeeded": 1, "failed": 1}
    assert packed.progress == (2, 4)
    assert shown.fraction == (1 + 0.5) / 4


def test_a_cancelled_item_is_not_done():
    run = started(items=[1, 2, 3, 4])
    perform(claim(run, "charge"))
    perform(claim(run, "pack_all"))
    one = StepRun.objects.filter(run=run.pk, kind="item").order_by("pk")[0]
    perform(take(one.pk))
    run.cancel()
    assert of(run).step("pack_all").items == {"cancelled": 3, "succeeded": 1}
    assert of(run).step("pack_all").progress == (1, 4)


@pytest.mark.parametrize(
    ("told", "progress"),
    [
        ({"done": 3, "total": 4}, (3, 4)),
        ({"done": 9, "total": 4}, (9, 4)),
        ({"done": 3}, None),
        ({"done": 3, "total": 0}, None),
        ({"done": "3", "total": "4"}, None),
        ("text", None),
        (None, None),
    ],
)
def test_a_step_tells_its_progress_and_what_is_none_is_no_error(told, progress):
    run = started()
    claim(run, "charge")
    change(run, "charge", progress=told)
    shown = of(run)
    assert shown.step("charge").progress == progress
    assert 0 <= shown.fraction <= 1 / 4


REPORTS = [
    ({"done": 7, "total": 8, "text": "packing"}, None, ""),
    ({"done": None, "total": None, "text": "packing"}, None, ""),
    ({"done": 8, "total": 8, "text": "all packed"}, (8, 8), "all packed"),
    ({"done": 9, "total": 8, "text": ""}, (9, 8), ""),
]


@pytest.mark.parametrize(("told", "progress", "text"), REPORTS)
def test_a_step_that_has_ended_well_has_no_unfinished_progress(told, progress, text):
    run = started()
    claimed = claim(run, "charge")
    change(run, "charge", progress=told)
    assert of(run).step("charge").progress_text == told["text"]
    perform(claimed)
    charge = of(run).step("charge")
    assert (charge.status, charge.progress, charge.progress_text) == ("succeeded", progress, text)
    assert charge.fraction == (None if progress is None else 1.0)
    for status in ("skipped", "failed", "retrying", "running"):
        change(run, "charge", status=status)
        shown = of(run).step("charge").progress_text
        assert shown == (text if status == "skipped" else told["text"])


def test_a_fan_out_that_was_skipped_has_no_unfinished_progress():
    run, two = half_packed()
    for row_ in StepRun.objects.filter(run=run.pk, kind="item").order_by("pk")[2:]:
        perform(take(row_.pk))
    assert of(run).step("pack_all").progress == (4, 4)
    StepRun.objects.filter(pk=two.pk).update(status="skipped")
    assert of(run).step("pack_all").progress == (3, 4), "it has failed"
    StepRun.objects.filter(run=run.pk, kind="each").update(status="skipped")
    skipped = of(run).step("pack_all")
    assert (skipped.progress, skipped.fraction) == (None, None)
    assert skipped.items == {"succeeded": 3, "skipped": 1}


def test_a_failed_run_is_where_it_failed():
    run = started(card={"number": "4111-secret"})
    drain()
    run.refresh_from_db()
    run.deliver("approval")
    perform(claim(run, "approval"))
    fail(claim(run, "thank"), error=ValueError("refused 4111-secret"))
    shown = of(run)
    assert [one.name for one in shown.at] == ["refund"]
    assert shown.run.status == "undoing"
    assert shown.newest_failure.message == "refused ***"
    drain()
    shown = of(run)
    assert [one.name for one in shown.at] == ["thank"]
    assert not shown.is_moving
    assert shown.is_failing


def test_waits_and_lengths_are_never_negative():
    run = started()
    step_run = of(run).step("charge")
    assert step_run.ran(now()) is None
    claim(run, "charge")
    step_run = of(run).step("charge")
    before = step_run.row.ready_at - timedelta(hours=1)
    assert step_run.waited(before) >= timedelta(0)
    assert step_run.ran(before) == timedelta(0)
    assert of(run).step("thank").waited(now()) is None


def test_an_event_waits_for_a_delivery_and_not_for_its_time():
    run = started()
    drain()
    waiting = of(run).step("approval")
    assert waiting.is_awaiting_event
    assert not waiting.is_delayed
    assert waiting.row.due_at is not None


def test_many_are_read_in_a_constant_number_of_queries():
    cls = order()
    runs = [cls.start({"items": []}).run for _ in range(6)]
    for run in runs[:3]:
        fail(claim(run, "charge"))

    def count(chosen):
        with CaptureQueriesContext(connection) as queries:
            snapshot.of_many(list(SequenceRun.objects.filter(pk__in=[one.pk for one in chosen])))
        return len(queries)

    count(runs)  # the plan is known from now on
    assert count(runs) == count(runs[:1]) <= 6  # one is for the time, where that is a query


def test_of_a_class_that_is_gone_everything_is_secret():
    assert snapshot.visible({"a": {"b": 1}}, "shop.Gone") == {"a": "***"}
    assert snapshot.visible([1], "shop.Gone") == "***"
    assert snapshot.visible(None, "shop.Gone") is None


def test_a_result_is_hidden_as_if_it_stood_in_data_under_its_step():
    cls = order()
    label = cls._definition.label
    result = {"token": "secret", "card": {"number": 1}, "ok": 1}
    shown = {"token": "***", "card": {"number": "***"}, "ok": 1}
    assert snapshot.visible(result, label, "charge") == shown
    assert snapshot.visible(result, label, "thank")["token"] == "secret"


def test_what_a_child_hides_is_hidden_where_its_data_stands_in_its_parents():
    class Pay(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["token"]

        @step
        def ask(self):
            self.data["token"] = "tok-4711"

    class Order(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        pay = subsequence(Pay)
        again = subsequence("shop.Order", when=lambda self: False)

        @step
        def thank(self):
            raise ValueError(f"no thanks for {self.data['pay']['token']}")

    run = run_all(Order).run
    assert run.data == {"pay": {"token": "tok-4711"}}
    assert snapshot.visible(run.data, run.sequence) == {"pay": {"token": "***"}}
    result = row(run, "pay").result
    assert snapshot.visible(result, run.sequence, "pay") == {"token": "***"}
    assert of(run).newest_failure.message == "no thanks for ***"
    run.edit({"pay": {"token": "tok-0815"}})
    operation = run.operations.get()
    assert "tok-" not in f"{operation.before}{operation.after}"


def test_the_error_of_a_fan_out_quotes_no_secret_of_its_items_nor_half_of_one():
    class Charges(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0
            redact = ["charge.card"]

        @step(each=lambda self: [{"card": "4111-1111-" + "2" * 300}])
        def charge(self, given):
            raise ValueError(f"refused {given['card']}")

    for failure in run_all(Charges).run.failures.all():
        assert "refused ***" in failure.message
        assert "4111" not in failure.message + failure.traceback
