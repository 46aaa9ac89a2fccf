"""The subcommand for schedules: list them, and operate on one."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ... import conf
from ...definitions import registry
from ...exceptions import InvalidSchedule, did_you_mean
from ...inspection import schedules as inspection
from ...inspection.schedules import ScheduleSnapshot
from ...models import Schedule
from ...utils.terminal import plain
from .arguments import JSON, argument, option, reason_and_by
from .base import Subcommand, caller_and_reason, done_sentence, rejecting, values_of, wrong
from .details import moment
from .tables import Cell

ACTIONS = ("list", "pause", "resume", "run-now")
#: What was done, and the state that this implies.
_DONE = {"pause": ("Paused", inspection.PAUSED), "resume": ("Resumed", None)}
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
    arguments = (
        argument("action", nargs="?", choices=ACTIONS, default="list"),
        option("label", "the label of the sequence", metavar="LABEL", nargs="?"),
        option(
            "schedule", "the name of the schedule, if the sequence has several",
            metavar="NAME", nargs="?",
        ),
        option("--sequence", "list only schedules of this sequence", metavar="LABEL"),
        *reason_and_by("schedule"),
        JSON,
    )  # fmt: skip

    def run(self, options: Namespace) -> None:
        if options.action == "list":
            self._list(options)
            return
        if options.label is None:
            raise wrong(f"Name the sequence and the schedule: {options.action} LABEL NAME.")
        self._operate(_find(options.label, options.schedule), options)

    def _operate(self, row: Schedule, options: Namespace) -> None:
        operation = getattr(row, options.action.replace("-", "_"))
        with rejecting(InvalidSchedule):
            run = operation(**caller_and_reason(options))
        details = as_json(inspection.of(row, conf.using()))
        if options.json:
            self.write_json({**details, "run": run and run.pk})
        elif run is not None:
            self.write(f"Started {plain(run.sequence)} {run.pk}")
        else:
            done, implied = _DONE[options.action]
            self.write(done_sentence(f"{done} {plain(row)}", details["state"], implied))

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
            for each in snapshots:
                if each.hides_declaration:
                    self.write(f"{plain(each.row)}: {each.sentence}")
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
                moment(row.next_slot),
                moment(row.last_started_at),
                run and run.pk,
                run and Cell(run.status, self.paint(run.status)),
            )


def _find(label: str, name: str | None) -> Schedule:
    schedules = Schedule.objects.using(conf.using())
    rows = schedules.filter(sequence__in=registry.names_of(label))
    names = list(rows.values_list("name", flat=True))
    if not names:
        labels = dict.fromkeys(schedules.values_list("sequence", flat=True))
        raise wrong(f"{label!r} has no schedule. {did_you_mean(label, labels)}")
    if name is None and len(names) > 1:
        raise wrong(f"{label} has several schedules: name one of {', '.join(sorted(names))}.")
    row = rows.filter(name=name or names[0]).first()
    if row is None:
        raise wrong(f"{label} has no schedule {name!r}. {did_you_mean(name, names)}")
    return row


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
        "last_run": run and {"id": run.pk, "status": run.status},
        "skipped_slot": row.skipped_slot,
        "error": snapshot.error,
    }
