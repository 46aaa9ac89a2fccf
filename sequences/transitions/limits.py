"""Limits: a claimed step asks for its places, waits in line for them, and passes them on.

Whoever grants or frees a place keeps its line locked until the commit. So no two steps get the same
place, and none becomes free unnoticed: a step that comes too late to be seen by whoever leaves sees
the free place itself, and a step that comes earlier is seen.

A step asks when it is claimed, with all of its limits at once, and holds no place while it waits
for another. Its place ends with its claim. It is passed on in the commit that ends the claim; if
people end the claim, by a check after their transaction, which may be long; and if the process has
died, by the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from ..definitions.limits import Limit, WhenFull
from ..models import (
    LimitKey,
    Permit,
    PermitState,
    RunStatus,
    SequenceRun,
    StepRun,
    StepStatus,
    StoredLimit,
    Wait,
)
from ..port import get_engine
from . import clock, lines, plans
from .lines import PARKED, RECHECK, Line
from .locking import lock_free, transact
from .periods import MESSAGE_SLACK
from .types import Claim, ClaimLost, Dispatch, wait_for

#: The number of lines that one sweep checks.
LINES = 200


@dataclass(frozen=True, slots=True)
class Request:
    """A place that is requested."""

    limit: Limit
    key: str
    #: Whether it is for the whole run.
    of_run: bool = False
    #: What happens to a run that finds no place.
    when_full: WhenFull = "wait"


@dataclass(slots=True)
class Admission:
    """Whether a claimed step may run now. If not, its row waits in line, and the claim is over."""

    is_granted: bool
    #: What to dispatch: its own row, at its moment, or others that were ahead of it.
    dispatches: list[Dispatch] = field(default_factory=list)
    #: The limit without a place, if the run must not wait for it: the run is to be cancelled.
    full: str = ""
    #: The run to cancel in its favour.
    oldest: UUID | None = None


# --- requests


def enter(claim: Claim, requests: Sequence[Request], using: str) -> Admission:
    """Request these places for a claimed step. Raises `ClaimLost`."""
    while True:
        by_line = {_line_of(request, using): request for request in requests}
        admission = transact(using, partial(_enter, claim, by_line, using))
        if admission is not None:
            return admission
        # A line was pruned after it was found and before it was locked.


def _line_of(request: Request, using: str) -> int:
    """The id of the line, which exists and is committed before anything is locked."""
    rows = LimitKey._base_manager.using(using).filter(
        limit__name=request.limit.name, key=request.key
    )
    pk = rows.values_list("pk", flat=True).first()
    if pk is not None:
        return pk
    limit = store(request.limit, using)
    row, _ = LimitKey._base_manager.using(using).get_or_create(limit=limit, key=request.key)
    return row.pk


def _enter(claim: Claim, requests: dict[int, Request], using: str) -> Admission | None:
    row = _own_row(claim, using)
    shared = _held_above(row.run, using)
    requests = _as_begun(row.run, requests, using)
    requests = {pk: request for pk, request in requests.items() if pk not in shared}
    now = clock.now(using)
    locked = lines.lock_lines(requests, now, using)
    if len(locked) < len(requests):
        return None
    return _Asking(claim, row, locked, requests, now, using).admit()


def _own_row(claim: Claim, using: str) -> StepRun:
    rows = StepRun._base_manager.using(using).select_for_update()
    row = rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING).first()
    if row is None:
        raise ClaimLost
    row.run = SequenceRun._base_manager.using(using).get(pk=row.run_id)
    return row


def _as_begun(run: SequenceRun, requests: dict[int, Request], using: str) -> dict[int, Request]:
    """A run keeps the places that it asked for at first, however its steps change its data."""
    of_run = [request for request in requests.values() if request.of_run]
    if not of_run:
        return requests
    permits = Permit._base_manager.using(using).filter(run=run.pk, step_run=None)
    line_ids = list(permits.values_list("line", flat=True))
    if not line_ids:
        return requests
    own = {pk: request for pk, request in requests.items() if not request.of_run}
    return own | dict.fromkeys(line_ids, of_run[0])


def _held_above(run: SequenceRun, using: str) -> set[int]:
    """The lines in which a run above this one has a place, which its child runs share."""
    above: list[UUID] = []
    rows = SequenceRun._base_manager.using(using)
    parent = run.parent_id
    while parent is not None:
        holder, parent = rows.filter(steps=parent).values_list("pk", "parent").get()
        above.append(holder)
    if not above:
        return set()
    permits = Permit._base_manager.using(using).filter(run__in=above, step_run=None)
    return set(permits.filter(state=PermitState.GRANTED).values_list("line", flat=True))


class _Asking:
    """A claimed step, with its lines locked."""

    def __init__(
        self,
        claim: Claim,
        row: StepRun,
        locked: dict[int, Line],
        requests: dict[int, Request],
        now: datetime,
        using: str,
    ) -> None:
        self.claim, self.row, self.locked, self.requests = claim, row, locked, requests
        self.now, self.using = now, using

    def admit(self) -> Admission:
        """The run's places first: it keeps them while the step waits for its own."""
        moment = self.now
        for of_run in (True, False):
            permits = self._permits(of_run)
            granted = self._ask(permits) if permits else self.now
            if granted is None:
                return self._park(permits, of_run)
            moment = max(moment, granted)
        if moment > self.now + clock.EARLY:
            return self._wait_until(moment)
        self._of_step().update(token=self.claim.token)
        if self.row.wait == Wait.LIMIT:  # no longer: from now on, this says what it waits for next
            self._row().update(wait="", waiting_since=None, due_at=None)
        return Admission(is_granted=True)

    def _row(self) -> QuerySet[StepRun]:
        return StepRun._base_manager.using(self.using).filter(pk=self.row.pk)

    def _rows(self) -> QuerySet[Permit]:
        return Permit._base_manager.using(self.using).filter(run=self.row.run_id)

    def _of_step(self) -> QuerySet[Permit]:
        return self._rows().filter(step_run=self.row.pk)

    def _permits(self, of_run: bool) -> list[Permit]:
        """Its existing permits, and new ones for the rest; permits that its data no longer needs
        are deleted."""
        rows = self._rows().filter(step_run=None) if of_run else self._of_step()
        line_ids = [pk for pk, request in self.requests.items() if request.of_run is of_run]
        by_line = {permit.line_id: permit for permit in rows}
        rows.filter(pk__in=[by_line[pk].pk for pk in by_line.keys() - set(line_ids)]).delete()
        return [by_line.get(pk) or self._create(pk, of_run) for pk in sorted(line_ids)]

    def _create(self, line: int, of_run: bool) -> Permit:
        return self._rows().create(
            line_id=line,
            run_id=self.row.run_id,
            step_run_id=None if of_run else self.row.pk,
            state=PermitState.BLOCKED,
            priority=self.row.run.priority,
            ready_at=self.row.run.created_at if of_run else self.row.due_at or self.row.ready_at,
            replaces=self.requests[line].when_full == "cancel_oldest",
        )

    def _ask(self, permits: list[Permit]) -> datetime | None:
        """From when on it has its places. None: it must wait for one of them."""
        if all(self._is_usable(permit) for permit in permits):
            return max(permit.granted_at or self.now for permit in permits)
        for permit in permits:
            if self._has_to_wait(permit):
                self._wait(permit, permits)
                return None
        own_lines = [self.locked[permit.line_id] for permit in permits]
        moment = lines.grant(permits, own_lines, self.using)
        for line in own_lines:
            line.store()
        return moment

    def _is_usable(self, permit: Permit) -> bool:
        """Whether it already has this place, and no earlier claim has used it."""
        is_fresh = permit.token in (None, self.claim.token)
        is_granted = permit.state == PermitState.GRANTED and is_fresh
        return is_granted and self.locked[permit.line_id].room(permit) > 0

    def _has_to_wait(self, permit: Permit) -> bool:
        line = self.locked[permit.line_id]
        if line.is_early() or not line.room(permit):
            return True
        before = Q(priority__lt=permit.priority) | Q(
            priority=permit.priority, ready_at__lt=permit.ready_at
        )
        return line.waiting().filter(before).exclude(pk=permit.pk).exists()

    def _wait(self, permit: Permit, permits: Iterable[Permit]) -> None:
        rows = self._rows().filter(pk__in=[each.pk for each in permits])
        rows.update(state=PermitState.BLOCKED, token=None, granted_at=None)
        rows.filter(pk=permit.pk).update(state=PermitState.WAITING)

    def _park(self, permits: list[Permit], of_run: bool) -> Admission:
        """Wait in line. If a place is free, others are ahead: they get it."""
        if of_run and (full := self._skipped_for(permits)):
            # Still claimed: if this process dies before the run is cancelled, it asks again.
            self._rows().filter(pk__in=[permit.pk for permit in permits]).delete()
            return Admission(is_granted=False, full=full)
        self._leave_worker(due_at=None, wake_at=self.now + RECHECK)
        admission = Admission(is_granted=False)
        for line in [self.locked[permit.line_id] for permit in permits]:
            if of_run and not line.room():
                admission.oldest = line.oldest()
            admission.dispatches += line.look()
        return admission

    def _skipped_for(self, permits: list[Permit]) -> str:
        """The limit without a place for a run that must not wait; empty if it waits."""
        for permit in permits:
            line = self.locked[permit.line_id]
            if self.requests[permit.line_id].when_full == "skip" and not line.room(permit):
                return str(line.name)
        return ""

    def _wait_until(self, moment: datetime) -> Admission:
        """It has its places, and its moment is near."""
        self._leave_worker(due_at=moment, wake_at=moment + MESSAGE_SLACK)
        plan = plans.load(self.row.run.plan_id, self.using)
        dispatch = lines.dispatch_at(self.row, plan, moment, self.now)
        return Admission(is_granted=False, dispatches=[dispatch])

    def _leave_worker(self, *, due_at: datetime | None, wake_at: datetime) -> None:
        self._row().update(
            **wait_for(Wait.LIMIT, self.now), token=None, due_at=due_at, wake_at=wake_at,
            queued_at=self.now, dispatches=0,
        )  # fmt: skip


# --- passing on places


def leave(step_run_id: int, using: str) -> list[Dispatch]:
    """Pass on the places of this step run, whose claim has ended, in the same transaction.

    The caller has locked its run and its row.
    """
    return _pass_on(Permit._base_manager.using(using).filter(step_run=step_run_id), using)


def _pass_on(permits: QuerySet[Permit], using: str) -> list[Dispatch]:
    left = dict(permits.values_list("pk", "line"))
    if not left:
        return []
    locked = lines.lock_lines(left.values(), clock.now(using), using)
    Permit._base_manager.using(using).filter(pk__in=left).delete()
    return [dispatch for line in locked.values() for dispatch in line.look()]


def end_claim(run: SequenceRun, step_run_id: int, using: str) -> list[Dispatch]:
    """Pass on the places of a claim that has ended, and those of its run if that ends or is paused.

    In the same transaction, which has locked the run and the row.
    """
    if run.is_finished or run.status == RunStatus.PAUSED:
        return leave_unused(run.pk, using)
    return leave(step_run_id, using)


def leave_unused(run_id: UUID, using: str) -> list[Dispatch]:
    """Pass on all places that the rows of this run no longer use, in the same transaction."""
    permits = Permit._base_manager.using(using).filter(run=run_id)
    if not permits.exists():
        return []
    used = set(lines.in_use(permits, using).values_list("pk", flat=True))
    parked = StepRun._base_manager.using(using).filter(PARKED, run=run_id)
    waits = Q(step_run__in=parked.values("pk"))
    if parked.exists():
        waits |= Q(step_run=None)
    waiting = permits.filter(waits).exclude(state=PermitState.GRANTED)
    used.update(waiting.values_list("pk", flat=True))
    return _pass_on(permits.exclude(pk__in=used), using)


def clear_on_commit(run_id: UUID, using: str) -> None:
    """The same once this transaction has committed, because it may take long."""

    def limits_changed() -> None:
        get_engine().limits_changed(run_id, using)

    transaction.on_commit(limits_changed, using=using, robust=True)


def clear(run_id: UUID, using: str) -> list[Dispatch]:
    """Pass on all places that the rows of this run no longer use, after someone has changed it."""
    # Few runs have limits, and most runs that end have no places: that needs no transaction.
    if not Permit._base_manager.using(using).filter(run=run_id).exists():
        return []
    return transact(using, lambda: leave_unused(run_id, using))


# --- sweep


def due(using: str) -> list[int]:
    """The lines to check, oldest first."""
    rows = LimitKey._base_manager.using(using).filter(wake_at__lte=clock.now(using))
    return list(rows.order_by("wake_at", "pk").values_list("pk", flat=True)[:LINES])


def look(line_id: int, using: str) -> Admission:
    """Grant what is free in this line. A locked line is left to whoever has locked it."""
    return transact(using, lambda: _look(line_id, using))


def _look(line_id: int, using: str) -> Admission:
    admission = Admission(is_granted=False)
    locked = lines.lock_lines([line_id], clock.now(using), using, skip=True)
    for line in locked.values():
        admission.dispatches = line.look()
        admission.oldest = line.oldest()
    return admission


# --- declarations


def store(limit: Limit, using: str) -> StoredLimit:
    """The row of this limit; if it already exists, its numbers stay."""
    concurrency, rate, per = limit.numbers
    numbers = {"concurrency": concurrency, "rate": rate, "per": per}
    row, _ = StoredLimit._base_manager.using(using).get_or_create(name=limit.name, defaults=numbers)
    return row


def store_all(limits: Iterable[Limit], using: str) -> None:
    """Write the numbers that this release declares."""
    for limit in limits:
        row = store(limit, using)
        numbers = (row.concurrency, row.rate, row.per)
        if numbers != limit.numbers:
            row.concurrency, row.rate, row.per = limit.numbers
            row.save(using=using, update_fields=["concurrency", "rate", "per"])
            transact(using, partial(lines.check_soon, row.pk, clock.now(using), using))


def prune(using: str) -> int:
    """Remove lines in which nobody waits and that no rate delays; return their number."""
    removed = 0
    while count := transact(using, lambda: _prune(using)):
        removed += count
    return removed


def _prune(using: str) -> int:
    now = clock.now(using)
    permits = Permit._base_manager.using(using).filter(line=OuterRef("pk"))
    over = Q(next_at__isnull=True) | Q(next_at__lt=now)
    idle = LimitKey._base_manager.using(using).filter(over, ~Exists(permits), wake_at__isnull=True)
    ids = list(idle.order_by("pk").values_list("pk", flat=True)[:LINES])
    # Whoever found a line before it was locked here finds it gone, and creates another.
    free = lock_free(idle.filter(pk__in=ids), using)
    rows = LimitKey._base_manager.using(using).filter(pk__in=free)
    return rows._raw_delete(using) if free else 0
