"""Actors' messages that wait for the broker: written with what they are about, deleted when sent.

A message may be sent twice: if the process dies between the two, the row stays.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import connections

from ..models import OutboxMessage
from . import clock
from .locking import transact
from .periods import MAX_LOOK_INTERVAL

#: The number of messages that one sweep takes at a time.
MESSAGES_PER_SWEEP = 200


def append(
    actor: str, queue: str, message: str, delay: timedelta | None, using: str
) -> OutboxMessage:
    """Write it, in the caller's transaction.

    Without a delay, the caller sends it after the commit, and the sweep only if that is overdue.
    """
    now = clock.now(using)
    return OutboxMessage._base_manager.using(using).create(
        actor=actor,
        queue=queue,
        message=message,
        created_at=now,
        wake_at=now + (clock.grace() if delay is None else delay),
    )


def take(using: str) -> list[OutboxMessage]:
    """Take messages that are due; postpone them, so that no other sweep takes them for now."""
    rows = OutboxMessage._base_manager.using(using)
    if not rows.filter(wake_at__lte=clock.now(using)).exists():
        return []
    return transact(using, lambda: _take(using))


def _take(using: str) -> list[OutboxMessage]:
    now = clock.now(using)
    skips = connections[using].features.has_select_for_update_skip_locked
    due = OutboxMessage._base_manager.using(using).filter(wake_at__lte=now)
    rows = list(
        due.order_by("wake_at", "pk").select_for_update(skip_locked=skips)[:MESSAGES_PER_SWEEP]
    )
    for row in rows:
        row.wake_at = now + _pause(row.failures)
    OutboxMessage._base_manager.using(using).bulk_update(rows, ["wake_at"])
    return rows


def _pause(failures: int) -> timedelta:
    return min(clock.grace() * (1 << min(failures, 10)), MAX_LOOK_INTERVAL)


def remove(message_id: int, using: str) -> None:
    """The broker has accepted it."""
    rows = OutboxMessage._base_manager.using(using).filter(pk=message_id)
    transact(using, lambda: rows._raw_delete(using))


def put_off(message_id: int, failures: int, using: str) -> None:
    """The broker did not accept it: the next attempt waits longer."""
    later = clock.now(using) + _pause(failures)
    rows = OutboxMessage._base_manager.using(using).filter(pk=message_id)
    transact(using, lambda: rows.update(failures=failures, wake_at=later))


def claim(message: OutboxMessage, using: str) -> bool:
    """Whether the caller should still send it: no sweep has taken it since it was written."""
    rows = OutboxMessage._base_manager.using(using)
    rows = rows.filter(pk=message.pk, wake_at=message.wake_at)
    later = clock.now(using) + clock.grace()
    return bool(transact(using, lambda: rows.update(wake_at=later)))
