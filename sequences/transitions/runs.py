"""A locked run and the rows of its steps: what several transitions have in common."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Q, QuerySet

from ..definitions.plan import Plan
from ..models import (
    NO_ITEM,
    UNFINISHED_STEP,
    RunStatus,
    SequenceRun,
    StepCall,
    StepFailure,
    StepLoss,
    StepRun,
    StepStatus,
    Wait,
)
from ..port import get_engine
from . import notifications
from .limits import clear_on_commit

#: The own row of a fan-out that is waiting for its items.
WAITS_FOR_ITEMS = Q(status=StepStatus.WAITING, wait=Wait.ITEMS)


def is_failing(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether a step of it has failed permanently and no handler has taken over."""
    return plan.is_failing(states_of(run, using))


def stops(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether it is about to fail: nothing new starts then. A run that is rolling back has failed
    already."""
    return run.status != RunStatus.UNDOING and is_failing(run, plan, using)


def steps_of(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    """All of its step runs."""
    return StepRun._base_manager.using(using).filter(run=run.pk)


def states_of(run: SequenceRun, using: str) -> dict[str, str]:
    """The status of each step that the run has reached."""
    rows = StepRun._base_manager.using(using).filter(run=run.pk, item=NO_ITEM)
    return dict(rows.values_list("step", "status"))


def end(run: SequenceRun, status: RunStatus, now: datetime) -> None:
    """End the run; its key is free if it was started that way."""
    run.status = status
    run.finished_at = now
    using = run._state.db or DEFAULT_DB_ALIAS
    notifications.ended(run.pk, run.sequence, status, using)
    if (parent := run.parent_id) is not None:

        def child_ended() -> None:
            # The parent cannot be written here: no transaction locks a child before its parent. If
            # this call is lost, the sweep repeats it.
            get_engine().child_ended(parent, using)

        transaction.on_commit(child_ended, using=using, robust=True)
    if run.releases_key:
        run.active_key = None


def save(run: SequenceRun, now: datetime, using: str) -> None:
    """Store the locked run. Its version grows with every change, whoever makes it."""
    run.version += 1
    run.updated_at = now
    run.save(using=using, force_update=True, update_fields=_CHANGED)


_CHANGED = (
    "status",
    "final_status",
    "data",
    "inbox",
    "version",
    "active_key",
    "updated_at",
    "finished_at",
)


def skip_unfinished(run: SequenceRun, now: datetime, using: str) -> None:
    """Skip whatever has not ended; a step that is running can no longer commit."""
    end_unfinished(run, StepStatus.SKIPPED, now, using)


def end_unfinished(run: SequenceRun, status: StepStatus, now: datetime, using: str) -> None:
    """Set this status for every step run that has not ended, and clear its token."""
    rows = unfinished(run, using)
    rows.update(status=status, token=None, wake_at=None, due_at=None, finished_at=now)
    clear_on_commit(run.pk, using)


def unfinished(run: SequenceRun, using: str) -> Any:
    """The step runs that have not ended."""
    return StepRun._base_manager.using(using).filter(run=run.pk, status__in=UNFINISHED_STEP)


def remove(run: SequenceRun, steps: Collection[str], using: str) -> None:
    """Delete all rows of these steps; their failures stay with the run."""
    failures = StepFailure._base_manager.using(using).filter(run=run.pk, step__in=steps)
    failures.update(step_run=None)
    losses = StepLoss._base_manager.using(using).filter(run=run.pk, step__in=steps)
    losses.update(step_run=None)
    rows = StepRun._base_manager.using(using).filter(run=run.pk, step__in=steps)
    calls = StepCall._base_manager.using(using).filter(step_run__in=rows.values("pk"))
    calls._raw_delete(using)
    rows._raw_delete(using)
