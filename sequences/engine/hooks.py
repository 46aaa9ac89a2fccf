"""The middleware's hooks around a step that follows directly, without a queue.

For each message, a broker calls two hooks of every middleware, most of which do nothing. This calls
only the hooks that a middleware defines itself, and looks them up once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from django_dramatiq.middleware import DbConnectionsMiddleware
from dramatiq import Broker, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.middleware import MiddlewareError

from . import current

Hook = Callable[..., Any]
_BEFORE, _AFTER = "before_process_message", "after_process_message"


class DeliveryMiddleware(Middleware):
    """For middleware that tracks this thread's deliveries, which are tracked here without it."""


class OwnMessage(MessageProxy):
    """A message that came from no queue. Direct attributes: a proxy looks each of them up twice."""

    def __init__(self, message: Any) -> None:
        super().__init__(message)
        self.actor_name, self.queue_name = message.actor_name, message.queue_name
        self.options, self.message_id = message.options, message.message_id


class _Hooks(NamedTuple):
    #: The middleware that these hooks belong to: the broker's may change.
    middleware: list[Middleware]
    before: list[Hook]
    after: list[Hook]


class DirectBroker:
    """The part of the project's broker that a step needs if it is executed right here."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.actors = broker.actors

    def emit_before(self, signal: str, message: MessageProxy) -> None:
        """Call the hooks before a message. Raises the exception that skips it."""
        current.push_delivery(message, is_own=True)
        call_before(_hooks(self._broker).before, self._broker, message)

    def emit_after(self, signal: str, message: MessageProxy, **outcome: Any) -> None:
        """Call the hooks after a message. If it failed or was skipped, all hooks are called."""
        try:
            if signal == "process_message" and outcome.get("exception") is None:
                call_after(_hooks(self._broker).after, self._broker, message, **outcome)
            else:
                self._broker.emit_after(signal, message, **outcome)
        finally:
            current.pop_delivery(message)


_latest: _Hooks | None = None


def _hooks(broker: Broker) -> _Hooks:
    global _latest
    hooks = _latest
    if hooks is None or hooks.middleware != broker.middleware:
        middleware = list(broker.middleware)
        # Those for connections already ran when the last step ended.
        before = own_hooks(middleware, _BEFORE, (DeliveryMiddleware, DbConnectionsMiddleware))
        after = own_hooks(reversed(middleware), _AFTER, (DeliveryMiddleware,))
        _latest = hooks = _Hooks(middleware, before, after)
    return hooks


def own_hooks(
    middleware: Iterable[Middleware], name: str, but: tuple[type, ...] = ()
) -> list[Hook]:
    """The hooks with this name that a middleware defines itself, because all others do nothing."""
    nothing = getattr(Middleware, name)
    hooks = [getattr(each, name) for each in middleware if not isinstance(each, but)]
    return [hook for hook in hooks if getattr(hook, "__func__", None) is not nothing]


def call_before(hooks: Iterable[Hook], broker: Broker, *arguments: Any) -> None:
    """Call them as the broker itself does. Raises the exception that stops what comes after."""
    for hook in hooks:
        try:
            hook(broker, *arguments)
        except MiddlewareError:
            raise
        except Exception:
            _log_failure(hook, broker)


def call_after(hooks: Iterable[Hook], broker: Broker, *arguments: Any, **outcome: Any) -> None:
    """Call them as the broker itself does: none stops the others."""
    for hook in hooks:
        try:
            hook(broker, *arguments, **outcome)
        except Exception:
            _log_failure(hook, broker)


def _log_failure(hook: Hook, broker: Broker) -> None:
    broker.logger.critical("Unexpected failure in %r.", hook, exc_info=True)
