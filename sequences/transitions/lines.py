"""A line of a limit, under its lock: who has a place in it, who waits, and who is next.

Lines are the last in the order of locks: a run, its step runs, then lines by id. Whoever has locked
a line waits for no other lock: the rows of those who wait in it are locked with SKIP LOCKED, and so
are other lines that they need. Whatever is skipped is left to the sweep.

Whether a place is taken is read from the rows of step runs and runs, never counted: a permit counts
as long as the claim that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from ..definitions.plan import Plan
from ..exceptions import SequenceError
from ..models import (
    LimitKey,
    Permit,
    PermitState,
    RunStatus,
    StepRun,
    StepStatus,
    StoredLimit,
    Wait,
)
from . import clock, plans
from .locking import lock_free
from .periods import MAX_LOOK_INTERVAL, MESSAGE_SLACK
from .types import Dispatch, dispatch_of

#: How far ahead a rate assigns moments: later ones would not follow changes of the rate.
HORIZON = timedelta(seconds=5)
#: The number of waiting permits handled together, and the number of batches per check.
PERMITS_PER_BATCH, MAX_BATCHES = 100, 20
#: The longest time that a step run stays parked, should it ever be parked without a line.
RECHECK = timedelta(days=1)

#: A step run that waits in a line and is not on hold.
PARKED = Q(status=StepStatus.WAITING, wait=Wait.LIMIT, wake_at__isnull=False)

_UNUSED = Q(token__isnull=True, step_run__wake_at__isnull=False) & Q(
    step_run__status__in=(StepStatus.QUEUED, StepStatus.WAITING, StepStatus.RUNNING)
)
_USED = Q(token=F("step_run__token"), step_run__status=StepStatus.RUNNING)
_OF_STEP = Q(step_run__isnull=False) & (_UNUSED | _USED)


def _of_run(using: str) -> Q:
    running = StepRun._base_manager.using(using).filter(
        run=OuterRef("run"), status=StepStatus.RUNNING
    )
    is_open = Q(run__status__in=(RunStatus.RUNNING, RunStatus.UNDOING))
    may_commit: Q = Q(Exists(running), run__status=RunStatus.PAUSED)
    return Q(is_open | may_commit, step_run__isnull=True)


def in_use(permits: QuerySet[Permit], using: str) -> QuerySet[Permit]:
    """Those of these permits that take up places."""
    return permits.filter(_OF_STEP | _of_run(using), state=PermitState.GRANTED)


class Line:
    """One key of a limit, locked."""

    def __init__(self, row: LimitKey, limit: StoredLimit, now: datetime, using: str) -> None:
        self.row, self.now, self.using = row, now, using
        self.name = limit.name
        numbers = limit.override or limit
        self.concurrency = numbers.concurrency
        self.interval = numbers.per / numbers.rate if numbers.rate and numbers.per else None
        #: Permits that this check leaves to others, which have locked their rows.
        self._skipped: list[int] = []

    # --- places and moments

    def permits(self) -> QuerySet[Permit]:
        return Permit._base_manager.using(self.using).filter(line=self.row.pk)

    def waiting(self) -> QuerySet[Permit]:
        """The waiting permits, in order."""
        rows = self.permits().filter(state=PermitState.WAITING)
        return rows.order_by("priority", "ready_at", "pk")

    def holders(self) -> QuerySet[Permit]:
        return in_use(self.permits(), self.using)

    def room(self, besides: Permit | None = None) -> int:
        """The number of free places, including the one of this permit."""
        if self.concurrency is None:
            return PERMITS_PER_BATCH
        holders = self.holders()
        if besides is not None:
            holders = holders.exclude(pk=besides.pk)
        return max(self.concurrency - holders.count(), 0)

    def moment(self) -> datetime:
        """The first moment that its rate allows; without a rate, now."""
        if self.interval is None or self.row.next_at is None:
            return self.now
        # If the rate was slower when the last moment was assigned, `next_at` is too far ahead.
        latest = (self.row.granted_at or self.now) + HORIZON + self.interval
        return max(self.now, min(self.row.next_at, latest))

    def is_early(self) -> bool:
        """Whether that is too far ahead to be assigned."""
        return self.moment() > self.now + HORIZON

    def take(self, moment: datetime) -> None:
        """Assign this moment."""
        self.row.granted_at = self.now
        if self.interval is not None:
            self.row.next_at = moment + self.interval

    # --- checking

    def look(self) -> list[Dispatch]:
        """Grant every free place to the first that can use it."""
        ready: list[Dispatch] = []
        for _ in range(MAX_BATCHES):
            room = 0 if self.is_early() else min(self.room(), PERMITS_PER_BATCH)
            first = list(self._next(room)) if room else []
            if not first:
                break
            ready += self._admit(first)
        self.save()
        return ready

    def _next(self, count: int) -> QuerySet[Permit]:
        rows = self.waiting().exclude(pk__in=self._skipped)
        return rows.select_related("run", "step_run")[:count]

    def _admit(self, permits: list[Permit]) -> list[Dispatch]:
        rows = _Parked(permits, self.using)
        others = _others(permits, self.using)
        ready: list[Dispatch] = []
        for permit in permits:
            if permit.pk in rows.gone:
                permit.delete(using=self.using)
            elif permit.pk in rows.locked:
                self._skipped.append(permit.pk)
            elif self.is_early():
                break
            elif others.get(_owner(permit)):
                ready += self._admit_to_all(permit, others[_owner(permit)], rows.of[permit.pk])
            else:
                ready += self._grant([permit], [self], rows.of[permit.pk])
        return ready

    def _admit_to_all(
        self, permit: Permit, others: list[Permit], rows: list[StepRun]
    ) -> list[Dispatch]:
        """It also needs places in other lines: grant all of them, or let it wait for the missing
        one."""
        lines = lock_lines({other.line_id for other in others}, self.now, self.using, skip=True)
        if len(lines) < len(others):
            self._skipped.append(permit.pk)
            return []
        for other in others:
            line = lines[other.line_id]
            if not line.room(other) or line.is_early():
                _move(permit, other, self.using)
                line.save()
                return []
        ready = self._grant([permit, *others], [self, *lines.values()], rows)
        for line in lines.values():
            line.save()
        return ready

    def _grant(
        self, permits: list[Permit], lines: list[Line], rows: list[StepRun]
    ) -> list[Dispatch]:
        moment = grant(permits, lines, self.using)
        return [each for row in rows for each in admit(row, moment, self.now, self.using)]

    def oldest(self) -> UUID | None:
        """The run to cancel in favour of the first in line; None: there is none, or it is
        already ending, which may take a while because of its undos."""
        first = self.waiting().first()
        if first is None or not first.replaces or self.room():
            return None
        holders = self.holders().filter(step_run=None).order_by("granted_at", "pk")
        run, status = holders.values_list("run", "run__status").first() or (None, "")
        return None if status == RunStatus.UNDOING else run

    def store(self) -> None:
        """Store its moments, if it has a rate."""
        if self.interval is not None:
            self.row.save(using=self.using, update_fields=["next_at", "granted_at"])

    def save(self) -> None:
        """Store its moments, and when the sweep checks it."""
        self.row.wake_at = self._wakes_at()
        self.row.save(using=self.using, update_fields=["next_at", "granted_at", "wake_at"])

    def _wakes_at(self) -> datetime | None:
        if not self.waiting().exists():
            return None
        if self._skipped:
            return self.now
        if self.is_early():
            return self.moment() - HORIZON / 2
        since = self.now - (self.row.granted_at or self.now)
        return self.now + min(max(clock.grace(), since), MAX_LOOK_INTERVAL)


def lock_lines(
    ids: Iterable[int], now: datetime, using: str, *, skip: bool = False
) -> dict[int, Line]:
    """Lock these lines, by their ids, in the order that all transactions keep.

    ``skip``: leave out lines that another transaction has locked.
    """
    rows = LimitKey._base_manager.using(using).filter(pk__in=set(ids)).order_by("pk")
    skips = skip and connections[using].features.has_select_for_update_skip_locked
    locked = list(rows.select_for_update(skip_locked=skips))
    limits = StoredLimit._base_manager.using(using).select_related("override")
    by_id = limits.in_bulk(row.limit_id for row in locked)
    return {row.pk: Line(row, by_id[row.limit_id], now, using) for row in locked}


def check_soon(limit_id: int, now: datetime, using: str) -> QuerySet[LimitKey]:
    """Have the sweep check the lines of a limit whose numbers have changed, and return them.

    A locked line is checked by whoever has locked it, or later by the sweep.
    """
    lines = LimitKey._base_manager.using(using).filter(limit=limit_id)
    free = lines.filter(pk__in=lock_free(lines.filter(wake_at__isnull=False), using))
    free.update(wake_at=now)
    return free


def grant(permits: Iterable[Permit], lines: Iterable[Line], using: str) -> datetime:
    """Grant these permits; return the moment from which on their places may be used."""
    lines = list(lines)
    moment = max(line.moment() for line in lines)
    for line in lines:
        line.take(moment)
    rows = Permit._base_manager.using(using).filter(pk__in=[permit.pk for permit in permits])
    rows.update(state=PermitState.GRANTED, granted_at=moment, token=None)
    return moment


def admit(row: StepRun, moment: datetime, now: datetime, using: str) -> Iterator[Dispatch]:
    """A step run leaves its line: dispatch it for its moment."""
    values: dict[str, Any] = {"queued_at": now, "dispatches": 0, "token": None}
    if moment <= now:
        values |= {"status": StepStatus.QUEUED, "due_at": None, "wake_at": now + clock.grace()}
    else:
        values |= {
            "status": StepStatus.WAITING,
            "due_at": moment,
            "wake_at": moment + MESSAGE_SLACK,
        }
    StepRun._base_manager.using(using).filter(pk=row.pk).update(**values, wait=Wait.LIMIT)
    # A later release's plan: the sweep of that release's workers dispatches it.
    with suppress(SequenceError):
        plan = plans.load(row.run.plan_id, using)
        yield dispatch_of(row, plan) if moment <= now else dispatch_at(row, plan, moment, now)


def dispatch_at(row: StepRun, plan: Plan, moment: datetime, now: datetime) -> Dispatch:
    """The message for its moment, however long the transaction that has read `now` still takes."""
    delay = ceil((moment - now) / timedelta(milliseconds=1))
    return replace(dispatch_of(row, plan, delay), since=clock.read_at(now))


class _Parked:
    """The rows of waiting permits: free to be written, locked by others, or no longer in the
    line."""

    def __init__(self, permits: list[Permit], using: str) -> None:
        self.of: dict[int, list[StepRun]] = {}
        self.locked: set[int] = set()
        self.gone: set[int] = set()
        rows = [row for permit in permits for row in _rows_of(permit, using)]
        steps = StepRun._base_manager.using(using).filter(pk__in=[row.pk for row in rows])
        free = set(lock_free(steps.filter(PARKED), using))
        still = set(steps.filter(PARKED).values_list("pk", flat=True))
        for permit in permits:
            self._sort(permit, [row for row in rows if _is_of(row, permit)], still, free)

    def _sort(self, permit: Permit, rows: list[StepRun], still: set[int], free: set[int]) -> None:
        waiting = [row for row in rows if row.pk in still]
        if not waiting:
            self.gone.add(permit.pk)
        elif all(row.pk in free for row in waiting):
            self.of[permit.pk] = waiting
        else:
            self.locked.add(permit.pk)


def _rows_of(permit: Permit, using: str) -> Iterator[StepRun]:
    if permit.step_run is not None:
        permit.step_run.run = permit.run
        yield permit.step_run
    elif permit.step_run_id is None:
        own = Permit._base_manager.using(using).filter(step_run=OuterRef("pk"))
        rows = StepRun._base_manager.using(using).filter(PARKED, ~Exists(own), run=permit.run_id)
        yield from rows.select_related("run").order_by("pk")


def _is_of(row: StepRun, permit: Permit) -> bool:
    if permit.step_run_id is not None:
        return row.pk == permit.step_run_id
    return row.run_id == permit.run_id


def _owner(permit: Permit) -> tuple[Any, int | None]:
    return permit.run_id, permit.step_run_id


def _others(permits: list[Permit], using: str) -> dict[tuple[Any, int | None], list[Permit]]:
    """The other permits that the owners of these permits need."""
    # Not by their runs alone: a run may have a million items in line.
    owners = Q(step_run__in=[permit.step_run_id for permit in permits if permit.step_run_id])
    if runs := [permit.run_id for permit in permits if permit.step_run_id is None]:
        owners |= Q(step_run__isnull=True, run__in=runs)
    rows = Permit._base_manager.using(using).filter(owners, state=PermitState.BLOCKED)
    others: dict[tuple[Any, int | None], list[Permit]] = {}
    for other in rows.order_by("line"):
        others.setdefault(_owner(other), []).append(other)
    return others


def _move(permit: Permit, other: Permit, using: str) -> None:
    """From now on, the owner waits in the line of another one of its permits."""
    rows = Permit._base_manager.using(using)
    rows.filter(pk=permit.pk).update(state=PermitState.BLOCKED)
    rows.filter(pk=other.pk).update(state=PermitState.WAITING)
