"""The progress of the demo's runs: the command's own display, with a table for each sequence."""

from collections.abc import Collection
from itertools import groupby

from sequences.inspection.snapshot import RunSnapshot, StepSnapshot
from sequences.management.cli.live import SIGNS, Display, State, state_of, step_state
from sequences.management.cli.tables import table
from sequences.models import SequenceRun


class Tables(Display):
    """Runs by the names of the people who started them, with their steps side by side."""

    def who(self, snapshot: RunSnapshot) -> str:
        return str(snapshot.run.data.get("name", snapshot.run.pk))

    def states(self, snapshot: RunSnapshot) -> State:
        """Items one by one, because the demo has few."""
        rows = sorted(snapshot.run.steps.all(), key=lambda row: row.pk)
        states = {str(row): step_state(row.status, row.attempts) for row in rows}
        return states | {title(snapshot.run): snapshot.run.status}

    def lines(self, snapshots: Collection[RunSnapshot], width: int) -> list[str]:
        """A table for each sequence, in the order of their first runs."""
        order = list(dict.fromkeys(one.run.sequence for one in snapshots))
        ordered = sorted(snapshots, key=lambda one: order.index(one.run.sequence))
        grouped = groupby(ordered, key=lambda one: one.run.sequence)
        tables = [["", *self.table_of(list(group), width)] for _, group in grouped]
        return [line for lines in tables for line in lines][1:]

    def table_of(self, snapshots: list[RunSnapshot], width: int) -> list[str]:
        newest = snapshots[-1]
        heads = ["from", title(newest.run), *(step.name for step in newest.steps)]
        rows = [heads, *(self.row(snapshot, newest) for snapshot in snapshots)]
        return [line[:width] for line in table(rows, None)]

    def row(self, snapshot: RunSnapshot, newest: RunSnapshot) -> list[str]:
        steps = [snapshot.step(step.name) for step in newest.steps]
        return [self.who(snapshot)[:12], snapshot.run.status, *map(cell, steps)]


def title(run: SequenceRun) -> str:
    return run.sequence.rpartition(".")[-1]


def cell(step: StepSnapshot | None) -> str:
    """A sign for a step that has ended; for a fan-out, how many items have."""
    if step is None or step.row is None:
        return ""
    if step.status == "waiting" and step.items and step.progress:
        return f"{step.progress[0]:g}/{step.progress[1]:g}"
    return SIGNS.get(step.status) or state_of(step, counts=False)
