from datetime import timedelta

import pytest
from dramatiq.middleware import Shutdown, SkipMessage

from sequences import Abort, Sequence, any_of, event, finish, on_failure, repeat, step
from sequences.engine import recovery
from sequences.engine.executor import StepExecution
from sequences.exceptions import InvalidDefinition, InvalidTransition
from sequences.models import StepFailure, StepRun
from sequences.testing import assert_steps, clock, drain, run_sequence
from sequences.transitions import claims
from sequences.worker.sweeper import AssumeLost, sweep
from tests import sagas
from tests.engine import (
    change,
    claim,
    fail,
    fresh,
    ledger,
    now,
    overdue,
    perform,
    row,
    sent,
    steps_of,
    take,
)

pytestmark = pytest.mark.django_db


def saga(*, fails=("ship",), with_handler=True, **ship_options):
    """Charge, pack, ship: each writes down what it did, and what it undid."""
    failing = set(fails)

    def act(sequence, what):
        if what in failing:
            raise ValueError(f"{what} is broken")
        sequence.data["done"] = [*sequence.data.get("done", []), what]

    class Saga(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self):
            act(self, "charge")

        @charge.undo
        def refund(self):
            act(self, "refund")

        @step
        def pack(self):
            act(self, "pack")

        @pack.undo
        def unpack(self):
            act(self, "unpack")

        @step(**ship_options)
        def ship(self):
            act(self, "ship")

        if with_handler:

            @on_failure
            def tell(self):
                act(self, f"tell of {self.failure.step}: {self.failure.message}")

    Saga.failing = failing
    return Saga


def test_a_run_that_succeeds_undoes_nothing_and_tells_nobody():
    sequence = run_sequence(saga(fails=()))
    assert sequence.data["done"] == ["charge", "pack", "ship"]
    assert_steps(sequence, [("charge", "succeeded"), ("pack", "succeeded"), ("ship", "succeeded")])


def test_a_failed_run_undoes_what_it_did_newest_first_and_then_tells():
    sequence = run_sequence(saga())
    assert sequence.run.status == "failed"
    assert sequence.data["done"] == [
        "charge",
        "pack",
        "unpack",
        "refund",
        "tell of ship: ship is broken",
    ]
    assert_steps(
        sequence,
        [
            ("charge", "succeeded"),
            ("pack", "succeeded"),
            ("ship", "failed"),
            ("unpack", "succeeded"),
            ("refund", "succeeded"),
            ("tell", "succeeded"),
        ],
    )


def test_only_what_succeeded_is_undone():
    sequence = run_sequence(saga(fails=["pack"], with_handler=False))
    assert sequence.data["done"] == ["charge", "refund"]


def test_while_it_is_undone_the_run_says_so_and_is_not_finished():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    perform(claim(run_, "pack"))
    fail(claim(run_, "ship"))
    run_ = fresh(run_)
    assert (run_.status, run_.is_finished, run_.finished_at) == ("undoing", False, None)
    assert ledger(run_)["unpack"] == "queued"
    assert "refund" not in ledger(run_)


def test_the_undo_after_next_is_inserted_in_the_commit_of_the_one_before():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    perform(claim(run_, "pack"))
    fail(claim(run_, "ship"))
    assert steps_of(perform(claim(run_, "unpack"))) == ["refund"]
    assert steps_of(perform(claim(run_, "refund"))) == ["tell"]
    assert perform(claim(run_, "tell")) == []
    assert fresh(run_).status == "failed"


def test_an_undo_whose_message_was_lost_is_dispatched_by_the_sweep():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    fail(claim(run_, "pack"))
    overdue(run_, "refund")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]


def test_an_undo_whose_worker_died_is_begun_again():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    fail(claim(run_, "pack"))
    claim(run_, "refund")
    overdue(run_, "refund")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]
    drain()
    assert fresh(run_).status == "failed"
    assert ledger(run_)["refund"] == "succeeded"


def test_a_failed_undo_is_seen_and_a_retry_goes_on_with_it():
    cls = saga(fails=["ship", "unpack"])
    sequence = run_sequence(cls)
    assert sequence.run.status == "failed"
    assert ledger(sequence.run)["unpack"] == "failed"
    assert "refund" not in ledger(sequence.run)
    assert sequence.data["done"][-1] == "tell of ship: ship is broken"
    cls.failing.discard("unpack")
    sequence.run.retry()
    assert sequence.run.status == "undoing"
    drain()
    assert fresh(sequence.run).status == "failed"
    assert fresh(sequence.run).data["done"][-2:] == ["unpack", "refund"]
    assert list(ledger(sequence.run).values()).count("succeeded") == 5


def test_a_failed_undo_can_be_skipped():
    sequence = run_sequence(saga(fails=["ship", "unpack"]))
    sequence.run.skip("unpack", reason="done by hand")
    drain()
    assert ledger(sequence.run)["unpack"] == "skipped"
    assert ledger(sequence.run)["refund"] == "succeeded"
    assert fresh(sequence.run).status == "failed"


def test_a_run_that_was_undone_is_not_retried_but_restarted():
    cls = saga()
    sequence = run_sequence(cls)
    with pytest.raises(
        InvalidTransition, match=r"were rolled back\. Restart it from a step instead\."
    ):
        sequence.run.retry()
    with pytest.raises(
        InvalidTransition, match=r"were rolled back\. Restart it from a step instead\."
    ):
        sequence.run.skip("ship")
    cls.failing.clear()
    sequence.run.restart_from("charge")
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert ledger(sequence.run) == {
        "charge": "succeeded",
        "pack": "succeeded",
        "ship": "succeeded",
    }
    assert fresh(sequence.run).data["done"][-3:] == ["charge", "pack", "ship"]


def test_a_restart_from_behind_an_undone_step_is_refused():
    sequence = run_sequence(saga())
    with pytest.raises(InvalidTransition, match="would not run the rolled-back steps again: 'ch"):
        sequence.run.restart_from("pack")
    assert fresh(sequence.run).status == "failed"


def test_a_run_with_nothing_to_undo_can_be_retried():
    cls = saga(fails=["charge"])
    sequence = run_sequence(cls)
    assert sequence.data["done"] == ["tell of charge: charge is broken"]
    cls.failing.clear()
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert "tell" not in ledger(sequence.run)


def test_a_cancelled_run_is_undone_only_if_that_is_asked_for():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    run_.cancel()
    drain()
    assert ledger(run_) == {"charge": "succeeded", "pack": "cancelled"}
    other = saga()().run
    perform(claim(other, "charge"))
    other.cancel(undo=True, by="ann")
    drain()
    assert fresh(other).status == "cancelled"
    assert fresh(other).data["done"] == ["charge", "refund"]
    assert "tell" not in ledger(other)


# What executes when its run is cancelled


def test_the_undos_of_a_cancelled_run_wait_for_the_step_that_runs():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    running = claim(run_, "pack")
    assert sent(lambda: run_.cancel(undo=True)) == []
    assert fresh(run_).status == "undoing"
    assert ledger(run_) == {"charge": "succeeded", "pack": "running"}
    assert steps_of(perform(running)) == ["unpack"]
    drain()
    assert fresh(run_).status == "cancelled"
    assert fresh(run_).data["done"] == ["charge", "pack", "unpack", "refund"]


def test_a_step_that_fails_when_its_run_was_cancelled_is_not_tried_again():
    class Saga(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 5

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        @step(atomic=False)
        def pack(self): ...

        @pack.undo
        def unpack(self): ...

    run_ = Saga().run
    perform(claim(run_, "charge"))
    running = claim(run_, "pack")
    run_.cancel(undo=True)
    assert fail(running, final=False)
    # It may have reached the other side.
    assert ledger(run_) == {"charge": "succeeded", "pack": "cancelled", "unpack": "queued"}
    assert claim(run_, "pack") is None
    drain()
    assert fresh(run_).status == "cancelled"
    assert StepFailure.objects.filter(run=run_, step="pack").count() == 1


def test_what_waits_for_its_next_attempt_when_its_run_is_cancelled_has_none():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    fail(claim(run_, "pack"), final=False)
    assert steps_of(sent(lambda: run_.cancel(undo=True))) == ["refund"]
    assert ledger(run_)["pack"] == "cancelled"


def test_the_undos_wait_for_the_lease_of_a_worker_that_has_died():
    run_ = saga(with_handler=False)().run
    perform(claim(run_, "charge"))
    running = claim(run_, "pack")
    run_.cancel(undo=True)
    assert sent(lambda: sweep(AssumeLost(), "default")) == []
    overdue(run_, "pack")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]
    assert ledger(run_)["pack"] == "cancelled"
    # It was not dead at all, and comes too late.
    with pytest.raises(SkipMessage, match="lost its claim while it was running"):
        perform(running)
    drain()
    assert fresh(run_).data["done"] == ["charge", "refund"]


def test_a_step_whose_workers_all_died_fails_and_the_undos_of_its_cancelled_run_begin():
    run_ = saga(with_handler=False)().run
    perform(claim(run_, "charge"))
    claim(run_, "pack")
    change(run_, "pack", lost_workers=2)
    run_.cancel(undo=True)
    overdue(run_, "pack")
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]
    assert ledger(run_)["pack"] == "failed"
    drain()
    assert fresh(run_).status == "cancelled"


def test_a_step_that_its_worker_gives_back_is_not_begun_again_in_a_cancelled_run():
    run_ = saga(with_handler=False)().run
    perform(claim(run_, "charge"))
    running = claim(run_, "pack")
    run_.cancel(undo=True)
    assert steps_of(claims.release(running, "default")) == ["refund"]
    assert ledger(run_) == {"charge": "succeeded", "pack": "cancelled", "refund": "queued"}


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_shuts_down_in_a_cancelled_run_dispatches_the_undo_itself():
    run_ = saga(with_handler=False)().run
    perform(claim(run_, "charge"))
    life = StepExecution(row(run_, "pack").pk, 0, "default")
    life.claim = claims.claim(life.step_run_id, 0, life.token, "worker", "default")
    run_.cancel(undo=True)
    assert steps_of(recovery.recover(life, Shutdown())) == ["refund"]
    assert ledger(run_)["pack"] == "cancelled"


@pytest.mark.parametrize("returned", [repeat(after=timedelta(hours=1)), repeat(), finish()])
def test_a_step_of_a_cancelled_run_neither_repeats_nor_finishes(returned):
    class Saga(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        @step(after=[])
        def beside(self): ...

        @step(after=[])
        def poll(self):
            return returned

    run_ = Saga().run
    perform(claim(run_, "charge"))
    poll, beside = claim(run_, "poll"), claim(run_, "beside")
    run_.cancel(undo=True)
    assert perform(poll) == []
    assert ledger(run_)["poll"] in ("cancelled", "succeeded")
    assert ledger(run_)["beside"] == "running"
    assert steps_of(perform(beside)) == ["refund"]
    drain()
    assert fresh(run_).status == "cancelled"


def test_a_step_that_has_begun_to_wait_in_a_cancelled_run_ends_with_it():
    class Saga(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event()

        @step(after=charge, each=lambda self: [1, 2])
        def pack(self, item): ...

    run_ = Saga().run
    perform(claim(run_, "charge"))
    approval, pack = claim(run_, "approval"), claim(run_, "pack")
    run_.cancel(undo=True)
    assert perform(approval) == []
    assert steps_of(perform(pack)) == ["refund"]
    assert set(StepRun.objects.filter(run=run_).values_list("step", "status")) == {
        ("charge", "succeeded"),
        ("approval", "cancelled"),
        ("pack", "cancelled"),
        ("refund", "queued"),
    }


def items(**options):
    class Items(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 3

        @step(each="amounts", **options)
        def charge(self, amount):
            return f"charge-{amount}"

        @charge.undo
        def refund(self, amount, result):
            self.data.setdefault("refunded", []).append([amount, result])

    return Items


def item(run_, number):
    return take(StepRun.objects.get(run=run_.pk, step="charge", item=number).pk)


def test_the_undos_of_a_cancelled_run_wait_for_the_items_that_run():
    run_ = items()(amounts=[1, 2, 3, 4]).run
    perform(claim(run_, "charge"))
    perform(item(run_, 0))
    second, third = item(run_, 1), item(run_, 2)
    assert sent(lambda: run_.cancel(undo=True)) == []
    assert take(StepRun.objects.get(run=run_.pk, item=3).pk) is None
    assert perform(third) == []
    assert steps_of(perform(second)) == ["refund"]
    drain()
    assert fresh(run_).status == "cancelled"
    assert fresh(run_).data["refunded"] == [[3, "charge-3"], [2, "charge-2"], [1, "charge-1"]]


def test_an_item_that_fails_in_a_cancelled_run_or_whose_worker_dies_is_the_last_to_wait_for():
    run_ = items(atomic=False)(amounts=[1, 2, 3]).run
    perform(claim(run_, "charge"))
    perform(item(run_, 0))
    second = item(run_, 1)
    item(run_, 2)
    run_.cancel(undo=True)
    assert fail(second, final=False)
    StepRun.objects.filter(run=run_.pk, item=2).update(wake_at=now() - timedelta(seconds=1))
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]
    drain()
    # Both may have reached the other side, and have no result.
    assert fresh(run_).data["refunded"] == [[3, None], [2, None], [1, "charge-1"]]


def test_the_end_of_the_last_item_that_nobody_looked_at_is_seen_by_the_sweep():
    run_ = items()(amounts=[1]).run
    perform(claim(run_, "charge"))
    running = item(run_, 0)
    run_.cancel(undo=True)
    # As if its worker had died after the commit, before the look.
    StepRun.objects.filter(pk=running.step_run_id).update(
        status="succeeded", token=None, wake_at=None, finished_at=now(), result="charge-1"
    )
    StepRun.objects.filter(run=run_.pk, item=-1).update(wake_at=now() - timedelta(seconds=1))
    assert steps_of(sent(lambda: sweep(AssumeLost(), "default"))) == ["refund"]


def test_a_run_that_comes_to_its_standstill_can_be_cancelled_at_once_but_nothing_else():
    run_ = saga()().run
    perform(claim(run_, "charge"))
    running = claim(run_, "pack")
    run_.cancel(undo=True)
    for act in ("pause", "resume", "retry", "finish"):
        with pytest.raises(InvalidTransition):
            getattr(run_, act)()
    for act in ("skip", "restart_from"):
        with pytest.raises(InvalidTransition):
            getattr(run_, act)("charge")
    with pytest.raises(
        InvalidTransition, match=r"its status is undoing\. Allowed: running or paused"
    ):
        run_.cancel(undo=True)
    run_.cancel()
    with pytest.raises(SkipMessage, match="lost its claim while it was running"):
        perform(running)
    assert ledger(run_) == {"charge": "succeeded", "pack": "cancelled"}


def test_a_step_that_cancels_its_own_run_with_undo_is_undone_itself():
    def charge(sequence):
        sequence.run.cancel(undo=True, reason="a fraud")

    def refund(sequence):
        sequence.data["refunded"] = True

    sequence = run_sequence(sagas.saga(charge=charge, refund=refund, ship=sagas.nothing))
    assert sequence.run.status == "cancelled"
    assert sequence.data == {"refunded": True}
    assert ledger(sequence.run) == {"charge": "succeeded", "refund": "succeeded"}


# What a person does about a failed undoing


def test_an_on_failure_that_has_failed_is_retried_after_all_undos():
    cls = saga(fails=["ship", "tell of ship: ship is broken"])
    sequence = run_sequence(cls)
    key = row(sequence.run, "tell").pk
    assert ledger(sequence.run)["tell"] == "failed"
    cls.failing.discard("tell of ship: ship is broken")
    sequence.run.retry()
    assert sequence.run.status == "undoing"
    drain()
    assert fresh(sequence.run).status == "failed"
    assert fresh(sequence.run).data["done"][-2:] == ["refund", "tell of ship: ship is broken"]
    assert row(sequence.run, "tell").pk == key, "its idempotency key is the same"
    with pytest.raises(InvalidTransition, match="completed steps were rolled back"):
        sequence.run.retry()


def test_a_retry_that_mends_an_undo_performs_a_failed_on_failure_again_once_all_is_undone():
    cls = saga(fails=["ship", "unpack", "tell of ship: ship is broken"])
    sequence = run_sequence(cls)
    assert (ledger(sequence.run)["unpack"], ledger(sequence.run)["tell"]) == ("failed", "failed")
    cls.failing.clear()
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).data["done"][-3:] == [
        "unpack",
        "refund",
        "tell of ship: ship is broken",
    ]
    assert fresh(sequence.run).status == "failed"


def test_a_retry_of_an_undo_that_fails_again_performs_a_failed_on_failure_again_too():
    cls = saga(fails=["ship", "unpack", "tell of ship: ship is broken"])
    sequence = run_sequence(cls)
    cls.failing.discard("tell of ship: ship is broken")
    sequence.run.retry()
    drain()
    assert (ledger(sequence.run)["unpack"], ledger(sequence.run)["tell"]) == ("failed", "succeeded")
    assert fresh(sequence.run).status == "failed"


def test_an_on_failure_that_has_succeeded_is_not_performed_again():
    cls = saga(fails=["ship", "unpack"])
    sequence = run_sequence(cls)
    cls.failing.clear()
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).data["done"].count("tell of ship: ship is broken") == 1


def test_a_failed_on_failure_can_be_skipped():
    sequence = run_sequence(saga(fails=["ship", "tell of ship: ship is broken"]))
    sequence.run.skip("tell", reason="by hand")
    assert sequence.run.status == "failed"
    with pytest.raises(InvalidTransition, match="completed steps were rolled back"):
        sequence.run.retry()


def test_an_attempted_step_is_undone_where_that_is_declared():
    def attempts(**options):
        class Attempted(Sequence):
            class Meta:
                app_label = "shop"
                max_retries = 0

            @step(atomic=options.pop("atomic", True))
            def charge(self):
                raise Abort("the bank says no")

            @charge.undo(**options)
            def refund(self):
                self.data["refunded"] = self.failure.message

        return Attempted

    assert run_sequence(attempts()).data == {}
    assert run_sequence(attempts(attempted=True)).data == {"refunded": "the bank says no"}
    assert run_sequence(attempts(atomic=False)).data == {"refunded": "the bank says no"}
    assert run_sequence(attempts(atomic=False, attempted=False)).data == {}


def test_an_attempted_step_is_undone_where_its_meta_says_that_it_is_not_atomic():
    class Attempted(Sequence):
        class Meta:
            app_label = "shop"
            atomic = False

        @step
        def charge(self):
            raise Abort("the bank says no")

        @charge.undo
        def refund(self):
            self.data["refunded"] = self.failure.message

    assert run_sequence(Attempted).data == {"refunded": "the bank says no"}


def charging(ends, **options):
    """Charges twice, an hour apart, and then, or at the second time, ends like this."""

    class Charges(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def begin(self): ...

        @begin.undo
        def shut(self):
            self.data["undone"] = [*self.data.get("undone", []), "begin"]

        @step(**options)
        def charge(self):
            times = self.data["times"] = self.data.get("times", 0) + 1
            if ends == "fails" and times == 2:
                raise Abort("the bank says no")
            if times < 3:
                return repeat(after=timedelta(hours=1))

        @charge.undo(attempted=False)
        def refund(self):
            self.data["undone"] = [f"charge {self.data['times']}"]

        shipped = event()

    return Charges


REPEATS_END = {
    "fails": (lambda run_: None, "failed"),
    "is cancelled": (lambda run_: run_.cancel(undo=True), "cancelled"),
    "is late": (lambda run_: run_.set_deadline(timedelta(minutes=1)), "failed"),
}


@pytest.mark.parametrize("options", [{}, {"atomic": False}])
@pytest.mark.parametrize("ends", REPEATS_END)
def test_what_a_step_has_committed_before_a_repeat_is_undone(ends, options):
    end, status = REPEATS_END[ends]
    run_ = charging(ends, **options)().run
    drain()
    end(run_)
    with clock() as moving:
        moving.move(timedelta(minutes=2))
        drain()
        moving.move(timedelta(hours=1))
        drain()
    assert fresh(run_).status == status
    assert fresh(run_).data["undone"] == ["charge 1", "begin"]
    assert sum(one.step == "refund" for one in run_.steps.all()) == 1


def test_a_repeat_that_commits_while_its_run_is_cancelled_is_undone():
    run_ = charging("is cancelled")().run
    perform(claim(run_, "begin"))
    charge = claim(run_, "charge")
    assert sent(lambda: run_.cancel(undo=True)) == []
    assert steps_of(perform(charge)) == ["refund"]
    drain()
    assert fresh(run_).data["undone"] == ["charge 1", "begin"]


def test_a_worker_that_dies_in_a_repetition_leaves_the_earlier_ones_to_the_undo():
    run_ = charging("is cancelled")().run
    drain()
    run_.run_now("charge")
    claim(run_, "charge")
    run_.cancel(undo=True)
    overdue(run_, "charge")
    sweep(AssumeLost(), "default")
    assert ledger(run_)["charge"] == "cancelled"
    drain()
    assert fresh(run_).data["undone"] == ["charge 1", "begin"]


def test_a_step_that_was_tried_but_has_not_repeated_is_not_undone():
    run_ = charging("is cancelled")().run
    perform(claim(run_, "begin"))
    fail(claim(run_, "charge"), final=False)
    run_.cancel(undo=True)
    drain()
    assert fresh(run_).data["undone"] == ["begin"]


def test_a_step_that_is_skipped_after_a_repeat_is_undone():
    run_ = charging("is cancelled")().run
    drain()
    run_.skip("charge")
    drain()
    run_.cancel(undo=True)
    drain()
    assert fresh(run_).data["undone"] == ["charge 1", "begin"]


def test_an_item_that_has_committed_a_repeat_is_undone_without_a_result():
    class Items(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="amounts")
        def charge(self, amount):
            return None if amount == 1 else repeat(after=timedelta(hours=1))

        @charge.undo
        def refund(self, amount, result):
            self.data.setdefault("refunded", []).append([amount, result])

    run_ = Items(amounts=[1, 2]).run
    drain()
    run_.cancel(undo=True)
    drain()
    assert fresh(run_).data["refunded"] == [[2, None], [1, None]]


def test_each_item_of_a_fan_out_is_undone_with_its_result():
    class Items(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each="amounts")
        def charge(self, amount):
            if amount == 2:
                raise ValueError("no")
            return f"charge-{amount}"

        @charge.undo
        def refund(self, amount, result):
            self.data.setdefault("refunded", []).append([amount, result])

    sequence = run_sequence(Items, amounts=[1, 2, 3])
    assert sequence.run.status == "failed"
    assert sequence.data["refunded"] == [[3, "charge-3"], [1, "charge-1"]]
    rows = StepRun.objects.filter(run=sequence.run, step="refund").order_by("pk")
    assert [row.item for row in rows] == [2, 0]


def test_a_failure_of_a_branch_cancels_what_waits_and_undoes_the_other():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(after=[])
        def left(self):
            self.data["left"] = 1

        @left.undo
        def unleft(self):
            del self.data["left"]

        @step(after=[])
        def right(self):
            raise ValueError("broken")

        @step(after=left)
        def later(self): ...

    sequence = run_sequence(Branches)
    assert sequence.run.status == "failed"
    assert sequence.data == {}
    assert ledger(sequence.run)["later"] == "cancelled"


def test_a_failed_on_failure_leaves_the_run_failed():
    sequence = run_sequence(saga(fails=["ship", "tell of ship: ship is broken"]))
    assert sequence.run.status == "failed"
    assert ledger(sequence.run)["tell"] == "failed"


def test_an_undo_is_retried_with_options_of_its_own():
    def refund(sequence):
        if sequence.attempt < 3:
            raise ValueError("busy")
        sequence.data["refunded"] = sequence.attempt

    sequence = run_sequence(sagas.saga(refund=refund, undo={"max_retries": 3}))
    assert sequence.data == {"refunded": 3}
    assert StepFailure.objects.filter(run=sequence.run, step="refund").count() == 2


# on_error


def flow(*, fails=(), handler_after=None):
    failing = set(fails)

    class Flow(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(on_error="mend")
        def search(self):
            if "search" in failing:
                raise ValueError("broken")

        @step
        def fetch(self): ...

        @step(after=handler_after)
        def mend(self):
            if "mend" in failing:
                raise ValueError("broken too")
            self.data["mended"] = True

    Flow.failing = failing
    return Flow


def test_a_handler_runs_only_after_the_error():
    assert ledger(run_sequence(flow()).run) == {"search": "succeeded", "fetch": "succeeded"}


def test_after_an_error_the_run_goes_on_with_the_handler_and_succeeds():
    sequence = run_sequence(flow(fails=["search"]))
    assert sequence.run.status == "succeeded"
    assert ledger(sequence.run) == {"search": "failed", "fetch": "skipped", "mend": "succeeded"}
    assert sequence.data == {"mended": True}


def test_a_handler_of_the_main_line_is_jumped_to():
    cls = flow(fails=["search"], handler_after="fetch")
    sequence = run_sequence(cls)
    assert sequence.run.status == "succeeded"
    assert ledger(sequence.run) == {"search": "failed", "fetch": "skipped", "mend": "succeeded"}
    cls.failing.clear()
    assert list(ledger(run_sequence(cls).run)) == ["search", "fetch", "mend"]


@pytest.fixture
def report():
    class Report(Sequence):
        """A join that is also the handler of one of the steps before it."""

        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(after=[], on_error="report")
        def pay(self): ...

        @step(after=[], on_error="restock")
        def pick(self): ...

        @step(after=[pay, pick])
        def report(self):
            self.data["report"] = self.failure.step

        @step
        def publish(self): ...

        @step
        def restock(self): ...

    return Report


def test_a_join_that_a_failure_leaves_out_may_still_take_over_from_another_step(report):
    run = report().run
    fail(claim(run, "pick"))
    perform(claim(run, "restock"))
    assert ledger(run) == {"pay": "queued", "pick": "failed", "restock": "succeeded"}
    fail(claim(run, "pay"))
    drain()
    assert fresh(run).status == "succeeded"
    assert fresh(run).data == {"report": "pay"}
    assert ledger(run) == {
        "pay": "failed", "pick": "failed", "report": "succeeded", "publish": "skipped",
        "restock": "succeeded",
    }  # fmt: skip


def test_a_join_that_a_failure_leaves_out_is_skipped_once_nothing_can_need_it(report):
    run = report().run
    fail(claim(run, "pick"))
    drain()
    assert fresh(run).status == "succeeded"
    assert ledger(run) == {
        "pay": "succeeded", "pick": "failed", "report": "skipped", "publish": "skipped",
        "restock": "succeeded",
    }  # fmt: skip


def test_a_failure_whose_handler_has_lost_to_another_step_fails_the_run():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(after=[], on_error="tell")
        def pay(self): ...

        @step(after=[])
        def pick(self): ...

        @step(after=pay)
        def tell(self): ...

        @step(after=pay)
        def ship(self): ...

        @step(after=any_of(pick, tell))
        def end(self): ...

    run = Order().run
    perform(claim(run, "pick"))
    fail(claim(run, "pay"))
    drain()
    assert (fresh(run).status, ledger(run)["tell"]) == ("failed", "skipped")
    fresh(run).retry()
    drain()
    assert (fresh(run).status, ledger(run)["ship"]) == ("succeeded", "succeeded")

    run = Order().run
    fail(claim(run, "pay"))
    perform(claim(run, "pick"))  # after the handler has taken over
    drain()
    assert (fresh(run).status, ledger(run)["ship"]) == ("succeeded", "skipped")


def test_a_handler_that_would_also_run_before_the_failure_is_refused():
    with pytest.raises(InvalidDefinition, match="'mend', which does not wait for this step") as got:

        class Order(Sequence):
            class Meta:
                app_label = "shop"

            @step(after=[], on_error="mend")
            def pay(self): ...

            @step(after=[])
            def pick(self): ...

            @step(after=pick)
            def mend(self): ...

    assert "Remove the after of 'mend'" in got.value.hint


def test_a_handler_that_fails_fails_the_run_and_a_retry_goes_on_with_it():
    cls = flow(fails=["search", "mend"])
    sequence = run_sequence(cls)
    assert sequence.run.status == "failed"
    cls.failing.discard("mend")
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert ledger(sequence.run)["search"] == "failed"


def test_a_restart_forgets_the_handler():
    cls = flow(fails=["search"])
    sequence = run_sequence(cls)
    cls.failing.clear()
    sequence.run.restart_from("search")
    drain()
    assert ledger(sequence.run) == {"search": "succeeded", "fetch": "succeeded"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("on_error", "its on_error is 'lost', which is not a step of this sequence"),
        ("itself", "its on_error is 'one'. Name another step"),
        ("second undo", "it undoes 'one', which already has an undo"),
        ("second on_failure", "it is a second @on_failure; the first is 'tell'"),
        ("after", "after cannot be set on an undo, on_failure, on_cancel or on_end"),
    ],
)
def test_what_cannot_be_is_refused_when_the_class_is_created(body, message):
    with pytest.raises(InvalidDefinition, match=message):

        class Wrong(Sequence):
            class Meta:
                app_label = "shop"

            @step(on_error={"on_error": "lost", "itself": "one"}.get(body))
            def one(self): ...

            if body == "second undo":

                @one.undo
                def first(self): ...

                @one.undo
                def second(self): ...

            if body == "after":

                @one.undo(after=[])
                def first(self): ...

            if body == "second on_failure":

                @on_failure
                def tell(self): ...

                @on_failure
                def shout(self): ...


def test_an_undo_is_called_as_the_step_is_declared_that_it_undoes_in_its_own_class():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pack(self): ...

    class ManyOrders(Order):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: [1, 2])
        def pack(self, item):
            return item * 10

        @Order.pack.undo
        def unpack(self, item, result):
            self.data.setdefault("unpacked", []).append([item, result])

        @step(max_retries=0)
        def ship(self):
            raise ValueError("no")

    assert run_sequence(ManyOrders).data["unpacked"] == [[2, 20], [1, 10]]
    with pytest.raises(InvalidDefinition, match="with an item and its result"):

        class Wrong(Order):
            pack = step(lambda self, item: item, each=lambda self: [1])

            @Order.pack.undo
            def unpack(self): ...


def test_finish_in_an_undo_ends_nothing():
    sequence = run_sequence(sagas.saga(refund=lambda self: finish()))
    assert sequence.run.status == "failed"
    assert ledger(sequence.run)["refund"] == "failed"
    message = StepFailure.objects.get(run=sequence.run, step="refund").message
    assert message.startswith("Step 'refund' returned finish(), but the outcome of ")


@pytest.mark.parametrize("fails", [[], ["search"]])
@pytest.mark.parametrize("after", [["mend"], ["search", "mend"]])
def test_what_comes_after_a_handler_comes_with_and_without_the_error(fails, after):
    class Flow(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(on_error="mend")
        def search(self):
            if fails:
                raise ValueError("broken")

        @step
        def mend(self): ...

        @step(after=after)
        def tail(self):
            self.data["tail"] = True

    sequence = run_sequence(Flow)
    assert sequence.run.status == "succeeded"
    assert sequence.data == {"tail": True}
    assert ("mend" in ledger(sequence.run)) == bool(fails)


def test_a_step_in_whose_place_another_goes_on_cannot_be_skipped():
    run_ = flow(fails=["search"])().run
    fail(claim(run_, "search"))
    assert ledger(run_)["mend"] == "queued"
    with pytest.raises(InvalidTransition, match="its on_error step has already taken over"):
        run_.skip("search")
    drain()
    assert fresh(run_).status == "succeeded"


def test_after_a_skip_what_the_failure_has_cancelled_begins_again():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        approval = event(after=[])

        @step(after=[])
        def right(self):
            raise ValueError("broken")

        @on_failure
        def tell(self): ...

    run_ = Branches().run
    perform(claim(run_, "approval"))
    fail(claim(run_, "right"))
    drain()
    assert ledger(run_)["approval"] == "cancelled"
    run_ = fresh(run_)
    run_.skip("right", reason="by hand")
    drain()
    assert ledger(run_) == {"approval": "waiting", "right": "skipped"}
    run_.deliver("approval")
    drain()
    assert fresh(run_).status == "succeeded"
