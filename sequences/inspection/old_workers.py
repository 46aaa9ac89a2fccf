"""Whether the workers of a queue may be running older code than a run needs.

A worker that sweeps stores the plans of its own code as soon as it has started. So if it started
well before a plan was first stored, that plan is not from its code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from ..definitions import registry
from ..definitions.plan import Plan
from ..models import SequenceRun, StepRun, StepStatus, StoredPlan, WorkerProcess
from ..transitions.processes import STALE_AFTER

#: A step that has been queued for this long finds no worker.
PICKUP_TIME = timedelta(seconds=30)
#: A worker has stored its plans by this time after its start.
STORING_TIME = timedelta(seconds=30)


def queues_of_old_workers(
    runs: Collection[SequenceRun],
    plans: Mapping[int, Plan],
    rows: Mapping[UUID, Mapping[str, StepRun]],
    now: datetime,
    using: str,
) -> dict[UUID, frozenset[str]]:
    """The queues in which steps of these runs find no worker, because all that live are too old.

    Without a step that has been queued for long, this needs no query; otherwise, two.
    """
    queues = {
        run.pk: frozenset(_queues(plans[run.plan_id], rows.get(run.pk, {}).values(), now))
        for run in runs
        if not registry.is_inline(run.sequence)  # workers need no code for it
    }
    if not any(queues.values()):
        return {}
    plan_ids = {run.plan_id for run in runs if queues.get(run.pk)}
    stored = StoredPlan.objects.using(using).filter(pk__in=plan_ids)
    stored_at = dict(stored.values_list("pk", "created_at"))
    workers = _workers(now, using)
    return {
        run.pk: frozenset(
            queue for queue in queues[run.pk] if _are_old(workers[queue], stored_at[run.plan_id])
        )
        for run in runs
        if queues.get(run.pk) and run.plan_id in stored_at
    }


def _queues(plan: Plan, rows: Iterable[StepRun], now: datetime) -> Iterator[str]:
    for row in rows:
        node = plan.get(row.step)
        is_late = row.status == StepStatus.QUEUED and now - row.queued_at > PICKUP_TIME
        if node is not None and is_late:
            yield node.queue


def _workers(now: datetime, using: str) -> dict[str, list[WorkerProcess]]:
    """The live workers of each queue."""
    rows = WorkerProcess.objects.using(using)
    alive = rows.filter(stopped_at=None, seen_at__gt=now - STALE_AFTER, threads__gt=0)
    workers = defaultdict(list)
    for worker in alive:
        for queue in worker.queues:
            workers[queue].append(worker)
    return workers


def _are_old(workers: list[WorkerProcess], stored_at: datetime) -> bool:
    return bool(workers) and all(
        # One that does not sweep stores no plans: it may have had this one all the time.
        worker.swept_at is not None and worker.started_at < stored_at - STORING_TIME
        for worker in workers
    )
