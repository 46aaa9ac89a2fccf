"""`async def` steps: a coroutine is awaited in the thread, the claim and the transaction of its
step.

Its loop has a thread of its own, and thread-sensitive code comes back to the thread of the step:
so Django's async ORM has the connection, and the transaction, of the step. That thread waits, and
an exception that Dramatiq raises in it would come when the wait is over. So its time limit and its
shutdown are taken over: they cancel the coroutine in its loop, and are raised when that has ended.
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

#: Seconds that a thread waits for the end of a coroutine which it can no longer do anything for.
END_TIMEOUT_SECONDS = 5.0

#: What is awaited in this process.
_awaited: set[Awaiting] = set()


def finish(attempt: CurrentAttempt, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns. Raises what it raises, or an interrupt that has ended it."""
    awaiting = Awaiting(attempt, coroutine, interrupts.take_over())
    try:
        async_to_sync(awaiting.run)()
    except Interrupt as interrupt:  # raised just before it was taken over
        awaiting.stop(interrupt)
        awaiting.ended.wait(END_TIMEOUT_SECONDS)
        raise
    finally:
        coroutine.close()  # one that was never awaited
    return awaiting.outcome()


def shut_down() -> None:
    """The worker stops: those that want to know are cancelled."""
    for awaiting in list(_awaited):
        awaiting.shut_down()


class Awaiting:
    """A coroutine that is awaited, and what may end it before its time."""

    def __init__(
        self, attempt: CurrentAttempt, coroutine: Coroutine[Any, Any, Any], terms: Terms
    ) -> None:
        self._attempt, self._coroutine, self._terms = attempt, coroutine, terms
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reason: BaseException | None = None
        self.ended = threading.Event()

    async def run(self) -> None:
        """In the loop: await it, with all that may stop it in place."""
        self._loop = asyncio.get_running_loop()
        # A task of its own, which alone is cancelled.
        self._task = self._loop.create_task(self._coroutine)
        try:
            if self._reason is not None:
                self._task.cancel()
            with self._can_be_stopped(), self._has_time():
                await asyncio.wait([self._task])
        finally:
            self.ended.set()

    def outcome(self) -> Any:
        """What it returned. One that was cancelled and returned all the same has succeeded."""
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
        """From any thread: cancel it, and raise this when it has ended."""
        if self._loop is None:
            self._reason = reason
            return
        with suppress(RuntimeError):  # the loop is closed: it has ended meanwhile
            self._loop.call_soon_threadsafe(self._cancel, reason)

    def shut_down(self) -> None:
        """The worker stops: cancel it, if it wants to know of that."""
        if self._terms.notify_shutdown:
            self.stop(Shutdown())

    def _cancel(self, reason: BaseException) -> None:
        if self._reason is None and not self._task.done():
            self._reason = reason
            self._task.cancel()

    @contextmanager
    def _can_be_stopped(self) -> Iterator[None]:
        """First noted, then looked at: what has come before is not missed."""
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
        self._cancel(TimeLimitExceeded())
