"""What this thread, and this process, are doing just now."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from typing import Any

from dramatiq.broker import MessageProxy

#: Set when the worker of this process shuts down.
stopping = threading.Event()


@dataclass(slots=True)
class Delivery:
    """A message that this thread processes, and what became of its retry."""

    message: MessageProxy
    #: The failed attempts that the message knew of when it came: `Retries` counts on it later.
    attempts: int
    retry_delay: int | None = None
    retried: bool = False


class _Thread(threading.local):
    def __init__(self) -> None:
        # A stack: a step that is handed over directly has its message inside another's.
        self.deliveries: list[Delivery] = []


_thread = _Thread()


def begin(message: MessageProxy) -> None:
    """This thread begins to process a message."""
    _thread.deliveries.append(Delivery(message, int(message.options.get("retries", 0))))


def delivery() -> Delivery | None:
    """What this thread processes just now."""
    return _thread.deliveries[-1] if _thread.deliveries else None


def end(message: Any) -> list[Delivery]:
    """The message is done with; so is what was begun inside of it and never ended."""
    for index, one in enumerate(_thread.deliveries):
        if one.message.message_id == message.message_id:
            ended = _thread.deliveries[index:]
            del _thread.deliveries[index:]
            return ended
    return []


def worker() -> str:
    """The name of this worker: host, process, thread."""
    name = threading.current_thread().name
    return f"{_host}:{os.getpid()}:{name}"[:100]


def process() -> str:
    """The name of this process: host and number."""
    return f"{host()}:{os.getpid()}"


def host() -> str:
    """The name of this machine."""
    return _host[:80]


_host = socket.gethostname()
