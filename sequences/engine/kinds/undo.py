"""An undo: it takes back what a step has done."""

from __future__ import annotations

from typing import Any

from ...models import NO_ITEM
from ...transitions.types import Claim
from .base import Compensation


class Undo(Compensation):
    """One for each step run that is undone; of a fan-out, one for each item."""

    name = "undo"

    def item_of(self, claim: Claim) -> tuple[Any, ...]:
        """What is undone may be one."""
        return self.arguments(claim)[:1]

    def arguments(self, claim: Claim) -> tuple[Any, ...]:
        """Of an item: it, and its result."""
        if claim.item == NO_ITEM:
            return ()
        return claim.payload["item"], claim.payload["result"]
