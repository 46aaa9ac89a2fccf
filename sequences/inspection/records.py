"""What pages and commands show of a run beside its snapshot: its newest rows, without secrets."""

from __future__ import annotations

from .. import conf
from ..models import Operation, SequenceRun, StepFailure
from .snapshot import hide_secrets


def failures_of(run: SequenceRun, limit: int, *, tracebacks: bool = False) -> list[StepFailure]:
    """Its newest failed attempts, the newest first."""
    rows = StepFailure.objects.using(conf.using()).filter(run=run.pk).order_by("-pk")
    failures = list((rows if tracebacks else rows.defer("traceback"))[:limit])
    hide_secrets(failures, [run], conf.using())
    return failures


def operations_of(run: SequenceRun, limit: int) -> list[Operation]:
    """Its newest operations, the newest first. What they changed may be large: it is not read."""
    rows = Operation.objects.using(conf.using()).filter(run=run.pk).order_by("-pk")
    return list(rows.defer("before", "after")[:limit])
