"""Subsequences: runs that a step has started and waits for.

Locks are taken from the parent to its children, never the other way. So the end of a child is
reported after its commit, by a check that writes the parent's waiting row if no child is left. If
the process dies before that, the sweep repeats the check, when the row's `wake_at` passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from ..definitions.kinds import PARENT_KINDS, UNDO_KINDS
from ..definitions.plan import Plan
from ..exceptions import SequenceError
from ..models import (
    UNFINISHED_RUN,
    UNFINISHED_STEP,
    RunStatus,
    SequenceRun,
    StepRun,
    StepStatus,
    Wait,
)
from . import clock, plans, starts
from .backends import backend_of
from .locking import lock_free, lock_run, transact
from .starts import Labels
from .types import Claim, Dispatch, Start, dispatch_of, wait_for

#: How deeply runs may be nested.
MAX_DEPTH = 10
#: Children per INSERT.
CHILDREN_PER_INSERT = 1000


def start(
    claim: Claim, plan: Plan, requests: Sequence[Start], labels: Labels, using: str
) -> list[Dispatch]:
    """Start the children, in the transaction of the step's attempt."""
    _check_depth(claim, using)
    dispatches: list[Dispatch] = []
    for index in range(0, len(requests), CHILDREN_PER_INSERT):
        batch = requests[index : index + CHILDREN_PER_INSERT]
        _, more = starts.start_quickly(plan, batch, labels, using) or starts.start_many(
            plan, batch, labels, using
        )
        dispatches += more
    return dispatches


def _check_depth(claim: Claim, using: str) -> None:
    run_id, depth = claim.run_id, 1
    rows = SequenceRun._base_manager.using(using)
    while (above := rows.filter(pk=run_id).values_list("parent__run", flat=True).get()) is not None:
        run_id, depth = above, depth + 1
        if depth >= MAX_DEPTH:
            raise SequenceError(
                f"Step {claim.step!r} of run {claim.run_id} would start a child run at "
                f"depth {depth}; the limit is {MAX_DEPTH}. Does a sequence start itself?"
            )


def wait_values(total: int, now: datetime) -> dict[str, Any]:
    """The values of the step's row while its children run."""
    return {
        **wait_for(Wait.CHILDREN, now),
        "members": {"total": total},
        "children_undo": "",
        "delay_evaluated": True,
        "wake_at": now + clock.grace(),
    }


def look(step_run_id: int, using: str) -> list[Dispatch]:
    """End the wait, if no child is left and the run is not on hold.

    This waits for no lock: whoever has it checks itself, or leaves that to the sweep.
    """
    return transact(using, lambda: _look(step_run_id, using))


def _look(step_run_id: int, using: str) -> list[Dispatch]:
    now = clock.now(using)
    rows = _waiting(using).filter(pk=step_run_id, wake_at__isnull=False)
    ended = _lock_ended(rows, using)
    if not ended:
        return []
    rows.filter(pk__in=ended).update(
        status=StepStatus.QUEUED, queued_at=now, dispatches=0, wake_at=now + clock.grace()
    )
    row = StepRun._base_manager.using(using).select_related("run").get(pk=step_run_id)
    return [dispatch_of(row, plans.load(row.run.plan_id, using))]


def _lock_ended(rows: QuerySet[StepRun], using: str) -> list[int]:
    """Lock only a row that will be written: a check without a result must not block another."""
    ended = rows.filter(~Exists(unfinished(OuterRef("pk"), using)))
    if backend_of(using).locks_examined_rows and not ended.exists():
        return []
    return lock_free(ended, using)


def waiting(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    """The rows of this run that are waiting for children."""
    return _waiting(using).filter(run=run.pk)


def _waiting(using: str) -> QuerySet[StepRun]:
    rows = StepRun._base_manager.using(using)
    return rows.filter(status=StepStatus.WAITING, wait=Wait.CHILDREN)


def unfinished(step_run: Any, using: str) -> QuerySet[SequenceRun]:
    """The children of a step run that have not ended."""
    rows = SequenceRun._base_manager.using(using)
    return rows.filter(parent=step_run, status__in=UNFINISHED_RUN)


def ended(step_run_id: int | None, using: str) -> QuerySet[SequenceRun]:
    """The children of a step run, in the order of their starts."""
    rows = SequenceRun._base_manager.using(using).filter(parent=step_run_id, parent__isnull=False)
    return rows.order_by("pk")


def lock_unfinished(rows: QuerySet[StepRun], using: str) -> Iterator[SequenceRun]:
    """Lock and yield the unfinished children of these step runs. Their parent is locked, too."""
    children = SequenceRun._base_manager.using(using).filter(
        parent__in=rows.filter(kind__in=PARENT_KINDS).values("pk"), status__in=UNFINISHED_RUN
    )
    for run_id in list(children.order_by("pk").values_list("pk", flat=True)):
        child = lock_run(run_id, using)
        if child is not None and not child.is_finished:
            yield child


def part(rows: QuerySet[StepRun], using: str) -> None:
    """These step runs start over with new children: detach the earlier ones."""
    SequenceRun._base_manager.using(using).filter(parent__in=rows.values("pk")).update(parent=None)


def unsuccessful(rows: QuerySet[StepRun], using: str) -> list[SequenceRun]:
    """The children of these step runs that have failed or were cancelled."""
    children = SequenceRun._base_manager.using(using).filter(
        parent__in=rows.values("pk"), status__in=(RunStatus.FAILED, RunStatus.CANCELLED)
    )
    return list(children.order_by("pk"))


class ChildrenUndo(StrEnum):
    """How far the rollback of a step's children has got."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    #: None of them had anything to undo.
    EMPTY = "empty"
    #: It has come to a child whose own rollback had failed, and none of them was undone.
    STUCK = "stuck"


#: Step runs whose children were rolled back, or are being rolled back.
UNDONE = (ChildrenUndo.RUNNING, ChildrenUndo.DONE, ChildrenUndo.FAILED)
#: Step runs with a child whose rollback has failed.
UNDO_FAILED = (ChildrenUndo.FAILED, ChildrenUndo.STUCK)


def note_undoing(run: SequenceRun, now: datetime, using: str) -> bool:
    """Whether a child run is being rolled back; updates the rows of its steps accordingly.

    As long as one is, the sweep checks the step's row, because the end of a child may go
    unreported.
    """
    rows = StepRun._base_manager.using(using).filter(run=run.pk, wait=Wait.CHILDREN)
    busy = [_note(own, now, using) for own in rows]
    return any(busy)


def _note(own: StepRun, now: datetime, using: str) -> bool:
    is_busy = being_undone(own, using).exists()
    children_undo, wake_at = own.children_undo, own.wake_at
    if children_undo == ChildrenUndo.RUNNING and not is_busy:
        children_undo = _outcome(own, using)
    if is_busy:
        wake_at = wake_at or now + clock.grace()
    elif own.status not in UNFINISHED_STEP:
        wake_at = None
    if (children_undo, wake_at) != (own.children_undo, own.wake_at):
        own.children_undo, own.wake_at = children_undo, wake_at
        own.save(using=using, update_fields=["children_undo", "wake_at"])
    return is_busy


def being_undone(own: StepRun, using: str) -> QuerySet[SequenceRun]:
    """Its children that are being rolled back; one that waits for its turn has no
    `final_status`."""
    return of(own, using).filter(status=RunStatus.UNDOING).exclude(final_status="")


def of(own: StepRun, using: str) -> QuerySet[SequenceRun]:
    """The runs that this step run has started."""
    return SequenceRun._base_manager.using(using).filter(parent=own.pk)


def _outcome(own: StepRun, using: str) -> ChildrenUndo:
    below = StepRun._base_manager.using(using).filter(run__parent=own.pk)
    if below.filter(failed_undo(), run__status=RunStatus.FAILED).exists():
        return ChildrenUndo.FAILED
    undone = Q(kind__in=UNDO_KINDS) | Q(children_undo=ChildrenUndo.DONE)
    return ChildrenUndo.DONE if below.filter(undone).exists() else ChildrenUndo.EMPTY


def failed_undo() -> Q:
    """A step run whose undo has failed: it is an undo itself, or one of its children has it."""
    return Q(kind__in=UNDO_KINDS, status=StepStatus.FAILED) | Q(children_undo__in=UNDO_FAILED)
