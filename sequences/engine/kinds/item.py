"""One item of a fan-out: runs the user's code with that item, alongside the others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import transaction
from dramatiq.middleware import SkipMessage

from ...definitions.plan import Plan
from ...definitions.steps import Step
from ...exceptions import Abort, ReadOnlyData
from ...models import StepRun, StepStatus, Wait
from ...transitions import commits, fanout, limits
from ...transitions.types import (
    Change,
    Claim,
    ClaimLost,
    Completed,
    Conclusion,
    Dispatch,
    FinishRun,
)
from .. import dispatcher
from .base import Kind, conclusion_of

if TYPE_CHECKING:
    from ..context import ExecutionContext


class Item(Kind):
    """It has neither a delay nor a `when` of its own, and cannot change `data`."""

    name = "item"

    def admit(self, claim: Claim, using: str) -> None:
        """An item that has waited for a time of its own needs a place among its siblings again."""
        if claim.wait == Wait.LIMIT:
            return  # an item that has waited for a limit has kept its place
        try:
            if fanout.find_place(claim, using):
                return
        except ClaimLost:
            raise SkipMessage(f"Step run {claim.step_run_id} lost its claim.") from None
        dispatcher.send(fanout.look(claim.run_id, claim.step, using))
        raise SkipMessage(
            f"Step run {claim.step_run_id} is waiting for another item to finish (concurrency)."
        )

    def needs_place(self, claim: Claim, step: Step[Any]) -> bool:
        """The delay of the step belonged to its own row."""
        return True

    def item_of(self, claim: Claim) -> tuple[Any, ...]:
        """The item itself."""
        return (claim.payload,)

    def perform(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """Run the user's code with the item."""
        conclusion = conclusion_of(context.call(step, context.claim.payload))
        if isinstance(conclusion, FinishRun):
            raise Abort(
                f"An item of step {context.claim.step!r} returned finish(), which would end "
                "the other items. Return a result and finish in a later step."
            )
        return conclusion

    def commit(
        self, context: ExecutionContext, change: Change, *, savepoint: bool
    ) -> list[Dispatch]:
        """Items never wait for each other: their siblings are checked after this commit."""
        claim, using = context.claim, context.using
        _refuse_new_data(claim, change)
        if not isinstance(change.conclusion, Completed):
            with transaction.atomic(using=using, savepoint=savepoint):
                return commits.commit_waiting_item(claim, change, using)
        if claim.is_limited:
            with transaction.atomic(using=using, savepoint=savepoint):
                state = fanout.commit_item(claim, change, using)
                ready = limits.leave(claim.step_run_id, using)
        else:
            state, ready = fanout.commit_item(claim, change, using), []
        if state is not None:
            context.after_commit = partial(_look_after_siblings, claim, using, state)
        return ready

    def follow_up(self, context: ExecutionContext, row: StepRun, plan: Plan) -> list[Dispatch]:
        """Check the siblings, as after a commit that reported its success itself."""
        if row.status == StepStatus.SUCCEEDED:
            context.after_commit = partial(_look_after_siblings, context.claim, context.using)
        return []

    def queued_from(self, row: StepRun, plan: Plan, using: str) -> list[Dispatch]:
        """The items that its end releases, or the step that waits for all of them."""
        return _look_after_siblings(row, using)


def _refuse_new_data(claim: Claim, change: Change) -> None:
    """Items run concurrently: none of them may change what all of them share."""
    if change.data is None:
        return
    before, after = change.before, change.after
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    raise ReadOnlyData(
        step=claim.step,
        path=" and ".join(f"data[{key!r}]" for key in keys) or "data",
        hint="Return a result and collect the results with self.results() in a later step.",
    )


def _look_after_siblings(
    step: Claim | StepRun, using: str, state: fanout.State | None = None
) -> list[Dispatch]:
    return fanout.after_item(step.run_id, step.step, step.item, using, state)
