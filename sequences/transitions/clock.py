"""The database's own clock, which tests can move."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import connections
from django.utils import timezone

from .. import conf

_moved = timedelta(0)

#: A message may arrive some milliseconds before the time that the database shows.
EARLY = timedelta(milliseconds=50)


def move(by: timedelta) -> None:
    """Move the clock. Only `sequences.testing` does."""
    global _moved
    _moved += by


def moved() -> timedelta:
    """How far the clock was moved."""
    return _moved


_CLOCKS = {"postgresql": "STATEMENT_TIMESTAMP()", "mysql": "UTC_TIMESTAMP(6)"}


def now(using: str) -> datetime.datetime:
    """The time of the database at this statement, aware, in UTC."""
    if connections[using].vendor == "sqlite":
        return timezone.now() + _moved
    current = now_beside("", (), using)
    assert current is not None
    return current


def now_beside(rows: str, values: Sequence[Any], using: str) -> datetime.datetime | None:
    """The same, where ``FROM … WHERE …`` finds a row; None: it finds none. One statement."""
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_CLOCKS.get(connection.vendor, 1)} {rows}", values)
        found = cursor.fetchone()
    if found is None:
        return None
    value = timezone.now() if connection.vendor == "sqlite" else found[0]
    if timezone.is_naive(value):
        value = value.replace(tzinfo=datetime.UTC)
    current: datetime.datetime = value + _moved
    return current


def sql() -> str:
    """The same as an expression of PostgreSQL."""
    if not _moved:
        return "STATEMENT_TIMESTAMP()"
    return f"(STATEMENT_TIMESTAMP() + INTERVAL '{_moved.total_seconds()!r} seconds')"


def shortest_lease() -> timedelta:
    """What must be left of `wake_at` for a claim to leave it, and its index, as it is."""
    return timedelta(seconds=3 * conf.settings.heartbeat)


def longest_lease() -> timedelta:
    """What may be left of it, lest a dead worker be noticed too late."""
    return timedelta(seconds=max(conf.settings.grace, conf.settings.lease))


def grace() -> timedelta:
    """How long a dispatched step may stay unclaimed before the sweep looks at it."""
    return timedelta(seconds=conf.settings.grace)


def lease() -> timedelta:
    """How long a claim holds without a heartbeat."""
    return timedelta(seconds=conf.settings.lease)
