"""Identifiers that sort by the time of their making."""

from __future__ import annotations

import os
import threading
import time
from uuid import UUID

__all__ = ["uuid7"]

COUNTER_BITS = 42
TAIL_BITS = 32


class _Clock:
    """Milliseconds and a counter within one: never the same pair twice, never backwards."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.milliseconds = -1
        self.counter = 0

    def tick(self) -> tuple[int, int]:
        with self.lock:
            now = time.time_ns() // 1_000_000
            if now > self.milliseconds:
                self._move_to(now)
            elif self.counter + 1 < 1 << COUNTER_BITS:
                self.counter += 1
            else:
                self._move_to(self.milliseconds + 1)
            return self.milliseconds, self.counter

    def _move_to(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds
        # The highest bit stays free, so that the counter has room to grow.
        self.counter = _random(COUNTER_BITS - 1)


def uuid7() -> UUID:
    """A UUID of version 7: 48 bits of Unix milliseconds, a counter of 42 bits, 32 random bits.

    Within a process each one is greater than the one before, also when the system's clock is set
    back (RFC 9562, section 6.2, method 1).
    """
    milliseconds, counter = _clock.tick()
    high, low = counter >> 30, counter & (1 << 30) - 1
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | high << 64
        | 0b10 << 62
        | low << TAIL_BITS
        | _random(TAIL_BITS)
    )


def _random(bits: int) -> int:
    return int.from_bytes(os.urandom((bits + 7) // 8), "big") >> -bits % 8


def _start_clock() -> None:
    global _clock
    _clock = _Clock()


_clock = _Clock()
# A child would go on with its parent's counter, and perhaps with a lock that nobody releases.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_clock)
