"""Claims: a worker takes a step run, keeps it, and releases it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Case, F, Q, QuerySet, When

from .. import conf
from ..definitions.kinds import COMPENSATION_KINDS, ITEM_KINDS
from ..models import RunStatus, SequenceRun, StepRun, StepStatus
from . import clock, limits, plans
from .backends import backend_of
from .compensation import proceed, stop, stops_here
from .locking import lock_free, lock_run, transact
from .runs import save, stops
from .types import Beat, Claim, Dispatch, dispatch_of

_CLAIMABLE = (StepStatus.QUEUED, StepStatus.RETRYING)


def claim(
    step_run_id: int,
    attempts: int,
    token: int,
    worker: str,
    using: str,
    *,
    suspects: bool = True,
) -> Claim | None:
    """Claim a queued, retrying or due step run; None if that is not possible.

    `attempts` is the count in the message: a message from before the last failed attempt claims
    nothing. Nobody can claim a row on hold (`wake_at` is NULL: its run is paused or has failed).
    The row is the only guard, so claims of siblings never wait for each other. `suspects=False`
    leaves out a step whose last worker was lost.
    """
    fast = backend_of(using).fast
    if fast is not None:
        return fast.claim(step_run_id, attempts, token, worker, suspects, connections[using])
    return transact(using, lambda: _claim(step_run_id, attempts, token, worker, suspects, using))


def _claim(
    step_run_id: int, attempts: int, token: int, worker: str, suspects: bool, using: str
) -> Claim | None:
    now = clock.now(using)
    rows = claimable(step_run_id, attempts, now, using)
    if not suspects:
        rows = rows.filter(lost_workers=0)
    lease = now + clock.lease()
    count = rows.update(
        status=StepStatus.RUNNING,
        token=token,
        worker=worker,
        started_at=now,
        wake_at=Case(
            When(wake_at__lt=now + clock.shortest_lease(), then=lease),
            When(wake_at__gt=now + clock.longest_lease(), then=lease),
            default=F("wake_at"),
        ),
    )
    if not count:
        return None
    row = StepRun._base_manager.using(using).select_related("run").get(pk=step_run_id)
    return _claim_of(row, token, now)


def claimable(step_run_id: int, attempts: int, now: datetime, using: str) -> QuerySet[StepRun]:
    """This row, if a message with this number of failed attempts may claim it."""
    return StepRun._base_manager.using(using).filter(
        Q(status__in=_CLAIMABLE) | Q(status=StepStatus.WAITING, due_at__lte=now + clock.EARLY),
        pk=step_run_id,
        attempts=attempts,
        wake_at__isnull=False,
    )


def _text(data: Any) -> str:
    return json.dumps(data, cls=conf.settings.encoder)


def refresh(claim: Claim, using: str) -> None:
    """Read `data` again, to retry on top of what others have committed in the meantime."""
    run = SequenceRun._base_manager.using(using).only("data", "version").get(pk=claim.run_id)
    claim.data, claim.version = _text(run.data), run.version


def inbox(run_id: UUID, using: str) -> dict[str, Any]:
    """What was delivered to the run."""
    rows = SequenceRun._base_manager.using(using).filter(pk=run_id)
    delivered: dict[str, Any] = rows.values_list("inbox", flat=True).get()
    return delivered


def claim_in(row: StepRun, token: int) -> Claim:
    """The claim stored in a row, for a worker that was interrupted before it knew that it had
    it."""
    claim = _claim_of(row, token, row.started_at or row.queued_at)
    claim.is_limited = True  # it may be
    return claim


def _claim_of(row: StepRun, token: int, now: datetime) -> Claim:
    run = row.run
    return Claim(
        row.pk, run.pk, run.sequence, run.plan_id, row.step, row.item, row.kind, token,
        row.attempts, row.repeats, row.delay_evaluated, row.ready_at, row.due_at, now,
        _text(run.data), run.version, row.wait, row.payload, row.worker, run.traceparent,
        row.lost_workers,
    )  # fmt: skip


def find(step_run_id: int, using: str) -> StepRun | None:
    """The row as it is now, with its run."""
    rows = StepRun._base_manager.using(using).select_related("run")
    return rows.filter(pk=step_run_id).first()


def beat(beats: Sequence[Beat], using: str) -> set[int]:
    """Extend these leases, store new progress, and return their tokens.

    It leaves out claims that are lost, and rows that another transaction has locked: if it waited
    for those, the others would lose their leases.
    """
    fast = backend_of(using).fast
    if fast is not None:
        return fast.beat(beats, connections[using])
    return transact(using, lambda: _beat(beats, using))


def _beat(beats: Sequence[Beat], using: str) -> set[int]:
    rows = StepRun._base_manager.using(using)
    ours = Q()
    for each in beats:
        ours |= Q(pk=each.step_run_id, token=each.token)
    locked = rows.filter(pk__in=lock_free(rows.filter(ours, status=StepStatus.RUNNING), using))
    locked.update(wake_at=clock.now(using) + clock.lease())
    for each in beats:
        if each.progress is not None:
            locked.filter(token=each.token).update(progress=json.loads(each.progress))
    return {token for token in locked.values_list("token", flat=True) if token is not None}


def over(claims: Collection[Claim], using: str) -> set[int]:
    """The tokens of those claims that are lost, or whose runs are being stopped.

    A row that another transaction has locked is not lost until that commits.
    """
    rows = StepRun._base_manager.using(using).filter(
        pk__in=[claim.step_run_id for claim in claims], status=StepStatus.RUNNING
    )
    stops = Q(run__status=RunStatus.UNDOING) & ~Q(kind__in=COMPENSATION_KINDS)
    own_tokens = set(rows.exclude(stops).values_list("token", flat=True))
    return {claim.token for claim in claims} - own_tokens


def release(claim: Claim, using: str) -> list[Dispatch]:
    """Release the step run, not counted as an attempt: the worker shuts down, or the run is
    stopping."""
    return transact(using, lambda: _release(claim, using))


def _release(claim: Claim, using: str) -> list[Dispatch]:
    run = lock_run(claim.run_id, using)
    if run is None:
        return []
    now = clock.now(using)
    if stops_here(run, claim):
        ended = {"status": StepStatus.CANCELLED, "token": None, "wake_at": None}
        cancelled = _claimed(claim, using).update(**ended, finished_at=now)
        return proceed(run, now, using) if cancelled else []
    if not _requeue(run, claim, now, using) or run.status == RunStatus.PAUSED:
        return []
    plan = plans.load(run.plan_id, using)
    if stops(run, plan, using):
        ready = stop(run, plan, now, using)
        save(run, now, using)
        return ready
    if claim.is_limited:
        limits.clear_on_commit(run.pk, using)
    row = StepRun._base_manager.using(using).get(pk=claim.step_run_id)
    return [dispatch_of(row, plan)]


def _claimed(claim: Claim, using: str) -> QuerySet[StepRun]:
    """Its row, as long as the claim holds it."""
    rows = StepRun._base_manager.using(using)
    return rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING)


def _requeue(run: SequenceRun, claim: Claim, now: datetime, using: str) -> bool:
    is_paused = run.status == RunStatus.PAUSED
    requeued = _claimed(claim, using).update(
        status=StepStatus.QUEUED,
        token=None,
        queued_at=now,
        wake_at=None if is_paused else now + clock.grace(),
    )
    return requeued > 0


def leave(claim: Claim, using: str) -> None:
    """Release a step of a run whose plan we cannot read, to workers that can; the sweep dispatches
    it."""
    transact(using, lambda: _leave(claim, using))


def _leave(claim: Claim, using: str) -> None:
    run = lock_run(claim.run_id, using)
    # What follows in a run that is rolling back is in its plan: their sweep ends the lease.
    if run is not None and not stops_here(run, claim):
        _requeue(run, claim, clock.now(using), using)


def give_back(run_id: UUID, token: int, using: str) -> list[Dispatch]:
    """Release the step of this run that was claimed in its predecessor's commit, if there is
    one."""
    rows = StepRun._base_manager.using(using).select_related("run")
    row = rows.filter(run=run_id, token=token, status=StepStatus.RUNNING).first()
    return [] if row is None else release(claim_in(row, token), using)


def queued_items(run_id: UUID, step: str, limit: int, using: str) -> list[tuple[int, int]]:
    """The oldest items of this fan-out that can be claimed now: their ids and attempts."""
    rows = StepRun._base_manager.using(using).filter(
        run=run_id,
        step=step,
        kind__in=ITEM_KINDS,
        status=StepStatus.QUEUED,
        lost_workers=0,
        wake_at__isnull=False,
    )
    return list(rows.order_by("pk").values_list("pk", "attempts")[:limit])


def queued_after(run_id: UUID, steps: Iterable[str], using: str) -> list[Dispatch]:
    """The messages for those of these steps that are queued and not on hold."""
    rows = StepRun._base_manager.using(using).select_related("run")
    rows = rows.filter(
        run=run_id, step__in=list(steps), status=StepStatus.QUEUED, wake_at__isnull=False
    )
    return [dispatch_of(row, plans.load(row.run.plan_id, using)) for row in rows]
