"""Schedules start runs: each slot one run, whatever happens."""

import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from sequences import Sequence, checks, cron, event, every, step
from sequences.definitions import registry
from sequences.definitions.schedules import Timetable, Turn, turn_of
from sequences.engine import dispatcher
from sequences.engine.schedules import declarations, give_turn, sync
from sequences.engine.start import start_of
from sequences.exceptions import (
    InvalidData,
    InvalidSchedule,
    UnknownSchedule,
    UnknownSequence,
)
from sequences.inspection import health
from sequences.inspection import schedules as inspection
from sequences.models import Schedule, ScheduleOperation, SequenceRun
from sequences.testing import clock, drain, isolate_sequences, sync_schedules
from sequences.transitions import schedules, starts
from sequences.worker.scheduler import AtOnce, Scheduler, Turns
from tests import locks
from tests.console import command
from tests.engine import now

pytestmark = pytest.mark.django_db

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass
class Order:
    number: int


def report(*, name="Report", **options):
    """A sequence with these options in its Meta."""
    return declare(name, options, write=step(lambda self: None))


def waiting_report(**options):
    """One whose runs end when somebody says so."""
    return declare("Report", options, approval=event())


def declare(name, options, **steps):
    meta = type("Meta", (), {"app_label": "shop", **options})
    return type(Sequence)(name, (Sequence,), {"__module__": __name__, "Meta": meta, **steps})


def keys(cls):
    return list(cls.runs.order_by("created_at").values_list("key", flat=True))


def look():
    """A sweep of some process."""
    return Scheduler(AtOnce()).look("default")


def stored(cls, name="default"):
    return cls.schedules.get(name)


def make_due(schedule, by=timedelta(0)):
    """Its slot has come, so long ago; returns that slot."""
    row = Schedule.objects.get(pk=schedule.pk)
    slot = row.timetable.latest(datetime(2000, 1, 1, tzinfo=UTC), now() - by)
    Schedule.objects.filter(pk=row.pk).update(next_slot=slot, wake_at=slot)
    return slot


# Turns


def test_each_slot_starts_one_run_with_the_data_of_its_schedule():
    cls = report(schedule=every(HOUR, data={"kind": "hourly"}))
    with clock() as moving:
        sync_schedules()
        first = stored(cls).next_slot
        moving.move(3 * HOUR)
        drain()
        assert keys(cls) == [
            f"schedule:default:{(first + offset * HOUR):%Y-%m-%dT%H:%M:%SZ}" for offset in range(3)
        ]
    assert {run.status for run in cls.runs.all()} == {"succeeded"}
    assert {run.data["kind"] for run in cls.runs.all()} == {"hourly"}
    assert stored(cls).next_slot == first + 3 * HOUR


def test_a_function_of_the_slot_makes_the_data():
    cls = report(
        schedule=cron(
            "0 3 * * *",
            timezone="Europe/Berlin",
            data=lambda slot: {"day": slot.date(), "hour": slot.hour},
        )
    )
    with clock() as moving:
        sync_schedules()
        assert moving.move_to_next(stored(cls))
        slot = stored(cls).next_slot
        drain()
    (run,) = cls.runs.all()
    assert run.data == {"day": str(stored(cls).timetable and (slot + 2 * HOUR).date()), "hour": 3}


def test_nothing_starts_before_its_time():
    cls = report(schedule=every(HOUR))
    sync_schedules()
    look()
    drain()
    assert keys(cls) == []


def test_a_slot_has_one_run_also_if_the_schedule_is_made_again():
    cls = report()
    schedule = cls.schedules.create("hourly", every(HOUR))
    slot = make_due(schedule)
    look()
    schedule.remove()
    again = cls.schedules.create("hourly", every(HOUR))
    Schedule.objects.filter(pk=again.pk).update(next_slot=slot, wake_at=slot)
    look()
    assert len(keys(cls)) == 1
    again.refresh_from_db()
    assert again.next_slot == slot + HOUR


def test_a_run_is_published_after_the_commit(django_capture_on_commit_callbacks):
    cls = report(schedule=every(HOUR))
    sync_schedules()
    make_due(stored(cls))
    with dispatcher.capture_dispatches() as dispatches:
        with django_capture_on_commit_callbacks(execute=True):
            look()
            assert not dispatches
        assert [each.actor for each in dispatches] == ["shop.Report.write"]


def test_a_sweep_without_schedules_is_one_query():
    scheduler = Scheduler(AtOnce())
    scheduler.look("default")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert scheduler.look("default") is None
    assert len(queries) == 1
    assert "wake_at" in queries[0]["sql"]


def test_a_sweep_says_when_the_next_schedule_is_due():
    cls = report(schedule=every(HOUR))
    sync_schedules()
    Schedule.objects.update(wake_at=now() + timedelta(seconds=0.5))
    assert 0 < Scheduler(AtOnce()).look("default", within=1) <= 0.5
    assert Scheduler(AtOnce()).look("default", within=0.1) is None
    assert keys(cls) == []


@pytest.mark.parametrize(
    ("late", "missed", "count"),
    [(3 * HOUR, "latest", 1), (3 * HOUR, "all", 2), (timedelta(0), "latest", 1)],
)
def test_missed_slots_are_made_up_for(late, missed, count):
    cls = report(schedule=every(HOUR, catch_up=2 * HOUR, missed=missed, overlap="allow"))
    sync_schedules()
    slot = make_due(stored(cls), by=late)
    for _ in range(5):
        look()
    assert len(keys(cls)) == count
    row = stored(cls)
    assert row.next_slot > now()
    assert row.last_slot == row.next_slot - HOUR
    assert (row.skip_reason, row.skipped_slot is None) == (
        ("missed", False) if late > HOUR else ("", True)
    )
    assert row.last_slot >= slot


def test_a_slot_that_is_too_old_starts_nothing(caplog):
    cls = report(schedule=cron("0 3 * * *", timezone="UTC", catch_up=timedelta(0)))
    sync_schedules()
    row = stored(cls)
    long_ago = row.next_slot - DAY
    Schedule.objects.update(next_slot=long_ago, wake_at=long_ago)
    look()
    assert keys(cls) == []
    row.refresh_from_db()
    assert (row.skipped_slot, row.skip_reason) == (long_ago, "missed")
    assert row.next_slot == long_ago + DAY
    assert "missed its slot" in caplog.text


# Runs that overlap


def test_a_slot_is_skipped_while_the_last_run_is_unfinished():
    cls = waiting_report(schedule=every(HOUR))
    sync_schedules()
    give_turn(stored(cls).pk, "default", as_of=make_due(stored(cls), by=HOUR))
    slot = stored(cls).next_slot
    look()
    row = stored(cls)
    assert (len(keys(cls)), row.skipped_slot, row.skip_reason) == (1, slot, "overlap")
    assert row.next_slot == slot + HOUR
    row.last_run.cancel()
    make_due(row)
    look()
    assert len(keys(cls)) == 2


def test_a_slot_waits_for_the_end_of_the_last_run():
    cls = waiting_report(schedule=every(HOUR, overlap="wait", catch_up=timedelta(0)))
    sync_schedules()
    give_turn(stored(cls).pk, "default", as_of=make_due(stored(cls), by=HOUR))
    (first,) = cls.runs.all()
    slot = stored(cls).next_slot
    give_turn(stored(cls).pk, "default", as_of=slot)
    row = stored(cls)
    assert (row.is_waiting, row.next_slot, len(keys(cls))) == (True, slot, 1)
    assert timedelta(0) < row.wake_at - now() <= timedelta(seconds=30)
    first.cancel()
    Schedule.objects.update(wake_at=now())
    look()
    row = stored(cls)
    assert (row.is_waiting, row.last_slot, len(keys(cls))) == (False, slot, 2)


def test_runs_may_overlap():
    cls = waiting_report(schedule=every(HOUR, overlap="allow"))
    sync_schedules()
    for by in (HOUR, timedelta(0)):
        give_turn(stored(cls).pk, "default", as_of=make_due(stored(cls), by=by))
    assert len(keys(cls)) == 2
    assert all(run.status == "running" for run in cls.runs.all())


def test_a_run_that_is_gone_is_not_unfinished():
    cls = waiting_report(schedule=every(HOUR))
    sync_schedules()
    give_turn(stored(cls).pk, "default", as_of=make_due(stored(cls), by=HOUR))
    SequenceRun.objects.all().delete()
    make_due(stored(cls))
    look()
    assert len(keys(cls)) == 1


# One that fails


def test_one_that_fails_costs_the_others_nothing(caplog):
    def broken(slot):
        raise ValueError("no rates today")

    bad = report(name="Bad", schedule=every(HOUR, data=broken))
    good = report(name="Good", schedule=every(HOUR))
    sync_schedules()
    for cls in (bad, good):
        make_due(stored(cls))
    before = stored(bad)
    look()
    assert (keys(bad), len(keys(good))) == ([], 1)
    row = stored(bad)
    assert row.error == "builtins.ValueError: no rates today"
    assert (row.failures, row.next_slot) == (1, before.next_slot)
    assert timedelta(seconds=10) < row.wake_at - now() < timedelta(seconds=20)
    assert "could not start its run" in caplog.text


def test_one_that_fails_is_tried_again_with_the_same_slot():
    answers = [ValueError("no"), SystemExit(3), {"rate": 2}]

    def rates(slot):
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    cls = report(schedule=every(HOUR, data=rates))
    sync_schedules()
    slot = make_due(stored(cls))
    pauses = []
    for _ in range(3):
        look()
        if (row := stored(cls)).failures:
            pauses.append(row.wake_at - row.failed_at)
        Schedule.objects.update(wake_at=slot)
    assert pauses == [15 * SECOND, 30 * SECOND]
    (run,) = cls.runs.all()
    assert (run.data, stored(cls).last_slot) == ({"rate": 2}, slot)
    assert (stored(cls).error, stored(cls).failures) == ("", 0)


@pytest.mark.parametrize("data", [5, {"amount": object()}])
def test_data_that_cannot_be_stored_is_a_failure(data):
    cls = report(schedule=every(HOUR, data=lambda slot: data))
    sync_schedules()
    make_due(stored(cls))
    look()
    assert keys(cls) == []
    assert stored(cls).failures == 1
    assert stored(cls).error.startswith("sequences.exceptions.")


def test_a_query_that_fails_in_the_data_is_a_failure():
    def rows(slot):
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    cls = report(schedule=every(HOUR, data=rows))
    sync_schedules()
    make_due(stored(cls))
    with transaction.atomic():  # a statement that fails breaks a transaction around it
        pass
    if connection.vendor == "postgresql":
        pytest.skip("the test's own transaction is broken by it: see the test with threads")
    look()
    assert stored(cls).failures == 1


def test_a_schedule_whose_class_is_gone_says_so():
    with isolate_sequences():
        cls = report()
        schedule = cls.schedules.create("hourly", every(HOUR))
    make_due(schedule)
    Schedule.objects.update(wake_at=now() - 30 * SECOND)
    look()
    schedule.refresh_from_db()
    assert schedule.error == ""  # the workers of a later release may have it
    Schedule.objects.update(wake_at=now() - 2 * MINUTE)
    look()
    schedule.refresh_from_db()
    assert "UnknownSequence" in schedule.error
    assert "shop.Report" in schedule.error


# A crash at each boundary of a turn


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("place", ["starts.start", "schedules._write", "dispatcher.send"])
def test_after_a_crash_the_slot_has_one_run(monkeypatch, place):
    cls = report(schedule=every(HOUR))
    sync_schedules()
    slot = make_due(stored(cls))
    module, name = place.split(".")
    target = {"starts": starts, "schedules": schedules, "dispatcher": dispatcher}[module]
    function, crashes = getattr(target, name), [1]

    class Killed(BaseException):
        pass

    def crash(*args, **options):
        result = function(*args, **options) if module != "dispatcher" else []
        if crashes:
            crashes.pop()
            raise Killed
        return result

    monkeypatch.setattr(target, name, crash)
    with contextlib.suppress(Killed):
        look()
    committed = module == "dispatcher"
    assert len(keys(cls)) == committed
    assert (stored(cls).next_slot > slot) == committed
    look()
    assert keys(cls) == [f"schedule:default:{slot:%Y-%m-%dT%H:%M:%SZ}"]
    assert stored(cls).next_slot == slot + HOUR


# Several workers


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_sweeps_that_meet_start_one_run():
    cls = report(schedule=every(SECOND, missed="all", overlap="allow"))
    sync_schedules()
    start = stored(cls).next_slot - 20 * SECOND
    Schedule.objects.update(next_slot=start, wake_at=start)
    until = now() + 2 * SECOND
    errors = []

    def sweep():
        try:
            scheduler = Scheduler(AtOnce())
            while now() < until:
                scheduler.look("default")
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    found = keys(cls)
    assert len(found) == len(set(found))
    row = stored(cls)
    expected = row.timetable.between(start - SECOND, row.last_slot)
    assert sorted(found) == sorted(
        f"schedule:default:{slot:%Y-%m-%dT%H:%M:%SZ}" for slot in expected
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_a_schedule_that_is_locked_costs_the_others_nothing():
    locked = report(name="Locked", schedule=every(HOUR))
    other = report(name="Other", schedule=every(HOUR))
    sync_schedules()
    for cls in (locked, other):
        make_due(stored(cls))
    with locks.held(lambda: Schedule.objects.select_for_update().get(pk=stored(locked).pk)):
        look()
        assert (keys(locked), len(keys(other))) == ([], 1)
        sync("default")
    look()
    assert len(keys(locked)) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_data_that_hangs_costs_the_others_nothing(monkeypatch, caplog):
    monkeypatch.setattr("sequences.worker.scheduler.HANGS_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("sequences.worker.scheduler.THREADS", 1)
    over = threading.Event()

    def hang(slot):
        over.wait(60)
        return {}

    hangs = report(name="Hangs", schedule=every(HOUR, data=hang))
    other = report(name="Other", schedule=every(HOUR))
    sync_schedules()
    turns = Turns(AtOnce().add)
    scheduler = Scheduler(turns)
    make_due(stored(hangs))
    scheduler.look("default")
    wait_for(lambda: turns._in_hand)
    make_due(stored(other))
    scheduler.look("default")
    wait_for(lambda: keys(other))
    assert keys(hangs) == []
    assert "is its data function stuck?" in caplog.text
    over.set()
    wait_for(lambda: keys(hangs))
    scheduler.stop()
    wait_for(lambda: not turns._threads)


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_a_turn_that_breaks_its_connection_leaves_the_next_one_whole():
    def rows(slot):
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    bad = report(name="Bad", schedule=every(HOUR, data=rows))
    good = report(name="Good", schedule=every(HOUR))
    sync_schedules()
    for cls in (bad, good):
        make_due(stored(cls))
    scheduler = Scheduler()
    scheduler.look("default")
    wait_for(lambda: keys(good) and stored(bad).failures)
    scheduler.stop()
    assert "no_such_table" in stored(bad).error


# What the code declares


def test_a_worker_that_boots_writes_what_the_code_declares():
    cls = report(schedules={"hourly": every(HOUR), "nightly": cron("0 3 * * *")})
    assert not cls.schedules.all()
    sync("default")
    sync("default")
    assert sorted(cls.schedules.all().values_list("name", flat=True)) == ["hourly", "nightly"]
    row = stored(cls, "hourly")
    assert (row.is_declared, row.timetable, row.data) == (True, every(HOUR), None)
    assert now() < row.next_slot <= now() + HOUR


class Releases:
    """Two releases whose workers boot and sweep in turns."""

    def __init__(self):
        self.codes = {}

    def code(self, release, **options):
        self.codes[release] = options

    def boots(self, release):
        with isolate_sequences():
            report(**self.codes[release])
            sync("default")
            look()


@pytest.fixture
def releases():
    return Releases()


def stale():
    """The workers that had the declaration have been gone for more than a minute."""
    Schedule.objects.update(confirmed_at=now() - 2 * MINUTE)


def test_a_new_release_s_declaration_counts_at_once_and_an_old_worker_does_not_fight(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new", schedule=cron("0 3 * * *", timezone="UTC"))
    releases.boots("old")
    releases.boots("new")
    row = Schedule.objects.get()
    assert row.spec["cron"] == "0 3 * * *"
    for name in ("old", "new", "old", "old"):
        releases.boots(name)
        after = Schedule.objects.get()
        assert (after.spec, after.version, after.next_slot) == (
            row.spec,
            row.version,
            row.next_slot,
        )


def test_after_a_rollback_the_old_declaration_counts_when_the_new_workers_are_gone(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new", schedule=cron("0 3 * * *", timezone="UTC"))
    for name in ("old", "new", "old"):
        releases.boots(name)
    assert "cron" in Schedule.objects.get().spec
    stale()
    releases.boots("old")
    row = Schedule.objects.get()
    assert "every" in row.spec
    assert now() < row.next_slot <= now() + HOUR
    assert row.declarations == list(dict.fromkeys(row.declarations))
    assert len(row.declarations) == 2


def test_a_worker_starts_only_what_it_declares_itself(releases):
    releases.code("old", schedule=every(HOUR, data={"release": "old"}))
    releases.code("new", schedule=every(HOUR, data={"release": "new"}))
    releases.boots("old")
    releases.boots("new")
    make_due(Schedule.objects.get())
    releases.boots("old")
    assert not SequenceRun.objects.exists()
    releases.boots("new")
    assert SequenceRun.objects.get().data == {"release": "new"}


def test_other_options_leave_the_slot_as_it_is(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new", schedule=every(HOUR, overlap="wait"))
    releases.boots("old")
    slot = Schedule.objects.get().next_slot - HOUR
    Schedule.objects.update(next_slot=slot, wake_at=slot)
    releases.boots("new")
    assert SequenceRun.objects.get().key.endswith(f"{slot:%Y-%m-%dT%H:%M:%SZ}")


def test_one_that_left_the_code_is_orphaned_and_starts_nothing(releases, caplog):
    releases.code("old", schedule=every(HOUR))
    releases.code("new")
    releases.boots("old")
    releases.boots("new")
    row = Schedule.objects.get()
    assert row.orphaned_at is None  # workers of the old release are there still
    stale()
    releases.boots("new")
    row.refresh_from_db()
    assert (row.orphaned_at is None, row.wake_at) == (False, None)
    assert "is no longer declared in code" in caplog.text
    Schedule.objects.update(next_slot=now() - MINUTE)
    releases.boots("new")
    assert not SequenceRun.objects.exists()
    row.refresh_from_db()
    row.remove(by="ann")
    assert not Schedule.objects.exists()


def test_an_orphan_that_comes_back_goes_on(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new")
    releases.boots("old")
    stale()
    releases.boots("new")
    releases.boots("old")
    row = Schedule.objects.get()
    assert (row.orphaned_at, row.wake_at) == (None, row.next_slot)


def test_a_renamed_sequence_keeps_its_schedule(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new", name="Summary", aliases=["shop.Report"], schedule=every(HOUR))
    releases.boots("old")
    slot = make_due(Schedule.objects.get())
    releases.boots("old")
    releases.boots("new")
    releases.boots("old")
    row = Schedule.objects.get()
    assert (row.last_slot, SequenceRun.objects.count()) == (slot, 1)


def test_a_pause_outlives_a_deploy(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new", schedule=every(2 * HOUR))
    releases.boots("old")
    Schedule.objects.get().pause(by="ann")
    releases.boots("new")
    row = Schedule.objects.get()
    assert (row.spec["every"], row.wake_at) == (7200, None)
    assert row.paused_at is not None


def test_one_declaration_that_cannot_be_written_costs_the_others_nothing(monkeypatch, caplog):
    report(name="Bad", schedule=every(HOUR))
    good = report(name="Good", schedule=every(HOUR))
    declare = schedules.declare

    def failing(declaration, row, using):
        if declaration.sequence == "shop.Bad":
            raise ValueError("broken")
        return declare(declaration, row, using)

    monkeypatch.setattr(schedules, "declare", failing)
    sync("default")
    assert stored(good)
    assert "Could not store a schedule that the code declares" in caplog.text


def test_data_that_is_no_json_costs_the_others_nothing_and_is_not_logged(caplog):
    with isolate_sequences():
        report(schedule=every(HOUR))
        sync("default")
    report(schedule=every(HOUR, data={"token": "secret-1", 2: 3}))
    other = report(name="Other", schedule=every(HOUR))
    with clock() as moving:
        look()
        moving.move(HOUR)
        look()
    assert other.runs.count() == 1
    assert "data has the key 2 of type int" in Schedule.objects.get(sequence="shop.Report").error
    assert "secret-1" not in caplog.text


def test_declarations_are_confirmed_at_intervals(releases):
    releases.code("old", schedule=every(HOUR))
    releases.boots("old")
    moment = now() - 20 * SECOND
    Schedule.objects.update(confirmed_at=moment)
    releases.boots("old")
    confirmed = Schedule.objects.get().confirmed_at
    assert confirmed > moment
    releases.boots("old")
    assert Schedule.objects.get().confirmed_at == confirmed


# At run time


def test_schedules_are_made_at_run_time():
    cls = report()
    row = cls.schedules.create(
        "berlin",
        cron("0 3 * * *", timezone="Europe/Berlin"),
        data={"city": "Berlin"},
        by="ann",
        reason="new office",
    )
    assert stored(cls, "berlin") == row
    assert (row.data, row.timetable.data) == ({"city": "Berlin"}, {"city": "Berlin"})
    give_turn(row.pk, "default", as_of=row.next_slot)
    assert cls.runs.get().data == {"city": "Berlin"}
    (operation,) = row.operations.all()
    assert (operation.action, operation.by, operation.reason) == ("create", "ann", "new office")
    assert operation.after["cron"] == "0 3 * * *"


def test_a_name_is_taken_once():
    cls = report(schedules={"nightly": cron("0 3 * * *")})
    cls.schedules.create("hourly", every(HOUR))
    with pytest.raises(InvalidSchedule, match="a schedule with this name already exists"):
        cls.schedules.create("hourly", every(2 * HOUR))
    with pytest.raises(
        InvalidSchedule, match="the code already declares a schedule with this name"
    ):
        cls.schedules.create("nightly", every(HOUR))
    assert cls.schedules.all().count() == 1


def test_a_name_that_an_orphan_has_is_free_once_that_is_removed(releases):
    releases.code("old", schedules={"nightly": every(HOUR)})
    releases.boots("old")
    cls = report()
    with pytest.raises(InvalidSchedule, match=r"already exists.*Choose another name"):
        cls.schedules.create("nightly", every(DAY))
    Schedule.objects.update(orphaned_at=now(), wake_at=None)
    with pytest.raises(InvalidSchedule, match="remove it first"):
        cls.schedules.create("nightly", every(DAY))
    stored(cls, "nightly").remove()
    assert cls.schedules.create("nightly", every(DAY)).next_slot


@pytest.fixture
def hiding():
    """A schedule created at run time, whose name the next release declares."""
    with isolate_sequences():
        report().schedules.create("berlin", every(DAY))
    return report(schedules={"berlin": every(HOUR, data={"tags": ["hourly"]})})


def test_a_declaration_never_replaces_a_schedule_made_at_run_time(hiding, caplog):
    scheduler = Scheduler(AtOnce())
    scheduler.look("default")
    scheduler._synced = None
    scheduler.look("default")
    assert (stored(hiding, "berlin").timetable, stored(hiding, "berlin").is_declared) == (
        every(DAY), False,
    )  # fmt: skip
    assert caplog.text.count("Schedule shop.Report berlin in the code starts no runs") == 1


def test_a_declaration_that_does_not_apply_is_shown(hiding):
    assert "The code declares a schedule with the same name" in snapshot(hiding, "berlin").sentence
    assert "The code declares a schedule with the same name" in command("schedules")
    (warning,) = checks.check_schedules(None, databases=["default"])
    assert (warning.id, "'berlin'" in warning.msg) == ("sequences.W023", True)
    assert checks.check_schedules(None, databases=None) == []


def test_a_declaration_applies_once_the_other_is_removed(hiding):
    stored(hiding, "berlin").remove()
    sync("default")
    assert stored(hiding, "berlin").is_declared
    assert "same name" not in snapshot(hiding, "berlin").sentence
    assert checks.check_schedules(None, databases=["default"]) == []


@pytest.mark.parametrize(
    ("name", "timetable", "problem"),
    [
        ("", every(HOUR), "the name of the schedule is ''"),
        ("a\nb", every(HOUR), "the name of the schedule is"),
        ("hourly", "0 3 * * *", "is neither cron"),
        ("hourly", every(HOUR, data=lambda slot: {}), "cannot be stored"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(name, timetable, problem):
    with pytest.raises(InvalidSchedule, match=problem):
        report().schedules.create(name, timetable)


def test_data_that_cannot_be_stored_is_refused():
    with pytest.raises(InvalidData):
        report().schedules.create("hourly", every(HOUR), data={"a": object()})


def test_an_unknown_name_is_refused():
    cls = report()
    cls.schedules.create("hourly", every(HOUR))
    with pytest.raises(UnknownSchedule, match="Did you mean 'hourly'"):
        cls.schedules.get("hourli")


def test_a_schedule_is_updated():
    cls = report()
    row = cls.schedules.create("hourly", every(HOUR), data={"a": 1})
    before = row.next_slot
    row.update(data={"a": 2})
    assert (row.data, row.next_slot) == ({"a": 2}, before)
    row.update(every(DAY), by="ann", reason="too often")
    assert (row.timetable, row.data) == (every(DAY, data={"a": 2}), {"a": 2})
    assert row.next_slot == every(DAY).after(now())
    operation = row.operations.last()
    assert (operation.before["every"], operation.after["every"]) == (3600, 86400)
    row.update(every(DAY, data={"a": 3}))
    assert row.data == {"a": 3}


def test_what_the_code_declares_is_changed_there():
    cls = report(schedule=every(HOUR))
    sync_schedules()
    for act in (lambda row: row.update(every(DAY)), lambda row: row.remove()):
        with pytest.raises(InvalidSchedule, match="it is declared in code"):
            act(stored(cls))
    assert not ScheduleOperation.objects.exists()


def test_a_paused_schedule_starts_nothing_and_goes_on_with_the_next_slot():
    cls = report()
    row = cls.schedules.create("hourly", every(HOUR))
    row.pause(by="ann", reason="migration")
    with clock() as moving:
        moving.move(3 * HOUR)
        drain()
        assert keys(cls) == []
        with pytest.raises(InvalidSchedule, match="it is already paused"):
            row.pause()
        row.resume()
        assert now() < row.next_slot <= now() + HOUR
        moving.move(HOUR)
        drain()
    assert len(keys(cls)) == 1
    with pytest.raises(InvalidSchedule, match="it is not paused"):
        row.resume()
    assert [each.action for each in row.operations.all()] == ["create", "pause", "resume"]


def test_a_run_is_started_now():
    cls = waiting_report()
    row = cls.schedules.create("hourly", every(HOUR), data={"a": 1})
    before = row.next_slot
    run = row.run_now(by="ann", reason="for the board")
    assert (run.data, run.key[:20]) == ({"a": 1}, "schedule:hourly:now:")
    assert (row.last_run_id, row.next_slot) == (run.pk, before)
    assert row.operations.last().after == {"run": str(run.pk)}
    with pytest.raises(InvalidSchedule, match=r"Cannot run schedule .* is unfinished"):
        row.run_now()
    run.cancel()
    assert row.run_now().pk != run.pk


def test_a_run_that_is_started_now_rolls_back_with_its_transaction():
    row = report().schedules.create("hourly", every(HOUR))
    with transaction.atomic():
        row.run_now()
        transaction.set_rollback(True)
    row.refresh_from_db()
    assert row.last_run_id is None
    assert not SequenceRun.objects.exists()


def test_a_schedule_whose_class_is_gone_can_be_paused_and_removed():
    with isolate_sequences():
        row = report().schedules.create("hourly", every(HOUR))
    assert registry.find("shop.Report") is None
    row.pause()
    row.resume()
    with pytest.raises(UnknownSequence):
        row.run_now()
    row.remove()
    with pytest.raises(InvalidSchedule, match="it no longer exists"):
        row.pause()


@pytest.mark.django_db(transaction=True)
def test_asynchronous_code_has_the_same():
    async_to_sync(_use_all)(report())


async def _use_all(cls):
    row = await cls.schedules.acreate("hourly", every(HOUR))
    assert await cls.schedules.aget("hourly") == row
    await row.apause(by="ann")
    await row.aresume()
    await row.aupdate(every(DAY))
    assert (await row.arun_now()).key.startswith("schedule:hourly:now:")
    await row.aremove()
    assert not await cls.schedules.all().aexists()


def test_secrets_of_the_data_are_not_in_the_log():
    cls = report(redact=["token"])
    row = cls.schedules.create("hourly", every(HOUR), data={"token": "hunter2"})
    row.update(data={"token": "hunter3"})
    assert all("hunter" not in str([each.before, each.after]) for each in row.operations.all())


def test_active_schedules_are_those_that_start_runs():
    cls = report()
    paused = cls.schedules.create("a", every(HOUR))
    active = cls.schedules.create("b", every(HOUR))
    paused.pause()
    assert list(cls.schedules.all().active()) == [active]


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING, logger="sequences")


# What people see


def test_the_command_lists_schedules():
    assert "There are no schedules" in command("schedules")
    cls = waiting_report(schedule=every(HOUR))
    sync_schedules()
    run = stored(cls).run_now()
    row = report(name="Rates").schedules.create("berlin", cron("0 3 * * *", timezone="UTC"))
    row.pause()
    first, second, third = command("schedules").splitlines()
    assert first.split()[:4] == ["SEQUENCE", "NAME", "TIMETABLE", "STATE"]
    assert second.split()[:5] == ["shop.Rates", "berlin", "“0", "3", "*"]
    assert "paused" in second
    assert third.split()[:5] == ["shop.Report", "default", "every", "1", "h"]
    assert third.split()[-2:] == [str(run.pk), "running"]
    (found,) = json.loads(command("schedules", "--sequence", "shop.Report", "--json"))
    assert found["last_run"] == {"id": str(run.pk), "status": "running"}
    assert (found["state"], found["timetable"]["every"]) == ("active", 3600)


def test_the_command_lists_times_in_the_time_zone_of_the_project(settings):
    settings.TIME_ZONE = "Asia/Kathmandu"
    start = datetime(2050, 1, 1, 20, 30, tzinfo=UTC)
    report().schedules.create("later", every(HOUR, start=start))
    assert "2050-01-02 02:15:00" in command("schedules")


def test_the_command_operates_on_a_schedule(monkeypatch):
    cls = report(schedule=every(HOUR))
    sync_schedules()
    assert command("schedules", "pause", "shop.Report", "--by", "ann", "--reason", "why") == (
        "Paused shop.Report default.\n"
    )
    assert command("schedules", "resume", "shop.Report") == (
        "Resumed shop.Report default, which is active.\n"
    )
    command("schedules", "pause", "shop.Report")
    assert (
        json.loads(command("schedules", "resume", "shop.Report", "default", "--json"))["state"]
        == "active"
    )
    found = json.loads(command("schedules", "run-now", "shop.Report", "--json"))
    assert found["run"] == str(cls.runs.get().pk)
    drain()
    assert command("schedules", "run-now", "shop.Report").startswith("Started shop.Report ")
    operations = stored(cls).operations.all()
    assert [each.action for each in operations][:5] == [
        "pause", "resume", "pause", "resume", "run_now",
    ]  # fmt: skip
    assert (operations[0].by, operations[0].reason) == ("ann", "why")


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["pause"], 2, "Name the sequence"),
        (["pause", "shop.Rport"], 2, "Did you mean 'shop.Report'"),
        (["pause", "shop.Report"], 2, "several schedules: name one of daily, hourly"),
        (["pause", "shop.Report", "hour"], 2, "has no schedule 'hour'"),
        (["resume", "shop.Report", "daily"], 1, "it is not paused"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, code, problem):
    report(schedules={"hourly": every(HOUR), "daily": every(DAY)})
    sync_schedules()
    with pytest.raises(CommandError, match=problem) as caught:
        command("schedules", *arguments)
    assert caught.value.returncode == code


def snapshot(cls, name="default"):
    return inspection.of(stored(cls, name), "default")


def test_a_schedule_says_what_it_does_now(releases):
    cls = waiting_report(schedule=every(HOUR, overlap="wait"))
    sync_schedules()
    assert snapshot(cls).state == "active"
    assert snapshot(cls).sentence.startswith("The next run starts in ")
    Schedule.objects.update(wake_at=now() - 2 * MINUTE)
    assert snapshot(cls).state == "late"
    assert "should have started 2 min" in snapshot(cls).sentence
    Schedule.objects.update(is_waiting=True)
    assert snapshot(cls).state == "waiting"
    assert "is waiting for the last run to end" in snapshot(cls).sentence
    Schedule.objects.update(failures=1, error="builtins.ValueError: no", wake_at=now() + MINUTE)
    assert snapshot(cls).state == "failing"
    assert "builtins.ValueError: no" in snapshot(cls).sentence
    Schedule.objects.update(paused_at=now() - MINUTE)
    assert snapshot(cls).sentence.startswith("Paused 1 min")
    Schedule.objects.update(orphaned_at=now())
    assert (snapshot(cls).state, snapshot(cls).actions) == ("orphaned", ["remove"])


def test_a_schedule_says_which_slot_it_skipped():
    cls = waiting_report(schedule=every(HOUR))
    sync_schedules()
    assert snapshot(cls).skipped == ""
    give_turn(stored(cls).pk, "default", as_of=make_due(stored(cls), by=HOUR))
    look()
    assert "was skipped: the last run was unfinished" in snapshot(cls).skipped
    Schedule.objects.update(skip_reason="missed")
    assert "was missed" in snapshot(cls).skipped


def test_a_snapshot_hides_secrets():
    cls = report(redact=["token"])
    row = cls.schedules.create("hourly", every(HOUR), data={"token": "hunter2", "a": 1})
    Schedule.objects.update(error="the token hunter2 is wrong", failures=1)
    row.refresh_from_db()
    shown = inspection.of(row, "default")
    assert shown.data["a"] == 1
    assert "hunter2" not in f"{shown.data} {shown.error} {shown.sentence}"


def test_a_snapshot_of_a_class_that_is_gone_shows_no_values():
    with isolate_sequences():
        row = report().schedules.create("hourly", every(HOUR), data={"a": 1})
    shown = inspection.of(row, "default")
    assert (shown.state, shown.actions) == ("failing", ["pause", "remove"])
    assert "This code has no sequence shop.Report" in shown.sentence
    assert "1" not in str(shown.data)


def test_a_timetable_of_a_later_release_is_shown_as_unknown():
    row = report().schedules.create("hourly", every(HOUR))
    Schedule.objects.update(spec={"solar": "sunrise"})
    row.refresh_from_db()
    assert inspection.of(row, "default").timing == "unknown"


def sign():
    return next((one for one in health.read().signs if one.name == "schedules"), None)


def test_health_says_when_a_schedule_is_late_or_fails():
    cls = report(schedule=every(HOUR))
    sync_schedules()
    assert sign() is None
    Schedule.objects.update(wake_at=now() - 2 * MINUTE)
    assert (sign().level, sign().says) == (health.Level.WARNING, "1 schedule is late")
    assert "“default” of shop.Report: Its run should have started 2 min" in sign().advice
    Schedule.objects.update(wake_at=now() - HOUR)
    assert sign().level == health.Level.BAD
    Schedule.objects.update(wake_at=now() + MINUTE, failures=2, error="builtins.ValueError: no")
    assert (sign().level, sign().says) == (health.Level.WARNING, "1 schedule is failing")
    stored(cls).pause()
    assert sign() is None


def test_the_check_finds_data_that_does_not_fit():
    class Typed(Sequence[Order]):
        class Meta:
            app_label = "shop"
            schedule = every(HOUR)

        @step
        def write(self): ...

    report(name="Fits", schedule=every(HOUR, data=lambda slot: 5))
    (message,) = [each for each in checks.check_sequences(None) if each.id.endswith("E013")]
    assert (message.id, "shop.Typed: its schedule 'default'" in message.msg) == (
        "sequences.E013",
        True,
    )


@pytest.mark.parametrize(
    ("expression", "jitter", "gap"),
    [
        ("*/5 * * * *", 40 * MINUTE, "5 min"),
        ("0,10 3 * * *", 10 * MINUTE, "10 min"),
        ("0,10 3 * * *", 9 * MINUTE, None),
        ("0 3 * * 1", DAY, None),
        ("0 0 29 2 *", DAY, None),
    ],
)
def test_the_check_finds_a_jitter_that_is_longer_than_the_gap(expression, jitter, gap):
    report(schedule=cron(expression, timezone="UTC", jitter=jitter))
    warnings = [each for each in checks.check_sequences(None) if each.id.endswith("W024")]
    assert [f"its slots are only {gap} apart" in each.msg for each in warnings] == [True] * bool(
        gap
    )


def test_all_due_slots_of_a_schedule_start_in_one_look_and_the_next_look_is_soon():
    cls = report(schedule=every(HOUR, missed="all", overlap="allow", catch_up=DAY))
    sync_schedules()
    make_due(stored(cls), by=3 * HOUR)
    scheduler = Scheduler(AtOnce())
    assert scheduler.look("default", within=1) == 0.1
    assert len(keys(cls)) in (3, 4)
    assert scheduler.look("default", within=1) is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_a_locked_schedule_is_no_reason_to_look_again_soon():
    cls = report(schedule=every(HOUR))
    sync_schedules()
    make_due(stored(cls))
    scheduler = Scheduler(AtOnce())
    with locks.held(lambda: Schedule.objects.select_for_update().get(pk=stored(cls).pk)):
        assert scheduler.look("default", within=1) == 0.1
        assert scheduler.look("default", within=1) is None


@pytest.mark.django_db(transaction=True)
def test_what_type_checkers_see_runs():
    from tests.typing import schedules as typed

    with clock() as moving:
        sync_schedules(typed.NightlyReport, typed.Exports)
        moving.move_to_next(stored(typed.NightlyReport))
        drain()
        (run,) = typed.NightlyReport.runs.all()
        assert run.data["title"] == f"Report of {run.data['day']}"
        moving.move_to_next(stored(typed.Exports, "daily"))
        drain()
        assert typed.Exports.runs.filter(key__startswith="schedule:daily:").count() >= 1
    run = typed.operate("ann")
    assert run.data == {"day": "2026-01-01", "full": True}
    async_to_sync(typed.operate_async)()


def old_and_changed(cls):
    """A schedule as somebody has read it, who was overtaken meanwhile."""
    old = stored(cls)
    Schedule.objects.update(version=old.version + 1)
    return old


@pytest.mark.parametrize("locks_rows", [True, False], ids=["locks", "locks nothing"])
def test_who_was_overtaken_writes_nothing(monkeypatch, locks_rows):
    cls = report(schedule=every(HOUR))
    sync_schedules()
    slot = make_due(stored(cls))
    old = old_and_changed(cls)
    if not locks_rows:  # as on SQLite: the write alone decides
        monkeypatch.setattr(schedules, "lock_free", lambda rows, using: [old.pk])
    (declaration,) = declarations("default")
    turn = Turn(slot, slot + HOUR)
    plan = (cls._definition.plan, start_of(cls._definition, None, key="a"), cls._definition.labels)
    assert schedules.take_turn(old, every(HOUR), turn, plan, "default") is None
    assert schedules.fail_turn(old, schedules.TurnFailure("no"), "default") is False
    old.fingerprint = "other"
    assert schedules.declare(declaration, old, "default") is False
    old.confirmed_at = None
    assert schedules.orphan(old, "default") is False
    row = stored(cls)
    assert (row.next_slot, row.failures, row.orphaned_at) == (slot, 0, None)
    assert keys(cls) == []


def test_two_workers_that_boot_at_once_write_one_row():
    report(schedule=every(HOUR))
    (declaration,) = declarations("default")
    assert schedules.declare(declaration, None, "default") is True
    assert schedules.declare(declaration, None, "default") is False
    assert Schedule.objects.count() == 1


def test_a_schedule_that_was_removed_meanwhile_has_no_turn():
    row = report().schedules.create("hourly", every(HOUR))
    make_due(row)
    pk = row.pk
    row.remove()
    assert give_turn(pk, "default") is None


def test_a_schedule_of_a_later_release_that_cannot_be_read_is_a_failure():
    row = report().schedules.create("hourly", every(HOUR))
    make_due(row)
    Schedule.objects.update(spec={"solar": "sunrise"})
    look()
    row.refresh_from_db()
    assert "This release cannot read the schedule" in row.error


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_a_sync_waits_for_no_locked_row(releases):
    releases.code("old", schedule=every(HOUR))
    releases.code("new", schedule=every(2 * HOUR))
    releases.boots("old")
    with locks.held(lambda: Schedule.objects.select_for_update().get()):
        releases.boots("new")
    assert Schedule.objects.get().spec["every"] == 3600
    releases.boots("new")
    assert Schedule.objects.get().spec["every"] == 7200


def test_a_schedule_that_is_over_starts_nothing_any_more():
    class Once(Timetable):
        def after(self, moment):
            return None

    once = Once()
    moment = now()
    assert turn_of(once, moment, moment, "name").following is None
    row = report().schedules.create("hourly", every(HOUR))
    slot = make_due(row)
    row.refresh_from_db()
    schedules.take_turn(row, once, Turn(None, None, missed=slot), None, "default")
    row.refresh_from_db()
    assert (row.next_slot, row.wake_at) == (None, None)
    assert inspection.of(row, "default").state == "over"
    assert "no more slots" in inspection.of(row, "default").sentence
