"""JSON to dataclasses and TypedDicts, and back, for those who have no pydantic. Pure.

A `Reader` is made of a type's annotations once, when the type is declared, so that an annotation
that nobody can read is told then.
"""

from __future__ import annotations

import datetime
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Literal, NotRequired, Required, TypeAlias, Union, get_args, get_origin
from typing import get_type_hints as type_hints
from uuid import UUID

from django.utils.dateparse import parse_duration
from django.utils.duration import duration_iso_string

from ..exceptions import did_you_mean
from . import serialization

#: Takes a value and its path, and returns what it stands for, or raises Misfit.
Reader: TypeAlias = Callable[[Any, str], Any]

MISSING: Any = object()


class Misfit(Exception):
    """What stands at this path is not what its annotation says."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class Unreadable(Exception):
    """An annotation that nothing here can read."""


def is_typed_dict(hint: object) -> bool:
    """Whether it is a TypedDict, of typing or of typing_extensions."""
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


def reader_of(hint: Any, *, strict: bool) -> Reader:
    """What reads such values. ``strict`` refuses keys that a type lacks; else they are ignored.

    Raises Unreadable.
    """
    return _Readers(strict).of(hint)


def plain(value: Any) -> Any:
    """The JSON of a value: of what is unknown here, the value itself."""
    if isinstance(value, Enum):
        return plain(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value) if one.init}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)  # in the same order in each process
    return _as_text(value)


def _as_text(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return duration_iso_string(value)
    return str(value) if isinstance(value, Decimal | UUID) else value


class _Readers:
    """The readers of one type and of all that it is made of."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.known: dict[type, Reader] = {}

    def of(self, hint: Any) -> Reader:
        if hint is Any or hint is object:
            return _any
        if hint in (None, type(None)):
            return _exactly(None)
        if get_origin(hint) is not None:
            return self._of_generic(get_origin(hint), get_args(hint))
        if hint in _SCALARS:
            return _SCALARS[hint]
        if hint in _BARE:
            return self._of_generic(hint, _BARE[hint])
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enum(hint)
        if is_dataclass(hint) or is_typed_dict(hint):
            return self._of_structure(hint)
        if hasattr(hint, "__supertype__"):  # a NewType
            return self.of(hint.__supertype__)
        raise Unreadable(f"{getattr(hint, '__qualname__', hint)} is no type that JSON can hold")

    def _of_generic(self, origin: Any, args: tuple[Any, ...]) -> Reader:
        if origin in (Union, types.UnionType):
            return _union([self.of(arg) for arg in args], args)
        if origin is Literal:
            return _literal(args)
        if origin in (NotRequired, Required):
            return self.of(args[0])
        if origin is tuple and args[-1:] != (...,):
            return _fixed([self.of(arg) for arg in args])
        if origin in _BARE and origin is not dict:
            return _many(origin, self.of(args[0]))
        if origin in (dict, Mapping) and args[0] in (str, Any):
            return _mapping(self.of(args[1]))
        raise Unreadable(f"{origin} of {args} is no type that JSON can hold")

    def _of_structure(self, cls: type) -> Reader:
        if cls not in self.known:
            readers: dict[str, Reader] = {}
            # Before its parts: they may contain it.
            self.known[cls] = self._structure(cls, readers)
            hints = type_hints(cls)
            readers.update({name: self.of(hints[name]) for name in _keys(cls)})
        return self.known[cls]

    def _structure(self, cls: type, readers: dict[str, Reader]) -> Reader:
        required = _required(cls)
        make = dict if is_typed_dict(cls) else cls

        def read(value: Any, path: str) -> Any:
            if is_dataclass(cls) and isinstance(value, cls):
                return value
            if not isinstance(value, Mapping):
                raise _wrong(path, f"a {cls.__name__}", value)
            for key in value:
                if self.strict and key not in readers:
                    raise Misfit(path, f"has no {key!r}. {did_you_mean(key, readers)}")
            for key in required:
                if key not in value:
                    raise Misfit(f'{path}["{key}"]', "is missing")
            parts = {
                key: reader(value[key], f'{path}["{key}"]')
                for key, reader in readers.items()
                if key in value
            }
            return _made(make, parts, path)

        return read


def _made(make: Callable[..., Any], parts: dict[str, Any], path: str) -> Any:
    try:
        return make(**parts)
    except (ValueError, TypeError, AssertionError) as error:
        problem = str(error) or type(error).__name__
    raise Misfit(path, problem)


def _keys(cls: Any) -> list[str]:
    if is_dataclass(cls):
        return [one.name for one in fields(cls) if one.init]
    return list(type_hints(cls))


def _required(cls: Any) -> list[str]:
    if is_dataclass(cls):
        return [one.name for one in fields(cls) if one.init and not _has_default(one)]
    # Of annotations that are text the class itself knows only whether it is total.
    hints = type_hints(cls, include_extras=True)
    markers = {name: get_origin(hint) for name, hint in hints.items()}
    return [
        name
        for name, marker in markers.items()
        if marker is Required or (marker is not NotRequired and name in cls.__required_keys__)
    ]


def _has_default(field: Field[Any]) -> bool:
    return field.default is not NO_DEFAULT or field.default_factory is not NO_DEFAULT


def _wrong(path: str, expected: str, value: Any) -> Misfit:
    return Misfit(path, f"must be {expected}, and is a {type(value).__name__}")


# Readers


def _any(value: Any, path: str) -> Any:
    return value


def _exactly(expected: Any) -> Reader:
    def read(value: Any, path: str) -> Any:
        if value is not expected:
            raise _wrong(path, str(expected), value)
        return value

    return read


def _instance(cls: type, expected: str) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, cls) or (isinstance(value, bool) and cls is not bool):
            raise _wrong(path, expected, value)
        return value

    return read


def _float(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, "a float", value)
    return float(value)


def _decimal(value: Any, path: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise _wrong(path, "a Decimal", value)
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise Misfit(path, "is no decimal number") from None
    if not number.is_finite():
        raise Misfit(path, "is no finite number")
    return number


def _parsed(cls: type, parse: Callable[[str], Any]) -> Reader:
    def read(value: Any, path: str) -> Any:
        if type(value) is cls:
            return value
        if not isinstance(value, str):
            raise _wrong(path, f"a {cls.__name__}", value)
        try:
            found = parse(value)
        except ValueError:
            found = None
        if found is None:
            raise Misfit(path, f"is no {cls.__name__} as text")
        return found

    return read


def _enum(cls: type[Enum]) -> Reader:
    def read(value: Any, path: str) -> Enum:
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(one.value) for one in cls)
        raise Misfit(path, f"is none of {allowed}")

    return read


def _literal(allowed: tuple[Any, ...]) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not any(serialization.same(value, one) for one in allowed):
            raise Misfit(path, f"is none of {', '.join(map(repr, allowed))}")
        return value

    return read


def _many(cls: type, item: Reader) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, list | tuple | set | frozenset):
            raise _wrong(path, f"a {cls.__name__}", value)
        return cls(item(one, f"{path}[{index}]") for index, one in enumerate(value))

    return read


def _fixed(items: list[Reader]) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, list | tuple):
            raise _wrong(path, "a tuple", value)
        if len(value) != len(items):
            raise Misfit(path, f"must have {len(items)} items, and has {len(value)}")
        pairs = enumerate(zip(items, value, strict=True))
        return tuple(item(one, f"{path}[{index}]") for index, (item, one) in pairs)

    return read


def _mapping(item: Reader) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(path, "a dict", value)
        return {key: item(one, f'{path}["{key}"]') for key, one in value.items()}

    return read


def _union(readers: list[Reader], hints: tuple[Any, ...]) -> Reader:
    """What one of them takes as it is; else what the first of them makes of it."""
    expected = " or ".join(getattr(hint, "__name__", str(hint)) for hint in hints)

    def read(value: Any, path: str) -> Any:
        found, misfits = [], []
        for reader in readers:
            try:
                found.append(reader(value, path))
            except Misfit as misfit:
                misfits.append(misfit)
        same = [one for one in found if type(one) is type(value)]
        if found:
            return (same or found)[0]
        inner = [misfit for misfit in misfits if misfit.path != path]
        raise inner[0] if inner else _wrong(path, expected, value)

    return read


_SCALARS: dict[Any, Reader] = {
    bool: _instance(bool, "a bool"),
    int: _instance(int, "an int"),
    str: _instance(str, "a str"),
    float: _float,
    Decimal: _decimal,
    UUID: _parsed(UUID, UUID),
    datetime.datetime: _parsed(datetime.datetime, datetime.datetime.fromisoformat),
    datetime.date: _parsed(datetime.date, datetime.date.fromisoformat),
    datetime.time: _parsed(datetime.time, datetime.time.fromisoformat),
    datetime.timedelta: _parsed(datetime.timedelta, parse_duration),
}

_BARE: dict[Any, tuple[Any, ...]] = {
    list: (Any,),
    tuple: (Any, ...),
    set: (Any,),
    frozenset: (Any,),
    dict: (str, Any),
}
