"""Limits as people see them: how many places are in use, how many wait, and since when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Min, Q
from django.utils.translation import gettext as _

from ..models import LimitKey, Permit, PermitState, StepRun, StepStatus, StoredLimit, Wait
from ..transitions import clock, lines
from .wording import format_duration, quoted

#: The lines of a limit that are shown, longest wait first.
MAX_LINES = 50
#: The maximum number of permits read for the sentences of some runs.
MAX_WAITS = 1000


@dataclass(frozen=True, slots=True)
class LineSnapshot:
    """One key of a limit."""

    key: str
    in_use: int
    waiting: int
    #: Since when the one that has waited longest is ready.
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class LimitSnapshot:
    """A limit, across all of its lines."""

    row: StoredLimit
    now: datetime
    in_use: int
    waiting: int
    oldest: datetime | None
    #: The number of lines.
    lines: int

    @property
    def numbers(self) -> str:
        """The numbers in force: "5 at once, 10 per 1 s"."""
        return numbers_text(*self.row.numbers)

    @property
    def declared(self) -> str:
        """The numbers in the code."""
        return numbers_text(self.row.concurrency, self.row.rate, self.row.per)


def numbers_text(concurrency: int | None, rate: int | None, per: timedelta | None) -> str:
    """The numbers of a limit, for people."""
    values = {"concurrency": concurrency, "rate": rate, "per": format_duration(per or timedelta())}
    if rate is None:
        return _("%(concurrency)s at once") % values
    if concurrency is None:
        return _("%(rate)s per %(per)s") % values
    return _("%(concurrency)s at once, %(rate)s per %(per)s") % values


def of_many(rows: Iterable[StoredLimit], using: str) -> list[LimitSnapshot]:
    """The snapshots of these limits. Four queries, however many there are."""
    rows = list(rows)
    ids = [row.pk for row in rows]
    permits = Permit.objects.using(using).filter(line__limit__in=ids)
    in_use = _counts(lines.in_use(permits, using), "line__limit")
    waiting = _counts(permits.filter(state=PermitState.WAITING), "line__limit")
    keys = LimitKey.objects.using(using).filter(limit__in=ids).order_by().values("limit")
    count_of = dict(keys.annotate(count=Count("pk")).values_list("limit", "count"))
    now = clock.now(using)
    return [
        LimitSnapshot(
            row,
            now,
            in_use.get(row.pk, (0, None))[0],
            *waiting.get(row.pk, (0, None)),
            count_of.get(row.pk, 0),
        )
        for row in rows
    ]


def lines_of(row: StoredLimit, using: str, limit: int = MAX_LINES) -> list[LineSnapshot]:
    """Its lines, longest wait first, then those in which nobody waits."""
    permits = Permit.objects.using(using).filter(line__limit=row.pk)
    waiting = _counts(permits.filter(state=PermitState.WAITING), "line")
    in_use = _counts(lines.in_use(permits, using), "line")
    first = sorted(waiting, key=lambda pk: waiting[pk][1])[:limit]
    ids = [*first, *(pk for pk in in_use if pk not in waiting)][:limit]
    keys = LimitKey.objects.using(using).in_bulk(ids)
    return [
        LineSnapshot(keys[pk].key, in_use.get(pk, (0, None))[0], *waiting.get(pk, (0, None)))
        for pk in ids
        if pk in keys
    ]


def _counts(permits: Any, by: str) -> dict[int, tuple[int, Any]]:
    rows = permits.order_by().values(by).annotate(count=Count("pk"), first=Min("ready_at"))
    return {row[by]: (row["count"], row["first"]) for row in rows}


@dataclass(frozen=True, slots=True)
class LimitWait:
    """The line in which a step run, or some of its items, are waiting."""

    limit: str
    key: str
    concurrency: int | None
    rate: int | None
    per: timedelta | None
    in_use: int
    #: How many of its items wait there; 0: the step itself does.
    items: int = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no free place."""
        return self.concurrency is not None and self.in_use >= self.concurrency

    @property
    def values(self) -> dict[str, Any]:
        """The values for the messages about it."""
        per = format_duration(self.per or timedelta())
        values = {"limit": quoted(self.limit), "key": self.key, "rate": self.rate, "per": per}
        return {**values, "in_use": self.in_use, "places": self.concurrency}


def waits_of(step_runs: Iterable[StepRun], using: str) -> dict[int, LimitWait]:
    """The line in which each of these waits, by id: its own, its run's, or its items'."""
    rows = {row.pk: row for row in step_runs}
    if not rows:
        return {}
    runs = {row.run_id for row in rows.values()}
    permits = Permit.objects.using(using).filter(run__in=runs)
    waiting = list(
        permits.exclude(state=PermitState.BLOCKED)
        .filter(Q(state=PermitState.WAITING) | Q(step_run__status=StepStatus.WAITING))
        .order_by("state", "pk")
        .select_related("line__limit__override", "step_run")[:MAX_WAITS]
    )
    line_ids = {permit.line_id for permit in waiting}
    in_use = _counts(
        lines.in_use(Permit.objects.using(using).filter(line__in=line_ids), using), "line"
    )
    waits = {}
    for row in rows.values():
        mine = [permit for permit in waiting if _concerns(permit, row)]
        if mine:
            items = sum(1 for permit in mine if permit.step_run_id not in (row.pk, None))
            waits[row.pk] = _wait(mine[-1], in_use.get(mine[-1].line_id, (0, None))[0], items)
    return waits


def _concerns(permit: Permit, row: StepRun) -> bool:
    if permit.run_id != row.run_id:
        return False
    other = permit.step_run
    if other is None:
        return row.wait == Wait.LIMIT
    return other.pk == row.pk or (row.wait == Wait.ITEMS and other.step == row.step)


def _wait(permit: Permit, in_use: int, items: int) -> LimitWait:
    limit = permit.line.limit
    return LimitWait(limit.name, permit.line.key, *limit.numbers, in_use, items)


def neglected(now: datetime, after: timedelta, using: str) -> list[LimitKey]:
    """Some lines in which something has been waiting, and which no sweep has checked, for this
    long."""
    rows = LimitKey.objects.using(using).filter(wake_at__lt=now - after)
    return list(rows.select_related("limit").order_by("wake_at")[:5])
