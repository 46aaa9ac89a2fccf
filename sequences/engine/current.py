"""What this thread, and this process, are doing just now."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from dramatiq.broker import MessageProxy

from ..data import redaction
from ..definitions import registry

if TYPE_CHECKING:
    # Logging asks this module, and is configured before there are models.
    from ..definitions.definition import Definition
    from ..transitions.failures import Failure
    from ..transitions.types import Change, Claim

#: Set when the worker of this process shuts down.
stopping = threading.Event()


@dataclass(slots=True)
class Delivery:
    """A message that this thread processes, and what became of its retry."""

    message: MessageProxy
    #: The failed attempts that the message knew of when it came: `Retries` counts on it later.
    attempts: int
    #: Whether it was made here, for a step that follows directly: it came from no queue.
    is_own: bool = False
    retry_delay: int | None = None
    retried: bool = False
    #: The attempt that has failed: what is logged until the message is done with is about it.
    failed: CurrentAttempt | None = None


@dataclass(slots=True)
class CurrentAttempt:
    """An attempt of a step, as long as it is executed: what others may see of it."""

    claim: Claim
    #: What its sequence declares; None: what the class of that name does.
    definition: Definition | None = None
    #: The instance that the user's code has.
    sequence: Any = None
    #: What the user's code has come to, once it is done.
    change: Change | None = None
    #: What its sequence hides, once somebody has asked.
    _hidden: tuple[str, ...] | None = None
    #: The claim's data of which they are, and the secrets in it.
    _claim_secrets: tuple[str, frozenset[str]] | None = None
    #: By the monotonic clock; for the heartbeat, which extends the lease of what takes long.
    since: float = field(default_factory=time.monotonic)
    #: As JSON: what the step has told last, and what of that is stored.
    latest_progress: str | None = None
    stored_progress: str | None = None
    #: Whether the step asks if it was cancelled: the heartbeat looks after that.
    is_watched: bool = False
    #: Whether the claim is lost, or the run is being stopped: nothing waits for what is done here.
    is_over: bool = False
    #: Cancels its coroutine, if it has one that is awaited.
    stop: Callable[[], None] | None = None

    def redacted(self, failure: Failure) -> Failure:
        """What is kept of an error: a secret that it quotes may soon be gone from `data`."""
        try:
            secrets = self.secrets()
        except Exception:  # data that holds itself, say: the failure must be recorded all the same
            secrets = self._claimed(self._patterns())
        if not secrets:
            return failure
        message = redaction.hide(failure.message, secrets)
        return replace(
            failure, message=message, traceback=redaction.hide(failure.traceback, secrets)
        )

    def secrets(self) -> frozenset[str]:
        """Those that the step has found, and those that it has put into `data` itself."""
        patterns = self._patterns()
        if not patterns:
            return frozenset()
        data = self.claim.data
        if self._claim_secrets is None or self._claim_secrets[0] is not data:
            self._claim_secrets = data, self._claimed(patterns)
        return self._claim_secrets[1] | redaction.secrets_of(self._visible_data(), patterns)

    def _patterns(self) -> tuple[str, ...]:
        if self.definition is None:  # not found yet, or not there
            return registry.hidden_by(self.claim.sequence)
        if self._hidden is None:
            self._hidden = registry.hidden(self.definition)
        return self._hidden

    def _claimed(self, patterns: tuple[str, ...]) -> frozenset[str]:
        payload = self.claim.payload
        # A value of a step is hidden as if it stood in `data` under the step's name, too.
        values = (json.loads(self.claim.data), payload, {self.claim.step: payload})
        return frozenset().union(*(redaction.secrets_of(value, patterns) for value in values))

    def _visible_data(self) -> Any:
        # Typed data has no keys to go by until it is stored.
        return vars(self.sequence).get("data") if self.sequence is not None else None


#: Of a context, not of a thread: what a step awaits, or calls in another thread, is its own too.
_attempt: ContextVar[CurrentAttempt | None] = ContextVar("sequences_attempt", default=None)


#: What this process executes, by the tokens of the claims: the heartbeat extends their leases.
attempts: dict[int, CurrentAttempt] = {}


class _Thread(threading.local):
    def __init__(self) -> None:
        # A stack: a step that is handed over directly has its message inside another's.
        self.deliveries: list[Delivery] = []


_thread = _Thread()


def push_delivery(message: MessageProxy, *, is_own: bool = False) -> Delivery:
    """This thread begins to process a message."""
    options = message.options
    retries = options.get("retries") if isinstance(options, dict) else None
    delivery = Delivery(message, retries if type(retries) is int else 0, is_own)
    _thread.deliveries.append(delivery)
    return delivery


def delivery() -> Delivery | None:
    """What this thread processes just now."""
    return _thread.deliveries[-1] if _thread.deliveries else None


def failed_attempts() -> int:
    """How many the message that this thread processes knows of."""
    return _thread.deliveries[-1].attempts if _thread.deliveries else 0


def pop_delivery(message: Any) -> list[Delivery]:
    """The message is done with; so is what was begun inside of it and never ended."""
    for index, delivery in enumerate(_thread.deliveries):
        if delivery.message.message_id == message.message_id:
            ended = _thread.deliveries[index:]
            del _thread.deliveries[index:]
            if not index:
                _attempt.set(None)  # an interrupt may have kept an attempt from its end
            return ended
    return []


@contextmanager
def executing(attempt: CurrentAttempt) -> Iterator[None]:
    """While this lasts the attempt is what this context does, and its lease is extended."""
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
    """The attempt was recorded as failed: what Dramatiq decides of this message is about it."""
    if (message := delivery()) is not None:
        message.failed = attempt


def current_attempt() -> CurrentAttempt | None:
    """The attempt that is executed here, or whose failure is being seen to."""
    attempt = _attempt.get()
    if attempt is None and (message := delivery()) is not None:
        return message.failed
    return attempt


def worker() -> str:
    """The name of this worker: host, process, thread, and the mark of the process."""
    name = f"{process()}:{threading.current_thread().name}"
    return f"{name[: 99 - len(_mark)]}~{_mark}"


def process() -> str:
    """The name of this process: host and number."""
    return f"{host()}:{os.getpid()}"


def host() -> str:
    """The name of this machine."""
    return _host[:80]


_host = socket.gethostname()
#: A container that is started again has the host's name and the number of the one before.
_mark = token_hex(2)


def _renew_mark() -> None:
    global _mark
    _mark = token_hex(2)


if hasattr(os, "register_at_fork"):  # where a process begins without one, this module is imported
    os.register_at_fork(after_in_child=_renew_mark)
