"""Workers that died: in which step, what else they were running, and which step is suspected.

A step whose worker was lost is a suspect until an attempt of it ends. A single death cannot tell a
step that kills its workers from its neighbours, or from one that does so only once. But two
suspects never run in the same process, and what counts most against one are repeated deaths in
which it was alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet

from .. import conf
from ..models import StepLoss, StepRun, StepStatus
from . import claims, clock, plans
from .types import Dispatch, dispatch_of

#: How many neighbours are stored for one death.
MAX_NEIGHBOURS = 50
#: The time within which losses count as the same death.
SAME_DEATH_WITHIN = timedelta(minutes=10)
#: How long a strong suspect waits for a process that runs nothing else.
MAX_SUSPECT_WAIT = timedelta(minutes=5)
#: A suspect that has lost this multiple of `MAX_LOST_WORKERS` fails in any case.
COMPANY_FACTOR = 2
#: In how many deaths, the last ones, it must have been alone to fail before that.
DEATHS_ALONE = 2


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The suspicion that a step that may be claimed kills its workers."""

    #: Whether it has died so often, but not alone, that it must run alone: a death counts then.
    alone: bool


def suspicion(step_run_id: int, attempts: int, using: str) -> Suspicion | None:
    """The suspicion against this step. None: it is not a suspect, or may not be claimed."""
    now = clock.now(using)
    rows = claims.claimable(step_run_id, attempts, now, using).filter(lost_workers__gt=0)
    row = rows.only("lost_workers", "queued_at").first()
    if row is None:
        return None
    was_tried = row.lost_workers >= conf.settings.max_lost_workers
    return Suspicion(alone=was_tried and now - row.queued_at < MAX_SUSPECT_WAIT)


def next_suspect(using: str) -> Dispatch | None:
    """The suspect to clear next: those that were lost least often are probably just neighbours."""
    lost = StepLoss._base_manager.using(using).filter(
        step_run__lost_workers__gt=0,
        step_run__status=StepStatus.QUEUED,
        step_run__wake_at__isnull=False,
    )
    suspects = lost.order_by("step_run__lost_workers", "step_run__queued_at").values("step_run")[:1]
    rows = StepRun._base_manager.using(using).select_related("run")
    row = rows.filter(pk__in=[suspect["step_run"] for suspect in suspects]).first()
    return None if row is None else dispatch_of(row, plans.load(row.run.plan_id, using))


def concurrent_steps(row: StepRun, now: datetime, using: str) -> list[dict[str, Any]]:
    """The other steps of the process that died in this step: those that it still holds, and those
    that were already taken back from it."""
    process = _process_of(row.worker)
    if process is None:
        return []
    running = StepRun._base_manager.using(using).filter(
        status=StepStatus.RUNNING, wake_at__lte=now + clock.longest_lease()
    )
    lost = StepLoss._base_manager.using(using).filter(lost_at__gte=now - SAME_DEATH_WITHIN)
    neighbours = [
        neighbour
        for rows in (running.exclude(pk=row.pk), lost.exclude(step_run=row.pk))
        for neighbour in _of(rows, process).values("run", "step", "item")[:MAX_NEIGHBOURS]
    ]
    return [{**each, "run": str(each["run"])} for each in neighbours[:MAX_NEIGHBOURS]]


def _of(rows: QuerySet[Any], process: tuple[str, str]) -> QuerySet[Any]:
    begins, ends = process
    return rows.filter(worker__startswith=begins, worker__endswith=ends).order_by("pk")


def _process_of(worker: str) -> tuple[str, str] | None:
    """How the names of its threads begin and end: host and process id, and the mark."""
    host, _, rest = worker.partition(":")
    number, _, thread = rest.partition(":")
    _, tilde, mark = thread.rpartition("~")
    return (f"{host}:{number}:", f"~{mark}") if tilde else None


def is_guilty(row: StepRun, concurrent_steps: list[dict[str, Any]], using: str) -> bool:
    """Whether the step must fail, now that another worker has died in it.

    If there were other steps, one of them may have been the cause: it is tried again alone. If it
    was alone only once, its earlier workers may have died of others: it is tried once more.
    """
    lost, most = row.lost_workers + 1, conf.settings.max_lost_workers
    if lost >= COMPANY_FACTOR * most:
        return True
    if lost < most or concurrent_steps:
        return False
    # The losses before those in a row are those of another attempt.
    return _was_alone(row, min(DEATHS_ALONE - 1, row.lost_workers), using)


def _was_alone(row: StepRun, times: int, using: str) -> bool:
    """Whether it was also alone in so many deaths before this one."""
    losses = StepLoss._base_manager.using(using).filter(step_run=row.pk).order_by("-pk")
    return not any(losses.values_list("concurrent_steps", flat=True)[:times])


def append(row: StepRun, concurrent_steps: list[dict[str, Any]], now: datetime, using: str) -> None:
    """Record that a worker died in this step."""
    StepLoss._base_manager.using(using).create(
        run_id=row.run_id,
        step_run_id=row.pk,
        step=row.step,
        item=row.item,
        worker=row.worker,
        concurrent_steps=concurrent_steps,
        lost_at=now,
    )
