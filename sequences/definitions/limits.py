"""`Limit`: how many at once, and how many per period, for each key. Values only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID

from ..exceptions import InvalidData, InvalidDefinition

#: The types of a key; None: the limit does not apply.
KeyValue: TypeAlias = str | int | UUID | None
WhenFull: TypeAlias = Literal["wait", "skip", "cancel_oldest"]
WHEN_FULL: tuple[WhenFull, ...] = ("wait", "skip", "cancel_oldest")

MAX_NAME_LENGTH, MAX_KEY_LENGTH = 100, 200  # the columns' lengths
MAX_COUNT = 2**31 - 1
#: The longest period of a rate.
MAX_PER = timedelta(days=366)

_NO_ITEM: Any = object()


@dataclass(frozen=True, slots=True)
class Limit:
    """How many may be active at once, and how many may start per period, under this name.

    ``Limit("bank", concurrency=5, rate=10, per=timedelta(seconds=1))`` allows five at once, and ten
    per second, evenly spaced. Use it for a step with ``limits=[bank]``, or for whole runs with
    ``limits`` in Meta. Steps and runs beyond the limit wait in line, without a worker.

    - ``concurrency``: how many at once.
    - ``rate``: how many may start in the period ``per``, a timedelta or a whole number of
      milliseconds; by default, a second.
    - ``key``: each value of it has a line of its own. A key of ``data`` (for an item that is a
      dict, first a key of the item), or a callable that takes the sequence, and also the item of a
      fan-out if it takes two arguments. The value is a string, an int or a UUID; with None, the
      limit does not apply. Without ``key``, there is one line for all.

    Raises `InvalidDefinition`.
    """

    name: str
    _: KW_ONLY
    concurrency: int | None = None
    rate: int | None = None
    per: timedelta | int = timedelta(seconds=1)
    key: str | Callable[..., KeyValue] | None = None

    def __post_init__(self) -> None:
        for problem, hint in _problems(self):
            raise InvalidDefinition(where=f"Limit {self.name!r}", problem=problem, hint=hint)

    @property
    def period(self) -> timedelta | None:
        """The period of the rate; None if there is no rate."""
        if self.rate is None:
            return None
        return self.per if isinstance(self.per, timedelta) else timedelta(milliseconds=self.per)

    @property
    def numbers(self) -> tuple[int | None, int | None, timedelta | None]:
        """The values that all limits of this name must share."""
        return self.concurrency, self.rate, self.period

    def key_for(self, sequence: Any, data: Mapping[str, Any], item: Any = _NO_ITEM) -> str | None:
        """The key of this step or run, as text. None: it is not limited. Raises `InvalidData`."""
        if self.key is None:
            return ""
        if callable(self.key):
            arguments = (sequence, item) if item is not _NO_ITEM and _takes_two(self.key) else ()
            return self._text(self.key(*(arguments or (sequence,))))
        for values in (item, data):
            if isinstance(values, Mapping) and self.key in values:
                return self._text(values[self.key])
        raise InvalidData(
            path=f"data[{self.key!r}]",
            problem=f"is missing, but limit {self.name!r} needs it as its key",
            hint="Put it into data when you start the run.",
        )

    def _text(self, value: Any) -> str | None:
        if value is None:
            return None
        path, is_text = f"The key of limit {self.name!r}", isinstance(value, str | int | UUID)
        if not is_text or isinstance(value, bool):
            problem = f"is of type {type(value).__name__}"
            raise InvalidData(
                path=path, problem=problem, hint="It must be a string, an int or a UUID."
            )
        text = str(value)
        if len(text) > MAX_KEY_LENGTH:
            problem = f"has {len(text)} characters; the limit is {MAX_KEY_LENGTH}"
            raise InvalidData(path=path, problem=problem, hint="Use a hash of longer keys.")
        return text


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return False
    return True


def _problems(limit: Limit) -> Iterator[tuple[str, str]]:
    name = limit.name
    if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH:
        yield "its name is not valid", f"It must be a string of 1 to {MAX_NAME_LENGTH} characters."
    for option in ("concurrency", "rate"):
        value = getattr(limit, option)
        if value is not None and not (type(value) is int and 0 < value <= MAX_COUNT):
            yield f"{option} is {value!r}", "It must be a positive int."
    if limit.concurrency is None and limit.rate is None:
        yield "it limits nothing", "Set concurrency or rate."
    yield from _period_problems(limit)
    if not (limit.key is None or callable(limit.key) or (isinstance(limit.key, str) and limit.key)):
        yield f"key is {limit.key!r}", "It must be a key of data, or a function of the sequence."
    elif inspect.iscoroutinefunction(limit.key):
        yield "its key is a coroutine function", "Define it without async."


def _period_problems(limit: Limit) -> Iterator[tuple[str, str]]:
    per: object = limit.per
    if isinstance(per, bool) or not isinstance(per, timedelta | int):
        yield f"per is {per!r}", "It must be a timedelta or a whole number of milliseconds."
        return
    length = per if isinstance(per, timedelta) else timedelta(milliseconds=per)
    if not timedelta() < length <= MAX_PER:
        yield f"per is {per!r}", f"It must be positive, and at most {MAX_PER.days} days."


def conflict(limits: Iterable[Limit]) -> str | None:
    """The first name that stands for two different limits."""
    by_name: dict[str, Limit] = {}
    for limit in limits:
        other = by_name.setdefault(limit.name, limit)
        if other.numbers != limit.numbers:
            return limit.name
    return None
