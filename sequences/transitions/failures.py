"""Failed attempts: recorded, retried or given up; and the runs that fail with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from ..definitions.kinds import traits_of
from ..exceptions import DeadlineExceeded, WorkerLost
from ..models import NO_ITEM, RunStatus, SequenceRun, StepFailure, StepRun, StepStatus
from ..utils.text import fingerprint_of, text_of, trace_of
from . import clock, compensation, fanout, limits, losses, notifications, plans, processes
from .commits import divert
from .compensation import stop
from .locking import lock_run, transact
from .refusals import with_text
from .runs import save, stops
from .types import Claim, Dispatch, dispatch_of

#: How many characters of a traceback are kept: its end says most.
TRACEBACK = 20_000
MESSAGE = 5_000


@dataclass(frozen=True, slots=True)
class Failure:
    """The details of an exception; `cut` is what is stored."""

    error: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The details of an exception, with the frames of its traceback."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else _full_name(kind)
        return cls(name[:200], _clean(text_of(error)), _clean(trace_of(error)))

    def cut(self) -> Failure:
        """Shorten it to the stored length. Only after secrets were hidden: half of one would not be
        found."""
        return Failure(self.error, self.message[:MESSAGE], self.traceback[-TRACEBACK:])


def _full_name(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _clean(text: str) -> str:
    # A character that PostgreSQL rejects must not prevent the record of the failure.
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def record(
    claim: Claim, failure: Failure, *, final: bool, using: str, timed_out: bool = False
) -> list[Dispatch] | None:
    """Count this attempt. None: the claim is lost, and nothing was stored.

    It is due again after a grace, until the time of its retry is known; `final` fails it
    permanently.
    """
    ready = transact(using, lambda: _record(claim, failure, final, timed_out, using))
    return ready if ready is None or not final else ready + _after_item(claim, using)


def _after_item(step: Claim | StepRun, using: str) -> list[Dispatch]:
    """An item has failed permanently: as after any end of an item, once that is committed."""
    if not traits_of(step.kind).is_item:
        return []
    return fanout.after_item(step.run_id, step.step, step.item, using)


def _record(
    claim: Claim, failure: Failure, final: bool, timed_out: bool, using: str
) -> list[Dispatch] | None:
    run = lock_run(claim.run_id, using)
    if run is None:
        return None
    now = clock.now(using)
    if timed_out and claim.step in run.inbox and not compensation.stops_here(run, claim):
        return _received_after_all(claim, run, now, using)
    rows = StepRun._base_manager.using(using).filter(
        pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING
    )
    values: dict[str, Any] = {
        "attempts": claim.attempts + 1,
        "lost_workers": 0,
        "delay_evaluated": claim.delay_evaluated,
    }
    values["ready_at"] = claim.first_due  # because the retry replaces its due time
    if not rows.update(**values, **_failed_or_due(run, claim, final, now)):
        return None
    _append(claim.step_run_id, claim, failure, claim.attempts + 1, claim.worker, now, using)
    if not final:
        if compensation.stops_here(run, claim):
            ready = compensation.proceed(run, now, using)
        else:
            ready = _leave_place(run, claim, now, using)
    else:
        notifications.failed(claim.step_run_id, claim.attempts + 1, claim.sequence, using)
        ready = _fail(run, claim, now, using)
    if claim.is_limited:
        ready += limits.end_claim(run, claim.step_run_id, using)
    return ready


def _leave_place(run: SequenceRun, claim: Claim, now: datetime, using: str) -> list[Dispatch]:
    if not traits_of(claim.kind).is_item:
        return []
    return fanout.leave_place(run, plans.load(run.plan_id, using), claim, now, using)


def _received_after_all(
    claim: Claim, run: SequenceRun, now: datetime, using: str
) -> list[Dispatch] | None:
    """The delivery came between the check of the event's time and its end: it counts."""
    is_paused = run.status == RunStatus.PAUSED
    rows = StepRun._base_manager.using(using).filter(
        pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING
    )
    queued = rows.update(
        status=StepStatus.QUEUED, queued_at=now, dispatches=0, due_at=None,
        wake_at=None if is_paused else now + clock.grace(),
    )  # fmt: skip
    if not queued:
        return None
    row = StepRun._base_manager.using(using).get(pk=claim.step_run_id)
    return [] if is_paused else [dispatch_of(row, plans.load(run.plan_id, using))]


def _failed_or_due(run: SequenceRun, claim: Claim, final: bool, now: datetime) -> dict[str, Any]:
    if final or compensation.stops_here(run, claim):
        status = StepStatus.FAILED if final else StepStatus.CANCELLED
        return {"status": status, "wake_at": None, "due_at": None, "finished_at": now}
    is_paused = run.status == RunStatus.PAUSED
    return {
        "status": StepStatus.RETRYING,
        "due_at": now,
        "queued_at": now,
        "dispatches": 0,
        "wake_at": None if is_paused else now + clock.grace(),
    }


def _append(
    step_run_id: int,
    step: Any,
    failure: Failure,
    attempt: int,
    worker: str,
    now: datetime,
    using: str,
) -> None:
    def create(failure: Failure) -> None:
        StepFailure._base_manager.using(using).create(
            run_id=step.run_id,
            step_run_id=step_run_id,
            step=step.step,
            item=step.item,
            attempt=attempt,
            error=failure.error[:200],
            message=failure.message,
            fingerprint=fingerprint_of(failure.message),
            traceback=failure.traceback,
            worker=worker,
            failed_at=now,
        )

    with_text(create, failure.cut(), using)


def set_due(claim: Claim, delay: int, using: str) -> None:
    """The retry after this failed attempt is due in `delay` milliseconds."""
    transact(using, lambda: _set_due(claim, delay, using))


def _set_due(claim: Claim, delay: int, using: str) -> None:
    due = clock.now(using) + timedelta(milliseconds=delay)
    rows = _retrying(claim, using)
    # A row on hold stays on hold: its run is paused.
    count = rows.update(due_at=due)
    rows.filter(wake_at__isnull=False).update(wake_at=due + clock.grace())
    if count:
        notifications.retrying(claim.step_run_id, claim.attempts + 1, using)


def give_up(claim: Claim, using: str) -> list[Dispatch] | None:
    """Dramatiq will not retry this step: it has failed permanently. None: it had not failed."""
    ready = transact(using, lambda: _give_up(claim, using))
    return ready if ready is None else ready + _after_item(claim, using)


def _give_up(claim: Claim, using: str) -> list[Dispatch] | None:
    run = lock_run(claim.run_id, using)
    if run is None:
        return None
    now = clock.now(using)
    failed = _retrying(claim, using).update(
        status=StepStatus.FAILED, wake_at=None, due_at=None, finished_at=now
    )
    if not failed:
        return None
    notifications.failed(claim.step_run_id, claim.attempts + 1, run.sequence, using)
    ready = _fail(run, claim, now, using)
    if claim.is_limited:
        ready += limits.end_claim(run, claim.step_run_id, using)
    return ready


def _retrying(claim: Claim, using: str) -> QuerySet[StepRun]:
    """The row, if this attempt is its latest and has failed.

    Only the token tells: after a manual retry, the count starts again.
    """
    rows = StepRun._base_manager.using(using)
    return rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RETRYING)


def reap(row: StepRun, using: str) -> list[Dispatch]:
    """Its lease has expired: give the step to another worker, or fail it if it kills its
    workers."""
    ready = transact(using, lambda: _reap(row, using) + limits.leave(row.pk, using))
    return ready if ready else _after_item(row, using)


def _reap(row: StepRun, using: str) -> list[Dispatch]:
    run = lock_run(row.run_id, using)
    if run is None:
        return []
    now = clock.now(using)
    rows = StepRun._base_manager.using(using).filter(
        pk=row.pk, token=row.token, status=StepStatus.RUNNING, wake_at__lte=now
    )
    if row.token is not None and processes.holds(row.token, using):
        return []
    concurrent_steps = losses.concurrent_steps(row, now, using)
    if losses.is_guilty(row, concurrent_steps, using):
        return _fail_lost(row, run, rows, concurrent_steps, now, using)
    if compensation.stops_here(run, row):
        return _cancel_lost(row, run, rows, concurrent_steps, now, using)
    is_paused = run.status == RunStatus.PAUSED
    wake_at = None if is_paused else now + clock.grace()
    reaped = rows.update(
        status=StepStatus.QUEUED, token=None, lost_workers=row.lost_workers + 1,
        queued_at=now, dispatches=0, wake_at=wake_at,
    )  # fmt: skip
    if reaped:
        losses.append(row, concurrent_steps, now, using)
    if not reaped or is_paused:
        return []
    plan = plans.load(run.plan_id, using)
    if stops(run, plan, using):
        ready = stop(run, plan, now, using)
        save(run, now, using)
        return ready
    return [dispatch_of(row, plan)]


def _cancel_lost(
    row: StepRun,
    run: SequenceRun,
    rows: Any,
    concurrent_steps: list[dict[str, Any]],
    now: datetime,
    using: str,
) -> list[Dispatch]:
    """Its run is rolling back, and was only waiting for the end of this lease."""
    cancelled = rows.update(
        status=StepStatus.CANCELLED,
        token=None,
        lost_workers=row.lost_workers + 1,
        wake_at=None,
        finished_at=now,
    )
    if not cancelled:
        return []
    losses.append(row, concurrent_steps, now, using)
    return compensation.proceed(run, now, using)


def _fail_lost(
    row: StepRun,
    run: SequenceRun,
    rows: Any,
    concurrent_steps: list[dict[str, Any]],
    now: datetime,
    using: str,
) -> list[Dispatch]:
    lost = row.lost_workers + 1
    failed = rows.update(
        status=StepStatus.FAILED, token=None, lost_workers=lost, attempts=row.attempts + 1,
        wake_at=None, finished_at=now,
    )  # fmt: skip
    if not failed:
        return []
    losses.append(row, concurrent_steps, now, using)
    error = WorkerLost(step=row.step, run=run.pk, lost_workers=lost, worker=row.worker)
    _append(row.pk, row, Failure.of(error), row.attempts + 1, row.worker, now, using)
    notifications.failed(row.pk, row.attempts + 1, run.sequence, using)
    return _fail(run, row, now, using)


def fail_unknown(row: StepRun, error: Exception, using: str) -> list[Dispatch]:
    """No later release has this step: fail it, so that people see it."""
    return transact(using, lambda: _fail_unknown(row, error, using))


def _fail_unknown(row: StepRun, error: Exception, using: str) -> list[Dispatch]:
    run = lock_run(row.run_id, using)
    if run is None:
        return []
    now = clock.now(using)
    rows = StepRun._base_manager.using(using).filter(
        pk=row.pk, status=row.status, token=row.token, wake_at__isnull=False
    )
    failed = rows.update(
        status=StepStatus.FAILED, wake_at=None, due_at=None, finished_at=now,
        attempts=row.attempts + 1,
    )  # fmt: skip
    if not failed:
        return []
    _append(row.pk, row, Failure.of(error), row.attempts + 1, "", now, using)
    notifications.failed(row.pk, row.attempts + 1, run.sequence, using)
    return _fail(run, row, now, using)


def _fail(run: SequenceRun, step: Claim | StepRun, now: datetime, using: str) -> list[Dispatch]:
    """The run fails with a step, but not with an item: the other items finish first."""
    plan = plans.load(run.plan_id, using)
    if run.is_finished:
        return []
    if run.status == RunStatus.UNDOING:
        ready = compensation.go_on(run, plan, now, using)
    elif step.item != NO_ITEM:
        return []
    elif plan.node(step.step).on_error:
        ready = divert(run, plan, step.step, now, using)
    else:
        ready = stop(run, plan, now, using)
    save(run, now, using)
    return ready


def append_to_run(row: StepRun, failure: Failure, now: datetime, using: str) -> None:
    """Record why the run fails, with a step of it that has not ended."""
    _append(row.pk, row, failure, row.attempts + 1, "", now, using)


def newest(run_id: UUID, plan_id: int, using: str) -> StepFailure | None:
    """Why the run failed: the latest failure of a step that is not an undo."""
    plan = plans.load(plan_id, using)
    rows = StepFailure._base_manager.using(using).filter(run=run_id)
    compensations = [node.name for node in plan.nodes if node.traits.is_compensation]
    failed = StepRun._base_manager.using(using).filter(run=run_id, status=StepStatus.FAILED)
    of_run = Q(error=_full_name(DeadlineExceeded))
    rows = rows.exclude(step__in=compensations).filter(of_run | Q(step__in=failed.values("step")))
    return rows.order_by("-pk").first()
