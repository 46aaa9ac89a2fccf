"""`on_failure`: the step that runs once when a run has failed, after all undos."""

from __future__ import annotations

from .base import Compensation


class OnFailure(Compensation):
    """The user's code, with nothing but the sequence."""

    name = "on_failure"
