"""The transactional outbox: messages of plain actors that are sent if a transaction commits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from dramatiq import Message

from .port import get_engine


def dispatch(message: Message[Any], *, delay: timedelta | int | None = None) -> None:
    """Send an actor's message if, and when, the current transaction commits.

    ``dispatch(welcome.message(user.pk))`` writes a row in the database of the runs; in a step, this
    is part of the step's commit. After the commit, the message goes to the broker. If the process
    dies first, or the broker is down, the sweep sends it. It is sent at least once, always with the
    same ``message_id``.

    ``delay``, a timedelta or milliseconds, is stored: the sweep sends the message when it is over.
    Raises `InvalidData` if this is not a message, or if JSON cannot represent its arguments.
    """
    get_engine().dispatch(message, delay=delay)


async def adispatch(message: Message[Any], *, delay: timedelta | int | None = None) -> None:
    """`dispatch`, for asynchronous code."""
    await sync_to_async(dispatch)(message, delay=delay)
