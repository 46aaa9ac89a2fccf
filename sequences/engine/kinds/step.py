"""A plain step: runs the user's code."""

from __future__ import annotations

from .base import Kind


class Step(Kind):
    """Does what every kind does."""

    name = "step"
