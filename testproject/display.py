"""The progress of runs in a terminal: a table that is drawn again, or a line for each change."""

import shutil
import sys
import time
from typing import TextIO

from sequences.models import SequenceRun

State = dict[str, str]


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
            self.draw(runs, states)
        else:
            self.tell(runs, states)
        self.out.flush()
        self.shown = states

    def draw(self, runs: list[SequenceRun], states: dict[str, State]) -> None:
        columns, lines = shutil.get_terminal_size()
        recent = runs[-max(lines - 4, 1) :]
        table = [header(recent)] + [row(run, states[str(run.pk)]) for run in recent]
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
    states = {step.step: step_state(step.status, step.attempts) for step in steps}
    return states | {"sequence": run.status}


def step_state(status: str, failed: int) -> str:
    return f"{status} ({failed} failed)" if failed else status


def who(run: SequenceRun) -> str:
    return str(run.data.get("name", run.pk))


def header(runs: list[SequenceRun]) -> str:
    return line("from", "sequence", *(runs[-1].plan.plan.names if runs else ()))


def row(run: SequenceRun, state: State) -> str:
    names = run.plan.plan.names
    steps = [state.get(name, "").replace("succeeded", "✓").ljust(len(name)) for name in names]
    return line(who(run), state["sequence"], *steps)


def line(name: str, status: str, *steps: str) -> str:
    return "  ".join([f"{name[:12]:12}", f"{status:9}", *steps])
