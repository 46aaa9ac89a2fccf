"""How long leases and messages last, and how far tests have moved the clock."""

from __future__ import annotations

from datetime import timedelta

from .. import conf

#: How far tests have moved the clock.
moved = timedelta(0)

#: A message may arrive some milliseconds before the time that the database shows.
EARLY = timedelta(milliseconds=50)
#: How long after its time a delayed message counts as lost.
MESSAGE_SLACK = timedelta(seconds=2)
#: The longest time between two checks of what waits, and between two dispatches of it.
MAX_LOOK_INTERVAL = timedelta(minutes=5)


def move(by: timedelta) -> None:
    """Move the clock. Only `sequences.testing` does."""
    global moved
    moved += by


def shortest_lease() -> timedelta:
    """If at least this much is left of `wake_at`, a claim leaves it, and its index, unchanged."""
    return timedelta(seconds=3 * conf.settings.heartbeat)


def longest_lease() -> timedelta:
    """No more than this may be left of it; otherwise, a dead worker would be noticed too late."""
    return timedelta(seconds=max(conf.settings.grace, conf.settings.lease))


def grace() -> timedelta:
    """How long a dispatched step may stay unclaimed before the sweep checks it."""
    return timedelta(seconds=conf.settings.grace)


def lease() -> timedelta:
    """How long a claim lasts without a heartbeat."""
    return timedelta(seconds=conf.settings.lease)
