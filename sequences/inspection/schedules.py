"""A schedule as people see it: its state, a sentence, and the actions that are possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.db.models import Q
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..data.redaction import hide, secrets_of
from ..definitions import registry
from ..definitions.schedules import Cron, Every, Timetable, timetable_of
from ..exceptions import SequenceError
from ..models import Schedule, SequenceRun
from ..transitions import clock
from .snapshot import HEAVY, title_of, visible
from .wording import format_duration

#: A schedule that has been due for this long is late: something should have started it.
LATE_AFTER = timedelta(minutes=1)

ORPHANED, PAUSED, FAILING, LATE, WAITING, OVER, ACTIVE = (
    "orphaned", "paused", "failing", "late", "waiting", "over", "active",
)  # fmt: skip
STATES: dict[str, str | Promise] = {
    ACTIVE: _("active"),
    WAITING: _("waiting"),
    LATE: _("late"),
    FAILING: _("failing"),
    PAUSED: _("paused"),
    ORPHANED: _("orphaned"),
    OVER: _("ended"),
}


@dataclass(frozen=True)
class ScheduleSnapshot:
    """One schedule, at a time of the database."""

    row: Schedule
    now: datetime
    #: The last run that it started, if that still exists.
    last_run: SequenceRun | None

    @property
    def title(self) -> str:
        """The name of its sequence, for people."""
        return title_of(self.row.sequence)

    @cached_property
    def is_known(self) -> bool:
        """Whether this code has its sequence."""
        return registry.definition_of(self.row.sequence) is not None

    @cached_property
    def state(self) -> str:
        """One of `STATES`."""
        return next((state for state, is_so in _SIGNS if is_so(self)), ACTIVE)

    @property
    def state_label(self) -> str:
        """The same for people."""
        return str(STATES[self.state])

    @cached_property
    def timetable(self) -> Timetable | None:
        """None: this release cannot read it."""
        try:
            return timetable_of(self.row.spec)
        except SequenceError:
            return None

    @property
    def timing(self) -> str:
        """Its slots, in words."""
        return timing_of(self.timetable)

    @cached_property
    def data(self) -> Any:
        """The data of its runs, without secrets; None if a function makes it."""
        return None if self.data_function else visible(self._data, self.row.sequence)

    @cached_property
    def data_function(self) -> str:
        """The function that makes the data of its runs, if there is one."""
        declared = self._declared
        return declared.data_name() if declared is not None else ""

    @property
    def _data(self) -> Any:
        declared = self._declared
        return self.row.data if declared is None else declared.data

    @cached_property
    def _declared(self) -> Timetable | None:
        definition = registry.definition_of(self.row.sequence)
        if not self.row.is_declared or definition is None:
            return None
        return definition.schedules.get(self.row.name)

    @cached_property
    def secrets(self) -> frozenset[str]:
        """The values in the data of its runs that are hidden."""
        data = self._data if isinstance(self._data, dict) else {}
        return secrets_of(data, registry.hidden_by(self.row.sequence))

    @cached_property
    def error(self) -> str:
        """Why it could not start its run, without secrets."""
        return hide(self.row.error, self.secrets) if self.row.error else ""

    @property
    def late_by(self) -> timedelta:
        """How long ago its run should have started."""
        return self.now - self.row.wake_at if self.row.wake_at else timedelta(0)

    @cached_property
    def sentence(self) -> str:
        """What it is doing now, and why."""
        sentence = _SENTENCES[self.state](self)
        return f"{sentence} {_hiding()}" if self.hides_declaration else sentence

    @property
    def hides_declaration(self) -> bool:
        """Whether the code declares a schedule with this name, which cannot apply."""
        definition = registry.definition_of(self.row.sequence)
        is_own = definition is not None and self.row.name in definition.schedules
        return is_own and not self.row.is_declared

    @cached_property
    def skipped(self) -> str:
        """The last slot that started no run, and why; empty if there was none."""
        row = self.row
        if row.skipped_slot is None:
            return ""
        message = (
            gettext("The slot at %(slot)s was skipped: the last run was unfinished.")
            if row.skip_reason == "overlap"
            else gettext("The slot at %(slot)s was missed: no worker started its run in time.")
        )
        return message % {"slot": moment(row.skipped_slot)}

    @property
    def actions(self) -> list[str]:
        """The actions that its state allows."""
        return list(_actions(self))


def moment(when: datetime) -> str:
    """A time in the viewer's time zone."""
    return date_format(timezone.localtime(when), "DATETIME_FORMAT")


def timing_of(timetable: Timetable | None) -> str:
    """Its slots, in words."""
    if isinstance(timetable, Cron):
        return gettext("“%(expression)s” in %(zone)s") % {
            "expression": timetable.expression,
            "zone": timetable.timezone,
        }
    if isinstance(timetable, Every):
        return gettext("every %(interval)s") % {"interval": format_duration(timetable.interval)}
    return gettext("unknown")


def of(row: Schedule, using: str) -> ScheduleSnapshot:
    """The snapshot of one schedule."""
    return of_many([row], using)[0]


def of_many(rows: Iterable[Schedule], using: str) -> list[ScheduleSnapshot]:
    """The snapshots of several schedules, with two queries."""
    rows = list(rows)
    now = clock.now(using)
    ids = [row.last_run_id for row in rows if row.last_run_id is not None]
    runs = SequenceRun.objects.using(using).defer(*HEAVY).in_bulk(ids) if ids else {}
    return [
        ScheduleSnapshot(row, now, runs.get(row.last_run_id) if row.last_run_id else None)
        for row in rows
    ]


def troubled(using: str, now: datetime, limit: int) -> list[ScheduleSnapshot]:
    """Schedules that are late or failing, most overdue first. One query."""
    late = Q(wake_at__lt=now - LATE_AFTER, is_waiting=False)
    rows = Schedule.objects.using(using).filter(late | Q(failures__gt=0, wake_at__isnull=False))
    rows = rows.defer("data", "declarations").order_by("wake_at")
    return [ScheduleSnapshot(row, now, None) for row in rows[:limit]]


# The states, in order of urgency


_SIGNS: tuple[tuple[str, Callable[[ScheduleSnapshot], bool]], ...] = (
    (ORPHANED, lambda snapshot: snapshot.row.orphaned_at is not None),
    (PAUSED, lambda snapshot: snapshot.row.paused_at is not None),
    (FAILING, lambda snapshot: bool(snapshot.row.failures) or not snapshot.is_known),
    (WAITING, lambda snapshot: snapshot.row.is_waiting),
    (OVER, lambda snapshot: snapshot.row.wake_at is None),
    (LATE, lambda snapshot: snapshot.late_by > LATE_AFTER),
)


def _hiding() -> str:
    return gettext(
        "The code declares a schedule with the same name, which starts no runs until this one is "
        "removed."
    )


def _orphaned(snapshot: ScheduleSnapshot) -> str:
    return gettext(
        "The code no longer declares it, so it starts no runs. Remove it if that is intended."
    )


def _paused(snapshot: ScheduleSnapshot) -> str:
    assert snapshot.row.paused_at is not None
    return gettext("Paused %(span)s ago: it starts no runs until someone resumes it.") % {
        "span": format_duration(snapshot.now - snapshot.row.paused_at)
    }


def _failing(snapshot: ScheduleSnapshot) -> str:
    if not snapshot.row.failures:
        return gettext("This code has no sequence %(sequence)s, so no run can start.") % {
            "sequence": snapshot.row.sequence
        }
    return gettext("It could not start its run, and will try again in %(span)s: %(error)s") % {
        "span": format_duration(-snapshot.late_by),
        "error": snapshot.error,
    }


def _waiting(snapshot: ScheduleSnapshot) -> str:
    assert snapshot.row.next_slot is not None
    return gettext("The slot at %(slot)s is waiting for the last run to end.") % {
        "slot": moment(snapshot.row.next_slot)
    }


def _late(snapshot: ScheduleSnapshot) -> str:
    return gettext(
        "Its run should have started %(span)s ago. Is a worker of this release running?"
    ) % {"span": format_duration(snapshot.late_by)}


def _over(snapshot: ScheduleSnapshot) -> str:
    return gettext("Its timetable has no more slots.")


def _active(snapshot: ScheduleSnapshot) -> str:
    return gettext("The next run starts in %(span)s.") % {
        "span": format_duration(-snapshot.late_by)
    }


_SENTENCES: dict[str, Callable[[ScheduleSnapshot], str]] = {
    ORPHANED: _orphaned,
    PAUSED: _paused,
    FAILING: _failing,
    WAITING: _waiting,
    LATE: _late,
    OVER: _over,
    ACTIVE: _active,
}


def _actions(snapshot: ScheduleSnapshot) -> Iterator[str]:
    is_orphaned = snapshot.row.orphaned_at is not None
    if snapshot.is_known and not is_orphaned:
        yield "run_now"
    if not is_orphaned:
        yield "pause" if snapshot.row.paused_at is None else "resume"
    if not snapshot.row.is_declared and snapshot.is_known:
        yield "update"
    if not snapshot.row.is_declared or is_orphaned:
        yield "remove"
