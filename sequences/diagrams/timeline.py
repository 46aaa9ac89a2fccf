"""The timeline of a run: when each step waited, ran and failed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ..utils.durations import format_seconds
from .marks import SPANS, Translate
from .markup import clean, document, element, fitted, hidden, linked, listed, width_of
from .time_axis import FormatSeconds, Interval, Piece, Scale

#: In pixels.
LABEL, LENGTH = 168.0, 88.0
TOP, LANE, PAD = 30.0, 28.0, 10.0
LEGEND = 26.0
SIZE = 12.0
#: The height of each kind of bar, and its minimum width, so that even the shortest one is visible.
BARS = {
    "waited": (5.0, 1.0),
    "ran": (15.0, 3.0),
    "items": (11.0, 3.0),
    "children": (11.0, 3.0),
    "failed": (15.0, 11.0),
    "held": (9.0, 3.0),
}

Kind = Literal["waited", "ran", "items", "children", "failed", "held"]
#: Kinds of bars that show activity, for which the axis keeps room.
BUSY = ("ran", "items", "children", "failed")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a step did for a while."""

    kind: Kind
    begins: datetime
    #: None: it has not ended.
    ends: datetime | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """One step, and what it did."""

    name: str
    label: str
    href: str = ""
    spans: Sequence[Span] = ()
    #: The text on the right; empty: the time that the step ran.
    text: str = ""


def timeline(
    lanes: Sequence[Lane],
    start: datetime,
    end: datetime | None,
    now: datetime,
    *,
    label: str = "",
    translate: Translate = str,
    format_seconds: FormatSeconds = format_seconds,
    standalone: bool = False,
    width: float = 960.0,
) -> str:
    """When each step did what, as an SVG that can be embedded in a page: everything is escaped.

    It reaches from ``start`` to ``end``, or to ``now`` if there is no end. Idle times that would
    leave too little room for the rest are left out: the axis is broken there, and says for how
    long.
    """
    painter = _Painter(lanes, start, end or now, translate, format_seconds, width)
    return painter.picture(label, standalone=standalone)


class _Painter:
    def __init__(
        self,
        lanes: Sequence[Lane],
        start: datetime,
        until: datetime,
        translate: Translate,
        format_seconds: FormatSeconds,
        width: float,
    ) -> None:
        self.lanes, self.start, self.until, self.translate = lanes, start, until, translate
        self.format_seconds = format_seconds
        self.width = max(width, LABEL + LENGTH + 2 * PAD + 200)
        busy = [self.interval(span) for lane in lanes for span in lane.spans if span.kind in BUSY]
        room = self.width - LABEL - LENGTH - 2 * PAD
        self.scale = Scale(self.seconds(until), busy, PAD + LABEL, room)
        self.bottom = TOP + LANE * len(lanes)

    def seconds(self, moment: datetime) -> float:
        return (moment - self.start) / timedelta(seconds=1)

    def interval(self, span: Span) -> Interval:
        begin = self.seconds(span.begins)
        return begin, max(self.seconds(span.ends or self.until), begin)

    def word(self, kind: str) -> str:
        return self.translate(SPANS[kind])

    def picture(self, label: str, *, standalone: bool) -> str:
        return document(
            self.width,
            self.bottom + LEGEND + PAD,
            hidden(self._axis(), "seq-axis"),
            listed(self._lane(*row) for row in enumerate(self.lanes)),
            hidden(self._breaks(), "seq-breaks"),
            hidden(self._legend(), "seq-legend"),
            label=label,
            standalone=standalone,
            class_="seq-timeline",
        )

    def _axis(self) -> Iterator[str]:
        for tick in self.scale.ticks(self.format_seconds):
            line = f"M{tick.x:.1f},{TOP - 4:g} V{self.bottom:g}"
            yield element("path", d=line, class_="seq-tick")
            yield element("text", text=tick.text, x=tick.x, y=TOP - 11, class_="seq-time")

    def _breaks(self) -> Iterator[str]:
        for piece in self.scale.breaks:
            middle = piece.x + piece.width / 2
            text = fitted(self._short(piece), 11, max(piece.width, 30.0) + 14)
            yield element("text", text=text, x=middle, y=TOP - 11, class_="seq-left-out")
            for shift, class_ in ((0, "seq-break-paper"), (-3, "seq-break"), (3, "seq-break")):
                edge = _zigzag(middle + shift, TOP - 5, self.bottom)
                yield element("path", d=edge, class_=class_)

    # One step

    def _lane(self, index: int, lane: Lane) -> str:
        top = TOP + index * LANE
        name = self._accessible_name(lane)
        return linked(
            element("rect", x=0, y=top, width=self.width, height=LANE, class_="seq-row"),
            self._text(fitted(lane.label, SIZE, LABEL - 14), PAD, top, "seq-name"),
            *(self._span(span, top) for span in lane.spans),
            self._text(self._length(lane), self.width - PAD, top, "seq-length"),
            label=name,
            title=name,
            href=lane.href,
            class_="seq-lane",
        )

    def _text(self, text: str, x: float, top: float, class_: str) -> str:
        return element("text", text=text, x=x, y=top + LANE / 2 + 4, class_=class_)

    def _accessible_name(self, lane: Lane) -> str:
        words = [self._sum(lane, kind) for kind in BARS if kind != "failed"]
        failed = sum(span.kind == "failed" for span in lane.spans)
        words.append(f"{failed} × {self.word('failed')}" if failed else "")  # noqa: RUF001
        return ": ".join(filter(None, (lane.label, ", ".join(filter(None, words)) or lane.text)))

    def _sum(self, lane: Lane, kind: str) -> str:
        length = self._length_of(lane, [kind])
        return f"{self.word(kind)} {length}" if length else ""

    def _length_of(self, lane: Lane, kinds: Collection[str]) -> str:
        spans = [self.interval(span) for span in lane.spans if span.kind in kinds]
        return self.format_seconds(sum(end - begin for begin, end in spans)) if spans else ""

    def _length(self, lane: Lane) -> str:
        text = lane.text or self._length_of(lane, BUSY) or "–"  # noqa: RUF001
        return fitted(text, 11.5, LENGTH - 8)

    def _span(self, span: Span, top: float) -> str:
        begin, end = self.interval(span)
        x, right = self.scale.x(begin), self.scale.x(end)
        height, least = BARS[span.kind]
        width = max(right - x, least)
        x = min(max(x - (width - right + x) / 2, PAD + LABEL), self.width - PAD - LENGTH - width)
        y = top + (LANE - height) / 2
        title = f"{self.word(span.kind)} {self.format_seconds(end - begin)}\n{span.title}".rstrip()
        parts = [element("title", text=title), self._bar(span.kind, x, top + LANE / 2, width)]
        if span.ends is None:
            tip = f"M{right:.1f},{y:g} l5,{height / 2:g} l-5,{height / 2:g} Z"
            parts.append(element("path", d=tip, class_="seq-tip"))
        still = " seq-still" if span.ends is None else ""
        return element("g", *parts, class_=f"seq-span seq-span-{span.kind}{still}")

    def _bar(self, kind: str, x: float, middle: float, width: float) -> str:
        """A failed attempt also has a shape of its own, not only a colour."""
        height, rx = BARS[kind][0], min(3.0, width / 2)
        y = middle - height / 2
        bar = element("rect", x=x, y=y, width=width, height=height, rx=rx, class_="seq-bar")
        if kind != "failed":
            return bar
        cross = f"M{x + width / 2 - 3:.1f},{middle - 3:g} l6,6 m0,-6 l-6,6"
        return bar + element("path", d=cross, class_="seq-cross")

    def _legend(self) -> Iterator[str]:
        x, middle = PAD + LABEL, self.bottom + 18
        spans = [span for lane in self.lanes for span in lane.spans]
        kinds = {span.kind for span in spans}
        ended = {span.kind for span in spans if span.ends is not None}
        for kind in (kind for kind in BARS if kind in kinds):
            # In the colour of the bars; for unfinished work, the colour of work.
            still = "" if kind in ended else " seq-still"
            class_ = f"seq-span seq-span-{kind}{still}"
            yield element("g", self._bar(kind, x, middle, 18), class_=class_)
            word = clean(self.word(kind))
            yield element("text", text=word, x=x + 24, y=middle + 4, class_="seq-word")
            x += 24 + width_of(word, 11) + 22

    def _short(self, piece: Piece) -> str:
        """The approximate length: for an hour, a few seconds do not matter."""
        length = piece.end - piece.begin
        unit = max((unit for unit in (1, 10, 60, 600, 3600) if unit <= length * 0.02), default=1)
        return self.format_seconds(round(length / unit) * unit)


def _zigzag(x: float, top: float, bottom: float) -> str:
    teeth = int((bottom - top) // 10)
    points = " ".join(f"l{3 if tooth % 2 else -3},10" for tooth in range(teeth))
    return f"M{x:.1f},{top:g} {points}"
