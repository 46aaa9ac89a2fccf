"""Erases the data stored by runs and by their child runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import F

from ..definitions.kinds import PARENT_KINDS
from ..links import MARK
from ..models import Operation, RunSubject, SequenceRun, StepCall, StepFailure, StepRun

T = TypeVar("T")

#: Ids per statement.
IDS_PER_STATEMENT = 500


def lock_below(run_id: UUID, using: str) -> list[SequenceRun]:
    """Lock its children, and theirs: from the top, and each level in order of id."""
    runs: list[SequenceRun] = []
    level = [run_id]
    while level:
        below = list(_children(level, using))
        runs += below
        level = [run.pk for run in below]
    return runs


def _children(above: Sequence[UUID], using: str) -> Iterator[SequenceRun]:
    steps = StepRun._base_manager.using(using).filter(kind__in=PARENT_KINDS)
    runs = SequenceRun._base_manager.using(using).order_by("pk").only("status")
    parents = [
        pk
        for part in _chunks(above)
        for pk in steps.filter(run__in=part).values_list("pk", flat=True)
    ]
    # In order across all parts: two processes that lock the same runs must not deadlock.
    ids = [pk for part in _chunks(parents) for pk in runs.filter(parent__in=part).values_list("pk")]
    for part in _chunks(sorted(pk for (pk,) in ids)):
        yield from runs.filter(pk__in=part).select_for_update()


def blank(run_ids: Sequence[UUID], now: datetime, using: str, *, keep_key: bool) -> None:
    """Blank data, deliveries, payloads, results, progress, error texts and reasons, and what names
    the runs: keys and subjects."""
    keys: dict[str, Any] = {} if keep_key else {"key": None, "active_key": None}
    for part in _chunks(run_ids):
        SequenceRun._base_manager.using(using).filter(pk__in=part).update(
            data={}, inbox={}, version=F("version") + 1, updated_at=now, **keys
        )
        if not keep_key:
            RunSubject._base_manager.using(using).filter(run__in=part)._raw_delete(using)
        steps = StepRun._base_manager.using(using).filter(run__in=part)
        steps.update(payload=None, result=None, progress=None)
        # The rows stay: without them, a retry would make the calls again.
        StepCall._base_manager.using(using).filter(run__in=part).update(result=None)
        StepFailure._base_manager.using(using).filter(run__in=part).update(
            message="", fingerprint="", traceback=""
        )
        operations = Operation._base_manager.using(using).filter(run__in=part)
        operations.update(before=None, after=None)
        # A link that has delivered must not deliver again if its run is restarted.
        operations.exclude(reason__regex=MARK).update(reason="")


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (
        rows[start : start + IDS_PER_STATEMENT] for start in range(0, len(rows), IDS_PER_STATEMENT)
    )
