"""The progress of runs in a terminal: tables that are drawn again, or a line for each change."""

import shutil
import sys
import time
from itertools import groupby
from typing import TextIO

from sequences.models import PLAIN, SequenceRun, StepRun

State = dict[str, str]
SIGNS = {"succeeded": "✓", "failed": "✗", "skipped": "-", "cancelled": "-"}


class Display:
    """Shows each run's name, its status and its steps' states."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self.out = out
        self.shown: dict[str, State] = {}
        self.height = 0

    def show(self, runs: list[SequenceRun]) -> None:
        states = {str(run.pk): state_of(run) for run in runs}
        if states == self.shown:
            return
        if self.out.isatty():
            self.draw(runs)
        else:
            self.tell(runs, states)
        self.out.flush()
        self.shown = states

    def draw(self, runs: list[SequenceRun]) -> None:
        columns, lines = shutil.get_terminal_size()
        table = tables(runs)[-max(lines - 2, 1) :]
        if self.height:
            self.out.write(f"\x1b[{self.height}F\x1b[J")
        # A line that wraps would be two, and the next drawing would begin at the wrong one.
        self.out.writelines(f"{line[: columns - 1].rstrip()}\n" for line in table)
        self.height = len(table)

    def tell(self, runs: list[SequenceRun], states: dict[str, State]) -> None:
        now = time.strftime("%H:%M:%S")
        for run in runs:
            before = self.shown.get(str(run.pk), {})
            for name, state in states[str(run.pk)].items():
                if state != before.get(name):
                    self.out.write(f"{now}  {who(run):12}  {name} {state}\n")


def state_of(run: SequenceRun) -> State:
    steps = sorted(run.steps.all(), key=lambda step: step.pk)
    states = {str(step): step_state(step.status, step.attempts) for step in steps}
    return states | {title(run): run.status}


def step_state(status: str, failed: int) -> str:
    return f"{status} ({failed} failed)" if failed else status


def title(run: SequenceRun) -> str:
    return run.sequence.rpartition(".")[-1]


def who(run: SequenceRun) -> str:
    return str(run.data.get("name", run.pk))


def tables(runs: list[SequenceRun]) -> list[str]:
    """A table for each sequence, in the order of their first runs."""
    order = list(dict.fromkeys(run.sequence for run in runs))
    ordered = sorted(runs, key=lambda run: order.index(run.sequence))
    grouped = groupby(ordered, key=lambda run: run.sequence)
    return [line for _, group in grouped for line in ["", *table_of(list(group))]][1:]


def table_of(runs: list[SequenceRun]) -> list[str]:
    plan = runs[-1].plan.plan
    aside = [node for node in plan.nodes if node.aside]
    names = [node.name for node in (*plan.main, *aside)]
    rows = [["from", title(runs[-1]), *names], *(row(run, names) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)) for cells in rows]


def row(run: SequenceRun, names: list[str]) -> list[str]:
    steps = list(run.steps.all())
    return [who(run)[:12], run.status, *(cell(name, steps) for name in names)]


def cell(name: str, steps: list[StepRun]) -> str:
    """A sign for what has ended; of a fan-out how many items have."""
    items = [step for step in steps if step.step == name and step.item != PLAIN]
    own = [step for step in steps if step.step == name and step.item == PLAIN]
    if not own:
        return ""
    if items and own[0].status == "waiting":
        return f"{sum(item.status in SIGNS for item in items)}/{len(items)}"
    failed = f" ({own[0].attempts})" if own[0].attempts else ""
    return SIGNS.get(own[0].status) or own[0].status + failed
