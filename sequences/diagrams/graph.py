"""The parts of a plan that are drawn: its main path, and the rest as far as it matters in this
run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from ..definitions.plan import Node, Plan

#: More parallel steps than this that wait for the same steps are drawn inside a frame.
MAX_ROWS = 8


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow from one step to another; ``off_path``: it is taken only after an error."""

    source: str
    target: str
    off_path: bool = False

    def between(self, groups: Mapping[str, str]) -> Edge:
        """The same between the groups of its ends."""
        source, target = (groups.get(name, name) for name in (self.source, self.target))
        return Edge(source, target, self.off_path)


@dataclass(frozen=True)
class Graph:
    """The boxes and arrows of a diagram."""

    #: In the order of the plan, each in its own place.
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    #: Drawn directly below a step: its undo.
    below: Mapping[str, tuple[Node, ...]]
    #: Many parallel steps with the same predecessors and successors: drawn in one frame, in the
    #: place of the first of them.
    groups: Mapping[str, tuple[Node, ...]]

    @classmethod
    def of(cls, plan: Plan, states: Mapping[str, str]) -> Graph:
        """The parts to draw of a run with these statuses; without any, the whole plan."""
        nodes = [
            node for node in plan.nodes if not node.off_path or not states or node.name in states
        ]
        names = {node.name for node in nodes}
        below: dict[str, tuple[Node, ...]] = {}
        for node in nodes:
            if node.undoes in names:
                below[node.undoes] = (*below.get(node.undoes, ()), node)
        placed = tuple(node for node in nodes if node.undoes not in names)
        edges = [*_solid(plan, placed), *_aside(plan, states, {node.name for node in placed})]
        return cls(placed, tuple(_without_circles(edges)), below, {})

    def grouped(self) -> Graph:
        """The same, with frames around many similar steps."""
        groups = _groups(self.nodes, self.edges, self.below)
        first = {node.name: name for name, nodes in groups.items() for node in nodes}
        return Graph(
            tuple(node for node in self.nodes if first.get(node.name, node.name) == node.name),
            tuple(dict.fromkeys(edge.between(first) for edge in self.edges)),
            self.below,
            groups,
        )

    def layers(self) -> list[list[Node]]:
        """The steps grouped by the length of the longest path that leads to them."""
        waits: dict[str, set[str]] = {node.name: set() for node in self.nodes}
        for edge in self.edges:
            waits[edge.target].add(edge.source)
        depth: dict[str, int] = {}
        for name in TopologicalSorter(waits).static_order():
            depth[name] = max((depth[source] + 1 for source in waits[name]), default=0)
        last = max(depth.values())
        layers: list[list[Node]] = [[] for _ in range(last + 1)]
        for node in self.nodes:
            loose = node.traits.is_closing and not waits[node.name]
            layers[last if loose else depth[node.name]].append(node)
        return layers


def _solid(plan: Plan, nodes: Sequence[Node]) -> list[Edge]:
    """The edges of the main path, without those implied by others."""
    ancestors: dict[str, set[str]] = {}
    edges = []
    for node in nodes:
        if node.off_path:
            continue
        after = sources_of(plan, node)
        above = [name for name in after if not any(name in ancestors.get(o, ()) for o in after)]
        ancestors[node.name] = set(after).union(*(ancestors.get(name, ()) for name in after))
        edges += [Edge(name, node.name) for name in above]
    return edges


def sources_of(plan: Plan, node: Node) -> tuple[str, ...]:
    """The steps of the main path that it waits for.

    If its error never comes, a handler counts as done as soon as the steps that name it are done.
    """

    def after(name: str) -> list[str]:
        is_off_path = plan.node(name).off_path
        return [other.name for other in plan.nodes if is_off_path and other.on_error == name]

    return tuple(name for name in _reached(node.after, after) if not plan.node(name).off_path)


def _aside(plan: Plan, states: Mapping[str, str], names: set[str]) -> list[Edge]:
    edges = [Edge(node.name, node.on_error, off_path=True) for node in plan.nodes if node.on_error]
    for node in plan.nodes:
        edges += [Edge(name, node.name, True) for name in node.after if plan.node(name).off_path]
    if plan.on_failure:
        edges += [Edge(name, plan.on_failure.name, True) for name in plan.failed(states)]
    return [edge for edge in edges if edge.source in names and edge.target in names]


def _without_circles(edges: Sequence[Edge]) -> list[Edge]:
    """Handlers may be declared anywhere; edges that lead back from one are not drawn."""
    drawn: dict[tuple[str, str], Edge] = {}
    after: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.off_path and edge.source in _reached([edge.target], after.__getitem__):
            continue
        drawn.setdefault((edge.source, edge.target), edge)
        after[edge.source].append(edge.target)
    return list(drawn.values())


def _groups(
    nodes: Sequence[Node], edges: Sequence[Edge], below: Mapping[str, tuple[Node, ...]]
) -> dict[str, tuple[Node, ...]]:
    before: dict[str, set[str]] = defaultdict(set)
    after: dict[str, set[str]] = defaultdict(set)
    for edge in edges:
        if not edge.off_path:
            before[edge.target].add(edge.source)
            after[edge.source].add(edge.target)
    alike: dict[tuple[frozenset[str], frozenset[str]], list[Node]] = defaultdict(list)
    for node in nodes:
        if not node.off_path and node.name not in below:
            alike[frozenset(before[node.name]), frozenset(after[node.name])].append(node)
    groups = [tuple(group) for group in alike.values() if len(group) > MAX_ROWS]
    return {group[0].name: group for group in groups}


def _reached(names: Iterable[str], after: Callable[[str], Iterable[str]]) -> dict[str, None]:
    """These steps and all that they lead to, once each: depth first, in order."""
    reached: dict[str, None] = {}
    todo = [*names][::-1]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached[name] = None
            todo += after(name)
    return reached
