"""Identifiers that sort by creation time: Python's own where available."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from uuid import UUID

__all__ = ["uuid7"]

COUNTER_BITS = 42
TAIL_BITS = 32


class Uuid7Counter:
    """UUIDs of version 7 for Python before 3.14, according to RFC 9562, section 6.2, method 1.

    They have 48 bits of Unix milliseconds, a counter of 42 bits, and 32 random bits.
    """

    def __init__(self) -> None:
        self.milliseconds = -1
        self.counter = 0

    def __call__(self) -> UUID:
        """Return an id greater than the previous one, even if the system's clock is set back."""
        now = time.time_ns() // 1_000_000
        if now > self.milliseconds:
            self._move_to(now)
        elif self.counter + 1 < 1 << COUNTER_BITS:
            self.counter += 1
        else:
            self._move_to(self.milliseconds + 1)
        high, low = self.counter >> 30, self.counter & (1 << 30) - 1
        time_bits = (self.milliseconds & (1 << 48) - 1) << 80
        tail = low << TAIL_BITS | _random(TAIL_BITS)
        return UUID(int=time_bits | 0x7 << 76 | high << 64 | 0b10 << 62 | tail)

    def _move_to(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds
        # The highest bit starts as zero, to leave room for the counter.
        self.counter = _random(COUNTER_BITS - 1)


def uuid7() -> UUID:
    """Return a UUID of version 7, greater than all earlier ones of this process."""
    with _lock:  # the counters are not thread-safe
        return _make()


def _random(bits: int) -> int:
    return int.from_bytes(os.urandom((bits + 7) // 8), "big") >> -bits % 8


def _start() -> None:
    global _lock, _make
    _lock = threading.Lock()
    if sys.version_info >= (3, 14):
        _make = uuid.uuid7
    else:
        _make = Uuid7Counter()


_lock: threading.Lock
_make: Callable[[], UUID]
_start()
# A forked child would share its parent's counter, and maybe a lock that nobody will release.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start)
