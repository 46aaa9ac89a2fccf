"""A parent that is undone, and what becomes of the runs below it."""

from datetime import timedelta

import pytest

from sequences import (
    Abort,
    Sequence,
    any_of,
    event,
    on_cancel,
    on_end,
    on_failure,
    step,
    subsequence,
)
from sequences.engine.pruning import prune
from sequences.exceptions import InvalidTransition
from sequences.models import Operation, SequenceRun, StepRun
from sequences.testing import clock, drain, run_sequence
from sequences.transitions import compensation
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import (
    claim,
    fail,
    fresh,
    ledger,
    overdue,
    perform,
    row,
    sent,
    steps_of,
)

pytestmark = pytest.mark.django_db

#: What was done and undone, in order, over all runs.
done: list[str] = []
failing: set[str] = set()


@pytest.fixture(autouse=True)
def _nothing_is_done():
    done.clear()
    failing.clear()


def act(what):
    if what in failing:
        raise Abort(f"{what} is broken")
    done.append(what)


def booking(*, waits=True):
    """A child that books a seat and a meal, and waits then."""

    class Booking(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def seat(self):
            act(f"seat {self.data.get('n', '')}".strip())

        @seat.undo
        def unseat(self):
            act(f"unseat {self.data.get('n', '')}".strip())

        @step
        def meal(self):
            act(f"meal {self.data.get('n', '')}".strip())

        @meal.undo
        def unmeal(self):
            act(f"unmeal {self.data.get('n', '')}".strip())

        if waits:
            ticket = event()

    return Booking


def trip(child=None, *, own=None, with_handler=False, **options):
    """Charge, book by a child, and ship, which may fail."""

    class Trip(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self):
            act("charge")

        @charge.undo
        def refund(self):
            act("refund")

        book = subsequence(child or booking(waits=False), **options)

        if own is not None:

            @book.undo(**own)
            def unbook(self):
                act("unbook")

        @step
        def ship(self):
            act("ship")

        if with_handler:

            @on_failure
            def tell(self):
                act("tell")

    return Trip


def children_of(run_):
    return list(SequenceRun.objects.filter(parent__run=run_.pk).order_by("pk"))


def child_of(run_):
    (child,) = children_of(run_)
    return child


# What is under way


def test_a_cancelled_parent_undoes_what_its_waiting_child_has_done_newest_first():
    parent = trip(booking())().run
    drain()
    assert done == ["charge", "seat", "meal"]
    parent.cancel(undo=True, by="ann")
    drain()
    assert done[3:] == ["unmeal", "unseat", "refund"]
    child = child_of(parent)
    assert (fresh(parent).status, child.status) == ("cancelled", "cancelled")
    assert ledger(child) == {
        "seat": "succeeded",
        "meal": "succeeded",
        "ticket": "cancelled",
        "unmeal": "succeeded",
        "unseat": "succeeded",
    }
    assert Operation.objects.get(run=child).reason == f"inherited from its parent run {parent.pk}"


def test_the_undo_waits_for_what_executes_in_a_child():
    parent = trip(booking())().run
    perform(claim(parent, "charge"))
    perform(claim(parent, "book"))
    child = child_of(parent)
    perform(claim(child, "seat"))
    meal = claim(child, "meal")
    assert sent(lambda: parent.cancel(undo=True)) == []
    assert (fresh(parent).status, fresh(child).status) == ("undoing", "undoing")
    assert steps_of(perform(meal)) == ["unmeal"]
    drain()
    assert done[3:] == ["unmeal", "unseat", "refund"]


def test_each_child_has_its_turn_the_newest_first():
    parent = trip(booking(), each=lambda self: [1, 2, 3], data=lambda self, n: {"n": n})().run
    drain()
    del done[:]
    parent.cancel(undo=True)
    eldest = children_of(parent)[0]
    assert (fresh(eldest).status, fresh(eldest).final_status) == ("undoing", "")
    drain()
    assert done == [
        "unmeal 3",
        "unseat 3",
        "unmeal 2",
        "unseat 2",
        "unmeal 1",
        "unseat 1",
        "refund",
    ]
    assert [one.status for one in children_of(parent)] == ["cancelled"] * 3


def test_the_children_of_children_are_undone_between_the_steps_of_their_parents():
    class Middle(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def enter(self):
            act("enter")

        @enter.undo
        def leave(self):
            act("leave")

        below = subsequence(booking())

    parent = trip(Middle)().run
    drain()
    parent.cancel(undo=True)
    drain()
    assert done == ["charge", "enter", "seat", "meal", "unmeal", "unseat", "leave", "refund"]
    assert set(SequenceRun.objects.values_list("status", flat=True)) == {"cancelled"}


def test_a_failing_parent_undoes_its_children_too_and_then_tells():
    failing.add("ship")
    sequence = run_sequence(trip(with_handler=True))
    assert done == ["charge", "seat", "meal", "unmeal", "unseat", "refund", "tell"]
    assert sequence.run.status == "failed"
    assert child_of(sequence.run).status == "cancelled"


def test_a_failing_parent_stops_the_child_that_is_under_way():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        book = subsequence(booking(), after=[])

        @step(after=[])
        def beside(self):
            raise Abort("broken")

    parent = Branches().run
    perform(claim(parent, "book"))
    child = child_of(parent)
    perform(claim(child, "seat"))
    meal = claim(child, "meal")
    fail(claim(parent, "beside"))
    assert (fresh(parent).status, fresh(child).status) == ("undoing", "undoing")
    perform(meal)
    drain()
    assert done == ["seat", "meal", "unmeal", "unseat"]
    assert (fresh(parent).status, fresh(child).status) == ("failed", "cancelled")


# What has succeeded


def test_children_that_have_succeeded_are_undone_by_their_own_undos():
    parent = trip(each=lambda self: [1, 2], data=lambda self, n: {"n": n})().run
    perform(claim(parent, "charge"))
    perform(claim(parent, "book"))
    for child in children_of(parent):
        perform(claim(child, "seat"))
        perform(claim(child, "meal"))
    compensation.look(row(parent, "book").pk, "default")
    perform(claim(parent, "book"))
    assert ledger(parent)["book"] == "succeeded"
    del done[:]
    parent.cancel(undo=True)
    drain()
    assert done == ["unmeal 2", "unseat 2", "unmeal 1", "unseat 1", "refund"]
    assert [one.status for one in children_of(parent)] == ["cancelled"] * 2
    assert ledger(parent)["book"] == "succeeded"


@pytest.mark.parametrize("each", [None, lambda self: [1, 2]])
def test_an_undo_that_the_step_declares_takes_the_place_of_its_childrens(each):
    failing.add("ship")
    sequence = run_sequence(trip(own={}, each=each, data=lambda self, n=0: {"n": n}))
    assert done[-2:] == ["unbook", "refund"]
    assert not [what for what in done if what.startswith(("unseat", "unmeal"))]
    assert {one.status for one in children_of(sequence.run)} == {"succeeded"}


def test_a_declared_undo_is_not_for_a_step_that_has_not_succeeded_and_its_children_have_theirs():
    parent = trip(booking(), own={})().run
    drain()
    parent.cancel(undo=True)
    drain()
    assert done == ["charge", "seat", "meal", "unmeal", "unseat", "refund"]


def test_a_declared_undo_of_an_attempt_waits_for_what_executes_below_and_undoes_alone():
    parent = trip(booking(), own={"attempted": True})().run
    perform(claim(parent, "charge"))
    perform(claim(parent, "book"))
    child = child_of(parent)
    perform(claim(child, "seat"))
    meal = claim(child, "meal")
    assert sent(lambda: parent.cancel(undo=True)) == []
    assert perform(meal) == []
    assert fresh(child).status == "cancelled"
    drain()
    assert done == ["charge", "seat", "meal", "unbook", "refund"]


def test_of_the_children_of_a_failed_step_those_that_succeeded_are_undone():
    failing.add("meal 2")
    parent = run_sequence(trip(each=lambda self: [1, 2], data=lambda self, n: {"n": n})).run
    assert parent.status == "failed"
    # The second has undone itself when it failed.
    assert [what for what in done if what.startswith("un")] == ["unseat 2", "unmeal 1", "unseat 1"]
    assert done[-1] == "refund"
    assert [one.status for one in children_of(parent)] == ["cancelled", "failed"]


def test_a_child_that_has_failed_only_in_its_on_end_is_undone():
    class Closing(booking(waits=False)):
        class Meta:
            app_label = "shop"

        @on_end
        def close(self):
            act("close")

    failing.add("close")
    parent = run_sequence(trip(Closing)).run
    assert done == ["charge", "seat", "meal", "unmeal", "unseat", "refund"]
    assert (parent.status, child_of(parent).status) == ("failed", "failed")


def test_a_child_that_has_nothing_to_undo_stays_as_it_is_and_its_parent_can_be_retried():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self): ...

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Plain)

        @step
        def ship(self):
            act("ship")

    failing.add("ship")
    parent = run_sequence(Parent).run
    assert (parent.status, child_of(parent).status) == ("failed", "succeeded")
    failing.clear()
    parent.retry()
    drain()
    assert fresh(parent).status == "succeeded"


def test_a_failed_parent_without_any_undo_lets_its_children_go_on():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self): ...

    class Middle(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Plain)

    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        middle = subsequence(Middle, after=[])

        @step(after=[])
        def beside(self):
            act("beside")

    parent = Branches().run
    perform(claim(parent, "middle"))
    fail(claim(parent, "beside"))
    assert (fresh(parent).status, child_of(parent).status) == ("failed", "running")
    drain()
    assert child_of(parent).status == "succeeded"
    parent.retry()
    drain()
    assert fresh(parent).status == "succeeded"


def test_a_child_that_was_cancelled_by_somebody_stays_as_it_is():
    parent = trip(booking(), allow_failed=True, each=lambda self: [{}])().run
    drain()
    child_of(parent).cancel()
    failing.add("ship")
    drain()
    assert fresh(parent).status == "failed"
    assert done == ["charge", "seat", "meal", "refund"]
    assert ledger(child_of(parent))["ticket"] == "cancelled"


# When an undo below fails


def test_a_failed_undo_of_a_child_leaves_the_tree_failed_and_a_retry_goes_on_with_it():
    failing.update(["ship", "unseat"])
    parent = run_sequence(trip(with_handler=True)).run
    child = child_of(parent)
    assert (parent.status, child.status) == ("failed", "failed")
    assert done == ["charge", "seat", "meal", "unmeal", "tell"]
    with pytest.raises(InvalidTransition):
        parent.skip("ship")
    failing.clear()
    parent.retry(by="ann")
    assert (parent.status, fresh(child).status) == ("undoing", "undoing")
    drain()
    assert done == ["charge", "seat", "meal", "unmeal", "tell", "unseat", "refund"]
    assert (fresh(parent).status, fresh(child).status) == ("failed", "failed")
    with pytest.raises(InvalidTransition, match="completed steps were rolled back"):
        parent.retry()


def test_an_undo_of_a_child_that_a_person_has_mended_there_lets_the_retry_go_on():
    failing.update(["ship", "unseat"])
    parent = run_sequence(trip()).run
    child = child_of(parent)
    child.skip("unseat", reason="by hand")
    drain()
    assert fresh(parent).status == "failed", "a run that has ended goes on when somebody says so"
    parent.retry()
    drain()
    assert done == ["charge", "seat", "meal", "unmeal", "refund"]
    assert fresh(parent).status == "failed"


def test_a_failed_undo_far_below_is_retried_from_the_top():
    class Middle(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(booking(waits=False))

    failing.update(["ship", "unmeal"])
    parent = run_sequence(trip(Middle)).run
    assert set(SequenceRun.objects.values_list("status", flat=True)) == {"failed"}
    failing.clear()
    parent.retry()
    drain()
    assert done == ["charge", "seat", "meal", "unmeal", "unseat", "refund"]
    assert fresh(parent).status == "failed"


# When a child fails, and then its undo


def outer(child):
    """A parent without an undo of its own."""

    class Outer(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        below = subsequence(child)

        @step
        def ship(self):
            act("ship")

    return Outer


def test_a_child_that_has_failed_to_undo_itself_ends_its_parents_rollback_which_a_retry_continues():
    failing.update(["meal", "unseat"])
    parent = run_sequence(trip(with_handler=True)).run
    assert done == ["charge", "seat", "tell"]
    assert (parent.status, child_of(parent).status) == ("failed", "failed")
    parent.retry()
    drain()
    assert done == ["charge", "seat", "tell"], "its undo has failed again"
    failing.remove("unseat")
    parent.retry()
    drain()
    assert done == ["charge", "seat", "tell", "unseat", "refund"]
    assert (fresh(parent).status, child_of(parent).status) == ("failed", "failed")
    with pytest.raises(InvalidTransition, match="completed steps were rolled back"):
        parent.retry()


def test_what_is_newer_than_a_child_that_has_failed_to_undo_itself_is_undone_before():
    failing.update(["meal 1", "unseat 1", "ship"])
    several = {"each": lambda self: [1, 2], "data": lambda self, n: {"n": n}, "allow_failed": 1}
    parent = run_sequence(trip(**several)).run
    assert done == ["charge", "seat 1", "seat 2", "meal 2", "unmeal 2", "unseat 2"]
    failing.clear()
    parent.retry()
    drain()
    assert done[6:] == ["unseat 1", "refund"]
    assert row(parent, "book").children_undo == "done"
    assert [one.status for one in children_of(parent)] == ["failed", "cancelled"]


def test_a_cancellation_by_undoing_ends_at_a_child_that_has_failed_to_undo_itself_too():
    failing.update(["meal", "unseat"])

    class Waiting(trip(allow_failed=True, each=lambda self: [{}])):
        class Meta:
            app_label = "shop"

        go = event()

    parent = Waiting().run
    drain()
    parent.cancel(undo=True)
    drain()
    assert (fresh(parent).status, done) == ("failed", ["charge", "seat", "ship"])


def test_a_parent_without_an_undo_does_nothing_again_before_its_child_is_undone():
    failing.update(["meal", "unseat"])
    parent = run_sequence(outer(booking(waits=False))).run
    assert (parent.status, row(parent, "below").children_undo) == ("failed", "stuck")
    failing.clear()
    parent.retry()
    drain()
    assert (fresh(parent).status, done) == ("failed", ["seat", "unseat"])
    parent.retry()
    drain()
    assert (fresh(parent).status, done) == ("succeeded", ["seat", "unseat", "seat", "meal", "ship"])


def test_and_neither_does_a_parent_of_such_parents():
    class Top(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(outer(booking(waits=False)))

    failing.update(["meal", "unseat"])
    parent = run_sequence(Top).run
    failing.clear()
    parent.retry()
    drain()
    assert (fresh(parent).status, done) == ("failed", ["seat", "unseat"])
    parent.retry()
    drain()
    assert (fresh(parent).status, done) == ("succeeded", ["seat", "unseat", "seat", "meal", "ship"])


def test_an_undo_that_has_failed_far_below_keeps_the_oldest_steps_of_the_tree():
    failing.update(["meal", "unseat"])
    parent = run_sequence(trip(outer(booking(waits=False)))).run
    assert (parent.status, done) == ("failed", ["charge", "seat"])
    failing.clear()
    parent.retry()
    drain()
    assert done == ["charge", "seat", "unseat", "refund"]


def test_a_child_that_somebody_has_mended_begins_again_with_its_parent():
    failing.update(["meal", "unseat"])
    parent = run_sequence(outer(booking(waits=False))).run
    failing.clear()
    child_of(parent).retry()
    drain()
    assert done == ["seat", "unseat"]
    parent.retry()
    drain()
    assert done == ["seat", "unseat", "seat", "meal", "ship"]
    assert fresh(parent).status == "succeeded"


def test_a_child_that_somebody_has_mended_lets_the_rollback_of_its_parent_go_on():
    failing.update(["meal", "unseat"])
    parent = run_sequence(trip()).run
    child_of(parent).skip("unseat", reason="by hand")
    drain()
    assert "refund" not in done
    parent.retry()
    drain()
    assert done == ["charge", "seat", "refund"]


def test_a_parent_may_go_on_without_a_child_that_has_failed_to_undo_itself():
    failing.update(["meal", "unseat"])
    parent = run_sequence(outer(booking(waits=False))).run
    parent.skip("below", reason="by hand")
    drain()
    assert (fresh(parent).status, done) == ("succeeded", ["seat", "ship"])
    assert row(parent, "below").children_undo == ""


def test_a_retry_of_a_parent_that_is_still_running_undoes_its_child_first():
    failing.update(["meal", "unseat"])

    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        book = subsequence(booking(waits=False), after=[])

        @step(after=[])
        def beside(self): ...

    parent = Branches().run
    beside = claim(parent, "beside")
    drain()
    assert (fresh(parent).status, row(parent, "book").status) == ("running", "failed")
    failing.clear()
    parent.retry()
    drain()
    assert done == ["seat", "unseat"]
    perform(beside)
    assert fresh(parent).status == "failed"
    parent.retry()
    drain()
    assert done == ["seat", "unseat", "seat", "meal"]
    assert fresh(parent).status == "succeeded"


def test_the_end_of_an_undo_that_was_retried_is_seen_by_the_sweep():
    failing.update(["meal", "unseat"])
    parent = run_sequence(trip()).run
    failing.clear()
    parent.retry()
    with pytest.raises(InvalidTransition):
        parent.retry()
    perform(claim(child_of(parent), "unseat"))
    assert (fresh(parent).status, child_of(parent).status) == ("undoing", "failed")
    overdue(parent, "book")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]
    assert row(parent, "book").wake_at is None


def test_a_rollback_waits_for_a_child_whose_failed_undo_somebody_retries():
    failing.update(["meal", "unseat", "ship"])
    parent = trip(each=lambda self: [{}], allow_failed=True)().run
    perform(claim(parent, "charge"))
    perform(claim(parent, "book"))
    child = child_of(parent)
    perform(claim(child, "seat"))
    fail(claim(child, "meal"))
    fail(claim(child, "unseat"))
    compensation.look(row(parent, "book").pk, "default")
    perform(claim(parent, "book"))
    failing.clear()
    child.retry()
    fail(claim(parent, "ship"))
    assert (fresh(parent).status, fresh(child).final_status) == ("undoing", "failed")
    drain()
    assert done == ["charge", "seat", "unseat", "refund"]
    assert (fresh(parent).status, fresh(child).status) == ("failed", "failed")


# Restart, cancel, and a process that dies


def test_a_parent_whose_children_were_undone_is_restarted_from_the_step_and_not_from_behind_it():
    failing.add("ship")
    parent = run_sequence(trip(with_handler=True)).run
    child = child_of(parent)
    with pytest.raises(InvalidTransition, match="would not run the rolled-back steps again: '"):
        parent.restart_from("ship")
    with pytest.raises(InvalidTransition, match="completed steps were rolled back"):
        parent.retry()
    failing.clear()
    del done[:]
    parent.restart_from("charge")
    drain()
    assert done == ["charge", "seat", "meal", "ship"]
    assert fresh(parent).status == "succeeded"
    assert (fresh(child).parent_id, fresh(child).status) == (None, "cancelled")
    assert child_of(parent).status == "succeeded"


ENDS = {
    "any_of": lambda parent: parent.deliver("instead"),
    "skip": lambda parent: parent.skip("book"),
    "finish": lambda parent: parent.finish(),
    "restart": lambda parent: parent.restart_from("charge"),
    "deadline": lambda parent: parent.set_deadline(timedelta(milliseconds=1)),
}


def slow_booking(**meta):
    """A child that books a seat, and gives it back a minute after it has failed or was
    cancelled."""

    class Booking(Sequence):
        Meta = type("Meta", (), {"app_label": "shop", "max_retries": 0, **meta})

        @step
        def seat(self):
            act("seat")

        @seat.undo(delay=timedelta(minutes=1))
        def unseat(self):
            act("unseat")

        ticket = event()

        @step
        def print(self):
            raise Abort("no paper")

    return Booking


@pytest.mark.parametrize("how", ENDS)
def test_a_child_that_rolls_back_goes_on_with_that_when_its_parent_no_longer_needs_it(how):
    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        @step(after=[])
        def charge(self): ...

        book = subsequence(slow_booking(), after=charge)
        instead = event(after=[])

        @step(after=any_of(book, instead))
        def ship(self): ...

    parent = Parent().run
    drain()
    child = child_of(parent)
    child.deliver("ticket")
    drain()
    assert fresh(child).status == "undoing"
    ENDS[how](parent)
    with clock() as moving:
        moving.move(timedelta(seconds=1))
        drain()
        moving.move(timedelta(minutes=2))
        drain()
    assert done.count("unseat") == 1
    assert fresh(child).status == "failed"


def test_a_cancel_without_undo_ends_an_undoing_in_the_whole_tree():
    parent = trip(booking(), each=lambda self: [1, 2], data=lambda self, n: {"n": n})().run
    drain()
    parent.cancel(undo=True)
    second = children_of(parent)[1]
    undo = claim(second, "unmeal")
    parent.cancel()
    assert [fresh(one).status for one in (parent, *children_of(parent))] == ["cancelled"] * 3
    assert row(parent, "book").wake_at is None
    with pytest.raises(Exception, match="lost its claim while it was running"):
        perform(undo)
    drain()
    assert "refund" not in done


def test_a_step_whose_children_were_undone_in_part_counts_as_undone():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        book = subsequence(booking(), after=[])

        @step(after=[])
        def beside(self): ...

    parent = Branches().run
    drain()
    parent.cancel(undo=True)
    perform(claim(child_of(parent), "unmeal"))
    parent.cancel()
    assert fresh(parent).status == "cancelled"
    with pytest.raises(InvalidTransition, match="would not run the rolled-back steps again: 'bo"):
        parent.restart_from("beside")


def test_a_stopped_child_that_a_person_cancels_is_out_of_its_parents_hands():
    parent = trip(booking(), each=lambda self: [1, 2], data=lambda self, n: {"n": n})().run
    drain()
    del done[:]
    parent.cancel(undo=True)
    first, _ = children_of(parent)
    with pytest.raises(InvalidTransition):
        first.cancel(undo=True)
    first.cancel()
    drain()
    assert done == ["unmeal 2", "unseat 2", "refund"]
    assert fresh(parent).status == "cancelled"


def test_the_end_of_an_undone_child_that_nobody_told_of_is_seen_by_the_sweep():
    parent = trip(booking())().run
    drain()
    parent.cancel(undo=True)
    child = child_of(parent)
    perform(claim(child, "unmeal"))
    perform(claim(child, "unseat"))
    assert (fresh(child).status, fresh(parent).status) == ("cancelled", "undoing")
    assert sent(lambda: sweep(AssumeLost(), "default")) == []
    overdue(parent, "book")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]
    assert row(parent, "book").wake_at is None
    drain()
    assert fresh(parent).status == "cancelled"


@pytest.mark.django_db(transaction=True)
def test_the_end_of_an_undone_child_goes_on_with_its_parent_at_once():
    parent = trip(booking())().run
    drain()
    parent.cancel(undo=True)
    child = child_of(parent)
    perform(claim(child, "unmeal"))
    assert steps_of(sent(lambda: perform(claim(child, "unseat")))) == ["refund"]


def test_a_sweep_of_a_tree_that_waits_for_a_child_dispatches_nothing():
    parent = trip(booking())().run
    drain()
    parent.cancel(undo=True)
    overdue(parent, "book")
    assert sent(lambda: sweep(AssumeLost(), "default")) == []
    assert row(parent, "book").wake_at is not None
    drain()
    assert done[-1] == "refund"


def test_a_child_that_fails_by_itself_while_its_parent_is_cancelled_is_waited_for():
    parent = trip(booking())().run
    perform(claim(parent, "charge"))
    perform(claim(parent, "book"))
    child = child_of(parent)
    perform(claim(child, "seat"))
    fail(claim(child, "meal"))
    assert fresh(child).status == "undoing"
    assert sent(lambda: parent.cancel(undo=True)) == []
    drain()
    assert done == ["charge", "seat", "unseat", "refund"]
    assert (fresh(parent).status, fresh(child).status) == ("cancelled", "failed")


def test_pruning_leaves_a_tree_that_is_being_undone_and_removes_it_whole_afterwards():
    parent = trip(booking())().run
    drain()
    parent.cancel(undo=True)
    assert prune(older_than=timedelta(0)).runs == {}
    drain()
    assert prune(older_than=timedelta(0)).runs == {"shop.Trip": 1, "shop.Booking": 1}
    assert not StepRun.objects.exists()


def test_what_was_undone_is_remembered_after_an_erasure():
    failing.add("ship")
    parent = run_sequence(trip(with_handler=True)).run
    parent.erase()
    with pytest.raises(InvalidTransition, match="would not run the rolled-back steps again: '"):
        parent.restart_from("ship")
    assert row(parent, "book").members == {"total": 1}
    assert row(parent, "book").children_undo == "done"


# A rollback that has begun, and a parent that is cancelled


def telling(child):
    """A parent that is not finished at once when it is cancelled."""

    class Telling(Sequence):
        class Meta:
            app_label = "shop"

        book = subsequence(child)

        @on_cancel(delay=timedelta(minutes=1))
        def tell(self):
            act("tell")

    return Telling


def in_two_minutes():
    with clock() as moving:
        moving.move(timedelta(minutes=2))
        drain()


def test_a_double_click_on_a_parent_does_not_end_the_rollback_that_its_childs_class_demands():
    parent = telling(slow_booking(cancel="undo"))().run
    drain()
    parent.cancel()
    parent.cancel()
    assert fresh(child_of(parent)).status == "undoing"
    in_two_minutes()
    assert done == ["seat", "unseat"]
    assert (fresh(parent).status, child_of(parent).status) == ("cancelled", "cancelled")


STARTS = {
    "failed": lambda child: child.deliver("ticket"),
    "cancelled": lambda child: child.cancel(undo=True),
}


@pytest.mark.parametrize("ends", STARTS)
def test_a_cancelled_parent_leaves_a_rollback_alone_that_its_child_has_begun_by_itself(ends):
    parent = telling(slow_booking())().run
    drain()
    STARTS[ends](child_of(parent))
    drain()
    parent.cancel()
    parent.cancel()
    assert fresh(parent).status == "cancelled"
    in_two_minutes()
    assert done == ["seat", "unseat"]
    assert child_of(parent).status == ends


def test_but_whoever_cancels_the_child_itself_without_undo_ends_it():
    parent = telling(slow_booking(cancel="undo"))().run
    drain()
    parent.cancel()
    child = child_of(parent)
    with pytest.raises(InvalidTransition):
        child.cancel()
    child.cancel(undo=False)
    in_two_minutes()
    assert (fresh(child).status, done) == ("cancelled", ["seat", "tell"])


@pytest.mark.parametrize("has_own_undo", [False, True])
def test_a_parents_rollback_that_is_ended_leaves_it_to_children_whose_class_demands_one(
    has_own_undo,
):
    class Slow(booking()):
        class Meta:
            app_label = "shop"
            cancel = "undo"

    several = {"each": lambda self: [1, 2], "data": lambda self, n: {"n": n}}
    own = {"attempted": True} if has_own_undo else None
    parent = trip(Slow, own=own, **several)().run
    perform(claim(parent, "charge"))
    perform(claim(parent, "book"))
    first, second = children_of(parent)
    meal = [perform(claim(child, "seat")) and claim(child, "meal") for child in (first, second)]
    parent.cancel(undo=True)
    parent.cancel()
    assert fresh(parent).status == "cancelled"
    for one in meal:
        perform(one)
    drain()
    assert sorted(done[5:]) == ["unmeal 1", "unmeal 2", "unseat 1", "unseat 2"]
    assert [one.status for one in children_of(parent)] == ["cancelled"] * 2
    assert row(parent, "book").wake_at is None
