"""What this worker sees of its queues: evidence that a message is lost, and not only late."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from ..transitions import clock

#: In seconds. A queue is drained if it yields nothing for this long to a consumer with room; an
#: idle Redis consumer polls at least once a second.
DRAINED_AFTER_SECONDS = 2.5


class QueueMonitor:
    """The monitor of the queues that one worker consumes."""

    def __init__(self, worker: Any = None) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._newest: dict[str, datetime] = {}
        self._in_hand: Counter[str] = Counter()
        self._last: dict[str, float] = {}

    def began(self, queue: str, sent_at: int, *, first: bool) -> None:
        """A message was taken from a queue. `sent_at` is in milliseconds; `first`: it is not a
        retry."""
        with self._lock:
            self._in_hand[queue] += 1
            self._last[queue] = time.monotonic()
            sent = _moment(sent_at)
            if first and sent > self._newest.get(queue, sent.min.replace(tzinfo=UTC)):
                self._newest[queue] = sent

    def ended(self, queue: str) -> None:
        """A message is done."""
        with self._lock:
            self._in_hand[queue] -= 1

    def look(self) -> None:
        """Note which queues have yielded something; called on every sweep."""
        now = time.monotonic()
        for queue in self.queues():
            self._last.setdefault(queue, now)
            if not self._could_take_more(queue):
                self._last[queue] = now

    def is_message_lost(self, queue: str, queued_at: datetime, now: datetime) -> bool | None:
        """Whether a message dispatched at that time would have arrived, here or at another worker.

        It would, if a message that was dispatched a grace later has arrived, or if the queue is
        empty. None: this worker does not consume the queue. The calling thread has just read `now`.
        """
        if queue not in self.queues():
            return None
        newest = self._newest.get(queue)
        # Messages have the time of whoever sent them, and rows that of the database.
        if newest is not None and newest + clock.lead() >= queued_at + clock.grace():
            return True
        return self._is_drained(queue)

    def knows(self, actor: str) -> bool:
        """Whether this worker would run a message of this actor; it drops those of unknown
        actors."""
        return self._worker is not None and actor in self._worker.broker.actors

    def queues(self) -> Collection[str]:
        """The queues that the worker consumes, without those for delayed messages."""
        if self._worker is None:
            return ()
        return {name for name in list(self._worker.consumers) if not name.endswith(".DQ")}

    def _is_drained(self, queue: str) -> bool:
        last = self._last.get(queue)
        return last is not None and time.monotonic() - last >= DRAINED_AFTER_SECONDS

    def _could_take_more(self, queue: str) -> bool:
        waiting = sum(
            item.message.queue_name == queue for item in list(self._worker.work_queue.queue)
        )
        consumer = self._worker.consumers.get(queue)
        if waiting or consumer is None:
            return False
        return bool(consumer.is_alive()) and self._in_hand[queue] < consumer.prefetch


def _moment(sent_at: Any) -> datetime:
    """When a message was sent, as it says, but never later than now: others would seem lost."""
    now = datetime.now(UTC)
    try:
        return min(datetime.fromtimestamp(sent_at / 1000, UTC), now)
    except (TypeError, ValueError, OverflowError, OSError):
        return datetime.min.replace(tzinfo=UTC)
