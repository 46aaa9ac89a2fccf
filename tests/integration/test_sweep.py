import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dramatiq
import pytest
from django.core.management import CommandError
from django.test import override_settings
from dramatiq.middleware import SkipMessage

from sequences.engine import dispatcher
from sequences.engine.executor import StepExecution
from sequences.exceptions import SequenceError
from sequences.models import StepRun, StoredPlan
from sequences.testing import clock
from sequences.transitions import due, failures, plans
from sequences.transitions.backends import backend_of
from sequences.worker.queue_monitor import DRAINED_AFTER_SECONDS, QueueMonitor
from sequences.worker.sweeper import MAX_BATCHES_PER_SWEEP, AssumeLost, Sweeper, sweep
from tests.console import command
from tests.engine import change, claim, fail, fresh, ledger, messages, now, overdue, perform, row
from tests.steps import chain

pytestmark = pytest.mark.django_db

USING = "default"
GRACE = timedelta(seconds=15)


@pytest.fixture(autouse=True)
def _broker_that_has_not_failed(monkeypatch):
    monkeypatch.setattr(dispatcher, "_breaker", dispatcher._Breaker())


@pytest.fixture
def run():
    return chain().start().run


class Never(AssumeLost):
    """No message is lost: it is only late."""

    def is_message_lost(self, queue, sent_at, now):
        return False


def down(broker, monkeypatch):
    def refuse(message, *, delay=None):
        raise ConnectionError("the broker is down")

    monkeypatch.setattr(broker, "enqueue", refuse)
    # The pauses between attempts are tested with the dispatches.
    monkeypatch.setattr(dispatcher._breaker, "is_open", lambda: False)


# --- what is dispatched


def test_a_step_that_was_never_dispatched_is(run):
    assert messages() == []
    overdue(run, "one")
    assert sweep(AssumeLost(), USING) == 1
    (message,) = messages()
    assert message.actor_name == "shop.Chain.one"
    assert message.args == (str(run.pk), row(run, "one").pk)
    assert "retries" not in message.options
    assert claim(run, "one") is not None


def test_a_step_that_is_not_overdue_is_left_alone(run):
    assert sweep(AssumeLost(), USING) == 0
    assert messages() == []


def test_a_step_whose_message_was_lost_after_a_commit_is_dispatched(run):
    perform(claim(run, "one"))
    overdue(run, "two")
    assert sweep(AssumeLost(), USING) == 1
    assert [message.actor_name for message in messages()] == ["shop.Chain.two"]


def test_a_retry_is_dispatched_with_the_attempts_that_have_failed(run):
    fail(claim(run, "one"), final=False)
    overdue(run, "one")
    assert sweep(Never(), USING) == 0
    overdue(run, "one")
    assert sweep(AssumeLost(), USING) == 1
    assert [message.options["retries"] for message in messages()] == [1]


def test_a_delay_that_is_over_needs_no_evidence_of_a_loss():
    run = chain().start({}, delay=timedelta(days=40)).run
    with clock() as moving:
        assert sweep(Never(), USING) == 0
        moving.move(timedelta(days=40))
        assert sweep(Never(), USING) == 1
        assert ledger(run) == {"one": "queued"}
        assert len(messages()) == 1


def test_a_step_of_a_lost_worker_is_taken_back_and_dispatched(run):
    claim(run, "one")
    overdue(run, "one")
    assert sweep(Never(), USING) == 1
    assert (row(run, "one").status, row(run, "one").lost_workers) == ("queued", 1)
    assert len(messages()) == 1


def test_a_held_step_is_not_dispatched(run):
    overdue(run, "one")
    run.pause()
    assert sweep(AssumeLost(), USING) == 0
    assert messages() == []


def test_all_that_is_due_is_done_in_one_sweep(monkeypatch):
    monkeypatch.setattr(due, "ROWS_PER_TRANSACTION", 2)
    for sequence in chain().start_many([{}] * 5):
        overdue(sequence.run, "one")
    assert sweep(AssumeLost(), USING) == 5
    assert len({message.args for message in messages()}) == 5


def test_a_row_that_cannot_be_taken_back_does_not_stop_the_sweep(run, monkeypatch):
    broken, other = run, chain().start().run
    reap = failures.reap

    def unless_broken(found, using):
        if found.run_id == broken.pk:
            raise SequenceError("no")
        return reap(found, using)

    monkeypatch.setattr(failures, "reap", unless_broken)
    for one in (broken, other):
        claim(one, "one")
        overdue(one, "one")
    assert sweep(AssumeLost(), USING) == 1
    assert row(other, "one").status == "queued"


@pytest.fixture
def later_run(run):
    """A run that a later release has started."""
    later = run.plan
    later.pk, later.fingerprint, later.graph = None, "x", {"format": 99, "steps": []}
    later.save()
    type(run).objects.filter(pk=run.pk).update(plan=later)
    return run


def test_a_plan_of_a_later_format_waits_for_workers_that_read_it(later_run):
    overdue(later_run, "one")
    assert sweep(AssumeLost(), USING) == 0
    assert ledger(later_run) == {"one": "queued"}
    assert row(later_run, "one").wake_at > now()


def receive(run):
    """A worker gets a message for the step; there is nothing for it to do."""
    with pytest.raises(SkipMessage):
        StepExecution(row(run, "one").pk, 0, USING).live()


def test_a_worker_that_cannot_read_the_plan_gives_the_step_back_and_says_so(later_run, caplog):
    for _ in range(4):  # more often than workers may be lost
        receive(later_run)
    left = row(later_run, "one")
    assert (left.status, left.token, left.attempts, left.lost_workers) == ("queued", None, 0, 0)
    assert timedelta() < left.wake_at - now() <= GRACE
    assert fresh(later_run).status == "running"
    (line, *_) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert f"Step one of run {later_run.pk} is waiting for a worker that can read" in line
    assert "Upgrade this process to the release that wrote the plan." in line


def test_a_step_with_a_plan_of_a_later_format_comes_back_on_hold_if_its_run_is_paused(
    later_run, monkeypatch
):
    load = plans.load_of

    def load_of(*arguments):
        type(later_run).objects.filter(pk=later_run.pk).update(status="paused")
        return load(*arguments)

    monkeypatch.setattr(plans, "load_of", load_of)
    receive(later_run)
    assert (row(later_run, "one").status, row(later_run, "one").wake_at) == ("queued", None)


def test_in_a_run_that_rolls_back_a_step_with_a_plan_of_a_later_format_is_not_queued_again(
    later_run,
):
    type(later_run).objects.filter(pk=later_run.pk).update(status="undoing")
    receive(later_run)
    assert row(later_run, "one").status == "running"  # until its lease expires


# --- backoff


def test_the_pause_between_dispatches_grows(run):
    for times in range(3):
        overdue(run, "one")
        assert sweep(AssumeLost(), USING) == 1
        left = row(run, "one").wake_at - now()
        assert GRACE * 2**times - timedelta(seconds=10) < left <= GRACE * 2**times


def test_a_dispatch_that_the_broker_refuses_does_not_grow_it(run, broker, monkeypatch):
    down(broker, monkeypatch)
    for _ in range(3):
        overdue(run, "one")
        assert sweep(AssumeLost(), USING) == 0
        assert row(run, "one").dispatches == 0
        assert row(run, "one").wake_at - now() <= GRACE
    monkeypatch.undo()
    overdue(run, "one")
    assert sweep(AssumeLost(), USING) == 1


def test_a_claim_of_a_message_that_was_sent_twice_is_harmless(run):
    overdue(run, "one")
    sweep(AssumeLost(), USING)
    overdue(run, "one")
    sweep(AssumeLost(), USING)
    assert len(messages()) == 2
    assert claim(run, "one") is not None
    assert claim(run, "one") is None


# --- what a worker sees of its queues


class Time:
    """The monotonic clock of `monitor`, moved by a test."""

    def __init__(self, monkeypatch):
        self.seconds = 1000.0
        fake = SimpleNamespace(monotonic=lambda: self.seconds)
        monkeypatch.setattr("sequences.worker.queue_monitor.time", fake)

    def passes(self, seconds):
        self.seconds += seconds


@pytest.fixture
def passing(monkeypatch):
    return Time(monkeypatch)


class Consumer:
    def __init__(self, prefetch=2):
        self.prefetch, self.alive = prefetch, True

    def is_alive(self):
        return self.alive


def worker(*queues, waiting=()):
    queued = [SimpleNamespace(message=SimpleNamespace(queue_name=name)) for name in waiting]
    return SimpleNamespace(
        broker=dramatiq.get_broker(),
        consumers={name: Consumer() for name in queues},
        work_queue=SimpleNamespace(queue=queued),
    )


def milliseconds(moment):
    return int(moment.timestamp() * 1000)


NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)


def test_nothing_is_lost_in_a_queue_that_the_worker_does_not_consume(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.look()
    passing.passes(1000)
    monitor.look()
    assert not monitor.is_message_lost("mails", NOON, NOON)
    assert monitor.is_message_lost("default", NOON, NOON)


def test_nothing_is_lost_without_a_worker():
    assert not QueueMonitor().is_message_lost("default", NOON, NOON)


def test_delay_queues_are_not_looked_after():
    assert set(QueueMonitor(worker("default", "default.DQ")).queues()) == {"default"}


def test_a_worker_that_has_just_begun_knows_nothing(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.look()
    assert not monitor.is_message_lost("default", NOON, NOON)


def test_a_message_is_lost_when_one_that_was_sent_a_grace_later_has_arrived(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.look()
    monitor.began("default", milliseconds(NOON + timedelta(seconds=14)), first=True)
    assert not monitor.is_message_lost("default", NOON, NOON)
    monitor.began("default", milliseconds(NOON + timedelta(seconds=15)), first=True)
    assert monitor.is_message_lost("default", NOON, NOON)
    assert not monitor.is_message_lost("default", NOON + timedelta(seconds=1), NOON)


@pytest.fixture(params=[-30, 30], ids=["ahead", "behind"])
def _own_clock_is_off(request, monkeypatch):
    backend, lead = backend_of(USING), timedelta(seconds=request.param)
    read = backend.now
    with monkeypatch.context() as patch:
        patch.setattr(backend, "now", lambda connection: read(connection) + lead)
        yield
    now()  # this thread knows the right time again


@pytest.mark.usefixtures("_own_clock_is_off")
def test_only_the_databases_clock_says_that_a_message_was_sent_a_grace_later():
    monitor = QueueMonitor(worker("default"))
    queued_at, sent_at = now() - GRACE, datetime.now(UTC) - GRACE
    monitor.began("default", milliseconds(sent_at + timedelta(seconds=5)), first=True)
    assert not monitor.is_message_lost("default", queued_at, now())
    monitor.began("default", milliseconds(sent_at + GRACE), first=True)
    assert monitor.is_message_lost("default", queued_at - timedelta(seconds=2), now())


def test_an_older_message_that_arrives_afterwards_changes_nothing(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.began("default", milliseconds(NOON + timedelta(seconds=15)), first=True)
    monitor.began("default", milliseconds(NOON), first=True)
    assert monitor.is_message_lost("default", NOON, NOON)


def test_a_retry_proves_nothing_for_it_was_delayed(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.began("default", milliseconds(NOON + timedelta(hours=1)), first=False)
    assert not monitor.is_message_lost("default", NOON, NOON)


def test_a_message_of_another_queue_proves_nothing(passing):
    monitor = QueueMonitor(worker("default", "mails"))
    monitor.began("mails", milliseconds(NOON + timedelta(hours=1)), first=True)
    assert not monitor.is_message_lost("default", NOON, NOON)


def test_a_message_is_lost_when_the_queue_has_given_nothing_for_a_while(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.look()
    passing.passes(DRAINED_AFTER_SECONDS - 0.1)
    monitor.look()
    assert not monitor.is_message_lost("default", NOON, NOON)
    passing.passes(0.2)
    monitor.look()
    assert monitor.is_message_lost("default", NOON, NOON)
    monitor.began("default", milliseconds(NOON), first=True)
    assert not monitor.is_message_lost("default", NOON, NOON)


def test_a_queue_whose_worker_has_its_hands_full_may_hold_anything(passing):
    monitor = QueueMonitor(worker("default"))
    for _ in range(2):
        monitor.began("default", milliseconds(NOON), first=True)
    for _ in range(600):
        monitor.look()
        passing.passes(1)
    monitor.look()
    assert not monitor.is_message_lost("default", NOON, NOON)
    monitor.ended("default")
    monitor.look()
    assert not monitor.is_message_lost("default", NOON, NOON)
    passing.passes(DRAINED_AFTER_SECONDS)
    monitor.look()
    assert monitor.is_message_lost("default", NOON, NOON)


def test_a_queue_with_messages_that_wait_in_the_worker_may_hold_anything(passing):
    busy = worker("default", "mails", waiting=["default"])
    monitor = QueueMonitor(busy)
    monitor.look()
    passing.passes(DRAINED_AFTER_SECONDS)
    monitor.look()
    assert not monitor.is_message_lost("default", NOON, NOON)
    assert monitor.is_message_lost("mails", NOON, NOON)


def test_a_queue_whose_consumer_is_not_connected_may_hold_anything(passing):
    cut_off = worker("default")
    cut_off.consumers["default"].alive = False
    monitor = QueueMonitor(cut_off)
    monitor.look()
    passing.passes(1000)
    monitor.look()
    assert not monitor.is_message_lost("default", NOON, NOON)


def test_a_backlog_is_not_amplified(passing):
    """Many messages wait for longer than the grace, and all threads are busy for ten minutes."""
    monitor = QueueMonitor(worker("default"))
    began_at = now() - timedelta(minutes=10)
    for _ in range(2):
        monitor.began("default", milliseconds(began_at), first=True)
    runs = [sequence.run for sequence in chain().start_many([{}] * 20)]
    for _ in range(40):
        StepRun.objects.update(queued_at=began_at, wake_at=now() - timedelta(seconds=1))
        passing.passes(15)
        monitor.look()
        assert sweep(monitor, USING) == 0
    assert messages() == []
    assert all(ledger(run) == {"one": "queued"} for run in runs)


def test_what_a_drained_queue_has_lost_is_dispatched(passing):
    monitor = QueueMonitor(worker("default"))
    monitor.look()
    run = chain().start().run
    with clock() as moving:
        moving.move(GRACE)
        passing.passes(15)
        monitor.look()
        assert sweep(monitor, USING) == 1
    assert len(messages()) == 1
    assert fresh(run).status == "running"


def test_what_the_evidence_shows_as_lost_is_dispatched_after_each_grace(passing):
    """Growing pauses are for those who see nothing."""
    monitor = QueueMonitor(worker("default"))
    monitor.look()
    run = chain().start().run
    with clock() as moving:
        for times in range(1, 6):
            moving.move(GRACE)
            passing.passes(15)
            monitor.look()
            assert sweep(monitor, USING) == 1
            assert len(messages()) == times
            assert row(run, "one").wake_at - now() <= GRACE


def test_a_step_that_no_worker_here_knows_is_asked_for_with_growing_pauses(passing):
    # The broker keeps each message that nobody knows: its pauses are all that bounds them.
    monitor = QueueMonitor(worker("default"))
    monitor._worker.broker = SimpleNamespace(actors={})
    monitor.look()
    passing.passes(15)
    monitor.look()
    run = chain().start().run
    for times in range(3):
        overdue(run, "one")
        assert sweep(monitor, USING) == 1
        assert row(run, "one").wake_at - now() > GRACE * 2**times - timedelta(seconds=10)


def test_what_shows_that_the_first_message_is_lost_shows_nothing_of_the_second(passing):
    """The second waits at the end of a long queue, as all that was sent after the first."""
    monitor = QueueMonitor(worker("default"))
    run = chain().start().run
    began = row(run, "one").queued_at
    with clock() as moving:
        moving.move(2 * GRACE)
        monitor.began("default", milliseconds(began + 1.1 * GRACE - 2 * GRACE), first=True)
        assert sweep(monitor, USING) == 1
        moving.move(GRACE)
        assert sweep(monitor, USING) == 0, "its message was sent a grace ago, and may be late"
        assert row(run, "one").status == "queued"


# --- one row among others


def test_a_row_whose_plan_cannot_be_read_harms_no_other(run, caplog):
    broken = run.plan
    broken.pk, broken.fingerprint, broken.graph = None, "x", {"format": 1}
    broken.save()
    type(run).objects.filter(pk=run.pk).update(plan=broken)
    other = chain().start().run
    overdue(run, "one", timedelta(minutes=1))
    overdue(other, "one")
    assert sweep(AssumeLost(), USING) == 1
    assert [message.args[0] for message in messages()] == [str(other.pk)]
    assert f"step one of run {run.pk}" in caplog.text
    assert row(run, "one").status == "queued"
    assert timedelta(0) < row(run, "one").wake_at - now() <= GRACE


@pytest.mark.parametrize("fails", ["reap", "look", "unknown"])
def test_an_error_of_one_row_is_logged_with_its_run_and_step_and_harms_no_other(
    fails, monkeypatch, caplog
):
    runs = [chain().start().run for _ in range(3)]
    for one in runs:
        overdue(one, "one")
    broken = runs[1]

    def unless_broken(usual):
        def call(found, using):
            if found.run_id == broken.pk:
                raise KeyError("next")
            return usual(found, using)

        return call

    if fails == "reap":
        claim(broken, "one")
        overdue(broken, "one")
        monkeypatch.setattr(failures, "reap", unless_broken(failures.reap))
    elif fails == "look":
        change(broken, "one", status="waiting", kind="each", wait="items", members={"total": 1})
    else:
        monkeypatch.setattr(
            "sequences.worker.sweeper._fails_as_unknown", unless_broken(lambda row, using: False)
        )
    assert sweep(AssumeLost(), USING) == 2
    sent = {message.args[0] for message in messages()}
    assert sent == {str(runs[0].pk), str(runs[2].pk)}
    assert f"step one of run {broken.pk}" in caplog.text
    assert timedelta(0) < row(broken, "one").wake_at - now() <= GRACE


# --- the thread and the command


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about in a minute"
        time.sleep(0.01)


@pytest.fixture
def _at_once(monkeypatch):
    """A worker's sweep begins without looking around first."""
    monkeypatch.setattr("sequences.worker.queue_monitor.DRAINED_AFTER_SECONDS", 0.0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_at_once")
def test_the_thread_of_a_worker_sweeps_until_it_is_stopped_also_after_errors():
    looks = []

    class LossDetector(AssumeLost):
        def look(self):
            looks.append(threading.current_thread())
            if len(looks) < 3:
                raise ConnectionError("the database is away")

    run = chain().start().run
    before = len(messages())
    sweeper = Sweeper(LossDetector(), 0.01)
    sweeper.start()
    try:
        wait_until(lambda: len(looks) > 3)
        overdue(run, "one")
        wait_until(lambda: len(messages()) > before)
    finally:
        sweeper.stop()
    assert not sweeper.is_alive()
    assert set(looks) == {sweeper}


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_at_once")
def test_the_thread_stores_the_plans_of_its_release():
    cls = chain()
    done = threading.Event()

    class LossDetector(AssumeLost):
        def look(self):
            done.set()

    sweeper = Sweeper(LossDetector(), 0.01)
    sweeper.start()
    try:
        assert done.wait(60)
    finally:
        sweeper.stop()
    stored = StoredPlan.objects.get(sequence="shop.Chain")
    assert stored.fingerprint == cls._definition.plan.fingerprint


def test_the_command_sweeps_once_and_says_how_much(run):
    overdue(run, "one")
    assert command("sweep") == "1 dispatched\n"
    assert command("sweep") == "0 dispatched\n"


def test_the_command_sweeps_until_it_is_interrupted(run, monkeypatch):
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        overdue(run, "one")

    monkeypatch.setattr("sequences.worker.sweeper.time", SimpleNamespace(sleep=sleep))
    with override_settings(SEQUENCES={"SWEEP_INTERVAL": 7}):
        assert command("sweep", "--loop") == "Stopped.\n"
    assert pauses == [7, 7]
    assert len(messages()) == 1


def test_the_command_asks_with_growing_pauses(run):
    change(run, "one", queued_at=now() - timedelta(hours=1), dispatches=3)
    overdue(run, "one")
    command("sweep")
    assert row(run, "one").dispatches == 4
    assert row(run, "one").wake_at - now() > timedelta(seconds=100)


def test_the_command_needs_a_subcommand():
    with pytest.raises(CommandError, match="subcommand"):
        command()


def test_a_sweep_finds_nothing_among_finished_steps(run):
    perform(claim(run, "one"))
    perform(claim(run, "two"))
    assert not StepRun.objects.filter(wake_at__isnull=False).exists()
    with clock() as moving:
        moving.move(timedelta(days=400))
        assert sweep(AssumeLost(), USING) == 0


def test_a_row_of_a_queue_that_is_not_consumed_here_is_left_to_its_workers_soon_again():
    run = chain()().run
    change(run, "one", queued_at=now() - timedelta(hours=1))
    overdue(run, "one")
    sweep(QueueMonitor(worker("mails")), USING)
    left = row(run, "one")
    assert left.status == "queued"
    assert timedelta(0) < left.wake_at - now() <= GRACE


def test_a_sweep_that_gets_nowhere_ends(monkeypatch):
    looks = []

    def endless(is_message_lost, using, **options):
        looks.append(1)
        return due.Due(more=(now(), 1))

    monkeypatch.setattr(due, "take", endless)
    assert sweep(AssumeLost(), USING) == 0
    assert len(looks) == MAX_BATCHES_PER_SWEEP
