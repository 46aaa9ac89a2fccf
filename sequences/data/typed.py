"""Typed data: the instance that a step uses, and the JSON that is stored.

Only JSON is stored. An instance is created when a step reads `data`. What the step leaves is
converted to JSON, validated, and merged with the stored data.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Set
from collections.abc import Sequence as Items
from copy import deepcopy
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from fnmatch import fnmatchcase
from functools import cached_property, partial
from types import ModuleType, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

from django.utils.translation import gettext_noop as _

from .. import conf
from ..definitions.validation import invalid
from ..exceptions import InvalidData, Text, did_you_mean
from . import serialization
from .redaction import Path
from .secret_types import revealed, secret_patterns

#: The first version of pydantic that can read by field name, whatever the aliases are.
PYDANTIC = (2, 11)

_UNTYPED = (None, Any, dict)
_MISSING: Any = object()


class Codec:
    """Converts between a type and JSON with pydantic, which validates whatever it reads.

    Stored data uses the names of the fields, not their aliases.
    """

    def __init__(self, cls: type, pydantic: ModuleType) -> None:
        self.cls, self.name, self.is_dict = cls, cls.__name__, is_typed_dict(cls)
        self.adapter = pydantic.TypeAdapter(cls)
        self._plain = pydantic.TypeAdapter(Any)
        self.invalid_type = pydantic.ValidationError

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """The patterns of the fields that are hidden because of their type."""
        return secret_patterns(self.cls)

    def load(self, text: str) -> Any:
        """Create an instance from stored data. Raises InvalidData."""
        return self._call(self.adapter.validate_json, text, by_alias=False, by_name=True)

    def parse(self, values: dict[str, Any]) -> Any:
        """Create an instance from a caller's data, which is validated more strictly. Raises
        InvalidData."""
        self.refuse_unknown(values)
        return self._call(self.adapter.validate_python, values)

    def dump(self, value: Any) -> dict[str, Any]:
        """The JSON of an instance, which may have become invalid: see `check`."""
        try:
            return self._dump(value, "json")
        except ValueError as error:
            # Our own search says where the problem is, and what to store instead.
            serialization.normalise(self._dump(value, "python"))
            raise self.invalid([("data", str(error))]) from None

    def check(self, dumped: dict[str, Any]) -> None:
        """Raise InvalidData if this JSON could not be loaded again."""
        self.load(serialization.dumps(dumped))

    def admit(self, data: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of what a caller passed: an instance, or a mapping over the defaults."""
        if data is None or isinstance(data, Mapping):
            _refuse_expansion(data)
            value = self.parse({**deepcopy(dict(defaults)), **(data or {})})
        else:
            value = data
        return self.validated(value)

    def validated(self, value: Any) -> dict[str, Any]:
        """The JSON of an instance. Raises InvalidData."""
        _refuse_expansion([value])
        dumped = self.dump(self.of_the_type(value))
        self.check(dumped)
        return dumped

    def of_the_type(self, value: Any) -> Any:
        """Reject other types, and keys that a TypedDict does not have."""
        expected: Any = dict if self.is_dict else self.cls
        if not isinstance(value, expected):
            raise InvalidData(
                path="data",
                problem=f"is of type {type(value).__name__}, but must be of type {self.name}",
                hint=f"Pass an instance of {self.name}.",
            )
        if self.is_dict:
            self.refuse_unknown(value)
        return value

    def refuse_unknown(self, data: Mapping[str, Any]) -> None:
        """Reject a key that a dataclass or a TypedDict lacks; a model decides for itself."""
        names = _names(self.cls)
        for key in data if names else ():
            if key not in names:
                text = _("has no field %(field)r. %(hint)s")
                problem = Text(text, field=key, hint=did_you_mean(key, names))
                raise self.invalid([("data", problem)])

    def invalid(self, errors: list[tuple[str, str]]) -> InvalidData:
        """The error for ``errors``, which are pairs of a path and a problem."""
        problem = "; ".join(f"{path}: {message}" for path, message in errors)
        return InvalidData(
            f"The data is not a valid {self.name}. {problem}",
            path=errors[0][0],
            problem=problem,
            hint=f"Pass the fields that {self.name} declares.",
            errors=errors,
        )

    def _dump(self, value: Any, mode: str) -> dict[str, Any]:
        # Round trip: without computed fields. Without warnings, because it is validated afterwards.
        options = {"by_alias": False, "round_trip": True, "warnings": False}
        dumped: dict[str, Any] = self.adapter.dump_python(value, mode=mode, **options)
        if mode == "json" and self.secrets:
            values = self.adapter.dump_python(value, **options)
            plain = partial(self._plain.dump_python, mode="json")
            dumped = revealed(dumped, values, plain)
        return dumped

    def _call(self, validate: Any, *args: Any, **options: Any) -> Any:
        try:
            return validate(*args, **options)
        except self.invalid_type as error:
            # Without the input, which may be secret and must not appear in error texts.
            details = error.errors(include_url=False, include_context=False, include_input=False)
            errors = [(_path(detail["loc"]), detail["msg"]) for detail in details]
        raise self.invalid(errors)


class Stored:
    """The stored data of a run; creates an instance only when it is read."""

    def __init__(self, codec: Codec, text: str) -> None:
        self.codec, self.text = codec, text
        self._baseline: dict[str, Any] | None = None

    def read(self) -> Any:
        """Create an instance. Raises InvalidData if the stored data does not fit the type."""
        value = self.codec.load(self.text)
        self._baseline = self.codec.dump(value)
        return value

    @property
    def baseline(self) -> dict[str, Any]:
        """The JSON of the instance as it was read: the stored data and the type's defaults."""
        if self._baseline is None:
            self.read()
        assert self._baseline is not None
        return self._baseline

    def after(self, value: Any) -> dict[str, Any]:
        """The JSON to store once a step has left this value. Raises InvalidData.

        What the step did not change stays as it was stored. So a default that the type has gained
        since, or a key that the type lacks, does not count as a change that may conflict with
        another step's.
        """
        stored: dict[str, Any] = json.loads(self.text)
        _refuse_expansion([value])
        dumped = self.codec.dump(self.codec.of_the_type(value))
        if serialization.same(dumped, self.baseline):
            return stored
        self.codec.check(dumped)
        return overlay(stored, self.baseline, dumped)


def overlay(
    stored: dict[str, Any], baseline: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """``stored`` with the changes from ``baseline`` to ``after``, into nested dicts."""
    result = dict(stored)
    for key in {**baseline, **after}:
        sides = [side.get(key, _MISSING) for side in (stored, baseline, after)]
        if sides[2] is _MISSING:
            result.pop(key, None)
        elif not serialization.same(sides[1], sides[2]):
            nested = all(isinstance(side, dict) for side in sides)
            result[key] = overlay(*sides) if nested else sides[2]
    return result


# From a sequence class to its codec


def codec_of(cls: type, root: type) -> Codec | None:
    """The codec of the type that ``cls`` declares with ``root[Order]``; None for a dict.

    Raises InvalidDefinition.
    """
    argument = _declared(cls, root)
    declared = None if isinstance(argument, TypeVar) else argument
    if declared in _UNTYPED or get_origin(declared) is dict:
        return None
    if not _is_supported(declared):
        problem = (
            f"its data type is {getattr(declared, '__name__', declared)}, which is not supported"
        )
        raise invalid(cls, problem, "Use a pydantic model class, a dataclass or a TypedDict.")
    return _codec_for(cls, declared)


def _codec_for(cls: type, declared: type) -> Codec:
    pydantic = _pydantic()
    if pydantic is None:
        problem = f"its data type is {declared.__name__}, but typed data needs pydantic"
        version = ".".join(map(str, PYDANTIC))
        hint = (
            f"Install pydantic {version} or newer: pip install "
            "'django-dramatiq-sequences[pydantic]'."
        )
        raise invalid(cls, problem, hint)
    try:
        codec = Codec(declared, pydantic)
        if codec.adapter.pydantic_complete:
            return codec
        problem, hint = (
            "it uses a type that is not defined yet",
            "Declare that type above the sequence.",
        )
    except pydantic.errors.PydanticUserError as error:
        problem, hint = _unusable(error)
    except NameError as error:
        problem, hint = str(error), "Declare it above the sequence."
    raise invalid(cls, f"its data type {declared.__name__} cannot be used: {problem}", hint)


def _unusable(error: Any) -> tuple[str, str]:
    if error.code == "typed-dict-version":
        problem = "pydantic supports typing.TypedDict only on Python 3.12 and newer"
        return problem, "Use typing_extensions.TypedDict."
    return error.message, "Use types that pydantic supports."


def _pydantic() -> ModuleType | None:
    try:
        import pydantic
    except ImportError:
        return None
    version = tuple(int(part) for part in pydantic.VERSION.split(".")[:2])
    return pydantic if version >= PYDANTIC else None


def _is_supported(declared: Any) -> bool:
    if not isinstance(declared, type) or getattr(declared, "__pydantic_root_model__", False):
        return False  # the JSON of a root model is not a dict
    return is_dataclass(declared) or is_typed_dict(declared) or _is_model(declared)


def _is_model(declared: type) -> bool:
    return hasattr(declared, "__pydantic_validator__") and not is_dataclass(declared)


def _declared(cls: type, root: type) -> Any:
    """The type argument of ``root`` in the bases of ``cls``: a type, a TypeVar, or None."""
    bases = vars(cls).get("__orig_bases__", cls.__bases__)
    arguments = [_argument(base, root) for base in bases]
    distinct = [argument for argument in dict.fromkeys(arguments) if argument is not None]
    types = [argument for argument in distinct if not isinstance(argument, TypeVar)]
    if len(types) > 1:
        names = " and ".join(getattr(argument, "__name__", str(argument)) for argument in types)
        raise invalid(cls, f"its bases declare different data types: {names}", "Keep one of them.")
    return next(iter(types or distinct), None)


def _argument(base: Any, root: type) -> Any:
    origin, args = get_origin(base) or base, get_args(base)
    if origin is root:
        return args[0] if args else None
    if not (isinstance(origin, type) and issubclass(origin, root)):
        return None
    inner = _declared(origin, root)
    parameters = getattr(origin, "__parameters__", ())
    return dict(zip(parameters, args, strict=False)).get(inner, inner)


# Helpers


def _refuse_expansion(value: Any) -> None:
    """Raise before a validator or a dump walks through a value that expands."""
    serialization.refuse_expansion(value, conf.settings.max_data_bytes)


def is_typed_dict(hint: object) -> bool:
    """Whether it is a TypedDict, of typing or of typing_extensions."""
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


def _names(cls: type) -> frozenset[str]:
    """The keys of a plain dataclass or a TypedDict; empty where pydantic knows better."""
    if hasattr(cls, "__pydantic_config__") or not (is_dataclass(cls) or is_typed_dict(cls)):
        return frozenset()
    if any(_has_alias(hint) for hint in get_type_hints(cls, include_extras=True).values()):
        return frozenset()
    if is_dataclass(cls):
        return frozenset(field.name for field in fields(cls) if field.init)
    return frozenset(get_type_hints(cls))


def _has_alias(hint: Any) -> bool:
    metadata = getattr(hint, "__metadata__", ())
    return any(getattr(part, "validation_alias", None) for part in metadata)


def _path(location: Iterator[str | int]) -> str:
    return "data" + "".join(f"[{json.dumps(part)}]" for part in location)


# Paths in a type

_SCALARS = (str, bytes, int, float, Decimal, UUID, Enum, NoneType)
_TIMES = (datetime.date, datetime.time, datetime.timedelta)
_WRAPPERS = (Annotated, NotRequired, Required)


def reaches(hint: Any, path: Path) -> bool:
    """Whether a value of this type may have something at this path. For unknown types: yes."""
    if not path:
        return True
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(reaches(arg, path) for arg in args)
    if origin in _WRAPPERS:
        return reaches(args[0], path)
    if origin is Literal:
        return False
    if isinstance(origin, type):
        return _reaches_parts(origin, args, path)
    if isinstance(hint, type):
        return _reaches_fields(hint, path)
    return True


def _reaches_parts(origin: type, args: tuple[Any, ...], path: Path) -> bool:
    if issubclass(origin, Mapping):
        return reaches(args[-1], path[1:])
    if not issubclass(origin, (Items, Set)):
        return True
    is_place = path[0].isdecimal() or any(fnmatchcase(str(place), path[0]) for place in range(10))
    below = [path, path[1:]] if is_place else [path]
    return any(reaches(arg, rest) for arg in args if arg is not ... for rest in below)


def _reaches_fields(hint: type, path: Path) -> bool:
    if issubclass(hint, (*_SCALARS, *_TIMES)):
        return False
    fields = _stored_fields(hint)
    if fields is None:
        return True
    return any(
        reaches(field, path[1:]) for name, field in fields.items() if fnmatchcase(name, path[0])
    )


def _stored_fields(hint: type) -> Mapping[str, Any] | None:
    """The fields by the names under which they are stored; None if it may have others."""
    model_fields: Mapping[str, Any] | None = getattr(hint, "model_fields", None)
    if model_fields is not None:
        config: Mapping[str, Any] = getattr(hint, "model_config", {})
        may_have_more = config.get("extra") == "allow"
        hints = {name: field.annotation for name, field in model_fields.items()}
        return None if may_have_more else hints
    return get_type_hints(hint) if is_dataclass(hint) or is_typed_dict(hint) else None
