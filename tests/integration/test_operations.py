import json
import uuid
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model

from sequences import Abort, Sequence, event, repeat, step, subsequence
from sequences.exceptions import InvalidData, InvalidTransition, UnknownStep
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
    take,
)

pytestmark = pytest.mark.django_db


def chain():
    class Chain(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("card.*", "secret")

        @step
        def one(self):
            self.data["done"] = [*self.data.get("done", []), "one"]

        @step(aliases=["former_two"])
        def two(self):
            self.data["done"] = [*self.data["done"], "two"]
            return {"paid": 1}

    return Chain


def branches():
    """Three branches side by side, and a join."""

    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self):
            pass

        @step(after=first)
        def left(self):
            self.data["left"] = 1

        @step(after=first)
        def right(self):
            self.data["right"] = 1

        @step(after=first)
        def middle(self):
            self.data["middle"] = 1

        @step
        def join(self):
            self.data["joined"] = sorted(self.data)

    return Branches


def begun(cls=None, **data):
    """A run of branches whose first step has succeeded."""
    run = (cls or branches()).start(data).run
    perform(claim(run, "first"))
    return run


def run_in(status):
    """A run of the chain in this state; its first step has failed if the run has."""
    run = chain().start({"n": 1}).run
    if status == "paused":
        run.pause()
    elif status == "succeeded":
        drain()
    elif status == "failed":
        fail(claim(run, "one"))
    elif status == "cancelled":
        run.cancel()
    elif status == "undoing":
        SequenceRun.objects.filter(pk=run.pk).update(status="undoing")
    run = fresh(run)
    assert run.status == status
    return run


def call(run, action):
    arguments = {"skip": ["one"], "restart_from": ["one"], "edit": [{"n": 2}]}
    getattr(run, action)(*arguments.get(action, []))


STATES = [str(status) for status in RunStatus]
ALLOWED = {
    "pause": ["running"],
    "resume": ["paused"],
    "cancel": ["running", "paused", "undoing"],
    "finish": ["running", "paused"],
    "retry": ["failed"],
    "skip": ["running", "paused", "failed"],
    "erase": ["succeeded", "failed", "cancelled"],
    "edit": STATES,
    "restart_from": ["running", "paused", "succeeded", "failed", "cancelled"],
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
    assert str(caught.value).startswith(f"Cannot {action} run {run.pk}: {expected}")
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


# --- pause and resume


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


def delayed():
    class Delayed(Sequence):
        class Meta:
            app_label = "shop"

        @step(delay=timedelta(hours=2))
        def later(self):
            self.data["later"] = 1

    return Delayed


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


# --- cancel and finish


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
    with pytest.raises(Exception, match="was taken away while it ran"):
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


# --- retry


def test_retry_begins_a_failed_step_again_with_all_its_attempts():
    run = run_in("running")
    fail(claim(run, "one"), final=False)
    fail(claim(run, "one"))
    assert fresh(run).status == "failed"
    message = sent(run.retry)
    assert steps_of(message) == ["one"]
    assert message[0].attempts == 0
    again = row(run, "one")
    assert (again.status, again.attempts, again.lost, again.finished_at) == ("queued", 0, 0, None)
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


# --- skip


def test_skip_goes_on_without_a_step_that_has_not_begun():
    run = run_in("running")
    assert steps_of(sent(lambda: run.skip("one"))) == ["two"]
    assert ledger(run) == {"one": "skipped", "two": "queued"}
    assert fresh(run).data == {"n": 1}


def test_skip_of_the_last_step_succeeds_the_run():
    run = run_in("running")
    perform(claim(run, "one"))
    run.skip("two")
    assert (run.status, ledger(run)) == ("succeeded", {"one": "succeeded", "two": "skipped"})


@pytest.mark.parametrize("state", ["waiting", "retrying", "failed"])
def test_skip_goes_on_without_a_step_that_is(state):
    run = run_in("running")
    if state == "waiting":
        change(run, "one", status="waiting", due_at=now() + timedelta(days=1))
    else:
        fail(claim(run, "one"), final=state == "failed")
    run.skip("one")
    assert ledger(run) == {"one": "skipped", "two": "queued"}
    assert "done" not in fresh(run).data
    assert fresh(run).status == "running"


def test_skip_refuses_a_step_that_is_running_or_done_or_not_begun():
    run = run_in("running")
    with pytest.raises(InvalidTransition) as not_begun:
        run.skip("two")
    assert str(not_begun.value) == (
        f"Cannot skip step 'two' of run {run.pk}: its status is not started. Allowed: failed, "
        "waiting, queued or retrying."
    )
    held = claim(run, "one")
    with pytest.raises(InvalidTransition, match="its status is running"):
        run.skip("one")
    perform(held)
    with pytest.raises(InvalidTransition, match="its status is succeeded"):
        run.skip("one")
    assert not run.operations.exists()


def test_skip_of_one_of_several_failed_steps_leaves_the_run_failed():
    run = begun()
    left, right = claim(run, "left"), claim(run, "right")
    fail(left)
    fail(right)
    assert fresh(run).status == "failed"
    assert sent(lambda: run.skip("left")) == []
    assert run.status == "failed"
    assert row(run, "middle").wake_at is None
    assert steps_of(sent(lambda: run.skip("right"))) == ["middle"]
    assert run.status == "running"
    assert run.finished_at is None
    perform(claim(run, "middle"))
    assert ledger(run)["join"] == "queued"


# --- restart_from


def test_restart_from_does_again_the_step_and_all_that_comes_after_it():
    run = run_in("succeeded")
    first = row(run, "one").pk
    assert steps_of(sent(lambda: run.restart_from("two"))) == ["two"]
    assert run.status == "running"
    assert run.finished_at is None
    assert row(run, "one").pk == first
    assert run.data["done"] == ["one", "two"]
    drain()
    assert fresh(run).data["done"] == ["one", "two", "two"]
    run.restart_from("one")
    assert ledger(run) == {"one": "queued"}
    drain()
    assert fresh(run).status == "succeeded"
    assert fresh(run).data["done"] == ["one", "two", "two", "one", "two"]


def test_restart_from_keeps_the_siblings_and_the_failures():
    run = begun()
    fail(claim(run, "left"), final=False)
    perform(claim(run, "left"))
    perform(claim(run, "right"))
    perform(claim(run, "middle"))
    drain()
    assert fresh(run).status == "succeeded"
    kept = {name: row(run, name).pk for name in ("first", "right", "middle")}
    run.restart_from("left")
    assert {name: row(run, name).pk for name in kept} == kept
    assert ledger(run) == {
        "first": "succeeded",
        "right": "succeeded",
        "middle": "succeeded",
        "left": "queued",
    }
    failure = run.failures.get()
    assert (failure.step, failure.attempt, failure.step_run) == ("left", 1, None)
    drain()
    assert fresh(run).status == "succeeded"


def test_a_running_step_that_is_restarted_loses_its_commit():
    run = run_in("running")
    held = claim(run, "one")
    run.restart_from("one")
    with pytest.raises(Exception, match="was taken away while it ran"):
        perform(held)
    assert "done" not in fresh(run).data
    drain()
    assert fresh(run).data["done"] == ["one", "two"]


def test_restart_from_of_a_cancelled_run_takes_its_cancelled_siblings_along():
    run = begun()
    perform(claim(run, "left"))
    run.cancel()
    dispatched = steps_of(sent(lambda: run.restart_from("left")))
    assert sorted(dispatched) == ["left", "middle", "right"]
    drain()
    assert fresh(run).status == "succeeded"


def test_restart_from_is_refused_beside_another_failed_step():
    run = begun()
    perform(claim(run, "left"))
    fail(claim(run, "right"))
    before = ledger(run)
    with pytest.raises(
        InvalidTransition, match=r"another step has failed\. Retry or skip that step first"
    ):
        run.restart_from("left")
    assert ledger(run) == before
    run.restart_from("right")
    assert run.status == "running"


def test_restart_from_a_step_that_has_not_begun_is_refused():
    run = run_in("running")
    with pytest.raises(InvalidTransition, match="it has not started"):
        run.restart_from("two")


def test_restart_from_of_a_paused_run_is_held_until_the_resume():
    run = run_in("running")
    perform(claim(run, "one"))
    run.pause()
    assert sent(lambda: run.restart_from("one")) == []
    assert ledger(run) == {"one": "queued"}
    assert row(run, "one").wake_at is None
    assert steps_of(sent(run.resume)) == ["one"]


def test_a_step_that_is_restarted_has_another_idempotency_key():
    keys = []

    class Keys(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self):
            keys.append(self.idempotency_key)

    run = Keys.start().run
    drain()
    run.restart_from("pay")
    drain()
    assert len(set(keys)) == 2


# --- run_now


def delayed_root():
    """A step with a delay of its own, and one that comes after it."""

    class Late(Sequence):
        class Meta:
            app_label = "shop"

        @step(delay=timedelta(days=3))
        def remind(self):
            self.data["delayed"] = self.step_run.delayed

        @step(delay=timedelta(seconds=30))
        def soon(self):
            self.data["soon"] = True

    return Late


def test_run_now_ends_a_delay_which_is_not_waited_for_again():
    run = delayed_root().start().run
    drain()
    assert row(run, "remind").status == "waiting"
    (message,) = sent(lambda: run.run_now("remind", by="ada", reason="she is here"))
    assert (message.delay, message.attempts) == (None, 0)
    assert row(run, "remind").status == "queued"
    operation = run.operations.get()
    assert (operation.action, operation.step, operation.by, operation.reason) == (
        "run_now", "remind", "ada", "she is here",
    )  # fmt: skip
    assert perform(claim(run, "remind")) != []
    assert fresh(run).data == {"delayed": True}


def test_after_a_delayed_start_run_now_begins_the_steps_own_delay():
    run = delayed_root().start({}, delay=timedelta(days=9)).run
    assert steps_of(sent(lambda: run.run_now("remind"))) == ["remind"]
    began = row(run, "remind").due_at
    drain()
    waiting = row(run, "remind")
    assert (waiting.status, waiting.due_at - began) == ("waiting", timedelta(days=3))
    run.run_now("remind")
    drain()
    assert ledger(run) == {"remind": "succeeded", "soon": "waiting"}


def test_run_now_does_not_wait_for_the_backoff_and_keeps_the_count_of_attempts():
    run = run_in("running")
    fail(claim(run, "one"), final=False)
    change(run, "one", due_at=now() + timedelta(hours=1), wake_at=now() + timedelta(hours=1))
    (message,) = sent(lambda: run.run_now("one"))
    assert (message.attempts, message.delay) == (1, None)
    again = claim(run, "one")
    assert again.attempts == 1
    assert again.due_at <= now()


def test_the_message_that_was_sent_with_the_delay_takes_nothing_after_run_now():
    class Polls(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def poll(self):
            self.data["polls"] = self.data.get("polls", 0) + 1
            return repeat(after=timedelta(seconds=30))

    run = Polls.start().run
    (late,) = perform(claim(run, "poll"))
    assert late.delay is not None
    run.run_now("poll")
    perform(claim(run, "poll"))
    assert take(late.step_run_id, late.attempts) is None
    assert fresh(run).data == {"polls": 2}
    assert row(run, "poll").status == "waiting"


def test_the_message_of_a_retry_that_was_run_now_takes_nothing_when_it_comes():
    run = run_in("running")
    fail(claim(run, "one"), final=False)
    late = row(run, "one")
    run.run_now("one")
    fail(claim(run, "one"), final=False)
    assert take(late.pk, late.attempts) is None
    assert row(run, "one").attempts == 2


def test_run_now_of_a_fan_out_takes_every_item_that_waits_for_a_time():
    class Pages(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="pages", concurrency=3)
        def fetch(self, page):
            return page

    run = Pages.start({"pages": list("abcde")}).run
    perform(claim(run, "fetch"))
    items = StepRun.objects.filter(run=run.pk, item__gte=0)
    later = now() + timedelta(hours=1)
    items.filter(item=0).update(status="retrying", attempts=2, due_at=later, wake_at=later)
    items.filter(item=1).update(status="waiting", wait="time", due_at=later, wake_at=later)
    messages = sent(lambda: run.run_now("fetch"))
    assert [message.attempts for message in messages] == [2, 0]
    states = items.order_by("item").values_list("status", flat=True)
    assert list(states) == ["queued", "queued", "queued", "waiting", "waiting"]
    drain()
    assert fresh(run).status == "succeeded"


def test_run_now_of_an_undo_that_is_retrying_goes_on_with_the_undoing():
    class Trip(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def book(self): ...

        @book.undo
        def give_back(self): ...

        @step
        def pay(self):
            raise Abort("no")

    run = Trip.start().run
    perform(claim(run, "book"))
    with pytest.raises(Abort):
        perform(claim(run, "pay"))
    fail(claim(run, "give_back"), final=False)
    change(run, "give_back", due_at=now() + timedelta(hours=1))
    assert fresh(run).status == "undoing"
    assert steps_of(sent(lambda: run.run_now("give_back"))) == ["give_back"]
    drain()
    assert fresh(run).status == "failed"
    assert row(run, "give_back").status == "succeeded"


def test_run_now_refuses_what_waits_for_no_time():
    class Approved(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(timeout=timedelta(days=3))

        @step(each="pages")
        def fetch(self, page): ...

        @step
        def last(self): ...

    run = Approved.start({"pages": [1]}).run
    for status in ("queued", "waiting"):
        with pytest.raises(InvalidTransition) as caught:
            run.run_now("approval")
        assert str(caught.value) == (
            f"Cannot run_now step 'approval' of run {run.pk}: it is not waiting for a delay or a "
            "retry."
        )
        if status == "queued":
            perform(claim(run, "approval"))
    run.deliver("approval")
    perform(claim(run, "approval"))
    perform(claim(run, "fetch"))
    with pytest.raises(InvalidTransition, match="it is not waiting for a delay or a retry"):
        run.run_now("fetch")
    with pytest.raises(InvalidTransition, match="it is not waiting for a delay or a retry"):
        run.run_now("last")
    with pytest.raises(UnknownStep):
        run.run_now("lost")
    assert [one.action for one in run.operations.all()] == ["deliver"]


def test_run_now_in_a_paused_run_says_to_resume_it_first():
    run = delayed().start().run
    drain()
    run.pause()
    with pytest.raises(InvalidTransition, match=r"it is paused\. Resume it first\."):
        run.run_now("later")
    assert row(run, "later").wake_at is None


def test_run_now_beside_a_failed_step_says_what_holds_it():
    run = begun()
    change(run, "middle", status="waiting", wait="time", due_at=now() + timedelta(hours=1))
    held = claim(run, "left")
    fail(claim(run, "right"))
    assert fresh(run).status == "running"
    with pytest.raises(
        InvalidTransition, match=r"on hold because another step failed\. Retry or skip"
    ):
        run.run_now("middle")
    fail(held, final=False)
    assert steps_of(sent(lambda: run.run_now("left"))) == ["left"]


def test_run_now_of_a_finished_run_is_refused():
    run = run_in("failed")
    with pytest.raises(
        InvalidTransition, match=r"its status is failed\. Allowed: running or undoing\.$"
    ):
        run.run_now("one")


def test_run_now_has_an_async_twin():
    run = delayed().start().run
    drain()
    async_to_sync(run.arun_now)("later", by="i")
    assert (ledger(run), run.operations.get().by) == ({"later": "queued"}, "i")


# --- names of steps


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


# --- keys


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
        f"Cannot {action} run {run.pk}: run {other.run.pk} holds its key 'a' now. Finish or "
        "cancel it first."
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


# --- edit


def test_an_edit_replaces_the_data_and_keeps_both_without_secrets():
    run = chain().start({"n": 1, "secret": "x", "card": {"number": "4711"}}).run
    run.edit({"n": 2, "secret": "y", "card": {"number": "0815"}}, by="ada", reason="a typo")
    assert fresh(run).data == {"n": 2, "secret": "y", "card": {"number": "0815"}}
    operation = run.operations.get()
    assert operation.before == {"n": 1, "secret": "***", "card": {"number": "***"}}
    assert operation.after == {"n": 2, "secret": "***", "card": {"number": "***"}}
    assert (operation.by, operation.reason) == ("ada", "a typo")


def test_an_edit_in_place_records_what_was_stored_before():
    run = run_in("running")
    run.data["n"] = 2
    run.edit(run.data)
    operation = run.operations.get()
    assert (operation.before, operation.after) == ({"n": 1}, {"n": 2})


def test_an_edit_is_seen_by_the_next_step():
    run = run_in("running")
    run.edit({"done": ["zero"]})
    drain()
    assert fresh(run).data == {"done": ["zero", "one", "two"]}


def test_an_edit_is_refused_while_a_step_is_running():
    run = run_in("running")
    claim(run, "one")
    with pytest.raises(InvalidTransition, match="a step is running"):
        run.edit({})
    assert fresh(run).data == {"n": 1}


def test_an_edit_of_a_run_that_has_changed_since_is_refused():
    run = run_in("running")
    perform(claim(run, "one"))
    with pytest.raises(InvalidTransition) as caught:
        run.edit({})
    assert str(caught.value) == (
        f"Cannot edit run {run.pk}: it has changed since it was read (version 0, now 1). Call "
        "refresh_from_db() and edit again."
    )
    run.refresh_from_db()
    run.edit({"n": 3})
    assert fresh(run).data == {"n": 3}


@pytest.mark.parametrize("data", [None, [1], "x"])
def test_only_a_dict_takes_the_place_of_data(data):
    run = run_in("running")
    with pytest.raises(InvalidData, match=f"data is a {type(data).__name__}, not a dict"):
        run.edit(data)


def test_an_edit_with_what_cannot_be_stored_names_the_path():
    run = run_in("running")
    with pytest.raises(InvalidData, match=r'data\["who"\]'):
        run.edit({"who": {1, 2}})
    assert fresh(run).data == {"n": 1}
    assert not run.operations.exists()


# --- erase


def test_erase_blanks_all_that_a_run_has_stored_of_its_data():
    run = run_in("running")
    fail(claim(run, "one"), final=False, error=ValueError("4711 is no card"))
    run.refresh_from_db()
    run.edit({"card": {"number": "4711"}, "holder": "Ada"})
    drain()
    assert row(run, "two").result == {"paid": 1}
    run.refresh_from_db()
    run.erase(by="ada")
    stored = fresh(run)
    assert (stored.status, stored.data, stored.inbox) == ("succeeded", {}, {})
    assert row(run, "two").result is None
    failure = stored.failures.get()
    assert (failure.error, failure.message, failure.traceback) == ("ValueError", "", "")
    assert list(stored.operations.values_list("action", "before", "after")) == [
        ("edit", None, None),
        ("erase", None, None),
    ]
    assert ledger(run) == {"one": "succeeded", "two": "succeeded"}


def family():
    """A sequence whose child has a child, each with data and a reason of its own."""

    class Inner(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self):
            self.data["inner"] = "Ada"
            return "Ada"

    class Outer(Sequence):
        class Meta:
            app_label = "shop"

        inner = subsequence(Inner, data=lambda self: {"name": "Ada"})

    class Family(Sequence):
        class Meta:
            app_label = "shop"

        outer = subsequence(Outer, data=lambda self: {"name": "Ada"})

        @step(after=[], max_retries=0)
        def beside(self):
            raise ValueError("Ada")

    return Family


def everything():
    """All that is stored of any run, as text."""
    models = (SequenceRun, StepRun, StepFailure, Operation)
    return json.dumps([list(model.objects.values()) for model in models], default=str)


@pytest.mark.parametrize("keep_key", [False, True])
def test_erase_leaves_nothing_in_children_keys_and_reasons(keep_key):
    run = family().start({"name": "Ada"}, key="Ada", unique="ever").run
    drain()
    for one in SequenceRun.objects.all():
        one.edit({**one.data, "more": "Ada"}, by="joan", reason="Ada has called")
    fresh(run).erase(keep_key=keep_key, by="joan", reason="she has asked for it")
    assert SequenceRun.objects.count() == 3
    assert everything().count("Ada") == (2 if keep_key else 0)
    assert fresh(run).key == ("Ada" if keep_key else None)
    last = fresh(run).operations.last()
    assert (last.by, last.reason) == ("joan", "she has asked for it")
    below = Operation.objects.exclude(run=run.pk).filter(action=last.action)
    assert set(below.values_list("by", "reason")) == {("joan", f"with its parent run {run.pk}")}
    again = family().start({}, key="Ada", unique="ever").run
    assert (again.pk == run.pk) == keep_key


def test_nothing_is_erased_while_a_run_below_has_not_ended():
    run = family().start({"name": "Ada"}).run
    perform(claim(run, "outer"))
    fail(claim(run, "beside"), error=ValueError("Ada"))
    assert fresh(run).status == "failed"
    before = everything()
    with pytest.raises(InvalidTransition, match="has not finished \\(status running\\)"):
        fresh(run).erase()
    assert everything() == before
    child = SequenceRun.objects.get(parent__run=run.pk)
    child.cancel()
    fresh(run).erase()
    assert "Ada" not in everything()


# --- beside a failed step


def repeating():
    from sequences import repeat

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
