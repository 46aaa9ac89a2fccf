"""A locked run, and the rows of its steps: what several transitions do with them."""

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

#: The own row of a fan-out that waits for its items.
WAITS_FOR_ITEMS = Q(status=StepStatus.WAITING, wait=Wait.ITEMS)


def is_failing(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether a step of it has finally failed, and no other goes on in its place."""
    return plan.is_failing(states_of(run, using))


def stops(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether it is on its way to fail: nothing new starts then. An undoing has failed already."""
    return run.status != RunStatus.UNDOING and is_failing(run, plan, using)


def steps_of(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    """All its step runs."""
    return StepRun._base_manager.using(using).filter(run=run.pk)


def states_of(run: SequenceRun, using: str) -> dict[str, str]:
    """The state of each step that the run has reached."""
    rows = StepRun._base_manager.using(using).filter(run=run.pk, item=NO_ITEM)
    return dict(rows.values_list("step", "status"))


def end(run: SequenceRun, status: RunStatus, now: datetime) -> None:
    """The run has come to its end; its key is free if it was started so."""
    run.status = status
    run.finished_at = now
    using = run._state.db or DEFAULT_DB_ALIAS
    notifications.ended(run.pk, run.sequence, status, using)
    if (parent := run.parent_id) is not None:

        def child_ended() -> None:
            # The parent cannot be written here: no transaction locks a child, then its parent. A
            # call that is lost is the sweep's to repeat.
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
    """What has not ended is skipped; a step that runs loses its commit."""
    end_unfinished(run, StepStatus.SKIPPED, now, using)


def end_unfinished(run: SequenceRun, status: StepStatus, now: datetime, using: str) -> None:
    """Every step run that has not ended gets this state, and no token."""
    rows = unfinished(run, using)
    rows.update(status=status, token=None, wake_at=None, due_at=None, finished_at=now)
    clear_on_commit(run.pk, using)


def unfinished(run: SequenceRun, using: str) -> Any:
    """The step runs that have not ended."""
    return StepRun._base_manager.using(using).filter(run=run.pk, status__in=UNFINISHED_STEP)


def remove(run: SequenceRun, steps: Collection[str], using: str) -> None:
    """Remove all rows of these steps; their failures stay with the run."""
    failures = StepFailure._base_manager.using(using).filter(run=run.pk, step__in=steps)
    failures.update(step_run=None)
    losses = StepLoss._base_manager.using(using).filter(run=run.pk, step__in=steps)
    losses.update(step_run=None)
    rows = StepRun._base_manager.using(using).filter(run=run.pk, step__in=steps)
    calls = StepCall._base_manager.using(using).filter(step_run__in=rows.values("pk"))
    calls._raw_delete(using)
    rows._raw_delete(using)
