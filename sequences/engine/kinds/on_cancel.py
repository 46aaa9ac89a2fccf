"""`on_cancel`: the step that runs once when a run is cancelled, after all undos."""

from __future__ import annotations

from .base import Compensation


class OnCancel(Compensation):
    """Runs the user's code with only the sequence."""

    name = "on_cancel"
