"""Schedules on real workers that are killed while they start runs."""

import random
import time
from datetime import UTC, datetime, timedelta

import pytest

from sequences.definitions.schedules import key_of
from sequences.models import Schedule, SequenceRun
from tests.engine import now

from .app.models import Entry
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

SECOND = timedelta(seconds=1)
KILLS = 5


def ticks():
    return SequenceRun.objects.filter(sequence="acceptance.Ticks")


def await_slot(jitter):
    """Sleep until a slot has come, so long ago."""
    moment = now()
    until = moment.replace(microsecond=0) + SECOND + jitter
    time.sleep((until - moment).total_seconds())


def test_each_slot_has_one_run_whatever_dies(hire):
    crew = hire()
    crew.start(2, release="ticking")
    schedule = wait_for(lambda: Schedule.objects.filter(last_slot__isnull=False).first())
    first = wait_for(lambda: ticks().order_by("key").first())
    chance = random.Random(7)
    for _ in range(KILLS):
        await_slot(timedelta(milliseconds=chance.uniform(-5, 60)))
        chance.choice([worker for worker in crew.workers if worker.is_alive()]).kill()
        crew.start(1, release="ticking")
    # The slots that nobody could start meanwhile are made up for.
    wait_for(lambda: Schedule.objects.get().next_slot > now())
    Schedule.objects.get().pause(reason="enough")
    wait_for(lambda: not ticks().unfinished().exists(), "the end of all runs")

    last = Schedule.objects.get().last_slot
    slot = datetime.fromisoformat(first.key.removeprefix("schedule:default:"))
    expected = []
    while slot <= last:
        expected.append(slot.astimezone(UTC))
        slot += SECOND
    assert len(expected) >= KILLS
    assert sorted(ticks().values_list("key", flat=True)) == [
        key_of("default", slot) for slot in expected
    ]
    assert set(ticks().values_list("status", flat=True)) == {"succeeded"}
    # And the effect of each was there once.
    notes = sorted(
        datetime.fromisoformat(note) for note in Entry.objects.values_list("note", flat=True)
    )
    assert notes == expected
    assert not schedule.failures


def test_a_start_is_as_precise_as_a_second_whatever_the_interval_of_the_sweep(hire):
    crew = hire(SWEEP_INTERVAL=5)
    crew.start(1, release="ticking")
    wait_for(lambda: ticks().count() >= 10)
    late = sorted(
        run.created_at - datetime.fromisoformat(run.key.removeprefix("schedule:default:"))
        for run in ticks()
    )
    assert timedelta(0) <= late[0]
    assert late[len(late) // 2] < SECOND, late  # the machine may be busy with other things
