"""Worker processes tell that they are there, and what is read of them and of the steps."""

import json
import logging
import os
import signal
import threading
import time
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext

from sequences import Sequence, step
from sequences.engine import current
from sequences.inspection import health
from sequences.inspection.health import Level
from sequences.models import SequenceRun, StepRun, StoredPlan, WorkerProcess
from sequences.testing import clock
from sequences.transitions import plans, processes
from sequences.worker.heartbeat import HeartbeatThread
from sequences.worker.registration import WorkerRegistration
from sequences.worker.sweeper import AssumeLost, Sweeper, run_forever
from tests.console import command
from tests.engine import change, claim, fail, now, overdue, row

pytestmark = pytest.mark.django_db

USING = "default"


@pytest.fixture
def run():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=5)
        def pay(self): ...

    return Order.start().run


def ago(seconds):
    return now() - timedelta(seconds=seconds)


def process(name="box:1", seen=0, threads=8, swept=1, stopped=False, queues=()):
    return WorkerProcess.objects.create(
        name=name,
        queues=list(queues),
        threads=threads,
        started_at=ago(7200),
        seen_at=ago(seen),
        swept_at=None if swept is None else ago(swept),
        stopped_at=ago(seen) if stopped else None,
    )


def sign(name):
    return next(sign for sign in health.read().signs if sign.name == name)


# --- what is written


def test_a_process_has_one_row_that_says_what_it_is_and_when_it_swept():
    here = WorkerRegistration(8, lambda: {"mail", "default"})
    here.beat(USING)
    first = WorkerProcess.objects.get()
    assert first.name == current.process()
    assert (first.queues, first.threads, first.swept_at) == (["default", "mail"], 8, None)
    here.swept()
    here.beat(USING)
    first = WorkerProcess.objects.get()
    assert first.swept_at is not None, "the first sweep is told at once"
    here.swept()
    with clock() as moving:
        moving.move(timedelta(minutes=1))
        here.beat(USING)
        assert WorkerProcess.objects.get().seen_at == first.seen_at, "it was told lately"
        here._reported -= processes.REPORT_INTERVAL_SECONDS
        here.beat(USING)
        again = WorkerProcess.objects.get()
        assert again.pk == first.pk
        assert again.seen_at - first.seen_at > timedelta(seconds=59)
        assert abs(again.swept_at - again.seen_at) < timedelta(seconds=5)
    here.end(USING)
    ended = WorkerProcess.objects.get()
    assert ended.pk == first.pk
    assert ended.stopped_at == ended.seen_at > again.seen_at - timedelta(minutes=2)
    assert ended.swept_at <= ended.stopped_at


def test_who_was_never_shown_takes_no_row_of_its_name_with_it():
    process(current.process())
    WorkerRegistration().end("default")
    assert WorkerProcess.objects.get().stopped_at is None


def test_processes_of_one_name_have_a_row_each():
    # Containers with the name of their host, whose workers have the same numbers.
    one, other = WorkerRegistration(8, lambda: {"default"}), WorkerRegistration(4, lambda: {"mail"})
    other.end(USING)
    one.beat(USING)
    other.end(USING)
    for _ in range(2):
        for presence_ in (one, other):
            presence_._reported = None
            presence_.beat(USING)
    rows = WorkerProcess.objects.order_by("pk")
    assert [(row.threads, row.queues) for row in rows] == [(8, ["default"]), (4, ["mail"])]
    assert rows[0].name == current.process()
    assert rows[1].name.startswith(f"{current.process()}~")
    one.end(USING)
    assert WorkerProcess.objects.get(stopped_at=None).threads == 4


def test_a_process_takes_the_row_of_one_of_its_name_that_has_just_stopped():
    # A container that restarts with the name of its host, and the same process id.
    before = WorkerRegistration(8)
    before.leaves_out([7])
    before.beat(USING)
    before.end(USING)
    assert not processes.holds(7, USING)
    WorkerRegistration(4).beat(USING)
    row = WorkerProcess.objects.get()
    assert (row.name, row.threads, row.stopped_at) == (current.process(), 4, None)


def test_a_process_that_was_taken_for_stopped_is_running_at_its_next_beat():
    here = WorkerRegistration(8)
    here.beat(USING)
    processes.stopped(current.process(), None, USING)
    assert not health.read().workers
    here._reported = None
    here.beat(USING)
    assert [process.name for process in health.read().workers] == [current.process()]


def test_a_process_takes_the_row_of_one_of_its_name_that_is_gone():
    process(current.process(), seen=30)
    WorkerRegistration(8).beat(USING)
    assert WorkerProcess.objects.get().name == current.process()


def test_who_sweeps_removes_the_rows_of_those_that_were_not_seen_for_an_hour():
    process("old:1", seen=3601)
    process("old:2", seen=3601, stopped=True)
    process("new:1", seen=3599)
    process("new:2", seen=3599, stopped=True)
    here = WorkerRegistration(8)
    here.beat(USING)
    assert WorkerProcess.objects.count() == 5, "it does not sweep"
    here.swept()
    here._reported = None
    here.beat(USING)
    assert set(WorkerProcess.objects.values_list("name", flat=True)) == {
        "new:1",
        "new:2",
        current.process(),
    }


def test_what_cannot_be_written_is_said_once_and_hurts_nobody(monkeypatch, caplog):
    def refuse(*_):
        raise DatabaseError("no such table")

    monkeypatch.setattr(processes, "register", refuse)
    here = WorkerRegistration(8)
    with caplog.at_level(logging.WARNING, "sequences"):
        for _ in range(3):
            here._reported = None
            here.beat(USING)
    assert [record.getMessage() for record in caplog.records] == [
        "Could not register this worker process: no such table"
    ]


class Noted(WorkerRegistration):
    """Notes what it is told, and raises nothing as the real one does."""

    def __init__(self):
        super().__init__(1)
        self.beats, self.sweeps, self.ends = 0, 0, 0
        self.has_beaten, self.has_swept = threading.Event(), threading.Event()

    def beat(self, using):
        self.beats += 1
        self.has_beaten.set()

    def swept(self):
        self.sweeps += 1
        self.has_swept.set()

    def end(self, using):
        self.ends += 1


def test_the_heartbeat_shows_its_process_until_it_is_stopped(settings):
    settings.SEQUENCES = {"HEARTBEAT": 0.02, "SWEEP_INTERVAL": None}
    noted = Noted()
    heart = HeartbeatThread(noted)
    heart.start()
    assert noted.has_beaten.wait(10)
    assert noted.ends == 0
    heart.stop()
    assert noted.ends == 1
    assert not heart.is_alive()


class Broken:
    """In the place of all connections, or of one: it cannot even be closed."""

    def close_all(self):
        raise DatabaseError("half open")

    def __getitem__(self, alias):
        return self

    close_if_unusable_or_obsolete = close_all


def test_a_connection_that_does_not_close_stops_no_heart_and_no_sweep(settings, monkeypatch):
    settings.SEQUENCES = {"HEARTBEAT": 0.02}
    monkeypatch.setattr("sequences.worker.registration.connections", Broken())
    beats, sweeps, here = [], [], WorkerRegistration()

    def beat(using):
        beats.append(using)
        here._reported = None
        raise DatabaseError("gone")

    def sweep(*_):
        sweeps.append(_)
        raise DatabaseError("gone")

    monkeypatch.setattr("sequences.worker.sweeper.Scheduler.look", lambda *args: None)
    monkeypatch.setattr("sequences.engine.leases.beat", beat)
    monkeypatch.setattr("sequences.worker.sweeper.sweep", sweep)
    monkeypatch.setattr("sequences.worker.sweeper.store_plans", lambda using: None)
    monkeypatch.setattr("sequences.worker.queue_monitor.DRAINED_AFTER_SECONDS", 0)
    monkeypatch.setattr(processes, "register", beat)
    monkeypatch.setattr(processes, "stopped", beat)
    threads = [HeartbeatThread(here), Sweeper(AssumeLost(), 0.01, here)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while (len(beats) < 4 or len(sweeps) < 2) and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.stop()
    assert not any(thread.is_alive() for thread in threads)


def test_a_sweep_counts_when_it_has_ended_well(monkeypatch):
    outcomes = [DatabaseError("down"), 0]

    def sweep(*_):
        outcome = outcomes.pop(0) if outcomes else 0
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("sequences.worker.sweeper.sweep", sweep)
    monkeypatch.setattr("sequences.worker.sweeper.store_plans", lambda using: None)
    monkeypatch.setattr("sequences.worker.queue_monitor.DRAINED_AFTER_SECONDS", 0)
    noted = Noted()
    sweeper = Sweeper(AssumeLost(), 0.01, noted)
    sweeper.start()
    assert noted.has_swept.wait(10)
    sweeper.stop()
    assert outcomes == [], "the first had failed"


def test_the_command_that_sweeps_for_ever_is_seen_and_says_good_bye(monkeypatch):
    seen = []

    def interrupted(seconds):
        seen.extend(WorkerProcess.objects.all())
        raise KeyboardInterrupt

    monkeypatch.setattr("sequences.worker.sweeper.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_forever(1)
    assert [(one.threads, one.swept_at is not None) for one in seen] == [(0, True)]
    assert WorkerProcess.objects.get().stopped_at is not None


def test_a_sweep_from_cron_is_seen_however_often_it_comes():
    for _ in range(2):
        command("sweep")
    assert WorkerProcess.objects.get().swept_at is not None
    assert sign("sweep").level == Level.GOOD
    assert sign("workers").level == Level.BAD, "who only sweeps performs nothing"


# --- what is read


def test_all_is_well_where_a_worker_sweeps_and_nothing_waits():
    process()
    found = health.read()
    assert found.level == Level.GOOD
    assert found.problems() == []
    assert [sign.name for sign in found.signs] == [
        "workers",
        "sweep",
        "queued",
        "expired",
        "overdue",
    ]


def test_the_command_tells_monitoring_how_it_stands():
    with pytest.raises(CommandError) as caught:
        call_command("sequences", "health", stdout=(out := StringIO()))
    assert caught.value.returncode == 1
    assert out.getvalue().startswith("bad      No workers. No worker has been seen")
    process()
    told = json.loads(command("health", "--json"))
    assert (told["level"], told["workers"]) == ("good", ["box:1"])
    assert told["signs"][0] == {
        "name": "workers",
        "level": "good",
        "says": "1 worker",
        "advice": "",
    }


def test_a_command_that_sweeps_takes_leave_when_it_is_terminated(monkeypatch):
    def terminated(interval):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("sequences.management.cli.maintenance.run_forever", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert command("sweep", "--loop") == "Stopped.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_worker_is_an_alarm_that_says_what_to_look_at():
    assert "for an hour. Is `rundramatiq` running?" in sign("workers").advice
    process(seen=300)
    assert sign("workers").level == Level.BAD
    assert "No worker has been seen for 5 min" in str(sign("workers"))
    assert any("rundramatiq" in problem for problem in health.read().problems())


def test_a_worker_that_went_without_a_word_is_named():
    process("box:1")
    process("box:2", seen=39)
    assert sign("workers").says == "2 workers"
    process("box:3", seen=120)
    found = sign("workers")
    assert (found.level, found.says) == (Level.WARNING, "2 workers, 1 dead")
    assert "box:3 was last seen 2 min ago" in found.advice


def test_a_worker_that_was_stopped_is_not_dead_and_tells_since_when_there_is_none():
    process("box:1", seen=242, swept=243)  # killed
    process("box:2", seen=5, swept=6, stopped=True)
    process("box:3", seen=2, threads=0, swept=None)
    found = sign("workers")
    assert (found.level, found.says) == (Level.BAD, "No workers")
    assert "The last worker, box:2, was shut down 5 s ago." in found.advice
    assert str(sign("sweep")) == "Last sweep 6 s ago"
    WorkerProcess.objects.filter(name="box:2").update(
        seen_at=ago(100), swept_at=ago(101), stopped_at=ago(100)
    )
    assert "box:2, was shut down 1 min 40 s ago." in sign("workers").advice
    assert sign("sweep").says == "No sweep: the last one ended 1 min 41 s ago"
    WorkerProcess.objects.filter(name="box:1").update(seen_at=ago(109))
    assert "No worker has been seen for 1 min 40 s." in sign("workers").advice, "which was last?"
    process("box:4")
    assert sign("workers").says == "1 worker, 1 dead"
    WorkerProcess.objects.filter(name="box:1").delete()
    assert sign("workers").says == "1 worker"


def test_who_was_stopped_a_moment_ago_sweeps_no_more():
    process("box:1", swept=90, stopped=True)
    assert sign("sweep").says == "No sweep: the last one ended 1 min 30 s ago"


SWEEPS = [(5, Level.GOOD), (70, Level.WARNING), (400, Level.BAD), (None, Level.BAD)]


@pytest.mark.parametrize(("swept", "level"), SWEEPS)
def test_the_last_sweep_is_the_newest_of_all_processes(swept, level):
    process(swept=swept)
    process("box:2", swept=None)
    assert sign("sweep").level == level


def test_no_sweep_is_not_a_late_one():
    process(swept=None)
    assert sign("sweep").says == "No sweep"
    process("box:2", seen=120, swept=120)
    assert sign("sweep").says == "No sweep: the last one ended 2 min ago"
    assert "No process is running the sweep" in sign("sweep").advice
    process("box:3", seen=2, swept=90)
    assert sign("sweep").says == "Sweep late: the last one ended 1 min 30 s ago"
    assert "box:3 has started a sweep but not finished it" in sign("sweep").advice


def test_a_stalled_worker_is_not_a_dead_one():
    process("box:1")
    process("box:2", seen=3, swept=200)
    stalled = sign("workers")
    assert (stalled.level, stalled.says) == (Level.WARNING, "2 workers, 1 stalled")
    assert "box:2 is alive, but its last sweep ended 3 min 20 s ago" in stalled.advice
    WorkerProcess.objects.filter(name="box:2").update(seen_at=ago(200))
    dead = sign("workers")
    assert dead.says == "1 worker, 1 dead"
    assert "was it killed?" in dead.advice


def test_workers_that_run_nothing_while_steps_wait_need_no_more_workers(run):
    process()
    change(run, "pay", queued_at=ago(120))
    assert "no worker is running any" in sign("queued").advice


def test_a_queue_that_no_worker_consumes_is_named(run):
    process(queues=["mail", "other"])
    assert sign("queued").level == Level.GOOD, "a worker may be about to start"
    change(run, "pay", queued_at=ago(25))
    found = sign("queued")
    assert (found.level, found.says) == (Level.WARNING, "1 queued, the oldest for 25 s")
    assert found.advice.startswith("No worker consumes the queue default. Start a worker that")
    WorkerProcess.objects.update(seen_at=ago(60))
    process("box:2", queues=["default"])
    assert sign("queued").level == Level.GOOD
    change(run, "pay", queued_at=ago(400))
    assert "no worker is running any" in sign("queued").advice
    WorkerProcess.objects.filter(name="box:2").update(queues=["mail"])
    found = sign("queued")
    assert (found.level, found.advice[:18]) == (Level.BAD, "No worker consumes")
    process("box:3")
    assert "No worker consumes" not in sign("queued").advice, "box:3 has not told its queues"


def test_a_long_queue_costs_two_more_queries_to_find_who_consumes_it(run):
    process(queues=["mail"])
    change(run, "pay", queued_at=ago(70))
    plans.forget()
    with CaptureQueriesContext(connection) as queries:
        assert health.read().unserved == ("default",)
    assert len(queries) == (9 if connection.vendor == "sqlite" else 10)


def test_a_dead_worker_that_others_have_replaced_is_forgiven(run):
    process("box:1", seen=50, queues=["default"])
    claim(run, "pay", "box:1:Thread-3~ab")
    process("box:2", queues=["default", "mail"])
    assert sign("workers").says == "1 worker, 1 dead", "a step is still in its hands"
    change(run, "pay", worker="box:12:Thread-3~ab")
    found = sign("workers")
    assert (found.level, found.says, found.advice) == (Level.GOOD, "1 worker", "")
    assert [one.name for one in health.read().stale] == ["box:1"]
    WorkerProcess.objects.filter(name="box:1").update(queues=["default", "images"])
    assert sign("workers").says == "1 worker, 1 dead", "nobody consumes images"


def test_a_dead_worker_is_forgiven_once_the_sweep_has_taken_its_step_back(run):
    process("box:1", seen=50, queues=["default"])
    process("box:2", queues=["default"])
    claim(run, "pay", "box:1:Thread-3~ab")
    overdue(run, "pay")
    assert sign("workers").level == Level.WARNING
    command("sweep")
    assert row(run, "pay").status == "queued"
    assert sign("workers").level == Level.GOOD


def test_steps_of_a_class_that_is_gone_are_not_healthy(run):
    process()
    assert "classless" not in [sign.name for sign in health.read().signs]
    SequenceRun.objects.update(sequence="shop.Removed")
    StoredPlan.objects.update(sequence="shop.Removed")
    missing = sign("classless")
    assert missing.level == Level.WARNING
    assert missing.says == "1 step with a missing class"
    assert "No release with the class shop.Removed is deployed here" in missing.advice
    run.refresh_from_db()
    run.cancel()
    assert "classless" not in [sign.name for sign in health.read().signs]


@pytest.mark.parametrize(
    ("seconds", "level"), [(1, Level.GOOD), (70, Level.WARNING), (400, Level.BAD)]
)
def test_what_is_queued_for_long_asks_for_more_workers(run, seconds, level):
    change(run, "pay", queued_at=ago(seconds))
    found = sign("queued")
    assert found.level == level
    assert found.says.startswith("1 queued, the oldest for ")
    assert bool(found.advice) == (level > Level.GOOD)


def test_a_step_past_its_lease_is_seen(run):
    claim(run, "pay")
    assert sign("expired").level == Level.GOOD
    overdue(run, "pay")
    assert (sign("expired").level, sign("expired").says) == (
        Level.WARNING,
        "1 expired lease",
    )
    overdue(run, "pay", timedelta(minutes=6))
    assert sign("expired").level == Level.BAD


def test_a_retry_that_nobody_begins_is_overdue_however_often_the_sweep_has_looked(run):
    fail(claim(run, "pay"), final=False)
    change(run, "pay", due_at=ago(5), wake_at=now() + timedelta(minutes=4))
    assert sign("overdue").level == Level.GOOD, "a grace is left"
    change(run, "pay", due_at=ago(20))
    assert sign("overdue").says == "1 overdue retry"


def test_what_waits_for_days_is_nobodys_concern(run):
    change(run, "pay", status="waiting", wake_at=now() + timedelta(days=3))
    assert health.read().queued == 0
    change(run, "pay", status="queued", wake_at=None, queued_at=ago(9999))
    assert health.read().queued == 0, "its run is paused"


def test_of_some_runs_only_their_steps_are_counted(run):
    process()
    assert health.read().queued == 1
    found = health.read(runs=SequenceRun.objects.filter(sequence="shop.Other"))
    assert (found.queued, len(found.workers)) == (0, 1)
    assert health.read(runs=SequenceRun.objects.filter(sequence="shop.Order")).queued == 1


def test_it_takes_eight_queries_and_looks_at_so_many_rows_only(run, monkeypatch):
    extra = [type(run)(plan_id=run.plan_id, sequence=run.sequence) for _ in range(3)]
    for one in extra:
        one.created_at = one.updated_at = now()
    SequenceRun.objects.bulk_create(extra)
    pay = row(run, "pay")
    StepRun.objects.bulk_create(
        StepRun(run=one, step="pay", ready_at=now(), queued_at=ago(70), wake_at=pay.wake_at)
        for one in extra
    )
    with CaptureQueriesContext(connection) as queries:
        assert health.read().queued == 4
    # SQLite is not asked for the time.
    assert len(queries) == (7 if connection.vendor == "sqlite" else 8)
    monkeypatch.setattr(health, "MAX_STEP_RUNS", 2)
    assert sign("queued").says.startswith("3+ queued")
