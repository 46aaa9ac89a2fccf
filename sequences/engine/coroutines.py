"""`async def` steps: a coroutine runs within the thread, claim and transaction of its step.

Its event loop has a thread of its own, and thread-sensitive code runs in the step's thread, so that
Django's async ORM uses the step's connection and transaction. While that thread waits, exceptions
that Dramatiq raises in it would arrive only after the wait. So this module takes over its time
limit and its shutdown: they cancel the coroutine in its loop, and are raised once it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from asgiref.sync import async_to_sync
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from ..exceptions import Cancelled
from . import current, interrupts
from .current import CurrentAttempt
from .interrupts import Interrupt, Terms

logger = logging.getLogger("sequences")

#: How many seconds a thread waits for the end of a coroutine that it has already cancelled.
END_TIMEOUT_SECONDS = 5.0

#: The coroutines that this process is awaiting.
_awaited: set[Awaiting] = set()


def finish(attempt: CurrentAttempt, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await the coroutine and return its result. Raises its error, or the interrupt that ended
    it."""
    awaiting = Awaiting(attempt, coroutine, interrupts.take_over())
    try:
        async_to_sync(awaiting.run)()
    except Interrupt as interrupt:  # raised just before the interrupts were taken over
        awaiting.stop(interrupt)
        awaiting.ended.wait(END_TIMEOUT_SECONDS)
        raise
    finally:
        coroutine.close()  # was never awaited
    return awaiting.outcome()


def shut_down() -> None:
    """The worker is shutting down: cancel the coroutines that asked to be notified."""
    for awaiting in list(_awaited):
        awaiting.shut_down()


class Awaiting:
    """A coroutine that is being awaited, and what can end it early."""

    def __init__(
        self, attempt: CurrentAttempt, coroutine: Coroutine[Any, Any, Any], terms: Terms
    ) -> None:
        self._attempt, self._coroutine, self._terms = attempt, coroutine, terms
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reason: BaseException | None = None
        self.ended = threading.Event()

    async def run(self) -> None:
        """Runs in the loop: await it, with everything in place that can stop it."""
        self._loop = asyncio.get_running_loop()
        # A task of its own, so that only this is cancelled.
        self._task = self._loop.create_task(self._coroutine)
        try:
            if self._reason is not None:
                self._task.cancel()
            with self._can_be_stopped(), self._has_time():
                await asyncio.wait([self._task])
        finally:
            self.ended.set()

    def outcome(self) -> Any:
        """Its result. A coroutine that returns despite being cancelled has succeeded."""
        error: BaseException | None
        try:
            error = self._task.exception()
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if error is None:
            return self._task.result()
        if self._reason is not None:
            raise self._reason from error
        raise error

    def stop(self, reason: BaseException) -> None:
        """Cancel it, from any thread; raise this reason once it has ended."""
        if self._loop is None:
            self._reason = reason
            return
        with suppress(RuntimeError):  # the loop is closed: the coroutine has ended
            self._loop.call_soon_threadsafe(self._cancel, reason)

    def shut_down(self) -> None:
        """The worker is shutting down: cancel the coroutine if it asked to be notified."""
        if self._terms.notify_shutdown:
            self.stop(Shutdown())

    def _cancel(self, reason: BaseException) -> None:
        if self._reason is None and not self._task.done():
            self._reason = reason
            self._task.cancel()

    @contextmanager
    def _can_be_stopped(self) -> Iterator[None]:
        """Register first, then check, so that a request that came earlier is not missed."""
        self._attempt.is_watched = True
        self._attempt.stop = self._stop_attempt
        _awaited.add(self)
        try:
            if self._attempt.is_over:
                self._stop_attempt()
            if current.stopping.is_set():
                self.shut_down()
            yield
        finally:
            _awaited.discard(self)
            self._attempt.stop = None

    def _stop_attempt(self) -> None:
        claim = self._attempt.claim
        self.stop(Cancelled(step=claim.step, run=claim.run_id))

    @contextmanager
    def _has_time(self) -> Iterator[None]:
        if self._terms.time_limit is None:
            yield
            return
        assert self._loop is not None
        left = self._attempt.since + self._terms.time_limit - time.monotonic()
        timer = self._loop.call_later(max(left, 0), self._time_is_over)
        try:
            yield
        finally:
            timer.cancel()

    def _time_is_over(self) -> None:
        logger.warning("Time limit exceeded. Cancelling step %r.", self._attempt.claim.step)
        self._cancel(TimeLimitExceeded(interrupts.exceeded(self._terms.time_limit)))
