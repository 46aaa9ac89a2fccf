"""Tables that fit a terminal, and whose texts cannot control it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ...utils.terminal import cells, cut, plain

Paint = Callable[[str], str]

#: No column is cut below this many characters.
MIN_COLUMN_WIDTH = 8
GAP = "  "


class Cell(NamedTuple):
    """A text in a table, and its colour."""

    text: str
    paint: Paint = str


def table(
    rows: Iterable[Iterable[object]], width: int | None, *, narrowing: Iterable[int] = ()
) -> list[str]:
    """The lines of a table of texts and `Cell`s, which cannot control a terminal. None is empty.

    If it is too wide, the widest of the columns that may be cut is cut, again and again.
    """
    lines = [[_cell(value) for value in row] for row in rows]
    widths = [max(cells(cell.text) for cell in column) for column in zip(*lines, strict=True)]
    if width is not None:
        _narrow(widths, width - len(GAP) * (len(widths) - 1), list(narrowing))
    return [GAP.join(map(_fitted, line, widths)).rstrip() for line in lines]


def _cell(value: object) -> Cell:
    if value is None:
        return Cell("")
    text, paint = value if isinstance(value, Cell) else (value, str)
    return Cell(plain(text), paint)


def _narrow(widths: list[int], room: int, columns: list[int]) -> None:
    while sum(widths) > room and columns:
        widest = max(columns, key=lambda index: widths[index])
        if widths[widest] <= MIN_COLUMN_WIDTH:
            return
        widths[widest] -= 1


def _fitted(cell: Cell, width: int) -> str:
    text = cut(cell.text, width)
    return cell.paint(text) + " " * (width - cells(text)) if text else " " * width


def shortened(ids: Sequence[object]) -> dict[object, str]:
    """The shortest prefix of each id that identifies it: what people type again."""
    texts = {pk: str(pk) for pk in ids}
    for length in (18, 23, 28):
        if len({text[:length] for text in texts.values()}) == len(texts):
            return {pk: text[:length] for pk, text in texts.items()}
    return texts
