"""How long a lease and a message hold, and how far tests have moved the clock."""

from __future__ import annotations

from datetime import timedelta

from .. import conf

#: How far tests have moved the clock.
moved = timedelta(0)

#: A message may arrive some milliseconds before the time that the database shows.
EARLY = timedelta(milliseconds=50)
#: How long after its time a message that was sent with a delay is taken for lost.
MESSAGE_SLACK = timedelta(seconds=2)
#: The longest time between two looks at what waits, and between two dispatches of it.
MAX_LOOK_INTERVAL = timedelta(minutes=5)


def move(by: timedelta) -> None:
    """Move the clock. Only `sequences.testing` does."""
    global moved
    moved += by


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
