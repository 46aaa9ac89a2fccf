"""Limits of whole runs, in turns."""

import pytest

from sequences import Limit, Sequence, event, on_cancel, step, subsequence
from sequences.engine import limits as doors
from sequences.exceptions import Abort, SequenceError
from sequences.models import Operation, Permit, SequenceRun, StoredPlan
from sequences.testing import clock, drain
from sequences.transitions import failures, plans
from tests.engine import change, fail, fresh, ledger, overdue, row
from tests.limits import bank, billing, come, go, in_use, look, seconds, sync, waits

pytestmark = pytest.mark.django_db(transaction=True)

CUSTOMER = Limit("customer", key="customer_id", concurrency=1)


def states(*runs):
    return [fresh(run).status for run in runs]


def test_one_run_for_each_customer_and_the_others_wait_in_line():
    sequence = sync(limits=[CUSTOMER])
    first, second, third = (sequence.start({"customer_id": 7}).run for _ in range(3))
    other = sequence.start({"customer_id": 8}).run
    claim = come(first, name="fetch")
    assert claim is not None
    assert come(second, name="fetch") is None
    assert waits(second, name="fetch")
    assert come(third, name="fetch") is None
    assert come(other, name="fetch") is not None
    go(claim)
    assert waits(second, name="fetch")  # the first has another step
    go(come(first, name="store"))
    assert states(first) == ["succeeded"]
    assert row(second, "fetch").status == "queued"
    assert waits(third, name="fetch")


def test_a_run_keeps_its_place_while_it_waits():
    class Approved(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]

        @step
        def fetch(self): ...

        approval = event()

    first, second = (Approved.start({"customer_id": 7}).run for _ in range(2))
    drain()
    assert ledger(first)["approval"] == "waiting"
    assert waits(second, name="fetch")
    first.deliver("approval")
    drain()
    assert states(first) == ["succeeded"]
    assert ledger(second)["approval"] == "waiting"


def test_every_first_step_waits_with_its_run():
    class Two(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]

        @step(after=[])
        def fetch(self): ...

        @step(after=[])
        def store(self): ...

    first, second = (Two.start({"customer_id": 7}).run for _ in range(2))
    claims = [come(first, name=name) for name in ("fetch", "store")]
    assert all(claims)
    assert come(second, name="fetch") is None
    assert come(second, name="store") is None
    go(claims[0])
    assert waits(second, name="fetch")
    ready = go(claims[1])
    assert {dispatch.run_id for dispatch in ready} == {second.pk}
    assert len(ready) == 2
    assert come(second, name="fetch")
    assert come(second, name="store")


@pytest.mark.parametrize("how", ["fail", "cancel", "finish", "pause", "pause while it runs"])
def test_the_end_of_a_run_passes_its_place_on(how):
    sequence = sync(limits=[CUSTOMER])
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    claim = come(first, name="fetch")
    assert come(second, name="fetch") is None
    match how:
        case "fail":
            fail(claim)
        case "pause":
            go(claim)
            first.pause()
        case "pause while it runs":
            first.pause()
            assert waits(second, name="fetch")
            go(claim)
        case _:
            getattr(first, how)()
    assert row(second, "fetch").status == "queued"
    assert come(second, name="fetch") is not None
    if how.startswith("pause"):
        first.resume()
        drain()
        assert waits(first, name="store")


def test_a_run_that_changes_its_data_keeps_its_key():
    class Moves(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]

        @step
        def fetch(self):
            self.data["customer_id"] = 8

        @step
        def store(self): ...

    first, second = (Moves.start({"customer_id": n}).run for n in (7, 7))
    go(come(first, name="fetch"))
    assert come(first, name="store") is not None
    assert come(second, name="fetch") is None


def test_a_run_that_finds_no_place_may_be_skipped():
    sequence = sync(limits=[CUSTOMER], when_full="skip")
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    claim = come(first, name="fetch")
    assert come(second, name="fetch") is None
    assert states(first, second) == ["running", "cancelled"]
    operation = Operation.objects.get(run=second.pk)
    assert (operation.action, operation.by) == ("cancel", "limits")
    assert operation.reason == "the limit “customer” is full"
    go(claim)
    assert Permit.objects.filter(run=second.pk).count() == 0
    third = sequence.start({"customer_id": 7}).run
    go(come(first, name="store"))
    drain()
    assert states(first, third) == ["succeeded", "succeeded"]


def test_a_run_that_is_skipped_and_cancelled_by_undoing_ends_at_once():
    class Booking(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]
            when_full = "skip"
            cancel = "undo"

        @step
        def reserve(self): ...

        @reserve.undo
        def release(self): ...

        confirmed = event()

    first, second = (Booking.start({"customer_id": 7}).run for _ in range(2))
    drain()
    assert states(first, second) == ["running", "cancelled"]
    assert ledger(second) == {"reserve": "cancelled"}


def test_a_run_may_take_the_place_of_the_oldest():
    sequence = sync(limits=[CUSTOMER], when_full="cancel_oldest")
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    other = sequence.start({"customer_id": 8}).run
    assert come(first, name="fetch")
    assert come(other, name="fetch")
    assert come(second, name="fetch") is None
    assert states(first, second, other) == ["cancelled", "running", "running"]
    assert f"{second.pk}" in Operation.objects.get(run=first.pk).reason
    assert come(second, name="fetch") is not None


def test_the_sweep_cancels_the_oldest_if_nobody_did():
    sequence = sync(limits=[CUSTOMER], when_full="cancel_oldest")
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    third = sequence.start({"customer_id": 7}).run
    assert come(first, name="fetch")
    assert come(second, name="fetch") is None
    assert come(third, name="fetch") is None  # the second has the place already
    assert states(first) == ["cancelled"]
    look()
    assert states(second, third) == ["cancelled", "running"]
    assert come(third, name="fetch") is not None


@pytest.mark.parametrize("ends_by", ["its failure", "a newer run"])
def test_a_run_that_is_ending_is_not_cancelled_for_its_place(ends_by):
    done = []

    class Booking(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]
            when_full = "cancel_oldest"
            max_retries = 0

        @step
        def reserve(self):
            done.append("reserve")

        @reserve.undo(delay=seconds(60))
        def release(self):
            done.append("release")

        confirmed = event()

        @step
        def ship(self):
            raise Abort("sold out")

        @on_cancel(delay=seconds(60))
        def tell(self):
            done.append("tell")

    first = Booking.start({"customer_id": 7}).run
    drain()
    if ends_by == "its failure":
        first.deliver("confirmed")
        drain()
    second = Booking.start({"customer_id": 7}).run
    drain()
    look()
    assert states(first, second) == ["undoing", "running"]
    with clock() as moving:
        moving.move(seconds(61))
        drain()
    assert done == ["reserve", "release" if ends_by == "its failure" else "tell", "reserve"]


def test_a_place_whose_run_only_a_later_release_can_read_stops_no_sweep():
    first = sync(limits=[CUSTOMER]).start({"customer_id": 7}).run
    newer = billing(limits=[CUSTOMER], when_full="cancel_oldest").start({"customer_id": 7}).run
    assert come(first, name="fetch")
    StoredPlan.objects.filter(pk=first.plan_id).update(graph=first.plan.graph | {"format": 99})
    plans.forget()
    assert come(newer) is None
    look()
    assert states(first, newer) == ["running", "running"]


def test_what_a_child_needs_its_parent_has():
    class Child(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]

        @step
        def fetch(self): ...

    class Parent(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]

        child = subsequence(Child)

        @step
        def store(self): ...

    parent, rival = (Parent.start({"customer_id": 7}).run for _ in range(2))
    drain()
    assert states(parent) == ["succeeded"]
    drain()
    assert states(rival) == ["succeeded"]


def test_children_wait_in_line_as_any_run():
    class Child(Sequence):
        class Meta:
            app_label = "shop"
            limits = [bank(concurrency=2)]

        @step
        def fetch(self): ...

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        children = subsequence(Child, each=lambda self: [{}] * 4)

    parent = Parent.start().run
    go(come(parent, name="children"))
    below = list(SequenceRun.objects.filter(parent__isnull=False).order_by("pk"))
    inside = [claim for child in below if (claim := come(child, name="fetch"))]
    assert len(inside) == 2
    assert in_use() == 2
    parent.cancel()
    assert Permit.objects.count() == 0


def test_a_run_that_fails_undoes_in_its_place():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            limits = [CUSTOMER]

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        @step
        def pack(self):
            raise Abort("Out of stock.")

    first, second = (Order.start({"customer_id": 7}).run for _ in range(2))
    go(come(first))
    with pytest.raises(Abort):
        go(come(first, name="pack"))
    assert states(first) == ["undoing"]
    assert come(second) is None
    go(come(first, name="refund"))
    assert states(first) == ["failed"]
    assert row(second, "charge").status == "queued"


def test_the_lowest_priority_is_first_in_line():
    sequence = sync(limits=[CUSTOMER])
    holder = sequence.start({"customer_id": 7}).run
    claim = come(holder, name="fetch")
    later, urgent, usual = (
        sequence.start({"customer_id": 7}, priority=priority).run for priority in (5, -1, 0)
    )
    for run in (later, urgent, usual):
        assert come(run, name="fetch") is None
    go(claim)
    go(come(holder, name="store"))
    assert [row(run, "fetch").status for run in (urgent, usual, later)] == [
        "queued", "waiting", "waiting",
    ]  # fmt: skip


def test_the_priority_of_a_run_is_that_of_its_steps():
    sequence = billing(bank())
    holder, usual = sequence.start().run, sequence.start().run
    claim = come(holder)
    ((urgent),) = sequence.start_many([({}, {"priority": -1})])
    assert come(usual) is None
    assert come(urgent.run) is None
    go(claim)
    assert row(urgent.run, "charge").status == "queued"


@pytest.mark.parametrize("priority", ["1", 1.0, None, True, 2**15, -(2**15) - 1])
def test_a_priority_is_an_int(priority):
    with pytest.raises(SequenceError, match="priority is"):
        sync().start(priority=priority)


def test_a_run_that_begins_again_asks_anew():
    sequence = sync(limits=[CUSTOMER])
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    fail(come(first, name="fetch"))
    assert come(second, name="fetch") is not None
    first.retry()
    assert come(first, name="fetch") is None
    assert waits(first, name="fetch")


def test_a_run_that_was_removed_is_in_no_line():
    sequence = sync(limits=[CUSTOMER])
    first, second, third = (sequence.start({"customer_id": 7}).run for _ in range(3))
    claim = come(first, name="fetch")
    assert come(second, name="fetch") is None
    assert come(third, name="fetch") is None
    change(second, "fetch", status="cancelled", wake_at=None)
    second.steps.all().delete()
    second.delete()
    go(claim)
    go(come(first, name="store"))
    assert row(third, "fetch").status == "queued"


def test_a_run_is_skipped_even_if_its_worker_dies_in_that_moment(monkeypatch):
    sequence = sync(limits=[CUSTOMER], when_full="skip")
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    assert come(first, name="fetch")

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(doors, "_make_room", die)
        with pytest.raises(SystemExit):
            come(second, name="fetch")
    assert row(second, "fetch").status == "running"
    overdue(second, "fetch")
    failures.reap(row(second, "fetch"), "default")
    assert come(second, name="fetch") is None
    assert states(second) == ["cancelled"]
    assert not Permit.objects.filter(run=second.pk).exists()
