"""Secrets do not leave `data`: what `Meta.redact` names is shown as stars. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

HIDDEN = "***"


def redact(value: Any, patterns: Iterable[str]) -> Any:
    """A copy of a JSON value without what the patterns name.

    A pattern is a path of keys with dots between, in which ``*`` stands for any part of a key:
    ``"card.*"`` hides every value of ``card``. A list's items stand under the list's own key.
    """
    paths = [pattern.split(".") for pattern in patterns]
    return _redact(value, paths) if paths else value


def _redact(value: Any, paths: Sequence[Sequence[str]]) -> Any:
    if isinstance(value, dict):
        return {key: _member(key, member, paths) for key, member in value.items()}
    if isinstance(value, list):
        return [_redact(item, paths) for item in value]
    return value


def _member(key: str, value: Any, paths: Sequence[Sequence[str]]) -> Any:
    matching = [path[1:] for path in paths if fnmatchcase(key, path[0])]
    if not all(matching):
        return HIDDEN
    return _redact(value, matching)
