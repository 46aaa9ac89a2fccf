"""Django signals about runs and steps, sent after the change has been committed.

The sender is the sequence's class (None if this code no longer has it). Each signal has a `run`;
signals about steps have a `step_run`, and signals about failed attempts a `failure`. They are sent
at most once, in the process that made the change. If something must happen, make it a step.
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

#: A run was created. Not sent if the key already had one.
run_started = Signal()
run_succeeded = Signal()
#: A run has failed, after its rollback if it has one.
run_failed = Signal()
run_cancelled = Signal()
#: A step, an item, an undo, `on_failure`, `on_cancel` or `on_end` has succeeded.
step_succeeded = Signal()
#: An attempt has failed, and the step will be retried.
step_retrying = Signal()
#: The number of failed attempts in a row has reached ``SEQUENCES["STRUGGLING_AFTER"]``: sent once,
#: while the step is still being retried.
step_struggling = Signal()
#: An attempt has failed, and it was the last one.
step_failed = Signal()
