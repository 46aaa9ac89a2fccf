"""Keeps secrets inside `data`: values named by `Meta.redact` are shown as `***`. Pure."""

from __future__ import annotations

import html
import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from html.entities import codepoint2name
from typing import Any, TypeAlias
from urllib.parse import quote, quote_plus

HIDDEN = "***"
#: Shorter secrets are not searched for in other texts: they would hide half of the text.
MIN_SECRET_LENGTH = 4
#: From this many secrets on, an index of the text tells which of them to search for.
MIN_INDEXED_SECRETS = 100


#: The keys on the path to a value.
Path: TypeAlias = tuple[str, ...]


def path_of(pattern: str) -> Path:
    """The parts of a pattern, which may have the index of an item in brackets."""
    # The notation of JSONPath and others: $.cards[*].number, cards[].number, cards[0].number
    dotted = re.sub(r"\[(\*?|\d+)\]", lambda place: f".{place[1] or '*'}", pattern)
    parts = (part.strip() for part in dotted.split("."))
    return tuple(part for part in parts if part not in ("", "$")) or ("*",)


def redact(value: Any, patterns: Iterable[str]) -> Any:
    """Return a copy of a JSON value without the values that the patterns select.

    A pattern is a path of keys separated by dots, in which ``*`` stands for any part of a key:
    ``"card.*"`` hides every value of ``card``. The items of a list can be addressed by the list's
    own key, or by their indexes below it: ``"cards.number"``, ``"cards.*.number"`` and
    ``"cards[].number"`` hide the same values, and ``"cards.0.number"`` only that of the first item.
    """
    paths = _paths(patterns)
    return _redact(value, paths) if paths else value


def _paths(patterns: Iterable[str]) -> list[Path]:
    return [path_of(pattern) for pattern in patterns]


def _redact(value: Any, paths: Sequence[Path]) -> Any:
    if isinstance(value, dict):
        return {key: _part(member, _below(key, paths)) for key, member in value.items()}
    if isinstance(value, list):
        return [_part(item, _of_item(place, paths)) for place, item in enumerate(value)]
    return value


def _part(value: Any, paths: Sequence[Path]) -> Any:
    return _redact(value, paths) if all(paths) else HIDDEN


def _below(name: str, paths: Iterable[Path]) -> list[Path]:
    return [path[1:] for path in paths if path and fnmatchcase(name, path[0])]


def _of_item(place: int, paths: Sequence[Path]) -> list[Path]:
    # Deduplicated: nested lists would double the patterns at every level.
    return list(dict.fromkeys([*paths, *_below(str(place), paths)]))


class NoSecret(ValueError):
    """There are stars where no secret is stored, or it is ambiguous which secret they stand for."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        #: The path of the stars: ``cards[1].number``.
        self.path = path


def restore(edited: Any, stored: Any, patterns: Iterable[str]) -> Any:
    """Return an edited ``redact(stored)`` with the secrets put back where stars were left.

    A secret is put back only where it was, under the same keys, where it is hidden again. Stars
    anywhere else raise `NoSecret`. So do list items that were moved so that it is ambiguous which
    secret belongs to which.
    """
    return _restore(edited, stored, redact(stored, patterns), "")


_NOTHING = object()


def _restore(edited: Any, stored: Any, redacted: Any, path: str) -> Any:
    # Unchanged values stay, including a string that has always been three stars.
    if redacted is not _NOTHING and _same(edited, redacted):
        return stored
    if edited == HIDDEN:
        raise NoSecret(path)
    if isinstance(edited, dict):
        stored, redacted = (stored, redacted) if isinstance(redacted, dict) else ({}, {})
        return {
            key: _restore(
                value,
                stored.get(key, _NOTHING),
                redacted.get(key, _NOTHING),
                f"{path}.{key}".lstrip("."),
            )
            for key, value in edited.items()
        }
    if isinstance(edited, list):
        stored, redacted = (stored, redacted) if isinstance(redacted, list) else ([], [])
        return _restore_items(edited, stored, redacted, path)
    return edited


def _restore_items(
    edited: list[Any], stored: list[Any], redacted: list[Any], path: str
) -> list[Any]:
    pairs = list(enumerate(zip(edited, redacted, strict=False)))
    changed = [index for index, (item, other) in pairs if not _same(item, other)]
    if len(edited) == len(redacted) and len(changed) == 1 and edited[changed[0]] not in redacted:
        (index,) = changed
        item = _restore(edited[index], stored[index], redacted[index], f"{path}[{index}]")
        return [*stored[:index], item, *stored[index + 1 :]]
    return list(_restored_by_likeness(edited, stored, redacted, path))


def _restored_by_likeness(
    edited: list[Any], stored: list[Any], redacted: list[Any], path: str
) -> Iterator[Any]:
    """Match items that have stars with the stored ones; items may have been removed or inserted."""
    last = -1
    for index, item in enumerate(edited):
        if not _has_stars(item):
            yield item
            continue
        alike = [place for place, other in enumerate(redacted) if _same(item, other)]
        after = [place for place in alike if place > last]
        # Nobody must learn whether items that look alike are equal, not even from which one is
        # used.
        if not after or sum(_same(item, other) for other in edited) != len(alike):
            raise NoSecret(f"{path}[{index}]")
        last = after[0]
        yield stored[last]


def _has_stars(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_stars, value.values()))
    return any(map(_has_stars, value)) if isinstance(value, list) else value == HIDDEN


def _same(value: Any, other: Any) -> bool:
    """Whether they are the same JSON: 1 differs from true and from 1.0."""
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def changed_secrets(stored: Any, edited: Any, patterns: Iterable[str]) -> list[str]:
    """The paths where somebody has replaced or removed stars.

    It does not say whether the new value differs from the stored one, which would confirm a guess.
    """
    patterns = tuple(patterns)
    before, after = (
        dict(_hidden(value, redact(value, patterns), "")) for value in (stored, edited)
    )
    written = [path for path, value in after.items() if value != HIDDEN or path not in before]
    return [*(path for path in before if path not in after), *written]


def _hidden(value: Any, redacted: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and isinstance(redacted, dict):
        for key, member in value.items():
            yield from _hidden(member, redacted[key], f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and isinstance(redacted, list):
        for index, item in enumerate(value):
            yield from _hidden(item, redacted[index], f"{path}[{index}]")
    elif redacted == HIDDEN:
        yield path, value


def secrets_of(value: Any, patterns: Iterable[str]) -> frozenset[str]:
    """The strings that `redact` would hide in a JSON value, to search for in other texts."""
    return frozenset(_texts(value, tuple(_paths(patterns)), set()))


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return the text without these secrets, such as an error message that quotes one.

    A secret is found as it is, as quoted by Python, JSON, HTML and URLs (also nested), and inside
    base64 or hexadecimal text.
    """
    distinct = list(secrets)
    text = _hide_encoded(text, distinct)
    for secret in sorted(_near(text, distinct), key=len, reverse=True):
        text = _hide_quoted(text, secret)
    return text


def _near(text: str, secrets: list[str]) -> list[str]:
    """The secrets that may be in the text. Searching for each of fifty thousand takes a second."""
    if len(secrets) < MIN_INDEXED_SECRETS:
        return [secret for secret in secrets if _anchor(secret) in text]
    parts = _parts(text)
    anchors = ((secret, _anchor(secret)) for secret in secrets)
    return [
        secret
        for secret, anchor in anchors
        if anchor[:MIN_SECRET_LENGTH] in parts or len(anchor) < MIN_SECRET_LENGTH
    ]


def _parts(text: str | bytes) -> set[str | bytes]:
    return {text[index : index + MIN_SECRET_LENGTH] for index in range(len(text))}


_LONG_ENOUGH = re.compile(rf"[A-Za-z0-9]{{{MIN_SECRET_LENGTH},}}")
_PLAIN = re.compile(r"[A-Za-z0-9]+")


def _anchor(secret: str) -> str:
    """A part of the secret that no quoting changes, or an empty string."""
    if match := _LONG_ENOUGH.search(secret):
        return match[0]
    return max(_PLAIN.findall(secret), key=len, default="")


# Quoted secrets

#: Longer secrets are searched for only in the quotings that a few libraries use.
MAX_PATTERN_LENGTH = 2_000
_LETTERS = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v", "\a": "a"}
#: Backslashes before a character: each level of quoting doubles them.
_BACKSLASHES = r"\\{%d,16}+"


def _hide_quoted(text: str, secret: str) -> str:
    is_plain = secret.isascii() and secret.isalnum()
    if not is_plain and len(secret) <= MAX_PATTERN_LENGTH:
        return _pattern(secret).sub(HIDDEN, text)
    for form in (secret,) if is_plain else _forms(secret):
        text = text.replace(form, HIDDEN)
    return text


def _forms(text: str) -> tuple[str, ...]:
    quoted = html.escape(text), quote(text), quote_plus(text)
    return text, repr(text)[1:-1], json.dumps(text)[1:-1], *quoted


@lru_cache(1_000)
def _pattern(secret: str) -> re.Pattern[str]:
    """A pattern for the secret with each of its characters quoted in one way or another."""
    parts, after_backslash = [], False
    for part in re.findall(r"\\+|[^\\]", secret):
        parts.append(_quoted(part, after_backslash))
        after_backslash = part[0] == "\\"
    return re.compile("".join(parts))


def _quoted(char: str, after_backslash: bool) -> str:
    if char.isascii() and char.isalnum():
        return char
    if char[0] == "\\":
        # All possessive; otherwise, the parts could divide the text in thousands of ways.
        return rf"(?:\\|{_in_url(char[0])}|{_in_html(char[0])}){{{len(char)},}}+"
    forms = [
        _in_html(char),
        _in_url(char),
        *([r"\+", _in_url("+")] if char == " " else []),
        rf"{_BACKSLASHES % (0 if after_backslash else 1)}(?:{_escaped(char)})",
        rf"{_BACKSLASHES % 0}{re.escape(char)}",
    ]
    return f"(?:{'|'.join(forms)})"


def _escaped(char: str) -> str:
    """What follows the backslash, or the first one, in Python and JSON."""
    code = ord(char)
    forms = [f"u{code:04x}", f"U{code:08x}", f"u\\{{{code:x}\\}}"]
    forms += [f"x{code:02x}"] if code < 256 else []
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        forms.append(rf"u{0xD800 + high:04x}{_BACKSLASHES % 1}u{0xDC00 + low:04x}")
    if code > 127:  # the UTF-8 bytes
        forms.append((_BACKSLASHES % 1).join(f"x{byte:02x}" for byte in _bytes(char)))
    text = f"(?i:{'|'.join(forms)})"
    return f"{text}|{_LETTERS[char]}" if char in _LETTERS else text


def _in_url(char: str) -> str:
    # A URL inside another URL's query has its percent signs quoted, too.
    utf8 = "".join(f"%(?:25)*{byte:02x}" for byte in _bytes(char))
    return f"(?i:{utf8})"


def _in_html(char: str) -> str:
    names = [codepoint2name[ord(char)]] if ord(char) in codepoint2name else []
    names += ["apos"] if char == "'" else []
    forms = [f"#0*{ord(char)}", f"(?i:#x0*{ord(char):x})", *names]
    return f"&(?:amp;)*(?:{'|'.join(forms)});"


def _bytes(char: str) -> bytes:
    return char.encode("utf-8", "surrogatepass")


# Encoded secrets

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
_STANDARD = str.maketrans("-_", "+/")


def _hide_encoded(text: str, secrets: list[str]) -> str:
    """Hide base64 or hexadecimal text that contains a secret.

    It hides the whole text, such as the credentials of a header: its ends would reveal the secret's
    ends.
    """
    for pattern, decode in ((_BASE64, _base64), (_HEX, _hexadecimal)):
        encoded = _near_bytes(b"\n".join(map(decode, pattern.findall(text))), secrets)
        if encoded:
            text = pattern.sub(partial(_without, decode, encoded), text)
    return text


def _without(decode: Callable[[str], bytes], secrets: Sequence[bytes], match: re.Match[str]) -> str:
    decoded = decode(match[0])
    return HIDDEN if any(secret in decoded for secret in secrets) else match[0]


def _near_bytes(decoded: bytes, secrets: list[str]) -> list[bytes]:
    if not decoded:
        return []
    encoded = [secret.encode("utf-8", "surrogatepass") for secret in secrets]
    if len(secrets) >= MIN_INDEXED_SECRETS:
        parts = _parts(decoded)
        encoded = [secret for secret in encoded if secret[:MIN_SECRET_LENGTH] in parts]
    return [secret for secret in encoded if secret in decoded]


def _base64(text: str) -> bytes:
    """Possible decodings: base64 does not tell where it begins."""
    text = text.rstrip("=").translate(_STANDARD)
    starts = (text[start:] for start in range(4))
    return b"\n".join(
        b64decode(part[: len(part) - (len(part) % 4 == 1)] + "===") for part in starts
    )


def _hexadecimal(text: str) -> bytes:
    return bytes.fromhex(text)


Visits: TypeAlias = set[tuple[int, tuple[Path, ...]]]


def _texts(value: Any, paths: tuple[Path, ...], visits: Visits) -> Iterator[str]:
    """Yield the strings at and below these paths. No other values are visited.

    A value of a step may be in many places, or inside itself: it is visited only once.
    """
    if isinstance(value, dict | list):
        if (visit := (id(value), paths)) in visits:
            return
        visits.add(visit)
        for part, below in list(_parts_of(value, paths)):
            if below:
                yield from _texts(part, tuple(below), visits)
    elif not all(paths) and value is not None and not isinstance(value, bool):
        text = str(value)
        if len(text) >= MIN_SECRET_LENGTH:
            yield text


def _parts_of(value: Any, paths: Sequence[Path]) -> Iterator[tuple[Any, list[Path]]]:
    ends = [path for path in paths if not path][:1]
    if isinstance(value, list):
        yield from ((item, _of_item(place, paths)) for place, item in enumerate(value))
    else:
        yield from ((part, ends + _below(str(key), paths)) for key, part in value.items())
