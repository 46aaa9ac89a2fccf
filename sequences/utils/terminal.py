"""Text for a terminal: its width, and escaping of whatever could control the terminal. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import accumulate


def printable(text: str, escape: Callable[[str], str], *, keep: str = "") -> str:
    """Escape what a terminal would interpret."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else escape(char) for char in text)


def plain(text: object, *, lines: bool = False) -> str:
    """Remove what a terminal would interpret: an escape sequence in a user's key must not reach
    it."""
    keep = "\n\t" if lines else ""
    return printable(str(text), lambda char: char.encode("unicode_escape").decode(), keep=keep)


def cells(text: str) -> int:
    """The number of terminal cells that it takes."""
    return sum(map(_cells, text))


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def cut(
    text: str, width: float, dots: str = "…", *, width_of: Callable[[str], float] = cells
) -> str:
    """Cut it to this number of cells, or to this width by another measure."""
    if width_of(text) <= width:
        return text
    room = width - width_of(dots)
    ends = accumulate(map(width_of, text))
    return text[: sum(end <= room for end in ends)].rstrip() + dots
