"""A plan as text for a terminal, and as a Mermaid flowchart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from ..definitions.plan import Node, Plan
from ..utils.terminal import cells, cut, plain
from .graph import Edge, Graph
from .icons import STATUSES
from .marks import Captions, Marks, Translate
from .markup import stylesheet
from .outline import Row, outline

#: Where the rail of a branch meets that of the first branch in it: together, ``├──┬─``.
_FORK = re.compile("(?<=─) [├└](?=─)")
_ASCII_RAILS = str.maketrans("├└│┬─", "|`|+-")
#: The share of a line that names may take.
_NAMES = 0.6


def text(
    plan: Plan,
    marks: Marks = None,
    *,
    width: int = 80,
    unicode: bool = True,
    translate: Translate = str,
) -> str:
    """The plan for a terminal: one line per step, with rails to the left of parallel branches.

    A step below branches waits for all of them. Lines are at most ``width`` cells wide;
    ``unicode=False`` draws with ASCII only.
    """
    captions = Captions(plan, marks, translate)
    rows, dots = outline(plan, captions.states), "…" if unicode else "..."
    names = [_name(row, captions, unicode=unicode) for row in rows]
    names = [cut(name, int(width * _NAMES), dots) for name in names]
    column = max(map(cells, names), default=0) + 2
    lines = (
        f"{name}{' ' * (column - cells(name))}{_words(row, captions)}".rstrip()
        for row, name in zip(rows, names, strict=True)
    )
    return "\n".join(cut(line, width, dots) for line in lines)


def _name(row: Row, captions: Captions, *, unicode: bool) -> str:
    rails = _FORK.sub("─┬", "".join(row.rails))
    look = STATUSES[captions.mark(row.node.name).state]
    sign = f"{look.sign if unicode else look.ascii_sign} " if captions.states else ""
    rails = rails if unicode else rails.translate(_ASCII_RAILS)
    return one_line(f"{rails}{sign}{captions.label(row.node.name)}")


def _words(row: Row, captions: Captions) -> str:
    states = captions.state(row.node.name) if captions.states else []
    after = [captions.after(row.waits_for)] if row.waits_for else []
    words = [*states, captions.kind(row.node), *captions.joins(row.node), *after]
    return one_line(", ".join(filter(None, words)))


def one_line(value: str) -> str:
    """Escape what could control the terminal."""
    return plain(value.replace("\n", " "))


# Mermaid

#: The brackets around the label of a step.
_SHAPES = {"each": ("[[", "]]"), "event": ("{{", "}}"), "subsequence": ("[/", "/]")}
#: Characters that Mermaid, or the HTML that it turns a label into, would interpret.
_SPECIAL = re.compile(r"[^\w .,:;()/+=!?'·…–-]", re.ASCII)  # noqa: RUF001


def mermaid(plan: Plan, marks: Marks = None, *, translate: Translate = str) -> str:
    """The plan as a Mermaid flowchart, which GitHub and others render."""
    return "\n".join([*_mermaid(Captions(plan, marks, translate)), ""])


def _mermaid(captions: Captions) -> Iterator[str]:
    graph = Graph.of(captions.plan, captions.states)
    nodes = [*graph.nodes, *graph.undos]
    ids = {node.name: f"s{index}" for index, node in enumerate(nodes)}
    states = {name: captions.mark(name).state for name in ids if name in captions.states}
    yield "flowchart LR"
    for node in nodes:
        yield f"    {ids[node.name]}{_shape(node, captions)}"
    for edge in graph.edges:
        yield f"    {ids[edge.source]} {_arrow(edge, captions)} {ids[edge.target]}"
    for undo in graph.undos:
        yield f"    {ids[undo.undoes]} -.- {ids[undo.name]}"
    for state in (state for state in STATUSES if state in states.values()):
        ink, fill, line = _colours(state)
        yield f"    classDef {state} fill:{fill},stroke:{line},color:{ink}"
    for name, state in states.items():
        yield f"    class {ids[name]} {state}"


def _arrow(edge: Edge, captions: Captions) -> str:
    if edge.off_path:
        return "-.->"
    groups = captions.plan.node(edge.target).any_of
    group = next((group for group in groups if edge.source in group), None)
    return "-->" if group is None else f'-->|"{_escaped(captions.first_of(group))}"|'


def _shape(node: Node, captions: Captions) -> str:
    plain_shape = ("([", "])") if node.traits.is_compensation else ("[", "]")
    opening, closing = _SHAPES.get(node.kind, plain_shape)
    lines = (captions.label(node.name), captions.detail(node))
    label = "<br/>".join(_escaped(line) for line in lines if line)
    return f'{opening}"{label}"{closing}'


def _escaped(value: str) -> str:
    # Letters of all scripts stay; everything that could be markup becomes a numbered entity.
    return _SPECIAL.sub(
        lambda match: match[0] if match[0].isalnum() else f"#{ord(match[0])};", one_line(value)
    )


@lru_cache
def _colours(state: str) -> tuple[str, ...]:
    """The colours of the light palette: Mermaid has only one."""
    colours = dict(re.findall(rf"--seq-{state}-(ink|fill|line): (#\w+);", stylesheet())[:3])
    return colours["ink"], colours["fill"], colours["line"]
