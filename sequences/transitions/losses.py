"""Workers that died: in which step, with what else in hand, and which one is suspected.

A step whose worker was lost is a suspect until an attempt of it ends. One that kills its workers
cannot be told from its neighbours by one death; it can, when no two suspects are ever in hand of
one process, and what counts against one is above all a death in which it was alone.
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

#: Neighbours that are kept of one death.
MAX_NEIGHBOURS = 50
#: For how long the other losses of one death may come.
SAME_DEATH_WITHIN = timedelta(minutes=10)
#: How long a suspect of whom little is left to doubt waits for a process that does nothing else.
MAX_SUSPECT_WAIT = timedelta(minutes=5)
#: How many times `MAX_LOST_WORKERS` is the limit for one that never died alone.
COMPANY_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Suspicion:
    """That a step that may be claimed kills its workers."""

    #: Whether it died so often, and never alone, that it is to be: then its death tells.
    alone: bool


def suspicion(step_run_id: int, attempts: int, using: str) -> Suspicion | None:
    """Whether this step, which may be claimed, is a suspect. None: it is not, or may not."""
    now = clock.now(using)
    rows = claims.claimable(step_run_id, attempts, now, using).filter(lost_workers__gt=0)
    row = rows.only("lost_workers", "queued_at").first()
    if row is None:
        return None
    was_tried = row.lost_workers >= conf.settings.max_lost_workers
    return Suspicion(alone=was_tried and now - row.queued_at < MAX_SUSPECT_WAIT)


def next_suspect(using: str) -> Dispatch | None:
    """The one to be cleared next: those that were lost least often are the likeliest neighbours."""
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
    """What else the process had in hand that has died in this step: what it holds still, and
    what was taken back from it before.
    """
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
    """How the names of its threads begin and end: host and number, and the mark."""
    host, _, rest = worker.partition(":")
    number, _, thread = rest.partition(":")
    _, tilde, mark = thread.rpartition("~")
    return (f"{host}:{number}:", f"~{mark}") if tilde else None


def is_guilty(lost: int, concurrent_steps: list[dict[str, Any]]) -> bool:
    """Whether a step that so many workers in a row died in is to fail.

    What died with others may have been killed by one of them, and is tried again alone.
    """
    most = conf.settings.max_lost_workers
    return lost >= (COMPANY_FACTOR * most if concurrent_steps else most)


def append(row: StepRun, concurrent_steps: list[dict[str, Any]], now: datetime, using: str) -> None:
    """Keep that a worker died in this step."""
    StepLoss._base_manager.using(using).create(
        run_id=row.run_id,
        step_run_id=row.pk,
        step=row.step,
        item=row.item,
        worker=row.worker,
        concurrent_steps=concurrent_steps,
        lost_at=now,
    )
