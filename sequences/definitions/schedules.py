"""When a sequence starts on its own: timetables as values, and what to do about a slot that is due.

A slot is a moment of the timetable; all slots are in UTC. Nothing here reads a clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from inspect import iscoroutinefunction, signature
from itertools import islice, pairwise, takewhile
from typing import Any, Literal, TypeAlias
from uuid import uuid4
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from django.conf import settings as django_settings
from django.utils.translation import gettext_noop as _

from ..exceptions import InvalidDefinition, SequenceError, Text
from ..utils.durations import format_duration
from ..utils.text import name_of

Overlap: TypeAlias = Literal["skip", "wait", "allow"]
Missed: TypeAlias = Literal["latest", "all"]
DataSource: TypeAlias = Mapping[str, Any] | Callable[[datetime], Any] | None

#: A slot is missed only if it is later than this: sweeps take time, and workers restart.
ON_TIME = timedelta(seconds=10)
CATCH_UP = timedelta(hours=1)
SHORTEST_INTERVAL = timedelta(seconds=1)
LONGEST_INTERVAL = timedelta(days=3660)
#: A Monday, so that weekly intervals start on Mondays.
ANCHOR = datetime(2001, 1, 1, tzinfo=UTC)
#: The name of the schedule declared by ``Meta.schedule``.
DEFAULT_NAME = "default"
MAX_NAME = 100

_MOMENT = timedelta(microseconds=1)
_FIRST_WINDOW = timedelta(minutes=1)
#: More than a day has at one slot every half hour.
_COMPARED_SLOTS = 50


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When runs start, with what data, and what happens to slots that cannot be kept."""

    data: DataSource = None
    overlap: Overlap = "skip"
    catch_up: timedelta = CATCH_UP
    missed: Missed = "latest"
    jitter: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        for problem, hint in self._problems():
            raise InvalidDefinition(where=str(self), problem=problem, hint=hint)

    def after(self, moment: datetime) -> datetime | None:
        """The first slot after this moment; None: there are no more slots."""
        raise NotImplementedError

    def latest(self, since: datetime, until: datetime) -> datetime | None:
        """The last slot that is neither earlier than `since` nor later than `until`."""
        window = _FIRST_WINDOW
        while True:
            start = max(until - window, since)
            slot = None
            for slot in self.between(start - _MOMENT, until):  # noqa: B007 (the last one counts)
                pass
            if slot is not None or start == since:
                return slot
            window *= 2

    def between(self, moment: datetime, until: datetime) -> Iterator[datetime]:
        """The slots after this moment, up to the other."""
        slot = self.after(moment)
        while slot is not None and slot <= until:
            yield slot
            slot = self.after(slot)

    def start_of(self, slot: datetime, identity: str) -> datetime:
        """When the run of a slot starts: up to `jitter` later, always the same for the same
        slot."""
        if not self.jitter:
            return slot
        digest = sha256(f"{identity} {slot.isoformat()}".encode()).digest()
        fraction = int.from_bytes(digest[:6], "big") / 2**48
        return slot + timedelta(milliseconds=int(fraction * (self.jitter / _MILLISECOND)))

    def timing(self) -> dict[str, Any]:
        """The definition of its slots, as JSON."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Everything except the data."""
        return {
            **self.timing(),
            "overlap": self.overlap,
            "catch_up": self.catch_up.total_seconds(),
            "missed": self.missed,
            "jitter": self.jitter.total_seconds(),
        }

    def fingerprint(self) -> str:
        """Equal for equal declarations, in every process and release."""
        spec = self.to_json()
        try:
            text = json.dumps([spec, self._data_as_json()], sort_keys=True, default=_type)
        except (TypeError, ValueError):  # keys of several types: no run can start with such data
            text = json.dumps(spec, sort_keys=True)
        return sha256(text.encode()).hexdigest()

    def _data_as_json(self) -> Any:
        if not callable(self.data):
            return self.data
        function: Any = self.data
        return f"{function.__module__}.{getattr(function, '__qualname__', '')}"

    def data_name(self) -> str:
        """The name of the function that makes the data, if it is a function."""
        return name_of(self.data) if callable(self.data) else ""

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.overlap not in ("skip", "wait", "allow"):
            yield f"overlap is {self.overlap!r}", 'It must be "skip", "wait" or "allow".'
        if self.missed not in ("latest", "all"):
            yield f"missed is {self.missed!r}", 'It must be "latest" or "all".'
        for name in ("catch_up", "jitter"):
            value = getattr(self, name)
            if not isinstance(value, timedelta) or not timedelta(0) <= value <= LONGEST_INTERVAL:
                problem = Text(_("%(name)s is %(value)r"), name=name, value=value)
                yield problem, _("It must be a timedelta of at most ten years.")
        yield from _data_problems(self.data)


@dataclass(frozen=True, kw_only=True)
class Cron(Timetable):
    """Slots by a cron expression, in a time zone."""

    expression: str
    timezone: str

    def __str__(self) -> str:
        return f"cron({self.expression!r}, timezone={self.timezone!r})"

    def after(self, moment: datetime) -> datetime | None:
        """See `Timetable.after`."""
        return next(self._slots(moment), None)

    def between(self, moment: datetime, until: datetime) -> Iterator[datetime]:
        """See `Timetable.between`."""
        return takewhile(lambda slot: slot <= until, self._slots(moment))

    def _slots(self, moment: datetime) -> Iterator[datetime]:
        for slot in CronSim(self.expression, moment.astimezone(ZoneInfo(self.timezone))):
            # If clocks go back, an hour that occurs twice has its slots once. If they go forward,
            # all slots in the missing hour come at its end, as one.
            if (in_utc := slot.astimezone(UTC)) > moment:
                moment = in_utc
                yield in_utc

    def shortest_gap(self) -> timedelta:
        """The shortest time between two of its next slots."""
        slots = islice(self._slots(ANCHOR), _COMPARED_SLOTS)
        gaps = (after - before for before, after in pairwise(slots))
        return min(gaps, default=LONGEST_INTERVAL)

    def timing(self) -> dict[str, Any]:
        """See `Timetable.timing`."""
        return {"cron": self.expression, "timezone": self.timezone}

    def _problems(self) -> Iterator[tuple[str, str]]:
        yield from _zone_problems(self.timezone)
        yield from _expression_problems(self.expression)
        yield from super()._problems()


@dataclass(frozen=True, kw_only=True)
class Every(Timetable):
    """Slots at a constant interval, counted from an anchor."""

    interval: timedelta
    start: datetime | None = None

    def __str__(self) -> str:
        return f"every({self.interval!r})"

    def after(self, moment: datetime) -> datetime | None:
        """See `Timetable.after`."""
        if self.start is not None and moment < self.start:
            return self.start.astimezone(UTC)
        return self._anchor + ((moment - self._anchor) // self.interval + 1) * self.interval

    def latest(self, since: datetime, until: datetime) -> datetime | None:
        """See `Timetable.latest`."""
        if self.start is not None and until < self.start:
            return None
        slot = self._anchor + (until - self._anchor) // self.interval * self.interval
        return slot if slot >= since else None

    def timing(self) -> dict[str, Any]:
        """See `Timetable.timing`."""
        start = {} if self.start is None else {"start": self._anchor.isoformat()}
        return {"every": self.interval.total_seconds(), **start}

    @property
    def _anchor(self) -> datetime:
        return ANCHOR if self.start is None else self.start.astimezone(UTC)

    def _problems(self) -> Iterator[tuple[str, str]]:
        interval: Any = self.interval
        if not isinstance(interval, timedelta):
            yield f"the interval is {interval!r}", "It must be a timedelta."
        elif not SHORTEST_INTERVAL <= interval <= LONGEST_INTERVAL:
            problem = Text(_("the interval is %(interval)s"), interval=format_duration(interval))
            yield problem, _("It must be at least one second and at most ten years.")
        elif isinstance(self.jitter, timedelta) and self.jitter >= interval:
            yield _("the jitter is not shorter than the interval"), _("Use a shorter jitter.")
        if self.start is not None and _is_naive(self.start):
            yield f"start is {self.start!r}", "It must be a datetime with a time zone."
        yield from super()._problems()


def cron(
    expression: str,
    *,
    timezone: str | tzinfo | None = None,
    data: DataSource = None,
    overlap: Overlap = "skip",
    catch_up: timedelta = CATCH_UP,
    missed: Missed = "latest",
    jitter: timedelta = timedelta(0),
) -> Timetable:
    """Start runs at the times of a cron expression: ``cron("0 3 * * *")`` is every night at three.

    - ``timezone``: a name such as ``"Europe/Berlin"``; by default, the project's `TIME_ZONE`.
    - ``data``: a dict, or a function of the slot (an aware datetime in that time zone).
    - ``overlap``: what to do while the schedule's last run is unfinished: ``"skip"`` the slot,
      ``"wait"`` until the run has ended, or ``"allow"`` both.
    - ``catch_up``: the maximum age of a slot that was missed and still starts a run.
    - ``missed``: if several were missed, start only the ``"latest"``, or ``"all"``.
    - ``jitter``: delays each start by up to this much.

    An expression has five fields, or six with the seconds first. Raises `InvalidDefinition`.
    """
    zone = django_settings.TIME_ZONE if timezone is None else str(timezone)
    return Cron(
        expression=expression, timezone=zone,
        data=data, overlap=overlap, catch_up=catch_up, missed=missed, jitter=jitter,
    )  # fmt: skip


def every(
    interval: timedelta,
    *,
    start: datetime | None = None,
    data: DataSource = None,
    overlap: Overlap = "skip",
    catch_up: timedelta = CATCH_UP,
    missed: Missed = "latest",
    jitter: timedelta = timedelta(0),
) -> Timetable:
    """Start runs at a constant interval: ``every(timedelta(minutes=5))`` is at :00, :05, :10.

    The slots are counted from ``start``, the first slot, or else from midnight on a Monday in UTC;
    never from the end of a run. The other options are those of `cron`; a function as ``data``
    receives the slot in UTC. Raises `InvalidDefinition`.
    """
    return Every(
        interval=interval, start=start,
        data=data, overlap=overlap, catch_up=catch_up, missed=missed, jitter=jitter,
    )  # fmt: skip


def timetable_of(spec: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> Timetable:
    """The timetable that `to_json` wrote. Raises `SequenceError` if this release cannot read it."""
    try:
        options: dict[str, Any] = {
            "data": data,
            "overlap": spec["overlap"],
            "catch_up": timedelta(seconds=spec["catch_up"]),
            "missed": spec["missed"],
            "jitter": timedelta(seconds=spec["jitter"]),
        }
        if "cron" in spec:
            return Cron(expression=spec["cron"], timezone=spec["timezone"], **options)
        start = datetime.fromisoformat(spec["start"]) if "start" in spec else None
        return Every(interval=timedelta(seconds=spec["every"]), start=start, **options)
    except (KeyError, TypeError, ValueError) as error:
        raise SequenceError(f"This release cannot read the schedule {spec!r}: {error!r}") from error


def in_zone(timetable: Timetable, slot: datetime) -> datetime:
    """The slot in the timetable's time zone."""
    return slot.astimezone(ZoneInfo(timetable.timezone)) if isinstance(timetable, Cron) else slot


# What to do about a slot that is due


@dataclass(frozen=True, slots=True)
class Turn:
    """What a schedule does now that it is due."""

    #: The slot whose run starts now; None: no run starts.
    slot: datetime | None
    #: The next slot.
    following: datetime | None
    #: The newest slot that was missed.
    missed: datetime | None = None


def turn_of(
    timetable: Timetable, slot: datetime, now: datetime, identity: str, *, has_waited: bool = False
) -> Turn:
    """What to do at `now` about a schedule whose next slot is due.

    A slot that has waited for another run to end is not missed, however late it is.
    """
    if has_waited or _lateness(timetable, slot, now, identity) <= ON_TIME:
        return Turn(slot, timetable.after(slot))
    if timetable.missed == "all":
        return _oldest_turn(timetable, slot, now, identity)
    return _latest_turn(timetable, slot, now, identity)


def _latest_turn(timetable: Timetable, slot: datetime, now: datetime, identity: str) -> Turn:
    until, latest = now, slot
    while (later := timetable.latest(slot, until)) is not None and later > slot:
        if timetable.start_of(later, identity) <= now:
            latest = later
            break
        until = later - _MOMENT
    following = timetable.after(latest)
    if _lateness(timetable, latest, now, identity) > _patience(timetable):
        return Turn(None, following, missed=latest)
    return Turn(latest, following, missed=timetable.latest(slot, latest - _MOMENT))


def _oldest_turn(timetable: Timetable, slot: datetime, now: datetime, identity: str) -> Turn:
    oldest = now - _patience(timetable)
    if timetable.start_of(slot, identity) >= oldest:
        return Turn(slot, timetable.after(slot))
    # Not before this slot: with a jitter longer than the gap between slots, an earlier one may have
    # started later.
    following = timetable.after(max(slot, oldest - timetable.jitter - _MOMENT))
    while following is not None and timetable.start_of(following, identity) < oldest:
        following = timetable.after(following)
    if following is None:
        return Turn(None, None, missed=slot)
    missed = timetable.latest(slot, following - _MOMENT)
    if timetable.start_of(following, identity) > now:
        return Turn(None, following, missed=missed)
    return Turn(following, timetable.after(following), missed=missed)


def _lateness(timetable: Timetable, slot: datetime, now: datetime, identity: str) -> timedelta:
    return now - timetable.start_of(slot, identity)


def _patience(timetable: Timetable) -> timedelta:
    return max(timetable.catch_up, ON_TIME)


def key_of(name: str, slot: datetime) -> str:
    """The key of the run for this slot."""
    return f"schedule:{name}:{slot.astimezone(UTC).isoformat().replace('+00:00', 'Z')}"


def key_beside(name: str) -> str:
    """The key of a run that somebody starts in addition to the slots."""
    return f"schedule:{name}:now:{uuid4().hex}"


def name_in(key: str) -> str | None:
    """The name of the schedule that started the run with this key, if one did."""
    parts = _KEY.fullmatch(key)
    return None if parts is None else parts[1]


#: A name may contain colons, too.
_KEY = re.compile(r"schedule:(.+):(?:\d{4}-\d\d-\d\dT[\d:.]+Z|now:[0-9a-f]{32})", re.DOTALL)


# Validation

Problems: TypeAlias = Iterator[tuple[str, str]]
_MILLISECOND = timedelta(milliseconds=1)


def name_problems(name: object) -> Problems:
    """Problems with the name of a schedule."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        problem = Text(_("the name of the schedule is %(name)r"), name=name)
        yield problem, _("It must be a string of printable characters.")
    elif len(name) > MAX_NAME:
        problem = Text(_("the name %(name)r… is too long"), name=name[:20])
        yield problem, Text(_("Use at most %(count)d characters."), count=MAX_NAME)


def declaration_problems(options: Mapping[str, Any]) -> Problems:
    """Problems with `schedule` and `schedules` in a Meta."""
    schedule, schedules = options.get("schedule"), options.get("schedules")
    if schedule is not None and schedules:
        yield "it has both schedule and schedules", "Put all of them into schedules."
    for name, timetable in (schedules or {}).items():
        yield from name_problems(name)
        if not isinstance(timetable, Timetable):
            yield f"schedule {name!r} is {timetable!r}", "It must be cron(…) or every(…)."
    if options.get("abstract") and (schedule is not None or schedules):
        yield "it is abstract and has a schedule", "Declare the schedule in a subclass."


def declared_in(options: Mapping[str, Any]) -> dict[str, Timetable]:
    """The schedules of a Meta by name."""
    schedule = options.get("schedule")
    named = {} if schedule is None else {DEFAULT_NAME: schedule}
    return {**named, **(options.get("schedules") or {})}


def _zone_problems(name: object) -> Problems:
    try:
        ZoneInfo(str(name))
    except (ValueError, OSError, LookupError):
        hint = _(
            'Use a name such as "Europe/Berlin". If this system has no time zone database, install '
            "tzdata."
        )
        yield Text(_("%(name)r is not a known time zone"), name=name), hint


#: The error messages of cronsim, for translation.
_CRONSIM_ERRORS = {
    "Wrong number of fields": _("wrong number of fields"),
    "Bad second": _("invalid second"),
    "Bad minute": _("invalid minute"),
    "Bad hour": _("invalid hour"),
    "Bad day-of-month": _("invalid day of the month"),
    "Bad month": _("invalid month"),
    "Bad day-of-week": _("invalid day of the week"),
}


def _expression_problems(expression: object) -> Problems:
    if not isinstance(expression, str):
        yield f"the expression is {expression!r}", 'It must be a string such as "0 3 * * *".'
        return
    try:
        next(CronSim(expression, ANCHOR))
    except CronSimError as error:
        hint = _(
            "Use five fields (minute, hour, day of the month, month, day of the week), or six "
            "with the seconds first."
        )
        problem = _("%(expression)r is not a valid cron expression: %(error)s")
        reason = _CRONSIM_ERRORS.get(str(error), str(error))
        yield Text(problem, expression=expression, error=Text(reason)), hint
    except StopIteration:
        problem = _("%(expression)r matches no date")
        yield Text(problem, expression=expression), _("Use a date that exists.")


def _data_problems(data: Any) -> Problems:
    if data is None or isinstance(data, Mapping):
        return
    if not callable(data):
        yield f"data is {data!r:.60}", "Use a dict, or a function of the slot."
        return
    if iscoroutinefunction(data):
        yield "data is a coroutine function", "Define it without async."
    try:
        signature(data).bind(None)
    except TypeError:
        yield (
            f"{name_of(data)} cannot be called with the slot alone",
            "Take one argument, the slot.",
        )
    except ValueError:  # a builtin without a signature
        return


def _is_naive(moment: Any) -> bool:
    return not isinstance(moment, datetime) or moment.utcoffset() is None


def _type(value: object) -> str:
    return type(value).__qualname__
