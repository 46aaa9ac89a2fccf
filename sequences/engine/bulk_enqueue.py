"""Many messages for the broker at once, where it can take them so.

Dramatiq gives a broker one message at a time, and waits for each answer. For Redis the calls of
many wait in a pipeline here; a broker that has a method `enqueue_many`, as our `PostgresBroker`
has, is asked for that. Each message passes the hooks of Dramatiq's middleware: those before its
enqueue, and once the broker has it, those after.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dramatiq import Message

#: A message, and in how many milliseconds it may be had.
Delayed = tuple[Message[Any], int | None]
#: Gives messages to a broker: of each, what kept it from there. None: the broker has it. What it
#: raises says that nobody knows.
EnqueueMany = Callable[[Sequence[Delayed]], list[Exception | None]]


def enqueue_many_of(broker: Any) -> EnqueueMany | None:
    """What gives many messages to this broker at once. None: it takes them one by one."""
    own: EnqueueMany | None = getattr(broker, "enqueue_many", None)
    if own is not None:
        return own
    # Its module cannot be imported without redis.
    module = sys.modules.get("dramatiq.brokers.redis")
    if module is None or type(broker) is not module.RedisBroker or "enqueue" in vars(broker):
        return None
    from .redis_pipeline import can_pipeline, enqueue_many

    return partial(enqueue_many, broker) if can_pipeline(broker) else None
