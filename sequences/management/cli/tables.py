"""Text for a terminal: tables that fit it, and nothing in them that could steer it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from unicodedata import east_asian_width

from .base import Paint, printable

#: Characters below which no column is cut.
MIN_COLUMN_WIDTH = 8
GAP = "  "


class Cell(NamedTuple):
    """A text in a table, and its colour."""

    text: str
    paint: Paint = str


def plain(text: object, *, lines: bool = False) -> str:
    """The text without what a terminal obeys: an escape in somebody's key must not reach it."""
    keep = "\n\t" if lines else ""
    return printable(str(text), lambda char: char.encode("unicode_escape").decode(), keep=keep)


def columns_of(text: str) -> int:
    """How many columns it takes."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, width: int) -> str:
    """As much of it as fits."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def table(
    rows: Sequence[Sequence[Cell]], width: int | None, *, narrowing: Iterable[int] = ()
) -> list[str]:
    """Lines of columns. If they are too wide, the widest of those named is cut, again and again."""
    widths = [max(columns_of(cell.text) for cell in column) for column in zip(*rows, strict=True)]
    if width is not None:
        _narrow(widths, width - len(GAP) * (len(widths) - 1), list(narrowing))
    return [GAP.join(map(_fitted, row, widths)).rstrip() for row in rows]


def _narrow(widths: list[int], room: int, columns: list[int]) -> None:
    while sum(widths) > room and columns:
        widest = max(columns, key=lambda index: widths[index])
        if widths[widest] <= MIN_COLUMN_WIDTH:
            return
        widths[widest] -= 1


def _fitted(cell: Cell, width: int) -> str:
    text = cut(cell.text, width)
    return cell.paint(text) + " " * (width - columns_of(text)) if text else " " * width


def shortened(ids: Sequence[object]) -> dict[object, str]:
    """As much of each id as tells it from the others: what people type again."""
    texts = {pk: str(pk) for pk in ids}
    for length in (18, 23, 28):
        if len({text[:length] for text in texts.values()}) == len(texts):
            return {pk: text[:length] for pk, text in texts.items()}
    return texts
