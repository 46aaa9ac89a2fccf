"""The hooks, called by Dramatiq's own emitters as its worker does, without a worker's threads."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dramatiq
import pytest
from django.test import override_settings
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import Retry
from dramatiq.middleware import AgeLimit, Retries, SkipMessage, TimeLimit

from sequences import Sequence, job, start_definition, step
from sequences.engine import current
from sequences.worker import middleware
from sequences.worker.middleware import SequencesMiddleware
from sequences.worker.queue_monitor import QueueMonitor
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import change, claim, fail, fresh, ledger, messages, now, overdue, row

pytestmark = pytest.mark.django_db(transaction=True)


def broken(error=ValueError, **options):
    """A sequence whose only step raises."""

    class Broken(Sequence):
        class Meta:
            app_label = "shop"

        @step(**options)
        def fails(self):
            raise error

    return Broken


def deliver(message, stall=lambda: None):
    """Process one message as a worker's thread does, which may stall before its last hooks."""
    broker = dramatiq.get_broker()
    proxy = dramatiq.MessageProxy(message)
    try:
        broker.emit_before("process_message", proxy)
        result = broker.get_actor(message.actor_name)(*message.args, **message.kwargs)
        broker.emit_after("process_message", proxy, result=result)
    except SkipMessage:
        broker.emit_after("skip_message", proxy)
    except BaseException as error:
        proxy.stuff_exception(error)
        stall()
        broker.emit_after("process_message", proxy, exception=error)
    return proxy


def deliver_next(queue="default"):
    """Take the next message from the queue, as if it were due."""
    broker = dramatiq.get_broker()
    message = dramatiq.Message.decode(broker.queues[queue].get_nowait())
    return deliver(message.copy(queue_name="default"))


def start(cls):
    return cls.start().run


# --- retries


class Declined(Exception):
    pass


def test_a_late_verdict_is_not_about_the_attempts_that_a_person_has_begun_meanwhile():
    errors = iter([Declined, ValueError, Declined])

    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step(throws=Declined, max_retries=3, min_backoff=600_000, max_backoff=600_000)
        def charge(self):
            raise next(errors)

    run = start(Order)
    broker = dramatiq.get_broker()
    first = dramatiq.Message.decode(broker.queues["default"].get_nowait())

    def a_person_retries():
        fresh(run).retry()
        deliver_next()

    assert deliver(first, a_person_retries).failed, "Dramatiq gives the first attempt up"
    found = row(run, "charge")
    assert (found.status, found.attempts, fresh(run).status) == ("retrying", 1, "running")
    assert found.due_at > now() + timedelta(minutes=3), "nor is its time another one's"
    deliver(messages("default.DQ")[0].copy(queue_name="default"))
    assert fresh(run).status == "failed", "its own verdict counts"


def test_a_retry_is_due_when_the_broker_delivers_it():
    run = start(broken(min_backoff=600_000, max_backoff=600_000))
    deliver_next()
    (retry,) = messages("default.DQ")
    found = row(run, "fails")
    assert (found.status, found.attempts) == ("retrying", 1)
    assert found.due_at > now() + timedelta(minutes=3)
    eta = datetime.fromtimestamp(retry.options["eta"] / 1000, UTC)
    assert abs(found.due_at - eta) < timedelta(minutes=1)
    assert found.wake_at == found.due_at + timedelta(seconds=15)
    assert retry.options["retries"] == 1


def test_a_step_may_say_itself_when_its_retry_is_due():
    run = start(broken(Retry("later", delay=3_600_000)))
    deliver_next()
    left = row(run, "fails").due_at - now()
    assert timedelta(minutes=58) < left <= timedelta(hours=1)


def test_the_retrys_message_takes_the_step_and_the_first_one_does_not_any_more():
    run = start(broken(min_backoff=1, max_backoff=1))
    (first,) = messages()
    deliver_next()
    assert not deliver(first).failed
    assert row(run, "fails").attempts == 1
    deliver_next("default.DQ")
    assert row(run, "fails").attempts == 2


def test_a_step_is_given_up_after_its_retries():
    run = start(broken(max_retries=2, min_backoff=1, max_backoff=1))
    deliver_next()
    deliver_next("default.DQ")
    assert fresh(run).status == "running"
    assert deliver_next("default.DQ").failed
    found = row(run, "fails")
    assert (found.status, found.attempts, found.wake_at) == ("failed", 3, None)
    assert fresh(run).status == "failed"
    assert list(run.failures.values_list("attempt", flat=True)) == [1, 2, 3]
    assert messages("default.DQ") == []


def test_the_count_of_retries_stands_in_the_row_and_survives_a_lost_message():
    run = start(broken(max_retries=2, min_backoff=1, max_backoff=1))
    deliver_next()
    dramatiq.get_broker().flush_all()
    overdue(run, "fails")
    assert sweep(AssumeLost(), "default") == 1
    deliver_next()
    assert row(run, "fails").attempts == 2
    assert deliver_next("default.DQ").failed
    assert fresh(run).status == "failed"
    assert run.failures.count() == 3


def test_a_step_without_retries_fails_at_once():
    run = start(broken(max_retries=0))
    deliver_next()
    assert (fresh(run).status, run.failures.count()) == ("failed", 1)


def test_an_error_that_the_step_throws_fails_it_at_once():
    run = start(broken(KeyError, throws=(KeyError,)))
    assert deliver_next().failed
    assert ledger(run) == {"fails": "failed"}
    assert fresh(run).status == "failed"
    assert messages("default.DQ") == []


def test_an_error_that_a_retry_throws_fails_it_too():
    errors = [ValueError("first"), KeyError("then")]

    class Twice(Sequence):
        class Meta:
            app_label = "shop"

        @step(throws=KeyError, min_backoff=1, max_backoff=1)
        def fails(self):
            raise errors.pop(0)

    run = start(Twice)
    deliver_next()
    deliver_next("default.DQ")
    assert (fresh(run).status, row(run, "fails").attempts) == ("failed", 2)


def test_retry_when_decides():
    run = start(broken(retry_when=lambda retries, error: False))
    assert deliver_next().failed
    assert fresh(run).status == "failed"
    again = start(broken(retry_when=lambda retries, error: retries < 1, min_backoff=1))
    deliver_next()
    assert ledger(again) == {"fails": "retrying"}
    deliver_next("default.DQ")
    assert ledger(again) == {"fails": "failed"}


def test_a_retry_when_that_raises_loses_nothing_the_retry_is_due_now():
    def raising(retries, error):
        raise ZeroDivisionError

    run = start(broken(retry_when=raising))
    message = deliver_next()
    assert not message.failed
    assert messages("default.DQ") == []
    found = row(run, "fails")
    assert (found.status, found.attempts) == ("retrying", 1)
    assert found.due_at <= now()
    assert found.wake_at <= now() + timedelta(seconds=15)
    overdue(run, "fails")
    assert sweep(AssumeLost(), "default") == 1
    deliver_next()
    assert row(run, "fails").attempts == 2


def test_a_retry_that_the_broker_refuses_is_dispatched_by_the_sweep(broker, monkeypatch):
    run = start(broken(min_backoff=1, max_backoff=1))

    def refuse(message, *, delay=None):
        raise ConnectionError("the broker is down")

    monkeypatch.setattr(broker, "enqueue", refuse)
    deliver_next()
    monkeypatch.undo()
    assert (ledger(run), messages("default.DQ")) == ({"fails": "retrying"}, [])
    overdue(run, "fails")
    assert sweep(AssumeLost(), "default") == 1


def test_another_message_that_a_failing_step_sends_is_not_taken_for_its_retry():
    broker = dramatiq.get_broker()
    broker.declare_queue("default")

    def raising(retries, error):
        raise ZeroDivisionError

    class Sending(Sequence):
        class Meta:
            app_label = "shop"

        @step(retry_when=raising)
        def fails(self):
            other = dramatiq.Message("default", "some.actor", (), {}, {})
            broker.enqueue(other, delay=86_400_000)
            raise ValueError

    run = start(Sending)
    deliver_next()
    assert row(run, "fails").due_at <= now()


def test_a_failure_after_the_step_was_taken_away_is_neither_counted_nor_retried():
    class Slow(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def fails(self):
            fresh_run = fresh(self.run)
            overdue(fresh_run, "fails")
            sweep(AssumeLost(), "default")
            raise ValueError

    Slow._definition.step("fails").atomic = False
    run = start(Slow)
    deliver_next()
    assert (row(run, "fails").status, row(run, "fails").attempts) == ("queued", 0)
    assert run.failures.count() == 0
    assert messages("default.DQ") == []


# --- messages that do not take their step


def test_a_message_whose_step_run_does_not_exist_is_acknowledged():
    cls = broken()
    message = dramatiq.Message(
        "default", "shop.Broken.fails", ("00000000-0000-0000-0000-000000000001", 10**9), {}, {}
    )
    assert not deliver(message).failed
    assert cls.runs.count() == 0
    assert current.delivery() is None


def test_a_message_that_was_delivered_twice_performs_its_step_once():
    performed = []

    class Once(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            performed.append(1)

    run = start(Once)
    (message,) = messages()
    deliver(message)
    deliver(message)
    assert performed == [1]
    assert fresh(run).status == "succeeded"
    assert run.failures.count() == 0


def older(message, **changes):
    return message.copy(message_timestamp=message.message_timestamp - 120_000, **changes)


def test_a_steps_age_is_that_of_its_row_and_not_of_its_message():
    run = start(broken(max_age=60_000, max_retries=0))
    (message,) = messages()
    deliver(older(message, options={"max_age": 1}))  # Dramatiq skips it
    assert ledger(run) == {"fails": "queued"}
    deliver(older(message))
    assert run.failures.get().error == "ValueError"


def test_a_step_older_than_its_age_limit_fails_unperformed():
    run = start(broken(max_age=60_000))
    change(run, "fails", ready_at=now() - timedelta(minutes=2))
    assert deliver_next().failed
    assert fresh(run).status == "failed"
    failure = run.failures.get()
    assert failure.error == "sequences.exceptions.StepExpired"
    assert str(run.pk) in failure.message


def test_the_projects_age_limit_is_one_of_rows_too(broker, monkeypatch):
    (limit,) = (one for one in broker.middleware if isinstance(one, AgeLimit))
    monkeypatch.setattr(limit, "max_age", 60_000)
    runs = [start(broken(max_retries=0)), start(broken(max_retries=0))]
    change(runs[1], "fails", ready_at=now() - timedelta(minutes=2))
    for message in messages():
        deliver(older(message))
    errors = [run.failures.get().error for run in runs]
    assert errors == ["ValueError", "sequences.exceptions.StepExpired"]


# --- messages that somebody else has written


RUN = "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize(
    "forged",
    [
        {"args": ()},
        {"args": (RUN,)},
        {"args": (RUN, "one")},
        {"args": (RUN, None)},
        {"args": (RUN, True)},
        {"args": (RUN, 1.5)},
        {"args": (RUN, -1)},
        {"args": (RUN, 2**70)},
        {"args": (RUN, [1])},
        {"args": (RUN, 1, 2)},
        {"kwargs": {"step_run_id": 1}, "args": ()},
        {"options": {"sequences": 1, "retries": "many"}},
        {"options": {"sequences": 1, "retries": -1}},
        {"options": {"sequences": 1, "retries": 2**70}},
        {"options": {"sequences": 1, "retries": None}},
        {"options": {"sequences": 1, "retries": [1]}},
        {"options": {"sequences": 1, "sequences_attempts": "many"}},
        {"options": {"sequences": 1, "sequences_attempts": -1}},
        {"options": {"sequences": 1, "sequences_attempts": None}},
        {"options": {"sequences": 1, "throws": "no class"}},
        {"options": {}},
        {"message_timestamp": "yesterday"},
        {"message_timestamp": None},
        {"message_timestamp": 10**30},
        {"message_timestamp": -(10**30)},
    ],
    ids=repr,
)
def test_a_forged_message_raises_in_no_hook_and_takes_nothing_from_its_step(forged, caplog):
    run = start(broken(max_retries=1, min_backoff=1, max_backoff=1))
    (message,) = messages()
    deliver(replace(message, **forged))
    assert not [one for one in caplog.records if one.levelname == "CRITICAL"]
    assert current.delivery() is None
    if ledger(run) == {"fails": "queued"}:
        deliver(message)
    assert ledger(run) == {"fails": "retrying"}
    deliver_next("default.DQ")
    assert fresh(run).status == "failed"
    assert run.failures.count() == 2


def test_a_message_of_other_arguments_leaves_one_line(caplog):
    start(broken())
    (message,) = messages()
    assert not deliver(replace(message, args=("x" * 10_000, "y"))).failed
    (record,) = (one for one in caplog.records if one.name == "sequences")
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert len(record.getMessage()) < 500


def test_options_that_others_give_a_message_do_not_count():
    run = start(broken(max_retries=1, min_backoff=600_000, max_backoff=600_000))
    (message,) = messages()
    forged = {"max_retries": 0, "min_backoff": 1, "max_backoff": 1}
    assert not deliver(message.copy(options=forged)).failed
    found = row(run, "fails")
    assert (found.status, found.attempts) == ("retrying", 1)
    assert found.due_at > now() + timedelta(minutes=3)


def test_the_options_of_a_definition_that_is_data_are_those_of_its_plan():
    @job("always_fails")
    def always_fails():
        raise ValueError

    fails = {"job": "always_fails", "max_retries": 1, "min_backoff": 1, "max_backoff": 1}
    run = start_definition({"steps": {"fails": fails}}).run
    (message,) = messages()
    assert message.options["max_retries"] == 1
    assert not deliver(message.copy(options={"max_retries": 0})).failed
    assert ledger(run) == {"fails": "retrying"}
    assert deliver_next("default.DQ").failed
    assert ledger(run) == {"fails": "failed"}


def test_a_message_that_names_the_step_of_another_actor_neither_performs_nor_fails_it():
    class Patient(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=5)
        def waits(self):
            raise ValueError

    run, other = start(Patient), start(broken(max_retries=0))
    foreign = messages()[1]
    pk = row(run, "waits").pk
    broker = dramatiq.get_broker()
    broker.flush_all()
    assert not deliver(foreign.copy(args=(str(other.pk), pk))).failed
    assert (ledger(run), run.failures.count()) == ({"waits": "queued"}, 0)
    deliver_next()  # the one that may have been lost meanwhile
    assert (ledger(run), run.failures.count()) == ({"waits": "retrying"}, 1)
    # A verdict on its own attempt says nothing about a step that it only names.
    assert not deliver(foreign.copy(args=(str(other.pk), pk, 0), options={"max_retries": 0})).failed
    assert ledger(run) == {"waits": "retrying"}


def test_a_message_from_the_future_makes_no_other_one_look_lost():
    run = start(broken())
    monitor = QueueMonitor(FakeWorker())
    monitor._worker.consumers["default"] = None
    monitor.began("default", (now() + timedelta(days=1)).timestamp() * 1000, first=True)
    queued = row(run, "fails").queued_at
    assert not monitor.is_message_lost("default", queued, now())


def test_messages_of_other_actors_pass_through():
    @dramatiq.actor(actor_name="tests.other", max_retries=0)
    def other(first, second):
        raise ValueError

    message = other.message("a", 5)
    assert deliver(message).failed
    assert current.delivery() is None


def test_hooks_leave_nothing_behind_in_the_thread():
    start(broken(max_retries=0))
    deliver_next()
    assert current.delivery() is None


def test_a_step_knows_the_message_that_it_runs_in():
    seen = []

    class Looking(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            seen.append(current.delivery().message.message_id)

    start(Looking)
    (message,) = messages()
    deliver_next()
    assert seen == [message.message_id]


# --- its place


def places(broker):
    return [type(one) for one in broker.middleware]


def test_it_stands_before_retries_so_that_its_after_hooks_come_later():
    found = places(dramatiq.get_broker())
    assert found.index(SequencesMiddleware) < found.index(Retries)


def test_it_is_installed_once():
    broker = StubBroker(middleware=[TimeLimit(), Retries()])
    middleware.install(broker)
    middleware.install(broker)
    assert places(broker) == [TimeLimit, SequencesMiddleware, Retries]


def test_a_broker_without_retries_gets_it_at_the_end():
    broker = StubBroker(middleware=[TimeLimit()])
    middleware.install(broker)
    assert places(broker) == [TimeLimit, SequencesMiddleware]


# --- its threads


class FakeWorker:
    worker_threads, workers = 8, ()

    def __init__(self):
        self.consumers = {}


@pytest.mark.parametrize("interval", [60, None])
def test_a_worker_has_a_heart_and_if_it_is_wanted_a_sweep(interval):
    subject, broker = SequencesMiddleware(), dramatiq.get_broker()
    with override_settings(SEQUENCES={"SWEEP_INTERVAL": interval}):
        subject.before_worker_boot(broker, FakeWorker())
        subject.after_worker_boot(broker, FakeWorker())
        try:
            assert subject._heart.is_alive()
            assert (subject._sweeper is not None) == (interval is not None)
            assert not current.stopping.is_set()
            subject.before_worker_shutdown(broker, FakeWorker())
            # The last steps still run: their leases are kept until they have ended.
            assert subject._heart.is_alive()
            assert current.stopping.is_set()
            assert subject._sweeper is None or not subject._sweeper.is_alive()
        finally:
            subject.after_worker_shutdown(broker, FakeWorker())
            current.stopping.clear()
    subject._heart.join(60)
    assert not subject._heart.is_alive()


def test_a_message_that_a_worker_takes_while_it_boots_is_counted_once():
    subject, broker = SequencesMiddleware(), dramatiq.get_broker()
    start(broken())
    message = dramatiq.MessageProxy(messages()[0])
    subject.before_worker_boot(broker, FakeWorker())
    subject.before_process_message(broker, message)
    with override_settings(SEQUENCES={"SWEEP_INTERVAL": None}):
        subject.after_worker_boot(broker, FakeWorker())
    try:
        subject.after_process_message(broker, message)
        assert set(subject._monitor._in_hand.values()) == {0}
    finally:
        subject.before_worker_shutdown(broker, FakeWorker())
        subject.after_worker_shutdown(broker, FakeWorker())
        current.stopping.clear()


def test_a_claim_of_a_retry_counts_on_from_the_row():
    run = start(broken())
    fail(claim(run, "fails"), final=False)
    assert claim(run, "fails").attempts == 1


# --- a broker in memory, as projects have it in their own tests


def test_a_join_waits_for_a_short_delay_too(broker):
    class Soon(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self): ...

        @step(delay=300)
        def later(self): ...

    for name in ("default", "default.DQ"):  # other tests take messages that they never end
        broker.queues.pop(name, None)
    broker.declare_queue("default")
    run = start(Soon)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    try:
        broker.join("default", timeout=60_000)
        worker.join()
        assert fresh(run).status == "succeeded"
    finally:
        worker.stop()
