"""The layout of a diagram: layers from left to right, and the order within each layer.

Sugiyama's method: layers by the longest path; a dummy slot in every layer that an edge passes, so
that it never crosses a box; sweeps that sort each layer by the barycentre of its neighbours; then
each slot as close to its neighbours as the order allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, combinations, pairwise
from math import ceil, floor
from statistics import fmean
from typing import NamedTuple

from ..definitions.plan import Node
from .graph import MAX_ROWS, Edge, Graph

SWEEPS = 6
#: The columns in a frame.
MAX_FRAME_COLUMNS = 3


@dataclass(eq=False)
class Slot:
    """A place in a layer: the box of a step, a frame with many, or where an edge passes."""

    layer: int
    off_path: bool
    #: The steps that it shows; none: an edge passes here.
    nodes: tuple[Node, ...] = ()
    #: The undos of its step, which are stacked below it.
    undos: tuple[Node, ...] = ()
    #: How many rows and columns its boxes take.
    rows: int = 0
    columns: int = 0
    #: The vertical position of its middle, in rows; set by `place`.
    row: float = 0.0
    #: In pixels: its middle, its left and right edge, and the right edge of its layer; set by
    #: `drawing_of`.
    y: float = 0.0
    x: float = 0.0
    right: float = 0.0
    layer_right: float = 0.0
    before: list[Slot] = field(default_factory=list)
    after: list[Slot] = field(default_factory=list)

    @property
    def is_frame(self) -> bool:
        """Whether its boxes are in a frame."""
        return len(self.nodes) > 1

    @property
    def half(self) -> float:
        """Half of its height, in rows; a frame has a border."""
        return (self.rows + self.is_frame) / 2

    def near(self, *, downwards: bool) -> list[Slot]:
        """The neighbours that it is placed by: an edge to a handler does not move the main path."""
        slots = self.before if downwards else self.after
        return slots if self.off_path else [slot for slot in slots if not slot.off_path]

    def to(self, other: Slot) -> float:
        """The minimum distance to the next slot: in rows, a multiple of a half."""
        return max(self.half + len(self.undos) + other.half, 0.5)


class Piece(NamedTuple):
    """A piece of an edge, from one layer to the next."""

    edge: Edge
    start: Slot
    end: Slot


class Layer(NamedTuple):
    """Its slots from top to bottom, and the pieces of edges to the next layer."""

    slots: list[Slot]
    #: On the main path, and off it.
    solid: list[Piece]
    aside: list[Piece]


def layout_of(graph: Graph) -> list[Layer]:
    """The layers in order, without positions: `place` computes those, band by band."""
    layers = _layers(graph)
    orders = [[layer.slots for layer in layers]]
    for sweep in range(SWEEPS):
        orders.append(_sorted(orders[-1], downwards=sweep % 2 == 0))
    best = min(orders, key=_crossings)
    return [layer._replace(slots=slots) for layer, slots in zip(layers, best, strict=True)]


def _layers(graph: Graph) -> list[Layer]:
    layers = [
        Layer([_slot(index, node, graph) for node in nodes], solid=[], aside=[])
        for index, nodes in enumerate(graph.layers())
    ]
    of = {slot.nodes[0].name: slot for layer in layers for slot in layer.slots}
    for edge in graph.edges:
        start, end = of[edge.source], of[edge.target]
        passages = [Slot(index, edge.off_path) for index in range(start.layer + 1, end.layer)]
        for slot, after in pairwise([start, *passages, end]):
            slot.after.append(after)
            after.before.append(slot)
            layer = layers[slot.layer]
            (layer.aside if edge.off_path else layer.solid).append(Piece(edge, slot, after))
        for passage in passages:
            layers[passage.layer].slots.append(passage)
    for layer in layers:
        layer.slots.sort(key=lambda slot: slot.off_path)
    return layers


def _slot(layer: int, node: Node, graph: Graph) -> Slot:
    nodes = graph.groups.get(node.name, (node,))
    undos = tuple(undo for undo in graph.undos if undo.undoes == node.name)
    columns = min(ceil(len(nodes) / MAX_ROWS), MAX_FRAME_COLUMNS)
    return Slot(layer, node.off_path, nodes, undos, ceil(len(nodes) / columns), columns)


def _sorted(layers: Sequence[Sequence[Slot]], *, downwards: bool) -> list[list[Slot]]:
    """Each layer by the mean rank of its neighbours, with what only an error leads to below."""
    rank: dict[Slot, float] = {slot: at for layer in layers for at, slot in enumerate(layer)}

    def wish(slot: Slot) -> tuple[bool, float]:
        near = slot.near(downwards=downwards) or [slot]
        return slot.off_path, fmean(rank[other] for other in near)

    for layer in layers if downwards else reversed(layers):
        rank |= {slot: at for at, slot in enumerate(sorted(layer, key=wish))}
    return [sorted(layer, key=rank.__getitem__) for layer in layers]


def _crossings(layers: Sequence[Sequence[Slot]]) -> int:
    return sum(map(_crossings_between, layers, layers[1:]))


def _crossings_between(left: Iterable[Slot], right: Sequence[Slot]) -> int:
    rank = {slot: at for at, slot in enumerate(right)}
    ends = [sorted(rank[end] for end in slot.near(downwards=False)) for slot in left]
    return sum(above > below for above, below in combinations(chain.from_iterable(ends), 2))


# Positions


def place(layers: Sequence[Sequence[Slot]]) -> float:
    """Give every slot of these layers its position in rows; return the total number of rows."""
    here = {slot for layer in layers for slot in layer}
    for layer in layers:
        _put(layer, range(len(layer)))
    for sweep in range(SWEEPS + 1):
        downwards = sweep % 2 == 0
        for layer in layers if downwards else reversed(layers):
            _put(layer, [_wish(slot, here, downwards=downwards) for slot in layer])
    top = min(slot.row - max(slot.half, 0.5) for slot in here) + 0.5
    for slot in here:
        slot.row -= top
    return max(slot.row + len(slot.undos) + max(slot.half, 0.5) for slot in here) + 0.5


def _wish(slot: Slot, here: set[Slot], *, downwards: bool) -> float:
    for way in (downwards, not downwards):
        if near := [other.row for other in slot.near(downwards=way) if other in here]:
            return fmean(near)
    return slot.row


def _put(layer: Sequence[Slot], wishes: Iterable[float]) -> None:
    """Positions as close to the preferred ones as possible, by pooling adjacent violators."""
    offsets = [0.0, *accumulate(above.to(below) for above, below in pairwise(layer))]
    pools: list[tuple[float, float, int]] = []  # position, weight, count
    for slot, wish, offset in zip(layer, wishes, offsets, strict=True):
        # Long edges are straight: they are kept level more strongly than boxes.
        pool = (wish - offset, 1.0 if slot.nodes else 3.0, 1)
        while pools and pools[-1][0] >= pool[0]:
            where, weight, count = pools.pop()
            total = weight + pool[1]
            pool = ((where * weight + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    places = [where for where, _, count in pools for _ in range(count)]
    for slot, where, offset in zip(layer, places, offsets, strict=True):
        # Rounded to half rows: almost level becomes level.
        slot.row = floor(2 * where + 0.5) / 2 + offset


# Bands


def bands(layers: Sequence[Layer], most: int) -> list[Sequence[Layer]]:
    """Break the layers into bands of at most ``most``, like text into lines.

    A band ends where everything before leads to everything after, which one line can show. Where
    there is no such place, a band is longer. Better one box too many than a single box on a row of
    its own.
    """
    count, starts = len(layers), [0]
    gaps = enumerate(layers, 1)
    cuts = [end for end, layer in gaps if is_complete(layer.solid) and not layer.aside]
    for row in range(ceil(count / most) if count > most + 1 else 1, 1, -1):
        start = starts[-1]
        later = [cut for cut in cuts if start < cut < count]
        if not later:
            break
        wish = start + ceil((count - start) / row)
        possible = [cut for cut in later if cut <= start + most] or later[:1]
        starts.append(min(possible, key=lambda cut: (abs(cut - wish), -cut)))
    return [layers[start:end] for start, end in pairwise([*starts, count])]


def is_complete(pieces: Sequence[Piece]) -> bool:
    """Whether each start leads to each end, so that one line can stand for all edges."""
    starts, ends = ends_of(pieces)
    return len(pieces) == len(starts) * len(ends)


def ends_of(pieces: Iterable[Piece]) -> tuple[list[Slot], list[Slot]]:
    """Where they start, and where they end."""
    starts = list(dict.fromkeys(piece.start for piece in pieces))
    return starts, list(dict.fromkeys(piece.end for piece in pieces))
