"""A step run that waits says what for, and since when."""

from datetime import timedelta

import pytest

from sequences import Abort, Sequence, event, on_failure, repeat, step, subsequence
from sequences.engine import dispatcher
from sequences.models import StepRun
from sequences.testing import clock, drain, run_sequence
from sequences.transitions import failures, fanout
from tests.engine import claim, fail, fresh, now, perform, row, take

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
failing = set()


@pytest.fixture(autouse=True)
def nothing_fails():
    yield
    failing.clear()


@pytest.fixture
def moving():
    with clock() as moving:
        yield moving


class Child(Sequence):
    class Meta:
        app_label = "waits"

    approval = event()


class Delayed(Sequence):
    class Meta:
        app_label = "waits"

    @step(delay=HOUR)
    def late(self):
        pass


class Repeating(Sequence):
    class Meta:
        app_label = "waits"

    @step
    def late(self):
        return repeat(after=HOUR)


class LateApproval(Sequence):
    class Meta:
        app_label = "waits"

    late = event(delay=HOUR)


class Approval(Sequence):
    class Meta:
        app_label = "waits"

    late = event(timeout=HOUR)


class Items(Sequence):
    class Meta:
        app_label = "waits"

    @step(each=lambda self: range(2), concurrency=1)
    def late(self, item):
        return repeat(after=HOUR)


class Parent(Sequence):
    class Meta:
        app_label = "waits"

    late = subsequence(Child, data=lambda self: {})


class Saga(Sequence):
    class Meta:
        app_label = "waits"

    @step
    def book(self):
        pass

    @book.undo
    def unbook(self):
        if "undo" in failing:
            raise Abort("cannot")

    @step
    def pay(self):
        raise Abort("no money")

    @on_failure
    def tell(self):
        if "tell" in failing:
            raise Abort("nobody there")


WAITS = {
    "its delay": (Delayed, "time"),
    "its next turn": (Repeating, "time"),
    "the delay of an event": (LateApproval, "time"),
    "an event": (Approval, "event"),
    "its items": (Items, "items"),
    "its child": (Parent, "children"),
}


def items_of(run):
    return StepRun.objects.filter(run=run.pk, step="late", item__gte=0).order_by("item")


@pytest.mark.parametrize(("sequence", "wait"), WAITS.values(), ids=WAITS)
def test_a_waiting_step_says_what_for_and_since_when(sequence, wait):
    before = now()
    run = sequence().run
    drain()
    late = StepRun.objects.get(run=run.pk, step="late", item=-1)
    assert (late.status, late.wait) == ("waiting", wait)
    assert before <= late.waiting_since <= now()
    assert late.payload is None


def test_a_run_whose_start_is_delayed_waits_for_its_time():
    run = Repeating.start(delay=HOUR).run
    assert (row(run, "late").status, row(run, "late").wait) == ("waiting", "time")


def test_an_item_waits_for_its_place_then_for_its_time_then_for_its_place_again(moving):
    run = Items().run
    perform(claim(run, "late"))
    first, second = items_of(run)
    assert [first.status, second.status, second.wait] == ["queued", "waiting", "place"]
    perform(take(first.pk))
    first, second = items_of(run)
    assert [first.status, first.wait, second.status] == ["waiting", "time", "queued"]
    moving.move(HOUR)
    assert not fanout.find_place(take(first.pk), "default")  # the second has its place
    first, second = items_of(run)
    assert (first.status, first.wait) == ("waiting", "place")
    assert [first.payload, second.payload] == [0, 1]


def test_a_retry_that_is_not_due_at_the_end_of_a_pause_waits_for_its_time(moving):
    run = Repeating().run
    perform(claim(run, "late"))
    moving.move(HOUR)
    taken = claim(run, "late")
    fail(taken, final=False)
    failures.set_due(taken, 60_000, "default")
    run.pause()
    run.resume()
    late = row(run, "late")
    assert (late.status, late.wait) == ("waiting", "time")
    run.pause()
    since = row(run, "late").waiting_since
    run.resume()
    assert row(run, "late").waiting_since == since  # the wait is the same


def test_an_event_that_is_retried_by_hand_has_its_delay_before_it_again(moving):
    run = LateApproval().run
    perform(claim(run, "late"))
    moving.move(HOUR)
    perform(claim(run, "late"))
    assert row(run, "late").wait == "event"
    run.restart_from("late")
    assert (row(run, "late").status, row(run, "late").wait) == ("queued", "")
    perform(claim(run, "late"))
    assert row(run, "late").wait == "time"


def test_on_failure_that_runs_again_waits_for_the_undos_before_it():
    failing.update({"undo", "tell"})
    run = run_sequence(Saga()).run
    failing.discard("undo")
    run.retry()
    drain()
    assert fresh(run).status == "failed"
    assert row(run, "tell").status == "failed"
    with dispatcher.capture_dispatches():
        run.retry()
    tell = row(run, "tell")
    assert (tell.status, tell.wait) == ("queued", "undo")
