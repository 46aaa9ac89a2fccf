"""The database's own clock, which tests can move, and how long things last by it."""

from __future__ import annotations

import datetime
import threading
import time
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
    "read_at",
    "shortest_lease",
]


class _Thread(threading.local):
    #: The time that it has read last, and its own clock then.
    latest: tuple[datetime.datetime | None, float] = (None, 0.0)


_thread = _Thread()


def moved() -> datetime.timedelta:
    """How far tests have moved the clock."""
    return periods.moved


def now(using: str) -> datetime.datetime:
    """The time of the database at this statement, aware, in UTC."""
    read = backend_of(using).now(connections[using]) + periods.moved
    _thread.latest = (read, time.monotonic())
    return read


def read_at(moment: datetime.datetime) -> float:
    """This process' `time.monotonic()` at which its thread has read that time of the database.

    What counts from then is not late by all that was done since. If that was not the latest time
    that it has read, it is now.
    """
    latest, at = _thread.latest
    return at if latest == moment else time.monotonic()


def now_beside(rows: str, values: Sequence[Any], using: str) -> datetime.datetime | None:
    """The same, where ``FROM … WHERE …`` finds a row; None: it finds none. One statement."""
    current = backend_of(using).now_beside(rows, values, connections[using])
    return None if current is None else current + periods.moved


def moment(
    wait: datetime.timedelta | datetime.datetime, now: datetime.datetime
) -> datetime.datetime:
    """When a wait that counts from now is over; a moment is that moment."""
    return now + wait if isinstance(wait, datetime.timedelta) else wait
