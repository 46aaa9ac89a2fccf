"""`on_cancel`: the step that runs once when a run is cancelled, after all undos."""

from __future__ import annotations

from .base import Compensation


class OnCancel(Compensation):
    """The user's code, with nothing but the sequence."""

    name = "on_cancel"
