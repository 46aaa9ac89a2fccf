"""A plan as lines: what comes after what, side by side, and what joins.

The order of most plans is made of two things only: one after the other, and side by side. Each is
found where the steps fall apart: side by side are parts without any order between them, one after
the other parts that are ordered all with all. What is left is told in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..definitions.plan import Node, Plan
from .graph import Edge, Graph
from .marks import NO_MARK, Mark, label_of


@dataclass(frozen=True, slots=True)
class Row:
    """One step in a list of them."""

    node: Node
    mark: Mark
    label: str
    #: How deep it stands in parallel branches.
    depth: int
    #: One sign for each of those: ``first`` of a branch, ``last`` branch, ``open`` or ``closed``.
    rails: tuple[str, ...]
    #: What it waits for, where its place does not tell.
    waits_for: tuple[str, ...]


def outline(plan: Plan, marks: Mapping[str, Mark] | None = None) -> tuple[Row, ...]:
    """The steps in order, as a list tells them: those of parallel branches one below the other.

    What only an error leads to is there if it has a status, or nothing has.
    """
    marks = marks or {}
    graph = Graph.of(plan, {name: mark.status for name, mark in marks.items() if mark.status})
    return tuple(_Outline(plan, graph, marks).rows())


class _Outline:
    def __init__(self, plan: Plan, graph: Graph, marks: Mapping[str, Mark]) -> None:
        self.plan, self.marks = plan, marks
        self.below = graph.below
        self.nodes = {node.name: node for node in graph.nodes}
        self.main = [node.name for node in graph.nodes if not node.aside]
        self.aside = [node for node in graph.nodes if node.aside]
        self.before = _ancestors(self.main, [edge for edge in graph.edges if not edge.aside])
        self.direct: dict[str, list[str]] = {}
        for edge in graph.edges:
            if not edge.aside:
                self.direct.setdefault(edge.target, []).append(edge.source)

    def rows(self) -> Iterator[Row]:
        yield from self._block(self.main, ())
        undos = [node for nodes in self.below.values() for node in nodes]
        # As a failing run comes to them.
        for node in sorted([*self.aside, *undos], key=_turn):
            yield self._row(node, (), ())

    def _row(self, node: Node, rails: tuple[str, ...], waits_for: Sequence[str]) -> Row:
        mark = self.marks.get(node.name, NO_MARK)
        return Row(node, mark, label_of(node, mark), len(rails), rails, tuple(waits_for))

    def _block(self, names: Sequence[str], rails: tuple[str, ...]) -> Iterator[Row]:
        """A block and all that is in it; iterative along a chain, deep only in branches."""
        for part in _split(names, self._is_unordered):
            branches = _split(part, self._is_ordered)
            if len(part) == 1:
                yield self._row(self.nodes[part[0]], rails, ())
            elif len(branches) > 1:
                yield from self._branches(branches, rails)
            else:
                yield from self._knot(part, rails)

    def _branches(self, branches: Sequence[Sequence[str]], rails: tuple[str, ...]) -> Iterator[Row]:
        for branch in branches:
            is_last = branch is branches[-1]
            rows = list(self._block(branch, ()))
            for index, row in enumerate(rows):
                sign = (
                    ("last" if is_last else "first")
                    if not index
                    else ("closed" if is_last else "open")
                )
                nested = (*rails, sign, *row.rails)
                yield self._row(row.node, nested, row.waits_for)

    def _knot(self, names: Sequence[str], rails: tuple[str, ...]) -> Iterator[Row]:
        """Steps that are neither: each tells what it waits for."""
        inside = set(names)
        for index, name in enumerate(names):
            sign = "last" if index == len(names) - 1 else "first"
            waits = [one for one in self.direct.get(name, ()) if one in inside]
            yield self._row(self.nodes[name], (*rails, sign), waits)

    def _is_ordered(self, one: str, other: str) -> bool:
        return one in self.before[other] or other in self.before[one]

    def _is_unordered(self, one: str, other: str) -> bool:
        return not self._is_ordered(one, other)


def _turn(node: Node) -> int:
    return {"undo": 1, "on_failure": 2}.get(node.kind, 0)


def _ancestors(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    above: dict[str, list[str]] = {}
    for edge in edges:
        above.setdefault(edge.target, []).append(edge.source)
    for name in names:
        direct = above.get(name, [])
        found[name] = frozenset(direct).union(*(found[one] for one in direct))
    return found


def _split(names: Sequence[str], belong: Callable[[str, str], bool]) -> list[list[str]]:
    """The parts that do not belong together, in the order in which they begin."""
    left, found = list(names), list[list[str]]()
    while left:
        part, todo = {left[0]}, [left[0]]
        rest = left[1:]
        while todo:
            one = todo.pop()
            joined = [other for other in rest if belong(one, other)]
            part.update(joined)
            todo += joined
            rest = [other for other in rest if other not in part]
        found.append([name for name in left if name in part])
        left = rest
    return found
