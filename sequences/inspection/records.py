"""What pages and commands show besides a run's snapshot: its latest rows, without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.db.models import Max

from .. import conf
from ..models import Operation, SequenceRun, StepFailure, StepLoss
from .snapshot import RunSnapshot, hide_secrets


def failures_of(run: SequenceRun, limit: int, *, tracebacks: bool = False) -> list[StepFailure]:
    """Its latest failed attempts, newest first."""
    rows = StepFailure.objects.using(conf.using()).filter(run=run.pk).order_by("-pk")
    failures = list((rows if tracebacks else rows.defer("traceback"))[:limit])
    hide_secrets(failures, [run], conf.using())
    return failures


def losses_of(run_snapshot: RunSnapshot, limit: int) -> list[StepLoss]:
    """The latest losses of workers in its steps, newest first. Without any, there is no query."""
    if not run_snapshot.has_losses:
        return []
    rows = StepLoss.objects.using(conf.using()).filter(run=run_snapshot.run.pk)
    return list(rows.order_by("-pk")[:limit])


def operations_of(run: SequenceRun, limit: int) -> list[Operation]:
    """Its latest operations, newest first. Their changes may be large, and are not loaded."""
    rows = Operation.objects.using(conf.using()).filter(run=run.pk).order_by("-pk")
    return list(rows.defer("before", "after")[:limit])


def newest_operation(run_ids: Iterable[UUID]) -> int:
    """The id of the latest operation on these runs; 0 if there is none."""
    rows = Operation.objects.using(conf.using()).filter(run__in=list(run_ids))
    return rows.aggregate(newest=Max("pk"))["newest"] or 0
