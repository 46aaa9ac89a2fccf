"""Deadlines of whole runs: an unfinished run fails at its deadline, and is rolled back.

A run without a deadline has no row here, and costs nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from ..exceptions import DeadlineExceeded
from ..models import NO_ITEM, RunDeadline, RunStatus, SequenceRun, StepRun
from . import clock, compensation, failures, plans, runs
from .locking import lock_free, lock_run, transact
from .types import Dispatch

#: The maximum number of runs that one sweep fails.
RUNS_PER_SWEEP = 500


def due(using: str) -> list[UUID]:
    """The runs whose deadlines have passed, oldest first."""
    rows = RunDeadline._base_manager.using(using).filter(due_at__lte=clock.now(using))
    return list(rows.order_by("due_at").values_list("run_id", flat=True)[:RUNS_PER_SWEEP])


def expire(run_id: UUID, using: str) -> list[Dispatch]:
    """Fail this run, whose deadline has passed, unless it is finished or rolling back already."""
    return transact(using, lambda: _expire(run_id, using))


def _expire(run_id: UUID, using: str) -> list[Dispatch]:
    run = lock_run(run_id, using)
    now = clock.now(using)
    rows = RunDeadline._base_manager.using(using).filter(run=run_id, due_at__lte=now)
    deadline = rows.values_list("due_at", flat=True).first()
    if deadline is None:  # another sweep was faster
        return []
    rows._raw_delete(using)
    if run is None or run.status not in (RunStatus.RUNNING, RunStatus.PAUSED):
        return []
    plan = plans.load(run.plan_id, using)
    _record(run, deadline, now, using)
    ready = compensation.begin(run, plan, RunStatus.FAILED, now, using, cancels=True)
    runs.save(run, now, using)
    return ready


def _record(run: SequenceRun, deadline: datetime, now: datetime, using: str) -> None:
    """Record why the run fails: with the oldest of its unfinished steps."""
    unfinished = runs.unfinished(run, using).filter(item=NO_ITEM)
    rows: list[StepRun] = list(unfinished.order_by("pk"))
    if not rows:
        return
    steps = ", ".join(row.step for row in rows)
    error = DeadlineExceeded(run=run.pk, deadline=f"{deadline:%Y-%m-%d %H:%M:%S %Z}", steps=steps)
    failures.append_to_run(rows[0], failures.Failure.of(error), now, using)


def move(
    run_id: UUID, deadline: timedelta | datetime | None, now: datetime, using: str
) -> tuple[datetime | None, datetime | None]:
    """Set or remove the deadline of a locked run. Returns the earlier deadline and the new one."""
    rows = RunDeadline._base_manager.using(using).filter(run=run_id)
    before = rows.values_list("due_at", flat=True).first()
    after = None if deadline is None else clock.moment(deadline, now)
    if after is None:
        rows._raw_delete(using)
    elif not rows.update(due_at=after):
        RunDeadline._base_manager.using(using).create(run_id=run_id, due_at=after)
    return before, after


def put_off(run_id: UUID, using: str) -> None:
    """Check this run later: it could not be failed now, for a reason that may last.

    Does nothing if someone has changed its deadline in the meantime.
    """
    now = clock.now(using)
    rows = RunDeadline._base_manager.using(using).filter(run=run_id, due_at__lte=now)
    later = now + clock.grace()
    transact(using, lambda: rows.filter(pk__in=lock_free(rows, using)).update(due_at=later))
