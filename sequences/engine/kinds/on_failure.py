"""`on_failure`: the step that runs once when a run has failed, after all undos."""

from __future__ import annotations

from .base import Compensation


class OnFailure(Compensation):
    """Runs the user's code with only the sequence."""

    name = "on_failure"
