"""What every kind of step run does, each in its own way: its attempt, its commit, its look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import transaction
from django.db.models import QuerySet

from ...definitions.plan import Plan
from ...definitions.steps import Finish, Repeat, Step
from ...exceptions import Abort
from ...models import RunStatus, StepRun, Wait
from ...transitions import claims, commits, types
from ...transitions.types import Change, Claim, Completed, Conclusion, Dispatch, FinishRun
from ..values import normalise

if TYPE_CHECKING:
    from ..context import ExecutionContext


class Kind:
    """A kind of step run. It holds nothing: each method is given what it works on."""

    #: What `StepRun.kind` says, and the node in the plan.
    name: ClassVar[str]
    #: Whether one transaction holds the attempt and its commit, whatever the step declares.
    is_atomic: ClassVar[bool] = False

    # An attempt

    def admit(self, claim: Claim, using: str) -> None:
        """After the claim: raises `SkipMessage` if the step run cannot have its turn now."""

    def perform(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """An attempt: its own delay, then `when`, then what the step is for."""
        has_conditions = step.delay is not None or step.when is not None
        return (has_conditions and context.put_off(step)) or self.execute(context, step)

    def execute(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """What the step is for: the user's code, or what its kind has instead."""
        return conclusion_of(context.call(step))

    def check_data(self, claim: Claim, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Raises if this kind must not change `data` so."""

    # Its limits

    def needs_run(self, claim: Claim) -> bool:
        """Whether its run needs its places: not to take up what it has waited for from others."""
        return claim.wait not in (Wait.EVENT, Wait.ITEMS, Wait.CHILDREN)

    def needs_place(self, claim: Claim, step: Step[Any]) -> bool:
        """Whether this attempt is what the limits of the step are for: not to evaluate a delay."""
        return claim.delay_evaluated or step.delay is None

    def item_of(self, claim: Claim) -> tuple[Any, ...]:
        """The item that a key may be of, if it has one."""
        return ()

    # Its commit

    def commit(
        self, context: ExecutionContext, change: Change, *, savepoint: bool
    ) -> list[Dispatch]:
        """Make it fact; returns what became ready."""
        ready = commits.commit_quickly(context.claim, change, context.using, context.offer)
        if ready is None:
            with transaction.atomic(using=context.using, savepoint=savepoint):
                ready = commits.commit(context.claim, change, context.using)
        return ready

    def follow_up(self, context: ExecutionContext, row: StepRun, plan: Plan) -> list[Dispatch]:
        """What became ready by a commit of whose success only the row has told."""
        following = [node.name for node in plan.successors(row.step)]
        return claims.queued_after(row.run_id, [row.step, *following], context.using)

    def queued_from(self, row: StepRun, plan: Plan, using: str) -> list[Dispatch]:
        """What is queued of all that comes after it, not only next.

        Steps that were handed off directly may have committed too.
        """
        steps = [row.step, *plan.descendants(row.step)]
        if row.run.status == RunStatus.UNDOING:
            steps += [node.name for node in plan.nodes if node.traits.is_compensation]
        return claims.queued_after(row.run_id, steps, using)

    # Its wait

    def look(self, row: StepRun, using: str) -> list[Dispatch]:
        """The sweep's: see whether what the row waits for has come, as nobody may have told."""
        return []

    # What later steps read of it

    def result(self, row: StepRun, default: Any) -> Any:
        """What the step returned."""
        return row.result

    def outcomes(self, rows: QuerySet[StepRun], using: str) -> QuerySet[Any, Any]:
        """Item, status and result of all that it came to."""
        return rows.order_by("item").values_list("payload", "status", "result")


class Compensation(Kind):
    """What comes when it is decided how the run ends: an undo, and the last steps."""

    def needs_run(self, claim: Claim) -> bool:
        """A run that could not begin has nothing to undo, and another keeps its place."""
        return False

    def execute(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """It may not end a run that ends already."""
        conclusion = conclusion_of(context.call(step, *self.arguments(context.claim)))
        if isinstance(conclusion, FinishRun):
            raise Abort(
                f"Step {context.claim.step!r} returned finish(), but how its run ends has "
                "already been decided. Return nothing."
            )
        return conclusion

    def arguments(self, claim: Claim) -> tuple[Any, ...]:
        """What the user's code is given, beside the sequence."""
        return ()

    def commit(
        self, context: ExecutionContext, change: Change, *, savepoint: bool
    ) -> list[Dispatch]:
        """What comes next is decided by the undoing."""
        with transaction.atomic(using=context.using, savepoint=savepoint):
            return commits.commit_compensation(context.claim, change, context.using)


def conclusion_of(returned: Any) -> Conclusion:
    """What the user's code has come to, by what it returned."""
    if isinstance(returned, Repeat):
        return types.Repeat(returned.after)
    if isinstance(returned, Finish):
        return FinishRun()
    if returned is None:
        return Completed()
    _, text = normalise(returned, "result")
    return Completed(text)
