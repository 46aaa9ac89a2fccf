"""Time limits and shutdowns: Dramatiq raises them in a worker thread at any point of the code."""

from __future__ import annotations

import logging
from typing import Any

import dramatiq
from django.db import connections
from dramatiq.middleware import ShutdownNotifications, TimeLimit
from dramatiq.middleware.threading import Interrupt

from . import current

logger = logging.getLogger("sequences")

__all__ = ["Interrupt", "disarm", "discard_connection", "own_connection"]


def disarm() -> None:
    """From here on neither a time limit nor a shutdown strikes this thread's message.

    The hooks for a skipped message do nothing but this. One that is raised just now still
    arrives: what follows must be right with it too.
    """
    delivery = current.delivery()
    if delivery is None:
        return
    broker = dramatiq.get_broker()
    for middleware in broker.middleware:
        if isinstance(middleware, TimeLimit | ShutdownNotifications):
            disarm: Any = middleware.after_skip_message
            disarm(broker, delivery.message)


def own_connection(using: str) -> None:
    """Begin outside of any transaction: one that was left open here is not ours."""
    if connections[using].in_atomic_block:
        discard_connection(using)


def discard_connection(using: str) -> None:
    """Forget this thread's connection, in whatever state an interrupt has left it.

    Inside a transaction Django only marks a connection as closed, to be reset by the end of the
    block; but the block is gone. A wrapper of the same settings takes its place.
    """
    connection: Any = connections[using]
    connections[using] = connection.copy()
    connection.in_atomic_block = False
    connection.run_on_commit = []
    try:
        connection.close()
    except Exception:
        logger.debug("A connection that is thrown away did not close.", exc_info=True)
