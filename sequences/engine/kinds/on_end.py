"""`on_end`: the step that runs once, last of all, however its run ends."""

from __future__ import annotations

from .base import Compensation


class OnEnd(Compensation):
    """Runs the user's code with only the sequence."""

    name = "on_end"
