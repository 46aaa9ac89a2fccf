"""An undo: reverses the effect of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...definitions import steps
from ...definitions.steps import Step, name_of
from ...models import NO_ITEM
from ...transitions.types import Claim, Conclusion
from .base import Compensation

if TYPE_CHECKING:
    from ..context import ExecutionContext


class Undo(Compensation):
    """One for each step run that is undone; for a fan-out, one for each item."""

    name = "undo"

    def execute(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """What is hidden in the undone item and its result is hidden here, too."""
        assert isinstance(step, steps.Undo)
        for value in self.arguments(context.claim):
            context.keep_secrets(value, context.keys_of(name_of(step.undoes)))
        return super().execute(context, step)

    def item_of(self, claim: Claim) -> tuple[Any, ...]:
        """The undone step run may be an item."""
        return self.arguments(claim)[:1]

    def arguments(self, claim: Claim) -> tuple[Any, ...]:
        """For an item: the item and its result."""
        if claim.item == NO_ITEM:
            return ()
        return claim.payload["item"], claim.payload["result"]
