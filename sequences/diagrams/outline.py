"""A plan as lines of text: sequences, parallel branches and joins.

Two relations describe the order of most plans: in sequence, and in parallel. Each can be split:
parallel parts have no order between them, and in a sequence every step of one part precedes every
step of the next. Anything else is described in words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..definitions.plan import Node, Plan
from .graph import Graph, connected, reached


class Row(NamedTuple):
    """One step of the outline."""

    node: Node
    #: What is drawn before it for each enclosing parallel branch.
    rails: tuple[str, ...] = ()
    #: What it waits for, if its position does not show it.
    waits_for: tuple[str, ...] = ()


def outline(plan: Plan, states: Mapping[str, str] | None = None) -> tuple[Row, ...]:
    """The steps in order, with parallel branches one below the other.

    Steps that are reached only after an error are included if they have a status, or if no step has
    one.
    """
    return tuple(_Outline(Graph.of(plan, states or {})).rows())


class _Outline:
    def __init__(self, graph: Graph) -> None:
        self.nodes = {node.name: node for node in graph.nodes if not node.off_path}
        self.beside = [*(node for node in graph.nodes if node.off_path), *graph.undos]
        self.direct: dict[str, list[str]] = defaultdict(list)
        for edge in graph.edges:
            if not edge.off_path:
                self.direct[edge.target].append(edge.source)
        above = self.direct.__getitem__
        self.ancestors = {name: reached(above(name), above) for name in self.nodes}

    def rows(self) -> Iterator[Row]:
        yield from self._block(list(self.nodes))
        # In the order in which a failing run reaches them.
        yield from map(Row, sorted(self.beside, key=lambda node: node.traits.turn))

    def _block(self, names: Sequence[str]) -> Iterator[Row]:
        """A block and its contents; iterative along a chain, recursive only for branches."""
        for part in connected(names, lambda name, other: not self._is_ordered(name, other)):
            branches = connected(part, self._is_ordered)
            if len(part) == 1:
                yield Row(self.nodes[part[0]])
            elif len(branches) > 1:
                yield from self._branches(branches)
            else:
                yield from self._knot(part)

    def _branches(self, branches: Sequence[Sequence[str]]) -> Iterator[Row]:
        for branch in branches:
            rails = ("└─ ", "   ") if branch is branches[-1] else ("├─ ", "│  ")
            for index, row in enumerate(self._block(branch)):
                yield row._replace(rails=(rails[index > 0], *row.rails))

    def _knot(self, names: Sequence[str]) -> Iterator[Row]:
        """Steps in neither relation: each lists what it waits for."""
        for row in self._branches([[name] for name in names]):
            waits_for = [other for other in self.direct[row.node.name] if other in names]
            yield row._replace(waits_for=tuple(waits_for))

    def _is_ordered(self, name: str, other: str) -> bool:
        return name in self.ancestors[other] or other in self.ancestors[name]
