"""A plan as an SVG: boxes for steps, lines for dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from ..definitions.plan import DONE, Node, Plan
from .drawing import BOX, STACK, Box, Drawing, Line, drawing_of
from .graph import Graph
from .icons import kind_icon, state_icon
from .marks import Captions, Mark, Marks, Translate
from .markup import document, element, fitted, hidden, linked, listed, shifted, stylesheet, width_of

#: In pixels.
MIN_BOX_WIDTH, MAX_BOX_WIDTH = 172.0, 216.0
NAME, DETAIL = 13.0, 11.5
#: The space to the left and right of a box's name.
_LEFT, _RIGHT = 35.0, 10.0
_SIGN = 18.0


def svg(
    plan: Plan,
    marks: Marks = None,
    *,
    label: str = "",
    translate: Translate = str,
    standalone: bool = False,
) -> str:
    """The plan as an SVG that can be embedded in a page: everything in it is escaped.

    ``marks``: how far each step has got, by name. If none has a status, this is a picture of the
    plan, including what is reached only after an error. ``label`` is the name for screen readers,
    and ``translate`` translates the words. ``standalone``: a file of its own, including the style
    sheet. The picture has its natural size in pixels; its container scrolls.
    """
    painter = _Painter(Captions(plan, marks, translate))
    return painter.picture(label or plan.sequence, standalone=standalone)


class _Painter:
    """Turns positions into markup."""

    def __init__(self, captions: Captions) -> None:
        self.captions, self.plan, self.states = captions, captions.plan, captions.states
        self.graph = Graph.of(self.plan, self.states).grouped()
        self.done = {name for name, state in self.states.items() if state in DONE}
        self.started = {name for name, state in self.states.items() if state != "cancelled"}

    def picture(self, label: str, *, standalone: bool) -> str:
        drawing = self.drawing()
        # In the order of the plan, which is the order of keyboard focus.
        boxes = sorted(drawing.boxes, key=lambda box: self.plan.names.index(box.node.name))
        lines = hidden(self._lines(drawing), "seq-lines")
        steps = listed(map(self._node, boxes))
        own = _own(drawing) if standalone else ()
        return document(drawing.width, drawing.height, *own, lines, steps, label=label)

    def drawing(self) -> Drawing:
        """All positions. All boxes are as wide as the longest name needs, within limits.

        The width does not depend on statuses, so that a picture does not move when it is redrawn
        during a run.
        """
        widest = max(map(self._width_of, self.plan.nodes))
        return drawing_of(self.graph, ceil(min(max(widest, MIN_BOX_WIDTH), MAX_BOX_WIDTH)))

    def _width_of(self, node: Node) -> float:
        name = width_of(self.captions.label(node.name), NAME, bold=True)
        return _LEFT + _RIGHT + name + _SIGN * len(self._signs(node))

    def _lines(self, drawing: Drawing) -> Iterator[str]:
        """Lines that were taken lie above the others."""
        for frame in drawing.frames:
            yield element("rect", **frame._asdict(), rx=12, class_="seq-frame")
        for line in sorted(drawing.lines, key=self._was_passed):
            yield self._line(line, "seq-edge seq-off-path" if line.off_path else "seq-edge")
        for arrow in drawing.arrows:
            yield self._line(arrow, "seq-arrow")

    def _line(self, line: Line, class_: str) -> str:
        passed = " seq-passed" if self._was_passed(line) else ""
        return element("path", d=line.path, class_=f"{class_}{passed}")

    def _was_passed(self, line: Line) -> bool:
        is_left = any(self._members(name) <= self.done for name in line.sources)
        is_reached = any(self._members(name) & self.started for name in line.targets)
        return is_reached and (is_left or line.off_path or not line.sources)

    def _members(self, name: str) -> set[str]:
        return {node.name for node in self.graph.groups.get(name, ())} or {name}

    def _node(self, box: Box) -> str:
        node, mark = box.node, self.captions.mark(box.node.name)
        state = f"seq-{mark.state}" if self.states else "seq-plan"
        return linked(
            *_shapes(box, mark),
            *self._content(box, mark),
            label=self.captions.label(node.name),
            words=[*self.captions.words(node), *self.captions.joins(node)],
            note=mark.title,
            href=mark.href,
            class_=f"seq-node{' seq-beside' if node.off_path else ''} {state}",
            transform=shifted(box.x, box.y),
        )

    def _signs(self, node: Node) -> list[str]:
        mark, kind = self.captions.mark(node.name), "on_error" if node.is_handler else node.kind
        signs = {"delay": mark.delayed, "any_of": node.any_of, kind: self.captions.kind(node)}
        return [sign for sign, is_shown in signs.items() if is_shown]

    def _content(self, box: Box, mark: Mark) -> Iterator[str]:
        """Its icon and its signs, and its texts."""
        signs = self._signs(box.node)
        if self.states:
            yield state_icon(mark.state, 11, 16)
        else:
            yield kind_icon(signs.pop() if signs else "step", 13, 18)
        for index, sign in enumerate(reversed(signs)):
            yield kind_icon(sign, box.width - _RIGHT - 10 - index * _SIGN, 9)
        yield from self._texts(box, mark, _SIGN * len(signs))

    def _texts(self, box: Box, mark: Mark, beside: float) -> Iterator[str]:
        """Its name, next to signs of this width, and its caption."""
        room = box.width - _LEFT - _RIGHT
        name = fitted(self.captions.label(box.node.name), NAME, room - beside, bold=True)
        detail = fitted(self.captions.detail(box.node), DETAIL, room)
        up = 2.0 if mark.fraction is not None else 0.0
        y = (21 if detail else 29.5) - up
        yield element("text", text=name, x=_LEFT, y=y, class_="seq-name")
        if detail:
            yield element("text", text=detail, x=_LEFT, y=38 - 1.5 * up, class_="seq-detail")


def _own(drawing: Drawing) -> Iterator[str]:
    """What a page has and a file lacks: the style sheet, and a background."""
    yield f"<style>{stylesheet()}</style>"
    yield element("rect", class_="seq-back", width=drawing.width, height=drawing.height)


def _shapes(box: Box, mark: Mark) -> Iterator[str]:
    """Its border, the stacked sheets of a fan-out behind it, and how much is done."""
    for shift in (STACK, STACK / 2, 0) if box.node.traits.has_items else (0,):
        class_ = "seq-sheet" if shift else "seq-box"
        yield element("rect", x=shift, y=shift, width=box.width, height=BOX, rx=8, class_=class_)
    room = box.width - 20
    if mark.fraction is not None:
        yield _bar(room, "seq-track")
    if mark.fraction:
        yield _bar(max(room * mark.fraction, 3.0), "seq-bar")


def _bar(width: float, class_: str) -> str:
    return element("rect", x=10, y=BOX - 6, width=width, height=3, rx=1.5, class_=class_)
