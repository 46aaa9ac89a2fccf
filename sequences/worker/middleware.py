"""The middleware: retry decisions, the heartbeat and the sweep.

The app adds it to the broker, before `Retries`: Dramatiq calls after-hooks in reverse order, so
what `Retries` has decided is known here.
"""

from __future__ import annotations

import logging
from typing import Any

from django.db import Error
from dramatiq import Broker, Message, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Retries

from .. import conf
from ..engine import coroutines, current, dispatcher, outages
from ..engine.hooks import DeliveryMiddleware
from ..transitions import failures
from ..transitions.types import Claim
from .heartbeat import HeartbeatThread
from .queue_monitor import QueueMonitor
from .registration import WorkerRegistration
from .sweeper import Sweeper
from .timers import Timers

logger = logging.getLogger("sequences")

#: The highest number of failed attempts that a row can have.
MAX_ATTEMPTS = 2**31 - 1


def install(broker: Broker) -> None:
    """Add the middleware to this broker, once."""
    if any(isinstance(middleware, SequencesMiddleware) for middleware in broker.middleware):
        return
    has_retries = any(isinstance(middleware, Retries) for middleware in broker.middleware)
    broker.add_middleware(SequencesMiddleware(), before=Retries if has_retries else None)


class SequencesMiddleware(DeliveryMiddleware):
    """Tracks the messages of steps, and runs the threads that this app has in a worker."""

    def __init__(self) -> None:
        self._monitor = QueueMonitor()
        self._heart: HeartbeatThread | None = None
        self._sweeper: Sweeper | None = None
        self._timers: Timers | None = None

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Remember what this thread is doing."""
        if _is_step(message):
            _distrust(message)
        first = not _is_retry(message)
        current.push_delivery(message)
        self._monitor.began(message.queue_name, message.message_timestamp, first=first)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """A message carries only ids; what `Retries` adds about the error is already stored."""
        if not _is_step(message):
            return
        message.options.pop("traceback", None)
        if "retries" in message.options and (delivery := _retried_by(message)) is not None:
            _count_attempts(message, delivery)

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """A copy of the message that this thread is processing is its retry, and has the delay."""
        delivery = _retried_by(message)
        if delivery is not None:
            delivery.retried, delivery.retry_delay = True, delay

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """A failed attempt was recorded: store when its retry is due, or that there is none."""
        delivery = self._ended(message)
        # The claim, not the message, says which step it was: the message may name another worker's.
        if exception is None or delivery is None or delivery.failed is None:
            return
        try:
            self._decided(message, delivery, delivery.failed.claim)
        except Error as error:
            # The row says that the retry is due now, and the sweep checks it after a grace.
            if not outages.noted(error):
                raise

    def _decided(self, message: MessageProxy, delivery: current.Delivery, claim: Claim) -> None:
        if message.failed:
            dispatcher.send(failures.give_up(claim, conf.using()) or [])
        else:
            delay = delivery.retry_delay or 0 if delivery.retried else 0
            failures.set_due(claim, delay, conf.using())

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Nothing was claimed, or the claim was lost: the row has its own time and age."""
        self._ended(message)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Threads take messages before the worker has booted, so the monitor must be there
        first."""
        current.stopping.clear()
        self._monitor = QueueMonitor(worker)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the heartbeat, the sweep and the timers."""
        registration = WorkerRegistration(
            worker.worker_threads, self._monitor.queues, dead_threads=lambda: _dead_threads(worker)
        )
        self._heart = HeartbeatThread(registration)
        self._heart.start()
        interval = conf.settings.sweep_interval
        if interval is not None:
            self._sweeper = Sweeper(self._monitor, interval, registration)
            self._sweeper.start()
            self._timers = Timers(worker)
            self._timers.start()
            dispatcher.set_delay_handler(self._timers.take)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop sweeping, but not the heartbeat: the last steps are still running."""
        current.stopping.set()
        coroutines.shut_down()
        if self._sweeper is not None:
            self._sweeper.stop()
        if self._timers is not None:
            dispatcher.set_delay_handler(None)
            self._timers.stop()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """The last step of the worker's own threads has ended."""
        if self._timers is not None:
            self._timers.finish()
        if self._heart is not None:
            self._heart.stop()

    def _ended(self, message: MessageProxy) -> current.Delivery | None:
        ended = current.pop_delivery(message)
        for delivery in ended:
            if not delivery.is_own:
                self._monitor.ended(delivery.message.queue_name)
        return ended[0] if ended else None


def _dead_threads(worker: Worker) -> int:
    # An error in a middleware's hook ends a thread, and Dramatiq starts no new one.
    return sum(not thread.is_alive() for thread in worker.workers)


def _distrust(message: MessageProxy) -> None:
    """Remove what a step's message never has: anyone who can write to the broker may have added
    it."""
    for name in ("retries", current.ATTEMPTS_OPTION):
        count = message.options.get(name, 0)
        if type(count) is not int or not 0 <= count <= MAX_ATTEMPTS:
            del message.options[name]
    message.options.pop("throws", None)


def _retried_by(message: Message[Any]) -> current.Delivery | None:
    """The delivery in this thread that this message retries."""
    delivery = current.delivery()
    if delivery is None or delivery.message.message_id != message.message_id:
        return None
    return delivery


def _count_attempts(message: Message[Any], delivery: current.Delivery) -> None:
    """It can only claim its step with the number of attempts in the row."""
    if delivery.is_counted:
        message.options.pop(current.ATTEMPTS_OPTION, None)
        message.options["retries"] = delivery.attempts + 1
    else:
        # `Retries` goes on from its own number: its backoff grows, and it gives up at the end.
        message.options[current.ATTEMPTS_OPTION] = delivery.attempts


def _is_retry(message: MessageProxy) -> bool:
    return isinstance(message.options, dict) and bool(message.options.get("retries"))


def _is_step(message: MessageProxy | Message[Any]) -> bool:
    return isinstance(message.options, dict) and dispatcher.STEP_OPTION in message.options
