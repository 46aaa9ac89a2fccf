"""`on_end`: the step that runs once, the last of its run, however that ends."""

from __future__ import annotations

from .base import Compensation


class OnEnd(Compensation):
    """The user's code, with nothing but the sequence."""

    name = "on_end"
