from datetime import timedelta

import pytest

from sequences import Abort, Sequence, event, on_failure, step, subsequence
from sequences.exceptions import InvalidDefinition
from sequences.models import Operation, SequenceRun, StepFailure
from sequences.testing import assert_steps, drain, run_sequence
from sequences.transitions import subsequences
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import change, claim, fresh, ledger, overdue, perform, row, sent, steps_of

pytestmark = pytest.mark.django_db

failing: set[str] = set()


@pytest.fixture(autouse=True)
def _none_fails():
    failing.clear()


def shop(**options):
    class Ship(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def pack(self):
            if self.data.get("box", "box") in failing:
                raise ValueError(f"{self.data['box']} is broken")

        @step
        def send(self):
            self.data["sent"] = True

    class Order(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self): ...

        shipping = subsequence(Ship, **options)

        @step
        def tell(self):
            self.data["told"] = True

    Order.ship = Ship
    return Order


def children_of(run):
    return list(SequenceRun.objects.filter(parent__run=run.pk).order_by("pk"))


def waiting(cls, **data):
    """A run whose children have begun."""
    run = cls(**data).run
    perform(claim(run, "charge"))
    perform(claim(run, "shipping"))
    return fresh(run)


def test_the_parent_waits_for_its_child_and_gets_its_data():
    sequence = run_sequence(shop(data=lambda self: {"box": self.data["order"]}), order="A1")
    assert sequence.run.status == "succeeded"
    assert sequence.data == {
        "order": "A1",
        "shipping": {"box": "A1", "sent": True},
        "told": True,
    }
    (child,) = children_of(sequence.run)
    assert (child.sequence, child.status) == ("shop.Ship", "succeeded")
    assert row(sequence.run, "shipping").result == {"box": "A1", "sent": True}


def test_without_data_the_child_begins_with_a_copy_of_the_parents():
    sequence = run_sequence(shop(), order="A1")
    assert sequence.data["shipping"] == {"order": "A1", "sent": True}


def test_a_waiting_parent_holds_no_worker_and_no_message():
    parent = waiting(shop())
    found = row(parent, "shipping")
    assert (found.status, found.due_at) == ("waiting", None)
    assert claim(parent, "shipping") is None


def test_the_children_begin_in_the_commit_of_the_step_that_starts_them():
    parent = shop()().run
    perform(claim(parent, "charge"))
    starting = claim(parent, "shipping")
    assert children_of(parent) == []
    ready = perform(starting)
    (child,) = children_of(parent)
    assert [one.run_id for one in ready] == [child.pk]


def test_there_is_a_child_for_each_item_and_their_data_comes_in_order():
    class Parcels(Sequence):
        class Meta:
            app_label = "shop"

        parcels = subsequence(
            shop().ship, each="boxes", data=lambda self, box: {"box": box, "of": self.data["order"]}
        )

        @step
        def count(self):
            self.data["parcels"] = [one["box"] for one in self.results("parcels")]

    sequence = run_sequence(Parcels, order="A1", boxes=["x", "y", "z"])
    assert sequence.data["parcels"] == ["x", "y", "z"]
    assert [child.data["of"] for child in children_of(sequence.run)] == ["A1"] * 3


def test_no_items_succeed_at_once():
    class Parcels(Sequence):
        class Meta:
            app_label = "shop"

        parcels = subsequence("shop.Ship", each=lambda self: [])

    shop()
    assert run_sequence(Parcels).run.status == "succeeded"


def test_a_failed_child_fails_the_step_and_the_error_names_it():
    failing.add("box")
    sequence = run_sequence(shop())
    (child,) = children_of(sequence.run)
    assert sequence.run.status == "failed"
    assert StepFailure.objects.get(run=sequence.run).message == (
        f"1 of 1 child runs of step 'shipping' did not succeed: {child.pk} (failed)."
    )


def test_a_retry_of_the_parent_begins_the_failed_children_again_and_only_those():
    class Parcels(Sequence):
        class Meta:
            app_label = "shop"

        parcels = subsequence(
            shop().ship, each=lambda self: ["x", "y"], data=lambda self, box: {"box": box}
        )

    failing.add("y")
    sequence = run_sequence(Parcels)
    good, bad = children_of(sequence.run)
    assert (good.status, bad.status) == ("succeeded", "failed")
    failing.clear()
    sequence.run.retry(by="ann")
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert children_of(sequence.run) == [good, bad]
    assert (
        Operation.objects.get(run=bad).reason == f"inherited from its parent run {sequence.run.pk}"
    )
    assert not Operation.objects.filter(run=good).exists()


def test_a_child_that_is_retried_by_itself_does_not_wake_a_failed_parent():
    failing.add("box")
    sequence = run_sequence(shop())
    (child,) = children_of(sequence.run)
    failing.clear()
    child.retry()
    drain()
    assert fresh(child).status == "succeeded"
    assert fresh(sequence.run).status == "failed"
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).status == "succeeded"


def test_some_children_may_fail():
    class Parcels(Sequence):
        class Meta:
            app_label = "shop"

        parcels = subsequence(
            shop().ship,
            each=lambda self: ["x", "y"],
            data=lambda self, box: {"box": box},
            allow_failed=0.5,
        )

        @step
        def tell(self):
            self.data["outcomes"] = [
                [one.status, one.result["box"]] for one in self.outcomes("parcels")
            ]
            self.data["results"] = [one["box"] for one in self.results("parcels")]

    failing.add("y")
    sequence = run_sequence(Parcels)
    assert sequence.run.status == "succeeded"
    assert sequence.data["outcomes"] == [["succeeded", "x"], ["failed", "y"]]
    assert sequence.data["results"] == ["x"]


def test_cancelling_the_parent_cancels_its_children_and_theirs():
    inner = shop()

    class Outer(Sequence):
        class Meta:
            app_label = "shop"

        orders = subsequence(inner)

    outer = Outer().run
    perform(claim(outer, "orders"))
    (order,) = children_of(outer)
    perform(claim(order, "charge"))
    perform(claim(order, "shipping"))
    (ship,) = children_of(order)
    packing = claim(ship, "pack")
    outer.cancel()
    assert [fresh(one).status for one in (outer, order, ship)] == ["cancelled"] * 3
    with pytest.raises(Exception, match="lost its claim while it was running"):
        perform(packing)
    drain()
    assert fresh(ship).status == "cancelled"


def test_finishing_or_skipping_cancels_the_children():
    finished, skipped = waiting(shop()), waiting(shop())
    finished.finish()
    skipped.skip("shipping", reason="by hand")
    assert [fresh(children_of(one)[0]).status for one in (finished, skipped)] == ["cancelled"] * 2
    drain()
    assert fresh(skipped).status == "succeeded"


def test_a_restart_starts_children_anew():
    sequence = run_sequence(shop())
    (first,) = children_of(sequence.run)
    sequence.run.restart_from("charge")
    drain()
    (second,) = children_of(sequence.run)
    assert first.pk != second.pk
    assert fresh(first).parent is None
    assert fresh(sequence.run).status == "succeeded"


def test_a_cancelled_child_fails_the_step_and_the_retry_begins_it_again():
    parent = waiting(shop())
    (child,) = children_of(parent)
    child.cancel()
    drain()
    assert fresh(parent).status == "failed"
    parent.retry()
    drain()
    assert fresh(parent).status == "succeeded"
    assert fresh(child).status == "succeeded"


def test_the_end_of_a_child_that_nobody_told_of_is_seen_by_the_sweep():
    parent = waiting(shop())
    (child,) = children_of(parent)
    SequenceRun.objects.filter(pk=child.pk).update(status="succeeded")
    overdue(parent, "shipping")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["shipping"]
    drain()
    assert fresh(parent).status == "succeeded"


def test_the_last_child_wakes_the_parent_once():
    parent = waiting(shop())
    own = row(parent, "shipping")
    assert subsequences.look(own.pk, "default") == []
    (child,) = children_of(parent)
    SequenceRun.objects.filter(pk=child.pk).update(status="succeeded")
    assert steps_of(subsequences.look(own.pk, "default")) == ["shipping"]
    assert subsequences.look(own.pk, "default") == []


@pytest.mark.django_db(transaction=True)
def test_the_end_of_a_child_dispatches_its_parent_at_once(broker):
    parent = waiting(shop())
    (child,) = children_of(parent)
    perform(claim(child, "pack"))
    broker.flush_all()
    perform(claim(child, "send"))
    assert ledger(parent)["shipping"] == "queued"
    assert broker.queues["default"].qsize() == 1


def test_a_paused_parent_goes_on_at_its_resume():
    parent = waiting(shop())
    parent.pause()
    drain()
    assert ledger(parent)["shipping"] == "waiting"
    assert children_of(parent)[0].status == "succeeded"
    parent.resume()
    drain()
    assert fresh(parent).status == "succeeded"


def test_a_child_may_wait_for_an_event_or_a_time():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()

        @step(delay=timedelta(days=1))
        def later(self): ...

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        child = subsequence(Child)

    sequence = run_sequence(Parent)
    (child,) = children_of(sequence.run)
    assert ledger(child) == {"approval": "waiting"}
    child.deliver("approval", "yes")
    drain()
    change(child, "later", due_at=row(child, "later").ready_at)
    drain()
    assert fresh(sequence.run).data["child"] == {"approval": "yes"}


def test_a_sequence_that_starts_itself_for_ever_is_stopped():
    class Again(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        again = subsequence("shop.Again")

    sequence = run_sequence(Again)
    assert sequence.run.status == "failed"
    assert SequenceRun.objects.count() == subsequences.MAX_DEPTH
    deepest = StepFailure.objects.order_by("pk")[0]
    assert "the limit is 10. Does a sequence start itself" in deepest.message


def test_bad_data_for_a_child_is_the_steps_failure():
    sequence = run_sequence(shop(data=lambda self: {"box": {1}}))
    assert_steps(sequence, [("charge", "succeeded"), ("shipping", "failed")])
    assert 'data["box"]' in StepFailure.objects.get(run=sequence.run).message
    assert children_of(sequence.run) == []


def test_an_abort_in_a_child_is_its_own():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def stop(self):
            raise Abort("no")

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        child = subsequence(Child, on_error="mend")

        @step
        def mend(self):
            self.data["mended"] = True

    assert run_sequence(Parent).data == {"mended": True}


@pytest.mark.parametrize("wrong", [3, "no label", int])
def test_only_a_sequence_can_be_started(wrong):
    with pytest.raises(InvalidDefinition, match=r"is not a sequence\. Pass a Sequence class"):

        class Wrong(Sequence):
            class Meta:
                app_label = "shop"

            child = subsequence(wrong)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"concurrency": 2}, "set limits in the Meta of the sequence that it starts"),
        ({"batch": 2}, "Leave it out"),
        ({"atomic": False}, "Leave it out"),
    ],
)
def test_an_option_that_no_subsequence_has_is_refused(options, hint):
    (name,) = options
    with pytest.raises(InvalidDefinition, match=f"a subsequence cannot have {name}. .*{hint}"):
        shop(each="items", **options)


def test_a_parent_that_fails_and_undoes_cancels_its_children_and_a_retry_begins_them_again():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self): ...

    class Parent(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        child = subsequence(Child, after=[])

        @step(after=[])
        def beside(self):
            if not self.data.get("mended"):
                raise Abort("broken")

        @on_failure
        def tell(self): ...

    parent = Parent().run
    perform(claim(parent, "child"))
    (child,) = children_of(parent)
    with pytest.raises(Abort):
        perform(claim(parent, "beside"))
    assert fresh(child).status == "cancelled"
    drain()
    parent = fresh(parent)
    assert parent.status == "failed"
    parent.edit({"mended": True})
    parent.retry()
    drain()
    assert fresh(parent).status == "succeeded"
    assert fresh(child).status == "succeeded"


def test_a_child_that_was_undone_begins_anew_and_parts_from_the_children_that_it_had():
    class Youngest(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self): ...

    class Middle(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        below = subsequence(Youngest)

        @step
        def breaks(self):
            if "breaks" in failing:
                raise ValueError

    class Eldest(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Middle)

    failing.add("breaks")
    eldest = run_sequence(Eldest).run
    (middle,) = children_of(eldest)
    (former,) = children_of(middle)
    assert fresh(middle).status == "failed"
    failing.clear()
    eldest.retry()
    drain()
    assert fresh(eldest).status == "succeeded"
    (later,) = children_of(middle)
    assert later != former
    # With a parent that is not there it would be in no tree, and never be pruned.
    assert fresh(former).parent_id is None


@pytest.mark.parametrize(
    "options",
    [
        {"data": lambda self: None},
        {"each": lambda self: [1], "data": lambda self, item: None},
        {"each": lambda self: [None]},
    ],
)
def test_none_is_no_data_for_a_child(options):
    sequence = run_sequence(shop(**options))
    assert ledger(sequence.run) == {"charge": "succeeded", "shipping": "failed"}
    assert sequence.run.failures.get().message == (
        "The data for a run that step 'shipping' starts is None. Return a dict; {} if the child "
        "needs no data."
    )
    assert not children_of(sequence.run)
