"""A fan-out's own step run: creates the items, waits for them, and counts the failed ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet

from ... import conf
from ...data import serialization
from ...definitions.steps import Step
from ...exceptions import InvalidData, ItemsFailed, SequenceError
from ...models import NO_ITEM, StepFailure, StepRun, Wait
from ...transitions import fanout
from ...transitions.types import WINDOW, Claim, Completed, Conclusion, Dispatch, WaitForItems
from ...utils.text import class_name, first_line
from .base import Kind

if TYPE_CHECKING:
    from ..context import ExecutionContext

#: How many characters of an item's error are quoted in the error of its step.
QUOTED = 300


class FanOut(Kind):
    """Claimed twice: to create the items, and when all of them have ended."""

    name = "each"
    is_atomic = True  # after a crash, it expands again from the beginning

    def needs_place(self, claim: Claim, step: Step[Any]) -> bool:
        """The limits are for its items."""
        return False

    def perform(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """The second time, there is neither a delay nor a `when`."""
        if context.claim.wait == Wait.ITEMS:
            return _gather(context, step)
        return super().perform(context, step)

    def execute(self, context: ExecutionContext, step: Step[Any]) -> Conclusion:
        """Insert the items."""
        total = fanout.insert(context.claim, items_of(context, step), context.using)
        return WaitForItems(total, step.concurrency or WINDOW) if total else Completed()

    def look(self, row: StepRun, using: str) -> list[Dispatch]:
        """Release items, or end the wait."""
        return fanout.look(row.run_id, row.step, using)

    def result(self, row: StepRun, default: Any) -> Any:
        """For a fan-out, use `results`."""
        return default if row.result is None else row.result

    def outcomes(self, rows: QuerySet[StepRun], using: str) -> QuerySet[Any, Any]:
        """The outcomes of its items."""
        return super().outcomes(rows.filter(item__gt=NO_ITEM), using)


def _gather(context: ExecutionContext, step: Step[Any]) -> Conclusion:
    """All items have ended: it succeeds unless too many of them failed."""
    claim, using = context.claim, context.using
    if fanout.has_unfinished(claim.run_id, claim.step, using):
        raise SequenceError(f"Step {claim.step!r} was woken before its items had ended.")
    total, failed = fanout.counts(claim, using)
    allowed = fanout.Allowance(step.allow_failed).of(total)
    if failed > allowed:
        raise ItemsFailed(
            step=claim.step,
            failed=failed,
            total=total,
            allowed=allowed,
            may=str(allowed or "none"),
            first=_quote(fanout.first_failure(claim, using)),
        )
    return Completed()


def _quote(failure: StepFailure | None) -> str:
    """The error of an item, short enough to be quoted in another message."""
    if failure is None:  # someone has deleted it
        return ""
    line = first_line(failure.message, QUOTED)
    return f"The first is item {failure.item}: {class_name(failure.error)}: {line}"


def items_of(context: ExecutionContext, step: Step[Any]) -> Iterator[Any]:
    """The items that `each` returns, as JSON; with `batch`, in lists."""
    declared = _declared_items(context, step.each)
    items = (
        serialization.normalise(item, path=f"item {index}", **conf.settings.as_json)[0]
        for index, item in enumerate(declared)
    )
    if step.batch is None:
        return items
    return iter(lambda: list(islice(items, step.batch)), [])


def _declared_items(context: ExecutionContext, each: Any) -> Iterable[Any]:
    step = context.claim.step
    if callable(each):
        items = each(context.sequence)
    elif each in context.json:
        items = context.json[each]
    else:
        raise InvalidData(
            path=f"data[{each!r}]",
            problem=f"does not exist, but step {step!r} runs once for each of its items",
            hint="Put a list there in an earlier step.",
        )
    if isinstance(items, Iterable) and not isinstance(items, str | bytes | dict):
        return items
    raise InvalidData(
        path="each" if callable(each) else f"data[{each!r}]",
        problem=f"is of type {type(items).__name__}, but step {step!r} needs a list of items",
        hint="Use a list, or a generator of JSON values.",
    )
