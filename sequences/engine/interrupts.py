"""Time limits and shutdowns, which Dramatiq raises in a worker thread at any point of the code."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import dramatiq
from django.db import Error, InterfaceError, OperationalError, connections
from dramatiq.broker import MessageProxy
from dramatiq.middleware import ShutdownNotifications, TimeLimit, TimeLimitExceeded
from dramatiq.middleware.threading import Interrupt

from ..transitions.backends import backend_of
from ..utils.durations import format_seconds
from . import current

logger = logging.getLogger("sequences")

__all__ = [
    "Interrupt",
    "Terms",
    "disable_interrupts",
    "discard_connection",
    "ensure_clean_connection",
    "exceeded",
    "explain",
    "interrupt_behind",
    "leave_open_transactions",
    "replace_connection",
    "reraise_interrupt",
    "take_over",
]


def disable_interrupts() -> None:
    """From now on, neither a time limit nor a shutdown interrupts this thread's message.

    The hooks for a skipped message do exactly that. An interrupt that is being raised right now
    still arrives, so the code that follows must cope with it, too.
    """
    delivery = current.delivery()
    if delivery is None:
        return
    broker = dramatiq.get_broker()
    for middleware in broker.middleware:
        if isinstance(middleware, TimeLimit | ShutdownNotifications):
            disable_interrupts: Any = middleware.after_skip_message
            disable_interrupts(broker, delivery.message)


@dataclass(frozen=True, slots=True)
class Terms:
    """When Dramatiq would interrupt this thread's message."""

    #: In seconds; None: never.
    time_limit: float | None = None
    notify_shutdown: bool = False


def take_over() -> Terms:
    """From now on, nothing interrupts this thread's message: the caller enforces the limits."""
    delivery = current.delivery()
    if delivery is None:
        return Terms()
    broker, message = dramatiq.get_broker(), delivery.message
    actor = broker.get_actor(message.actor_name)
    notify_shutdown = False
    for middleware in broker.middleware:
        if isinstance(middleware, ShutdownNotifications):
            should_notify: Any = middleware.should_notify
            notify_shutdown = should_notify(actor, message)
    disable_interrupts()
    return Terms(_time_limit(message), notify_shutdown)


def explain(interrupt: Interrupt, step_run_id: int) -> None:
    """Dramatiq raises time limits without a text: add one, which is stored with the failure."""
    if not isinstance(interrupt, TimeLimitExceeded) or interrupt.args:
        return
    delivery = current.delivery()
    # It may have come after the end of that step's own message, inside another one.
    is_its_own = delivery is not None and step_run_id in delivery.message.args
    interrupt.args = (exceeded(_time_limit(delivery.message) if delivery and is_its_own else None),)


def exceeded(limit: float | None) -> str:
    """The text of the failure of an attempt that took longer than this, in seconds."""
    of = "" if limit is None else f" of {format_seconds(limit)}"
    return f"The attempt exceeded its time limit{of}."


def _time_limit(message: MessageProxy) -> float | None:
    """In seconds, as Dramatiq's `TimeLimit` takes it from the message, the actor or itself."""
    broker = dramatiq.get_broker()
    actor, milliseconds = broker.get_actor(message.actor_name), math.inf
    for middleware in broker.middleware:
        if isinstance(middleware, TimeLimit):
            limit = actor.options.get("time_limit", middleware.time_limit)
            milliseconds = message.options.get("time_limit") or limit
    return milliseconds / 1000 if milliseconds <= MAX_TIME_LIMIT_MS else None


#: In milliseconds: a longer limit is no limit, and no timer could take it.
MAX_TIME_LIMIT_MS = 365 * 24 * 60 * 60 * 1000


def reraise_interrupt(error: BaseException) -> None:
    """Raise the interrupt that a database error hides."""
    interrupt = interrupt_behind(error)
    if interrupt is not None:
        raise interrupt


def interrupt_behind(error: BaseException) -> Interrupt | None:
    """The interrupt that a database error replaced.

    An interrupt while a transaction ends leaves the connection in a state that makes the rest of
    that fail. Any other error that a step makes of an interrupt is intentional.
    """
    context = error.__context__ if isinstance(error, Error) else None
    while context is not None and not isinstance(context, Interrupt):
        context = context.__context__
    return context


def ensure_clean_connection(using: str) -> None:
    """Start outside any transaction: one that was left open here is not ours."""
    connection = connections[using]
    open_still = connection.connection is not None and not connection.autocommit
    # Only the driver knows of a BEGIN that was sent as text.
    if connection.in_atomic_block or open_still or backend_of(using).is_in_transaction(connection):
        discard_connection(using)


def replace_connection(error: Error, using: str) -> bool:
    """Replace the connection if the error says that it was dead; return whether it was replaced.

    Never inside a transaction: its earlier statements would be lost silently.
    """
    connection: Any = connections[using]
    if connection.in_atomic_block or not _is_of_connection(error, using):
        return False
    discard_connection(using)
    if pool := getattr(connections[using], "pool", None):
        pool.check()  # its other connections died with this one
    return True


def _is_of_connection(error: Error, using: str) -> bool:
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    return backend_of(using).is_of_connection(error)


def leave_open_transactions(depth: int, error: BaseException, using: str) -> None:
    """Roll back what the user's code has begun and not ended; `depth` blocks are not its own."""
    connection: Any = connections[using]
    if not depth:
        discard_connection(using)
        return
    while len(connection.atomic_blocks) > depth:
        connection.atomic_blocks[-1].__exit__(type(error), error, error.__traceback__)


def discard_connection(using: str) -> None:
    """Discard this thread's connection, in whatever state an interrupt has left it.

    Inside a transaction, Django only marks a connection as closed and resets it at the end of the
    block; but that block is gone. So a new wrapper with the same settings replaces it.
    """
    connection: Any = connections[using]
    connections[using] = connection.copy()
    connection.in_atomic_block = False
    connection.run_on_commit = []
    try:
        connection.close()
    except Exception:
        logger.debug("Could not close a discarded database connection.", exc_info=True)
