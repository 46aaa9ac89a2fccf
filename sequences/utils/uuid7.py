"""Identifiers that sort by the time of their making: Python's own where it has them."""

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
    """UUIDs of version 7 for Python before 3.14, after RFC 9562, section 6.2, method 1.

    They have 48 bits of Unix milliseconds, a counter of 42 bits, and 32 random bits.
    """

    def __init__(self) -> None:
        self.milliseconds = -1
        self.counter = 0

    def __call__(self) -> UUID:
        """One that is greater than the one before, also when the system's clock is set back."""
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
        # The highest bit stays free, so that the counter has room to grow.
        self.counter = _random(COUNTER_BITS - 1)


def uuid7() -> UUID:
    """A UUID of version 7 that is greater than each one that this process has made before."""
    with _lock:  # the counters are not made for threads
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
# A child would go on with its parent's counter, and perhaps with a lock that nobody releases.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start)
