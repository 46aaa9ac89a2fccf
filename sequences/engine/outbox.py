"""The transactional outbox: messages are rows of the caller's transaction.

They are published after the commit, or else by the sweep. A broker in the same database gets them
directly.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from functools import partial
from typing import Any

import dramatiq
from django.db import transaction
from dramatiq import Actor, Message

from .. import conf
from ..definitions.steps import as_timedelta, duration_problem
from ..exceptions import InvalidData
from ..models import OutboxMessage
from ..transitions import clock, outbox
from ..utils.durations import to_milliseconds
from . import dispatcher

logger = logging.getLogger("sequences")


def dispatch(message: Message[Any], /, *, delay: timedelta | int | None) -> None:
    """See `sequences.dispatch`."""
    wait = _checked_delay(delay)
    text = _as_json(message)
    using = conf.using()
    broker: Any = dramatiq.get_broker()
    if _shares_transactions(broker, using):
        broker.enqueue(message, delay=None if wait is None else to_milliseconds(wait))
        return
    row = outbox.append(message.actor_name, message.queue_name, text, wait, using)
    if wait is None:
        send = partial(_send_once, row, time.monotonic(), using)
        transaction.on_commit(send, using=using, robust=True)


def send_due(using: str) -> int:
    """For the sweep: send what is due; return how many messages the broker accepted."""
    count = 0
    while rows := outbox.take(using):
        accepted = sum(_send(row, using) for row in rows)
        count += accepted
        if accepted < len(rows) or len(rows) < outbox.MESSAGES_PER_SWEEP:
            break  # a message that the broker does not accept now waits for another sweep
    return count


def unsent(using: str) -> list[Message[Any]]:
    """The messages in the outbox, in order."""
    rows = OutboxMessage.objects.using(using).order_by("pk")
    return [_message_of(row) for row in rows]


def _send_once(row: OutboxMessage, written_at: float, using: str) -> None:
    # The sweep may have read it at the same moment, if the transaction was long.
    is_late = time.monotonic() - written_at > clock.grace().total_seconds() / 2
    if not is_late or outbox.claim(row, using):
        _send(row, using)


def _send(row: OutboxMessage, using: str) -> bool:
    """Send it; return whether the broker accepted it. A rejected message does not affect others."""
    try:
        is_sent = dispatcher.publish(_message_of(row))
    except Exception as error:
        logger.warning(
            "The broker did not accept message %s of actor %s; the sweep will send it again: %r",
            row.pk, row.actor, error,
        )  # fmt: skip
        outbox.put_off(row.pk, row.failures + 1, using)
        return False
    if is_sent:
        outbox.remove(row.pk, using)
    return is_sent


def _message_of(row: OutboxMessage) -> Message[Any]:
    values = json.loads(row.message)
    return Message(**{**values, "args": tuple(values["args"])})


def _shares_transactions(broker: Any, using: str) -> bool:
    shares = getattr(broker, "shares_transactions", None)
    return shares is not None and bool(shares(using))


def _checked_delay(delay: timedelta | int | None) -> timedelta | None:
    if delay is None:
        return None
    if problem := duration_problem(delay):
        call = f"dispatch(delay={delay!r})"
        hint = "Use a timedelta or a number of milliseconds."
        raise InvalidData(f"{call}: {problem}.", path=call, problem=problem, hint=hint)
    return as_timedelta(delay)


def _as_json(message: Any) -> str:
    if not isinstance(message, Message):
        call = "dispatch()" if isinstance(message, Actor) else f"dispatch({message!r:.60})"
        problem = "takes an actor's message"
        hint = "Write dispatch(actor.message(…)), or actor.message_with_options(…)."
        raise InvalidData(path=call, problem=problem, hint=hint)
    try:
        return json.dumps(message.asdict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        path = f"The message of {message.actor_name!r}"
        problem = f"cannot be written as JSON: {error}"
        raise InvalidData(
            path=path, problem=problem, hint="Pass ids, strings and numbers."
        ) from None
