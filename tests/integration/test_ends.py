"""`on_cancel`, `on_end`, `Meta.cancel`: the steps that close a run, however it ends."""

from datetime import timedelta

import pytest

from sequences import (
    Abort,
    Sequence,
    event,
    finish,
    on_cancel,
    on_end,
    on_failure,
    step,
    subsequence,
)
from sequences.exceptions import InvalidDefinition, InvalidTransition
from sequences.inspection import actions, diagnosis, snapshot
from sequences.models import SequenceRun
from sequences.testing import assert_steps, drain, run_sequence
from sequences.transitions import deadlines
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fail, fresh, ledger, overdue, perform, sent, steps_of

pytestmark = pytest.mark.django_db


def loan(*, fails=(), ends=None, **meta):
    """Reserve, wait for approval, pay out: each writes down what it did."""
    failing = set(fails)

    def act(sequence, what):
        if what in failing:
            raise Abort(f"{what} is broken")
        sequence.data["done"] = [*sequence.data.get("done", []), what]

    class Loan(Sequence):
        Meta = type("Meta", (), {"app_label": "shop", "max_retries": 0, **meta})

        @step
        def reserve(self):
            act(self, "reserve")

        @reserve.undo
        def release(self):
            act(self, f"release, {self.final_status}")

        approval = event()

        @step
        def pay(self):
            act(self, "pay")
            return ends() if ends else None

        @on_failure
        def apologise(self):
            act(self, f"apologise, {self.final_status}")

        @on_cancel
        def tell(self):
            act(self, "tell")

        @on_end
        def close(self):
            act(self, f"close, {self.final_status}")

    Loan.failing = failing
    return Loan


def started(cls):
    run = cls.start().run
    drain()
    return run


def ended(run):
    drain()
    run.refresh_from_db()
    return run.status, run.data.get("done")


def sentence(run):
    last = run.operations.order_by("-pk").first()
    return diagnosis.summary(snapshot.of(fresh(run)), last)


def test_at_a_good_end_only_on_end_runs_and_then_the_run_has_succeeded():
    run = started(loan())
    run.deliver("approval")
    perform(claim(run, "approval"))
    perform(claim(run, "pay"))
    assert (fresh(run).status, ledger(run)["close"]) == ("undoing", "queued")
    assert ended(run) == ("succeeded", ["reserve", "pay", "close, succeeded"])
    assert set(ledger(run)) == {"reserve", "approval", "pay", "close"}


def test_a_failed_run_is_undone_then_apologises_then_closes():
    run = started(loan(fails=["pay"]))
    run.deliver("approval")
    done = ["reserve", "release, failed", "apologise, failed", "close, failed"]
    assert ended(run) == ("failed", done)


def test_a_cancelled_run_tells_and_closes():
    run = started(loan())
    run.cancel(by="ann", reason="moved")
    run.refresh_from_db()
    assert (run.status, run.finished_at) == ("undoing", None)
    assert sentence(run).startswith("Being cancelled by ann. Reason: moved")
    assert ended(run) == ("cancelled", ["reserve", "tell", "close, cancelled"])


def test_a_cancelled_run_that_is_undone_tells_after_its_undos():
    run = started(loan())
    run.cancel(undo=True)
    assert ended(run) == (
        "cancelled",
        ["reserve", "release, cancelled", "tell", "close, cancelled"],
    )


def test_a_run_that_somebody_finishes_closes_too():
    run = started(loan())
    run.finish()
    assert ended(run) == ("succeeded", ["reserve", "close, succeeded"])


def test_a_step_that_returns_finish_ends_its_run_through_on_end():
    run = started(loan(ends=finish))
    run.deliver("approval")
    assert ended(run) == ("succeeded", ["reserve", "pay", "close, succeeded"])


def test_a_deadline_counts_as_a_failure():
    run = loan().start(deadline=timedelta(milliseconds=1)).run
    perform(claim(run, "reserve"))
    deadlines.expire(run.pk, "default")
    done = ["reserve", "release, failed", "apologise, failed", "close, failed"]
    assert ended(run) == ("failed", done)


def test_the_class_may_say_that_every_cancellation_undoes():
    run = started(loan(cancel="undo"))
    run.cancel()
    assert run.operations.get(action="cancel_and_undo")
    with pytest.raises(InvalidTransition, match="cancel_and_undo"):
        run.cancel()  # the second of two clicks does not stop the undoing
    assert ended(run)[1] == ["reserve", "release, cancelled", "tell", "close, cancelled"]


def test_the_caller_decides_over_the_class():
    run = started(loan(cancel="undo"))
    run.cancel(undo=False)
    assert ended(run) == ("cancelled", ["reserve", "tell", "close, cancelled"])


def test_an_undoing_can_be_broken_off_and_still_tells_and_closes():
    run = started(loan())
    run.cancel(undo=True)
    run.cancel(undo=False)
    assert ended(run) == ("cancelled", ["reserve", "tell", "close, cancelled"])


def test_each_further_cancellation_gives_up_one_of_the_last_steps():
    run = started(loan())
    run.cancel()
    run.cancel()
    assert ledger(run)["tell"] == "cancelled"
    run.cancel()
    run.refresh_from_db()
    assert (run.status, ledger(run)["close"]) == ("cancelled", "cancelled")


def test_a_parent_that_is_cancelled_cancels_its_child_as_the_childs_class_says():
    loan(cancel="undo")

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence("shop.Loan")

        @on_cancel
        def tell(self):
            self.data["told"] = self.final_status

    run = started(Parent)
    child = SequenceRun.objects.get(parent__run=run)
    run.cancel()
    drain()
    assert fresh(run).data["told"] == "cancelled"
    assert fresh(run).status == "cancelled"
    assert ended(child) == (
        "cancelled",
        ["reserve", "release, cancelled", "tell", "close, cancelled"],
    )


def test_a_child_waits_with_its_end_for_its_last_step_and_its_parent_waits_for_it():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self):
            pass

        @on_end
        def close(self):
            self.data["closed"] = True

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Child)

        @step
        def after(self):
            self.data["closed"] = self.result("below")["closed"]

    sequence = run_sequence(Parent)
    assert sequence.run.status == "succeeded"
    assert sequence.data["closed"] is True


def test_a_parent_with_an_undo_of_its_own_waits_for_what_its_child_has_to_tell():
    told = []

    class Child(Sequence):
        class Meta:
            app_label = "shop"

        wait = event()

        @on_cancel
        def tell(self):
            told.append("child")

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Child)

        @below.undo(attempted=True)
        def undo_below(self):
            told.append("undo")

    run = started(Parent)
    run.cancel(undo=True)
    drain()
    assert told == ["child", "undo"]
    assert fresh(run).status == "cancelled"


def test_a_run_fails_by_its_last_step_and_a_retry_runs_only_that():
    cls = loan(fails=["close, succeeded"])
    run = started(cls)
    run.deliver("approval")
    assert ended(run) == ("failed", ["reserve", "pay"])
    assert "All other steps have ended, but “close” failed" in sentence(run)
    allowed = actions.allowed(snapshot.of(SequenceRun.objects.get(pk=run.pk)))
    assert "retry" in [action.name for action, _ in allowed]
    cls.failing.clear()
    run.retry()
    assert ended(run) == ("succeeded", ["reserve", "pay", "close, succeeded"])


def test_a_run_goes_on_without_its_last_step():
    run = started(loan(fails=["tell"]))
    run.cancel()
    assert ended(run) == ("failed", ["reserve", "close, cancelled"])
    assert "The run was cancelled, but “tell” failed" in sentence(run)
    run.skip("tell")
    assert ended(run)[0] == "cancelled"


def test_a_run_that_is_restarted_ends_anew():
    run = started(loan())
    run.cancel()
    ended(run)
    run.restart_from("approval")
    assert "close" not in ledger(run)
    run.deliver("approval")
    done = ["reserve", "tell", "close, cancelled", "pay", "close, succeeded"]
    assert ended(run) == ("succeeded", done)
    assert fresh(run).final_status == "succeeded"


def test_a_run_that_failed_at_its_end_and_is_restarted_may_fail_by_a_step():
    cls = loan(fails=["close, succeeded"])
    run = started(cls)
    run.deliver("approval")
    ended(run)
    cls.failing |= {"pay"}
    run.restart_from("pay")
    assert ended(run)[0] == "failed"
    assert "“pay” failed" in sentence(run)


def test_a_last_step_whose_message_was_lost_is_dispatched_by_the_sweep():
    run = started(loan())
    run.cancel()
    overdue(run, "tell")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["tell"]


def test_a_last_step_that_fails_permanently_lets_the_next_one_run():
    run = started(loan())
    run.cancel()
    fail(claim(run, "tell"))
    assert ledger(run)["close"] == "queued"


def test_no_second_of_each_kind_and_no_fan_out():
    for decorator in (on_cancel, on_end):
        with pytest.raises(InvalidDefinition, match="second @on_"):
            type("Twice", (Sequence,), _body(a=step(_noop), b=decorator(_noop), c=decorator(_noop)))
    with pytest.raises(InvalidDefinition, match="cancel is 'redo'"):
        type("Wrong", (Sequence,), _body(a=step(_noop), cancel="redo"))


def _noop(sequence):
    pass


def _body(cancel=None, **steps):
    return {"Meta": type("Meta", (), {"app_label": "shop", "cancel": cancel}), **steps}


def test_on_end_of_a_run_without_a_failure_costs_its_plan_nothing_else():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            pass

    plan = Plain._definition.plan
    assert plan.closing("succeeded") == ()
    assert "cancel" not in plan.to_json()
    assert_steps(run_sequence(Plain), [("one", "succeeded")])
