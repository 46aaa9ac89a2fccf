"""Nothing that serves many waits for a lock that somebody holds on one run."""

import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction

from sequences import Sequence, step, subsequence
from sequences.engine import current, leases
from sequences.engine.pruning import TAKEN, prune
from sequences.inspection import health
from sequences.inspection.health import Level
from sequences.models import SequenceRun, StepRun, StoredPlan, WorkerProcess
from sequences.transitions import due, locking, plans
from sequences.transitions.backends import backend_of
from sequences.worker.heartbeat import HeartbeatThread
from sequences.worker.registration import WorkerRegistration
from sequences.worker.sweeper import AssumeLost, Sweeper, sweep
from tests.engine import claim, fresh, ledger, messages, now, overdue, perform, row, take
from tests.locks import held

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgresql", "mysql"),
]

USING = "default"


def order(**meta):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step(atomic=False)
        def pay(self): ...

        @step
        def ship(self): ...

    return Order


@contextmanager
def at_once(seconds=5):
    """What is done in this block waits for nobody."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def lock(model, **conditions):
    """A forgotten shell's ``select_for_update()``."""
    return lambda: list(model.objects.select_for_update().filter(**conditions))


LOCKS = {
    "an act on its run": lambda run: run.cancel,
    "a pause of its run": lambda run: run.pause,
    "its run": lambda run: lock(SequenceRun, pk=run.pk),
    "its step": lambda run: lock(StepRun, run=run.pk),
}
each_lock = pytest.mark.parametrize("act", LOCKS.values(), ids=LOCKS)


# --- leases


def performances(runs, progress=None):
    found = []
    for run in runs:
        held_claim = claim(run, "pay")
        overdue(run, "pay", timedelta(seconds=-1))
        performance = current.CurrentAttempt(held_claim, since=0.0, latest_progress=progress)
        current.attempts[held_claim.token] = performance
        found.append(performance)
    return found


@pytest.fixture(autouse=True)
def _no_performance_is_left():
    yield
    current.attempts.clear()


@each_lock
def test_a_locked_step_is_left_out_of_a_beat_and_every_other_lease_is_extended(act):
    runs = [one.run for one in order().start_many([{}] * 3)]
    performances(runs, '{"done": 1}')
    with held(act(runs[1])), at_once():
        leases.beat(USING)
        for run in (runs[0], runs[2]):
            assert row(run, "pay").wake_at > now() + timedelta(seconds=10)
            assert row(run, "pay").progress == {"done": 1}
    leases.beat(USING)
    assert row(runs[1], "pay").wake_at > now() + timedelta(seconds=10)
    assert row(runs[1], "pay").progress == {"done": 1}


def test_the_leases_of_a_process_are_extended_by_one_statement(django_assert_num_queries):
    runs = [one.run for one in order().start_many([{}] * 20)]
    performances(runs)
    with django_assert_num_queries(1 if backend_of(USING).fast else 6):
        leases.beat(USING)
    assert not StepRun.objects.filter(wake_at__lt=now() + timedelta(seconds=10)).exists()


def test_a_beat_that_has_nothing_to_say_asks_the_database_nothing(django_assert_num_queries):
    with django_assert_num_queries(0):
        leases.beat(USING)


def test_a_locked_row_of_its_process_keeps_no_worker_from_its_leases(settings):
    settings.SEQUENCES = {"HEARTBEAT": 0.2}
    presence = WorkerRegistration(1)
    presence.beat(USING)
    run = order()().run
    performances([run])
    with held(lock(WorkerProcess)):
        presence._reported = None
        heart = HeartbeatThread(presence)
        heart.start()
        try:
            for _ in range(3):
                overdue(run, "pay")
                deadline = time.monotonic() + 10
                while row(run, "pay").wake_at < now() + timedelta(seconds=10):
                    assert time.monotonic() < deadline, "the heart stands still"
                    presence._reported = None
                    time.sleep(0.05)
        finally:
            current.attempts.clear()
    heart.stop()
    assert not heart.is_alive()


def test_a_step_whose_row_was_locked_for_longer_than_its_lease_is_not_taken_for_lost():
    run, other = (one.run for one in order().start_many([{}] * 2))
    performances([run])
    claim(other, "pay")
    presence = WorkerRegistration(1)
    with held(lock(StepRun, run=run.pk)):
        presence.leaves_out(leases.beat(USING))
        presence.beat(USING)
    for one in (run, other):
        overdue(one, "pay", timedelta(seconds=20))
    assert sweep(AssumeLost(), USING) == 1, "the other one's worker says nothing of it"
    assert (row(run, "pay").status, row(run, "pay").lost_workers) == ("running", 0)
    presence.leaves_out(leases.beat(USING))
    presence.beat(USING)
    assert row(run, "pay").wake_at > now() + timedelta(seconds=10)
    assert WorkerProcess.objects.get().unextended_claims == []


def test_a_worker_that_dies_while_its_step_is_locked_is_noticed():
    run = order()().run
    performances([run])
    presence = WorkerRegistration(1)
    with held(lock(StepRun, run=run.pk)):
        presence.leaves_out(leases.beat(USING))
        presence.beat(USING)
    overdue(run, "pay")
    WorkerProcess.objects.update(seen_at=now() - timedelta(seconds=7))
    assert sweep(AssumeLost(), USING) == 1
    assert row(run, "pay").lost_workers == 1


# --- the sweep


@each_lock
def test_a_sweep_takes_back_the_others_steps_and_the_locked_one_at_its_next_turn(act):
    locked, other = (one.run for one in order().start_many([{}] * 2))
    for run in (locked, other):
        claim(run, "pay")
        overdue(run, "pay")
    before = row(locked, "pay")
    with held(act(locked)), at_once():
        assert sweep(AssumeLost(), USING) == 1
        assert row(other, "pay").status == "queued"
        assert (row(locked, "pay").status, row(locked, "pay").wake_at) == (
            "running",
            before.wake_at,
        )
    assert sweep(AssumeLost(), USING) == 1
    assert row(locked, "pay").status == "queued"


def test_many_steps_of_a_locked_run_take_nobody_elses_turn(monkeypatch):
    monkeypatch.setattr(due, "ROWS_PER_TRANSACTION", 2)

    class Wide(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: range(9))
        def item(self, item): ...

    locked = Wide().run
    perform(take(StepRun.objects.get(run=locked.pk).pk))
    for item in StepRun.objects.filter(run=locked.pk, item__gte=0):
        assert take(item.pk)
        StepRun.objects.filter(pk=item.pk).update(wake_at=now() - timedelta(seconds=60))
    other = order()().run
    overdue(other, "pay")
    with held(lock(SequenceRun, pk=locked.pk)), at_once():
        assert sweep(AssumeLost(), USING) == 1
        assert [one.args[0] for one in messages()][-1] == str(other.pk)
    assert sweep(AssumeLost(), USING) == 9


def test_a_fan_out_of_a_locked_run_has_its_turn_at_the_next_sweep():
    class Wide(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: [1])
        def item(self, item): ...

    run = Wide().run
    perform(take(StepRun.objects.get(run=run.pk).pk))
    StepRun.objects.filter(run=run.pk, item=0).update(status="succeeded", wake_at=None)
    own = StepRun.objects.get(run=run.pk, item=-1)
    StepRun.objects.filter(pk=own.pk).update(wake_at=(due_at := now() - timedelta(seconds=1)))
    with held(lock(SequenceRun, pk=run.pk)), at_once():
        assert sweep(AssumeLost(), USING) == 0
        assert StepRun.objects.get(pk=own.pk).wake_at == due_at
    assert sweep(AssumeLost(), USING) == 1
    assert StepRun.objects.get(pk=own.pk).status == "queued"


def test_a_lost_step_whose_end_would_cancel_a_locked_child_stops_no_sweep(settings):
    """What the sweep does to one run may need another: a child of it that somebody holds."""
    settings.SEQUENCES = {"MAX_LOST_WORKERS": 1}
    child = order()

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        order = subsequence(child)

        @step(after=[])
        def beside(self): ...

        @beside.undo
        def put_away(self): ...

    parent = Parent().run
    perform(claim(parent, "order"))
    claim(parent, "beside")
    overdue(parent, "beside")
    other = order()().run
    overdue(other, "pay")
    below = SequenceRun.objects.get(parent__run=parent.pk)
    with held(lock(SequenceRun, pk=below.pk)), at_once(10):
        assert sweep(AssumeLost(), USING) == 1
        assert row(parent, "beside").status == "running"
    sweep(AssumeLost(), USING)
    assert row(parent, "beside").status == "failed"
    assert fresh(below).status == "cancelled"


def test_a_child_that_ends_waits_for_nobody_who_holds_its_parent():
    child = order()

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        order = subsequence(child)

    parent = Parent().run
    perform(claim(parent, "order"))
    below = SequenceRun.objects.get(parent__run=parent.pk)
    perform(claim(below, "pay"))
    last = claim(below, "ship")
    with held(parent.pause), at_once():
        perform(last)
        assert fresh(below).status == "succeeded"
    overdue(parent, "order")
    sweep(AssumeLost(), USING)
    assert row(parent, "order").status == "queued"


def test_a_dispatch_is_counted_without_waiting_for_a_row_that_was_locked_meanwhile():
    locked, other = (one.run for one in order().start_many([{}] * 2))
    ids = [row(run, "pay").pk for run in (locked, other)]
    with held(locked.pause), at_once():
        due.accepted(ids, USING)
    assert [row(run, "pay").dispatches for run in (locked, other)] == [0, 1]


def test_the_sweep_begins_while_the_first_start_of_its_release_has_not_committed(monkeypatch):
    monkeypatch.setattr("sequences.worker.queue_monitor.DRAINED_AFTER_SECONDS", 0.0)
    run = order()().run

    class Later(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def only(self): ...

    overdue(run, "pay")
    before = len(messages())
    sweeper = Sweeper(AssumeLost(), 0.05)
    with held(Later):
        plans.forget()
        sweeper.start()
        deadline = time.monotonic() + 20
        while len(messages()) == before:
            assert time.monotonic() < deadline, "the sweep waits for the plan of a start"
            time.sleep(0.02)
        assert not StoredPlan.objects.filter(sequence="shop.Later").exists()
    deadline = time.monotonic() + 20
    while not StoredPlan.objects.filter(sequence="shop.Later").exists():
        assert time.monotonic() < deadline, "the plan is never stored"
        time.sleep(0.02)
    sweeper.stop()


# --- pruning


@pytest.mark.parametrize("model", [SequenceRun, StepRun])
def test_a_tree_of_which_somebody_holds_a_row_is_left_for_the_next_time(model):
    runs = [one.run for one in order().start_many([{}] * 5)]
    for run in runs:
        run.finish()
    locked = runs[2]
    column = "pk" if model is SequenceRun else "run"
    with held(lock(model, **{column: locked.pk})), at_once(20):
        report = prune(older_than=timedelta(0))
        assert report.trees == 4
        assert [(kept.run, kept.why) for kept in report.remaining] == [(locked.pk, TAKEN)]
    assert prune(older_than=timedelta(0)).trees == 1


# --- what people are told


@each_lock
def test_health_says_that_a_due_step_has_been_locked_for_long_and_by_whom(act):
    locked, other = (one.run for one in order().start_many([{}] * 2))
    overdue(locked, "pay", timedelta(minutes=6))
    overdue(other, "pay", timedelta(seconds=5))
    with held(act(locked)) as session, at_once():
        time.sleep(0.11)  # MariaDB tells of transactions as they were up to 0.1 s ago
        found = sign("locked")
        assert found.level == Level.BAD
        assert found.says == "1 due step has been locked for 6 min"
        assert f"step “pay” of run {locked.pk}" in found.advice
        assert f"held by session {session.pid} of user " in found.advice
        assert sign("locked", SequenceRun.objects.filter(pk=other.pk)) is None
    assert sign("locked") is None, "it is only late: nobody sweeps"


@pytest.mark.only_on("postgresql")
def test_the_one_that_holds_the_row_is_told_from_one_that_is_older():
    run, other = (one.run for one in order().start_many([{}] * 2))
    overdue(run, "pay", timedelta(minutes=2))
    with held(lock(SequenceRun, pk=other.pk)), held(lock(SequenceRun, pk=run.pk)) as session:
        assert f"The lock is held by session {session.pid} of user " in sign("locked").advice


def test_what_is_locked_for_seconds_is_nobodys_concern():
    run = order()().run
    overdue(run, "pay", timedelta(seconds=50))
    with held(lock(SequenceRun, pk=run.pk)):
        assert sign("locked") is None


def sign(name, runs=None):
    return next((one for one in health.read(runs=runs).signs if one.name == name), None)


# --- what is called after the commit


def test_a_receiver_that_the_sweep_calls_waits_for_locks_as_ever(settings):
    from sequences.signals import run_failed

    settings.SEQUENCES = {"MAX_LOST_WORKERS": 1}
    lost, other = (one.run for one in order().start_many([{}] * 2))
    claim(lost, "pay")
    overdue(lost, "pay")
    waits, errors = [], []

    def receiver(**_):
        waits.append(locking._thread.no_wait or locking._thread.nowait)
        try:
            fresh(other).pause()
        except BaseException as error:
            errors.append(error)

    run_failed.connect(receiver)
    holding = held(lock(SequenceRun, pk=other.pk))
    holding.__enter__()
    timer = threading.Timer(1.0, lambda: holding.__exit__(None, None, None))
    timer.start()
    try:
        sweep(AssumeLost(), USING)
    finally:
        run_failed.disconnect(receiver)
        timer.join()
    assert (waits, errors) == ([False], [])
    assert fresh(other).status == "paused"
    assert ledger(lost) == {"pay": "failed"}


def test_a_bound_on_waits_ends_with_its_transaction():
    run = order()().run
    with locking.no_wait():
        locking.transact(USING, lambda: locking.lock_run(run.pk, USING))
    name = "lock_timeout" if connection.vendor == "postgresql" else "innodb_lock_wait_timeout"
    show = "SHOW lock_timeout" if connection.vendor == "postgresql" else f"SELECT @@{name}"
    with connection.cursor() as cursor:
        cursor.execute(show)
        (after,) = cursor.fetchone()
        connection.close()
    with connection.cursor() as cursor:
        cursor.execute(show)
        assert cursor.fetchone() == (after,)


def test_an_error_that_is_no_lock_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError), locking.no_wait(), transaction.atomic():
        locking.transact(USING, lambda: 1 / 0)
    assert not locking._thread.no_wait
