"""Operations on runs: pause, resume, cancel, finish, retry; their steps' names and their keys."""

import uuid
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model

from sequences import Abort, Sequence, repeat, step
from sequences.exceptions import InvalidTransition, UnknownStep
from sequences.models import Operation, RunStatus, SequenceRun, StepFailure, StepRun
from sequences.testing import assert_steps, clock, drain, isolate_sequences
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
)
from tests.operations import begun, chain, delayed, run_in

pytestmark = pytest.mark.django_db


#


def call(run, action):
    arguments = {
        "skip": ["one"],
        "restart_from": ["one"],
        "edit": [{"n": 2}],
        "set_deadline": [timedelta(hours=1)],
    }
    getattr(run, action)(*arguments.get(action, []))


STATES = [str(status) for status in RunStatus]


ALLOWED = {
    "pause": ["running"],
    "resume": ["paused"],
    "cancel": ["running", "paused", "undoing"],
    "finish": ["running", "paused"],
    "set_deadline": ["running", "paused"],
    "retry": ["failed"],
    "skip": ["running", "paused", "failed"],
    "erase": ["succeeded", "failed", "cancelled"],
    "edit": STATES,
    "restart_from": ["running", "paused", "succeeded", "failed", "cancelled"],
}


#: How messages name the operations whose methods have a name that does not read as a verb.
VERBS = {
    "restart_from": "restart",
    "set_deadline": "set the deadline of",
    "skip": "skip a step of",
}


BECOMES = {
    "pause": "paused",
    "resume": "running",
    "cancel": "cancelled",
    "finish": "succeeded",
    "retry": "running",
}


PAIRS = [(action, state) for action in ALLOWED for state in STATES]


@pytest.mark.parametrize(
    ("action", "state"), [pair for pair in PAIRS if pair[1] in ALLOWED[pair[0]]]
)
def test_what_a_state_allows_is_done_and_leaves_its_operation(action, state):
    run = run_in(state)
    before, operations = run.version, run.operations.count()
    call(run, action)
    assert run.status == fresh(run).status
    if action in BECOMES:
        assert run.status == BECOMES[action]
    assert run.version > before
    assert run.operations.count() == operations + 1
    assert run.operations.last().action == action


@pytest.mark.parametrize(
    ("action", "state"), [pair for pair in PAIRS if pair[1] not in ALLOWED[pair[0]]]
)
def test_what_a_state_does_not_allow_is_refused_and_changes_nothing(action, state):
    run = run_in(state)
    rows, operations = ledger(run), run.operations.count()
    with pytest.raises(InvalidTransition) as caught:
        call(run, action)
    if action == "retry" and state in ("running", "paused"):
        expected = "no step has failed or is waiting for a retry."
    else:
        expected = f"its status is {state}. Allowed: "
    verb = VERBS.get(action, action)
    assert str(caught.value).startswith(f"Cannot {verb} run {run.pk}: {expected}")
    assert caught.value.run == run.pk
    assert caught.value.status == state
    stored = fresh(run)
    assert (stored.status, stored.version, ledger(run)) == (state, run.version, rows)
    assert run.operations.count() == operations


def test_a_refusal_names_the_states_that_allow_the_operation():
    run = run_in("succeeded")
    with pytest.raises(InvalidTransition, match=r"Allowed: running\.$"):
        run.pause()
    with pytest.raises(InvalidTransition, match=r"Allowed: running, paused or undoing\.$"):
        run.cancel()
    with pytest.raises(InvalidTransition, match=r"Allowed: running, paused or failed\.$"):
        run.retry()
    with pytest.raises(InvalidTransition, match=r"Allowed: succeeded, failed or cancelled\.$"):
        run_in("paused").erase()


def test_an_operation_on_a_run_that_is_gone_says_so():
    run = SequenceRun(pk=uuid.uuid4(), sequence="shop.Chain")
    with pytest.raises(InvalidTransition, match="it no longer exists"):
        run.pause()


def test_an_operation_keeps_who_and_why():
    user = get_user_model().objects.create_user("ada")
    run = run_in("running")
    run.pause(by=user, reason="the shop is closed")
    run.resume(by="nightly job")
    first, second = run.operations.all()
    assert (first.action, first.by, first.reason) == ("pause", "ada", "the shop is closed")
    assert (second.action, second.by, second.reason) == ("resume", "nightly job", "")
    assert first.done_at <= second.done_at


def test_an_operation_on_a_step_names_it():
    run = run_in("failed")
    run.skip("one", reason="not needed", by="ada")
    operation = run.operations.get()
    assert (operation.action, operation.step, operation.reason, operation.by) == (
        "skip",
        "one",
        "not needed",
        "ada",
    )


def test_a_long_name_is_cut_to_its_column():
    run = run_in("running")
    run.pause(by="x" * 400)
    assert run.operations.get().by == "x" * 150


def test_the_async_twins_do_the_same():
    run, reasons = run_in("running"), []

    async def operate():
        await run.apause(by="a")
        await run.aresume(by="b")
        await run.aedit({"n": 5}, by="c")
        await run.askip("one", by="d", reason="why")
        await run.afinish(by="e")
        await run.arestart_from("one", by="f")
        await run.acancel(by="g")
        reasons.append(await run.operations.aget(action="skip"))
        await run.aerase(by="h", reason="gone")

    async_to_sync(operate)()
    done = run.operations.values_list("action", "by")
    assert list(done) == [
        ("pause", "a"),
        ("resume", "b"),
        ("edit", "c"),
        ("skip", "d"),
        ("finish", "e"),
        ("restart_from", "f"),
        ("cancel", "g"),
        ("erase", "h"),
    ]
    assert [one.reason for one in reasons] == ["why"]
    assert run.operations.get(action="erase").reason == "gone"
    failed = run_in("failed")
    async_to_sync(failed.aretry)(by="i")
    assert (failed.status, failed.operations.get().by) == ("running", "i")


def test_messages_are_sent_only_when_the_callers_transaction_commits():
    run = run_in("paused")
    with_commit = sent(lambda: run.resume())
    assert steps_of(with_commit) == ["one"]


# pause and resume


def test_a_pause_holds_what_is_queued_and_a_resume_dispatches_it():
    run = run_in("running")
    message = row(run, "one")
    run.pause()
    assert row(run, "one").wake_at is None
    assert claim(run, "one") is None
    assert drain() == 0
    assert steps_of(sent(run.resume)) == ["one"]
    assert row(run, "one").queued_at >= message.queued_at
    drain()
    assert fresh(run).status == "succeeded"


def test_a_pause_lets_the_step_in_hand_commit_and_holds_its_successor():
    run = run_in("running")
    held = claim(run, "one")
    run.pause()
    assert perform(held) == []
    assert ledger(run) == {"one": "succeeded", "two": "queued"}
    assert row(run, "two").wake_at is None
    assert fresh(run).status == "paused"
    assert steps_of(sent(run.resume)) == ["two"]


def test_a_run_whose_last_step_commits_during_a_pause_has_succeeded():
    run = run_in("running")
    perform(claim(run, "one"))
    held = claim(run, "two")
    run.pause()
    perform(held)
    assert fresh(run).status == "succeeded"
    assert fresh(run).data["done"] == ["one", "two"]


def test_a_failure_during_a_pause_fails_the_run():
    run = run_in("running")
    held = claim(run, "one")
    run.pause()
    fail(held)
    assert fresh(run).status == "failed"


def test_a_retry_that_begins_during_a_pause_is_held():
    run = run_in("running")
    held = claim(run, "one")
    run.pause()
    fail(held, final=False)
    assert row(run, "one").wake_at is None
    assert claim(run, "one") is None
    assert steps_of(sent(run.resume)) == ["one"]
    assert claim(run, "one").attempts == 1


def test_clocks_go_on_during_a_pause_and_what_fell_due_is_dispatched_on_resume():
    with clock() as moving:
        run = delayed().start().run
        drain()
        assert ledger(run) == {"later": "waiting"}
        due = row(run, "later").due_at
        run.pause()
        assert row(run, "later").due_at == due
        moving.move(timedelta(hours=3))
        assert drain() == 0
        assert steps_of(sent(run.resume)) == ["later"]
        drain()
        assert fresh(run).status == "succeeded"


def test_a_delay_that_is_not_over_is_waited_for_after_a_resume():
    with clock() as moving:
        run = delayed().start().run
        drain()
        due = row(run, "later").due_at
        run.pause()
        moving.move(timedelta(hours=1))
        assert sent(run.resume) == []
        assert (row(run, "later").due_at, row(run, "later").wake_at) == (due, due)
        assert ledger(run) == {"later": "waiting"}
        moving.move(timedelta(hours=1))
        drain()
        assert fresh(run).status == "succeeded"


def test_a_retry_that_is_not_due_is_waited_for_after_a_resume():
    run = run_in("running")
    fail(claim(run, "one"), final=False)
    due = now() + timedelta(hours=1)
    change(run, "one", due_at=due)
    run.pause()
    assert sent(run.resume) == []
    assert row(run, "one").wake_at >= due
    with clock() as moving:
        moving.move(timedelta(hours=2))
        assert claim(run, "one").attempts == 1


def test_a_resume_beside_a_failed_step_lets_only_the_retries_go_on():
    run = begun()
    retrying, failing = claim(run, "left"), claim(run, "right")
    fail(retrying, final=False)
    fail(failing)
    assert fresh(run).status == "running"
    run.pause()
    assert steps_of(sent(run.resume)) == ["left"]
    assert row(run, "middle").wake_at is None
    assert fresh(run).status == "running"
    perform(claim(run, "left"))
    assert fresh(run).status == "failed"


def test_a_resume_beside_a_failed_step_dispatches_a_retry_for_its_own_time():
    run = begun()
    retrying, failing = claim(run, "left"), claim(run, "right")
    fail(retrying, final=False)
    fail(failing)
    change(run, "left", due_at=now() + timedelta(minutes=10))
    run.pause()
    (message,) = sent(run.resume)
    assert 590_000 < message.delay <= 600_000
    assert message.attempts == 1
    assert row(run, "left").status == "retrying"


# cancel and finish


@pytest.mark.parametrize(
    ("action", "status", "of_steps"),
    [("cancel", "cancelled", "cancelled"), ("finish", "succeeded", "skipped")],
)
def test_an_end_from_outside_ends_every_step_and_a_running_one_loses_its_commit(
    action, status, of_steps
):
    run = begun()
    held = claim(run, "left")
    perform(claim(run, "right"))
    getattr(run, action)()
    assert ledger(run) == {
        "first": "succeeded",
        "left": of_steps,
        "right": "succeeded",
        "middle": of_steps,
    }
    with pytest.raises(Exception, match="lost its claim while it was running"):
        perform(held)
    stored = fresh(run)
    assert (stored.status, stored.data) == (status, {"right": 1})
    assert stored.finished_at is not None
    assert not StepRun.objects.filter(run=run.pk, wake_at__isnull=False).exists()
    assert drain() == 0


def test_a_step_of_a_cancelled_run_that_fails_leaves_no_failure():
    run = run_in("running")
    held = claim(run, "one")
    run.cancel()
    assert fail(held) is False
    assert not StepFailure.objects.filter(run=run.pk).exists()
    assert fresh(run).status == "cancelled"


# retry


def test_retry_begins_a_failed_step_again_with_all_its_attempts():
    run = run_in("running")
    fail(claim(run, "one"), final=False)
    fail(claim(run, "one"))
    assert fresh(run).status == "failed"
    message = sent(run.retry)
    assert steps_of(message) == ["one"]
    assert message[0].attempts == 0
    again = row(run, "one")
    assert (again.status, again.attempts, again.lost_workers, again.finished_at) == (
        "queued",
        0,
        0,
        None,
    )
    drain()
    assert_steps(fresh(run), [("one", "succeeded"), ("two", "succeeded")])
    assert fresh(run).finished_at is not None
    assert run.failures.count() == 2


def test_retry_does_not_wait_for_the_backoff_of_a_retrying_step():
    run = run_in("running")
    fail(claim(run, "one"), final=False)
    change(run, "one", due_at=now() + timedelta(days=1), wake_at=now() + timedelta(days=1))
    assert steps_of(sent(run.retry)) == ["one"]
    assert row(run, "one").status == "queued"
    assert claim(run, "one") is not None


def test_retry_of_a_paused_run_keeps_it_paused():
    run = begun()
    held = claim(run, "left")
    fail(claim(run, "right"), final=False)
    run.pause()
    assert sent(run.retry) == []
    assert fresh(run).status == "paused"
    assert row(run, "right").wake_at is None
    perform(held)
    assert sorted(steps_of(sent(run.resume))) == ["middle", "right"]


def test_a_failed_branch_holds_what_has_not_begun_and_retry_goes_on():
    run = begun()
    running = claim(run, "left")
    fail(claim(run, "right"))
    assert fresh(run).status == "running"
    assert row(run, "middle").wake_at is None
    assert claim(run, "middle") is None
    perform(running)
    assert fresh(run).status == "failed"
    assert ledger(run) == {
        "first": "succeeded",
        "left": "succeeded",
        "right": "failed",
        "middle": "queued",
    }
    assert steps_of(sent(run.retry)) == ["right", "middle"]
    drain()
    assert fresh(run).status == "succeeded"
    assert fresh(run).data["joined"] == ["left", "middle", "right"]


def test_a_successor_that_gets_ready_beside_a_failed_branch_is_held():
    class Two(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self):
            pass

        @step(after=first)
        def left(self):
            pass

        @step(after=left)
        def after_left(self):
            pass

        @step(after=first)
        def right(self):
            pass

    run = begun(Two)
    running = claim(run, "left")
    fail(claim(run, "right"))
    assert perform(running) == []
    assert row(run, "after_left").wake_at is None
    assert fresh(run).status == "failed"
    assert steps_of(sent(run.retry)) == ["right", "after_left"]


# names of steps


def test_a_step_is_named_by_itself_its_name_or_an_alias():
    for name in (chain().two, "two", "former_two"):
        run = run_in("running")
        perform(claim(run, "one"))
        run.skip(name)
        assert ledger(run)["two"] == "skipped"


def test_the_plan_of_an_earlier_release_is_steered_by_the_present_name():
    class Renamed(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def old_name(self):
            raise Abort("no")

    run = Renamed.start().run
    drain()

    with isolate_sequences():

        class Renamed(Sequence):
            class Meta:
                app_label = "shop"

            @step(aliases=["old_name"])
            def new_name(self):
                self.data["by"] = "new_name"

        run.restart_from(Renamed.new_name)
        assert ledger(run) == {"old_name": "queued"}
        run.skip("new_name")
        assert ledger(run) == {"old_name": "skipped"}


def test_an_unknown_step_is_refused_with_the_nearest_name():
    run = run_in("running")
    with pytest.raises(UnknownStep) as caught:
        run.skip("onne")
    assert str(caught.value) == "shop.Chain has no step 'onne'. Did you mean 'one'?"
    with pytest.raises(UnknownStep):
        run.restart_from("nothing like it")
    assert not run.operations.exists()


# keys


def test_the_end_of_a_run_frees_its_key_and_retry_holds_it_again():
    cls = chain()
    run = cls.start({}, key="a", unique="unfinished").run
    fail(claim(run, "one"))
    assert fresh(run).active_key is None
    run.retry()
    assert run.active_key == "a"
    again = cls.start({}, key="a", unique="unfinished")
    assert (again.created, again.run.pk) == (False, run.pk)


@pytest.mark.parametrize("action", ["retry", "skip", "restart_from"])
def test_a_run_whose_key_another_holds_now_cannot_begin_again(action):
    cls = chain()
    run = cls.start({}, key="a", unique="unfinished").run
    fail(claim(run, "one"))
    other = cls.start({}, key="a", unique="unfinished")
    assert other.created
    with pytest.raises(InvalidTransition) as caught:
        call(run, action)
    assert str(caught.value) == (
        f"Cannot {VERBS.get(action, action)} run {run.pk}: its key 'a' is now held by run "
        f"{other.run.pk}. Finish or cancel that run first."
    )
    assert fresh(run).status == "failed"
    other.run.cancel()
    call(run, action)
    assert fresh(run).active_key == "a"


@pytest.mark.parametrize("action", ["cancel", "finish"])
def test_an_end_from_outside_frees_a_key_that_lasts_for_the_unfinished(action):
    cls = chain()
    run = cls.start({}, key="a", unique="unfinished").run
    forever = cls.start({}, key="b").run
    call(run, action)
    call(forever, action)
    assert cls.start({}, key="a", unique="unfinished").created
    assert not cls.start({}, key="b").created


# beside a failed step


def repeating():

    class Repeating(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self):
            pass

        @step(after=first)
        def poll(self):
            self.data["polled"] = self.data.get("polled", 0) + 1
            return repeat(after=timedelta(minutes=5)) if self.data["polled"] < 2 else None

        @step(after=first)
        def other(self):
            pass

    return Repeating


def test_a_repeat_beside_a_failed_step_is_held_and_the_run_fails():
    run = begun(repeating())
    polling = claim(run, "poll")
    fail(claim(run, "other"))
    assert perform(polling) == []
    assert fresh(run).status == "failed"
    assert ledger(run)["poll"] == "waiting"
    assert row(run, "poll").wake_at is None
    with clock() as moving:
        run.retry()
        drain()
        assert fresh(run).status == "running"
        moving.move(timedelta(minutes=6))
        drain()
    assert fresh(run).status == "succeeded"
    assert fresh(run).data["polled"] == 2


def test_a_worker_lost_beside_a_failed_step_leaves_its_step_held():
    from sequences.worker.sweeper import AssumeLost, sweep

    run = begun()
    claim(run, "left")
    fail(claim(run, "right"))
    overdue(run, "left")
    sweep(AssumeLost(), "default")
    assert fresh(run).status == "failed"
    assert (row(run, "left").status, row(run, "left").wake_at) == ("queued", None)
    run.retry()
    drain()
    assert fresh(run).status == "succeeded"
    assert Operation.objects.filter(run=run.pk).count() == 1


def test_a_delay_that_a_cancel_has_cut_short_begins_again_at_the_restart():
    class Delayed(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self): ...

        @step(after=[], delay=timedelta(days=1))
        def later(self): ...

    run = Delayed().run
    drain()
    run.cancel()
    run.restart_from("one")
    drain()
    assert ledger(run) == {"later": "waiting", "one": "succeeded"}


def test_an_edit_of_a_run_whose_class_is_gone_keeps_no_value_in_sight():
    run = chain()(secret="x", n=1).run
    SequenceRun.objects.filter(pk=run.pk).update(sequence="gone.Chain")
    run = fresh(run)
    run.edit({"n": 2})
    operation = Operation.objects.get(run=run)
    assert (operation.before, operation.after) == ({"n": "***", "secret": "***"}, {"n": "***"})
