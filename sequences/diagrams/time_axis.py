"""A time axis that leaves out long idle times, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle, pairwise
from typing import NamedTuple

from ..utils.durations import format_seconds

#: Idle times are left out if active times would take less than this part of the axis.
SHARE = 0.1
#: In seconds. Shorter idle times are never left out.
MIN_GAP_SECONDS = 2.0
#: In pixels.
BREAK = 52.0
APART = 74.0
_DAY = 86_400
_STEPS = (
    *(count * 10.0**power / 1000 for power in range(3) for count in (1, 2, 5)),
    *(1.0, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(count * 10.0**power * _DAY for power in range(5) for count in (1, 2, 5)),
)

Interval = tuple[float, float]
#: Formats a number of seconds.
FormatSeconds = Callable[[float], str]


class Piece(NamedTuple):
    """A part of the axis: seconds, and where they are drawn."""

    begin: float
    end: float
    x: float
    width: float


class Tick(NamedTuple):
    """A mark on the axis."""

    x: float
    text: str


class Scale:
    """Maps seconds since the start to pixels."""

    def __init__(self, total: float, busy: Iterable[Interval], left: float, width: float) -> None:
        self.total = max(total, 0.001)
        gaps = _left_out(list(busy), self.total, width)
        narrow = min(BREAK, width / 2 / len(gaps)) if gaps else 0.0
        to_scale = self.total - sum(end - begin for begin, end in gaps)
        self.pixels_per_second = (width - narrow * len(gaps)) / to_scale
        self.pieces = list(self._pieces(gaps, left, narrow))
        #: Those to scale, and between them those that are left out.
        self.parts, self.breaks = self.pieces[::2], self.pieces[1::2]

    def x(self, second: float) -> float:
        """Where a second is drawn; clamped to the start and the end."""
        second = min(max(second, 0.0), self.total)
        piece = next(piece for piece in self.pieces if second <= piece.end)
        length = piece.end - piece.begin or 1.0
        return piece.x + piece.width * (second - piece.begin) / length

    def ticks(self, format_seconds: FormatSeconds = format_seconds) -> Iterator[Tick]:
        """Round times. After a break, they count from its end."""
        shortest = APART / self.pixels_per_second
        step = next((step for step in _STEPS if step >= shortest), _STEPS[-1])
        apart = step * self.pixels_per_second
        for piece in self.parts:
            room = piece.width + 0.5 - (0 if piece is self.parts[-1] else APART / 2)
            for count in range(1 if piece.begin else 0, int(room // apart) + 1):
                x = piece.x + min(count * apart, piece.width)
                text = format_seconds(count * step) if count else "0"
                yield Tick(x, f"+{text}" if piece.begin else text)

    def _pieces(self, gaps: Iterable[Interval], x: float, narrow: float) -> Iterator[Piece]:
        times = pairwise([0.0, *chain.from_iterable(gaps), self.total])
        for (begin, end), is_left_out in zip(times, cycle((False, True))):
            width = narrow if is_left_out else (end - begin) * self.pixels_per_second
            yield Piece(begin, end, x, width)
            x += width


def _left_out(busy: Sequence[Interval], total: float, width: float) -> list[Interval]:
    """The longest idle times, until there is enough room for the rest."""
    idle = list(_idle(busy, total)) if busy else []
    active = max(total - sum(end - begin for begin, end in idle), 0.001 * len(idle))
    visible, gaps = total, list[Interval]()
    for begin, end in sorted(idle, key=lambda gap: gap[0] - gap[1]):
        # A little remains on both sides, so that the beginning and the end of a wait are visible.
        length = end - begin - active / 2
        is_worth_it = length / visible * width > 2 * BREAK
        if active >= SHARE * visible or length < MIN_GAP_SECONDS or not is_worth_it:
            break
        gaps.append((begin + active / 4, end - active / 4))
        visible -= length
    return sorted(gaps)


def _idle(busy: Sequence[Interval], total: float) -> Iterator[Interval]:
    """The intervals that nothing covers."""
    covered = 0.0
    for begin, end in sorted([*busy, (total, total)]):
        if covered < min(begin, total):
            yield covered, min(begin, total)
        covered = max(covered, end)
