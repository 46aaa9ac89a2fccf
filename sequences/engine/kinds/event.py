"""An event: takes what was delivered, or waits for it without a worker."""

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
    """Its row waits until something is delivered, or until it times out."""

    name = "event"

    def execute(self, context: ExecutionContext, step: steps.Step[Any]) -> Conclusion:
        """The delivered payload, whether early or just now; otherwise wait, if it has not timed
        out."""
        assert isinstance(step, steps.Event)
        claim = context.claim
        inbox = claims.inbox(claim.run_id, context.using)
        if claim.step in inbox:
            context.copy(claim.step, inbox[claim.step])
            return conclusion_of(inbox[claim.step])
        if claim.wait != Wait.EVENT:
            # Its `due_at` may be left from an earlier delay or retry; the timeout counts from now.
            return WaitForEvent(step.timeout)
        if claim.due_at is None or claim.due_at > claim.now + clock.EARLY:
            return WaitForEvent(claim.due_at)
        if step.on_timeout == "fail":
            raise EventTimeout(step=claim.step, run=claim.run_id, timeout=step.timeout)
        # Without a delivery there is no result, not even None.
        return TimedOut()
