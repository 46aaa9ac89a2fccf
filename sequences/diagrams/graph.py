"""The parts of a plan that are drawn: its main path, and the rest as far as it matters in this
run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import NamedTuple, TypeVar

from ..definitions.plan import Node, Plan

T = TypeVar("T")

#: More parallel steps than this that wait for the same steps are drawn inside a frame.
MAX_ROWS = 8


class Edge(NamedTuple):
    """An arrow from one step to another; ``off_path``: it is taken only after an error."""

    source: str
    target: str
    off_path: bool = False


@dataclass(frozen=True)
class Graph:
    """The boxes and arrows of a diagram."""

    #: In the order of the plan, each in its own place.
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    #: Drawn directly below the steps that they undo.
    undos: tuple[Node, ...]
    #: Many parallel steps with the same predecessors and successors: drawn in one frame, in the
    #: place of the first of them.
    groups: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, states: Mapping[str, str]) -> Graph:
        """The parts to draw of a run with these statuses; without any, the whole plan."""
        nodes = [
            node for node in plan.nodes if not node.off_path or not states or node.name in states
        ]
        names = {node.name for node in nodes}
        undos = tuple(node for node in nodes if node.undoes in names)
        placed = tuple(node for node in nodes if node.undoes not in names)
        edges = [*_solid(plan), *_aside(plan, states, {node.name for node in placed})]
        return cls(placed, tuple(_without_circles(edges)), undos)

    def grouped(self) -> Graph:
        """The same, with frames around many similar steps."""
        groups = {alike[0].name: alike for alike in self._alike() if len(alike) > MAX_ROWS}
        place = {node.name: node.name for node in self.nodes}
        place |= {node.name: name for name, alike in groups.items() for node in alike}
        nodes = tuple(node for node in self.nodes if place[node.name] == node.name)
        edges = (Edge(place[edge.source], place[edge.target], edge.off_path) for edge in self.edges)
        return Graph(nodes, tuple(dict.fromkeys(edges)), self.undos, groups)

    def _alike(self) -> Iterator[tuple[Node, ...]]:
        """The steps with the same neighbours."""
        neighbours: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for edge in self.edges:
            if not edge.off_path:
                neighbours[edge.target].add(("before", edge.source))
                neighbours[edge.source].add(("after", edge.target))
        alike: dict[frozenset[tuple[str, str]], list[Node]] = defaultdict(list)
        undone = {undo.undoes for undo in self.undos}
        for node in self.nodes:
            if not node.off_path and node.name not in undone:
                alike[frozenset(neighbours[node.name])].append(node)
        yield from map(tuple, alike.values())

    def layers(self) -> list[list[Node]]:
        """The steps grouped by the length of the longest path that leads to them."""
        waits: dict[str, set[str]] = {node.name: set() for node in self.nodes}
        for edge in self.edges:
            waits[edge.target].add(edge.source)
        depth: dict[str, int] = {}
        for name in TopologicalSorter(waits).static_order():
            depth[name] = max((depth[source] + 1 for source in waits[name]), default=0)
        last = max(depth.values())
        loose = [node for node in self.nodes if node.traits.is_closing and not waits[node.name]]
        depth |= {node.name: last for node in loose}
        return [[node for node in self.nodes if depth[node.name] == at] for at in range(last + 1)]


def _solid(plan: Plan) -> Iterator[Edge]:
    """The edges of the main path, without those implied by others."""
    ancestors: dict[str, set[str]] = {}
    for node in plan.main:
        sources = _sources(plan, node)
        implied = set[str]().union(*(ancestors[name] for name in sources))
        ancestors[node.name] = implied.union(sources)
        yield from (Edge(name, node.name) for name in sources if name not in implied)


def _sources(plan: Plan, node: Node) -> tuple[str, ...]:
    """The steps of the main path that it waits for.

    If its error never comes, a handler counts as done as soon as the steps that name it are done.
    """

    def after(name: str) -> list[str]:
        is_off_path = plan.node(name).off_path
        return [other.name for other in plan.nodes if is_off_path and other.on_error == name]

    return tuple(name for name in reached(node.after, after) if not plan.node(name).off_path)


def _aside(plan: Plan, states: Mapping[str, str], names: set[str]) -> list[Edge]:
    """The edges to these steps from errors, and from steps that only errors lead to."""
    off_path = {node.name for node in plan.nodes if node.off_path}
    pairs = [(node.name, node.on_error) for node in plan.nodes]
    pairs += [(name, node.name) for node in plan.nodes for name in node.after if name in off_path]
    if plan.on_failure:
        pairs += [(name, plan.on_failure.name) for name in plan.failed(states)]
    return [Edge(*pair, off_path=True) for pair in pairs if names.issuperset(pair)]


def _without_circles(edges: Sequence[Edge]) -> list[Edge]:
    """Handlers may be declared anywhere; edges that lead back from one are not drawn."""
    drawn: dict[tuple[str, str], Edge] = {}
    after: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.off_path and edge.source in reached([edge.target], after.__getitem__):
            continue
        drawn.setdefault((edge.source, edge.target), edge)
        after[edge.source].append(edge.target)
    return list(drawn.values())


def connected(items: Sequence[T], belong: Callable[[T, T], bool]) -> list[list[T]]:
    """The parts of a whole, in order; items that belong to each other are in the same part."""
    rest, parts = list(items), list[list[T]]()
    while rest:
        part = reached(rest[:1], lambda item: [other for other in items if belong(item, other)])
        parts.append([item for item in rest if item in part])
        rest = [item for item in rest if item not in part]
    return parts


def reached(items: Iterable[T], after: Callable[[T], Iterable[T]]) -> dict[T, None]:
    """These items and all that they lead to, once each: depth first, in order."""
    order: dict[T, None] = {}
    todo = [*items][::-1]
    while todo:
        item = todo.pop()
        if item not in order:
            order[item] = None
            todo += after(item)
    return order
