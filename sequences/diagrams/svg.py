"""A plan as an SVG: boxes for steps, lines for dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Any, NamedTuple

from ..definitions.plan import DONE, Node, Plan
from .graph import Graph
from .icons import kind_icon, state_icon
from .layout import Layout, Slot, Step, bands, columns_of, components, is_complete, layout_of, place
from .marks import Captions, Mark, Translate
from .markup import (
    Point,
    curve,
    document,
    element,
    fitted,
    hidden,
    linked,
    listed,
    rounded,
    width_of,
)

#: In pixels.
BOX = 48.0
ROW = 64.0
GAP = 44.0
PAD = 12.0
GUTTER = 30.0
BETWEEN_BANDS = 40.0
MIN_BOX_WIDTH, MAX_BOX_WIDTH = 172.0, 216.0
NAME, DETAIL = 13.0, 11.5
#: How far the stacked sheets of a fan-out stick out behind its box.
STACK = 6.0
ARROW = 7.0
#: The padding around the boxes in a frame.
INSIDE = 12.0
#: The space to the left and right of a box's name.
_LEFT, _RIGHT = 35.0, 10.0
_SIGN = 18.0


@dataclass(frozen=True)
class Box:
    """The box of a step, by its top left corner."""

    node: Node
    x: float
    y: float
    width: float

    @property
    def middle(self) -> float:
        """The vertical middle, where edges arrive and leave."""
        return self.y + BOX / 2


@dataclass(frozen=True)
class Frame:
    """A frame around many similar boxes."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Line:
    """One line of the picture, and the edges that it stands for."""

    path: str
    sources: frozenset[str]
    targets: frozenset[str]
    off_path: bool = False


@dataclass(frozen=True)
class Drawing:
    """All positions in the picture, before anything is painted."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    arrows: tuple[tuple[Point, str], ...]
    frames: tuple[Frame, ...]
    width: float
    height: float


class _Band(NamedTuple):
    """One band of layers, and its position."""

    layers: range
    top: float
    bottom: float


class _Renderer:
    """Turns the order of slots into positions, lines and arrows."""

    def __init__(self, graph: Graph, layout: Layout, width: float, page: float) -> None:
        self.graph, self.layout, self.width = graph, layout, width
        self.slots = [slot for layer in layout.layers for slot in layer]
        # The number of layers in a row.
        most = max(int((page - 2 * PAD + GAP) // (width + GAP)), 3)
        count = len(layout.layers)
        # Better one box too many than a single box on a row of its own.
        rows = [range(count)] if count <= most + 1 else bands(layout, most)
        #: The left and right edges of each layer. The space to its right is for lines.
        self.left: dict[int, float] = {}
        self.right: dict[int, float] = {}
        self.bands = list(self._bands(rows))
        self.band_of = {index: band for band in self.bands for index in band.layers}

    def _bands(self, rows: Sequence[range]) -> Iterator[_Band]:
        top = PAD
        for row in rows:
            x = PAD + (GUTTER if len(rows) > 1 else 0)
            for index in row:
                self.left[index] = x
                self.right[index] = x + max(map(self._width_of, self.layout.layers[index]))
                # More space between the layers where lines cross.
                tangled = sum(map(len, _tangled(self.layout.pieces[index])))
                x = self.right[index] + GAP + min(4.0 * tangled, 60.0)
            height = place([self.layout.layers[index] for index in row])
            bottom = top + height * ROW - (ROW - BOX)
            yield _Band(row, top, bottom)
            top = bottom + BETWEEN_BANDS

    def _width_of(self, slot: Slot) -> float:
        """The width of a slot, including its frame."""
        columns = columns_of(len(self._members(slot)))
        return columns * (self.width + INSIDE) + INSIDE if self._members(slot) else self.width

    def _members(self, slot: Slot) -> tuple[Node, ...]:
        return self.graph.groups.get(slot.node.name, ()) if slot.node else ()

    def x(self, slot: Slot) -> float:
        """Its left edge."""
        return self.left[slot.layer]

    def y(self, slot: Slot) -> float:
        """Its vertical middle."""
        return self.band_of[slot.layer].top + slot.y * ROW + BOX / 2

    def drawing(self) -> Drawing:
        """Compute all positions."""
        boxes = tuple(self._boxes())
        lines = tuple(line for pieces in self.layout.pieces for line in self._lines(pieces))
        lines += tuple(self._passages()) + tuple(self._bonds())
        right = max(self.right.values()) + PAD
        right += GUTTER if len(self.bands) > 1 else STACK
        bottom = self.bands[-1].bottom + PAD + STACK
        arrows, frames = tuple(self._arrows()), tuple(self._frames())
        return Drawing(boxes, lines, arrows, frames, right, bottom)

    def _below(self, slot: Slot) -> Iterable[tuple[int, Node]]:
        """What is stacked below it, with the row: 1, 2, …"""
        return enumerate(self.graph.below.get(slot.node.name, ()) if slot.node else (), 1)

    def _boxes(self) -> Iterator[Box]:
        for slot in self.slots:
            if slot.node is None:
                continue
            x, y = self.x(slot), self.y(slot) - BOX / 2
            if members := self._members(slot):
                yield from self._grid(slot, members)
                continue
            yield Box(slot.node, x, y, self.width)
            for index, node in self._below(slot):
                yield Box(node, x, y + index * ROW, self.width)

    def _grid(self, slot: Slot, members: Sequence[Node]) -> Iterator[Box]:
        """From left to right, then down."""
        top = self.y(slot) - (slot.rows - 1) * ROW / 2 - BOX / 2
        for index, node in enumerate(members):
            row, column = divmod(index, columns_of(len(members)))
            x = self.x(slot) + INSIDE + column * (self.width + INSIDE)
            yield Box(node, x, top + row * ROW, self.width)

    def _frames(self) -> Iterator[Frame]:
        for slot in self.slots:
            if self._members(slot):
                height = (slot.rows - 1) * ROW + BOX + 2 * INSIDE
                y = self.y(slot) - height / 2
                yield Frame(self.x(slot), y, self._width_of(slot), height)

    def _arrows(self) -> Iterator[tuple[Point, str]]:
        for slot in self.slots:
            if slot.node and slot.before:
                yield (self.x(slot), self.y(slot)), slot.node.name

    def _passages(self) -> Iterator[Line]:
        """Segments where an edge passes a layer."""
        for pieces in self.layout.pieces:
            for piece in pieces:
                if piece.end.node is None:
                    x, y = self.x(piece.end), self.y(piece.end)
                    yield _line(rounded([(x, y), (self.right[piece.end.layer], y)]), [piece])

    def _bonds(self) -> Iterator[Line]:
        """Lines between a step and its undo."""
        for slot in self.slots:
            for index, node in self._below(slot):
                x, y = self.x(slot) + self.width / 2, self.y(slot) - BOX / 2 + index * ROW
                path = rounded([(x, y - ROW + BOX), (x, y)])
                yield Line(path, frozenset(), frozenset({node.name}), off_path=True)

    # Lines between two layers

    def _lines(self, pieces: Sequence[Step]) -> Iterator[Line]:
        if not pieces:
            return
        if self.band_of[pieces[0].start.layer] is not self.band_of[pieces[0].end.layer]:
            yield from self._turn(pieces)
            return
        yield from (self._curve(piece) for piece in pieces if piece.edge.off_path)
        tangled = _tangled(pieces)
        for group in components(_solid(pieces)):
            if group in tangled:
                yield from (self._curve(piece) for piece in group)
            else:
                yield from self._bus(group)

    def _start(self, slot: Slot) -> Point:
        if slot.node is None:
            return self.right[slot.layer], self.y(slot)
        stack = STACK if slot.node.traits.has_items and not self._members(slot) else 0.0
        return self.x(slot) + self._width_of(slot) + stack, self.y(slot)

    def _end(self, slot: Slot) -> Point:
        return self.x(slot) - (ARROW - 1 if slot.node else 0), self.y(slot)

    def _curve(self, piece: Step) -> Line:
        start, end = self._start(piece.start), self._end(piece.end)
        edge = max(self.right[piece.start.layer], start[0])
        return _line(curve(start, end, edge), [piece])

    def _bus(self, pieces: Sequence[Step]) -> Iterator[Line]:
        """All edges of a group share one vertical line: each start leads to each end."""
        starts, ends = _both(pieces)
        left = self.right[starts[0].layer] + STACK
        right = min(self._end(slot)[0] for slot in ends)
        if len(starts) > 1 and len(ends) > 1:
            level = (fmean(map(self.y, starts)) + fmean(map(self.y, ends))) / 2
            third = (right - left) / 3
            yield from self._hub(pieces, left + third, right - third, level)
            return
        x = (left + right) / 2
        for piece in pieces:
            start, end = self._start(piece.start), self._end(piece.end)
            yield _line(rounded([start, (x, start[1]), (x, end[1]), end]), [piece])

    def _turn(self, pieces: Sequence[Step]) -> Iterator[Line]:
        """From the end of one row to the start of the next, like a reader's eye."""
        above = self.band_of[pieces[0].start.layer]
        right = max(self.right[index] for index in above.layers) + STACK + GUTTER / 2
        level = above.bottom + BETWEEN_BANDS / 2 + STACK / 2
        yield from self._hub(pieces, right, PAD + GUTTER / 2, level)

    def _hub(
        self, pieces: Sequence[Step], first: float, second: float, level: float
    ) -> Iterator[Line]:
        """From each start, through one vertical to a point on this level, through another to each
        end."""
        starts, ends = _both(pieces)
        centre = ((first + second) / 2, level)
        for slot in starts:
            start = self._start(slot)
            path = rounded([start, (first, start[1]), (first, level), centre])
            yield _line(path, [piece for piece in pieces if piece.start is slot])
        for slot in ends:
            end = self._end(slot)
            path = rounded([centre, (second, level), (second, end[1]), end])
            yield _line(path, [piece for piece in pieces if piece.end is slot])


def _line(path: str, pieces: Sequence[Step]) -> Line:
    return Line(
        path,
        frozenset(piece.edge.source for piece in pieces),
        frozenset(piece.edge.target for piece in pieces),
        all(piece.edge.off_path for piece in pieces),
    )


def _both(pieces: Sequence[Step]) -> tuple[list[Slot], list[Slot]]:
    starts = list(dict.fromkeys(piece.start for piece in pieces))
    return starts, list(dict.fromkeys(piece.end for piece in pieces))


def _tangled(pieces: Sequence[Step]) -> list[list[Step]]:
    """Groups that no vertical line can stand for, or whose lines would touch those of others."""
    groups = components(_solid(pieces))
    return [
        group
        for group in groups
        if not is_complete(group)
        or not all(_apart(group, other) for other in groups if other is not group)
    ]


def _solid(pieces: Sequence[Step]) -> list[Step]:
    return [piece for piece in pieces if not piece.edge.off_path]


def _apart(group: Sequence[Step], other: Sequence[Step]) -> bool:
    highest, lowest = _range(group)
    above, below = _range(other)
    return lowest < above or below < highest


def _range(pieces: Sequence[Step]) -> tuple[float, float]:
    places = [slot.y for piece in pieces for slot in (piece.start, piece.end)]
    return min(places), max(places)


# The picture


def svg(
    plan: Plan,
    marks: Mapping[str, Mark] | None = None,
    *,
    label: str = "",
    translate: Translate = str,
    standalone: bool = False,
    page: float = 1080.0,
) -> str:
    """The plan as an SVG that can be embedded in a page: everything in it is escaped.

    ``marks``: how far each step has got, by name. If none has a status, this is a picture of the
    plan, including what is reached only after an error. Rows break at ``page`` pixels. ``label`` is
    the name for screen readers, and ``translate`` translates the words. ``standalone``: a file of
    its own, including the style sheet. The picture has its natural size in pixels; its container
    scrolls.
    """
    painter = _Painter(Captions(plan, marks, translate))
    return painter.picture(label or plan.sequence, page, standalone=standalone)


class _Painter:
    """Turns positions into markup."""

    def __init__(self, captions: Captions) -> None:
        self.captions, self.plan, self.states = captions, captions.plan, captions.states
        self.graph = Graph.of(self.plan, self.states).grouped()

    def picture(self, label: str, page: float, *, standalone: bool) -> str:
        drawing = self.drawing(page)
        return document(
            drawing.width,
            drawing.height,
            hidden(self._lines(drawing), "seq-lines"),
            listed(map(self._node, self._in_order(drawing))),
            label=label,
            standalone=standalone,
        )

    def drawing(self, page: float) -> Drawing:
        return _Renderer(self.graph, layout_of(self.graph), self._width(), page).drawing()

    def _width(self) -> float:
        """The width of all boxes: as wide as the longest name needs, within limits.

        It does not depend on statuses, so that a picture does not move when it is redrawn during a
        run.
        """
        widest = max(map(self._width_of, self.plan.nodes))
        return float(ceil(min(max(widest, MIN_BOX_WIDTH), MAX_BOX_WIDTH)))

    def _width_of(self, node: Node) -> float:
        name = width_of(self.captions.label(node.name), NAME, bold=True)
        return _LEFT + _RIGHT + name + _SIGN * len(self._signs(node))

    def _in_order(self, drawing: Drawing) -> list[Box]:
        """In the order of the plan, which is the order of keyboard focus."""
        order = {node.name: index for index, node in enumerate(self.plan.nodes)}
        return sorted(drawing.boxes, key=lambda box: order[box.node.name])

    def _lines(self, drawing: Drawing) -> Iterator[str]:
        """Lines that were taken lie above the others."""
        for frame in drawing.frames:
            yield element("rect", **vars(frame), rx=12, class_="seq-frame")
        for line in sorted(drawing.lines, key=self._was_passed):
            yield element("path", d=line.path, class_=self._class(line))
        for (x, y), name in drawing.arrows:
            passed = " seq-passed" if self._has_started(name) else ""
            path = f"M{x - ARROW:g},{y - 4:g} L{x:g},{y:g} L{x - ARROW:g},{y + 4:g} Z"
            yield element("path", d=path, class_=f"seq-arrow{passed}")

    def _was_passed(self, line: Line) -> bool:
        left = not line.sources or any(map(self._was_done, line.sources)) or line.off_path
        return left and any(map(self._has_started, line.targets))

    def _was_done(self, name: str) -> bool:
        return all(self.states.get(member) in DONE for member in self._members(name))

    def _has_started(self, name: str) -> bool:
        states = [self.states.get(member, "cancelled") for member in self._members(name)]
        return any(state != "cancelled" for state in states)

    def _members(self, name: str) -> list[str]:
        return [node.name for node in self.graph.groups.get(name, ())] or [name]

    def _class(self, line: Line) -> str:
        off_path = " seq-off-path" if line.off_path else ""
        return f"seq-edge{off_path}{' seq-passed' if self._was_passed(line) else ''}"

    def _node(self, box: Box) -> str:
        node, mark = box.node, self.captions.mark(box.node.name)
        words = self.captions.state(node.name) if self.states else [self.captions.kind(node)]
        words = [*filter(None, words), *self.captions.joins(node)]
        name = ": ".join(filter(None, (self.captions.label(node.name), ", ".join(words))))
        state = f"seq-{mark.state}" if self.states else "seq-plan"
        return linked(
            *self._shapes(box, mark),
            label=name,
            title="\n".join(filter(None, (name, mark.title))),
            href=mark.href,
            class_=f"seq-node{' seq-beside' if node.off_path else ''} {state}",
        )

    def _signs(self, node: Node) -> list[str]:
        kind = "on_error" if node.is_handler else node.kind
        delay = ["delay"] if self.captions.mark(node.name).delayed else []
        first = ["any_of"] if node.any_of else []
        return delay + first + ([kind] if self.captions.kind(node) else [])

    def _shapes(self, box: Box, mark: Mark) -> Iterator[str]:
        if box.node.traits.has_items:
            for shift in (STACK, STACK / 2):
                yield self._rect(box, shift, "seq-sheet")
        yield self._rect(box, 0, "seq-box")
        yield from self._bar(box, mark)
        if self.states:
            yield state_icon(mark.state, box.x + 11, box.middle - 8)
        else:
            yield kind_icon((self._signs(box.node) or ["step"])[-1], box.x + 13, box.middle - 6)
        yield from self._texts(box, mark)

    def _rect(self, box: Box, shift: float, class_: str) -> str:
        x, y = box.x + shift, box.y + shift
        return element("rect", x=x, y=y, width=box.width, height=BOX, rx=8, class_=class_)

    def _bar(self, box: Box, mark: Mark) -> Iterator[str]:
        if mark.fraction is None:
            return
        x, y, width = box.x + 10, box.y + BOX - 6, box.width - 20
        place: dict[str, Any] = {"x": x, "y": y, "height": 3, "rx": 1.5}
        yield element("rect", width=width, class_="seq-track", **place)
        if mark.fraction:
            yield element("rect", width=max(width * mark.fraction, 3.0), class_="seq-bar", **place)

    def _texts(self, box: Box, mark: Mark) -> Iterator[str]:
        signs = self._signs(box.node) if self.states else self._signs(box.node)[:-1]
        right = box.x + box.width - _RIGHT
        for index, sign in enumerate(reversed(signs)):
            yield kind_icon(sign, right - 10 - index * _SIGN, box.y + 9)
        room = box.width - _LEFT - _RIGHT
        detail = fitted(self.captions.detail(box.node), DETAIL, room)
        label = self.captions.label(box.node.name)
        name = fitted(label, NAME, room - _SIGN * len(signs), bold=True)
        x, up = box.x + _LEFT, 2.0 if mark.fraction is not None else 0.0
        y = box.y + (21 if detail else 29.5) - up
        yield element("text", text=name, x=x, y=y, class_="seq-name")
        if detail:
            yield element("text", text=detail, x=x, y=box.y + 38 - 1.5 * up, class_="seq-detail")
