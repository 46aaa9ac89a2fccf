"""The timeline of a run: when each step waited, ran and failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from ..utils.durations import format_seconds
from .marks import Translate, _
from .markup import document, element, fitted, hidden, linked, listed, shifted, width_of
from .time_axis import FormatSeconds, Interval, Piece, Scale

#: In pixels.
WIDTH, TOP, LANE, PAD = 960.0, 30.0, 28.0, 10.0
LABEL, LENGTH = 168.0, 88.0
LEGEND = 26.0
SIZE = 12.0
#: The left and right end of the axis.
LEFT, RIGHT = PAD + LABEL, WIDTH - LENGTH - PAD


class Bar(NamedTuple):
    """How something that a step did is shown."""

    caption: str
    height: float
    #: Its minimum width, so that even the shortest one is visible.
    least: float
    #: Whether it shows work: the lengths are added up, and the axis keeps room for it.
    is_work: bool = False
    #: A shape, in addition to the colour, for what is counted: it may last only a moment.
    mark: str = ""


Kind = Literal["waited", "ran", "items", "children", "held", "failed", "lost"]
BARS: dict[Kind, Bar] = {
    "waited": Bar(_("waited"), 5.0, 1.0),
    "ran": Bar(_("ran"), 15.0, 3.0, is_work=True),
    "items": Bar(_("items in progress"), 11.0, 3.0, is_work=True),
    "children": Bar(_("child runs in progress"), 11.0, 3.0, is_work=True),
    "held": Bar(_("on hold"), 9.0, 3.0),
    "failed": Bar(_("failed attempt"), 15.0, 11.0, is_work=True, mark="l6,6 m0,-6 l-6,6"),
    "lost": Bar(_("lost worker"), 15.0, 11.0, mark="m0,3 l6,0"),
}


class Span(NamedTuple):
    """Something that a step did for a while."""

    kind: Kind
    begins: datetime
    #: None: it has not ended.
    ends: datetime | None = None
    title: str = ""

    @property
    def bar(self) -> Bar:
        """How it is shown."""
        return BARS[self.kind]


class Lane(NamedTuple):
    """One step, and what it did."""

    name: str
    label: str
    href: str = ""
    spans: Sequence[Span] = ()


def timeline(
    lanes: Sequence[Lane],
    start: datetime,
    end: datetime | None,
    now: datetime,
    *,
    label: str = "",
    translate: Translate = str,
    format_seconds: FormatSeconds = format_seconds,
) -> str:
    """When each step did what, as an SVG that can be embedded in a page: everything is escaped.

    It reaches from ``start`` to ``end``, or to ``now`` if there is no end. Idle times that would
    leave too little room for the rest are left out: the axis is broken there, and says for how
    long.
    """
    return _Painter(lanes, start, end or now, translate, format_seconds).picture(label)


class _Painter:
    def __init__(
        self,
        lanes: Sequence[Lane],
        start: datetime,
        until: datetime,
        translate: Translate,
        format_seconds: FormatSeconds,
    ) -> None:
        self.lanes, self.start, self.until = lanes, start, until
        self.translate, self.format_seconds = translate, format_seconds
        self.bottom = TOP + LANE * len(lanes)
        self.spans = [span for lane in lanes for span in lane.spans]
        busy = [self.interval(span) for span in self.spans if span.bar.is_work or span.bar.mark]
        self.scale = Scale(self.seconds(until), busy, LEFT, RIGHT - LEFT)

    def seconds(self, moment: datetime) -> float:
        return (moment - self.start).total_seconds()

    def interval(self, span: Span) -> Interval:
        begin = self.seconds(span.begins)
        return begin, max(self.seconds(span.ends or self.until), begin)

    def length(self, spans: Iterable[Span]) -> str:
        return self.format_seconds(sum(end - begin for begin, end in map(self.interval, spans)))

    def word(self, kind: Kind) -> str:
        return self.translate(BARS[kind].caption)

    def picture(self, label: str) -> str:
        return document(
            WIDTH,
            self.bottom + LEGEND + PAD,
            hidden(self._axis(), "seq-axis"),
            listed(self._lane(lane, TOP + index * LANE) for index, lane in enumerate(self.lanes)),
            hidden(self._breaks(), "seq-breaks"),
            hidden(self._legend(), "seq-legend"),
            label=label,
            class_="seq-timeline",
        )

    def _axis(self) -> Iterator[str]:
        for tick in self.scale.ticks(self.format_seconds):
            line = f"M{tick.x:.1f},{TOP - 4:g} V{self.bottom:g}"
            yield element("path", d=line, class_="seq-tick")
            yield element("text", text=tick.text, x=tick.x, y=TOP - 11, class_="seq-time")

    def _breaks(self) -> Iterator[str]:
        teeth = int((self.bottom - TOP + 5) // 10)
        zigzag = " ".join(f"l{3 if tooth % 2 else -3},10" for tooth in range(teeth))
        for piece in self.scale.breaks:
            middle = piece.x + piece.width / 2
            text = fitted(self._short(piece), 11, max(piece.width, 30.0) + 14)
            yield element("text", text=text, x=middle, y=TOP - 11, class_="seq-left-out")
            for shift, class_ in ((0, "seq-break-paper"), (-3, "seq-break"), (3, "seq-break")):
                edge = f"M{middle + shift:.1f},{TOP - 5:g} {zigzag}"
                yield element("path", d=edge, class_=class_)

    def _short(self, piece: Piece) -> str:
        """The approximate length: for an hour, a few seconds do not matter."""
        length = piece.end - piece.begin
        unit = max((unit for unit in (1, 10, 60, 600, 3600) if unit <= length * 0.02), default=1)
        return self.format_seconds(round(length / unit) * unit)

    def _legend(self) -> Iterator[str]:
        x = LEFT
        for kind, spans in _by_kind(self.spans):
            # In the colour of the bars; for unfinished work, the colour of work.
            class_ = _class(kind, is_open=all(span.ends is None for span in spans))
            entry = (_bar(kind, 0, 18), _text(self.word(kind), 24, "seq-word"))
            place = shifted(x, self.bottom + 18 - LANE / 2)
            yield element("g", *entry, class_=class_, transform=place)
            x += 24 + width_of(self.word(kind), 11) + 22

    # One step

    def _lane(self, lane: Lane, top: float) -> str:
        work = [span for span in lane.spans if span.bar.is_work]
        length = self.length(work) if work else "–"  # noqa: RUF001
        return linked(
            element("rect", width=WIDTH, height=LANE, class_="seq-row"),
            _text(fitted(lane.label, SIZE, LABEL - 14), PAD, "seq-name"),
            *map(self._span, lane.spans),
            _text(fitted(length, 11.5, LENGTH - 8), WIDTH - PAD, "seq-length"),
            label=lane.label,
            words=self._words(lane),
            href=lane.href,
            class_="seq-lane",
            transform=shifted(0, top),
        )

    def _words(self, lane: Lane) -> Iterator[str]:
        for kind, spans in _by_kind(lane.spans):
            word, is_counted = self.word(kind), BARS[kind].mark
            yield f"{len(spans)} × {word}" if is_counted else f"{word} {self.length(spans)}"  # noqa: RUF001

    def _span(self, span: Span) -> str:
        begin, end = self.interval(span)
        length = "" if span.kind == "lost" else self.length([span])
        title = f"{self.word(span.kind)} {length}".rstrip() + f"\n{span.title}".rstrip()
        x, right = self.scale.x(begin), self.scale.x(end)
        width = max(right - x, span.bar.least)
        x = min(max((x + right - width) / 2, LEFT), RIGHT - width)
        parts = [element("title", text=title), _bar(span.kind, x, width)]
        if span.ends is None:
            half = span.bar.height / 2
            tip = f"M{right:.1f},{LANE / 2 - half:g} l5,{half:g} l-5,{half:g} Z"
            parts.append(element("path", d=tip, class_="seq-tip"))
        return element("g", *parts, class_=_class(span.kind, is_open=span.ends is None))


def _by_kind(spans: Sequence[Span]) -> Iterator[tuple[Kind, list[Span]]]:
    """The kinds that occur, in the order of the table."""
    for kind in BARS:
        if of_kind := [span for span in spans if span.kind == kind]:
            yield kind, of_kind


def _bar(kind: Kind, x: float, width: float) -> str:
    bar, rx = BARS[kind], min(3.0, width / 2)
    y = (LANE - bar.height) / 2
    rect = element("rect", x=x, y=y, width=width, height=bar.height, rx=rx, class_="seq-bar")
    cross = f"M{x + width / 2 - 3:.1f},{LANE / 2 - 3:g} {bar.mark}"
    return rect + element("path", d=cross, class_="seq-cross") if bar.mark else rect


def _class(kind: Kind, *, is_open: bool) -> str:
    return f"seq-span seq-span-{kind}{' seq-still' if is_open else ''}"


def _text(text: str, x: float, class_: str) -> str:
    return element("text", text=text, x=x, y=LANE / 2 + 4, class_=class_)
