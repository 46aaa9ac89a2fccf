"""Who has locked what is due, as far as the database tells. Read-only, for the health display."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import connections, transaction
from django.db.models import QuerySet

from ..models import SequenceRun, StepRun
from .backends import Holder, backend_of
from .locking import lock_free

#: How many rows are tried, oldest first.
MAX_TRIED_ROWS = 200


@dataclass(frozen=True, slots=True)
class Locked:
    """Step runs that are due, but locked by another transaction, so that the sweep skips them."""

    count: int
    #: When the first of them was due.
    since: datetime
    run: UUID
    step: str


def locked(rows: QuerySet[StepRun], using: str) -> Locked | None:
    """Those of these step runs that are locked, or whose run is."""
    tried = list(rows.order_by("wake_at", "pk")[:MAX_TRIED_ROWS])
    with transaction.atomic(using=using):
        steps = StepRun._base_manager.using(using).filter(pk__in=[row.pk for row in tried])
        runs = SequenceRun._base_manager.using(using).filter(pk__in={row.run_id for row in tried})
        free_runs, free_steps = set(lock_free(runs, using)), set(lock_free(steps, using))
    locked = [row for row in tried if row.pk not in free_steps or row.run_id not in free_runs]
    if not locked or locked[0].wake_at is None:
        return None
    return Locked(len(locked), locked[0].wake_at, locked[0].run_id, locked[0].step)


def holder(of: Locked, using: str) -> Holder | None:
    """The session that holds the lock. None: the database does not tell, or it has ended."""
    return backend_of(using).holder(of.run, of.step, connections[using])
