"""A time axis that leaves out what is long and idle, and says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from ..utils.durations import format_seconds

#: How small a part of the axis may be left to what has happened before idle times are left out.
SHARE = 0.1
#: Seconds. Shorter idle times are never left out.
SHORTEST = 2.0
#: Pixels.
BREAK = 52.0
APART = 74.0
_DAY = 86_400
_STEPS = (
    *(count * 10.0**power / 1000 for power in range(3) for count in (1, 2, 5)),
    *(1.0, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(count * 10.0**power * _DAY for power in range(5) for count in (1, 2, 5)),
)

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the axis: seconds, and where they are drawn; ``left_out``: not to scale."""

    begin: float
    end: float
    x: float
    width: float
    left_out: bool = False

    def at(self, second: float) -> float:
        """Where a second of it is drawn."""
        length = self.end - self.begin
        return self.x + (self.width * (second - self.begin) / length if length else 0.0)


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the axis."""

    x: float
    text: str


class Scale:
    """Seconds since the start as pixels."""

    def __init__(self, total: float, busy: Iterable[Interval], left: float, width: float) -> None:
        self.total = max(total, 0.001)
        merged = list(_merged(busy, self.total))
        gaps = _left_out(merged, self.total, width)
        self.pieces = list(_pieces(gaps, self.total, left, width))

    def x(self, second: float) -> float:
        """Where a second is drawn; one before the start or after the end stands at that."""
        second = min(max(second, 0.0), self.total)
        found = (piece for piece in self.pieces if second <= piece.end)
        return next(found, self.pieces[-1]).at(second)

    @property
    def breaks(self) -> list[Piece]:
        """What is left out."""
        return [piece for piece in self.pieces if piece.left_out]

    def ticks(self) -> Iterator[Tick]:
        """Round times. Behind a break they count from its end."""
        step = self._step()
        for index, piece in enumerate(self.pieces):
            if piece.left_out:
                continue
            first = 0 if piece.begin == 0 else 1
            is_last = index == len(self.pieces) - 1
            room = piece.x + piece.width - (0 if is_last else APART / 2)
            for count in range(first, ceil((piece.end - piece.begin) / step) + 1):
                x = piece.at(piece.begin + count * step)
                if x <= room + 0.5:
                    end = piece.x + piece.width
                    yield Tick(min(x, end), _told(count * step, since_start=piece.begin == 0))

    def _step(self) -> float:
        shown = [piece for piece in self.pieces if not piece.left_out]
        seconds = sum(piece.end - piece.begin for piece in shown) or self.total
        pixels = sum(piece.width for piece in shown) or 1.0
        wanted = APART * seconds / pixels
        return next((step for step in _STEPS if step >= wanted), _STEPS[-1])


def _told(seconds: float, *, since_start: bool) -> str:
    text = format_seconds(seconds) if seconds else "0"
    return text if since_start else f"+{text}"


def _merged(intervals: Iterable[Interval], total: float) -> Iterator[Interval]:
    """What of the whole is covered, without overlaps."""
    last: Interval | None = None
    within = [(min(max(a, 0.0), total), min(max(b, 0.0), total)) for a, b in intervals]
    for begin, end in sorted(within):
        if last and begin <= last[1]:
            last = (last[0], max(last[1], end))
        else:
            if last:
                yield last
            last = (begin, end)
    if last:
        yield last


def _left_out(busy: Sequence[Interval], total: float, width: float) -> list[Interval]:
    """The longest idle times, until there is room for the rest."""
    if not busy:
        return []
    active = max(sum(end - begin for begin, end in busy), 0.001 * len(busy))
    shown, found = total, list[Interval]()
    for begin, end in sorted(_idle(busy, total), key=lambda gap: gap[0] - gap[1]):
        # A little of it stays on both sides, so that one sees a wait begin and end.
        length = end - begin - active / 2
        is_worth_it = length / shown * width > 2 * BREAK
        if active >= SHARE * shown or length < SHORTEST or not is_worth_it:
            break
        found.append((begin + active / 4, end - active / 4))
        shown -= length
    return sorted(found)


def _idle(busy: Sequence[Interval], total: float) -> Iterator[Interval]:
    edges = [0.0, *(edge for interval in busy for edge in interval), total]
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if end > begin:
            yield begin, end


def _pieces(gaps: Sequence[Interval], total: float, left: float, width: float) -> Iterator[Piece]:
    narrow = min(BREAK, width / 2 / len(gaps)) if gaps else 0.0
    seconds = total - sum(end - begin for begin, end in gaps)
    each = (width - narrow * len(gaps)) / seconds if seconds else 0.0
    x, at = left, 0.0
    for begin, end in gaps:
        yield Piece(at, begin, x, (begin - at) * each)
        x += (begin - at) * each
        yield Piece(begin, end, x, narrow, left_out=True)
        x, at = x + narrow, end
    yield Piece(at, total, x, left + width - x)
