"""What this worker sees of its queues: the evidence that a message is lost, and not only late."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from ..transitions import clock

#: Seconds for which a queue must give nothing to a consumer that could take more. An idle
#: consumer of Redis asks once a second at the least.
DRAINED_AFTER_SECONDS = 2.5


class QueueMonitor:
    """Of the queues that one worker consumes."""

    def __init__(self, worker: Any = None) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._newest: dict[str, datetime] = {}
        self._in_hand: Counter[str] = Counter()
        self._last: dict[str, float] = {}

    def began(self, queue: str, sent_at: int, *, first: bool) -> None:
        """A message was taken up. `sent_at` is in milliseconds; `first` if it is no retry."""
        with self._lock:
            self._in_hand[queue] += 1
            self._last[queue] = time.monotonic()
            sent = _moment(sent_at)
            if first and sent > self._newest.get(queue, sent.min.replace(tzinfo=UTC)):
                self._newest[queue] = sent

    def ended(self, queue: str) -> None:
        """It is done with."""
        with self._lock:
            self._in_hand[queue] -= 1

    def look(self) -> None:
        """Note which queues have given something; called at every sweep."""
        now = time.monotonic()
        for queue in self.queues():
            self._last.setdefault(queue, now)
            if not self._could_take_more(queue):
                self._last[queue] = now

    def is_message_lost(self, queue: str, queued_at: datetime, now: datetime) -> bool | None:
        """Whether a message dispatched then would have arrived, here or at another worker.

        Either one that was dispatched a grace later has arrived, or the queue has nothing more.
        None: this worker does not consume the queue.
        """
        if queue not in self.queues():
            return None
        newest = self._newest.get(queue)
        if newest is not None and newest + clock.moved() >= queued_at + clock.grace():
            return True
        return self._is_drained(queue)

    def knows(self, actor: str) -> bool:
        """Whether a message of this actor that comes here is taken up: others are dropped."""
        return self._worker is not None and actor in self._worker.broker.actors

    def queues(self) -> Collection[str]:
        """Those that the worker consumes, without the ones for delayed messages."""
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
    """When a message says that it was sent: never later than now, or all others would seem lost."""
    now = datetime.now(UTC)
    try:
        return min(datetime.fromtimestamp(sent_at / 1000, UTC), now)
    except (TypeError, ValueError, OverflowError, OSError):
        return datetime.min.replace(tzinfo=UTC)
