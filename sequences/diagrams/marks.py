"""What a diagram is told about a run, and its words for that, in any language."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..definitions.plan import Node, Plan
from ..utils import text

#: A sign for each state of runs and steps, and one for terminals that know nothing else.
#: ``pending`` is a step that its run has not come to.
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
STATUSES = tuple(SIGNS)
PENDING = "pending"

Translate = Callable[[str], str]
#: For `makemessages`, which looks for this name. Each diagram translates these words itself.
_ = str

#: What a plain step is that another one's failure leads to.
_ON_ERROR = _("if {step} fails")
#: What each bar of a timeline is.
SPANS = {
    "waited": _("waited"),
    "ran": _("ran"),
    "items": _("items at work"),
    "children": _("child runs at work"),
    "failed": _("failed attempt"),
    "held": _("on hold"),
}
#: What the states of a step are called that have other names than `StepStatus`. A step is never
#: paused: a pause, or a failure, of its run keeps it from starting.
_STATES = {"": _("not started"), PENDING: _("not started"), "paused": _("on hold")}
_COUNT = _("{count} of {total}")
_AFTER = _("after {steps}")
_FIRST = _("first of {steps}")
_FIRST_OF = _("first of {count}")


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one step is."""

    #: One of `STATUSES`; empty: the run has not come to it.
    status: str = ""
    #: More about its state: ``2nd attempt``, ``in 3 min``.
    text: str = ""
    #: Where its box leads.
    href: str = ""
    #: Of a fan-out, or a step that tells its progress: how much of how much is done.
    count: float | None = None
    total: float | None = None
    #: What is shown where the pointer rests.
    title: str = ""
    #: What people call it; its name if that is empty.
    label: str = ""
    #: Whether it has a delay of its own, which no plan says.
    delayed: bool = False

    @property
    def state(self) -> str:
        """Its status as the style sheet has it: never empty, never one that is unknown."""
        return self.status if self.status in STATUSES else PENDING

    @property
    def fraction(self) -> float | None:
        """How much of it is done, from 0 to 1."""
        if self.count is None or not self.total:
            return None
        return min(max(self.count / self.total, 0.0), 1.0)


NO_MARK = Mark()


class Captions:
    """The words for the steps of one plan, or of one run if any of the marks has a status."""

    def __init__(
        self, plan: Plan, marks: Mapping[str, Mark] | None, translate: Translate = str
    ) -> None:
        self.plan, self.marks, self.translate = plan, marks or {}, translate
        self.states = {name: mark.status for name, mark in self.marks.items() if mark.status}

    def mark(self, name: str) -> Mark:
        """How far a step is."""
        return self.marks.get(name, NO_MARK)

    def label(self, name: str) -> str:
        """What people call a step."""
        return self.mark(name).label or text.label_of(name)

    def kind(self, node: Node) -> str:
        """The words for what a step is; none for a plain one."""
        caption, step = node.traits.caption, node.undoes
        if node.is_handler:
            caption = _ON_ERROR
            step = next(
                (other.name for other in self.plan.nodes if other.on_error == node.name), ""
            )
        if not caption:
            return ""
        return self.translate(caption).replace("{step}", self.label(step) if step else "")

    def state(self, name: str) -> list[str]:
        """The words for how far a step is: its state, and more about it."""
        mark = self.mark(name)
        status = _STATES.get(mark.status, mark.status)
        return [
            word for word in (self.translate(status), mark.text or self._progress(mark)) if word
        ]

    def detail(self, node: Node) -> str:
        """What stands below a step's name: in a run how far it is, in a plan what it is."""
        if self.states:
            return " · ".join(self.state(node.name))
        counts = (self.first_of(group) for group in node.any_of)
        return " · ".join(filter(None, [self.kind(node), *counts]))

    def first_of(self, group: Collection[str]) -> str:
        """How many steps there are of which the first is enough."""
        return self.translate(_FIRST_OF).replace("{count}", str(len(group)))

    def joins(self, node: Node) -> list[str]:
        """Of which steps the first is enough, for each of the groups that it waits for."""
        names = (", ".join(map(self.label, group)) for group in node.any_of)
        return [self.translate(_FIRST).replace("{steps}", steps) for steps in names]

    def after(self, names: str) -> str:
        """What a step waits for, in a list."""
        return self.translate(_AFTER).replace("{steps}", names)

    def _progress(self, mark: Mark) -> str:
        if mark.count is None or mark.total is None:
            return ""
        count, total = f"{mark.count:g}", f"{mark.total:g}"
        return self.translate(_COUNT).replace("{count}", count).replace("{total}", total)
