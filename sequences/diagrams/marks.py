"""What a picture is told about a run: values, in the words of whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..definitions.plan import Node, Plan
from ..utils import text

#: The states of runs and steps; ``pending`` is a step that its run has not come to.
STATUSES = (
    "pending",
    "waiting",
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "skipped",
    "cancelled",
    "paused",
    "undoing",
)
PENDING = "pending"


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


@dataclass(frozen=True)
class Labels:
    """The words of a picture. Whoever has a translation passes it."""

    statuses: Mapping[str, str] = field(default_factory=dict)
    #: ``{step}`` is the step that it concerns.
    kinds: Mapping[str, str] = field(default_factory=dict)
    pending: str = "not started"
    count: str = "{count} of {total}"
    #: What a step waits for, in a list.
    after: str = "after {steps}"
    #: What the bars of a timeline are.
    spans: Mapping[str, str] = field(default_factory=dict)

    def status(self, status: str) -> str:
        """The word for a status."""
        return self.statuses.get(status) or (self.pending if status in ("", PENDING) else status)

    def kind(self, kind: str, step: str = "") -> str:
        """The words for a kind of step; ``step`` is the one that it concerns."""
        words = self.kinds.get(kind, KINDS.get(kind, ""))
        return words.replace("{step}", step)

    def kind_of(self, plan: Plan, node: Node, marks: Mapping[str, Mark] | None = None) -> str:
        """The words for what a step is; none for a plain one."""
        kind, of = node.kind, plan.get(node.undoes)
        if kind == "step" and node.aside:
            kind, of = "on_error", next((n for n in plan.nodes if n.on_error == node.name), None)
        return self.kind(kind, label_of(of, (marks or {}).get(of.name, NO_MARK)) if of else "")

    def span(self, kind: str) -> str:
        """The word for a kind of span."""
        return self.spans.get(kind) or SPANS.get(kind, kind)

    def detail(self, mark: Mark) -> str:
        """What stands below a step's name: its state, and more about it."""
        words = (self.status(mark.status), mark.text or self.progress(mark))
        return " · ".join(word for word in words if word)

    def progress(self, mark: Mark) -> str:
        """How much of how much is done, in words."""
        if mark.count is None or mark.total is None:
            return ""
        done, total = f"{mark.count:g}", f"{mark.total:g}"
        return self.count.replace("{count}", done).replace("{total}", total)


#: How each kind of step is told apart in words.
KINDS = {
    "each": "fan-out",
    "event": "event",
    "subsequence": "child run",
    "undo": "undo of {step}",
    "on_failure": "on failure",
    "on_error": "if {step} fails",
    "delay": "after a delay",
}


#: What each bar of a timeline is.
SPANS = {"waited": "waited", "ran": "ran", "failed": "failed attempt", "held": "on hold"}


def label_of(node: Node, mark: Mark) -> str:
    """What people call a step."""
    return mark.label or text.label_of(node.name)
