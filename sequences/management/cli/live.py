"""The progress of runs: redrawn in place on a terminal, otherwise one line per change."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

from ...inspection.snapshot import RunSnapshot, StepSnapshot
from ...models import UNFINISHED_STEP
from ...utils.durations import format_duration
from ...utils.terminal import cut, plain
from .details import amount_of, remark, state_word
from .tables import Cell, Paint, table

#: The sign and colour of each status of a step.
SIGNS = {"succeeded": "✓", "failed": "✗", "skipped": "-", "cancelled": "-", "": " "}
MOVING = "•"
#: The maximum number of lines per run. Beyond it, only steps in progress are shown.
MAX_STEP_ROWS = 40
#: The width of a progress bar, in characters.
BAR_WIDTH = 20

State = dict[str, str]


class Display:
    """Shows runs, as often as it is called."""

    def __init__(self, out: Any, paint: Callable[[str], Paint] = lambda status: str) -> None:
        self.out, self.paint = out, paint
        self.states_of: dict[UUID, State] = {}
        self.drawn: list[str] = []

    def show(self, snapshots: Collection[RunSnapshot]) -> None:
        """Show them as they are now; do nothing if nothing has changed."""
        if self.out.isatty():
            self._draw(snapshots)
        else:
            self._write_changes(snapshots)
        self.out.flush()

    def _draw(self, snapshots: Collection[RunSnapshot]) -> None:
        columns, height = shutil.get_terminal_size()
        # A line that wraps would take two rows, and the next drawing would start in the wrong one.
        lines = self.lines(snapshots, columns - 1)[-max(height - 2, 1) :]
        if lines == self.drawn:
            return
        if self.drawn:
            self.out.write(f"\x1b[{len(self.drawn)}F\x1b[J")
        for line in lines:
            self.out.write(f"{line}\n")
        self.drawn = lines

    def _write_changes(self, snapshots: Collection[RunSnapshot]) -> None:
        now = time.strftime("%H:%M:%S")
        for run_snapshot in snapshots:
            who = plain(self.who(run_snapshot))
            for name, state in self.changes(run_snapshot).items():
                self.out.write(f"{now}  {who:12}  {plain(name)} {state}\n")

    def changes(self, run_snapshot: RunSnapshot) -> State:
        """The states that have changed since the last call."""
        before = self.states_of.get(run_snapshot.run.pk, {})
        self.states_of[run_snapshot.run.pk] = states = self.states(run_snapshot)
        return {name: state for name, state in states.items() if state != before.get(name)}

    # What a project may override

    def who(self, run_snapshot: RunSnapshot) -> str:
        """What identifies the run among the others."""
        return run_snapshot.run.key or str(run_snapshot.run.pk)

    def states(self, run_snapshot: RunSnapshot) -> State:
        """What is reported when it changes: the state of each step, and the status of the run."""
        run = run_snapshot.run
        states = {step.name: state_of(step) for step in run_snapshot.steps if step.status}
        return states | {run.sequence.rpartition(".")[-1]: run.status}

    def lines(self, snapshots: Collection[RunSnapshot], width: int) -> list[str]:
        """The whole picture."""
        return [line for run_snapshot in snapshots for line in self._picture(run_snapshot, width)]

    def _picture(self, run_snapshot: RunSnapshot, width: int) -> list[str]:
        status = run_snapshot.run.status
        done = f"{run_snapshot.done}/{run_snapshot.total}"
        bar = f"[{'#' * int(run_snapshot.fraction * BAR_WIDTH):{BAR_WIDTH}}]"
        head = f"{run_snapshot.title}  {self.who(run_snapshot)}"
        tail = f"  {status}  {bar}  {done}  {format_duration(run_snapshot.duration)}"
        rows = [self._row(step, run_snapshot) for step in _of_interest(run_snapshot.listed_steps)]
        above = cut(plain(head), max(width - len(tail), 8)) + tail
        return [cut(above, width), *(table(rows, width, narrowing=[3, 1]) if rows else [])]

    def _row(self, step: StepSnapshot, run_snapshot: RunSnapshot) -> list[object]:
        paint = self.paint(step.state)
        has_run = step.status not in ("", "queued")
        ran = format_duration(step.ran(run_snapshot.now)) if has_run else ""
        word = "" if step.status in SIGNS else state_of(step, counts=False)
        remarks = "  ".join(filter(None, [word, remark(step, run_snapshot)]))
        sign = SIGNS.get(step.status, MOVING)
        return [Cell(f"  {sign}", paint), step.label, ran, Cell(remarks, paint)]


def state_of(step: StepSnapshot, *, counts: bool = True) -> str:
    """In words: ``retrying (2 failed)``; for a fan-out, with the number of finished items."""
    is_counted = counts and step.items and step.progress and step.status in UNFINISHED_STEP
    amount = f" {amount_of(step)}" if is_counted else ""
    return step_state(f"{state_word(step)}{amount}", step.attempts)


def step_state(status: str, failed: int) -> str:
    """With the number of its failed attempts."""
    return f"{status} ({failed} failed)" if failed else status


def _of_interest(steps: list[StepSnapshot]) -> list[StepSnapshot]:
    if len(steps) <= MAX_STEP_ROWS:
        return steps
    busy = [step for step in steps if step.status not in ("", "succeeded", "skipped")]
    return busy[:MAX_STEP_ROWS]
