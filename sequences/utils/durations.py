"""How long something takes or took, as people read it: ``1.2 s``, ``3 min 5 s``, ``2 d 4 h``.

The units are symbols that stand in every language, so nothing here is translated.
"""

from __future__ import annotations

from datetime import timedelta

#: Each unit, and how many milliseconds it has.
UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1))
_SECONDS_WITH_TENTHS = 10


def duration(value: timedelta | None, none: str = "") -> str:
    """A length of time in its two largest units, cut off and never rounded up; ``none`` of None.

    A negative one, of clocks that differ, is shown as ``0 ms``.
    """
    if value is None:
        return none
    milliseconds = max(value // timedelta(milliseconds=1), 0)
    if 1000 <= milliseconds < _SECONDS_WITH_TENTHS * 1000:
        return _seconds(milliseconds)
    largest = next((i for i, (_, size) in enumerate(UNITS) if milliseconds >= size), len(UNITS) - 1)
    return " ".join(_parts(milliseconds, largest)) or "0 ms"


def duration_of_seconds(seconds: float) -> str:
    """The same of a number of seconds."""
    return duration(timedelta(seconds=seconds))


def _seconds(milliseconds: int) -> str:
    whole, tenth = divmod(milliseconds // 100, 10)
    return f"{whole}.{tenth} s" if tenth else f"{whole} s"


def _parts(milliseconds: int, largest: int) -> list[str]:
    # Below a minute one unit says enough.
    units = UNITS[largest : largest + 2] if largest < 3 else UNITS[largest : largest + 1]
    found = []
    for name, size in units:
        count, milliseconds = divmod(milliseconds, size)
        if count:
            found.append(f"{count} {name}")
    return found
