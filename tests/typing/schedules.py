"""Schedules as their users would write them: mypy and pyright check the types, a test runs them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, assert_type

from sequences import Sequence, SequenceMeta, cron, every, step
from sequences.models import Schedule, ScheduleQuerySet, SequenceRun


class NightlyReport(Sequence):
    """Each night at three."""

    class Meta(SequenceMeta):
        app_label = "shop"
        schedule = cron(
            "0 3 * * *",
            timezone="Europe/Berlin",
            data=lambda slot: {"day": slot.date()},
            catch_up=timedelta(hours=6),
        )

    @step
    def write(self) -> None:
        self.data["title"] = f"Report of {self.data['day']}"


@dataclass
class Export:
    day: date
    full: bool = False


def of_day(slot: datetime) -> Export:
    """The export of the day before."""
    return Export(day=(slot - timedelta(days=1)).date())


class Exports(Sequence[Export]):
    """Typed data, and several schedules."""

    class Meta(SequenceMeta):
        app_label = "shop"
        schedules = {
            "daily": cron("30 4 * * *", data=of_day, overlap="wait", missed="all"),
            "often": every(timedelta(minutes=15), data=of_day, jitter=timedelta(minutes=2)),
        }

    @step
    def export(self) -> str:
        return f"{self.data.day}.csv"


def operate(user: Any) -> SequenceRun:
    """What an operator's code does at run time."""
    schedule = Exports.schedules.create(
        "yearly", cron("0 0 1 1 *"), data=Export(day=date(2026, 1, 1), full=True), by=user
    )
    assert_type(schedule, Schedule)
    assert_type(Exports.schedules.all(), ScheduleQuerySet)
    schedule.pause(by=user, reason="stocktaking")
    schedule.resume(by=user)
    schedule.update(every(timedelta(days=365)), by=user)
    run = Exports.schedules.get("yearly").run_now(by=user)
    schedule.remove(by=user)
    return run


async def operate_async() -> None:
    """The same for asynchronous code."""
    schedule = await NightlyReport.schedules.acreate("hourly", every(timedelta(hours=1)))
    assert_type(await schedule.arun_now(), SequenceRun)
    await schedule.aremove()


def misuse() -> None:
    """What type checkers refuse: none of it is called."""
    every(5)  # type: ignore[arg-type]
    cron("0 3 * * *", overlap="queue")  # type: ignore[arg-type]
    cron("0 3 * * *", data=dict)  # type: ignore[arg-type]
    Exports.schedules.create("a", "0 3 * * *")  # type: ignore[arg-type]
    Exports.schedules.create("a", every(timedelta(hours=1)), data=5)  # type: ignore[arg-type]
