"""Operations on one step: skip, restart from it, run it now."""

from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync

from sequences import Abort, Sequence, event, repeat, step
from sequences.exceptions import InvalidTransition, UnknownStep
from sequences.models import StepRun
from sequences.testing import drain
from tests.engine import (
    change,
    claim,
    fail,
    fresh,
    ledger,
    now,
    perform,
    row,
    sent,
    steps_of,
    take,
)
from tests.operations import begun, delayed, run_in

pytestmark = pytest.mark.django_db


# skip


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


# restart_from


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
    with pytest.raises(Exception, match="lost its claim while it was running"):
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


# run_now


def delayed_root():
    """A step with a delay of its own, and one that comes after it."""

    class Late(Sequence):
        class Meta:
            app_label = "shop"

        @step(delay=timedelta(days=3))
        def remind(self):
            self.data["delayed"] = self.step_run.delay_evaluated

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
            f"Cannot run step 'approval' of run {run.pk}: it is not waiting for a delay or a retry."
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
