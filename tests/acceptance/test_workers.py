"""Real worker processes, and all that can happen to them and to their messages."""

import random
import time
from contextlib import suppress
from datetime import timedelta

import pytest
import redis
from django.db import connection
from django.db.models import F, Sum

from sequences.engine import dispatcher
from sequences.exceptions import InvalidTransition
from sequences.inspection import health
from sequences.models import SequenceRun, StepRun
from sequences.testing import clock, run_sequence
from sequences.worker.sweeper import AssumeLost, sweep
from tests.locks import held

from .app.gates import Gate
from .app.models import Entry
from .app.sequences import (
    QUEUE,
    Aborts,
    Busy,
    Deadly,
    Direct,
    Everything,
    FailsOnce,
    GivesUp,
    Held,
    HeldLater,
    HeldTwice,
    Long,
    Outside,
    Overtime,
    Released,
    Tiny,
)
from .workers import Gateway, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

#: Those that are servers of their own, and can be away while the database is there.
SERVERS = ["redis", "amqp"]
BROKERS = [*SERVERS, "postgres"]


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def entries(sequence):
    """The user's own rows, by step."""
    rows = Entry.objects.filter(run=sequence.run.pk).order_by("pk")
    return list(rows.values_list("step", flat=True))


def step_of(sequence, name):
    return sequence.run.steps.get(step=name)


def ended(sequence, status="succeeded"):
    """Wait until the run has ended so."""

    def condition():
        sequence.run.refresh_from_db()
        return sequence.run.is_finished

    wait_for(condition, f"the end of {sequence.run}")
    failures = [f"{one}: {one.message}" for one in sequence.run.failures.all()]
    assert sequence.run.status == status, failures
    return sequence.run


def assert_once(sequence, *steps):
    """Each of these steps has left its row and its line in `data` once, and there is no other."""
    ended(sequence)
    assert entries(sequence) == list(steps)
    assert sequence.run.data["log"] == list(steps)


def assert_no_failure(sequence):
    assert not sequence.run.failures.exists()
    assert set(sequence.run.steps.values_list("attempts", "lost_workers")) == {(0, 0)}


class TestDeath:
    @pytest.mark.parametrize("kind", BROKERS)
    def test_a_worker_that_is_killed_in_mid_step_costs_a_lease_and_nothing_else(
        self, kind, hire, gate
    ):
        crew = hire(kind)
        crew.start(2)
        sequence = Held(gate=str(gate))
        wait_for(gate.visitors)
        crew.performer(step_of(sequence, "held")).kill()
        gate.open()
        assert_once(sequence, "first", "held", "last")
        assert len(gate.visitors()) == 2
        assert [one.lost_workers for one in sequence.run.steps.order_by("pk")] == [0, 0, 0]
        assert not sequence.run.failures.exists()

    def test_connections_that_died_while_they_were_idle_cost_no_grace(self, hire):
        crew = hire(GRACE=60, LEASE=60)
        crew.start(1, threads=4)
        for sequence in [Tiny() for _ in range(16)]:
            assert_once(sequence, "only")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.fetchone()[0] >= 4
        sequences = [Tiny() for _ in range(8)]
        begun = time.monotonic()
        for sequence in sequences:
            assert_once(sequence, "only")
            assert_no_failure(sequence)
        assert time.monotonic() - begun < 30

    def test_a_step_that_kills_each_of_its_workers_fails_in_sight(self, hire):
        crew = hire(GRACE=2, LEASE=2, HEARTBEAT=0.6)
        crew.start(3, threads=1)
        sequence = Deadly()
        wait_for(lambda: not any(worker.is_alive() for worker in crew.workers))
        row = step_of(sequence, "kills")
        assert (row.status, row.lost_workers) == ("running", 2)

        def lease_has_ended():
            sweep(AssumeLost(), "default")
            return step_of(sequence, "kills").status != "running"

        wait_for(lease_has_ended)
        ended(sequence, "failed")
        failure = sequence.run.failures.get()
        assert failure.error == "sequences.exceptions.WorkerLost"
        assert "3" in failure.message
        assert entries(sequence) == []


class TestShutdown:
    @pytest.mark.parametrize("kind", ["redis", "postgres"])
    def test_a_step_in_hand_is_released_or_ends_and_no_attempt_is_counted(
        self, kind, hire, gate, tmp_path
    ):
        crew = hire(kind)
        (old,) = crew.start(1, threads=3)
        patient_gate = Gate(tmp_path / "patient")
        released = Released(gate=str(gate))
        patient, direct = (cls(gate=str(patient_gate)) for cls in (Held, Direct))
        wait_for(gate.visitors)
        wait_for(lambda: len(patient_gate.visitors()) == 2)
        (new,) = crew.start(1)
        old.terminate()
        # The one that wants to be told goes on at once elsewhere, while the others still run.
        wait_for(lambda: len(gate.visitors()) == 2)
        gate.open()
        assert_once(released, "first", "held", "last")
        assert_no_failure(released)
        assert old.is_alive()
        patient_gate.open()
        assert_once(patient, "first", "held", "last")
        assert_no_failure(patient)
        assert_once(direct, "one", "two", "three", "four")
        assert len(patient_gate.visitors()) == 2
        assert old.process.wait(60) == 0
        # What came next was left to the other, the directly handed over too.
        for row in (step_of(patient, "last"), step_of(direct, "two")):
            assert new.has(int(row.worker.split(":")[1]))

    def test_a_worker_that_was_told_to_stop_takes_nothing_new_while_a_delayed_step_runs(
        self, hire, gate
    ):
        crew = hire()
        (old,) = crew.start(1)
        held = HeldLater(gate=str(gate))
        wait_for(gate.visitors)
        assert "sequences-timer" in step_of(held, "held").worker
        old.terminate()
        wait_for(lambda: "Shutting down..." in old.log)
        time.sleep(1)  # a thread that waits for a message does so for a second
        after = [Tiny() for _ in range(5)]
        time.sleep(2)
        assert [entries(one) for one in after] == [[]] * 5
        (new,) = crew.start(1)
        for one in after:
            assert_once(one, "only")
            assert new.has(int(step_of(one, "only").worker.split(":")[1]))
        assert old.is_alive()
        time.sleep(2 * crew.settings["LEASE"])  # its lease is kept
        gate.open()
        assert_once(held, "first", "held", "last")
        assert_no_failure(held)
        assert len(gate.visitors()) == 1
        assert old.process.wait(60) == 0


class TestPresence:
    def test_a_worker_is_seen_until_it_ends_and_missed_when_it_was_killed(self, hire):
        crew = hire()
        first, second = crew.start(2)
        wait_for(lambda: len(health.read().workers) == 2, "rows of two workers")
        wait_for(lambda: health.read().swept_at, "a sweep that is told of")
        assert {tuple(one.queues) for one in health.read().workers} == {(QUEUE,)}
        names = {one.name for one in health.read().workers}
        first.terminate()
        assert first.process.wait(60) == 0
        (left,) = health.read().workers
        assert second.has(int(left.name.rpartition(":")[2]))
        (ended,) = (one.name for one in health.read().processes if one.stopped_at)
        assert {ended, left.name} == names
        second.kill()
        with clock() as moving:
            moving.move(timedelta(minutes=2))
            assert [one.name for one in health.read().stale] == [left.name]
            assert "No worker has been seen for 2" in health.read().problems()[0]


class TestStall:
    """A worker wakes after its step was rescued."""

    def test_its_commit_is_lost_while_the_rescuer_performs_the_step(self, hire, gate):
        crew = hire()
        crew.start(2)
        sequence = Held(gate=str(gate))
        wait_for(gate.visitors)
        stalled = crew.performer(step_of(sequence, "held"))
        stalled.freeze()
        wait_for(lambda: len(gate.visitors()) == 2)
        row = step_of(sequence, "held")
        wake(stalled, gate, gate.visitors()[0])
        assert step_of(sequence, "held").status == "running"
        assert step_of(sequence, "held").token == row.token
        assert entries(sequence) == ["first"]
        gate.open()
        assert_once(sequence, "first", "held", "last")
        assert step_of(sequence, "held").worker == row.worker
        assert not sequence.run.failures.exists()

    def test_its_commit_is_lost_after_that_of_the_rescuer(self, hire, gate, tmp_path):
        crew = hire()
        crew.start(2)
        last_gate = Gate(tmp_path / "last")
        sequence = HeldTwice(gate=str(gate), last_gate=str(last_gate))
        wait_for(gate.visitors)
        stalled = crew.performer(step_of(sequence, "held"))
        stalled.freeze()
        gate.open()
        wait_for(last_gate.visitors)
        row = step_of(sequence, "held")
        wake(stalled, gate, gate.visitors()[0])
        assert columns(step_of(sequence, "held")) == columns(row)
        assert step_of(sequence, "held").token == row.token
        assert entries(sequence) == ["first", "held"]
        last_gate.open()
        assert_once(sequence, "first", "held", "last")
        assert len(last_gate.visitors()) == 1
        assert not sequence.run.failures.exists()


def wake(stalled, gate, pid):
    """Let a worker go on that has lost its step, and wait until it knows."""
    before = stalled.log.count("was skipped")
    gate.open(pid)
    stalled.thaw()
    wait_for(lambda: stalled.log.count("was skipped") > before, "what the stalled worker did")


class TestLocks:
    """Somebody holds a run for long: a shell that was left open in a transaction."""

    def test_the_other_steps_of_its_worker_keep_their_leases(self, hire, gate):
        crew = hire()
        (first,) = crew.start(1, threads=3)
        sequences = [Outside(gate=str(gate)) for _ in range(3)]
        wait_for(lambda: len(gate.visitors()) == 3)
        crew.start(1)
        with held(sequences[0].run.cancel):
            lease = timedelta(seconds=crew.settings["LEASE"])
            others = [step_of(one, "only") for one in sequences[1:]]
            wait_for(lambda: all(is_kept(row, 2 * lease) for row in others), "their leases")
            assert len(gate.visitors()) == 3, "another worker performs one of them, too"
        # Nor the locked one, whose lease has run out: its worker has said that it holds it.
        locked = step_of(sequences[0], "only")
        wait_for(lambda: is_kept(locked, 2 * lease), "the lease of the one that was locked")
        assert len(gate.visitors()) == 3
        gate.open()
        for sequence in sequences:
            assert_once(sequence, "only")
            assert_no_failure(sequence)
            assert first.has(int(step_of(sequence, "only").worker.split(":")[1]))

    def test_the_sweep_sees_to_all_other_runs_and_to_the_locked_one_afterwards(
        self, hire, gate, tmp_path
    ):
        crew = hire()
        (dead,) = crew.start(1, threads=2)
        other_gate = Gate(tmp_path / "other")
        locked, other = Held(gate=str(gate)), Held(gate=str(other_gate))
        wait_for(lambda: gate.visitors() and other_gate.visitors())
        dead.kill()
        with held(locked.run.pause):
            crew.start(2)
            delayed = Tiny.start({}, delay=timedelta(seconds=2))
            lost = Tiny()
            crew.lose_messages()
            other_gate.open()
            assert_once(other, "first", "held", "last")
            assert_once(delayed, "only")
            assert_once(lost, "only")
            assert len(gate.visitors()) == 1
            with clock() as moving:
                moving.move(timedelta(minutes=2))
                problems = [one for one in health.read().signs if one.name == "locked"]
                assert [str(locked.run.pk) in one.advice for one in problems] == [True]
        gate.open()
        assert_once(locked, "first", "held", "last")
        assert len(gate.visitors()) == 2

    def test_locks_that_come_and_go_lose_nothing_and_double_nothing(self, hire, gate):
        crew = hire(GRACE=1.5)
        crew.start(2, threads=3)
        gate.open()
        sequences = [Held(gate=str(gate)) for _ in range(12)]
        chance = random.Random(8)
        acts = [
            lambda run: run.pause,
            lambda run: run.cancel,
            lambda run: lambda: list(SequenceRun.objects.select_for_update().filter(pk=run.pk)),
            lambda run: lambda: list(StepRun.objects.select_for_update().filter(run=run.pk)),
        ]
        for index in range(24):
            if index == 12:
                crew.workers[0].kill()
                crew.start(1, threads=3)
            run = chance.choice(sequences).run
            run.refresh_from_db()
            if run.is_finished:
                continue
            with held(harmless(chance.choice(acts)(run))):
                time.sleep(chance.uniform(0, 0.5))
        for sequence in sequences:
            assert_once(sequence, "first", "held", "last")
            assert not sequence.run.failures.exists()


def harmless(act):
    """The same, though the run may have ended by now."""

    def call():
        with suppress(InvalidTransition):
            act()

    return call


def is_kept(row, lease):
    """Whether its lease was extended long after its first one has run out."""
    row.refresh_from_db()
    return row.status == "running" and row.wake_at > row.started_at + lease


class TestQueue:
    @pytest.mark.parametrize("kind", BROKERS)
    def test_all_messages_may_be_lost(self, kind, hire):
        crew = hire(kind)
        sequences = [Held(gate=str(opened(crew))) for _ in range(3)]
        crew.lose_messages()
        crew.start(1)
        for sequence in sequences:
            assert_once(sequence, "first", "held", "last")
            assert_no_failure(sequence)

    @pytest.mark.parametrize("kind", ["redis", "postgres"])
    def test_a_long_one_gets_next_to_no_duplicates(self, kind, hire, gate):
        crew = hire(kind, GRACE=1)
        crew.start(1)
        busy = [Busy(gate=str(gate)) for _ in range(2)]
        wait_for(lambda: len(gate.visitors()) == 2)
        tiny = Tiny.start_many([{} for _ in range(300)])
        rows = StepRun.objects.filter(run__in=[one.run.pk for one in tiny])
        # The sweep has looked at each when it had waited for several graces, and for as long as
        # an idle queue takes to count as empty.
        looked = rows.annotate(looked=F("wake_at") - F("queued_at"))
        wait_for(lambda: not [one for one in looked.all() if one.looked.total_seconds() < 7])
        gate.open()
        for sequence in busy:
            assert_once(sequence, "only")
        wait_for(lambda: not rows.exclude(status="succeeded").exists())
        assert Entry.objects.filter(run__in=rows.values("run")).count() == len(tiny)
        assert rows.aggregate(Sum("dispatches"))["dispatches__sum"] < 3
        assert crew.skipped() < 3


def opened(crew):
    gate = Gate(crew.directory / "opened")
    gate.open()
    return gate


class TestBrokerDown:
    @pytest.mark.parametrize("kind", SERVERS)
    def test_no_publish_that_fails_loses_anything(self, kind, hire, request, tmp_path):
        with Gateway(request.getfixturevalue(f"{kind}_url")) as gateway:
            crew = hire(kind, gateway)
            (worker,) = crew.start(1)
            gates = [Gate(tmp_path / name) for name in ("hand-over", "retry")]
            handing_over, retrying = Held(gate=str(gates[0])), FailsOnce(gate=str(gates[1]))
            for gate in gates:
                wait_for(gate.visitors)
            gateway.close()
            starting = Tiny()
            assert starting.run.status == "running"
            for gate in gates:
                gate.open()
            wait_for(lambda: handing_over.run.steps.filter(step="last").exists())
            wait_for(retrying.run.failures.exists)
            # The sweep tries as well, in vain.
            rows = StepRun.objects.filter(step__in=("last", "only"))
            swept = rows.filter(wake_at__gt=F("queued_at") + timedelta(seconds=4))
            wait_for(lambda: swept.count() == 2)
            assert set(rows.values_list("dispatches", flat=True)) == {0}
            gateway.open()
            assert_once(starting, "only")
            assert_once(handing_over, "first", "held", "last")
            assert_once(retrying, "fails", "last")
            assert step_of(retrying, "fails").attempts == 1
            # What could not be handed over is no fault of the step before.
            assert "Failed to process message acceptance.Held" not in worker.log

    def test_one_that_breaks_in_the_midst_of_many_starts_loses_none(self, hire, redis_url):
        with Gateway(redis_url) as gateway:
            crew = hire("redis", gateway)
            gateway.left = 100_000  # of some 150,000
            sequences = Tiny.start_many([{}] * 300)
            with redis.Redis.from_url(redis_url) as server:
                assert 0 < server.llen(f"{crew.namespace}:{QUEUE}") < 300
            rows = StepRun.objects.filter(status="queued", wake_at__isnull=False)
            assert rows.count() == 300
            gateway.left = None
            crew.start(1)
            for sequence in sequences:
                assert_once(sequence, "only")
                assert_no_failure(sequence)

    def test_a_worker_may_start_before_it(self, hire, redis_url):
        with Gateway(redis_url) as gateway:
            crew = hire("redis", gateway)
            gateway.close()
            crew.start(1)
            sequence = Tiny()
            gateway.open()
            assert_once(sequence, "only")
            assert_no_failure(sequence)


class TestDirectHandoff:
    def test_it_needs_no_broker_until_a_step_fails(self, hire, gate, redis_url):
        with Gateway(redis_url) as gateway:
            crew = hire("redis", gateway)
            crew.start(1)
            sequence = Direct(gate=str(gate))
            wait_for(gate.visitors)
            gateway.close()
            gate.open()
            wait_for(sequence.run.failures.exists)
            assert entries(sequence) == ["one", "two"]
            gateway.open()
            assert_once(sequence, "one", "two", "three", "four")
        one, two, three, four = sequence.run.steps.order_by("pk")
        assert one.worker == two.worker == sequence.run.failures.get().worker
        assert three.worker == four.worker
        assert three.attempts == 1


# From here on all tests share one crew.


class TestMessages:
    def test_one_that_is_delivered_several_times_at_once_is_performed_once(self, crew):
        with dispatcher.capture_dispatches() as dispatches:
            sequences = [Tiny() for _ in range(10)]
        before = crew.skipped()
        for worker in crew.workers:
            worker.freeze()
        for one in dispatches:
            for _ in range(4):  # each with an id of its own: a broker may keep one of an id
                crew.broker.enqueue(dispatcher.message_for(one))
        for worker in crew.workers:
            worker.thaw()
        for sequence in sequences:
            assert_once(sequence, "only")
            assert_no_failure(sequence)
        wait_for(lambda: crew.skipped() == before + 30, "the skipping of each duplicate")
        assert Entry.objects.count() == 10

    def test_one_that_comes_again_while_its_step_runs_changes_nothing(self, crew, gate):
        with dispatcher.capture_dispatches() as dispatches:
            sequence = Busy(gate=str(gate))
        message = dispatcher.message_for(dispatches[0])
        crew.broker.enqueue(message)
        wait_for(gate.visitors)
        before = crew.skipped()
        crew.broker.enqueue(message)
        wait_for(lambda: crew.skipped() > before)
        gate.open()
        assert_once(sequence, "only")
        assert_no_failure(sequence)
        assert len(gate.visitors()) == 1


class TestLongSteps:
    def test_one_outlives_its_lease_and_shows_its_progress(self, crew, gate):
        sequence = Long(gate=str(gate))
        wait_for(lambda: step_of(sequence, "goes_on").progress, "the progress of a running step")
        row = step_of(sequence, "goes_on")
        assert row.status == "running"
        assert row.progress == {"done": 1, "total": 2, "text": "half of it"}
        lease = timedelta(seconds=crew.settings["LEASE"])
        # Each heartbeat gives it a lease from then on: it has run for one and a half.
        wait_for(lambda: step_of(sequence, "goes_on").wake_at > row.started_at + 2.5 * lease)
        gate.open()
        assert_once(sequence, "goes_on")
        assert_no_failure(sequence)
        assert len(gate.visitors()) == 1
        assert step_of(sequence, "goes_on").progress == {"done": 2, "total": 2, "text": ""}
        assert step_of(sequence, "goes_on").token == row.token

    def test_one_that_exceeds_its_time_limit_has_failed_once_and_its_thread_goes_on(self, crew):
        # More than there are threads.
        sequences = [Overtime() for _ in range(5)]
        for sequence in sequences:
            assert_once(sequence, "takes_long", "last")
            failure = sequence.run.failures.get()
            assert failure.error == "dramatiq.middleware.time_limit.TimeLimitExceeded"
            assert failure.message == "The attempt exceeded its time limit of 500 ms."
            assert step_of(sequence, "takes_long").attempts == 1


#: What tells one performance of the same sequence from another.
INCIDENTAL = {"id", "run_id", "step_run_id", "token", "waiting_since", "worker"}


def rows_of(sequence):
    """All that is stored of a run, but for ids, times, tokens and workers."""
    sequence.run.refresh_from_db()
    rows = {
        "run": [sequence.run],
        "steps": sequence.run.steps.order_by("pk"),
        "failures": sequence.run.failures.order_by("pk"),
        "operations": sequence.run.operations.order_by("pk"),
    }
    return {name: [columns(row) for row in found] for name, found in rows.items()}


def columns(row):
    names = [field.attname for field in row._meta.concrete_fields]
    return {
        name: getattr(row, name)
        for name in names
        if name not in INCIDENTAL and not name.endswith("_at")
    }


class TestInline:
    @pytest.mark.parametrize(
        ("cls", "status"), [(Everything, "succeeded"), (GivesUp, "failed"), (Aborts, "failed")]
    )
    def test_it_leaves_the_same_rows_as_a_real_worker(self, cls, status, crew):
        by_worker = cls()
        ended(by_worker, status)
        with crew.aside():
            inline = run_sequence(cls)
        assert rows_of(inline) == rows_of(by_worker)
        assert entries(inline) == entries(by_worker)
