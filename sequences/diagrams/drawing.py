"""The positions of boxes and lines in a picture, before anything is painted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from ..definitions.plan import Node
from .graph import Graph, connected
from .layout import Layer, Piece, Slot, bands, ends_of, is_complete, layout_of, place
from .markup import Point, curve, elbow, straight

#: In pixels.
PAGE = 1080.0
BOX = 48.0
ROW = 64.0
GAP = 44.0
PAD = 12.0
GUTTER = 30.0
BETWEEN_BANDS = 40.0
#: How far the stacked sheets of a fan-out stick out behind its box.
STACK = 6.0
ARROW = 7.0
#: The padding around the boxes in a frame.
INSIDE = 12.0


class Box(NamedTuple):
    """The box of a step, by its top left corner."""

    node: Node
    x: float
    y: float
    width: float


class Frame(NamedTuple):
    """A frame around many similar boxes."""

    x: float
    y: float
    width: float
    height: float


class Line(NamedTuple):
    """One line of the picture, and the edges that it stands for; or the tip of an arrow."""

    path: str
    sources: frozenset[str]
    targets: frozenset[str]
    off_path: bool = False


class Drawing(NamedTuple):
    """All positions in the picture."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    arrows: tuple[Line, ...]
    frames: tuple[Frame, ...]
    width: float
    height: float


class _Band(NamedTuple):
    """One row of layers, and where it ends."""

    layers: Sequence[Layer]
    right: float
    bottom: float


def drawing_of(graph: Graph, width: float) -> Drawing:
    """All positions, with boxes of this width."""
    layers = layout_of(graph)
    rows = list(_placed(layers, width))
    slots = [slot for layer in layers for slot in layer.slots]
    return Drawing(
        boxes=tuple(_boxes(slots, width)),
        lines=(*_lines(rows), *_bonds(slots)),
        arrows=tuple(_arrow(slot) for slot in slots if slot.nodes and slot.before),
        frames=tuple(_frame(slot) for slot in slots if slot.is_frame),
        width=max(band.right for band in rows) + PAD + (GUTTER if len(rows) > 1 else STACK),
        height=rows[-1].bottom + PAD + STACK,
    )


def _placed(layers: Sequence[Layer], width: float) -> Iterator[_Band]:
    """Give every slot its place in pixels, from left to right, and band by band."""
    rows = bands(layers, most=int((PAGE - 2 * PAD + GAP) // (width + GAP)))
    top = PAD
    for row in rows:
        left = PAD + (GUTTER if len(rows) > 1 else 0)
        height = place([layer.slots for layer in row])
        for layer in row:
            right = _put(layer.slots, left, top, width)
            left = right + GAP + _extra_gap(layer.solid)
        bottom = top + height * ROW - (ROW - BOX)
        yield _Band(row, right, bottom)
        top = bottom + BETWEEN_BANDS


def _put(slots: Sequence[Slot], left: float, top: float, width: float) -> float:
    """Give the slots of a layer their place; return its right edge."""
    right = left + max(_width_of(slot, width) for slot in slots)
    for slot in slots:
        slot.x, slot.y = left, top + slot.row * ROW + BOX / 2
        slot.right, slot.layer_right = left + _width_of(slot, width), right
    return right


def _extra_gap(pieces: Sequence[Piece]) -> float:
    """More space between the layers where lines cross."""
    return 0.0 if is_complete(pieces) else min(4.0 * len(pieces), 60.0)


def _width_of(slot: Slot, width: float) -> float:
    """Its width if its boxes have this width, including its frame; 0 where an edge passes."""
    return slot.columns * (width + INSIDE) + INSIDE if slot.is_frame else slot.columns * width


def _boxes(slots: Iterable[Slot], width: float) -> Iterator[Box]:
    """The boxes of a frame from left to right, then down; undos below their step."""
    for slot in slots:
        left = slot.x + (INSIDE if slot.is_frame else 0)
        top = slot.y - (slot.rows - 1) * ROW / 2 - BOX / 2
        for index, node in enumerate(slot.nodes + slot.undos):
            row, column = divmod(index, slot.columns)
            yield Box(node, left + column * (width + INSIDE), top + row * ROW, width)


def _frame(slot: Slot) -> Frame:
    height = (slot.rows - 1) * ROW + BOX + 2 * INSIDE
    return Frame(slot.x, slot.y - height / 2, slot.right - slot.x, height)


def _arrow(slot: Slot) -> Line:
    x, y = slot.x - ARROW, slot.y
    path = straight((x, y - 4), (slot.x, y), (x, y + 4)) + " Z"
    return Line(path, frozenset(), frozenset({slot.nodes[0].name}))


def _bonds(slots: Iterable[Slot]) -> Iterator[Line]:
    """Lines between a step and its undo."""
    for slot in slots:
        for index, undo in enumerate(slot.undos, 1):
            x, y = (slot.x + slot.right) / 2, slot.y - BOX / 2 + index * ROW
            path = straight((x, y - ROW + BOX), (x, y))
            yield Line(path, frozenset(), frozenset({undo.name}), off_path=True)


# Lines between two layers


def _lines(rows: Iterable[_Band]) -> Iterator[Line]:
    for band in rows:
        *inner, last = band.layers
        for layer in inner:
            yield from map(_curve, layer.aside)
            for group in connected(layer.solid, _touch):
                yield from _bus(group) if is_complete(group) else map(_curve, group)
        yield from _turn(last.solid, band)


def _touch(piece: Piece, other: Piece) -> bool:
    """Whether the vertical lines from their starts to their ends would touch."""
    top, bottom = sorted((piece.start.y, piece.end.y))
    other_top, other_bottom = sorted((other.start.y, other.end.y))
    return top <= other_bottom and other_top <= bottom


def _start(slot: Slot) -> Point:
    is_stack = not slot.is_frame and any(node.traits.has_items for node in slot.nodes)
    return slot.right + (STACK if is_stack else 0), slot.y


def _end(slot: Slot) -> Point:
    return slot.x - (ARROW - 1 if slot.nodes else 0), slot.y


def _curve(piece: Piece) -> Line:
    path = curve(_start(piece.start), _end(piece.end), piece.start.layer_right)
    return _line(path, [piece])


def _bus(pieces: Sequence[Piece]) -> Iterable[Line]:
    """All edges of a group share one vertical line: each start leads to each end."""
    left = pieces[0].start.layer_right + STACK
    right = min(_end(piece.end)[0] for piece in pieces)
    if min(map(len, ends_of(pieces))) > 1:
        level = fmean(slot.y for piece in pieces for slot in (piece.start, piece.end))
        third = (right - left) / 3
        return _hub(pieces, left + third, right - third, level)
    middle = (left + right) / 2
    return [_line(elbow(_start(piece.start), middle, _end(piece.end)), [piece]) for piece in pieces]


def _turn(pieces: Sequence[Piece], above: _Band) -> Iterable[Line]:
    """From the end of one row to the start of the next, like a reader's eye."""
    level = above.bottom + BETWEEN_BANDS / 2 + STACK / 2
    return _hub(pieces, above.right + STACK + GUTTER / 2, PAD + GUTTER / 2, level)


def _hub(pieces: Sequence[Piece], first: float, second: float, level: float) -> Iterator[Line]:
    """From each start, through one vertical to a point on this level, through another to each
    end."""
    starts, ends = ends_of(pieces)
    centre = ((first + second) / 2, level)
    for slot in starts:
        path = elbow(_start(slot), first, centre)
        yield _line(path, [piece for piece in pieces if piece.start is slot])
    for slot in ends:
        path = elbow(centre, second, _end(slot))
        yield _line(path, [piece for piece in pieces if piece.end is slot])


def _line(path: str, pieces: Sequence[Piece]) -> Line:
    sources = frozenset(piece.edge.source for piece in pieces)
    targets = frozenset(piece.edge.target for piece in pieces)
    return Line(path, sources, targets, all(piece.edge.off_path for piece in pieces))
