"""A plain step: the user's code."""

from __future__ import annotations

from .base import Kind


class Step(Kind):
    """It does what every kind does."""

    name = "step"
