from contextlib import suppress
from datetime import timedelta
from unittest.mock import patch

import pytest
from asgiref.sync import async_to_sync
from django.test import Client

from sequences import Sequence, event, finish, on_end, on_failure, step, subsequence
from sequences.exceptions import (
    Abort,
    EventTimeout,
    InvalidData,
    InvalidDefinition,
    InvalidTransition,
    UnknownStep,
)
from sequences.inspection import actions, snapshot
from sequences.inspection.diagnosis import summary
from sequences.models import Operation, SequenceRun, StepFailure, StoredPlan
from sequences.testing import assert_steps, clock, drain, isolate_sequences, run_sequence
from sequences.transitions import claims, failures
from tests.engine import claim, fail, fresh, ledger, perform, row, sent, steps_of, take

pytestmark = pytest.mark.django_db


def order(**options):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self):
            self.data["charged"] = True

        approval = event(**options)

        @step
        def ship(self):
            self.data["shipped_by"] = (self.result("approval") or {}).get("by")

    return Order


def waiting(cls):
    sequence = cls()
    drain()
    return fresh(sequence.run)


def offered(run):
    """The events that people are offered to deliver."""
    allowed = actions.allowed(snapshot.of(fresh(run)))
    return {on.name for action, on in allowed if action.name == "deliver"}


def test_an_event_holds_no_message_and_no_worker():
    run = waiting(order())
    found = row(run, "approval")
    assert (found.status, found.wake_at, found.due_at) == ("waiting", None, None)
    assert run.status == "running"


def test_a_delivered_payload_is_the_events_result_and_stands_in_data():
    cls = order()
    run = waiting(cls)
    assert list(cls.runs.waiting_for(cls.approval)) == [run]
    assert run.deliver("approval", {"by": "joel"}, by="ann", reason="seen it") is True
    drain()
    run = fresh(run)
    assert run.status == "succeeded"
    assert run.data == {"charged": True, "approval": {"by": "joel"}, "shipped_by": "joel"}
    operation = Operation.objects.get(run=run)
    assert (operation.action, operation.step, operation.by) == ("deliver", "approval", "ann")
    assert (operation.reason, operation.after) == ("seen it", {"by": "joel"})
    assert not cls.runs.waiting_for("approval").exists()


def test_the_delivery_dispatches_the_event_once_it_commits():
    run = waiting(order())
    assert steps_of(sent(lambda: run.deliver("approval"))) == ["approval"]


def test_the_first_of_two_deliveries_counts_and_the_second_says_so():
    run = waiting(order())
    assert run.deliver("approval", {"by": "joel"}) is True
    assert run.deliver("approval", {"by": "ann"}) is False
    drain()
    assert fresh(run).data["shipped_by"] == "joel"
    with pytest.raises(
        InvalidTransition, match=r"Cannot deliver to run .* its status is succeeded"
    ):
        run.deliver("approval")


def test_a_delivery_that_does_not_count_leaves_no_operation_and_changes_nothing():
    run = waiting(order())
    run.deliver("approval", {"by": "joel"}, by="ann")
    version = fresh(run).version
    assert run.deliver("approval", {"by": "kim"}, by="kim", reason="late") is False
    assert [(one.by, one.after) for one in run.operations.all()] == [("ann", {"by": "joel"})]
    assert run.version == fresh(run).version == version


def test_a_delivery_to_a_rolled_back_run_that_has_one_leaves_no_operation():
    class Refused(Sequence):
        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event()

        @step
        def ship(self):
            raise Abort("refused")

    run = waiting(Refused)
    run.deliver("approval", {"approved": False}, by="ann")
    drain()
    assert fresh(run).status == "failed"
    assert run.deliver("approval", {"approved": True}, by="joel") is False
    assert [one.by for one in run.operations.all()] == ["ann"]


def test_an_event_that_is_delivered_early_is_kept():
    run = order()().run
    assert run.deliver("approval", {"by": "joel"}) is True
    drain()
    assert fresh(run).data["shipped_by"] == "joel"


def test_an_event_that_is_delivered_while_the_wait_begins_is_not_lost():
    run = order()().run
    perform(claim(run, "charge"))
    beginning = claim(run, "approval")
    assert run.deliver("approval", {"by": "joel"}) is True
    perform(beginning)
    drain()
    assert fresh(run).data["shipped_by"] == "joel"


def test_a_delivery_between_the_look_and_the_commit_is_not_lost(monkeypatch):
    run = order()().run
    perform(claim(run, "charge"))
    beginning = claim(run, "approval")
    monkeypatch.setattr(claims, "inbox", lambda run_id, using: {})
    run.deliver("approval", {"by": "joel"})
    ready = perform(beginning)
    monkeypatch.undo()
    assert steps_of(ready) == ["approval"]
    drain()
    assert fresh(run).data["shipped_by"] == "joel"


def test_a_payload_of_none_ends_the_wait_too():
    run = waiting(order())
    run.deliver("approval")
    drain()
    run = fresh(run)
    assert run.status == "succeeded"
    assert run.data == {"charged": True, "approval": None, "shipped_by": None}


@pytest.mark.parametrize("state", ["not begun", "paused", "waiting"])
def test_a_delivery_is_seen_at_once_in_whatever_state_the_run_is(state):
    cls = order()
    run = cls().run if state == "not begun" else waiting(cls)
    if state == "paused":
        run.pause()
    before = fresh(run)
    assert not run.delivered("approval")
    assert run.payload("approval", "nothing") == "nothing"

    fresh(run).deliver("approval", {"by": "ann"})
    for instance in (before, run, fresh(run)):  # no worker has seen it
        assert instance.delivered(cls.approval)
        assert instance.payload("approval") == {"by": "ann"}
    drain()
    assert run.delivered("approval")


def test_a_delivered_none_is_a_delivery():
    run = waiting(order())
    run.deliver("approval")
    assert run.delivered("approval")
    assert run.payload("approval", "nothing") is None


def test_only_of_an_event_it_can_be_asked_whether_it_was_delivered():
    run = waiting(order())
    for ask in (run.delivered, run.payload):
        with pytest.raises(UnknownStep, match="is not an event"):
            ask("charge")
        with pytest.raises(UnknownStep, match="Did you mean 'approval'"):
            ask("aproval")


@pytest.mark.django_db(transaction=True)
def test_asynchronous_code_sees_a_delivery_too():
    run = waiting(order())

    async def sign():
        assert not await run.adelivered("approval")
        await run.adeliver("approval", {"by": "ann"})
        return await run.adelivered("approval"), await run.apayload("approval")

    assert async_to_sync(sign)() == (True, {"by": "ann"})


def test_a_payload_of_none_is_told_from_a_timeout():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(timeout=timedelta(hours=1), on_timeout="continue")

        @step
        def ship(self):
            return [self.result("approval", "nothing"), "approval" in self.data]

    delivered = waiting(Order)
    delivered.deliver("approval", None)
    drain()
    assert row(delivered, "ship").result == [None, True]
    assert ledger(delivered) == {"approval": "succeeded", "ship": "succeeded"}

    timed_out = run_sequence(Order).run
    assert row(timed_out, "ship").result == ["nothing", False]
    assert ledger(timed_out) == {"approval": "skipped", "ship": "succeeded"}


def test_a_timeout_leaves_a_default_of_its_data_as_it_is():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            defaults = {"approval": {"by": "nobody"}}

        approval = event(timeout=timedelta(hours=1), on_timeout="continue")

        @step
        def ship(self): ...

    assert run_sequence(Order).data == {"approval": {"by": "nobody"}}


def test_an_event_that_is_not_delivered_in_time_fails_and_says_so():
    run_ = run_sequence(order(timeout=timedelta(days=3))).run
    assert_steps(run_, [("charge", "succeeded"), ("approval", "failed")])
    assert run_.status == "failed"
    failure = StepFailure.objects.get(run=run_)
    assert failure.error == "sequences.exceptions.EventTimeout"
    assert failure.message == (f"Event 'approval' of run {run_.pk} was not delivered within 3 d.")
    assert summary(snapshot.of(fresh(run_))).endswith(
        "was not delivered within 3 d. Retry the run to wait again, or skip the step. Later steps "
        "are blocked."
    )


def test_after_a_rollback_nothing_advises_what_is_refused():
    advised = []

    class Order(Sequence):
        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event(timeout=timedelta(days=2, hours=4, minutes=1))

        @on_failure
        def tell(self):
            advised.append(self.failure.message)

    run = run_sequence(Order).run
    (message,) = advised
    assert message == f"Event 'approval' of run {run.pk} was not delivered within 2 d 4 h."
    assert summary(snapshot.of(fresh(run))).endswith(
        "Completed steps were rolled back. To run it again, restart it from a step."
    )
    for refused in (run.retry, lambda: run.skip("approval")):
        with pytest.raises(InvalidTransition, match=r"rolled back\. Restart it from a step"):
            refused()
    run.restart_from("charge")


def test_a_failure_before_there_was_anything_to_undo_can_be_retried():
    class Order(Sequence):
        approval = event(timeout=timedelta(days=2))

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

    run = run_sequence(Order).run
    text = summary(snapshot.of(fresh(run)))
    assert "rolled back" not in text
    assert "Retry the run to wait again, or skip the step. Later steps are blocked." in text
    run.retry()


def test_a_timeout_counts_from_the_beginning_of_the_wait():
    cls = order(timeout=timedelta(hours=1))
    with clock() as moving:
        waiting_run = waiting(cls)
        moving.move(timedelta(minutes=59))
        drain()
        assert ledger(waiting_run)["approval"] == "waiting"
        moving.move(timedelta(minutes=2))
        drain()
        assert ledger(waiting_run)["approval"] == "failed"


def test_a_timeout_in_milliseconds_can_let_the_run_go_on():
    sequence = run_sequence(order(timeout=60_000, on_timeout="continue"))
    assert sequence.run.status == "succeeded"
    assert sequence.data == {"charged": True, "shipped_by": None}


def test_a_retry_after_a_timeout_waits_anew():
    cls = order(timeout=timedelta(hours=1))
    failed = run_sequence(cls).run
    failed.retry()
    drain()
    assert ledger(failed)["approval"] == "waiting"
    failed.deliver("approval", {"by": "joel"})
    drain()
    assert fresh(failed).status == "succeeded"


def test_a_delivery_after_the_timeout_is_kept_for_the_retry():
    failed = run_sequence(order(timeout=timedelta(hours=1))).run
    assert failed.deliver("approval", {"by": "joel"}) is True
    failed.retry()
    drain()
    assert fresh(failed).status == "succeeded"
    assert fresh(failed).data["shipped_by"] == "joel"


def test_a_first_event_of_a_delayed_start_waits_from_its_own_beginning_on():
    class Late(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(timeout=timedelta(hours=1))

    with clock() as moving:
        run = Late.start({}, delay=timedelta(days=1)).run
        moving.move(timedelta(days=1, minutes=1))
        drain()
        assert ledger(run) == {"approval": "waiting"}
        moving.move(timedelta(minutes=50))
        drain()
        assert ledger(run) == {"approval": "waiting"}
        moving.move(timedelta(minutes=20))
        drain()
        assert ledger(run) == {"approval": "failed"}


def test_an_event_may_have_a_delay_before_it_waits_and_a_delivery_meanwhile_is_kept():
    class Delayed(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(delay=timedelta(days=1), timeout=timedelta(hours=1))

    with clock() as moving:
        waits, delivered = Delayed().run, Delayed().run
        drain()
        assert delivered.deliver("approval", 1) is True
        drain()
        assert ledger(delivered) == {"approval": "waiting"}
        moving.move(timedelta(days=1, minutes=1))
        drain()
        assert ledger(waits) == {"approval": "waiting"}
        assert fresh(delivered).status == "succeeded"
        assert fresh(delivered).data == {"approval": 1}


def test_a_retry_of_an_event_is_not_its_timeout():
    asked = []

    def asks(sequence):
        asked.append(1)
        if len(asked) == 1:
            raise ConnectionError("busy")
        return True

    run = waiting(order(when=asks))
    assert len(asked) == 2
    assert ledger(run)["approval"] == "waiting"
    run.deliver("approval")
    drain()
    assert fresh(run).status == "succeeded"


def test_a_delivery_to_a_paused_run_waits_for_its_resume():
    run = waiting(order())
    run.pause()
    assert sent(lambda: run.deliver("approval", {"by": "joel"})) == []
    drain()
    assert ledger(run)["approval"] == "queued"
    assert steps_of(sent(run.resume)) == ["approval"]
    drain()
    assert fresh(run).data["shipped_by"] == "joel"


def test_a_pause_keeps_the_timeout_running():
    with clock() as moving:
        run = waiting(order(timeout=timedelta(hours=1)))
        run.pause()
        moving.move(timedelta(hours=2))
        drain()
        assert ledger(run)["approval"] == "waiting"
        run.resume()
        drain()
        assert ledger(run)["approval"] == "failed"


def test_a_skipped_wait_goes_on_and_a_later_delivery_says_so():
    run = waiting(order())
    run.skip("approval", reason="by phone")
    with pytest.raises(
        InvalidTransition, match=r"its status is skipped\. Allowed: not started, waiting"
    ):
        run.deliver("approval")
    drain()
    assert fresh(run).status == "succeeded"


def test_a_wait_can_be_left_out():
    sequence = run_sequence(order(when=lambda sequence: "risk" in sequence.data))
    assert sequence.run.status == "succeeded"
    assert ledger(sequence.run)["approval"] == "skipped"


@pytest.mark.parametrize("place", ["charge", "approval"])
def test_a_restart_from_an_event_or_from_before_it_asks_again(place):
    run = waiting(order())
    run.deliver("approval", {"by": "joel"})
    drain()
    run.restart_from(place, by="ann")
    drain()
    assert ledger(run)["approval"] == "waiting"
    assert not run.delivered("approval")
    operation = Operation.objects.filter(run=run, action="restart_from").get()
    assert (operation.before, operation.after) == (
        {"deliveries": ["approval"]},
        {"deliveries": []},
    )
    assert run.deliver("approval", {"by": "ann"}) is True
    drain()
    assert fresh(run).data["shipped_by"] == "ann"


def test_a_restart_keeps_what_was_delivered_if_that_is_asked_for():
    run = waiting(order())
    run.deliver("approval", {"by": "joel"})
    drain()
    run.restart_from("charge", keep_deliveries=True)
    drain()
    assert fresh(run).status == "succeeded"
    operation = Operation.objects.filter(run=run, action="restart_from").get()
    assert operation.before == operation.after == {"deliveries": ["approval"]}


def test_a_restart_from_behind_an_event_does_not_ask_again():
    run = waiting(order())
    run.deliver("approval", {"by": "joel"})
    drain()
    run.restart_from("ship")
    drain()
    assert fresh(run).status == "succeeded"
    operation = Operation.objects.filter(run=run, action="restart_from").get()
    assert (operation.before, operation.after) == (None, None)


def test_a_restart_forgets_what_came_early_for_an_event_after_it():
    run = order()().run
    run.deliver("approval", {"by": "joel"})
    run.restart_from("charge")
    drain()
    assert ledger(run) == {"charge": "succeeded", "approval": "waiting"}


def test_a_restart_that_is_refused_forgets_nothing():
    run = waiting(order())
    run.deliver("approval", {"by": "joel"})
    with pytest.raises(InvalidTransition):
        run.restart_from("ship")
    assert fresh(run).delivered("approval")


def test_a_child_that_begins_from_nothing_asks_again():
    fails = {"on"}

    class Child(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        approval = event()

        @step
        def pay(self): ...

        @pay.undo
        def refund(self): ...

        @step
        def ship(self):
            if fails:
                raise ValueError

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        child = subsequence(Child)

    parent = Parent().run
    drain()
    child = SequenceRun.objects.get(parent__run=parent)
    child.deliver("approval", "yes")
    drain()
    assert fresh(parent).status == "failed"
    fails.clear()
    parent.retry()
    drain()
    assert ledger(child) == {"approval": "waiting"}
    assert Operation.objects.filter(run=child).last().before == {"deliveries": ["approval"]}


def test_a_restart_asks_again_in_asynchronous_code_too():
    run = waiting(order())
    run.deliver("approval", {"by": "joel"})
    drain()
    async_to_sync(run.arestart_from)("approval", keep_deliveries=True)
    drain()
    assert fresh(run).status == "succeeded"
    async_to_sync(run.arestart_from)("approval")
    drain()
    assert ledger(run)["approval"] == "waiting"


def test_a_branch_waits_while_the_other_goes_on_and_the_join_waits_for_both():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(after=[])

        @step(after=[])
        def pack(self):
            self.data["packed"] = True

        @step
        def ship(self):
            self.data["by"] = self.data["approval"]

    run = waiting(Branches)
    assert ledger(run) == {"approval": "waiting", "pack": "succeeded"}
    run.deliver("approval", "joel")
    drain()
    assert fresh(run).data == {"packed": True, "approval": "joel", "by": "joel"}


def test_beside_a_failed_branch_a_delivery_is_kept_for_the_retry():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(after=[])

        @step(after=[])
        def pack(self): ...

    run = Branches().run
    perform(claim(run, "approval"))
    fail(claim(run, "pack"))
    assert fresh(run).status == "failed"
    assert run.deliver("approval", 1) is True
    drain()
    assert ledger(run)["approval"] == "queued"
    run.retry()
    drain()
    assert fresh(run).status == "succeeded"


def test_only_events_of_the_plan_can_be_delivered():
    run = waiting(order())
    with pytest.raises(
        UnknownStep, match=r"Step 'ship' of shop\.Order is not an event\. Available: approval"
    ):
        run.deliver("ship")
    with pytest.raises(UnknownStep, match=r"shop\.Order has no step 'aproval'\. Did you mean"):
        run.deliver("aproval")
    with pytest.raises(UnknownStep, match=r"has no step 'lost'\. Available: approval\.$"):
        run.deliver("lost")
    assert fresh(run).inbox == {}


def test_a_query_for_a_step_that_the_class_never_had_is_refused():
    cls = order()
    run = waiting(cls)
    refused = pytest.raises(UnknownStep, match=r"shop\.Order has no step 'aproval'\. Did you mean")
    with refused:
        cls.runs.waiting_for("aproval")
    with refused:
        cls.runs.unfinished().filter(key=None).waiting_for("aproval")
    with refused:
        (cls.runs.unfinished() | cls.runs.finished()).waiting_for("aproval")
    assert not SequenceRun.objects.waiting_for("aproval").exists()

    class Other(Sequence):
        class Meta:
            app_label = "shop"

        signature = event()

    both = cls.runs | Other.runs
    assert list(both.waiting_for("approval")) == [run]
    assert not both.waiting_for("signature").exists()
    assert list(cls.runs.waiting_for("approval")) == [run]


def test_a_query_for_a_step_of_another_release_is_answered():
    with isolate_sequences():

        class Order(Sequence):
            class Meta:
                app_label = "shop"

            signature = event()

        run = waiting(Order)
    cls = order()
    assert list(cls.runs.waiting_for("signature")) == [run]

    async def in_a_coroutine():
        return [run async for run in cls.runs.waiting_for("aproval")]

    assert async_to_sync(in_a_coroutine)() == []
    StoredPlan.objects.update(graph={"format": 99})
    assert not cls.runs.waiting_for("aproval").exists(), "a later release may have it"


def test_a_payload_that_is_not_json_is_refused_and_changes_nothing():
    run = waiting(order())
    with pytest.raises(InvalidData, match=r'payload\["when"\]'):
        run.deliver("approval", {"when": {1, 2}})
    assert fresh(run).inbox == {}
    assert ledger(run)["approval"] == "waiting"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "3 days"}, "timeout is '3 days'. It must be a timedelta"),
        ({"on_timeout": "skip"}, 'on_timeout is \'skip\'. It must be "fail" or "continue"'),
    ],
)
def test_a_wrong_option_is_refused_when_the_class_is_created(options, message):
    with pytest.raises(InvalidDefinition, match=message):
        order(**options)


@pytest.mark.parametrize(
    ("on_timeout", "module", "name"),
    [("continue", claims, "inbox"), ("fail", failures, "record")],
)
def test_a_delivery_that_is_accepted_while_the_time_runs_out_counts(on_timeout, module, name):
    """It comes after the event has looked for one, and before its end is stored."""
    with clock() as moving:
        run = waiting(order(timeout=timedelta(hours=1), on_timeout=on_timeout))
        moving.move(timedelta(hours=2))
        found = row(run, "approval")
        ending = take(found.pk, found.attempts)
        usual = getattr(module, name)

        def beside(*arguments, **options):
            if name == "inbox":
                looked = usual(*arguments, **options)
                assert fresh(run).deliver("approval", {"by": "joel"}) is True
                return looked
            assert fresh(run).deliver("approval", {"by": "joel"}) is True
            return usual(*arguments, **options)

        with patch.object(module, name, beside), suppress(EventTimeout):
            perform(ending)
        assert row(run, "approval").status == "queued"
        drain()
        assert fresh(run).status == "succeeded"
        assert fresh(run).data["shipped_by"] == "joel"


def order_with_handler():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(timeout=timedelta(hours=1), on_error="second")
        second = event(timeout=timedelta(hours=1))

        @step(after=[approval, second])
        def ship(self):
            self.data["shipped"] = True

    return Order


def test_an_event_that_times_out_has_a_step_that_takes_over():
    run = waiting(order_with_handler())
    with clock() as fake_clock:
        fake_clock.move(timedelta(hours=1))
        drain()
        run = fresh(run)
        assert ledger(run) == {"approval": "failed", "second": "waiting"}
        assert run.deliver("second", {"by": "boss"}) is True
        drain()
    assert fresh(run).status == "succeeded"
    assert fresh(run).data == {"second": {"by": "boss"}, "shipped": True}


def test_an_event_whose_handler_has_taken_over_accepts_no_delivery():
    run = waiting(order_with_handler())
    url = run.deliver_url("approval", {"by": "ann"})
    with clock() as fake_clock:
        fake_clock.move(timedelta(hours=1))
        drain()
        with pytest.raises(InvalidTransition, match="its on_error step has already taken over"):
            run.deliver("approval", {"by": "ann"})
    assert not fresh(run).delivered("approval")
    assert offered(run) == {"second"}
    assert "An answer is no longer needed" in Client().post(url).content.decode()


def test_a_handler_of_an_error_that_did_not_come_accepts_no_delivery():
    class Slow(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(on_error="second")
        second = event()
        last = event(after=[approval, second])

    run = waiting(Slow)
    url = run.deliver_url("second", {"by": "boss"})
    assert run.deliver("approval", 1)
    drain()
    run = fresh(run)
    with pytest.raises(InvalidTransition, match="after a failure, and there was none"):
        run.deliver("second", 2)
    assert "An answer is no longer needed" in Client().post(url).content.decode()
    assert run.deliver("last", 3) is True


def test_a_handler_accepts_a_delivery_before_the_failure():
    run = waiting(order_with_handler())
    assert run.deliver("second", {"by": "boss"}) is True
    with clock() as fake_clock:
        fake_clock.move(timedelta(hours=1))
        drain()
    assert fresh(run).data == {"second": {"by": "boss"}, "shipped": True}


def test_a_run_that_was_rolled_back_accepts_no_delivery():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event(timeout=timedelta(hours=1))
        receipt = event()

    run = waiting(Order)
    url = run.deliver_url("approval", {"by": "ann"})
    with clock() as fake_clock:
        fake_clock.move(timedelta(hours=1))
        drain()
    run = fresh(run)
    assert run.status == "failed"
    for name in ("approval", "receipt"):
        with pytest.raises(InvalidTransition, match="a retry would no longer wait for this event"):
            run.deliver(name, {"by": "ann"})
    assert offered(run) == set()
    assert "An answer is no longer needed" in Client().post(url).content.decode()
    run.restart_from("charge")
    drain()
    assert fresh(run).deliver("approval", {"by": "ann"}) is True


def test_a_run_that_has_failed_only_at_its_end_accepts_no_delivery():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self):
            return finish()

        approval = event()

        @on_end
        def close(self):
            raise ValueError

    run = run_sequence(Order).run
    assert (run.status, run.final_status) == ("failed", "succeeded")
    with pytest.raises(InvalidTransition, match="a retry would no longer wait for this event"):
        run.deliver("approval", {"by": "ann"})


@pytest.mark.parametrize("name", ["each", "concurrency", "batch", "allow_failed", "atomic"])
def test_an_option_that_no_event_has_is_refused(name):
    options = {"each": "items", "concurrency": 2, "batch": 2, "allow_failed": 1, "atomic": False}
    with pytest.raises(InvalidDefinition, match=f"an event cannot have {name}. Leave it out"):
        order(**{name: options[name]})
