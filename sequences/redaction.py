"""Secrets do not leave `data`: what `Meta.redact` names is shown as stars. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

HIDDEN = "***"
#: Shorter secrets are not looked for in other texts: they would hide half of them.
SHORTEST = 4


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


def secrets_of(value: Any, patterns: Iterable[str]) -> frozenset[str]:
    """The texts that `redact` would hide in a JSON value, to be found again in other texts."""
    found: set[str] = set()
    _collect(value, redact(value, patterns), found)
    return frozenset(found)


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, such as the message of an error that quotes one."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _collect(value: Any, shown: Any, found: set[str]) -> None:
    if isinstance(value, dict):
        for key, member in value.items():
            below = shown.get(key) if isinstance(shown, dict) else shown
            _collect(member, below, found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _collect(item, shown[index] if isinstance(shown, list) else shown, found)
    elif shown == HIDDEN and not isinstance(value, bool) and len(str(value)) >= SHORTEST:
        found.add(str(value))
