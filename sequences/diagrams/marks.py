"""What a diagram is told about a run, and its captions, in any language."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from ..definitions.plan import Node, Plan
from ..utils.text import digits_of, label_of
from .icons import STATUSES

PENDING = "pending"

Translate = Callable[[str], str]
#: For `makemessages`, which looks for this name. Each diagram translates these words itself.
_ = str

#: The caption of a step that runs only if another one fails.
_ON_ERROR = _("if {step} fails")
#: Statuses of a step that `StepStatus` does not have or names differently. A step is never paused:
#: its run is, or has failed, and that keeps the step from starting.
_STATES = {"": _("not started"), PENDING: _("not started"), "paused": _("on hold")}
_COUNT = _("{count} of {total}")
_AFTER = _("after {steps}")
_FIRST = _("first of {steps}")
_FIRST_OF = _("first of {count}")


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a step has got."""

    #: One of `STATUSES`; empty if the run has not reached the step.
    status: str = ""
    #: Details of its status: ``2nd attempt``, ``in 3 min``.
    text: str = ""
    #: The link of its box.
    href: str = ""
    #: For a fan-out, or a step that reports its progress: how much is done, out of how much.
    count: float | None = None
    total: float | None = None
    #: The tooltip.
    title: str = ""
    #: Its label; empty: its name.
    label: str = ""
    #: Whether it has a delay of its own, which the plan does not show.
    delayed: bool = False

    @property
    def state(self) -> str:
        """Its status as a class of the style sheet: never empty, never unknown."""
        return self.status if self.status in STATUSES else PENDING

    @property
    def fraction(self) -> float | None:
        """How much of it is done, from 0 to 1."""
        if self.count is None or not self.total:
            return None
        return min(max(self.count / self.total, 0.0), 1.0)


#: By the names of the steps.
Marks = Mapping[str, Mark] | None


class Captions:
    """The captions for the steps of a plan, or of a run if any of the marks has a status."""

    def __init__(self, plan: Plan, marks: Marks, translate: Translate = str) -> None:
        self.plan, self.marks, self.translate = plan, marks or {}, translate
        self.states = {name: mark.status for name, mark in self.marks.items() if mark.status}

    def mark(self, name: str) -> Mark:
        """The mark of a step."""
        return self.marks.get(name, Mark())

    def label(self, name: str) -> str:
        """The label of a step."""
        return self.mark(name).label or label_of(name)

    def kind(self, node: Node) -> str:
        """The caption for the kind of a step; empty for a plain step."""
        caption = _ON_ERROR if node.is_handler else node.traits.caption
        failing = (other.name for other in self.plan.nodes if other.on_error == node.name)
        step = node.undoes or next(failing, "")
        return self._fill(caption, step=self.label(step)) if caption else ""

    def state(self, name: str) -> list[str]:
        """The caption for the status of a step, with details."""
        mark = self.mark(name)
        status = self.translate(_STATES.get(mark.status, mark.status))
        return [*filter(None, (status, mark.text or self._progress(mark)))]

    def words(self, node: Node) -> list[str]:
        """What is most important about a step: in a run its status, in a plan its kind."""
        return self.state(node.name) if self.states else [*filter(None, [self.kind(node)])]

    def detail(self, node: Node) -> str:
        """The caption below a step's name: the same, and in a plan, how many steps it waits for."""
        counts = [] if self.states else map(self.first_of, node.any_of)
        return " · ".join([*self.words(node), *counts])

    def first_of(self, group: Collection[str]) -> str:
        """How many steps there are of which the first is enough."""
        return self._fill(_FIRST_OF, count=str(len(group)))

    def joins(self, node: Node) -> list[str]:
        """The groups that it waits for of which the first step is enough."""
        return [self._fill(_FIRST, steps=self._labels(group)) for group in node.any_of]

    def after(self, names: Iterable[str]) -> str:
        """The caption that lists what a step waits for."""
        return self._fill(_AFTER, steps=self._labels(names))

    def _labels(self, names: Iterable[str]) -> str:
        return ", ".join(map(self.label, names))

    def _progress(self, mark: Mark) -> str:
        if mark.count is None or mark.total is None:
            return ""
        return self._fill(_COUNT, count=digits_of(mark.count), total=digits_of(mark.total))

    def _fill(self, caption: str, **values: str) -> str:
        """A caption, translated, with these values."""
        caption = self.translate(caption)
        for name, value in values.items():
            caption = caption.replace(f"{{{name}}}", value)
        return caption
