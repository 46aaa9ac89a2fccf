"""Sends many messages to the broker at once, if it can accept them.

Dramatiq sends a broker one message at a time, and waits for each response. For Redis, the calls for
many messages are collected in a pipeline here; a broker with a method `enqueue_many`, such as our
`PostgresBroker`, does it itself. Each message passes the hooks of Dramatiq's middleware: those
before it is enqueued, and once the broker has it, those after.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dramatiq import Message

#: A message, and its delay in milliseconds.
Delayed = tuple[Message[Any], int | None]
#: Sends messages to a broker; returns for each the error that prevented it, or None if the broker
#: has it. If it raises, nobody knows which messages the broker has.
EnqueueMany = Callable[[Sequence[Delayed]], list[Exception | None]]


def enqueue_many_of(broker: Any) -> EnqueueMany | None:
    """What sends this broker many messages at once. None: it accepts them only one by one."""
    for place in (broker, *type(broker).__mro__):
        if "enqueue_many" in vars(place):
            own: EnqueueMany = broker.enqueue_many
            return own
        if "enqueue" in vars(place):
            break  # whatever it does with each message, it has to do with these
    # Its module cannot be imported without redis.
    module = sys.modules.get("dramatiq.brokers.redis")
    if module is None or type(broker) is not module.RedisBroker or place is broker:
        return None
    from .redis_pipeline import can_pipeline, enqueue_many

    return partial(enqueue_many, broker) if can_pipeline(broker) else None
