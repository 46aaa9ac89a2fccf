"""Steps that keep failing and are retried for long before they fail permanently."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from django.db.models import QuerySet

from .. import conf
from ..models import UNFINISHED_STEP, SequenceRun, StepRun

#: The maximum number of step runs that are counted.
MAX_COUNTED = 10_000


def step_runs(using: str) -> QuerySet[StepRun]:
    """The struggling step runs, found by an index of those that have failed before."""
    rows = StepRun.objects.using(using)
    limit = conf.settings.struggling_after
    if limit is None:
        return rows.none()
    return rows.filter(attempts__gte=limit, status__in=UNFINISHED_STEP)


def steps_of(runs: Collection[SequenceRun]) -> dict[UUID, tuple[str, ...]]:
    """The names of the struggling steps of these runs, by run. One query."""
    ids = [run.pk for run in runs if not run.is_finished]
    if not ids or conf.settings.struggling_after is None:
        return {}
    rows = step_runs(conf.using()).filter(run__in=ids).order_by("run", "step")
    names: dict[UUID, tuple[str, ...]] = {}
    for run_id, step in rows.values_list("run", "step").distinct():
        names[run_id] = (*names.get(run_id, ()), step)
    return names


def count(using: str, runs: QuerySet[SequenceRun] | None = None) -> int:
    """The number of struggling step runs; if runs are given, only of these."""
    if conf.settings.struggling_after is None:
        return 0
    rows = step_runs(using)
    if runs is not None:
        rows = rows.filter(run__in=runs.order_by().values("pk"))
    return rows.order_by()[: MAX_COUNTED + 1].count()
