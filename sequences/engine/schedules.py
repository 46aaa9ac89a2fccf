"""Schedules start runs: the declarations in code, the slots that are due, the operations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext_noop as _

from .. import conf
from ..data import serialization
from ..data.redaction import redact
from ..definitions import registry
from ..definitions.definition import Definition
from ..definitions.schedules import (
    Timetable,
    in_zone,
    key_beside,
    key_of,
    name_problems,
    timetable_of,
    turn_of,
)
from ..exceptions import InvalidSchedule, SequenceError, UnknownSequence
from ..models import Schedule, ScheduleQuerySet, SequenceRun
from ..sequence import Sequence
from ..transitions import clock, locking, plans, schedules
from ..transitions.schedules import Declaration, Outcome, ScheduleRequest, TurnFailure
from ..transitions.types import Start
from ..utils.text import first_line, text_of
from . import dispatcher, outages, start, tracing
from .operations import name_of_caller

logger = logging.getLogger("sequences")

#: How many characters of an error are stored.
MAX_ERROR = 500
#: Nobody handles a schedule whose class is gone; when it is this late, that is recorded.
UNKNOWN_AFTER = timedelta(minutes=1)


# Declarations


def declarations(using: str) -> Iterator[Declaration]:
    """The schedules that this code declares."""
    for cls in registry.all():
        definition: Definition | None = cls._definition
        if definition is None or not definition.schedules:
            continue
        scope = plans.key_scope(definition.labels, using)
        for name, timetable in definition.schedules.items():
            yield Declaration(definition.label, scope, name, timetable)


def sync(using: str) -> set[Declaration]:
    """Write what this code declares, and note what no code declares any more.

    Any process may do this at any time: `schedules.declare` decides which of two releases counts.
    Returns the declarations whose names belong to schedules created at run time, which stay.
    """
    rows = {(row.scope, row.name): row for row in schedules.declared(using)}
    own = {(each.scope, each.name): each for each in declarations(using)}
    if not rows and not own:
        return set()
    now = clock.now(using)
    hidden = schedules.hidden([each for key, each in own.items() if key not in rows], using)
    for key, declaration in own.items():
        if declaration not in hidden:
            _guarded(schedules.declare, declaration, rows.get(key), using)
    for key, row in rows.items():
        is_missing = key not in own and row.orphaned_at is None
        if is_missing and not schedules.is_confirmed(row, now):
            _guarded(_orphan, row, using)
    agreed = [
        row.pk
        for key, row in rows.items()
        if key in own and row.fingerprint == own[key].fingerprint
    ]
    if agreed:
        schedules.confirm(agreed, using)
    return hidden


def hidden_declarations(using: str) -> list[Declaration]:
    """The declarations that do not apply: a schedule created at run time has the name."""
    return list(schedules.hidden(list(declarations(using)), using))


def _guarded(act: Callable[..., object], *args: Any) -> None:
    """A schedule that cannot be written must not affect the others."""
    try:
        with locking.no_wait():
            act(*args)
    except locking.Locked:
        pass  # by another worker that boots; it is checked again soon
    except Exception as error:
        if outages.is_away(error, args[-1]):
            raise
        logger.exception("Could not store a schedule that the code declares: %s", args[0])


def _orphan(row: Schedule, using: str) -> None:
    if schedules.orphan(row, using):
        logger.warning("Schedule %s is no longer declared in code; it starts no more runs.", row)


def timetable_for(schedule: Schedule) -> Timetable | None:
    """The timetable in force, with its data. None: only another release has it.

    Raises `UnknownSequence` and `SequenceError` if this code cannot read it.
    """
    definition = registry.definition_of(schedule.sequence)
    if definition is None:
        raise UnknownSequence(name=schedule.sequence, hint="This code does not declare it.")
    if not schedule.is_declared:
        return schedule.timetable
    return _declared_as(schedule, definition)


def _declared_as(schedule: Schedule, definition: Definition) -> Timetable | None:
    timetable = definition.schedules.get(schedule.name)
    is_same = timetable is not None and timetable.fingerprint() == schedule.fingerprint
    return timetable if is_same else None


# Slots that are due


def is_ours(schedule: Schedule, now: datetime) -> bool:
    """Whether this code can handle a schedule that is due; without a query.

    A class that this code does not have belongs to another release. If that release does not start
    the run in time, there is none, and this is recorded.
    """
    definition = registry.definition_of(schedule.sequence)
    if definition is None:
        return schedule.wake_at is not None and now - schedule.wake_at > UNKNOWN_AFTER
    return not schedule.is_declared or _declared_as(schedule, definition) is not None


def give_turn(pk: int, using: str, *, as_of: datetime | None = None) -> SequenceRun | None:
    """Handle a schedule that is due; return the run that it has started.

    ``as_of`` is used as the time, in tests whose clock has moved beyond it. Problems of the
    schedule are stored with it, not raised; only errors of the database are raised.
    """
    schedule = schedules.read(pk, using)
    if schedule is None or schedule.wake_at is None:
        return None
    now = clock.now(using) if as_of is None else as_of
    if schedule.wake_at > now:
        return None
    try:
        return _take_turn(schedule, now, using)
    except (Exception, SystemExit) as error:
        if outages.is_away(error, using):
            raise
        logger.exception("Schedule %s could not start its run; it will try again.", schedule)
        schedules.fail_turn(schedule, TurnFailure(_text(error)), using)
        return None


def _text(error: BaseException) -> str:
    kind = type(error)
    return first_line(f"{kind.__module__}.{kind.__qualname__}: {text_of(error)}", MAX_ERROR)


def _take_turn(schedule: Schedule, now: datetime, using: str) -> SequenceRun | None:
    timetable = timetable_for(schedule)
    if timetable is None or schedule.next_slot is None:
        return None
    turn = turn_of(
        timetable, schedule.next_slot, now, schedules.identity_of(schedule),
        has_waited=schedule.is_waiting,
    )  # fmt: skip
    if turn.missed is not None:
        logger.warning("Schedule %s missed its slot %s.", schedule, turn.missed.isoformat())
    if turn.slot is None or _is_busy(schedule, timetable, using):
        schedules.take_turn(schedule, timetable, turn, None, using)
        return None
    definition = _definition(schedule)
    data = _data(timetable, turn.slot)
    key = key_of(schedule.name, turn.slot)
    request = start.start_of(definition, data, key=key, subject_key=schedule.subject_key)
    with tracing.starting(definition.plan, [request]):
        plan = (definition.plan, request, definition.labels)
        outcome = schedules.take_turn(schedule, timetable, turn, plan, using)
    return _sent(outcome, using)


def _is_busy(schedule: Schedule, timetable: Timetable, using: str) -> bool:
    """Whether its last run is unfinished and its runs must not overlap: then it needs no data."""
    last = schedule.last_run_id
    return timetable.overlap != "allow" and schedules.is_unfinished(last, using)


def _definition(schedule: Schedule) -> Definition:
    definition = registry.definition_of(schedule.sequence)
    assert definition is not None  # `timetable_for` has raised
    return definition


def _data(timetable: Timetable, slot: datetime) -> Any:
    return timetable.data(in_zone(timetable, slot)) if callable(timetable.data) else timetable.data


def _sent(outcome: Outcome | None, using: str) -> SequenceRun | None:
    if outcome is None:
        return None
    dispatcher.send_on_commit(outcome.dispatches, using)
    return outcome.run


# Operations


def create_schedule(
    cls: type[Sequence[Any]],
    name: str,
    timetable: Timetable,
    /,
    *,
    data: Any,
    subject: Any,
    by: Any,
    reason: str,
) -> Schedule:
    """See `Schedules.create`."""
    definition: Definition = start.definition_of(cls)
    _check_name(definition, name)
    timetable = _storable(definition, name, timetable, "create")
    checked = _checked(definition, timetable.data if data is None else data)
    using = conf.using()
    request = ScheduleRequest(
        "create", name_of_caller(by), reason, after=_logged(definition.label, timetable, checked)
    )
    scope = plans.key_scope(definition.labels, using)
    row = Schedule(sequence=definition.label, scope=scope, name=name, data=checked)
    if subject is not None:
        row.subject_text = str(start.subject_key(definition.label, subject))
    return schedules.add(row, timetable, request, using)


def schedules_of(cls: type[Sequence[Any]], /) -> ScheduleQuerySet:
    """The schedules of this class, including those under its earlier names."""
    rows = ScheduleQuerySet(Schedule, using=conf.using())
    return rows.filter(sequence__in=start.definition_of(cls).labels)


def operate_schedule(
    schedule: Schedule, action: str, /, *, by: Any = "", reason: str = "", **options: Any
) -> Any:
    """Perform an operation on a schedule; the options are those of its method."""
    using = conf.using()
    request = ScheduleRequest(action, by=name_of_caller(by), reason=reason, basis=schedule._basis)
    result = _OPERATIONS[action](schedule, request, using, **options)
    if action != "remove":
        schedule.refresh_from_db(using=using)
        vars(schedule).pop("timetable", None)
    return result


def _pause(schedule: Schedule, request: ScheduleRequest, using: str) -> None:
    schedules.pause(schedule.pk, request, using)


def _resume(schedule: Schedule, request: ScheduleRequest, using: str) -> None:
    stored = schedules.read(schedule.pk, using) or schedule
    schedules.resume(schedule.pk, timetable_of(stored.spec), request, using)


def _update(
    schedule: Schedule,
    request: ScheduleRequest,
    using: str,
    *,
    timetable: Timetable | None,
    data: Any,
) -> None:
    stored = schedules.read(schedule.pk, using) or schedule
    definition = registry.definition_of(stored.sequence)
    if definition is None:
        raise UnknownSequence(name=stored.sequence, hint="This code does not declare it.")
    new = stored.timetable
    if timetable is not None:
        new = _storable(definition, stored.name, timetable, "update")
    if data is None and timetable is not None:
        data = timetable.data
    checked = stored.data if data is None else _checked(definition, data)
    before = _logged(stored.sequence, stored.timetable, stored.data)
    after = _logged(stored.sequence, new, checked)
    request = replace(request, before=before, after=after)
    schedules.update(schedule.pk, new, checked, request, using)


def _remove(schedule: Schedule, request: ScheduleRequest, using: str) -> None:
    schedules.remove(schedule.pk, request, using)


def _run_now(schedule: Schedule, request: ScheduleRequest, using: str) -> SequenceRun:
    stored = schedules.read(schedule.pk, using) or schedule
    timetable = timetable_for(stored)
    if timetable is None:
        raise InvalidSchedule(
            action="run",
            schedule=f"{stored.name!r} of {stored.sequence}",
            problem=_("its declaration in this code differs from the one in the workers' code"),
            hint=_("Do this in the release that the workers run."),
        )
    definition = _definition(stored)
    data = _data(timetable, clock.now(using).replace(microsecond=0))
    key = key_beside(stored.name)
    start_request = start.start_of(definition, data, key=key, subject_key=stored.subject_key)
    with tracing.starting(definition.plan, [start_request]):
        plan = (definition.plan, start_request, definition.labels)
        outcome = schedules.run_now(stored.pk, timetable, plan, request, using)
    run = _sent(outcome, using)
    assert run is not None
    return run


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "pause": _pause,
    "resume": _resume,
    "update": _update,
    "remove": _remove,
    "run_now": _run_now,
}


def _check_name(definition: Definition, name: Any) -> None:
    for problem, hint in name_problems(name):
        raise InvalidSchedule(
            action="create", schedule=f"of {definition.label}", problem=problem, hint=hint
        )
    if name in definition.schedules:
        raise InvalidSchedule(
            action="create",
            schedule=f"{name!r} of {definition.label}",
            problem=_("the code already declares a schedule with this name"),
            hint=_("Choose another name."),
        )


def _storable(definition: Definition, name: str, timetable: Any, action: str) -> Timetable:
    problem = ""
    if not isinstance(timetable, Timetable):
        problem = f"{timetable!r:.60} is neither cron(…) nor every(…)"
    elif callable(timetable.data):
        problem = f"its data is the function {timetable.data_name()}, which cannot be stored"
    if problem:
        raise InvalidSchedule(
            action=action,
            schedule=f"{name!r} of {definition.label}",
            problem=problem,
            hint="Pass cron(…) or every(…), and data as a dict.",
        )
    assert isinstance(timetable, Timetable)
    return timetable


def _checked(definition: Definition, data: Any) -> dict[str, Any] | None:
    """The data as it is stored, after checking that a run could start with it."""
    request: Start = start.start_of(definition, data, key=None)
    if data is None:
        return None
    if definition.cls._codec is not None:
        return request.data
    checked, _ = serialization.normalise(dict(data), encoder=conf.settings.encoder)
    stored: dict[str, Any] = checked
    return stored


def check_data(definition: Definition, timetable: Timetable) -> str | None:
    """Why no run could start with the data of this timetable. For a function, this is not known."""
    if callable(timetable.data):
        return None
    try:
        start.start_of(definition, timetable.data, key=None)
    except SequenceError as error:
        return str(error)
    return None


def _logged(sequence: str, timetable: Timetable, data: Mapping[str, Any] | None) -> dict[str, Any]:
    visible_data = None if data is None else redact(dict(data), registry.hidden_by(sequence))
    return {**timetable.to_json(), "data": visible_data}
