"""JSON in and out, and merging two changes to it. Pure: no Django, no database."""

from __future__ import annotations

import datetime
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from ..exceptions import Amount, InvalidData, SequenceError, Text

#: For `makemessages`, which looks for this name. The admin translates the messages that it shows.
_ = str

__all__ = ["MAX_DEPTH", "MergeConflict", "depth_of", "dumps", "merge", "normalise", "same"]

#: How deeply lists and dicts may be nested.
MAX_DEPTH = 30
#: How many bytes may be written if there is no limit; otherwise, this many times the limit.
MAX_WRITTEN, TIMES = 20_000_000, 10

Encoder: TypeAlias = type[json.JSONEncoder]
Path: TypeAlias = tuple[str, ...]


class MergeConflict(SequenceError):
    """Two changes to one key cannot be merged."""

    template = "{key} was changed in two different ways."

    path: Path
    key: str


def dumps(value: Any, encoder: Encoder = json.JSONEncoder) -> str:
    """The JSON text of a value; raises ValueError for what JSON lacks (NaN, Infinity)."""
    return json.dumps(
        value, cls=encoder, allow_nan=False, ensure_ascii=False, separators=(",", ":")
    )


def normalise(
    value: Any,
    *,
    encoder: Encoder = json.JSONEncoder,
    max_bytes: int | None = None,
    path: str = "data",
) -> tuple[Any, str]:
    """Pass a value through JSON once; return the resulting value and its JSON text.

    The encoder may convert some types to JSON (a datetime to a string); tuples become lists. The
    value itself is not changed, and shares nothing mutable with the result.

    Raises InvalidData for what is not JSON, for what some database would reject (U+0000, lone
    surrogates) or change (keys that are not strings), for more than 30 levels of nesting, and for a
    text of more than ``max_bytes`` bytes of UTF-8.
    """
    refuse_expansion(value, max_bytes, path)
    try:
        text = dumps(value, encoder)
        size = len(text) if text.isascii() else len(text.encode())
        result = json.loads(text)
        trouble = _suspicious(value, result, text) and (
            _find(value, path, _no_default) or _find(result, path, _no_default)
        )
    except (TypeError, ValueError, RecursionError) as error:
        trouble = _find(value, path, encoder().default) or Trouble(
            path, f"is not JSON: {error}", "Store plain values."
        )
        raise InvalidData(**trouble._asdict()) from error
    if trouble:
        raise InvalidData(**trouble._asdict())
    if max_bytes is not None and size > max_bytes:
        raise InvalidData(
            path=path,
            problem=_too_large(size, max_bytes, *_largest_part(result, path)),
            hint=_("Store it elsewhere and keep a reference, or increase MAX_DATA_BYTES."),
        )
    return result, text


def refuse_expansion(value: Any, max_bytes: int | None = None, path: str = "data") -> None:
    """Raise InvalidData for a value whose JSON would take far too long to write.

    A value that appears in two places is written twice, and a value that contains it twice writes
    it four times: thirty short lists can fill any memory.
    """
    most = MAX_WRITTEN if max_bytes is None else max_bytes * TIMES
    container = _container(value)
    if container is not None and _measure(container, path, {})[0] > most:
        raise InvalidData(
            path=path,
            problem=Text(
                _("takes more than %(size)s bytes as JSON; the limit is %(limit)s"),
                size=Amount(most),
                limit=Amount(max_bytes or most),
            ),
            hint=_(
                "Store large values elsewhere and keep references. A value that appears in many "
                "places is written once for each place."
            ),
        )


def merge(base: dict[str, Any], theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """Apply both changes to ``base``: key by key, into nested dicts.

    Lists and scalars are atomic. A deletion conflicts with a change, and so do two equal changes:
    if two steps each add one to 5, both leave 6, and one of them would be lost. Two deletions do
    not conflict. Types count: True, 1 and 1.0 differ. The arguments are not changed, and the result
    may share values with them.

    Raises MergeConflict, with the ``path`` of the first key that both changed.
    """
    return _merge(base, theirs, mine, ())


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal in value and type, at every level."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# What normalise rejects


def _measure(
    value: Any, trail: Any, measures: dict[int, tuple[int, int]], depth: int = 1
) -> tuple[int, int]:
    """The minimum size of its JSON in bytes, and its nesting. Each container is visited once."""
    measure = measures.get(id(value))
    if measure is None:
        if depth > MAX_DEPTH:
            raise _too_deep(_path_of(trail))
        measure = measures[id(value)] = _measure_parts(value, trail, measures, depth)
    elif depth + measure[1] - 1 > MAX_DEPTH:
        raise _too_deep(_path_of(trail))
    return measure


def _measure_parts(
    value: Any, trail: Any, measures: dict[int, tuple[int, int]], depth: int
) -> tuple[int, int]:
    size, height = 0, 0
    if isinstance(value, dict):
        size += sum(len(key) for key in value if isinstance(key, str))
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        size += 2
        if isinstance(part, str):
            size += len(part)
        elif (container := _container(part)) is not None:
            more, levels = _measure(container, (trail, name), measures, depth + 1)
            size, height = size + more, max(height, levels)
    return size, height + 1


def _container(part: Any) -> Any:
    if isinstance(part, dict | list | tuple):
        return part
    is_record = is_dataclass(part) or hasattr(part, "__pydantic_fields__")
    return getattr(part, "__dict__", None) if is_record else None


def _path_of(trail: Any) -> str:
    names = []
    while isinstance(trail, tuple):
        trail, name = trail
        names.append(f"[{_quote(name)}]")
    return "".join([trail, *reversed(names)])


def _too_large(size: int, limit: int, part: str, part_size: int) -> Text:
    values = {"size": Amount(size), "limit": Amount(limit)}
    if not part:
        return Text(_("takes %(size)s bytes as JSON; the limit is %(limit)s"), **values)
    message = _(
        "takes %(size)s bytes as JSON; the limit is %(limit)s; the largest part is %(part)s with "
        "%(part_size)s"
    )
    return Text(message, **values, part=part, part_size=Amount(part_size))


def _largest_part(value: Any, path: str) -> tuple[str, int]:
    """The path of the largest part: the largest value, and the largest value inside that."""
    place, size = path, 0
    while parts := list(_parts(value, place)):
        part, part_size, part_place = max(parts, key=itemgetter(1))
        if part_size * 2 <= size:
            break
        value, size, place = part, part_size, part_place
    return ("" if place == path else place), size


def _parts(value: Any, path: str) -> Iterator[tuple[Any, int, str]]:
    """The values of a dict or a list, with their sizes and paths."""
    if not isinstance(value, dict | list):
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in pairs:
        yield part, len(dumps(part).encode()), f"{path}[{_quote(key)}]"


class Trouble(NamedTuple):
    path: str
    problem: str
    hint: str


def _suspicious(value: Any, result: Any, text: str) -> bool:
    """Cheap tests that miss no problem, so that the slow search in Python is rare."""
    return (
        _differs(value, result)  # a key became a string, or the encoder converted something
        or "\\u0000" in text
        or (text.count("{") + text.count("[") > MAX_DEPTH and depth_of(result) > MAX_DEPTH)
    )


def _differs(value: Any, result: Any) -> bool:
    try:
        return bool(value != result)
    except Exception:  # an object that the encoder converts, and that cannot be compared
        return True


def depth_of(value: Any) -> int:
    """How deeply containers are nested; computed without recursion."""
    depth, level = 0, [value]
    while level := [child for child in level if isinstance(child, dict | list)]:
        depth += 1
        level = [child for container in level for child in _children(container)]
    return depth


def _children(container: dict[str, Any] | list[Any]) -> Any:
    return container.values() if isinstance(container, dict) else container


def _no_default(value: Any) -> None:
    """A default for values that the encoder has already accepted as a whole."""


def _find(value: Any, path: str, default: Callable[[Any], Any], depth: int = 1) -> Trouble | None:
    """Find the first part of a value that is not acceptable JSON, with a hint."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _in_text(value, path)
    if isinstance(value, int | float):
        return _in_number(value, path)
    if not isinstance(value, dict | list | tuple):
        return _in_object(value, path, default, depth)
    if depth > MAX_DEPTH:
        return _TOO_DEEP._replace(path=path)
    troubles = (
        _find(part, f"{path}[{_quote(name)}]", default, depth + 1)
        for name, part in (value.items() if isinstance(value, dict) else enumerate(value))
    )
    keys = (_in_key(key, path) for key in value) if isinstance(value, dict) else ()
    return next(filter(None, chain(keys, troubles)), None)


_TOO_DEEP = Trouble(
    "",
    Text(_("is nested deeper than %(levels)d levels"), levels=MAX_DEPTH),
    _("Flatten it, or store it as a string."),
)


def _too_deep(path: str) -> InvalidData:
    return InvalidData(**_TOO_DEEP._replace(path=path)._asdict())


def _in_key(key: Any, path: str) -> Trouble | None:
    if not isinstance(key, str):
        return Trouble(
            path, f"has the key {_quote(key)} of type {_type(key)}", "Keys must be strings."
        )
    if flaw := _flaw(key):
        problem = Text(
            _("has the key %(key)s, which contains %(flaw)s"), key=_quote(key), flaw=flaw
        )
        return Trouble(path, problem, _("Rename it."))
    return None


def _in_text(text: str, path: str) -> Trouble | None:
    flaw = _flaw(text)
    if not flaw:
        return None
    return Trouble(path, Text(_("contains %(flaw)s"), flaw=flaw), _("Remove or replace it."))


def _flaw(text: str) -> str:
    if "\0" in text:
        return "U+0000"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"the lone surrogate U+{ord(text[error.start]):04X}"
    return ""


def _in_number(number: int | float, path: str) -> Trouble | None:
    if isinstance(number, float):
        fine = math.isfinite(number)
        problem = Text(_("is %(number)s"), number=number)
        return None if fine else Trouble(path, problem, _("Use None or a string."))
    try:
        int.__repr__(number)
    except ValueError:  # sys.set_int_max_str_digits
        problem = Text(_("is an integer with too many digits"))
        return Trouble(path, problem, _("Store it as a hexadecimal string."))
    return None


def _in_object(value: Any, path: str, default: Callable[[Any], Any], depth: int) -> Trouble | None:
    try:
        converted = default(value)
    except (TypeError, ValueError):
        return Trouble(
            path, f"is of type {_type(value)}, which JSON cannot represent", _mend(value)
        )
    if type(converted) is type(value):
        return Trouble(
            path,
            f"is of type {_type(value)}, and the encoder returns it unchanged",
            "Fix the encoder.",
        )
    return _find(converted, path, default, depth)


def _mend(value: Any) -> str:
    if hasattr(value, "_meta") and hasattr(value, "pk"):
        return "Store its pk."
    if hasattr(value, "values_list"):
        return "Store a list of its pks."
    if hasattr(value, "model_dump"):
        return 'Store a dict: model_dump(mode="json").'
    if is_dataclass(value):
        return "Store a dict: dataclasses.asdict()."
    if isinstance(value, Enum):
        return "Store its value."
    if isinstance(value, bytes | bytearray | memoryview):
        return "Store text: decode it, or use base64."
    if isinstance(value, datetime.time):
        return "Store a datetime or a string."
    if isinstance(value, Mapping):
        return "Use a dict."
    if isinstance(value, Iterable):
        return "Use a list."
    return "Store strings, numbers, lists and dicts, or add this type to the ENCODER."


def _type(value: Any) -> str:
    cls = value.__class__  # not type(): a lazy object answers for the object that it wraps
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _quote(key: Any) -> str:
    # The repr of nested tuples may be longer than any memory.
    text = json.dumps(key) if isinstance(key, str) else reprlib.repr(key)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Merging

_MISSING: Any = object()


def _merge(
    base: dict[str, Any], theirs: dict[str, Any], mine: dict[str, Any], path: Path
) -> dict[str, Any]:
    merged = {}
    for key in {**theirs, **mine}:
        sides = (side.get(key, _MISSING) for side in (base, theirs, mine))
        value = _settle((*path, key), *sides)
        if value is not _MISSING:
            merged[key] = value
    return merged


def _settle(path: Path, base: Any, theirs: Any, mine: Any) -> Any:
    if same(mine, base):
        return theirs
    if same(theirs, base):
        return mine
    if theirs is mine is _MISSING:
        return _MISSING
    start = {} if base is _MISSING else base
    if isinstance(start, dict) and isinstance(theirs, dict) and isinstance(mine, dict):
        return _merge(start, theirs, mine, path)
    key = "".join(f"[{_quote(name)}]" for name in path)
    raise MergeConflict(path=path, key=f"data{key}")
