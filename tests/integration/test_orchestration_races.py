"""Races of branches, items, children, deliveries and acts, on real threads."""

import random
import time
from functools import partial

import pytest

from sequences import Sequence, event, step, subsequence
from sequences.models import SequenceRun, StepRun
from sequences.testing import drain
from sequences.transitions import failures
from tests.engine import claim, fail, fresh, ledger, perform, row, take
from tests.sagas import saga
from tests.threads import refused, soon

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgresql", "mysql"),
]

ROUNDS = 12


def claim_item(run, index):
    found = items(run).get(item=index)
    return take(found.pk, found.attempts)


def items(run):
    return StepRun.objects.filter(run=run.pk, item__gte=0)


def fan_out(count, **options):
    class FanOut(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: range(count), **options)
        def square(self, item):
            return item * item

        @step
        def add_up(self):
            self.data["sum"] = sum(self.results("square"))

    return FanOut


def expanded(cls):
    run = cls().run
    perform(claim_own(run))
    return run


def claim_own(run):
    found = StepRun.objects.get(run=run.pk, step="square", item=-1)
    return take(found.pk, found.attempts)


@pytest.mark.parametrize("count", [2, 8, 20, 50])
def test_a_join_of_branches_that_end_at_once_is_ready_once(together, count):
    class Meta:
        app_label = "shop"

    def body(self):
        pass

    names = [f"branch_{index}" for index in range(count)]
    steps = {name: step(after=[])(lambda self: None) for name in names}
    cls = type(Sequence)("Wide", (Sequence,), {"Meta": Meta, **steps, "join": step(body)})
    run = cls().run
    held = [claim(run, name) for name in names]
    outcomes = together(*[lambda one=one: perform(one) for one in held])
    assert [one for one in outcomes if not isinstance(one, list)] == []
    assert len([dispatch for outcome in outcomes for dispatch in outcome]) == 1
    assert StepRun.objects.filter(run=run.pk, step="join").count() == 1
    perform(claim(run, "join"))
    assert fresh(run).status == "succeeded"


def test_the_last_items_of_a_fan_out_may_end_at_once_and_one_of_them_ends_the_step(together):
    cls = fan_out(2)
    for _ in range(ROUNDS):
        run = expanded(cls)
        outcomes = together(*[soon(perform, claim_item(run, index)) for index in (0, 1)])
        woken = [dispatch for outcome in outcomes for dispatch in outcome]
        assert [one.step_run_id for one in woken] == [row_of(run).pk]
        drain()
        assert fresh(run).data == {"sum": 1}


@pytest.mark.parametrize(
    ("allowed", "status", "data"), [(1, "succeeded", {"sum": 0}), (0, "failed", {})]
)
def test_of_the_last_two_items_one_may_fail_as_the_other_succeeds(together, allowed, status, data):
    cls = fan_out(2, allow_failed=allowed)
    for _ in range(ROUNDS):
        run = expanded(cls)
        succeeding, failing = claim_item(run, 0), claim_item(run, 1)
        outcomes = together(soon(perform, succeeding), soon(give_up, failing))
        woken = [dispatch for outcome in outcomes for dispatch in outcome]
        assert [one.step_run_id for one in woken] == [row_of(run).pk]
        drain()
        assert fresh(run).status == status
        assert fresh(run).data == data
        states = items(run).order_by("item").values_list("status", flat=True)
        assert list(states) == ["succeeded", "failed"]


def give_up(claim):
    """It fails for good; what that makes ready."""
    failure = failures.Failure.of(ValueError("broken"))
    return failures.record(claim, failure, final=True, using="default")


def row_of(run):
    return StepRun.objects.get(run=run.pk, step="square", item=-1)


def test_items_that_end_at_once_never_have_more_in_flight_than_may_be(together):
    run = expanded(fan_out(30, concurrency=5))
    while queued := list(items(run).filter(status="queued")):
        assert len(queued) <= 5
        held = [take(one.pk) for one in queued]
        together(*[soon(perform, one) for one in held])
        busy = items(run).filter(status__in=("queued", "running", "retrying")).count()
        assert busy <= 5
    drain()
    assert fresh(run).data == {"sum": sum(index * index for index in range(30))}


@pytest.mark.parametrize(("workers", "concurrency"), [(2, 3), (4, 10), (8, 8), (8, 30)])
def test_workers_that_take_what_is_queued_never_run_out_before_the_end(
    together, workers, concurrency
):
    run = expanded(fan_out(150, concurrency=concurrency))
    most, ends = [], []

    def work():
        while len(ends) < 150:
            before = len(ends)
            queued = list(items(run).filter(status="queued").values_list("pk", flat=True)[:workers])
            random.shuffle(queued)
            claimed = next((one for pk in queued if (one := take(pk))), None)
            if claimed is None:
                # Nobody sweeps: some item is running, or its end has released others by now.
                busy = items(run).filter(status__in=("queued", "running")).exists()
                idle.append(before) if not busy and len(ends) == before else idle.clear()
                assert len(idle) < 200, f"stuck after {before} items"
                time.sleep(0.005)
                continue
            most.append(items(run).filter(status__in=("queued", "running")).count())
            perform(claimed)
            ends.append(claimed.item)

    idle = []
    outcomes = together(*[work] * workers)
    assert outcomes == [None] * workers
    assert max(most) <= concurrency
    drain()
    assert fresh(run).data == {"sum": sum(index * index for index in range(150))}


@pytest.mark.parametrize("act", ["cancel", "finish", "pause"])
def test_an_act_beside_items_that_end_leaves_nothing_half(together, act):
    cls = fan_out(3)
    for _ in range(ROUNDS):
        run = expanded(cls)
        held = [claim_item(run, index) for index in range(3)]
        *_, outcome = together(*[soon(perform, one) for one in held], soon(getattr(run, act)))
        assert outcome is None
        if act == "pause":
            fresh(run).resume()
            drain()
            assert fresh(run).data == {"sum": 5}
        else:
            drain()
            expected = {"cancel": "cancelled", "finish": "succeeded"}[act]
            assert fresh(run).status == expected
            assert fresh(run).data == {}
            states = set(items(run).values_list("status", flat=True))
            assert states <= {"succeeded", "cancelled" if act == "cancel" else "skipped"}


def test_a_restart_beside_items_that_end_begins_from_nothing(together):
    cls = fan_out(3)
    for _ in range(ROUNDS):
        run = expanded(cls)
        held = [claim_item(run, index) for index in range(3)]
        *_, outcome = together(
            *[soon(perform, one) for one in held], soon(run.restart_from, "square")
        )
        assert outcome is None
        drain()
        assert fresh(run).status == "succeeded"
        assert fresh(run).data == {"sum": 5}
        assert items(run).count() == 3


@pytest.mark.parametrize("act", ["cancel", "finish", "restart_from"])
def test_an_act_beside_branches_that_end_leaves_nothing_half(together, act):
    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def begin(self): ...

        @step(after=begin)
        def left(self):
            self.data["left"] = self.data.get("left", 0) + 1

        @step(after=begin)
        def right(self):
            self.data["right"] = self.data.get("right", 0) + 1

        @step
        def join(self):
            self.data["joined"] = True

    arguments = ("begin",) if act == "restart_from" else ()
    for _ in range(ROUNDS):
        run = Branches().run
        perform(claim(run, "begin"))
        held = [claim(run, name) for name in ("left", "right")]
        *_, outcome = together(
            *[soon(perform, one) for one in held], soon(getattr(run, act), *arguments)
        )
        assert outcome is None or refused(outcome)
        drain()
        run = fresh(run)
        if act == "restart_from":
            assert run.status == "succeeded"
            assert run.data["joined"] is True
            assert {run.data["left"], run.data["right"]} <= {1, 2}
        elif act == "cancel":
            assert run.status == "cancelled"
            assert "joined" not in run.data
        else:
            assert run.status == "succeeded"
        assert not run.steps.filter(status__in=("running", "queued", "waiting")).exists()


def parent_of(count):
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self):
            self.data["worked"] = True

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        children = subsequence(
            Child, each=lambda self: range(count), data=lambda self, item: {"item": item}
        )

        @step
        def join(self):
            self.data["items"] = [child["item"] for child in self.results("children")]

    return Parent


def begun(cls):
    run = cls().run
    perform(claim(run, "children"))
    return run, list(SequenceRun.objects.filter(parent__run=run.pk).order_by("pk"))


def test_children_that_end_at_once_wake_their_parent_once(together):
    cls = parent_of(4)
    for _ in range(ROUNDS):
        run, children = begun(cls)
        held = [claim(child, "work") for child in children]
        outcomes = together(*[soon(perform, one) for one in held])
        assert [one for one in outcomes if not isinstance(one, list)] == []
        assert row(run, "children").status == "queued"
        drain()
        assert fresh(run).data == {"items": [0, 1, 2, 3]}


@pytest.mark.parametrize("act", ["cancel", "finish", "restart_from"])
def test_an_act_on_a_parent_beside_children_that_end_leaves_none_running(together, act):
    cls = parent_of(3)
    for _ in range(ROUNDS):
        run, children = begun(cls)
        held = [claim(child, "work") for child in children]
        arguments = ("children",) if act == "restart_from" else ()
        *_, outcome = together(
            *[soon(perform, one) for one in held], soon(getattr(run, act), *arguments)
        )
        assert outcome is None
        drain()
        assert {fresh(child).status for child in children} <= {"succeeded", "cancelled"}
        if act == "restart_from":
            assert fresh(run).data == {"items": [0, 1, 2]}
        else:
            assert fresh(run).status == {"cancel": "cancelled", "finish": "succeeded"}[act]


def undone_tree():
    class Child(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(after=[])
        def left(self): ...

        @left.undo
        def unleft(self):
            self.data["undone"] = [*self.data.get("undone", []), "left"]

        @step(after=[])
        def right(self): ...

        @right.undo
        def unright(self):
            self.data["undone"] = [*self.data.get("undone", []), "right"]

    class Parent(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def first(self): ...

        @first.undo
        def back(self):
            self.data["back"] = True

        below = subsequence(Child, each=lambda self: [{}, {}])

    return Parent


def test_a_cancel_with_undo_beside_steps_that_end_undoes_exactly_what_has_succeeded(together):
    cls = undone_tree()
    for _ in range(ROUNDS):
        run = cls().run
        perform(claim(run, "first"))
        perform(claim(run, "below"))
        children = list(SequenceRun.objects.filter(parent__run=run.pk).order_by("pk"))
        held = [claim(child, name) for child in children for name in ("left", "right")]
        *ends, failed, cancelled = together(
            *[soon(perform, one) for one in held[:3]],
            soon(fail, held[3]),
            soon(lambda: run.cancel(undo=True)),  # noqa: B023
        )
        assert (cancelled, failed) == (None, True)
        assert not [one for one in ends if not isinstance(one, list)]
        drain()
        assert fresh(run).status == "cancelled"
        assert fresh(run).data == {"back": True}
        first, second = (fresh(child) for child in children)
        assert (first.status, first.data) == ("cancelled", {"undone": ["right", "left"]})
        assert second.status in ("cancelled", "failed")
        assert second.data == {"undone": ["left"]}


@pytest.mark.parametrize("act", ["cancel", "retry"])
def test_what_people_do_beside_the_end_of_an_undone_child_leaves_nothing_open(together, act):
    cls = undone_tree()
    for _ in range(ROUNDS):
        run = cls().run
        perform(claim(run, "first"))
        perform(claim(run, "below"))
        perform_all(run)
        fresh(run).cancel(undo=True)
        newest = SequenceRun.objects.filter(parent__run=run.pk).order_by("-pk")[0]
        perform(claim(newest, "unright"))
        last = claim(newest, "unleft")
        together(soon(perform, last), soon(getattr(fresh(run), act)))
        drain()
        assert fresh(run).status == "cancelled"
        assert not SequenceRun.objects.unfinished().exists()
        assert row(run, "below").wake_at is None


def perform_all(run):
    """All steps of the runs below."""
    for child in SequenceRun.objects.filter(parent__run=run.pk).order_by("pk"):
        for name in ("left", "right"):
            perform(claim(child, name))


def test_a_delivery_beside_the_beginning_of_its_wait_is_never_lost(together):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()

        @step
        def ship(self): ...

    for number in range(ROUNDS):
        run = Order().run
        beginning = claim(run, "approval")
        _, delivered = together(
            soon(perform, beginning),
            soon(lambda: run.deliver("approval", number)),  # noqa: B023
        )
        assert delivered is True
        drain()
        assert fresh(run).status == "succeeded"
        assert fresh(run).data == {"approval": number}


def test_of_deliveries_at_once_one_counts(together):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()

    for _ in range(ROUNDS):
        run = Order().run
        drain()
        counted = together(
            *[soon(partial(fresh(run).deliver, "approval", who, by=who)) for who in "abc"]
        )
        assert sorted(counted) == [False, False, True]
        winner = "abc"[counted.index(True)]
        operation = run.operations.get()
        assert (operation.by, operation.after) == (winner, winner)
        drain()
        assert fresh(run).data == {"approval": winner}


def test_an_undo_beside_a_cancel_ends_one_way_or_the_other(together):
    def refund(sequence):
        sequence.data["refunded"] = True

    cls = saga(refund=refund)
    for _ in range(ROUNDS):
        run = cls().run
        perform(claim(run, "charge"))
        failing = claim(run, "ship")
        _, outcome = together(soon(perform, failing), soon(run.cancel))
        assert outcome is None or refused(outcome)
        drain()
        assert fresh(run).status in ("cancelled", "failed")
        assert fresh(run).is_finished
        assert "running" not in ledger(run).values()
