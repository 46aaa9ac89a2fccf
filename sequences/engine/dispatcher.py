"""Sends messages to the broker. A message is a hint: the row is the truth, and the sweep
resends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import dramatiq
from django.db import transaction
from dramatiq import Broker, Message
from dramatiq.errors import QueueNotFound

from ..transitions.types import Dispatch
from .bulk_enqueue import EnqueueMany, enqueue_many_of

logger = logging.getLogger("sequences")


#: The option that marks a step's message, with the format of its arguments: the ids of the run and
#: of the step run. A release understands its own format and all earlier ones.
STEP_OPTION, FORMAT = "sequences", 1
#: How many messages the broker gets at once: about half a megabyte.
MESSAGES_PER_BATCH = 1000


class _Breaker:
    """Stops trying for a while after a failure, because publishing to a broker that is down may
    block."""

    FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0

    def __init__(self) -> None:
        self._open_until = 0.0
        self._pause = self.FIRST_PAUSE_SECONDS

    def is_open(self) -> bool:
        return time.monotonic() < self._open_until

    def failed(self) -> None:
        self._open_until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, self.MAX_PAUSE_SECONDS)

    def succeeded(self) -> None:
        self._pause = self.FIRST_PAUSE_SECONDS


_breaker = _Breaker()


class _Thread(threading.local):
    caught: list[Dispatch] | None = None


_thread = _Thread()


@contextmanager
def capture_dispatches() -> Iterator[list[Dispatch]]:
    """Collect what this thread dispatches instead of sending it, for `sequences.testing`."""
    outer, _thread.caught = _thread.caught, []
    try:
        yield _thread.caught
    finally:
        _thread.caught = outer


def send(dispatches: Iterable[Dispatch]) -> list[Dispatch]:
    """Send the messages, and return those that the broker accepted.

    If the broker is down or rejects one, this is logged and never raised: the row remains, and the
    sweep dispatches it again.
    """
    accepted: list[Dispatch] = []
    iterator = iter(dispatches)
    while batch := list(islice(iterator, MESSAGES_PER_BATCH)):
        accepted += _send(batch)
    return accepted


def send_on_commit(dispatches: list[Dispatch], using: str) -> None:
    """Send them when this thread's current transaction commits."""

    def send_messages() -> None:
        send(dispatches)

    if dispatches:
        transaction.on_commit(send_messages, using=using, robust=True)


def _send(dispatches: list[Dispatch]) -> list[Dispatch]:
    """Send a batch; return what was accepted, by the broker or by a handler."""
    left = [dispatch for dispatch in dispatches if not _is_taken(dispatch)]
    enqueue_many = enqueue_many_of(dramatiq.get_broker()) if len(left) > 1 else None
    refused = _send_one_by_one(left) if enqueue_many is None else _send_many(left, enqueue_many)
    return [dispatch for dispatch in dispatches if id(dispatch) not in refused]


def _is_taken(dispatch: Dispatch) -> bool:
    if _thread.caught is not None:
        _thread.caught.append(dispatch)
        return True
    return dispatch.delay is not None and _delay_handler is not None and _delay_handler(dispatch)


def _send_one_by_one(dispatches: list[Dispatch]) -> set[int]:
    """Send them; return the `id` of each one that the broker did not accept."""
    return {id(dispatch) for dispatch in dispatches if not _send_one(dispatch)}


def _send_one(dispatch: Dispatch) -> bool:
    try:
        return publish(message_for(dispatch), dispatch.delay)
    except Exception as error:
        logger.warning(
            "The broker did not accept the message for step run %s (run %s, actor %s); the sweep "
            "will dispatch it again: %r",
            dispatch.step_run_id,
            dispatch.run_id,
            dispatch.actor,
            error,
        )
        return False


def _send_many(dispatches: list[Dispatch], enqueue_many: EnqueueMany) -> set[int]:
    """The same, for a broker that accepts many messages at once."""
    if _breaker.is_open():
        return set(map(id, dispatches))
    messages = [(message_for(dispatch), dispatch.delay) for dispatch in dispatches]
    try:
        pairs = list(zip(dispatches, enqueue_many(messages), strict=True))
    except Exception as error:  # nobody knows how many it accepted; duplicates are harmless
        pairs = [(dispatch, error) for dispatch in dispatches]
    refused = [(dispatch, error) for dispatch, error in pairs if error is not None]
    if not refused:
        _breaker.succeeded()
        return set()
    _breaker.failed()
    dispatch, reason = refused[0]
    logger.warning(
        "The broker did not accept %s of %s messages, including the one for step run %s (run %s, "
        "actor %s); the sweep will dispatch them again: %r",
        len(refused),
        len(dispatches),
        dispatch.step_run_id,
        dispatch.run_id,
        dispatch.actor,
        reason,
    )
    return {id(dispatch) for dispatch, _ in refused}


def publish(message: Message[Any], delay: int | None = None) -> bool:
    """Send it to the broker; raises what that raises.

    False: the broker has just failed, and is not tried again for a while.
    """
    if _breaker.is_open():
        return False
    try:
        dramatiq.get_broker().enqueue(message, delay=delay)
    except QueueNotFound:  # the broker responds
        raise
    except Exception:
        _breaker.failed()
        raise
    _breaker.succeeded()
    return True


#: Holds messages with a short delay in this process, if it has a worker.
_delay_handler: Callable[[Dispatch], bool] | None = None


def set_delay_handler(take: Callable[[Dispatch], bool] | None) -> None:
    """Offer delayed messages to this handler first; None: send them to the broker."""
    global _delay_handler
    _delay_handler = take


def message_for(dispatch: Dispatch) -> Message[None]:
    """The message: ids, and the number of failed attempts, from which `Retries` counts on."""
    return Message(
        queue_name=dispatch.queue,
        actor_name=dispatch.actor,
        args=(str(dispatch.run_id), dispatch.step_run_id),
        kwargs={},
        options={
            **dispatch.options,
            STEP_OPTION: FORMAT,
            **({"retries": dispatch.attempts} if dispatch.attempts else {}),
        },
    )


def knows(broker: Broker, dispatch: Dispatch) -> bool:
    """Whether this process could execute it."""
    return dispatch.actor in broker.actors
