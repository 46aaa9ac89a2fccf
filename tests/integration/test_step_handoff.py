"""A thread performs the next step at once, if it may; what it reads, and what it logs."""

import logging
from dataclasses import replace
from datetime import timedelta

import dramatiq
import pytest
from django.db import OperationalError, transaction
from django.utils import timezone
from dramatiq import Middleware
from dramatiq.broker import MessageProxy
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Shutdown, SkipMessage, TimeLimitExceeded

from sequences import (
    Abort,
    Sequence,
    repeat,
    signals,
    step,
)
from sequences.engine import current, dispatcher
from sequences.engine import handoff as handoff_module
from sequences.models import StepRun
from sequences.testing import assert_steps, clock, drain, run_sequence
from sequences.transitions.backends.postgresql import PostgreSQL
from sequences.worker.middleware import SequencesMiddleware
from sequences.worker.sweeper import AssumeLost, sweep
from tests.portable import is_portable
from tests.steps import chain, failures

pytestmark = pytest.mark.django_db


def on_fast(test):
    """Where the next step can be claimed by the commit's own statement."""
    fast = pytest.mark.skipif(is_portable(), reason="of the statements for PostgreSQL")
    return pytest.mark.only_on("postgresql")(fast(test))


# Handing over directly


@pytest.fixture
def worker_thread(broker):
    """This thread as a worker's: it processes a message, with the hooks of the broker."""

    def process(message):
        proxy = MessageProxy(message)
        broker.emit_before("process_message", proxy)
        broker.get_actor(message.actor_name)(*message.args)
        broker.emit_after("process_message", proxy, result=None)

    yield process
    assert current.delivery() is None


def first_message(sequence):
    row = sequence.run.steps.get()
    actor = f"{sequence.run.sequence}.{row.step}"
    queue = dramatiq.get_broker().actors[actor].queue_name
    return dispatcher.message_for(
        dispatcher.Dispatch(row.pk, row.run_id, actor, queue, row.attempts)
    )


@pytest.mark.django_db(transaction=True)
def test_direct_steps_are_performed_in_one_go_each_with_a_message_of_its_own(worker_thread):
    seen = []

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            seen.append(current.delivery().message.message_id)

        @step
        def two(self):
            seen.append(current.delivery().message.message_id)

        @step
        def three(self):
            seen.append(current.delivery().message.message_id)

    with dispatcher.capture_dispatches() as sent:
        sequence = Direct()
        del sent[:]
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded"), ("three", "succeeded")])
    assert len(set(seen)) == 3
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_a_step_that_follows_directly_is_held_by_the_same_worker(worker_thread):
    workers = []

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            workers.append(StepRun.objects.get(status="running").worker)

        @step
        def two(self):
            workers.append(StepRun.objects.get(status="running").worker)

    with dispatcher.capture_dispatches():
        worker_thread(first_message(Direct()))
    assert workers == [current.worker()] * 2


class Noting(Middleware):
    """A middleware that notes which hooks are called, for which actor."""

    def __init__(self):
        self.notes = []

    def before_process_message(self, broker, message):
        self.notes.append(("before", message.actor_name))

    def after_process_message(self, broker, message, *, result=None, exception=None):
        self.notes.append(("after", message.actor_name))


@pytest.fixture
def noting(broker):
    middleware = Noting()
    broker.add_middleware(middleware)
    yield middleware
    broker.middleware.remove(middleware)


@pytest.mark.django_db(transaction=True)
def test_a_middleware_has_its_hooks_called_for_a_direct_step_too(worker_thread, noting):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step
        def two(self):
            noting.notes.append(("runs", "two"))

    worker_thread(first_message(Direct()))
    one, two = "tests.Direct.one", "tests.Direct.two"
    assert noting.notes == [
        ("before", one),
        ("before", two),
        ("runs", "two"),
        ("after", two),
        ("after", one),
    ]


@pytest.mark.django_db(transaction=True)
def test_a_hook_that_fails_is_logged_and_the_direct_step_runs_all_the_same(
    worker_thread, noting, monkeypatch, caplog
):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            for name in ("before_process_message", "after_process_message"):
                monkeypatch.setattr(Noting, name, fail)

        @step
        def two(self): ...

    def fail(self, broker, message, **outcome):
        raise ValueError("a hook")

    broker = dramatiq.get_broker()
    broker.middleware.append(Noting())  # which is there from now on: no hook was looked up before
    try:
        sequence = Direct()
        worker_thread(first_message(sequence))
    finally:
        broker.middleware.pop()
    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert [record.message for record in caplog.records if "Unexpected" in record.message]


@pytest.mark.django_db(transaction=True)
def test_a_direct_step_is_no_evidence_of_what_its_queue_has_given(worker_thread, broker):
    (ours,) = [each for each in broker.middleware if isinstance(each, SequencesMiddleware)]
    began = []

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            began.append(dict(ours._monitor._newest))

        @step
        def two(self):
            began.append(dict(ours._monitor._newest))

    message = first_message(Direct())
    worker_thread(replace(message, message_timestamp=message.message_timestamp - 5000))
    assert began[0] == began[1] == ours._monitor._newest
    assert set(ours._monitor._in_hand.values()) == {0}


@pytest.mark.django_db(transaction=True)
def test_a_direct_step_that_fails_makes_its_queue_no_emptier(worker_thread, broker):
    (ours,) = [each for each in broker.middleware if isinstance(each, SequencesMiddleware)]

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(max_retries=0)
        def two(self):
            raise ValueError("no")

    sequence = Direct()
    before = dict(ours._monitor._in_hand)
    worker_thread(first_message(sequence))
    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    after = ours._monitor._in_hand
    assert {queue: after[queue] for queue in before} == before
    assert after["default"] == before.get("default", 0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "options", [{"queue_name": "other"}, {"delay": timedelta(days=1)}], ids=["queue", "delay"]
)
def test_a_step_of_another_queue_or_with_a_delay_is_not_performed_in_the_same_go(
    worker_thread, options
):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(**options)
        def two(self):
            raise AssertionError

    sequence = Direct()
    with dispatcher.capture_dispatches():
        worker_thread(first_message(sequence))

    status = "waiting" if "delay" in options else "queued"
    assert_steps(sequence, [("one", "succeeded"), ("two", status)])


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_shuts_down_hands_over_by_the_broker(worker_thread, monkeypatch):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            current.stopping.set()

        @step
        def two(self):
            raise AssertionError

    sequence = Direct()
    try:
        with dispatcher.capture_dispatches() as sent:
            worker_thread(first_message(sequence))
    finally:
        current.stopping.clear()

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Direct.two"]


@pytest.mark.django_db(transaction=True)
def test_a_thread_gives_others_their_turn_after_a_while(worker_thread, monkeypatch):
    monkeypatch.setattr(handoff_module, "MAX_TURN_SECONDS", -1.0)

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step
        def two(self): ...

    sequence = Direct()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Direct.two"]


@pytest.mark.django_db(transaction=True)
def test_of_parallel_steps_one_goes_on_directly_and_the_others_are_dispatched(worker_thread):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(after=one)
        def left(self): ...

        @step(after=one)
        def right(self): ...

        @step
        def join(self): ...

    sequence = Direct()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("left", "succeeded"), ("right", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Direct.right"]


@pytest.mark.django_db(transaction=True)
def test_a_direct_step_that_fails_is_retried_by_a_message_and_does_not_fail_its_predecessor(
    worker_thread, broker, caplog
):
    caplog.set_level(logging.ERROR)

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(max_retries=3, min_backoff=1000)
        def two(self):
            raise ValueError("not yet")

    with dispatcher.capture_dispatches():
        sequence = Direct()
    worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "retrying")])
    assert failures(sequence) == [("two", 1, "ValueError", "not yet")]
    retry = broker.queues["default.DQ"].get_nowait()
    assert b"tests.Direct.two" in retry


@pytest.mark.django_db(transaction=True)
def test_without_direct_handoff_the_next_step_goes_through_the_broker(worker_thread):
    class Plain(Sequence):
        @step
        def one(self): ...

        @step
        def two(self): ...

    sequence = Plain()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Plain.two"]


# Routers


class NoReads:
    """A router that sends reads to a replica, which is not there."""

    def db_for_read(self, model, **hints):
        raise AssertionError(f"{model} is read by the router's choice")


@pytest.mark.parametrize("atomic", [False, True])
def test_nothing_is_read_from_where_the_router_sends_reads(settings, atomic):
    class Reads(Sequence):
        Meta = type("Meta", (), {"atomic": atomic})

        @step(delay=timedelta(days=1))
        def one(self):
            self.data["n"] += 1
            return repeat() if self.data["n"] < 2 else "one"

        @step(after=one, max_retries=1)
        def left(self):
            self.data["left"] = self.result("one")
            if self.attempt == 1:
                raise ValueError

        @step(after=one)
        def right(self):
            self.data["right"] = list(self.results("one"))

        @step
        def join(self):
            if self.data["n"] < 3:
                raise Abort("mend me")

    settings.DATABASE_ROUTERS = [NoReads()]
    sequence = run_sequence(Reads, n=0)
    row = sequence.run
    assert (row.status, row.data["n"]) == ("failed", 2)
    row.edit({**row.data, "n": 3})
    row.retry()
    drain()
    again = Reads.start({"n": 0}, key="a")
    assert Reads.start({"n": 0}, key="a").run.pk == again.run.pk
    (many,) = Reads.start_many([({"n": 0}, {"key": "a"})])
    assert not many.created
    again.run.cancel()

    settings.DATABASE_ROUTERS = []
    row.refresh_from_db()
    assert row.status == "succeeded"
    assert row.data == {"n": 3, "left": "one", "right": ["one"]}


class Expected(Exception):
    pass


def _after_another(error, **options):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(max_retries=1, min_backoff=1, max_backoff=1, **options)
        def two(self):
            raise error

    return Direct


def _directly(sequence, worker_thread):
    worker_thread(first_message(sequence))


def _by_a_timer(sequence, worker_thread):
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))
    sequence.run.steps.filter(step="two").update(due_at=timezone.now())
    handoff_module.perform_here(replace(sent[-1], delay=None), "tests.Direct", "default")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("handed_over", [_directly, _by_a_timer])
@pytest.mark.parametrize(
    ("error", "options", "level"),
    [
        (Expected(), {"throws": Expected}, "INFO"),
        (Expected(), {"throws": (KeyError, Expected)}, "INFO"),
        (Abort("no"), {}, "INFO"),
        (Retry("later", delay=1), {}, "DEBUG"),
        (RateLimitExceeded("full"), {}, "DEBUG"),
        (Expected(), {}, "ERROR"),
    ],
    ids=["throws", "one of throws", "abort", "retry", "rate limit", "unexpected"],
)
def test_what_is_expected_is_logged_as_dramatiqs_worker_does(
    worker_thread, caplog, handed_over, error, options, level
):
    caplog.set_level(logging.DEBUG)
    delay = {"delay": 60_000} if handed_over is _by_a_timer else {}
    handed_over(_after_another(error, **options, **delay)(), worker_thread)
    told = [one for one in caplog.records if one.name == "sequences" and "Step run" in one.msg]
    assert [one.levelname for one in told] == [level]
    assert bool(told[0].exc_info) == (level == "ERROR")


@pytest.mark.django_db(transaction=True)
def test_a_step_that_is_not_to_be_had_any_more_is_logged_at_most_as_debug(worker_thread, caplog):
    caplog.set_level(logging.DEBUG)
    sequence = _after_another(Expected())()
    gone = dispatcher.Dispatch(10**9, sequence.run.pk, "tests.Direct.two", "default")
    handoff_module.perform_here(gone, "tests.Direct", "default")
    assert {one.levelname for one in caplog.records if one.name == "sequences"} == {"DEBUG"}


# The next step is claimed in the commit of the one before it


@pytest.fixture
def direct():
    return chain("direct")


def statuses(sequence):
    return dict(sequence.run.steps.order_by("pk").values_list("step", "status"))


@on_fast
@pytest.mark.django_db(transaction=True)
def test_a_commit_that_is_not_known_to_be_one_gives_back_what_it_has_claimed(
    direct, worker_thread, monkeypatch
):
    fast = PostgreSQL.fast
    commit = fast.commit_and_claim

    def commit_and_break(*arguments):
        assert commit(*arguments) is not None
        raise OperationalError("the connection is gone")

    monkeypatch.setattr(fast, "commit_and_claim", commit_and_break)
    sequence = direct()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))
    # By then it is released, so that it is claimed again, here and at once.
    assert statuses(sequence) == {"one": "succeeded", "two": "succeeded"}
    assert sequence.run.steps.get(step="two").lost_workers == 0
    assert sent == []


@on_fast
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", [Shutdown, TimeLimitExceeded])
def test_an_interrupt_between_two_steps_gives_back_what_is_claimed(
    direct, worker_thread, monkeypatch, kind
):
    def strike(self, ready):
        raise kind

    monkeypatch.setattr(handoff_module.Handoff, "choose", strike)
    sequence = direct()
    with dispatcher.capture_dispatches() as sent:
        del sent[:]
        worker_thread(first_message(sequence))
    assert statuses(sequence) == {"one": "succeeded", "two": "queued"}
    assert [dispatch.actor for dispatch in sent] == ["shop.Chain.two"]
    two = sequence.run.steps.get(step="two")
    assert (two.attempts, two.lost_workers) == (0, 0)
    drain()
    assert statuses(sequence) == {"one": "succeeded", "two": "succeeded"}


@on_fast
@pytest.mark.django_db(transaction=True)
def test_a_middleware_that_skips_the_next_step_leaves_it_to_the_sweep(
    direct, worker_thread, broker
):
    class Skipper(Middleware):
        def before_process_message(self, broker, message):
            if message.actor_name.endswith(".two"):
                raise SkipMessage

    skipper = Skipper()
    broker.add_middleware(skipper)
    sequence = direct()
    try:
        with dispatcher.capture_dispatches():
            worker_thread(first_message(sequence))
    finally:
        broker.middleware.remove(skipper)
    assert statuses(sequence) == {"one": "succeeded", "two": "queued"}
    assert sequence.run.steps.get(step="two").wake_at is not None


@on_fast
@pytest.mark.django_db(transaction=True)
def test_who_dies_between_two_steps_leaves_a_lease_that_the_sweep_knows(
    direct, worker_thread, monkeypatch
):
    class Death(BaseException):
        pass

    def die(self, dispatch):
        raise Death

    monkeypatch.setattr(handoff_module.Handoff, "execute", die)
    sequence = direct()
    message = MessageProxy(first_message(sequence))
    current.push_delivery(message)
    try:
        with pytest.raises(Death), dispatcher.capture_dispatches():
            dramatiq.get_broker().get_actor(message.actor_name)(*message.args)
    finally:
        current.pop_delivery(message)
    assert statuses(sequence) == {"one": "succeeded", "two": "running"}
    monkeypatch.undo()
    with dispatcher.capture_dispatches() as sent, clock() as moving:
        moving.move(timedelta(seconds=20))
        assert sweep(AssumeLost(), "default") == 1
    assert [dispatch.actor for dispatch in sent] == ["shop.Chain.two"]
    assert sequence.run.steps.get(step="two").lost_workers == 1


@on_fast
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("between", ["hook", "receiver", "pause"])
def test_the_next_step_is_not_claimed_while_something_else_is_still_to_happen(
    worker_thread, between
):
    seen = []

    def look(**kwargs):
        seen.append(dict(StepRun.objects.order_by("pk").values_list("step", "status")))

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            if between == "hook":
                StepRun.objects.count()
                transaction.on_commit(look)
            elif between == "pause":
                self.run.pause()

        @step
        def two(self): ...

    sequence = Direct()
    if between == "receiver":
        signals.step_succeeded.connect(look)
    try:
        with dispatcher.capture_dispatches():
            worker_thread(first_message(sequence))
    finally:
        signals.step_succeeded.disconnect(look)
    if between == "pause":
        assert statuses(sequence) == {"one": "succeeded", "two": "queued"}
        assert sequence.run.steps.get(step="two").wake_at is None
    else:
        assert seen[0] == {"one": "succeeded", "two": "queued"}
        assert statuses(sequence) == {"one": "succeeded", "two": "succeeded"}
