"""The acts on runs: their buttons, and the pages that ask for confirmation."""

from __future__ import annotations

from .base import ReadOnlyAdmin


class RunActs(ReadOnlyAdmin):
    """The part of the runs' admin that does something to them."""
