"""Secrets do not leave `data`: what `Meta.redact` names is shown as stars. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

HIDDEN = "***"
#: Shorter secrets are not looked for in other texts: they would hide half of them.
SHORTEST = 4
#: So many are not all looked for: those that begin like no part of a text are left out before.
MANY = 100


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


class NoSecret(ValueError):
    """Stars stand where no secret is stored, or it can't be told whose they are."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        #: Where they stand: ``cards[1].number``.
        self.path = path


def restore(edited: Any, stored: Any, patterns: Iterable[str]) -> Any:
    """What people have made of ``redact(stored)``, with the secrets that they left as stars.

    A secret comes back only where it was, below the same keys: it is hidden there, too. Stars
    anywhere else raise `NoSecret`, and so do items of a list that were moved about so that it
    cannot be told whose secret is whose.
    """
    return _restore(edited, stored, redact(stored, patterns), "")


def _restore(edited: Any, stored: Any, shown: Any, path: str) -> Any:
    # What was not touched stays, also a text that has always been three stars.
    if _same(edited, shown):
        return stored
    if edited == HIDDEN:
        raise NoSecret(path)
    if isinstance(edited, dict):
        stored, shown = (value if isinstance(value, dict) else {} for value in (stored, shown))
        return {
            key: _restore(value, stored.get(key), shown.get(key), f"{path}.{key}".lstrip("."))
            for key, value in edited.items()
        }
    if isinstance(edited, list):
        stored, shown = (value if isinstance(value, list) else [] for value in (stored, shown))
        return _restore_items(edited, stored, shown, path)
    return edited


def _restore_items(edited: list[Any], stored: list[Any], shown: list[Any], path: str) -> list[Any]:
    pairs = list(enumerate(zip(edited, shown, strict=False)))
    changed = [index for index, (one, other) in pairs if not _same(one, other)]
    if len(edited) == len(shown) and len(changed) == 1 and edited[changed[0]] not in shown:
        (index,) = changed
        item = _restore(edited[index], stored[index], shown[index], f"{path}[{index}]")
        return [*stored[:index], item, *stored[index + 1 :]]
    return list(_found(edited, stored, shown, path))


def _found(edited: list[Any], stored: list[Any], shown: list[Any], path: str) -> Iterator[Any]:
    """The items with stars as they are stored: some may be gone, and others have come between."""
    last = -1
    for index, item in enumerate(edited):
        if not _has_stars(item):
            yield item
            continue
        alike = [place for place, other in enumerate(shown) if _same(item, other)]
        after = [place for place in alike if place > last]
        if not after or not all(_same(stored[place], stored[alike[0]]) for place in alike):
            raise NoSecret(f"{path}[{index}]")
        last = after[0]
        yield stored[last]


def _has_stars(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_stars, value.values()))
    return any(map(_has_stars, value)) if isinstance(value, list) else value == HIDDEN


def _same(one: Any, other: Any) -> bool:
    """Whether they are the same JSON: 1 is not true, and not 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def changed_secrets(before: Any, after: Any, patterns: Iterable[str]) -> list[str]:
    """Where another value stands, or one came or went, of what is hidden. Without the values."""
    patterns = tuple(patterns)
    hidden = [_hidden(value, redact(value, patterns), "") for value in (before, after)]
    one, other = (dict(found) for found in hidden)
    paths = {**one, **other}
    return [path for path in paths if not _same(one.get(path), other.get(path))]


def _hidden(value: Any, shown: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and isinstance(shown, dict):
        for key, member in value.items():
            yield from _hidden(member, shown[key], f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and isinstance(shown, list):
        for index, item in enumerate(value):
            yield from _hidden(item, shown[index], f"{path}[{index}]")
    elif shown == HIDDEN:
        yield path, value


def secrets_of(value: Any, patterns: Iterable[str]) -> frozenset[str]:
    """The texts that `redact` would hide in a JSON value, to be found again in other texts.

    As they are, and as Python and JSON quote them.
    """
    paths = [pattern.split(".") for pattern in patterns]
    return frozenset(form for text in _texts(value, paths) for form in _forms(text))


def hide(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets, such as the message of an error that quotes one."""
    for secret in sorted(_near(text, list(secrets)), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _near(text: str, secrets: list[str]) -> list[str]:
    """Those that may stand in the text. To look for each of fifty thousand takes a second."""
    if len(secrets) < MANY:
        return secrets
    parts = {text[index : index + SHORTEST] for index in range(len(text))}
    return [one for one in secrets if one[:SHORTEST] in parts or len(one) < SHORTEST]


def _texts(value: Any, paths: Sequence[Sequence[str]]) -> Iterator[str]:
    """What stands at the ends of these paths, and below. Nothing else is looked at."""
    if isinstance(value, dict):
        for key, member in list(value.items()):
            below = [path[1:] for path in paths if not path or fnmatchcase(str(key), path[0])]
            if below:
                yield from _texts(member, below)
    elif isinstance(value, list):
        for item in list(value):
            yield from _texts(item, paths)
    elif not all(paths) and value is not None and not isinstance(value, bool):
        text = str(value)
        if len(text) >= SHORTEST:
            yield text


def _forms(text: str) -> tuple[str, str, str]:
    return text, repr(text)[1:-1], json.dumps(text)[1:-1]
