"""The deepest causes of failures: what failed in an item or in a child run, and so on."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

from django.db.models import Max, Min, Q, QuerySet

from ..definitions.kinds import COMPENSATION_KINDS, ITEM_KINDS
from ..exceptions import ChildrenFailed, ItemsFailed
from ..models import NO_ITEM, RunStatus, SequenceRun, StepFailure, StepRun, StepStatus

#: The errors of steps that failed because others did, as they are stored with the failure.
ITEMS_FAILED = f"{ItemsFailed.__module__}.{ItemsFailed.__qualname__}"
CHILDREN_FAILED = f"{ChildrenFailed.__module__}.{ChildrenFailed.__qualname__}"
#: Failures that only report other failures.
REPORTS = (ITEMS_FAILED, CHILDREN_FAILED)
#: The maximum number of levels of runs to search.
MAX_DEPTH = 50


def deepest(failures: Iterable[StepFailure], using: str) -> dict[int, StepFailure]:
    """The deepest cause of each of these failures that has one, by the id of the failure.

    Each comes with its run. Without failed items or child runs, this needs no query; otherwise, a
    few for each level, however many failures there are.
    """
    causes: dict[int, StepFailure] = {}
    level = {failure.pk: failure for failure in failures if _has_cause(failure)}
    for _depth in range(MAX_DEPTH):
        if not level:
            break
        below = _one_level(list(level.values()), using)
        level = {pk: below[failure.pk] for pk, failure in level.items() if failure.pk in below}
        causes |= level
        level = {pk: failure for pk, failure in level.items() if _has_cause(failure)}
    return causes


def of_run(run_id: UUID, using: str) -> StepFailure | None:
    """Why a run failed: the latest failure of a failed step that is not an undo."""
    return _of_runs([run_id], using).get(run_id)


def _has_cause(failure: StepFailure) -> bool:
    return failure.error in REPORTS


def _one_level(failures: Collection[StepFailure], using: str) -> dict[int, StepFailure]:
    of_items = [failure for failure in failures if failure.error == ITEMS_FAILED]
    of_children = [failure for failure in failures if failure.error == CHILDREN_FAILED]
    return {
        **(_in_items(of_items, using) if of_items else {}),
        **(_in_children(of_children, using) if of_children else {}),
    }


def _in_items(failures: Collection[StepFailure], using: str) -> dict[int, StepFailure]:
    """The failure of the first failed item."""
    rows = StepRun._base_manager.using(using).filter(
        run__in={failure.run_id for failure in failures},
        step__in={failure.step for failure in failures},
        item__gt=NO_ITEM,
        status=StepStatus.FAILED,
    )
    firsts = rows.order_by().values_list("run", "step").annotate(Min("pk"))
    first_of = {(run_id, step): pk for run_id, step, pk in firsts}
    newest = _newest(Q(step_run__in=first_of.values()), "step_run", using)
    pairs = ((failure.pk, first_of.get((failure.run_id, failure.step))) for failure in failures)
    return {pk: newest[first] for pk, first in pairs if first in newest}


def _in_children(failures: Collection[StepFailure], using: str) -> dict[int, StepFailure]:
    """The failure of the first failed child run."""
    parents = [failure.step_run_id for failure in failures]
    children = SequenceRun._base_manager.using(using).filter(
        parent__in=parents, status=RunStatus.FAILED
    )
    # In the order of their starts: PostgreSQL has no minimum of ids before version 18.
    first_of: dict[int | None, UUID] = {}
    for parent, child in children.order_by("pk").values_list("parent", "pk"):
        first_of.setdefault(parent, child)
    newest = _of_runs(first_of.values(), using)
    pairs = ((failure.pk, first_of.get(failure.step_run_id)) for failure in failures)
    return {pk: newest[child] for pk, child in pairs if child in newest}


def _of_runs(ids: Collection[UUID], using: str) -> dict[UUID, StepFailure]:
    is_own = ~Q(step_run__kind__in=COMPENSATION_KINDS | ITEM_KINDS)
    failed = Q(run__in=ids, step_run__status=StepStatus.FAILED)
    return _newest(failed & is_own, "run", using)


def _newest(condition: Q, key: str, using: str) -> dict[Any, StepFailure]:
    """The latest of the failures that meet the condition, by what they belong to."""
    rows = StepFailure._base_manager.using(using)
    newest = rows.filter(condition).order_by().values(key).annotate(newest=Max("pk"))
    ids = [group["newest"] for group in newest]
    failures: QuerySet[StepFailure] = rows.filter(pk__in=ids).select_related("run")
    heavy = ("traceback", "run__data", "run__inbox")
    return {getattr(failure, f"{key}_id"): failure for failure in failures.defer(*heavy)}
