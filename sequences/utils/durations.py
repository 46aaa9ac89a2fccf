"""Durations: one parser and one formatter.

They are shown as ``400 ms``, ``1.2 s``, ``3 min 5 s`` or ``2 d 4 h``. Pages use the decimal
separator and the units of their language, and the parser accepts these, too.
"""

from __future__ import annotations

import re
from datetime import timedelta

#: The units that are shown, in milliseconds.
SHOWN_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1))
_SECONDS_WITH_TENTHS = 10

#: The units that are understood, in seconds. All except the symbols can have a plural s.
_SECONDS_IN = {
    "ms": 0.001, "millisecond": 0.001,
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400, "j": 86400,
    "w": 604800, "week": 604800,
}  # fmt: skip
_ISO = re.compile(
    r"P(?:(?P<days>\d+(?:[.,]\d+)?)D)?"
    r"(?:T(?:(?P<hours>\d+(?:[.,]\d+)?)H)?"
    r"(?:(?P<minutes>\d+(?:[.,]\d+)?)M)?"
    r"(?:(?P<seconds>\d+(?:[.,]\d+)?)S)?)?"
)
_AMOUNT = re.compile(r"(\d+(?:[.,]\d+)?)\s*([a-z]+)\s*(?:,|and)?\s*")


def parse_duration(value: object) -> timedelta | None:
    """Parse milliseconds, ``"90s"``, ``"1 h 30 min"``, ``"3 days"`` or ISO 8601; None if it is not
    valid."""
    try:
        if type(value) is int and value >= 0:
            return timedelta(milliseconds=value)
        if not isinstance(value, str):
            return None
        return _parse_iso(value) if value.startswith("P") else _parse_amounts(value)
    except OverflowError:
        return None


def _parse_iso(text: str) -> timedelta | None:
    match = _ISO.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    amounts = match.groupdict(default="0").items()
    return timedelta(**{unit: float(amount.replace(",", ".")) for unit, amount in amounts})


def _parse_amounts(text: str) -> timedelta | None:
    text = text.strip().lower()
    seconds, end = 0.0, 0
    while amount := _AMOUNT.match(text, end):
        number, unit = amount.groups()
        if (size := _SECONDS_IN.get(unit) or _SECONDS_IN.get(unit.removesuffix("s"))) is None:
            return None
        seconds, end = seconds + float(number.replace(",", ".")) * size, amount.end()
    return timedelta(seconds=seconds) if text and end == len(text) else None


def format_duration(value: timedelta | None, none: str = "") -> str:
    """A duration in its two largest units, cut off and never rounded up; ``none`` for None.

    A negative duration, which clocks that differ can cause, is shown as ``0 ms``.
    """
    if value is None:
        return none
    return " ".join(f"{amount} {unit}" for amount, unit in parts_of(value))


def parts_of(value: timedelta) -> list[tuple[str, str]]:
    """The same as pairs of amount and unit, for other languages."""
    milliseconds = max(to_milliseconds(value), 0)
    if 1000 <= milliseconds < _SECONDS_WITH_TENTHS * 1000:
        return [(_seconds(milliseconds), "s")]
    sizes = [size for _unit, size in SHOWN_UNITS]
    largest = next((i for i, size in enumerate(sizes) if milliseconds >= size), len(sizes) - 1)
    return _parts(milliseconds, largest) or [("0", "ms")]


def format_seconds(seconds: float) -> str:
    """The same for a number of seconds."""
    return format_duration(timedelta(seconds=seconds))


def to_milliseconds(length: timedelta) -> int:
    """In whole milliseconds, as Dramatiq counts, rounded down."""
    return length // timedelta(milliseconds=1)


def _seconds(milliseconds: int) -> str:
    whole, tenth = divmod(milliseconds // 100, 10)
    return f"{whole}.{tenth}" if tenth else str(whole)


def _parts(milliseconds: int, largest: int) -> list[tuple[str, str]]:
    # Below a minute, one unit is enough.
    units = SHOWN_UNITS[largest : largest + (2 if largest < 3 else 1)]
    parts = []
    for unit, size in units:
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append((str(count), unit))
    return parts
