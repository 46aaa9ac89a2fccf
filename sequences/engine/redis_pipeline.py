"""Sends many messages to Redis in one round trip. Imported only if the broker uses Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from .hooks import call_after, call_before, own_hooks


def can_pipeline(broker: RedisBroker) -> bool:
    """Whether its client is for a single server: a cluster's cannot run scripts in a pipeline."""
    return isinstance(broker.client, redis.Redis)


def enqueue_many(
    broker: RedisBroker, messages: Sequence[tuple[Message[Any], int | None]]
) -> list[Exception | None]:
    """Enqueue all messages; return for each the error that prevented it, or None.

    Raises `redis.RedisError` if the connection breaks: then nobody knows how many were enqueued.
    """
    with broker.client.pipeline(transaction=False) as pipeline:
        collector = _Collector(broker, pipeline)
        errors = [collector.collect(message, delay) for message, delay in messages]
        responses = pipeline.execute(raise_on_error=False)
    answers = iter(zip(collector.sent, responses, strict=True))
    return [before or collector.end(*next(answers)) for before in errors]


class _Collector(RedisBroker):
    """Replaces the broker in Dramatiq's own `enqueue`: collects the calls in a pipeline.

    Calls only the hooks that a middleware defines itself, because most do nothing.
    """

    def __init__(self, broker: RedisBroker, pipeline: Any) -> None:
        vars(self).update(vars(broker))
        self._broker, self._pipeline = broker, pipeline
        self._script = broker.scripts["dispatch"]
        self.scripts = {**broker.scripts, "dispatch": self._call}
        self._before = own_hooks(broker.middleware, "before_enqueue")
        self._after = own_hooks(reversed(broker.middleware), "after_enqueue")
        #: For each message in the pipeline, the arguments of its hooks once it is sent.
        self.sent: list[tuple[Any, ...]] = []
        #: Encoded values that the calls have in common.
        self._written: dict[Any, bytes] = {}

    def collect(self, message: Message[Any], delay: int | None) -> Exception | None:
        """Add a message to the pipeline; return the error if a middleware rejects it."""
        try:
            self.enqueue(message, delay=delay)
        except Exception as error:
            return error
        return None

    def end(self, arguments: tuple[Any, ...], response: Any) -> Exception | None:
        """Handle the response of Redis to a message."""
        if isinstance(response, Exception):
            return response
        call_after(self._after, self._broker, *arguments)
        return None

    def emit_before(self, signal: str, *arguments: Any, **_: Any) -> None:
        """Call the hooks before an enqueue now."""
        call_before(self._before, self._broker, *arguments)

    def emit_after(self, signal: str, *arguments: Any, **_: Any) -> None:
        """Call the hooks after it once it is sent."""
        self.sent.append(arguments)

    def _call(self, *, keys: list[Any], args: list[Any]) -> None:
        written = self._written
        for index, value in enumerate(args[:-2]):  # the last two are the message and its id
            if value not in written:
                written[value] = str(value).encode()
            args[index] = written[value]
        self._script(keys=keys, args=args, client=self._pipeline)
