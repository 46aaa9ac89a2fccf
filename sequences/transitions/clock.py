"""The database's own clock, which tests can move, and durations by it."""

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
    "lead",
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
    #: The time that it has read last, and its own clock at that moment.
    latest: tuple[datetime.datetime | None, float] = (None, 0.0)
    #: How far the database's clock was ahead of this process's own one then.
    lead = datetime.timedelta()


_thread = _Thread()


def moved() -> datetime.timedelta:
    """How far tests have moved the clock."""
    return periods.moved


def now(using: str) -> datetime.datetime:
    """The database's time at this statement, aware, in UTC."""
    current = backend_of(using).now(connections[using])
    _thread.lead = current - datetime.datetime.now(datetime.UTC)
    read = current + periods.moved
    _thread.latest = (read, time.monotonic())
    return read


def lead() -> datetime.timedelta:
    """How far the database's clock is ahead of this process's own one, in whole seconds, by the
    time that this thread has read last. Negative: it is behind."""
    return datetime.timedelta(seconds=round(_thread.lead.total_seconds())) + periods.moved


def read_at(moment: datetime.datetime) -> float:
    """The `time.monotonic()` of this process at which its thread read that time of the database.

    Waits counted from it are not delayed by whatever was done since. If this is not the latest time
    that the thread has read, it is now.
    """
    latest, at = _thread.latest
    return at if latest == moment else time.monotonic()


def now_beside(rows: str, values: Sequence[Any], using: str) -> datetime.datetime | None:
    """The same, if ``FROM … WHERE …`` finds a row; None: it finds none. A single statement."""
    current = backend_of(using).now_beside(rows, values, connections[using])
    return None if current is None else current + periods.moved


def moment(
    wait: datetime.timedelta | datetime.datetime, now: datetime.datetime
) -> datetime.datetime:
    """When a wait that starts now is over; a moment is returned as it is."""
    return now + wait if isinstance(wait, datetime.timedelta) else wait
