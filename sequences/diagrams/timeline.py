"""The timeline of a run: when each step waited, ran and failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from ..utils.durations import format_seconds
from .marks import Labels
from .markup import clean, element, fitted, stylesheet, width_of
from .time_axis import Interval, Piece, Scale

#: Pixels.
LABEL, LENGTH = 168.0, 88.0
TOP, LANE, PAD = 30.0, 28.0, 10.0
LEGEND = 26.0
SIZE = 12.0
#: How high each kind of bar is.
HEIGHTS = {"waited": 5.0, "ran": 15.0, "failed": 15.0, "held": 9.0}
#: How wide it is at least: however short it was, one sees that it was.
LEAST = {"waited": 1.0, "ran": 3.0, "failed": 11.0, "held": 3.0}

Kind = Literal["waited", "ran", "failed", "held"]
#: What is the step's own time, for which the axis has room.
BUSY = ("ran", "failed")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a step did for a while."""

    kind: Kind
    begins: datetime
    #: None: it still does.
    ends: datetime | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """A step, and what it did."""

    name: str
    label: str
    href: str = ""
    spans: Sequence[Span] = ()
    #: What stands on the right; if it is empty, how long it ran.
    text: str = ""


def timeline(
    lanes: Sequence[Lane],
    start: datetime,
    end: datetime | None,
    now: datetime,
    *,
    label: str = "",
    labels: Labels | None = None,
    standalone: bool = False,
    width: float = 960.0,
) -> str:
    """What each step did when, as an SVG, to stand in a page as it is: all in it is escaped.

    From ``start`` to ``end``, or to ``now`` if it has none. Idle times that would leave no room for
    the rest are left out: the axis is broken there, and says for how long.
    """
    painter = _Painter(lanes, start, end or now, labels or Labels(), width)
    return painter.picture(label, standalone=standalone)


class _Painter:
    def __init__(
        self, lanes: Sequence[Lane], start: datetime, until: datetime, labels: Labels, width: float
    ) -> None:
        self.lanes, self.start, self.until, self.labels = lanes, start, until, labels
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

    def picture(self, label: str, *, standalone: bool) -> str:
        height = self.bottom + LEGEND + PAD
        size: dict[str, Any] = {"width": self.width, "height": height}
        alone = [f"<style>{stylesheet()}</style>", element("rect", class_="seq-back", **size)]
        rows = [element("g", self._lane(*row), role="listitem") for row in enumerate(self.lanes)]
        return element(
            "svg",
            *(alone if standalone else []),
            element("g", *self._axis(), class_="seq-axis", aria_hidden="true"),
            element("g", *rows, role="list"),
            element("g", *self._breaks(), class_="seq-breaks", aria_hidden="true"),
            element("g", *self._legend(), class_="seq-legend", aria_hidden="true"),
            xmlns="http://www.w3.org/2000/svg",
            class_="seq-picture seq-timeline",
            viewBox=f"0 0 {self.width:g} {height:g}",
            role="group",
            aria_label=label,
            direction="ltr",
            **size,
        )

    def _axis(self) -> Iterator[str]:
        for tick in self.scale.ticks():
            yield element(
                "path", d=f"M{tick.x:.1f},{TOP - 4:g} V{self.bottom:g}", class_="seq-tick"
            )
            yield element("text", text=tick.text, x=tick.x, y=TOP - 11, class_="seq-time")

    def _breaks(self) -> Iterator[str]:
        for piece in self.scale.breaks:
            middle = piece.x + piece.width / 2
            text = fitted(_short(piece), 11, max(piece.width, 30.0) + 14)
            yield element("text", text=text, x=middle, y=TOP - 11, class_="seq-left-out")
            edge = _zigzag(middle, TOP - 5, self.bottom)
            yield element("path", d=edge, class_="seq-break-paper")
            for shift in (-3, 3):
                edge = _zigzag(middle + shift, TOP - 5, self.bottom)
                yield element("path", d=edge, class_="seq-break")

    # One step

    def _lane(self, index: int, lane: Lane) -> str:
        top = TOP + index * LANE
        name = self._accessible_name(lane)
        inner = [
            element("title", text=name),
            element("rect", x=0, y=top, width=self.width, height=LANE, class_="seq-row"),
            self._text(fitted(lane.label, SIZE, LABEL - 14), PAD, top, "seq-name"),
            *(self._span(span, top) for span in lane.spans),
            self._text(self._length(lane), self.width - PAD, top, "seq-length"),
        ]
        if lane.href:
            return element("a", *inner, href=lane.href, class_="seq-lane", aria_label=name)
        return element("g", *inner, class_="seq-lane", role="img", aria_label=name)

    def _text(self, text: str, x: float, top: float, class_: str) -> str:
        return element("text", text=text, x=x, y=top + LANE / 2 + 4, class_=class_)

    def _accessible_name(self, lane: Lane) -> str:
        told = [self._sum(lane, kind) for kind in ("waited", "ran", "held")]
        failed = sum(span.kind == "failed" for span in lane.spans)
        told.append(f"{failed} × {self.labels.span('failed')}" if failed else "")  # noqa: RUF001
        return ": ".join(filter(None, (lane.label, ", ".join(filter(None, told)) or lane.text)))

    def _sum(self, lane: Lane, kind: str) -> str:
        spans = [self.interval(span) for span in lane.spans if span.kind == kind]
        length = sum(end - begin for begin, end in spans)
        return f"{self.labels.span(kind)} {format_seconds(length)}" if spans else ""

    def _length(self, lane: Lane) -> str:
        busy = [self.interval(span) for span in lane.spans if span.kind in BUSY]
        ran = format_seconds(sum(end - begin for begin, end in busy)) if busy else "–"  # noqa: RUF001
        return fitted(lane.text or ran, 11.5, LENGTH - 8)

    def _span(self, span: Span, top: float) -> str:
        begin, end = self.interval(span)
        x, right = self.scale.x(begin), self.scale.x(end)
        height, least = HEIGHTS[span.kind], LEAST[span.kind]
        width = max(right - x, least)
        x = min(max(x - (width - right + x) / 2, PAD + LABEL), self.width - PAD - LENGTH - width)
        y = top + (LANE - height) / 2
        parts = [element("title", text=self._told(span, end - begin))]
        rx = min(3.0, width / 2)
        parts.append(element("rect", x=x, y=y, width=width, height=height, rx=rx, class_="seq-bar"))
        if span.kind == "failed":
            parts.append(self._cross(x + width / 2, top))
        if span.ends is None:
            tip = f"M{right:.1f},{y:g} l5,{height / 2:g} l-5,{height / 2:g} Z"
            parts.append(element("path", d=tip, class_="seq-tip"))
        still = " seq-still" if span.ends is None else ""
        return element("g", *parts, class_=f"seq-span seq-span-{span.kind}{still}")

    def _told(self, span: Span, seconds: float) -> str:
        words = f"{self.labels.span(span.kind)} {format_seconds(seconds)}"
        return f"{words}\n{span.title}" if span.title else words

    def _cross(self, x: float, top: float) -> str:
        """A failed attempt is told by its shape, too."""
        y = top + LANE / 2
        d = f"M{x - 3:.1f},{y - 3:g} l6,6 m0,-6 l-6,6"
        return element("path", d=d, class_="seq-cross")

    def _legend(self) -> Iterator[str]:
        kinds = [kind for kind in HEIGHTS if self._is_there(kind)]
        x, middle = PAD + LABEL, self.bottom + 18
        for kind in kinds:
            height = HEIGHTS[kind]
            bar = element(
                "rect", x=x, y=middle - height / 2, width=18, height=height, rx=3, class_="seq-bar"
            )
            cross = self._cross(x + 9, middle - LANE / 2) if kind == "failed" else ""
            yield element("g", bar, cross, class_=f"seq-span seq-span-{kind}")
            word = clean(self.labels.span(kind))
            yield element("text", text=word, x=x + 24, y=middle + 4, class_="seq-word")
            x += 24 + width_of(word, 11) + 22

    def _is_there(self, kind: str) -> bool:
        return any(span.kind == kind for lane in self.lanes for span in lane.spans)


def _short(piece: Piece) -> str:
    """About how long it is: a few seconds of an hour have no place here."""
    length = piece.end - piece.begin
    unit = max((unit for unit in (1, 10, 60, 600, 3600) if unit <= length * 0.02), default=1)
    return format_seconds(round(length / unit) * unit)


def _zigzag(x: float, top: float, bottom: float) -> str:
    teeth = int((bottom - top) // 10)
    points = " ".join(f"l{3 if tooth % 2 else -3},10" for tooth in range(teeth))
    return f"M{x:.1f},{top:g} {points}"
