"""The transactional outbox: messages of plain actors that are sent if a transaction commits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from dramatiq import Message

from .port import get_engine


def dispatch(message: Message[Any], *, delay: timedelta | int | None = None) -> None:
    """Send a message of an actor if, and when, the current transaction commits.

    ``dispatch(welcome.message(user.pk))`` writes a row in the runs' database: in a step, in the
    transaction of its commit. After the commit the message goes to the broker; should the process
    die before that, or the broker be down, the sweep sends it. At least once, and always with the
    same ``message_id``.

    ``delay``, a timedelta or milliseconds, is stored: the sweep sends the message when it is over.
    Raises `InvalidData` for what is no message, and for arguments that JSON cannot represent.
    """
    get_engine().dispatch(message, delay=delay)


async def adispatch(message: Message[Any], *, delay: timedelta | int | None = None) -> None:
    """The same, in asynchronous code."""
    await sync_to_async(dispatch)(message, delay=delay)
