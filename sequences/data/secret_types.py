"""Fields of pydantic's secret types (`SecretStr`, `SecretBytes`, `Secret`), dumped as asterisks.

Typed data stores their values, and hides them as if `Meta.redact` named them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from collections.abc import Sequence as Items
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from .redaction import Path


def secret_patterns(hint: Any) -> tuple[str, ...]:
    """The patterns for `Meta.redact` of the secrets in a type; empty if there are none.

    Where a type that has secrets contains itself, all of the inner one is hidden.
    """
    places = list(_places(hint, (), ()))
    holders = [kind for place in places if place.again is None for kind in place.outer]
    hidden = [place for place in places if place.again is None or place.again in holders]
    return tuple(dict.fromkeys(".".join(place.path) or "*" for place in hidden))


class _Place(NamedTuple):
    """Where a secret is in a type, or where a type begins again inside itself."""

    path: Path
    #: The types around it.
    outer: tuple[Any, ...]
    #: The type that begins again; None: it is a secret.
    again: Any = None


def _places(hint: Any, path: Path, outer: tuple[Any, ...]) -> Iterator[_Place]:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return
    if _is_secret(kind):
        yield _Place(path, outer)
    elif hint in outer:
        yield _Place(path, outer, again=hint)
    elif isinstance(kind, type) and issubclass(kind, Mapping) and args:
        yield from _places(args[-1], (*path, "*"), outer)
    elif args and (not isinstance(kind, type) or issubclass(kind, Items | Set | UnionType)):
        for arg in args:  # of a union, of Annotated, or the items of a list
            yield from _places(arg, path, outer)
    else:
        for name, field in _fields(hint).items():
            yield from _places(field, (*path, name), (*outer, hint))


def _fields(hint: Any) -> Mapping[str, Any]:
    model_fields: Mapping[str, Any] | None = getattr(hint, "model_fields", None)
    if model_fields is not None:
        return {name: field.annotation for name, field in model_fields.items()}
    if not is_dataclass(hint) and not hasattr(hint, "__required_keys__"):
        return {}
    try:
        return get_type_hints(hint)
    except NameError:  # types defined in a function, which only pydantic can find
        return {}


def _is_secret(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "get_secret_value")


def _is_mask(dumped: Any) -> bool:
    return isinstance(dumped, str) and not dumped.strip("*")


def revealed(dumped: Any, value: Any, plain: Any) -> Any:
    """A dump in the mode "json" with the secrets of the dump in the mode "python".

    A serializer of the type's own is respected: only what pydantic has masked is replaced.
    ``plain`` converts a secret to JSON.
    """
    if _is_secret(type(value)):
        return plain(value.get_secret_value()) if _is_mask(dumped) else dumped
    if isinstance(value, Mapping) and isinstance(dumped, dict):
        pairs = zip(dumped.items(), value.values(), strict=False)
        return {key: revealed(part, inner, plain) for (key, part), inner in pairs}
    if isinstance(value, Items | Set) and isinstance(dumped, list):
        return [revealed(*pair, plain) for pair in zip(dumped, value, strict=False)]
    return dumped
