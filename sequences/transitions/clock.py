"""The database's own clock, which tests can move, and how long things last by it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import connections

from . import periods
from .backends import backend_of
from .periods import EARLY, grace, lease, longest_lease, move, shortest_lease

__all__ = [
    "EARLY",
    "grace",
    "lease",
    "longest_lease",
    "moment",
    "move",
    "moved",
    "now",
    "now_beside",
    "shortest_lease",
]


def moved() -> datetime.timedelta:
    """How far tests have moved the clock."""
    return periods.moved


def now(using: str) -> datetime.datetime:
    """The time of the database at this statement, aware, in UTC."""
    return backend_of(using).now(connections[using]) + periods.moved


def now_beside(rows: str, values: Sequence[Any], using: str) -> datetime.datetime | None:
    """The same, where ``FROM … WHERE …`` finds a row; None: it finds none. One statement."""
    current = backend_of(using).now_beside(rows, values, connections[using])
    return None if current is None else current + periods.moved


def moment(
    wait: datetime.timedelta | datetime.datetime, now: datetime.datetime
) -> datetime.datetime:
    """When a wait that counts from now is over; a moment is that moment."""
    return now + wait if isinstance(wait, datetime.timedelta) else wait
