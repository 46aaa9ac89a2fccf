"""The subcommand for schedules: list them, and operate on one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from ... import conf
from ...definitions import registry
from ...exceptions import InvalidSchedule, did_you_mean
from ...inspection import schedules as inspection
from ...inspection.schedules import ScheduleSnapshot
from ...models import Schedule
from ...utils.terminal import plain
from .base import (
    Subcommand,
    add_caller_and_reason,
    caller_and_reason,
    rejected,
    values_of,
    wrong,
)
from .details import moment
from .tables import Cell

ACTIONS = ("list", "pause", "resume", "run-now")
_COLOURS = {
    inspection.FAILING: "failed",
    inspection.LATE: "failed",
    inspection.PAUSED: "paused",
    inspection.ORPHANED: "cancelled",
    inspection.WAITING: "paused",
}


class Schedules(Subcommand):
    """What starts runs automatically."""

    name, help = "schedules", "List schedules; pause or resume one, or start a run now."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", nargs="?", choices=ACTIONS, default="list")
        parser.add_argument("label", nargs="?", metavar="LABEL", help="the label of the sequence")
        parser.add_argument(
            "schedule",
            nargs="?",
            metavar="NAME",
            help="the name of the schedule, if the sequence has several",
        )
        parser.add_argument(
            "--sequence", metavar="LABEL", help="list only schedules of this sequence"
        )
        add_caller_and_reason(parser, "schedule")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, options: Namespace) -> None:
        if options.action == "list":
            self._list(options)
            return
        if options.label is None:
            raise wrong(f"Name the sequence and the schedule: {options.action} LABEL NAME.")
        self._operate(_find(options.label, options.schedule), options)

    def _operate(self, row: Schedule, options: Namespace) -> None:
        operation = getattr(row, options.action.replace("-", "_"))
        try:
            run = operation(**caller_and_reason(options))
        except InvalidSchedule as error:
            raise rejected(error) from None
        details = as_json(inspection.of(row, conf.using()))
        if options.json:
            self.write_json({**details, "run": None if run is None else str(run.pk)})
        elif run is not None:
            self.write(f"Started {plain(run.sequence)} {run.pk}")
        else:
            self.write(f"{plain(str(row))}: {details['state']}")

    def _list(self, options: Namespace) -> None:
        rows = Schedule.objects.using(conf.using()).order_by("sequence", "name")
        label = options.sequence or options.label
        if label is not None:
            rows = rows.filter(sequence__in=registry.names_of(label))
        snapshots = inspection.of_many(rows, conf.using())
        if options.json:
            self.write_json([as_json(each) for each in snapshots])
        elif snapshots:
            self.write_table(self._rows(snapshots), 0, 1, 2, 6)
        else:
            which = "schedules" if label is None else "such schedules"
            self.write(f"There are no {which}. Workers add the declared schedules when they start.")

    def _rows(self, snapshots: list[ScheduleSnapshot]) -> Iterator[tuple[object, ...]]:
        yield ("SEQUENCE", "NAME", "TIMETABLE", "STATE", "NEXT", "LAST", "LAST RUN", "ENDED")
        for each in snapshots:
            row, run = each.row, each.last_run
            yield (
                row.sequence,
                row.name,
                each.timing,
                Cell(each.state, self.paint(_COLOURS.get(each.state, ""))),
                _time(row.next_slot),
                _time(row.last_started_at),
                "" if run is None else run.pk,
                "" if run is None else Cell(run.status, self.paint(run.status)),
            )


def _time(value: datetime | None) -> str:
    return "" if value is None else moment(value)


def _find(label: str, name: str | None) -> Schedule:
    rows = Schedule.objects.using(conf.using()).filter(sequence__in=registry.names_of(label))
    names = list(rows.values_list("name", flat=True))
    if not names:
        raise wrong(f"{label!r} has no schedule. {_labels(label)}")
    if name is None and len(names) > 1:
        raise wrong(f"{label} has several schedules: name one of {', '.join(sorted(names))}.")
    row = rows.filter(name=name or names[0]).first()
    if row is None:
        raise wrong(f"{label} has no schedule {name!r}. {did_you_mean(name, names)}")
    return row


def _labels(label: str) -> str:
    labels = Schedule.objects.using(conf.using()).values_list("sequence", flat=True)
    return did_you_mean(label, dict.fromkeys(labels))


def as_json(snapshot: ScheduleSnapshot) -> dict[str, Any]:
    """The fields of a schedule, for programs."""
    row, run = snapshot.row, snapshot.last_run
    return {
        **values_of(row, "sequence", "name"),
        "state": snapshot.state,
        "is_declared": row.is_declared,
        "timetable": row.spec,
        "data": snapshot.data,
        **values_of(row, "next_slot", "last_slot", "last_started_at"),
        "last_run": None if run is None else {"id": str(run.pk), "status": run.status},
        "skipped_slot": row.skipped_slot,
        "error": snapshot.error,
    }
