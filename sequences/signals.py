"""Django signals: what has happened to runs and steps, sent after it is committed.

Each has the sequence's class as its sender (None, if this code has it no more) and `run`; those of
steps have `step_run`, and those of failed attempts `failure`. They are sent at most once, in the
process that made the change. What must happen is a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.dispatch import Signal

from .definitions import registry

if TYPE_CHECKING:
    from .models import SequenceRun, StepFailure, StepRun

__all__ = [
    "run_cancelled",
    "run_failed",
    "run_started",
    "run_succeeded",
    "step_failed",
    "step_retrying",
    "step_succeeded",
]

#: A run was written. Not sent for one that a key has found.
run_started = Signal()
run_succeeded = Signal()
#: A run has failed, and been undone, if it is to be.
run_failed = Signal()
run_cancelled = Signal()
#: A step, an item, an undo or `on_failure` has succeeded.
step_succeeded = Signal()
#: An attempt has failed, and there will be another.
step_retrying = Signal()
#: An attempt has failed, and it was the last.
step_failed = Signal()

_SIGNALS = {name: globals()[name] for name in __all__}


class Sender:
    """Sends what the transitions tell."""

    def wants(self, what: str, sequence: str | None) -> bool:
        """Whether anybody receives this signal of that sequence. Never a query."""
        signal: Signal = _SIGNALS[what]
        if not signal.receivers:
            return False
        return sequence is None or signal.has_listeners(registry.find(sequence))

    def hear_of_run(self, what: str, run: SequenceRun) -> None:
        """Send it. Django logs what receivers raise."""
        _SIGNALS[what].send_robust(registry.find(run.sequence), run=run)

    def hear_of_step(self, what: str, step_run: StepRun, failure: StepFailure | None) -> None:
        """The same, of a step."""
        more = {} if failure is None else {"failure": failure}
        sender = registry.find(step_run.run.sequence)
        _SIGNALS[what].send_robust(sender, run=step_run.run, step_run=step_run, **more)
