"""An event: it takes what was delivered, or waits for it without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...definitions import steps
from ...exceptions import EventTimeout
from ...models import Wait
from ...transitions import claims, clock
from ...transitions.types import Conclusion, TimedOut, WaitForEvent
from .base import Kind, conclusion_of

if TYPE_CHECKING:
    from ..context import ExecutionContext


class Event(Kind):
    """Its row waits until something is delivered, or its time is over."""

    name = "event"

    def execute(self, context: ExecutionContext, step: steps.Step[Any]) -> Conclusion:
        """What was delivered, early or just now; else wait, if there is still time."""
        assert isinstance(step, steps.Event)
        claim = context.claim
        inbox = claims.inbox(claim.run_id, context.using)
        if claim.step in inbox:
            context.copy(claim.step, inbox[claim.step])
            return conclusion_of(inbox[claim.step])
        if claim.wait != Wait.EVENT:
            # Its `due_at` may be that of a delay or a retry before; the timeout counts from now on.
            return WaitForEvent(step.timeout)
        if claim.due_at is None or claim.due_at > claim.now + clock.EARLY:
            return WaitForEvent(claim.due_at)
        if step.on_timeout == "fail":
            raise EventTimeout(step=claim.step, run=claim.run_id, timeout=step.timeout)
        # What was never delivered is no result, not even None.
        return TimedOut()
