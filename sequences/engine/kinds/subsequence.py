"""A subsequence: starts other runs, waits for them, and checks how they ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from django.db.models import QuerySet

from ...definitions import registry, steps
from ...definitions.definition import Definition
from ...exceptions import ChildrenFailed, InvalidData, SequenceError, StepKindChanged
from ...models import NO_ITEM, UNFINISHED_RUN, RunStatus, StepRun, Wait
from ...transitions import compensation, fanout, subsequences
from ...transitions.types import Completed, Conclusion, Dispatch, WaitForChildren
from .. import start, tracing
from .base import Kind, conclusion_of
from .fan_out import items_of

if TYPE_CHECKING:
    from ..context import ExecutionContext


class Subsequence(Kind):
    """Claimed twice: to start its children, and when all of them have ended."""

    name = "subsequence"
    is_atomic = True  # either all children start, or none

    def perform(self, context: ExecutionContext, step: steps.Step[Any]) -> Conclusion:
        """The second time, there is neither a delay nor a `when`."""
        assert isinstance(step, steps.Subsequence)
        if context.claim.wait == Wait.CHILDREN:
            return _gather(context, step)
        return super().perform(context, step)

    def execute(self, context: ExecutionContext, step: steps.Step[Any]) -> Conclusion:
        """Start the children."""
        assert isinstance(step, steps.Subsequence)
        cls = registry.get(step.sequence) if isinstance(step.sequence, str) else step.sequence
        child, claim = cast(Definition, cls._definition), context.claim
        requests = [
            start.child_of(child, _not_none(data, claim.step), claim.step_run_id, subject)
            for data, subject in _children_of(context, step)
        ]
        if not requests:
            return Completed()
        labels = [child.label, *child.aliases]
        with tracing.starting(child.plan, requests):
            ready = subsequences.start(claim, child.plan, requests, labels, context.using)
        return WaitForChildren(len(requests), ready)

    def look(self, row: StepRun, using: str) -> list[Dispatch]:
        """End the wait, or continue the rollback of the children."""
        return compensation.look(row.pk, using)

    def result(self, row: StepRun, default: Any) -> Any:
        """The final data of a single child; for many, use `results`."""
        return default if row.result is None else row.result

    def outcomes(self, rows: QuerySet[StepRun], using: str) -> QuerySet[Any, Any]:
        """The outcomes of its children, with their data as results."""
        parent = rows.filter(item=NO_ITEM).values_list("pk", flat=True).first()
        return subsequences.ended(parent, using).values_list("pk", "status", "data")


def _children_of(context: ExecutionContext, step: steps.Subsequence) -> Iterator[tuple[Any, Any]]:
    """The data and the subject of each child."""
    sequence = context.sequence
    if step.each is None:
        data = context.json if step.child_data is None else step.child_data(sequence)
        yield data, step.child_subject and step.child_subject(sequence)
        return
    takes_index = getattr(step.child_data, "takes_index", False)
    for index, item in enumerate(items_of(context, step)):
        arguments = (item, index) if takes_index else (item,)
        data = item if step.child_data is None else step.child_data(sequence, *arguments)
        yield data, step.child_subject and step.child_subject(sequence, item)


def _not_none(data: Any, step: str) -> Any:
    """Reject None as the data of a child: probably, a function has no return statement."""
    if data is None:
        raise InvalidData(
            path=f"The data for a run that step {step!r} starts",
            problem="is None",
            hint="Return a dict; {} if the child needs no data.",
        )
    return data


def _gather(context: ExecutionContext, step: steps.Subsequence) -> Conclusion:
    """All children have ended: it succeeds unless too many of them did not."""
    children = subsequences.ended(context.claim.step_run_id, context.using)
    if children.filter(status__in=UNFINISHED_RUN).exists():
        # It was woken early, or someone has restarted one of them: that is not a failure.
        return WaitForChildren(children.count())
    failed = children.exclude(status=RunStatus.SUCCEEDED)
    total, failures = children.count(), failed.count()
    if failures > fanout.Allowance(step.allow_failed).of(total):
        some = ", ".join(
            f"{pk} ({status})" for pk, status in failed.values_list("pk", "status")[:5]
        )
        raise ChildrenFailed(step=context.claim.step, failed=failures, total=total, runs=some)
    if step.each is not None:
        return Completed()
    if total != 1:
        raise _no_only_child(context, total)
    data = children.get().data
    context.copy(context.claim.step, data)
    return conclusion_of(data)


def _no_only_child(context: ExecutionContext, total: int) -> SequenceError:
    claim = context.claim
    if not total:  # someone has deleted it
        return SequenceError(
            f"The child run of step {claim.step!r} no longer exists. Only a restart from this step "
            "or an earlier one starts another."
        )
    return StepKindChanged(
        step=claim.step,
        run=claim.run_id,
        before=f"a subsequence with each ({total} items)",
        now="a single subsequence",
        hint="The run needs code in which the step declares each=.",
    )
