"""The runs above and below a run, for its page: runs that are stuck with it, and its tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from django.db.models import Count, QuerySet
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from ..inspection import family, run_diagrams
from ..inspection.diagnosis import error_of, summary
from ..inspection.family import Family
from ..inspection.snapshot import RunSnapshot
from ..models import SequenceRun
from .base import heavy

#: How many boxes the diagrams of a tree have in total; later runs have no diagram.
MAX_BOXES = 120
#: Columns of the step that started a run which are not loaded.
_HEAVY_PARENT = ("parent__payload", "parent__result", "parent__progress")


@dataclass(frozen=True)
class Branch:
    """A child run on the page of a run above it, with its own diagram and children."""

    family: Family
    url: str
    picture: SafeString | str
    branches: tuple[Branch, ...]
    now: datetime

    @property
    def run(self) -> SequenceRun:
        """Its row."""
        return self.family.run

    @property
    def name(self) -> str:
        """Its key, or the beginning of its id."""
        return family.name_of(self.run)

    @property
    def title(self) -> str:
        """The name of its sequence, for people."""
        return self.family.snapshot.title

    @property
    def step_label(self) -> str:
        """The step that started it."""
        return self.family.step.replace("_", " ")

    @property
    def summary(self) -> str:
        """The sentence about it."""
        return summary(self.family.snapshot)

    @property
    def is_open(self) -> bool:
        """Whether it is on the path to the failure."""
        return any(branch.family.leads_to_cause for branch in self.branches)


class Relatives:
    """Those of ``runs``, which this person may see, that are related to this run."""

    def __init__(
        self, run_snapshot: RunSnapshot, runs: QuerySet[SequenceRun], change_name: str
    ) -> None:
        self.snapshot, self.run = run_snapshot, run_snapshot.run
        self.runs = runs.defer(*heavy())
        self._change_name = change_name
        self._room = MAX_BOXES

    @cached_property
    def parent(self) -> SequenceRun | None:
        """The run that started it."""
        return self.runs.filter(steps=self.run.parent_id).first() if self.run.parent_id else None

    @cached_property
    def held_up(self) -> list[SequenceRun]:
        """The runs above that have failed waiting for this one, nearest first."""
        return family.held_up(self.run, self.runs)

    @property
    def top(self) -> SequenceRun | None:
        """The run whose retry restarts all of them."""
        return self.held_up[-1] if self.held_up else None

    @property
    def held_up_text(self) -> str:
        """A sentence that they have failed."""
        return family.explain_held_up(self.run, self.held_up)

    @property
    def retry_label(self) -> str:
        """The label of the button that retries them."""
        if len(self.held_up) > 1:
            return _("Retry the parents")
        return _("Retry the parent")

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """The number of children by status, by the step that started them."""
        counts: dict[str, dict[str, int]] = {}
        rows = self.runs.filter(parent__run=self.run.pk).order_by()
        for step, status, count in rows.values_list("parent__step", "status").annotate(Count("pk")):
            counts.setdefault(step, {})[status] = count
        return counts

    @property
    def count(self) -> int:
        """The number of children."""
        return sum(sum(by_status.values()) for by_status in self.counts.values())

    @property
    def more(self) -> int:
        """How many of them are not shown."""
        return self.count - len(self.tree.children)

    @cached_property
    def tree(self) -> Family:
        """This run and the runs below it."""
        if not self.counts:
            return Family(self.snapshot, "")
        return family.tree_of(self.snapshot, self.runs.defer(*heavy(), *_HEAVY_PARENT))

    @property
    def fixed_text(self) -> str:
        """A sentence that the children that failed it have been fixed since."""
        return family.explain_fixed(self.tree)

    @property
    def cause(self) -> Branch | None:
        """The deepest run that caused its failure, if that is not the run itself."""
        cause = self.tree.cause
        return None if cause is self.tree or self.fixed_text else self._branch(cause, picture=False)

    @property
    def cause_error(self) -> str:
        """The error of that run."""
        cause = self.tree.cause.snapshot
        return error_of(cause.current_failure) if cause.current_failure else ""

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """The children, each with its own."""
        return tuple(map(self._branch, self.tree.children))

    @property
    def is_moving(self) -> bool:
        """Whether one of them may change without anyone's action."""
        return any(relative.snapshot.is_moving for relative in self.tree.walk())

    def _branch(self, child: Family, *, picture: bool = True) -> Branch:
        return Branch(
            child,
            self._url(child.run),
            self._picture(child) if picture else "",
            tuple(self._branches(child)) if picture else (),
            self.snapshot.now,
        )

    def _branches(self, child: Family) -> Iterator[Branch]:
        yield from map(self._branch, child.children)

    def _picture(self, child: Family) -> SafeString | str:
        boxes = len(child.snapshot.plan.nodes)
        if boxes > self._room:
            return ""
        self._room -= boxes
        url = self._url(child.run)
        return run_diagrams.picture_of(child.snapshot, lambda step: f"{url}#step-{step.name}")

    def _url(self, run: SequenceRun) -> str:
        return reverse(self._change_name, args=[run.pk])
