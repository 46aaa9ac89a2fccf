"""What of a plan is drawn: its main line, and of the rest what has a say in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from ..definitions.plan import Node, Plan

#: More steps that are side by side, and alike in what they wait for, stand in a frame.
MOST_IN_COLUMN = 8


@dataclass(frozen=True, slots=True)
class Edge:
    """From one step to another; ``aside``: it is taken after an error only."""

    source: str
    target: str
    aside: bool = False

    def between(self, groups: Mapping[str, str]) -> Edge:
        """The same between the groups of its ends."""
        source, target = (groups.get(name, name) for name in (self.source, self.target))
        return Edge(source, target, self.aside)


@dataclass(frozen=True)
class Graph:
    """The boxes and arrows of a picture."""

    #: In the order of the plan, each in a place of its own.
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    #: What stands right below a step: what undoes it.
    below: Mapping[str, tuple[Node, ...]]
    #: Many steps side by side that wait for the same, and for which the same waits: they stand in
    #: one frame, in the place of the first of them.
    groups: Mapping[str, tuple[Node, ...]]

    @classmethod
    def of(cls, plan: Plan, states: Mapping[str, str]) -> Graph:
        """What to draw of a run with these states; without any, all of the plan."""
        shown = tuple(
            node for node in plan.nodes if not node.aside or not states or node.name in states
        )
        names = {node.name for node in shown}
        below: dict[str, tuple[Node, ...]] = {}
        for node in shown:
            if node.undoes in names:
                below[node.undoes] = (*below.get(node.undoes, ()), node)
        placed = tuple(node for node in shown if node.undoes not in names)
        kept = {node.name for node in placed}
        edges = [*_solid(plan, placed), *_aside(plan, states, kept)]
        return cls(placed, tuple(_without_circles(edges)), below, {})

    def grouped(self) -> Graph:
        """The same with a frame around the many that are alike."""
        groups = _groups(self.nodes, self.edges, self.below)
        first = {node.name: name for name, nodes in groups.items() for node in nodes}
        return Graph(
            tuple(node for node in self.nodes if first.get(node.name, node.name) == node.name),
            tuple(dict.fromkeys(edge.between(first) for edge in self.edges)),
            self.below,
            groups,
        )

    def layers(self) -> list[list[Node]]:
        """The steps by the length of the longest way that leads to them."""
        waits: dict[str, set[str]] = {node.name: set() for node in self.nodes}
        for edge in self.edges:
            waits[edge.target].add(edge.source)
        depth: dict[str, int] = {}
        for name in TopologicalSorter(waits).static_order():
            depth[name] = max((depth[one] + 1 for one in waits[name]), default=0)
        last = max(depth.values())
        found: list[list[Node]] = [[] for _ in range(last + 1)]
        for node in self.nodes:
            loose = node.kind == "on_failure" and not waits[node.name]
            found[last if loose else depth[node.name]].append(node)
        return found


def _solid(plan: Plan, nodes: Sequence[Node]) -> list[Edge]:
    """The order in which the steps of the main line go, without what follows from the rest."""
    ancestors: dict[str, set[str]] = {}
    edges = []
    for node in nodes:
        if node.aside:
            continue
        after = sources_of(plan, node)
        above = [name for name in after if not any(name in ancestors.get(o, ()) for o in after)]
        ancestors[node.name] = set(after).union(*(ancestors.get(name, ()) for name in after))
        edges += [Edge(name, node.name) for name in above]
    return edges


def sources_of(plan: Plan, node: Node) -> tuple[str, ...]:
    """The steps of the main line that it waits for.

    A handler of errors that do not come is done as soon as the steps that name it are.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    todo = list(reversed(node.after))
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if not plan.node(name).aside:
            found[name] = None
        else:
            todo += [other.name for other in plan.nodes if other.on_error == name]
    return tuple(found)


def _aside(plan: Plan, states: Mapping[str, str], names: set[str]) -> list[Edge]:
    found = [Edge(node.name, node.on_error, aside=True) for node in plan.nodes if node.on_error]
    for node in plan.nodes:
        found += [Edge(name, node.name, True) for name in node.after if plan.node(name).aside]
    if plan.on_failure:
        found += [Edge(name, plan.on_failure.name, True) for name in plan.failed(states)]
    return [edge for edge in found if edge.source in names and edge.target in names]


def _without_circles(edges: Sequence[Edge]) -> list[Edge]:
    """A handler may stand anywhere; what leads back from it is not drawn."""
    after: dict[str, set[str]] = {}
    kept = []
    for edge in edges:
        if edge.aside and _leads(after, edge.target, edge.source):
            continue
        if edge.target not in after.setdefault(edge.source, set()):
            after[edge.source].add(edge.target)
            kept.append(edge)
    return kept


def _groups(
    nodes: Sequence[Node], edges: Sequence[Edge], below: Mapping[str, tuple[Node, ...]]
) -> dict[str, tuple[Node, ...]]:
    before: dict[str, set[str]] = {node.name: set() for node in nodes}
    after: dict[str, set[str]] = {node.name: set() for node in nodes}
    for edge in edges:
        if not edge.aside:
            before[edge.target].add(edge.source)
            after[edge.source].add(edge.target)
    alike: dict[tuple[frozenset[str], frozenset[str]], list[Node]] = {}
    for node in nodes:
        if not node.aside and node.name not in below:
            key = (frozenset(before[node.name]), frozenset(after[node.name]))
            alike.setdefault(key, []).append(node)
    return {one[0].name: tuple(one) for one in alike.values() if len(one) > MOST_IN_COLUMN}


def _leads(after: Mapping[str, set[str]], start: str, end: str) -> bool:
    todo, seen = [start], set[str]()
    while todo:
        name = todo.pop()
        if name == end:
            return True
        if name not in seen:
            seen.add(name)
            todo += after.get(name, ())
    return False
