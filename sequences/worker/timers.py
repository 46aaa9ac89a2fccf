"""Short delays, kept precisely: the worker that waits for a step runs it itself.

A broker's consumer checks delayed messages about once a second. Here, a thread sleeps until the
moment comes; then one of a few others runs the step as if its message had just arrived. The row is
due in the database all the same: if this process dies, another one's sweep takes over.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from typing import Any

import dramatiq
from django.db import connections
from dramatiq.brokers.stub import StubBroker

from .. import conf
from ..engine import dispatcher, handoff
from ..transitions.types import Dispatch

logger = logging.getLogger("sequences")

#: How many steps may run here at once, in addition to the worker's own threads. If more become due,
#: they go to the broker.
THREADS = 2


class Timers(threading.Thread):
    """The timers of one worker process, until they are stopped."""

    def __init__(self, worker: Any) -> None:
        super().__init__(name="sequences-timers", daemon=True)
        self._worker = worker
        self._due: list[tuple[float, int, Dispatch]] = []
        self._number = count()
        self._changed = threading.Condition()
        self._stopped = False
        self._idle = threading.Semaphore(THREADS)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sequences-timer")

    def take(self, dispatch: Dispatch) -> bool:
        """Run it after its delay. False: this worker will not, so send it to the broker."""
        is_known = dispatch.actor in dramatiq.get_broker().actors
        if dispatch.delay is None or not is_known or dispatch.queue not in self._worker.consumers:
            return False
        if isinstance(dramatiq.get_broker(), StubBroker):  # its join() waits for its own messages
            return False
        with self._changed:
            if self._stopped:
                return False
            at = (dispatch.since or time.monotonic()) + dispatch.delay / 1000
            heappush(self._due, (at, next(self._number), dispatch))
            self._changed.notify()
        return True

    def run(self) -> None:
        while (dispatch := self._next()) is not None:
            if self._idle.acquire(blocking=False):
                self._pool.submit(self._perform, dispatch)
            else:
                dispatcher.send([_at_once(dispatch)])

    def _next(self) -> Dispatch | None:
        with self._changed:
            while not self._stopped:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heappop(self._due)[2]
                self._changed.wait(wait)
        return None

    def _perform(self, dispatch: Dispatch) -> None:
        try:
            label, _, _ = dispatch.actor.rpartition(".")
            handoff.perform_here(_at_once(dispatch), label, conf.using())
        except Exception:  # the row says what is missing, and the sweep sees it
            logger.exception(
                "Step run %s could not run at its scheduled time.", dispatch.step_run_id
            )
        finally:
            self._idle.release()

    def stop(self) -> None:
        """Accept no more; send those that are waiting to the broker. Does not wait for running
        steps: until this returns, the worker keeps taking new ones."""
        with self._changed:
            self._stopped = True
            waiting, self._due = self._due, []
            self._changed.notify()
        now = time.monotonic()
        dispatcher.send(_later(dispatch, at - now) for at, _, dispatch in waiting)

    def finish(self) -> None:
        """Wait until the running steps have ended."""
        for _ in range(THREADS):
            self._pool.submit(connections.close_all)
        self._pool.shutdown()


def _at_once(dispatch: Dispatch) -> Dispatch:
    return replace(dispatch, delay=None)


def _later(dispatch: Dispatch, seconds: float) -> Dispatch:
    return replace(dispatch, delay=max(int(seconds * 1000), 0) or None)
