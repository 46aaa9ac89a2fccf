"""Text for a terminal: how wide it is, and nothing in it that could steer one. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable


def printable(text: str, escape: Callable[[str], str], *, keep: str = "") -> str:
    """The text, with what a terminal may obey escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else escape(char) for char in text)


def plain(text: object, *, lines: bool = False) -> str:
    """The text without what a terminal obeys: an escape in somebody's key must not reach it."""
    keep = "\n\t" if lines else ""
    return printable(str(text), lambda char: char.encode("unicode_escape").decode(), keep=keep)


def cells(text: str) -> int:
    """How many cells of a terminal it takes."""
    return sum(map(_cells, text))


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def cut(text: str, width: int, dots: str = "…") -> str:
    """As much of it as so many cells hold."""
    if cells(text) <= width:
        return text
    room, end = width - len(dots), 0
    while room >= _cells(text[end]):
        room -= _cells(text[end])
        end += 1
    return text[:end].rstrip() + dots
