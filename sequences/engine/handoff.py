"""After the commit: dispatch what became ready, or execute it right here.

All of this happens in the actor, before Dramatiq acknowledges its message: a process that dies
here leaves rows that the sweep dispatches.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import SkipMessage

from .. import conf
from ..definitions import registry
from ..transitions import compensation, locking, subsequences
from ..transitions.types import Dispatch
from ..utils.text import raises_printable
from . import current, dispatcher, interrupts, recovery
from .executor import StepExecution
from .interrupts import Interrupt

logger = logging.getLogger("sequences")

#: Seconds for which a worker's thread may go on with one run before others have their turn.
DIRECTLY = 10.0


@raises_printable
def perform(step_run_id: int, label: str) -> None:
    """What the actor of every step does with its message."""
    execution: StepExecution | None = None
    try:
        using = conf.using()
        execution = StepExecution(step_run_id, current.failed_attempts(), using)
        interrupts.ensure_clean_connection(using)
        hand_off(execution.live(), label, using)
    except Interrupt as interrupt:
        # A message too many is harmless, a lost one costs time.
        execution = execution or StepExecution(step_run_id, current.failed_attempts(), conf.using())
        dispatcher.send(recovery.recover(execution, interrupt))


def hand_off(ready: list[Dispatch], label: str, using: str) -> None:
    """Dispatch these steps; with ``handoff="direct"`` execute the first of them here."""
    until = time.monotonic() + DIRECTLY
    while ready:
        direct = _choose(ready, label, until)
        dispatcher.send([dispatch for dispatch in ready if dispatch is not direct])
        ready = _perform_directly(direct, using) if direct else []


def child_ended(parent: int, using: str) -> None:
    """The parent's step may have waited for the last of its children, or undoes them."""
    ready = subsequences.look(parent, using)
    if not ready:
        # Who has locked the parent looks itself, or leaves that to the sweep.
        with suppress(locking.Locked), locking.no_wait():
            ready = compensation.resume(parent, using)
    dispatcher.send(ready)


def _choose(ready: list[Dispatch], label: str, until: float) -> Dispatch | None:
    if current.stopping.is_set() or time.monotonic() > until or not _is_direct(label):
        return None
    delivery = current.delivery()
    if delivery is None:
        return None
    actors = dramatiq.get_broker().actors
    for dispatch in ready:
        here = dispatch.queue == delivery.message.queue_name and dispatch.actor in actors
        if here and dispatch.delay is None:
            return dispatch
    return None


def _is_direct(label: str) -> bool:
    definition = registry.definition_of(label)
    return definition is not None and definition.handoff == "direct"


def _perform_directly(dispatch: Dispatch, using: str) -> list[Dispatch]:
    interrupts.ensure_clean_connection(using)
    return process(dispatch, dramatiq.get_broker(), using)


def perform_here(dispatch: Dispatch, label: str, using: str) -> None:
    """Perform a step outside of the worker's own threads, and hand over what comes next."""
    hand_off(_perform_directly(dispatch, using), label, using)


def process(dispatch: Dispatch, broker: dramatiq.Broker, using: str) -> list[Dispatch]:
    """Process a message of its own, with its hooks, as Dramatiq's worker does."""
    message = MessageProxy(dispatcher.message_for(dispatch))
    try:
        ready = _live(dispatch, message, broker, using)
    except SkipMessage as skip:
        logger.debug("Not run: %s", skip)
        broker.emit_after("skip_message", message)
        return []
    except BaseException as error:
        message.stuff_exception(error)
        _log(error, dispatch, broker)
        broker.emit_after("process_message", message, exception=error)
        return []
    finally:
        message.clear_exception()
    broker.emit_after("process_message", message, result=None)
    return ready


@raises_printable
def _live(
    dispatch: Dispatch, message: MessageProxy, broker: dramatiq.Broker, using: str
) -> list[Dispatch]:
    execution = StepExecution(dispatch.step_run_id, dispatch.attempts, using)
    try:
        broker.emit_before("process_message", message)
        return execution.live()
    except Interrupt as interrupt:
        return recovery.recover(execution, interrupt)


def _log(error: BaseException, dispatch: Dispatch, broker: dramatiq.Broker) -> None:
    """As loud as Dramatiq's worker: what is expected is no error."""
    what = dispatch.step_run_id, dispatch.actor
    actor = broker.actors.get(dispatch.actor)
    throws = actor.options.get("throws") if actor is not None else None
    if isinstance(error, RateLimitExceeded | Retry):
        logger.debug("Step run %s (actor %s) will be retried: %s", *what, type(error).__name__)
    elif throws and isinstance(error, throws):
        logger.info("Step run %s (actor %s) failed with %s.", *what, type(error).__name__)
    else:
        logger.error("Step run %s (actor %s) failed.", *what, exc_info=error)
