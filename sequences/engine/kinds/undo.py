"""An undo: reverses the effect of a step."""

from __future__ import annotations

from typing import Any

from ...models import NO_ITEM
from ...transitions.types import Claim
from .base import Compensation


class Undo(Compensation):
    """One for each step run that is undone; for a fan-out, one for each item."""

    name = "undo"

    def item_of(self, claim: Claim) -> tuple[Any, ...]:
        """The undone step run may be an item."""
        return self.arguments(claim)[:1]

    def arguments(self, claim: Claim) -> tuple[Any, ...]:
        """For an item: the item and its result."""
        if claim.item == NO_ITEM:
            return ()
        return claim.payload["item"], claim.payload["result"]
