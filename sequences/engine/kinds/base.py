"""The base class of all kinds of step runs: the attempt, the commit, and the sweep's check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import transaction
from django.db.models import QuerySet

from ... import conf
from ...data import serialization
from ...definitions.plan import Plan
from ...definitions.steps import Finish, Repeat, Step
from ...exceptions import Abort
from ...models import RunStatus, StepRun, Wait
from ...transitions import claims, commits, types
from ...transitions.types import Change, Claim, Completed, Conclusion, Dispatch, FinishRun

if TYPE_CHECKING:
    from ..context import ExecutionContext


class Kind:
    """A kind of step run. It has no state: each method receives what it works on."""

    #: The value of `StepRun.kind` and of nodes in the plan.
    name: ClassVar[str]
    #: Whether one transaction holds the attempt and its commit, whatever the step declares.
    is_atomic: ClassVar[bool] = False

    # The attempt

    def admit(self, claim: Claim, using: str) -> None:
        """After a wait for a time of its own: raises `SkipMessage` if it cannot run now."""

    def perform(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """An attempt: its own delay, then `when`, then its actual work."""
        has_conditions = step.delay is not None or step.when is not None
        return (has_conditions and context.put_off(step)) or self.execute(context, step)

    def execute(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """The actual work: the user's code, or what the kind does instead."""
        return conclusion_of(context.call(step))

    # The limits

    def needs_run(self, claim: Claim) -> bool:
        """Whether its run needs its places now; not if it only collects what it has waited for."""
        return claim.wait not in (Wait.EVENT, Wait.ITEMS, Wait.CHILDREN)

    def needs_place(self, claim: Claim, step: Step[Any]) -> bool:
        """Whether this attempt does what the step's limits are for; not if it only evaluates a
        delay."""
        return claim.delay_evaluated or step.delay is None

    def item_of(self, claim: Claim) -> tuple[Any, ...]:
        """The item for the key of a limit, if it has one."""
        return ()

    # The commit

    def commit(
        self, context: ExecutionContext, change: Change, *, savepoint: bool
    ) -> list[Dispatch]:
        """Commit the change; return what became ready."""
        claim, using = context.claim, context.using
        ready = commits.commit_quickly(claim, context.plan, change, using, context.offer)
        if ready is None:
            with transaction.atomic(using=using, savepoint=savepoint):
                ready = commits.commit(claim, change, using)
        return ready

    def follow_up(self, context: ExecutionContext, row: StepRun, plan: Plan) -> list[Dispatch]:
        """What became ready by a commit whose success was learned only from the row."""
        following = [node.name for node in plan.successors(row.step)]
        return claims.queued_after(row.run_id, [row.step, *following], context.using)

    def queued_from(self, row: StepRun, plan: Plan, using: str) -> list[Dispatch]:
        """Everything queued after it, not only the next steps.

        Steps that were handed off directly may have committed, too.
        """
        steps = [row.step, *plan.descendants(row.step)]
        if row.run.status == RunStatus.UNDOING:
            steps += [node.name for node in plan.nodes if node.traits.is_compensation]
        return claims.queued_after(row.run_id, steps, using)

    # The wait

    def look(self, row: StepRun, using: str) -> list[Dispatch]:
        """For the sweep: check whether what the row waits for has come, in case nobody has told
        it."""
        return []

    # What later steps read

    def result(self, row: StepRun, default: Any) -> Any:
        """The result of the step."""
        return row.result

    def outcomes(self, rows: QuerySet[StepRun], using: str) -> QuerySet[Any, Any]:
        """Item, status and result of all of its outcomes."""
        return rows.order_by("item").values_list("payload", "status", "result")


class Compensation(Kind):
    """What runs once it is decided how the run ends: undos and the last steps."""

    def needs_run(self, claim: Claim) -> bool:
        """A run that could not start has nothing to undo, and another run keeps its place."""
        return False

    def execute(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """Must not end a run that is already ending."""
        conclusion = conclusion_of(context.call(step, *self.arguments(context.claim)))
        if isinstance(conclusion, FinishRun):
            raise Abort(
                f"Step {context.claim.step!r} returned finish(), but the outcome of its run "
                "has already been decided. Return nothing."
            )
        return conclusion

    def arguments(self, claim: Claim) -> tuple[Any, ...]:
        """The arguments of the user's code, after the sequence."""
        return ()

    def commit(
        self, context: ExecutionContext, change: Change, *, savepoint: bool
    ) -> list[Dispatch]:
        """The rollback decides what comes next."""
        with transaction.atomic(using=context.using, savepoint=savepoint):
            return commits.commit_compensation(context.claim, change, context.using)


def conclusion_of(returned: Any) -> Conclusion:
    """The conclusion that the return value of the user's code stands for."""
    if isinstance(returned, Repeat):
        return types.Repeat(returned.after)
    if isinstance(returned, Finish):
        return FinishRun()
    if returned is None:
        return Completed()
    _, text = serialization.normalise(returned, path="result", **conf.settings.as_json)
    return Completed(text)
