"""A plan without pixels: as text for a terminal, and in the language of Mermaid."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache

from ..definitions.plan import Node, Plan
from .graph import Graph
from .marks import NO_MARK, STATUSES, Labels, Mark, label_of
from .markup import ELLIPSIS, clean, stylesheet
from .outline import Row, outline

#: A sign for each state, and one for terminals that know nothing else.
SIGNS = {
    "pending": ("·", "."),
    "waiting": ("◷", "w"),
    "queued": ("○", "o"),
    "running": ("●", "*"),
    "retrying": ("↻", "r"),
    "succeeded": ("✓", "+"),
    "failed": ("✗", "x"),
    "skipped": ("-", "-"),
    "cancelled": ("-", "-"),
    "paused": ("‖", "="),
    "undoing": ("↺", "u"),
}
_RAILS = {
    "first": ("├─ ", "|- "),
    "last": ("└─ ", "`- "),
    "open": ("│  ", "|  "),
    "closed": ("   ", "   "),
    # A branch that itself begins with branches, and the first of those.
    "first-fork": ("├──", "|--"),
    "last-fork": ("└──", "`--"),
    "fork": ("┬─ ", "+- "),
    "fork-fork": ("┬──", "+--"),
}
#: What part of a line the names may take.
_NAMES = 0.6


def text(
    plan: Plan,
    marks: Mapping[str, Mark] | None = None,
    *,
    width: int = 80,
    unicode: bool = True,
    labels: Labels | None = None,
) -> str:
    """The plan for a terminal: a line for each step, parallel branches with rails on their left.

    A step behind branches waits for all of them. Lines are ``width`` cells wide at most;
    ``unicode=False`` keeps to ASCII in what it draws.
    """
    writer = _Writer(plan, marks or {}, labels or Labels(), width=width, unicode=unicode)
    return "\n".join(cut(line, width, writer.dots) for line in writer.lines())


class _Writer:
    def __init__(
        self, plan: Plan, marks: Mapping[str, Mark], labels: Labels, *, width: int, unicode: bool
    ) -> None:
        self.plan, self.marks, self.labels = plan, marks, labels
        self.rows = rows = outline(plan, marks)
        self.index = 0 if unicode else 1
        self.is_run = any(row.mark.status for row in rows)
        self.dots = "…" if unicode else "..."
        most = int(width * _NAMES)
        self.names = [cut(self._name(row), most, self.dots) for row in rows]
        self.column = max(map(cells, self.names), default=0) + 2

    def lines(self) -> Iterator[str]:
        for row, name in zip(self.rows, self.names, strict=True):
            told = ", ".join(self._told(row))
            yield f"{name}{' ' * (self.column - cells(name))}{told}".rstrip()

    def _name(self, row: Row) -> str:
        rails = "".join(_RAILS[rail][self.index] for rail in _forked(row.rails))
        sign = SIGNS[row.mark.state][self.index] if self.is_run else ""
        return f"{rails}{sign}{' ' if sign else ''}{one_line(row.label)}"

    def _told(self, row: Row) -> Iterator[str]:
        if self.is_run:
            yield one_line(self.labels.status(row.mark.status))
            yield from filter(None, [one_line(row.mark.text or self.labels.progress(row.mark))])
        yield from filter(None, [self.labels.kind_of(self.plan, row.node, self.marks)])
        if row.waits_for:
            names = ", ".join(one_line(self._label(name)) for name in row.waits_for)
            yield self.labels.after.replace("{steps}", names)

    def _label(self, name: str) -> str:
        return label_of(self.plan.node(name), self.marks.get(name, NO_MARK))


def _forked(rails: tuple[str, ...]) -> list[str]:
    """The rails of a first row of a first row run into each other: ``├──┬─``."""
    found, begins = list[str](), False
    for rail, inner in zip(rails, [*rails, ""][1:], strict=True):
        is_first = rail in ("first", "last")
        forks = f"{rail}-fork" if is_first and inner else rail
        found.append("fork-fork" if begins and inner else "fork" if begins else forks)
        begins = is_first
    return found


def one_line(value: str) -> str:
    """A text that cannot steer the terminal."""
    shown = clean(value).replace("\n", " ")
    return "".join(
        c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in shown
    )


def cells(value: str) -> int:
    """How many cells of a terminal it takes."""
    return sum(map(_cells, value))


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def cut(value: str, width: int, dots: str = ELLIPSIS) -> str:
    """As much of it as so many cells hold."""
    if cells(value) <= width:
        return value
    kept, room = "", width - len(dots)
    for char in value:
        room -= _cells(char)
        if room < 0:
            break
        kept += char
    return kept.rstrip() + dots


# Mermaid

_SHAPES = {
    "each": ("[[", "]]"),
    "event": ("{{", "}}"),
    "subsequence": ("[/", "/]"),
    "undo": ("([", "])"),
    "on_failure": ("([", "])"),
}
#: What means something to Mermaid, or to the HTML that it makes of a label.
_SPECIAL = re.compile(r"[^\w .,:;()/+=!?'·…–-]", re.ASCII)  # noqa: RUF001


def mermaid(
    plan: Plan, marks: Mapping[str, Mark] | None = None, *, labels: Labels | None = None
) -> str:
    """The plan as a flowchart of Mermaid, which GitHub and others draw."""
    marks, labels = marks or {}, labels or Labels()
    states = {name: mark.status for name, mark in marks.items() if mark.status}
    graph = Graph.of(plan, states)
    nodes = [*graph.nodes, *(node for nodes in graph.below.values() for node in nodes)]
    ids = {node.name: f"s{index}" for index, node in enumerate(nodes)}
    return "\n".join(
        [
            "flowchart LR",
            *(f"    {ids[row.name]}{_shape(plan, row, marks, labels)}" for row in nodes),
            *(
                f"    {ids[edge.source]} {'-.->' if edge.aside else '-->'} {ids[edge.target]}"
                for edge in graph.edges
            ),
            *(
                f"    {ids[name]} -.- {ids[node.name]}"
                for name, below in graph.below.items()
                for node in below
            ),
            *_classes({marks[node.name].state for node in nodes if node.name in states}),
            *(
                f"    class {ids[node.name]} {marks[node.name].state}"
                for node in nodes
                if node.name in states
            ),
            "",
        ]
    )


def _shape(plan: Plan, node: Node, marks: Mapping[str, Mark], labels: Labels) -> str:
    opening, closing = _SHAPES.get(node.kind, ("[", "]"))
    mark = marks.get(node.name, Mark())
    detail = labels.detail(mark) if any(one.status for one in marks.values()) else ""
    lines = (label_of(node, mark), detail or labels.kind_of(plan, node, marks))
    shown = "<br/>".join(_escaped(line) for line in lines if line)
    return f'{opening}"{shown}"{closing}'


def _escaped(value: str) -> str:
    # Letters of other scripts stay; everything that could be markup becomes a numbered entity.
    return _SPECIAL.sub(
        lambda found: found[0] if found[0].isalnum() else f"#{ord(found[0])};", one_line(value)
    )


def _classes(states: set[str]) -> Iterator[str]:
    for state in STATUSES:
        if state in states:
            ink, fill, line = _colours(state)
            yield f"    classDef {state} fill:{fill},stroke:{line},color:{ink}"


@lru_cache
def _colours(state: str) -> tuple[str, ...]:
    """Of the light palette: Mermaid has one only."""
    found = (
        re.search(rf"--seq-{state}-{one}: (#\w+);", stylesheet()) for one in ("ink", "fill", "line")
    )
    return tuple(one[1] for one in found if one)
