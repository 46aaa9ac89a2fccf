"""The runs above and below a run: which ones its failure holds up, and which child is the cause.

Fixing a child does not fix its parent: the parent's step that waited for it has failed permanently.
`held_up` and `Tree` find such runs, and the sentences here say so, as whole messages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, IntegerField, QuerySet, Value, When
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ..definitions.rules import RULES
from ..models import RunStatus, SequenceRun, StepStatus
from . import snapshot
from .actions import was_undone
from .snapshot import RunSnapshot, StepSnapshot, without_hidden_causes
from .wording import quoted

#: The number of runs in a tree: below one run, and in total.
MAX_CHILDREN, MAX_RUNS = 20, 60
#: The maximum depth that the engine allows.
MAX_DEPTH = 10
#: What a parent may still be waiting for.
_UNFINISHED = (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.UNDOING)
_UNSUCCESSFUL = (RunStatus.FAILED, RunStatus.CANCELLED)


# Runs above


def held_up(run: SequenceRun, runs: QuerySet[SequenceRun]) -> list[SequenceRun]:
    """Those of ``runs`` that have failed waiting for this one, its parent first.

    A retry of the last one restarts all of them, including this run if it did not succeed. One
    query per run above, and none for a run without a parent.
    """
    above: list[SequenceRun] = []
    waiting = run.parent_id
    while waiting and len(above) < MAX_DEPTH:
        parent = runs.filter(steps=waiting, steps__status=StepStatus.FAILED).first()
        if parent is None or not RULES["retry"].allows(parent.status):
            break
        above.append(parent)
        waiting = parent.parent_id
    return _retriable(above)


def _retriable(above: list[SequenceRun]) -> list[SequenceRun]:
    """Up to the first one that was rolled back: a retry would retry its undo."""
    snapshots = snapshot.of_many(above, failures=False) if above else []
    undone = (index for index, parent in enumerate(snapshots) if was_undone(parent))
    return above[: next(undone, len(above))]


def explain_held_up(run: SequenceRun, above: Sequence[SequenceRun]) -> str:
    """A sentence that its parents have failed; "" if there are none."""
    if not above:
        return ""
    values = {"parent": name_of(above[0]), "top": name_of(above[-1]), "count": len(above)}
    if len(above) > 1:
        message = ngettext(
            "%(count)d parent run failed while waiting for this one: %(top)s.",
            "%(count)d runs above this one failed while waiting for it, up to %(top)s.",
            len(above),
        )
    elif run.is_finished and run.status not in _UNSUCCESSFUL:
        message = _(
            "Its parent %(parent)s failed while waiting for this run and does not continue on "
            "its own: retry the parent."
        )
    else:
        message = _("Its parent %(parent)s failed while waiting for this run.")
    return message % values


def name_of(run: SequenceRun) -> str:
    """What people call a run: its key, or the beginning of its id."""
    return run.key or f"{str(run.pk)[:13]}…"


# Runs below


@dataclass(frozen=True)
class Family:
    """A run in a tree, with its child runs."""

    snapshot: RunSnapshot
    #: The step of its parent that started it; empty: it is the root.
    step: str
    children: tuple[Family, ...] = ()
    #: Whether it has children that are not shown.
    is_cut: bool = False

    @property
    def run(self) -> SequenceRun:
        """Its row."""
        return self.snapshot.run

    @property
    def has_failed(self) -> bool:
        """Whether it ended without success."""
        return self.run.status in _UNSUCCESSFUL

    @property
    def leads_to_cause(self) -> bool:
        """Whether this run, or one below it, did not succeed."""
        return self.has_failed or any(child.leads_to_cause for child in self.children)

    def walk(self) -> Iterator[Family]:
        """This run and all runs below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def cause(self) -> Family:
        """The deepest run whose failure failed this one: the run itself if no child did."""
        failed = set(self.snapshot.plan.failed(self.snapshot.states))
        blamed = (child for child in self.children if child.has_failed and child.step in failed)
        child = next(blamed, None)
        return self if child is None else child.cause

    @property
    def fixed_step(self) -> StepSnapshot | None:
        """The failed step of this run whose children have all succeeded since."""
        for name in self.snapshot.plan.failed(self.snapshot.states):
            step = self.snapshot.step(name)
            children = [child for child in self.children if child.step == name]
            if step is None or not step.node.traits.has_children or not children:
                continue
            if not any(child.has_failed for child in children):
                return step
        return None


def explain_fixed(family: Family) -> str:
    """A sentence that the children that failed a run have been fixed since; otherwise ""."""
    if not family.snapshot.is_failing or was_undone(family.snapshot):
        return ""
    cause = family.cause
    step = cause.fixed_step
    if step is None:
        return ""
    children = [child for child in cause.children if child.step == step.name]
    is_active = any(child.run.status in _UNFINISHED for child in children)
    values = {
        "step": quoted(step.label),
        "run": name_of(cause.run),
        "count": (count := _count(step, len(children))),
    }
    if cause is family:
        return _of_own(is_active, count) % values
    if is_active:
        message = _("The child runs of %(step)s in %(run)s are running again: retry this run.")
    else:
        message = _("The child runs of %(step)s in %(run)s have succeeded since: retry this run.")
    return message % values


def _count(step: StepSnapshot, default: int) -> int:
    members = step.row.members if step.row is not None else None
    count = members.get("total") if isinstance(members, dict) else None
    return count if isinstance(count, int) else default


def _of_own(is_active: bool, count: int) -> str:
    if is_active:
        return ngettext(
            "The child run of %(step)s is running again: retry this run to wait for it.",
            "The %(count)d child runs of %(step)s are running again: retry this run to wait for "
            "them.",
            count,
        )
    return ngettext(
        "The child run of %(step)s has succeeded since: retry this run to continue.",
        "All %(count)d child runs of %(step)s have succeeded since: retry this run to continue.",
        count,
    )


def tree_of(root: RunSnapshot, runs: QuerySet[SequenceRun]) -> Family:
    """The tree of a run and its children in ``runs``, unsuccessful ones first; one query per
    level."""
    rows: list[SequenceRun] = []
    level = [root.run.pk]
    depth = 0
    while level and depth < MAX_DEPTH and len(rows) < MAX_RUNS:
        room = MAX_RUNS - len(rows) + 1 if depth else MAX_CHILDREN + 1
        children = list(_ordered(runs.filter(parent__run__in=level))[:room])
        rows += children
        level = [child.pk for child in children]
        depth += 1
    snapshots = snapshot.of_many(rows[:MAX_RUNS], items=True) if rows else []
    return _assemble(root, without_hidden_causes(snapshots, runs), is_cut=len(rows) > MAX_RUNS)


def _ordered(children: QuerySet[SequenceRun]) -> QuerySet[SequenceRun]:
    first = [When(status__in=_UNSUCCESSFUL, then=Value(0)), When(status__in=_UNFINISHED, then=1)]
    rank = Case(*first, default=Value(2), output_field=IntegerField())
    return children.select_related("parent").order_by(rank, "-pk")


def _assemble(root: RunSnapshot, snapshots: list[RunSnapshot], *, is_cut: bool) -> Family:
    below: dict[Any, list[RunSnapshot]] = defaultdict(list)
    for child in snapshots:
        below[child.run.parent.run_id].append(child)  # type: ignore[union-attr]
    return _family(root, "", below, is_cut=is_cut)


def _family(
    run_snapshot: RunSnapshot, step: str, below: dict[Any, list[RunSnapshot]], *, is_cut: bool
) -> Family:
    children = below.get(run_snapshot.run.pk, [])
    is_cut = is_cut or len(children) > MAX_CHILDREN
    families = tuple(
        _family(child, child.run.parent.step, below, is_cut=False)  # type: ignore[union-attr]
        for child in children[:MAX_CHILDREN]
    )
    return Family(run_snapshot, step, families, is_cut)
