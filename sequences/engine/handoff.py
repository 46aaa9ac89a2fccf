"""After the commit: dispatch what became ready, or execute it right here.

All of this happens in the actor, before Dramatiq acknowledges its message: if the process dies
here, it leaves rows that the sweep dispatches.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import SkipMessage

from .. import conf
from ..definitions import registry
from ..transitions import claims, compensation, locking, subsequences
from ..transitions.types import Dispatch, Offer
from ..utils.text import raises_printable
from . import current, dispatcher, interrupts, recovery
from .executor import StepExecution
from .hooks import DirectBroker, OwnMessage
from .interrupts import Interrupt

logger = logging.getLogger("sequences")

#: How many seconds a worker thread may stay with one run before other messages get their turn.
MAX_TURN_SECONDS = 10.0


@dataclass(eq=False)
class Handoff:
    """Decides what one thread continues with, after the step whose message it received."""

    is_direct: bool
    using: str
    #: The step that is being executed, or the last one.
    execution: StepExecution | None = None
    _until: float | None = None

    def execution_of(self, dispatch: Dispatch) -> StepExecution:
        """The execution of a following step, which may be claimed already."""
        if dispatch.claim is not None:
            self.execution = StepExecution.of(dispatch.claim, self.using)
        else:
            self.execution = StepExecution(dispatch.step_run_id, dispatch.attempts, self.using)
        if self.is_direct:
            self.offer_next(self.execution)
        return self.execution

    def offer_next(self, execution: StepExecution) -> None:
        """Let the commit of this execution claim the next step."""
        token = secrets.randbits(63)
        execution.offer = Offer(token, execution.worker, self.may_execute)

    def may_execute(self, actor: str, queue: str) -> bool:
        """Whether a step of this actor may be executed right here, after the previous one."""
        if not self.is_direct:
            return False
        if self._until is None:
            self._until = time.monotonic() + MAX_TURN_SECONDS
        if current.stopping.is_set() or time.monotonic() > self._until:
            return False
        delivery = current.delivery()
        if delivery is None:
            return False
        return queue == delivery.message.queue_name and actor in dramatiq.get_broker().actors

    def choose(self, ready: list[Dispatch]) -> Dispatch | None:
        """The step to execute right here: the one that is claimed, or the first one possible."""
        for dispatch in ready:
            if dispatch.claim is not None:
                return dispatch
            if dispatch.delay is None and self.may_execute(dispatch.actor, dispatch.queue):
                return dispatch
        return None

    def go_on(self, ready: list[Dispatch]) -> None:
        """Dispatch these steps; with ``handoff="direct"``, execute the first of them here."""
        while ready:
            following = self.choose(ready)
            dispatcher.send([dispatch for dispatch in ready if dispatch is not following])
            ready = self.execute(following) if following else []

    def execute(self, dispatch: Dispatch) -> list[Dispatch]:
        """Execute it with a message of its own, and call the middleware's hooks."""
        interrupts.ensure_clean_connection(self.using)
        return process(dispatch, DirectBroker(dramatiq.get_broker()), self.using, self)


@raises_printable
def perform(step_run_id: int, is_direct: bool) -> None:
    """What the actor of every step does with a message."""
    handoff: Handoff | None = None
    try:
        using = conf.using()
        execution = StepExecution(step_run_id, current.failed_attempts(), using)
        handoff = Handoff(is_direct, using, execution)
        if is_direct:
            handoff.offer_next(execution)
        interrupts.ensure_clean_connection(using)
        handoff.go_on(execution.live())
    except Interrupt as interrupt:
        # A duplicate message is harmless, but a lost one costs time.
        execution = (handoff and handoff.execution) or StepExecution(
            step_run_id, current.failed_attempts(), conf.using()
        )
        dispatcher.send(recovery.recover(execution, interrupt))


def child_ended(parent: int, using: str) -> None:
    """The parent's step may have waited for its last child, or may be undoing its children."""
    ready = subsequences.look(parent, using)
    if not ready:
        # Whoever has locked the parent checks it, or leaves that to the sweep.
        with suppress(locking.Locked), locking.no_wait():
            ready = compensation.resume(parent, using)
    dispatcher.send(ready)


def perform_here(dispatch: Dispatch, label: str, using: str) -> None:
    """Execute a step outside the worker's own threads, and hand off what comes next."""
    definition = registry.definition_of(label)
    is_direct = definition is not None and definition.handoff == "direct"
    handoff = Handoff(is_direct, using)
    handoff.go_on(handoff.execute(dispatch))


def process(
    dispatch: Dispatch,
    broker: dramatiq.Broker | DirectBroker,
    using: str,
    handoff: Handoff | None = None,
) -> list[Dispatch]:
    """Process a message of its own, with hooks, as Dramatiq's worker does."""
    message = OwnMessage(dispatcher.message_for(dispatch))
    try:
        ready = _live(dispatch, message, broker, handoff or Handoff(False, using))
    except SkipMessage as skip:
        logger.debug("Skipped a message: %s", skip)
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
    dispatch: Dispatch,
    message: MessageProxy,
    broker: dramatiq.Broker | DirectBroker,
    handoff: Handoff,
) -> list[Dispatch]:
    execution = handoff.execution_of(dispatch)
    try:
        _before(execution, message, broker)
        execution.delivery = current.delivery()
        return execution.live()
    except Interrupt as interrupt:
        return recovery.recover(execution, interrupt)


def _before(
    execution: StepExecution, message: MessageProxy, broker: dramatiq.Broker | DirectBroker
) -> None:
    try:
        broker.emit_before("process_message", message)
    except Interrupt:
        raise
    except BaseException:  # a middleware skips it: the claimed step waits for the sweep
        execution.leave_place()
        if execution.claim is not None:
            claims.release(execution.claim, execution.using)
        raise


def _log(error: BaseException, dispatch: Dispatch, broker: dramatiq.Broker | DirectBroker) -> None:
    """Log as Dramatiq's worker does: what is expected is not an error."""
    what = dispatch.step_run_id, dispatch.actor
    actor = broker.actors.get(dispatch.actor)
    throws = actor.options.get("throws") if actor is not None else None
    if isinstance(error, RateLimitExceeded | Retry):
        logger.debug("Step run %s (actor %s) will be retried: %s", *what, type(error).__name__)
    elif throws and isinstance(error, throws):
        logger.info("Step run %s (actor %s) failed with %s.", *what, type(error).__name__)
    else:
        logger.error("Step run %s (actor %s) failed.", *what, exc_info=error)
