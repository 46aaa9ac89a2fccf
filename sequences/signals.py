"""Django signals: what has happened to runs and steps, sent after it is committed.

Each has the sequence's class as its sender (None, if this code has it no more) and `run`; those of
steps have `step_run`, and those of failed attempts `failure`. They are sent at most once, in the
process that made the change. What must happen is a step.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = [
    "run_cancelled",
    "run_failed",
    "run_started",
    "run_succeeded",
    "step_failed",
    "step_retrying",
    "step_struggling",
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
#: As many attempts in a row as ``SEQUENCES["STRUGGLING_AFTER"]`` says have failed: sent once, and
#: the step is still retried.
step_struggling = Signal()
#: An attempt has failed, and it was the last.
step_failed = Signal()
