"""Schedules: their rows, their slots, and what people do to them.

Handling a slot is one transaction: the run of that slot, and the schedule's next slot. Its guard is
the row's `version`, which every write changes: if two sweeps collide, one of them finds another
version. Whatever happens to the row, the key of a slot's run is made of schedule and slot, and can
be used only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext_noop as _

from ..definitions.plan import Plan
from ..definitions.schedules import Timetable, Turn
from ..definitions.subjects import SubjectKey
from ..exceptions import InvalidSchedule, Text
from ..models import Schedule, ScheduleOperation, SequenceRun
from . import clock, starts
from .locking import lock_free, transact
from .refusals import with_text
from .starts import Labels
from .types import Dispatch, Start

#: How often a process that sweeps confirms that its code has a declaration, and after how long
#: without a confirmation no process has it any more.
CONFIRMED_EVERY, STALE_AFTER = timedelta(seconds=15), timedelta(seconds=60)
#: How many declarations of one schedule are remembered.
MAX_DECLARATIONS = 50
#: The pauses between two checks of a slot that waits for a run to end.
SHORTEST_WAIT, LONGEST_WAIT = timedelta(seconds=1), timedelta(seconds=30)
#: The longest pause after a failure.
LONGEST_PAUSE = timedelta(minutes=5)


class _Stale(Exception):
    """The row has changed since it was read: roll back this transaction."""


def upcoming(limit: int, using: str) -> list[Schedule]:
    """The schedules that are due next, in order."""
    rows = Schedule.objects.using(using).filter(wake_at__isnull=False)
    rows = rows.only("sequence", "name", "is_declared", "fingerprint", "wake_at")
    return list(rows.order_by("wake_at", "pk")[:limit])


def read(pk: int, using: str) -> Schedule | None:
    """The schedule as it is stored now."""
    return Schedule.objects.using(using).filter(pk=pk).first()


# Slots


@dataclass(frozen=True, slots=True)
class Outcome:
    """What handling a slot did: the run that was started, if any."""

    run: SequenceRun | None = None
    dispatches: list[Dispatch] = field(default_factory=list)


def take_turn(
    schedule: Schedule,
    timetable: Timetable,
    turn: Turn,
    start: tuple[Plan, Start, Labels] | None,
    using: str,
) -> Outcome | None:
    """Start the run of a slot, or skip it, and set the next slot: all or nothing.

    ``start``: None if there is nothing to start, because the last run is unfinished. Returns None
    if the schedule has changed, or another transaction has locked it.
    """
    try:
        return transact(using, lambda: _take_turn(schedule, timetable, turn, start, using))
    except _Stale:
        return None


def _take_turn(
    schedule: Schedule,
    timetable: Timetable,
    turn: Turn,
    start: tuple[Plan, Start, Labels] | None,
    using: str,
) -> Outcome | None:
    if not lock_free(_as_read(schedule, using), using):
        return None
    now = clock.now(using)
    following = next_turn(timetable, schedule, turn.following) | {"is_waiting": False}
    if turn.missed is not None:
        following |= {"skipped_slot": turn.missed, "skip_reason": "missed"}
    if turn.slot is None:
        _write(schedule, now, using, **following)
        return Outcome()
    if timetable.overlap != "allow" and is_unfinished(schedule.last_run_id, using):
        if timetable.overlap == "wait":
            following = _waiting(turn.slot, now)
        else:
            following |= {"skipped_slot": turn.slot, "skip_reason": "overlap"}
        _write(schedule, now, using, **following)
        return Outcome()
    if start is None:  # the last run has ended since that check: the next check starts one
        return None
    run, dispatches = starts.start(*start, using)
    started = {"last_run": run, "last_slot": turn.slot, "last_started_at": now}
    _write(schedule, now, using, **following, **started, **_NO_FAILURE)
    return Outcome(run, dispatches)


_NO_FAILURE = {"error": "", "failures": 0, "failed_at": None}


def _waiting(slot: datetime, now: datetime) -> dict[str, Any]:
    pause = min(max((now - slot) / 10, SHORTEST_WAIT), LONGEST_WAIT)
    return {"next_slot": slot, "is_waiting": True, "wake_at": now + pause}


def is_unfinished(run_id: UUID | None, using: str) -> bool:
    """Whether there is such a run that has not ended."""
    if run_id is None:
        return False
    return SequenceRun.objects.using(using).filter(pk=run_id).unfinished().exists()


@dataclass(frozen=True, slots=True)
class TurnFailure:
    """Why a slot could not be handled, as it is stored."""

    error: str


def fail_turn(schedule: Schedule, failure: TurnFailure, using: str) -> bool:
    """Record that its slot could not be handled. It is tried again, with growing pauses."""
    try:
        return transact(using, lambda: _fail_turn(schedule, failure, using))
    except _Stale:
        return False


def _fail_turn(schedule: Schedule, failure: TurnFailure, using: str) -> bool:
    if not lock_free(_as_read(schedule, using), using):
        return False
    now = clock.now(using)
    pause = min(clock.grace() * (1 << min(schedule.failures, 10)), LONGEST_PAUSE)

    def store(failure: TurnFailure) -> None:
        _write(
            schedule,
            now,
            using,
            error=failure.error,
            failures=schedule.failures + 1,
            failed_at=now,
            wake_at=now + pause,
        )

    with_text(store, failure, using)
    return True


def _as_read(schedule: Schedule, using: str) -> QuerySet[Schedule]:
    rows = Schedule.objects.using(using)
    return rows.filter(pk=schedule.pk, version=schedule.version)


def _write(schedule: Schedule, now: datetime, using: str, **values: Any) -> None:
    """The guarded write. Raises `_Stale` if the row has changed since it was read."""
    version = schedule.version + 1
    if not _as_read(schedule, using).update(version=version, updated_at=now, **values):
        raise _Stale


def next_turn(timetable: Timetable, schedule: Schedule, slot: datetime | None) -> dict[str, Any]:
    """The columns that say when a schedule is next due: at this slot, plus its jitter."""
    is_off = slot is None or schedule.paused_at is not None or schedule.orphaned_at is not None
    wake_at = None if is_off or slot is None else timetable.start_of(slot, identity_of(schedule))
    return {"next_slot": slot, "wake_at": wake_at}


def identity_of(schedule: Schedule) -> str:
    """What its jitter is derived from."""
    return f"{schedule.scope} {schedule.name}"


# Declarations in code


@dataclass(frozen=True, slots=True)
class Declaration:
    """A schedule as this code declares it."""

    sequence: str
    scope: str
    name: str
    timetable: Timetable = field(compare=False)  # its data need not be hashable

    def __str__(self) -> str:
        return f"{self.sequence} {self.name}"

    @property
    def fingerprint(self) -> str:
        """Equal for the same schedule in every process."""
        return self.timetable.fingerprint()


def declared(using: str) -> list[Schedule]:
    """The rows of all schedules that code declares, or has declared."""
    return list(Schedule.objects.using(using).filter(is_declared=True))


def hidden(declarations: Sequence[Declaration], using: str) -> set[Declaration]:
    """Those whose name belongs to a schedule that was created at run time."""
    if not declarations:
        return set()
    rows = Schedule.objects.using(using).filter(is_declared=False)
    rows = rows.filter(name__in={each.name for each in declarations})
    names = set(rows.values_list("scope", "name"))
    return {each for each in declarations if (each.scope, each.name) in names}


def declare(declaration: Declaration, row: Schedule | None, using: str) -> bool:
    """Write what this code declares, if it applies. False: another declaration does.

    A declaration that was never seen applies at once: it is from a new release. A known one is from
    an older release: it applies only when no process has the other one any more.
    """
    if row is None:
        return transact(using, lambda: _create_declared(declaration, using))
    if row.fingerprint == declaration.fingerprint and row.orphaned_at is None:
        return True
    try:
        return transact(using, lambda: _redeclare(declaration, row, using))
    except _Stale:
        return False


def _create_declared(declaration: Declaration, using: str) -> bool:
    now = clock.now(using)
    row = Schedule(
        sequence=declaration.sequence,
        scope=declaration.scope,
        name=declaration.name,
        is_declared=True,
        created_at=now,
        **_of_declaration(declaration, [], now),
    )
    _set(row, next_turn(declaration.timetable, row, declaration.timetable.after(now)), now)
    try:
        with transaction.atomic(using=using):
            row.save(using=using, force_insert=True)
    except IntegrityError:  # another worker that boots now, or one created now: see `hidden`
        return False
    return True


def _redeclare(declaration: Declaration, row: Schedule, using: str) -> bool:
    if not lock_free(_as_read(row, using), using):
        return False
    now = clock.now(using)
    is_known = declaration.fingerprint in row.declarations
    is_current = declaration.fingerprint == row.fingerprint
    if is_known and not is_current and is_confirmed(row, now):
        return False
    timetable = declaration.timetable
    has_slot = row.next_slot is not None and _has_slots_of(timetable, row.spec)
    slot = row.next_slot if has_slot else timetable.after(now)
    row.orphaned_at = None
    values = _of_declaration(declaration, row.declarations, now) | next_turn(timetable, row, slot)
    if not has_slot:
        values["is_waiting"] = False
    sequence = {"sequence": declaration.sequence, "orphaned_at": None}
    _write(row, now, using, **values, **sequence, **_NO_FAILURE)
    return True


def _has_slots_of(timetable: Timetable, spec: Mapping[str, Any]) -> bool:
    names = ("cron", "timezone", "every", "start")
    return timetable.timing() == {name: spec[name] for name in names if name in spec}


def _of_declaration(
    declaration: Declaration, before: Sequence[str], now: datetime
) -> dict[str, Any]:
    fingerprint = declaration.fingerprint
    earlier = [*before, *([] if fingerprint in before else [fingerprint])]
    return {
        "spec": declaration.timetable.to_json(),
        "fingerprint": fingerprint,
        "declarations": earlier[-MAX_DECLARATIONS:],
        "confirmed_at": now,
    }


def _set(row: Schedule, values: Mapping[str, Any], now: datetime) -> None:
    for name, value in values.items():
        setattr(row, name, value)
    row.updated_at = now


def is_confirmed(row: Schedule, now: datetime) -> bool:
    """Whether a process that sweeps has recently confirmed the declaration in force."""
    return row.confirmed_at is not None and now - row.confirmed_at < STALE_AFTER


def confirm(ids: Iterable[int], using: str) -> None:
    """Confirm that this code has the declarations of these rows."""
    transact(using, lambda: _confirm(list(ids), using))


def _confirm(ids: list[int], using: str) -> None:
    now = clock.now(using)
    rows = Schedule.objects.using(using).filter(pk__in=ids)
    rows = rows.filter(Q(confirmed_at=None) | Q(confirmed_at__lt=now - CONFIRMED_EVERY))
    rows.filter(pk__in=lock_free(rows, using)).update(confirmed_at=now)


def orphan(row: Schedule, using: str) -> bool:
    """Start no more runs: no code declares it. False: some code does, or did until just now."""
    try:
        return transact(using, lambda: _orphan(row, using))
    except _Stale:
        return False


def _orphan(row: Schedule, using: str) -> bool:
    now = clock.now(using)
    stale = Q(confirmed_at=None) | Q(confirmed_at__lt=now - STALE_AFTER)
    if not lock_free(_as_read(row, using).filter(stale), using):
        return False
    _write(row, now, using, orphaned_at=now, wake_at=None, is_waiting=False)
    return True


# What people do to schedules


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """Who does what to a schedule, and why: stored as a `ScheduleOperation` row."""

    action: str
    by: str = ""
    reason: str = ""
    before: Any = None
    after: Any = None
    #: The id of the newest operation that the decision is based on. None: it does not matter.
    basis: int | None = None


def add(row: Schedule, timetable: Timetable, request: ScheduleRequest, using: str) -> Schedule:
    """Add this schedule. Raises `InvalidSchedule` if there already is one with that name."""

    def insert() -> Schedule:
        now = clock.now(using)
        row.created_at, row.spec = now, timetable.to_json()
        _set(row, next_turn(timetable, row, timetable.after(now)), now)
        row.save(using=using, force_insert=True)
        _log(row, request, now, using)
        return row

    try:
        return transact(using, lambda: _in_savepoint(insert, using))
    except IntegrityError:
        raise InvalidSchedule(
            action="create",
            schedule=f"{row.name!r} of {row.sequence}",
            problem=_("a schedule with this name already exists"),
            hint=_way_out(row, using),
        ) from None


def _way_out(row: Schedule, using: str) -> str:
    """What to do about the schedule that has this row's name already."""
    other = Schedule.objects.using(using).filter(scope=row.scope, name=row.name).first()
    if other is None or not other.is_declared:
        return _("Update that schedule, or choose another name.")
    if other.orphaned_at is None:  # by another release
        return _("Choose another name.")
    return _("The code no longer declares that schedule: remove it first, or choose another name.")


def _in_savepoint(insert: Any, using: str) -> Schedule:
    with transaction.atomic(using=using):  # keeps the caller's transaction usable
        row: Schedule = insert()
        return row


class LockedSchedule:
    """A schedule under its lock, with what all requests do with it."""

    def __init__(self, pk: int, request: ScheduleRequest, using: str) -> None:
        rows = Schedule.objects.using(using).select_for_update()
        row = rows.filter(pk=pk).first()
        if row is None:
            raise InvalidSchedule(
                action=_verb(request),
                schedule=pk,
                problem=_("it no longer exists"),
                hint=_("Add it again if you still need it."),
            )
        self.row, self.request, self.using = row, request, using
        self.now = clock.now(using)

    def refuse(self, problem: str, hint: str) -> InvalidSchedule:
        name = f"{self.row.name!r} of {self.row.sequence}"
        return InvalidSchedule(
            action=_verb(self.request), schedule=name, problem=problem, hint=hint
        )

    def check_basis(self) -> None:
        """Reject a decision about a schedule that an operation has changed since."""
        operations = ScheduleOperation.objects.using(self.using).filter(schedule=self.row.pk)
        basis = self.request.basis
        if basis is not None and operations.filter(pk__gt=basis).exists():
            raise self.refuse(
                _("it has changed since you opened the page"),
                _("Look at it again before you decide."),
            )

    def write(self, **values: Any) -> None:
        self.check_basis()
        _write(self.row, self.now, self.using, **values)
        _log(self.row, self.request, self.now, self.using)

    def remove(self) -> None:
        self.check_basis()
        _log(self.row, self.request, self.now, self.using)
        Schedule.objects.using(self.using).filter(pk=self.row.pk).delete()


def _verb(request: ScheduleRequest) -> str:
    return "run" if request.action == "run_now" else request.action


def _log(row: Schedule, request: ScheduleRequest, now: datetime, using: str) -> None:
    def store(request: ScheduleRequest) -> None:
        ScheduleOperation.objects.using(using).create(
            schedule_id=row.pk,
            sequence=row.sequence,
            name=row.name,
            action=request.action,
            reason=request.reason,
            by=request.by,
            before=request.before,
            after=request.after,
            done_at=now,
        )

    with_text(store, request, using)


def pause(pk: int, request: ScheduleRequest, using: str) -> None:
    """Start no runs until it is resumed."""

    def act() -> None:
        locked = LockedSchedule(pk, request, using)
        if locked.row.paused_at is not None:
            raise locked.refuse(_("it is already paused"), _("Nothing was changed."))
        locked.write(paused_at=locked.now, wake_at=None, is_waiting=False)

    transact(using, act)


def resume(pk: int, timetable: Timetable, request: ScheduleRequest, using: str) -> None:
    """Continue with the next slot from now."""

    def act() -> None:
        locked = LockedSchedule(pk, request, using)
        if locked.row.paused_at is None:
            raise locked.refuse(_("it is not paused"), _("Nothing was changed."))
        locked.row.paused_at = None
        turn = next_turn(timetable, locked.row, timetable.after(locked.now))
        locked.write(paused_at=None, **turn, **_NO_FAILURE)

    transact(using, act)


def update(
    pk: int,
    timetable: Timetable,
    data: dict[str, Any] | None,
    request: ScheduleRequest,
    using: str,
) -> None:
    """Change its timetable and data. If its slots change, they count from now."""

    def act() -> None:
        locked = LockedSchedule(pk, request, using)
        if locked.row.is_declared:
            raise locked.refuse(
                _("it is declared in code"), _("Change it in the code, or pause it.")
            )
        has_slot = locked.row.next_slot is not None and _has_slots_of(timetable, locked.row.spec)
        slot = locked.row.next_slot if has_slot else timetable.after(locked.now)
        turn = next_turn(timetable, locked.row, slot)
        if not has_slot:
            turn["is_waiting"] = False
        locked.write(spec=timetable.to_json(), data=data, **turn, **_NO_FAILURE)

    transact(using, act)


def remove(pk: int, request: ScheduleRequest, using: str) -> None:
    """Remove it; its runs and the log of its operations stay."""

    def act() -> None:
        locked = LockedSchedule(pk, request, using)
        if locked.row.is_declared and locked.row.orphaned_at is None:
            raise locked.refuse(
                _("it is declared in code"), _("Remove it from the code, or pause it.")
            )
        locked.remove()

    transact(using, act)


def made_for(key: SubjectKey, using: str) -> list[Schedule]:
    """The schedules whose runs are about this object."""
    return list(Schedule.objects.using(using).filter(subject_text=str(key)).order_by("pk"))


def erase_log(pk: int, using: str) -> None:
    """Blank the data and the reasons in the log of a schedule."""
    rows = ScheduleOperation.objects.using(using).filter(schedule=pk)
    rows.update(before=None, after=None, reason="")


def run_now(
    pk: int,
    timetable: Timetable,
    start: tuple[Plan, Start, Labels],
    request: ScheduleRequest,
    using: str,
) -> Outcome:
    """Start a run in addition to its slots."""

    def act() -> Outcome:
        locked = LockedSchedule(pk, request, using)
        last = locked.row.last_run_id
        if timetable.overlap != "allow" and is_unfinished(last, using):
            hint = _('Wait until it has finished, or let runs overlap with overlap="allow".')
            raise locked.refuse(Text(_("its last run %(run)s is unfinished"), run=last), hint)
        run, dispatches = starts.start(*start, using)
        locked.request = replace(request, after={"run": str(run.pk)})
        locked.write(last_run=run, last_started_at=locked.now)
        return Outcome(run, dispatches)

    return transact(using, act)
