"""What this thread and this process are doing right now."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from dramatiq.broker import MessageProxy

from ..data import redaction
from ..definitions import registry

if TYPE_CHECKING:
    # Logging imports this module, and is configured before models can be imported.
    from ..definitions.definition import Definition
    from ..transitions.failures import Failure
    from ..transitions.types import Change, Claim

#: The option of a message that has come back without an attempt, which `Retries` counts as one.
ATTEMPTS_OPTION = "sequences_attempts"

#: Set when the worker of this process shuts down.
stopping = threading.Event()


@dataclass(slots=True)
class Delivery:
    """A message that this thread is processing, and what happened to its retry."""

    message: MessageProxy
    #: The number of failed attempts according to the message.
    attempts: int
    #: Whether it was created here, for a step that follows directly, and came from no queue.
    is_own: bool = False
    retry_delay: int | None = None
    retried: bool = False
    #: Whether its row has counted the attempt that failed.
    is_counted: bool = False
    #: The attempt that failed: log records are about it until the message is done.
    failed: CurrentAttempt | None = None


@dataclass(slots=True, repr=False)  # its claim has all of `data`
class CurrentAttempt:
    """An attempt of a step during its execution, as seen by other code."""

    claim: Claim
    #: The definition of its sequence; None: that of the class with its label.
    definition: Definition | None = None
    #: The instance that the user's code uses.
    sequence: Any = None
    #: The result of the user's code, once it has ended.
    change: Change | None = None
    #: The paths that its sequence hides, once they were needed.
    _hidden: tuple[str, ...] | None = None
    #: The claim's data, and the secrets found in it.
    _claim_secrets: tuple[str, frozenset[str]] | None = None
    #: The secrets in the results of other steps that it has read.
    _result_secrets: set[str] = field(default_factory=set)
    #: When it started, by the monotonic clock; the heartbeat extends the leases of long attempts.
    since: float = field(default_factory=time.monotonic)
    #: The latest progress, as JSON, and the progress that is stored.
    latest_progress: str | None = None
    stored_progress: str | None = None
    #: Whether the step checks if it was cancelled, which the heartbeat then finds out.
    is_watched: bool = False
    #: Whether the claim is lost or the run is stopping, so that the work is no longer needed.
    is_over: bool = False
    #: Cancels its coroutine, if one is being awaited.
    stop: Callable[[], None] | None = None

    def redacted(self, failure: Failure) -> Failure:
        """What may be stored of an error: a secret that it quotes may later be gone from `data`."""
        try:
            secrets = self.secrets()
        except Exception:  # such as data that contains itself; the failure must be recorded anyway
            secrets = self._claimed(self._patterns()) | self._result_secrets
        if not secrets:
            return failure
        message = redaction.hide(failure.message, secrets)
        return replace(
            failure, message=message, traceback=redaction.hide(failure.traceback, secrets)
        )

    def secrets(self) -> frozenset[str]:
        """The secrets that the step was given or has read, and those that it has put into `data`
        itself."""
        patterns = self._patterns()
        if not patterns:
            return frozenset()
        data = self.claim.data
        if self._claim_secrets is None or self._claim_secrets[0] is not data:
            self._claim_secrets = data, self._claimed(patterns)
        own = redaction.secrets_of(self._visible_data(), patterns)
        return self._claim_secrets[1] | self._result_secrets | own

    def keep_secrets(self, value: Any, keys: Iterable[str]) -> None:
        """Remember what is secret in a value that it reads: as it is, and under these keys."""
        if patterns := self._patterns():
            for place in (value, *({key: value} for key in keys)):
                self._result_secrets |= redaction.secrets_of(place, patterns)

    def _patterns(self) -> tuple[str, ...]:
        if self.definition is None:  # not searched for yet, or there are none
            return registry.hidden_by(self.claim.sequence)
        if self._hidden is None:
            self._hidden = registry.hidden(self.definition)
        return self._hidden

    def _claimed(self, patterns: tuple[str, ...]) -> frozenset[str]:
        payload = self.claim.payload
        # A value of a step is hidden as if it were in `data` under the step's name.
        values = (json.loads(self.claim.data), payload, {self.claim.step: payload})
        return frozenset().union(*(redaction.secrets_of(value, patterns) for value in values))

    def _visible_data(self) -> Any:
        # Typed data has no keys to go by until it is stored.
        return vars(self.sequence).get("data") if self.sequence is not None else None


#: Per context, not per thread: it also applies to what a step awaits or calls in another thread.
_attempt: ContextVar[CurrentAttempt | None] = ContextVar("sequences_attempt", default=None)


#: The attempts of this process, by the tokens of their claims; the heartbeat extends their leases.
attempts: dict[int, CurrentAttempt] = {}


class _Thread(threading.local):
    def __init__(self) -> None:
        # A stack: the message of a step that is handed off directly is inside another one.
        self.deliveries: list[Delivery] = []


_thread = _Thread()


def push_delivery(message: MessageProxy, *, is_own: bool = False) -> Delivery:
    """This thread starts to process a message."""
    options = message.options if isinstance(message.options, dict) else {}
    attempts = options.get(ATTEMPTS_OPTION, options.get("retries"))
    delivery = Delivery(message, attempts if type(attempts) is int else 0, is_own)
    _thread.deliveries.append(delivery)
    return delivery


def delivery() -> Delivery | None:
    """The message that this thread is processing."""
    return _thread.deliveries[-1] if _thread.deliveries else None


def failed_attempts() -> int:
    """The number of failed attempts according to the message that this thread is processing."""
    return _thread.deliveries[-1].attempts if _thread.deliveries else 0


def pop_delivery(message: Any) -> list[Delivery]:
    """The message is done, and so is everything that was started inside it and never ended."""
    for index, delivery in enumerate(_thread.deliveries):
        if delivery.message.message_id == message.message_id:
            ended = _thread.deliveries[index:]
            del _thread.deliveries[index:]
            if not index:
                _attempt.set(None)  # an interrupt may have prevented the end of an attempt
            return ended
    return []


@contextmanager
def executing(attempt: CurrentAttempt) -> Iterator[None]:
    """Mark the attempt as running in this context, so that its lease is extended."""
    token = _attempt.set(attempt)
    attempts[attempt.claim.token] = attempt
    try:
        yield
    except BaseException:
        failed(attempt)
        raise
    finally:
        attempts.pop(attempt.claim.token, None)
        _attempt.reset(token)


def failed(attempt: CurrentAttempt) -> None:
    """The attempt was recorded as failed: Dramatiq's decision about this message is about it."""
    if (message := delivery()) is not None:
        message.failed = attempt


def counted() -> None:
    """The row has counted the failed attempt, as `Retries` does in the message."""
    if (message := delivery()) is not None:
        message.is_counted = True


def current_attempt() -> CurrentAttempt | None:
    """The attempt that is running here, or whose failure is being handled."""
    attempt = _attempt.get()
    if attempt is None and (message := delivery()) is not None:
        return message.failed
    return attempt


def worker() -> str:
    """The name of this worker: host, process, thread, and the mark of the process."""
    name = f"{process()}:{threading.current_thread().name}"
    return f"{name[: 99 - len(_mark)]}~{_mark}"


def process() -> str:
    """The name of this process: host and process id."""
    return f"{host()}:{os.getpid()}"


def host() -> str:
    """The name of this machine."""
    return _host[:80]


_host = socket.gethostname()
#: A restarted container has the same host name and process id as before.
_mark = token_hex(2)


def _renew_mark() -> None:
    global _mark
    _mark = token_hex(2)


if hasattr(os, "register_at_fork"):  # without fork, a new process imports this module
    os.register_at_fork(after_in_child=_renew_mark)
