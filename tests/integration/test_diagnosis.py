"""What is the matter with a run, in a sentence that answers why it is stuck."""

from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import translation

from sequences import Sequence, any_of, event, on_failure, start_definition, step, subsequence
from sequences.inspection import run_diagrams, snapshot
from sequences.inspection.actions import allowed
from sequences.inspection.diagnosis import ERROR_LENGTH, error_of, summary
from sequences.management.cli.details import RunDetails, remark
from sequences.management.cli.live import state_of
from sequences.models import Operation, SequenceRun, StoredPlan, WorkerProcess
from sequences.testing import clock, drain
from tests.engine import change, claim, fail, fresh, now, perform, row, take

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _clock():
    with clock():
        yield


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
            redact = ("card",)

        @step(queue_name="money")
        def charge(self): ...

        @step(each="items")
        def pack(self, item): ...

        approval = event(timeout=timedelta(days=3))
        ship = subsequence(Child, data=lambda self: {})

        @step(delay=timedelta(hours=2))
        def thank(self): ...

    return Order


def started(cls=None, **data):
    return (cls or order()).start({"items": [], **data}).run


def told(run, last=None):
    return summary(snapshot.of(fresh(run)), last)


def newest(run):
    return Operation.objects.filter(run=run.pk).last()


def shift(run, name, field, by):
    change(run, name, **{field: now() + by})


MINUTES = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def test_a_queued_step_that_no_worker_takes_asks_for_its_queue():
    run = started()
    assert told(run).startswith("“charge” has been queued for ")
    shift(run, "charge", "queued_at", -14 * MINUTES)
    assert told(run) == (
        "“charge” has been queued for 14 min and no worker has picked it up. "
        "Is a worker running for the queue “money”?"
    )


def worker(started, *, swept=True, **values):
    values = {"queues": ["default", "money"], "threads": 4, "seen_at": now(), **values}
    name = f"host:{WorkerProcess.objects.count()}"
    swept_at = now() if swept else None
    return WorkerProcess.objects.create(
        name=name, started_at=now() + started, swept_at=swept_at, **values
    )


OLD_WORKERS = (
    "“charge” has been queued for 14 min and no worker has picked it up. All workers of the queue "
    "“money” were started before this version of the sequence first appeared, so they may be "
    "running older code: restart them."
)


def left_queued():
    """Its plan is 14 minutes old, as is its first step."""
    run = started()
    shift(run, "charge", "queued_at", -14 * MINUTES)
    StoredPlan.objects.filter(pk=run.plan_id).update(created_at=now() - 14 * MINUTES)
    return run


def test_a_queued_step_whose_workers_are_older_than_its_plan_asks_to_restart_them():
    run = left_queued()
    for hours in (1, 2):
        worker(-hours * HOUR)
    worker(-MINUTES, queues=["mail"])
    worker(-MINUTES, threads=0)
    worker(-MINUTES, stopped_at=now())
    worker(-2 * MINUTES, seen_at=now() - MINUTES)
    assert told(run) == OLD_WORKERS


@pytest.mark.parametrize(
    "newer",
    [
        {"started": -MINUTES},
        {"started": -14 * MINUTES},  # it stored the plan itself
        {"started": -HOUR, "swept": False},  # it may have had the plan without storing it
    ],
)
def test_one_worker_that_may_have_the_code_is_enough_to_blame_none(newer):
    run = left_queued()
    worker(-HOUR)
    worker(**newer)
    assert told(run).endswith("Is a worker running for the queue “money”?")


def test_without_a_live_worker_of_the_queue_there_is_none_to_restart():
    run = left_queued()
    worker(-HOUR, queues=["default"])
    assert told(run).endswith("Is a worker running for the queue “money”?")


def test_a_definition_that_is_data_needs_no_code_of_its_own():
    run = start_definition({"steps": {"approval": {"event": {}}}}).run
    shift(run, "approval", "queued_at", -14 * MINUTES)
    worker(-HOUR)
    assert told(run).endswith("Is a worker running for the queue “default”?")


def test_only_a_step_that_no_worker_takes_costs_queries_about_workers():
    run = started()
    with CaptureQueriesContext(connection) as usual:
        told(run)
    shift(run, "charge", "queued_at", -14 * MINUTES)
    with CaptureQueriesContext(connection) as late:
        told(run)
    table = WorkerProcess._meta.db_table
    assert not any(table in query["sql"] for query in usual)
    assert len(late) - len(usual) == 2


def test_a_running_step_says_for_how_long_and_how_far_it_is():
    run = started()
    claim(run, "charge")
    shift(run, "charge", "started_at", -5 * MINUTES)
    shift(run, "charge", "wake_at", timedelta(seconds=15))
    change(run, "charge", progress={"done": 3, "total": 10, "text": "page 3"})
    assert told(run) == "“charge” has been running for 5 min: page 3 (3 of 10)."


@pytest.mark.parametrize(
    ("language", "amount"), [("en", "1,500,000 of 2,000,000"), ("de", "1.500.000 von 2.000.000")]
)
def test_a_large_number_is_written_out(language, amount):
    run = started()
    take(row(run, "charge").pk)
    change(run, "charge", progress={"done": 1_500_000, "total": 2_000_000})
    with translation.override(language):
        assert f"({amount})" in told(run)
    details = RunDetails(fresh(run))
    (step,) = (step for step in details.run_snapshot.steps if step.name == "charge")
    assert remark(step, details.run_snapshot) == "1500000/2000000"
    assert "1500000/2000000" in state_of(replace(step, items={"running": 1_500_000}))
    assert "1500000" in run_diagrams.picture_of(details.run_snapshot)


def test_a_part_of_a_number_has_the_separator_of_the_language():
    run = started()
    take(row(run, "charge").pk)
    change(run, "charge", progress={"done": 0.25, "total": 2})
    with translation.override("de"):
        assert "(0,25 von 2)" in told(run)


def test_a_worker_without_a_sign_of_life_is_told_before_and_after_its_lease():
    run = started()
    claim(run, "charge")
    assert "has been running" in told(run)
    shift(run, "charge", "started_at", -1 * MINUTES)
    shift(run, "charge", "wake_at", timedelta(seconds=4.5))
    text = told(run)
    assert text.startswith("The worker of “charge” seems to be lost: no heartbeat for 1")
    assert "in 4" in text
    shift(run, "charge", "wake_at", -2 * MINUTES)
    assert "Its lease expired 2 min ago and no sweep has requeued the step yet" in told(run)


def test_a_step_whose_worker_was_lost_is_taken_by_another():
    run = started()
    change(run, "charge", lost_workers=1)
    assert told(run) == "The worker of “charge” was lost; another one will take over."


def test_a_retry_says_when_how_often_and_why():
    run = started(card="4111-secret")
    fail(claim(run, "charge"), final=False, error=CardError("no funds on 4111-secret\nmore"))
    shift(run, "charge", "due_at", timedelta(seconds=12.5))
    assert told(run) == (
        "Retrying “charge” in 12 s (1 failed attempt). Last error: CardError: no funds on ***."
    )
    shift(run, "charge", "due_at", -2 * MINUTES)
    assert "has been due for a retry for 2 min (1 failed attempt) and no worker" in told(run)


def test_a_failed_run_says_where_when_why_and_what_is_held():
    run = started()
    fail(claim(run, "charge"), final=False)
    fail(claim(run, "charge"), error=CardError("insufficient funds."))
    with clock() as moving:
        moving.move(5 * MINUTES)
        assert told(run) == (
            "“charge” failed 5 min ago after 2 attempts: CardError: insufficient funds. Later "
            "steps are blocked."
        )


def test_an_event_says_since_when_and_until_when():
    with clock() as moving:
        run = started()
        drain()
        moving.move(timedelta(hours=2))
        text = told(run)
    assert text.startswith(
        "Waiting for the event “approval” (2 h so far). It times out in 2 d 21 h"
    )
    change(run, "approval", due_at=None)
    assert told(run).endswith("It has no timeout.")


def test_an_event_of_several_says_what_starts_after_the_first():
    class Quote(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(after=[])
        refusal = event(after=[])

        @step(after=any_of(approval, refusal))
        def decide(self): ...

    run = started(Quote)
    drain()
    assert told(run).endswith(
        "It has no timeout. “decide” starts as soon as one of “approval”, “refusal” has succeeded."
    )


def test_a_delay_says_how_long_it_is():
    run = started()
    drain()
    fresh(run).deliver("approval")
    drain()
    drain()
    assert told(run).startswith("“thank” starts in 1 h 59 min")


def test_a_fan_out_says_how_far_it_is_and_how_many_failed():
    run = started(items=[1, 2, 3, 4])
    perform(claim(run, "charge"))
    perform(claim(run, "pack"))
    items = run.steps.filter(kind="item").order_by("pk")
    fail(take(items[0].pk))
    perform(take(items[1].pk))
    assert told(run) == "“pack” is running (2 of 4). 1 item failed."


def test_a_parent_waits_for_its_child():
    run = started()
    drain()
    fresh(run).deliver("approval")
    for name in ("approval", "ship"):
        perform(claim(run, name))
    assert told(run) == "“ship” is waiting for its child run."


def test_a_pause_says_who_and_why():
    run = started()
    claim(run, "charge")
    fresh(run).pause(by="anna", reason="The shop is closed.\nUntil Monday.")
    text = told(run, newest(run))
    assert text.startswith("Paused by anna ")
    assert text.endswith("ago. Reason: The shop is closed. “charge” is still running.")
    Operation.objects.all().delete()
    assert told(run).startswith("Paused. No new step starts until the run is resumed.")


def test_who_paused_and_why_stays_until_it_is_resumed():
    run = started()
    fresh(run).pause(by="ben", reason="Stock count.")
    fresh(run).resume(by="ben")
    fresh(run).pause(by="anna", reason="The shop is closed.")
    fresh(run).edit({"items": [1]}, by="mia", reason="A typo.")
    assert newest(run).action == "edit"
    assert told(run, newest(run)).startswith("Paused by anna ")
    assert "Reason: The shop is closed." in told(run, newest(run))


def test_an_erased_run_says_so_and_by_whom():
    run = started(name="Joel")
    run.cancel()
    assert "erased" not in told(run)
    fresh(run).erase(by="anna", reason="Asked for by Joel.")
    assert "Its data was erased by anna " in told(run)
    assert told(run).endswith("ago. Reason: Asked for by Joel.")


def test_a_run_of_a_class_that_is_gone_says_what_happens():
    run = started()
    SequenceRun.objects.update(sequence="shop.Removed")
    assert told(run).endswith(
        "The run continues on its own once a release with the class is deployed."
    )
    fail(claim(run, "charge"))
    assert told(run).endswith(
        "No step can run again until a release with the class shop.Removed is deployed."
    )
    fresh(run).retry()
    fresh(run).cancel()
    assert "shop.Removed" not in told(run)


def test_a_cancelled_and_a_finished_run_say_by_whom():
    run = started()
    run.cancel(by="anna", reason="a mistake")
    assert told(run, newest(run)).endswith("ago by anna. Reason: a mistake.")
    run = started()
    run.finish(by="anna")
    text = told(run, newest(run))
    assert text.startswith("Marked as succeeded by anna ")
    assert told(run).endswith(".")


def undone():
    class Undone(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def reserve(self): ...

        @reserve.undo
        def release(self): ...

        @step(after=reserve)
        def left(self): ...

        @step(after=reserve)
        def right(self): ...

        @on_failure
        def tell(self): ...

    return Undone


def test_beside_a_failed_step_the_others_end_first():
    run = started(undone())
    perform(claim(run, "reserve"))
    claim(run, "left")
    fail(claim(run, "right"), error=CardError("no"))
    assert told(run) == "“right” failed: CardError: no. The run fails once “left” has finished."


def test_an_undoing_says_why_and_where_it_is():
    run = started(undone())
    perform(claim(run, "reserve"))
    fail(claim(run, "right"))
    assert told(run).startswith("“right” failed; rolling back completed steps. “release” has")
    fail(claim(run, "release"), error=CardError("gone"))
    perform(claim(run, "tell"))
    text = told(run)
    assert "The rollback failed, too, at “release”: CardError: gone." in text
    run.refresh_from_db()
    run.retry()
    drain()
    assert "Completed steps were rolled back." in told(run)


def test_a_cancelled_run_says_what_its_undos_wait_for():
    run = started(undone())
    perform(claim(run, "reserve"))
    left = claim(run, "left")
    run.cancel(undo=True, by="ann")
    assert told(run, newest(run)) == (
        "Being cancelled by ann; rolling back first. Waiting for “left” to finish first."
    )
    perform(left)
    assert "“release” has been queued for" in told(run)


def test_a_parent_and_its_children_say_whose_turn_it_is_to_be_undone():
    class Night(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def book(self): ...

        @book.undo
        def release(self): ...

        stay = event()

    class Holiday(Sequence):
        class Meta:
            app_label = "shop"

        nights = subsequence(Night, each=lambda self: [{}, {}])

    run = started(Holiday)
    drain()
    run.cancel(undo=True)
    first, second = SequenceRun.objects.filter(parent__run=run.pk).order_by("pk")
    assert told(run).endswith("The child runs of “nights” are being rolled back.")
    assert told(first) == (
        "Stopped together with its parent; it will be rolled back when its turn comes."
    )
    assert f"Reason: inherited from its parent run {run.pk}." in told(second, newest(second))
    fail(claim(second, "release"))
    drain()
    assert "The rollback of the child runs of “nights” failed, too." in told(run)


def test_other_open_steps_are_counted():
    run = started(undone())
    perform(claim(run, "reserve"))
    claim(run, "left")
    assert told(run).endswith("1 other step is active.")
    fail(claim(run, "right"), final=False)
    assert "Retrying “right” now" in told(run), "what is in the way comes first"


def test_an_error_is_its_name_and_its_first_line():
    run = started()
    fail(claim(run, "charge"), error=CardError("x" * 500 + "\nsecond"))
    failure = snapshot.of(fresh(run)).newest_failure
    assert error_of(failure) == f"CardError: {'x' * ERROR_LENGTH}…"
    failure.message = ""
    assert error_of(failure) == "CardError"


def test_every_state_of_a_step_has_its_words():
    run = started()
    for status in ("waiting", "queued", "running", "retrying"):
        change(run, "charge", status=status, due_at=None, started_at=None)
        assert "“charge”" in told(run)
    assert row(run, "charge").status == "retrying"


def test_a_child_that_could_not_undo_itself_is_told_of_above_and_a_retry_is_offered():
    class Night(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def book(self): ...

        @book.undo
        def release(self): ...

        @step
        def pay(self): ...

    class Holiday(Sequence):
        class Meta:
            app_label = "shop"

        night = subsequence(Night)

    run = started(Holiday)
    perform(claim(run, "night"))
    child = SequenceRun.objects.get(parent__run=run.pk)
    perform(claim(child, "book"))
    fail(claim(child, "pay"))
    fail(claim(child, "release"))
    drain()
    assert "The rollback of the child runs of “night” failed, too." in told(run)
    assert "retry" in [action.name for action, _ in allowed(snapshot.of(fresh(run)))]
    run.retry()
    assert told(run).endswith("The child runs of “night” are being rolled back.")
