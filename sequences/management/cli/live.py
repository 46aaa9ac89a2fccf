"""The progress of runs: drawn again in its place on a terminal, elsewhere a line a change."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from typing import TextIO
from uuid import UUID

from ...inspection.snapshot import RunSnapshot, StepSnapshot
from ...models import UNFINISHED_STEP
from ...utils.durations import format_duration
from .base import Paint
from .details import remark
from .tables import Cell, cut, plain, table

#: What each state of a step looks like.
SIGNS = {"succeeded": "✓", "failed": "✗", "skipped": "-", "cancelled": "-", "": " "}
MOVING = "•"
#: Rows of steps of one run. Beyond, only those that are neither done nor yet to come.
MOST = 40
#: Characters of a progress bar.
BAR = 20

State = dict[str, str]


class Display:
    """DisplayOptions runs, as often as it is asked to."""

    def __init__(self, out: TextIO, paint: object = None) -> None:
        self.out = out
        self.shown: dict[UUID, State] = {}
        self.drawn: list[str] = []
        self._paint = paint

    def show(self, portraits: Collection[RunSnapshot]) -> None:
        """Show them as they are now; nothing, if nothing has changed."""
        if self.out.isatty():
            self._draw(portraits)
        else:
            self._tell(portraits)
        self.out.flush()

    def _draw(self, portraits: Collection[RunSnapshot]) -> None:
        columns, height = shutil.get_terminal_size()
        # A line that wraps would be two, and the next drawing would begin at the wrong one.
        lines = self.lines(portraits, columns - 1)[-max(height - 2, 1) :]
        if lines == self.drawn:
            return
        if self.drawn:
            self.out.write(f"\x1b[{len(self.drawn)}F\x1b[J")
        self.out.writelines(f"{line}\n" for line in lines)
        self.drawn = lines

    def _tell(self, portraits: Collection[RunSnapshot]) -> None:
        now = time.strftime("%H:%M:%S")
        for portrait in portraits:
            before = self.shown.get(portrait.run.pk, {})
            self.shown[portrait.run.pk] = states = self.states(portrait)
            for name, state in states.items():
                if state != before.get(name):
                    self.out.write(
                        f"{now}  {plain(self.who(portrait)):12}  {plain(name)} {state}\n"
                    )

    # What a project may show in another way

    def who(self, portrait: RunSnapshot) -> str:
        """What tells the run from the others."""
        return portrait.run.key or str(portrait.run.pk)

    def states(self, portrait: RunSnapshot) -> State:
        """What is told when it changes: the state of each step, and at the end of the run."""
        begun = (step for step in portrait.steps if step.status)
        return {step.name: state_of(step) for step in begun} | {
            portrait.run.sequence.rpartition(".")[-1]: portrait.run.status
        }

    def lines(self, portraits: Collection[RunSnapshot], width: int) -> list[str]:
        """The whole picture."""
        return [line for portrait in portraits for line in self._picture(portrait, width)]

    def _picture(self, portrait: RunSnapshot, width: int) -> list[str]:
        status = portrait.run.status
        done = f"{portrait.done}/{portrait.total}"
        bar = bar_of(portrait.fraction)
        head = f"{portrait.title}  {self.who(portrait)}"
        tail = f"  {status}  {bar}  {done}  {format_duration(portrait.duration)}"
        steps = [step for step in portrait.steps if step.status or not step.node.aside]
        rows = [self._row(step, portrait) for step in _of_interest(steps)]
        above = cut(plain(head), max(width - len(tail), 8)) + tail
        return [cut(above, width), *(table(rows, width, narrowing=[3, 1]) if rows else [])]

    def _row(self, step: StepSnapshot, portrait: RunSnapshot) -> list[Cell]:
        paint = self.paint(step.status)
        ran = format_duration(step.ran(portrait.now)) if step.status not in ("", "queued") else ""
        word = "" if step.status in SIGNS else state_of(step, counts=False)
        told = "  ".join(filter(None, [word, remark(step, portrait)]))
        sign = SIGNS.get(step.status, MOVING)
        return [Cell(f"  {sign}", paint), Cell(plain(step.label)), Cell(ran), Cell(told, paint)]

    def paint(self, status: str) -> Paint:
        """The colour of a status."""
        found: Paint = self._paint(status) if callable(self._paint) else str
        return found


def state_of(step: StepSnapshot, *, counts: bool = True) -> str:
    """In words: ``retrying (2 failed)``, and of a fan-out how many items are done."""
    amount = ""
    if counts and step.items and step.status in UNFINISHED_STEP and step.progress:
        amount = f" {step.progress[0]:g}/{step.progress[1]:g}"
        many = step.items.get("failed")
        amount += f", {many} failed" if many else ""
    return step_state(f"{step.status}{amount}", step.row.attempts if step.row is not None else 0)


def step_state(status: str, failed: int) -> str:
    """With the number of its failed attempts."""
    return f"{status} ({failed} failed)" if failed else status


def bar_of(fraction: float) -> str:
    """``[#####     ]``"""
    full = int(fraction * BAR)
    return f"[{'#' * full}{' ' * (BAR - full)}]"


def _of_interest(steps: list[StepSnapshot]) -> list[StepSnapshot]:
    if len(steps) <= MOST:
        return steps
    return [step for step in steps if step.status not in ("", "succeeded", "skipped")][:MOST]
