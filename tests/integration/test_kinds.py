"""A release may make a step another kind while runs of the former one are in flight."""

from datetime import timedelta
from itertools import permutations

import dramatiq
import pytest

from sequences import Sequence, checks, event, step, subsequence, testing
from sequences.engine import handoff
from sequences.exceptions import ChildrenFailed
from sequences.models import SequenceRun, StepRun
from sequences.testing import assert_steps, clock, drain, isolate_sequences
from sequences.transitions import plans
from sequences.transitions.types import dispatch_of
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fresh, ledger, messages, overdue, perform, row, take

pytestmark = pytest.mark.django_db

USING = "default"
KINDS = ("step", "each", "event", "subsequence")
PAIRS = list(permutations(KINDS, 2))
IDS = [" to ".join(pair) for pair in PAIRS]
NAMES = {
    "step": "a plain step",
    "each": "a fan-out",
    "event": "an event",
    "subsequence": "a subsequence",
}


def child():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()

    return Child


def release(kind):
    """The class as a release has it, in which the step in the middle is of this kind."""

    below = child()

    def body(self, *item):
        self.performed.append(item)
        return "done"

    class Meta:
        app_label = "shop"

    kinds = {
        "step": lambda: step(body),
        "each": lambda: step(body, each=lambda self: [1, 2]),
        "event": lambda: event(timeout=timedelta(days=1)),
        "subsequence": lambda: subsequence(below),
    }
    steps = {
        "first": step(lambda self: None),
        "middle": kinds[kind](),
        "last": step(lambda self: None),
    }
    return type(Sequence)("Order", (Sequence,), {"Meta": Meta, "performed": [], **steps})


def run_of(kind, *, begun):
    """A run of the former release: its middle step is ready, or it waits for what its kind has."""
    with isolate_sequences():
        run = release(kind)().run
        perform(claim(run, "first"))
        if begun and kind != "step":
            perform(claim(run, "middle"))
    return fresh(run)


def middle(run):
    return StepRun.objects.get(run=run.pk, step="middle", item=-1)


def end_children(run):
    for below in SequenceRun.objects.unfinished().filter(parent__run=run.pk):
        below.finish()


@pytest.mark.parametrize("begun", [False, True], ids=["ready", "begun"])
@pytest.mark.parametrize(("before", "now"), PAIRS, ids=IDS)
def test_a_step_that_became_another_kind_fails_readably_and_is_mended_by_the_former_code(
    before, now, begun, caplog
):
    run = run_of(before, begun=begun)
    new = release(now)
    if begun and before == "event":
        run.deliver("middle", {"by": "ann"})
    with clock() as moving:
        for _ in range(3):
            sweep(AssumeLost(), USING)
            drain()
            moving.move(timedelta(hours=1))
        if begun and before == "subsequence":
            assert fresh(run).status == "running", "its child runs"
            assert middle(run).status == "waiting"
            assert not run.failures.exists()
            end_children(run)
            drain()
    assert fresh(run).status == "failed"
    assert new.performed == []
    failure = run.failures.filter(item=-1).get()
    assert failure.error == "sequences.exceptions.StepKindChanged"
    assert f"'middle' was {NAMES[before]} when run" in failure.message
    assert f"but is {NAMES[now]} in this code" in failure.message
    assert "could not look after" not in caplog.text
    with isolate_sequences():
        release(before)
        run.retry()
        drain()
        if before == "event" and not begun:
            run.deliver("middle")
        end_children(run)
        drain()
        assert fresh(run).status == "succeeded"


@pytest.mark.parametrize(("before", "now"), PAIRS, ids=IDS)
def test_it_may_be_skipped(before, now):
    run = run_of(before, begun=False)
    release(now)
    drain()
    run.skip("middle")
    drain()
    assert_steps(run, [("first", "succeeded"), ("middle", "skipped"), ("last", "succeeded")])


@pytest.mark.parametrize(("before", "now"), PAIRS, ids=IDS)
def test_an_older_worker_leaves_such_a_step_to_those_of_the_release_that_started_the_run(
    before, now
):
    with isolate_sequences():
        old = release(now)
        plans.store(old._definition.plan, USING)
        run = release(before)().run
        perform(claim(run, "first"))
    old = release(now)
    drain_once(run)
    assert old.performed == []
    assert not run.failures.exists()
    found = middle(run)
    assert (found.status, found.attempts, found.lost_workers) == ("queued", 0, 0)
    assert messages() == [], "it would get it again"
    overdue(run, "middle")
    assert sweep(AssumeLost(), USING) == 1


def drain_once(run):
    dispatch = dispatch_of(middle(run), plans.load(run.plan_id, USING))
    broker = testing._InlineBroker(dramatiq.get_broker())
    assert handoff.process(dispatch, broker, USING) == []


@pytest.mark.parametrize(("before", "now"), PAIRS, ids=IDS)
def test_the_check_names_it_before_the_deploy(before, now):
    run_of(before, begun=False)
    release(now)
    (warning,) = checks.check_unfinished_runs(None)
    assert warning.id == "sequences.W004"
    assert "1 of the unfinished runs of 'shop.Order'" in warning.msg
    assert f"step 'middle' is {NAMES[now]}, but was {NAMES[before]}" in warning.msg
    assert "run.skip" in warning.hint


def test_the_check_says_nothing_of_runs_that_have_it_behind_them():
    run = run_of("step", begun=False)
    with isolate_sequences():
        release("step")
        perform(claim(run, "middle"))
    release("each")
    assert checks.check_unfinished_runs(None) == []


def test_a_fan_out_in_flight_that_became_a_subsequence_stops_no_sweep_and_no_other_run():
    run = run_of("each", begun=True)
    new = release("subsequence")
    other = new().run
    overdue(other, "first")
    StepRun.objects.filter(run=run.pk, step="middle").update(wake_at=row(other, "first").wake_at)
    assert sweep(AssumeLost(), USING) >= 1
    assert str(other.pk) in {message.args[0] for message in messages()}


def test_an_undo_of_items_is_not_called_as_the_undo_of_a_step():
    def declare(**options):
        class Order(Sequence):
            class Meta:
                app_label = "shop"

            undone = []

            @step(**options)
            def charge(self, *item): ...

            @charge.undo
            def refund(self, *item):
                self.undone.append(item)

            @step
            def ship(self):
                raise ZeroDivisionError

        return Order

    # The parameters of an undo are checked: that of a plain step takes none.
    with isolate_sequences():
        cls = declare(each=lambda self: [1])
        run = cls().run
        perform(take(StepRun.objects.get(run=run.pk).pk))
        drain_items(run)
    new = declare()
    run.cancel(undo=True)
    drain()
    assert new.undone == []
    assert fresh(run).status == "failed"
    assert "'refund' was an undo of items" in run.failures.get(step="refund").message


def drain_items(run):
    for found in StepRun.objects.filter(run=run.pk, item__gte=0):
        perform(take(found.pk))


# --- a parent and its children


def family(**options):
    below = child()

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        middle = subsequence(below, **options)

    return Parent


@pytest.mark.parametrize("each", [None, lambda self: [{}, {}]], ids=["one", "each"])
def test_a_child_that_runs_is_never_counted_as_failed_whatever_has_woken_its_parent(each):
    cls = family(each=each, data=lambda self, *item: {}) if each else family()
    run = cls().run
    perform(claim(run, "middle"))
    StepRun.objects.filter(run=run.pk).update(status="queued")
    perform(claim(run, "middle"))
    assert ledger(run) == {"middle": "waiting"}
    assert not run.failures.exists()
    end_children(run)
    drain()
    assert fresh(run).status == "succeeded"


def test_a_child_that_is_begun_again_before_its_parent_has_looked_is_waited_for():
    run = family()().run
    perform(claim(run, "middle"))
    (below,) = SequenceRun.objects.filter(parent__run=run.pk)
    perform(claim(below, "approval"))
    below.deliver("approval")
    perform(claim(below, "approval"))
    StepRun.objects.filter(run=run.pk).update(status="queued")  # its end was told
    below.restart_from("approval")
    perform(claim(run, "middle"))
    assert ledger(run) == {"middle": "waiting"}
    end_children(run)
    drain()
    assert fresh(run).status == "succeeded"


def test_children_of_each_item_are_not_taken_for_the_only_child():
    with isolate_sequences():
        run = family(each=lambda self: [{}, {}], data=lambda self, item: {})().run
        perform(claim(run, "middle"))
    family()
    end_children(run)
    drain()
    assert fresh(run).status == "failed"
    assert "a subsequence with each (2 items" in run.failures.get().message


def test_a_child_that_was_cancelled_has_not_succeeded():
    run = family()().run
    perform(claim(run, "middle"))
    SequenceRun.objects.get(parent__run=run.pk).cancel()
    drain()
    assert run.failures.get().error.endswith(ChildrenFailed.__name__)
