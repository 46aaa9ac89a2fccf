"""A run that fails undoes what it has done: one step run after the other, newest first.

Then comes `on_failure`, and then the end. All under the run's lock, in the transaction of what
came before: there is no moment at which a crash forgets the next undo.
"""

from __future__ import annotations

from datetime import datetime

from django.db.models import Exists, OuterRef, Q, QuerySet

from ..models import PLAIN, UNFINISHED_STEP, RunStatus, SequenceRun, StepRun, StepStatus
from ..plan import ASIDE, Node, Plan
from . import children, runs, starts, times
from .values import Dispatch, dispatch_of, new_row


def stop(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """A step has finally failed: hold what has not begun; the run fails when nothing runs.

    First held, then read: a step that was claimed just before is seen to run. Items that run end
    first, too; the step that waits for them is looked after until then.
    """
    if run.is_finished:
        return []
    waiting = (StepStatus.QUEUED, StepStatus.WAITING)
    runs.unfinished(run, using).filter(status__in=waiting).update(wake_at=None)
    executing = runs.unfinished(run, using).exclude(status__in=waiting)
    items = executing.filter(item__gt=PLAIN)
    for own in _rows(run, using).filter(kind="each", step__in=items.values("step")):
        own.payload = {**(own.payload or {}), "stopping": True}
        own.wake_at = now + times.grace()
        own.save(using=using, update_fields=["payload", "wake_at"])
    if executing.exists() or plan.outcome(runs.states_of(run, using)) is None:
        return []
    return begin(run, plan, RunStatus.FAILED, now, using)


def begin(
    run: SequenceRun, plan: Plan, ending: RunStatus, now: datetime, using: str
) -> list[Dispatch]:
    """The run ends so, once all is undone. What has not begun never will."""
    if plan.undos or plan.on_failure:
        children.cancel(runs.steps_of(run, using), now, using)
        runs.end_unfinished(run, StepStatus.CANCELLED, now, using)
        run.status, run.ending = RunStatus.UNDOING, ending
        return go_on(run, plan, now, using)
    runs.end(run, ending, now)
    return []


def go_on(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """What comes next in an undoing: another undo, or `on_failure`, or the end."""
    rows = _rows(run, using).filter(kind__in=ASIDE)
    if rows.filter(status__in=UNFINISHED_STEP).exists():
        return []
    failed = rows.filter(kind="undo", status=StepStatus.FAILED).exists()
    if failed:
        run.ending = RunStatus.FAILED
    elif (undone := _newest(run, plan, using)) is not None:
        return _insert(run, plan, *undone, now, using)
    last = plan.on_failure
    fails = last is not None and run.ending == RunStatus.FAILED
    if last is not None and fails and not rows.filter(step=last.name).exists():
        return _insert(run, plan, last, None, now, using)
    runs.end(run, RunStatus(run.ending), now)
    return []


def retry(run: SequenceRun, now: datetime, using: str) -> bool:
    """Begin a failed undo again. False: there is none."""
    failed = _rows(run, using).filter(kind="undo", status=StepStatus.FAILED)
    values = {"attempts": 0, "lost": 0, "token": None, "due_at": None, "finished_at": None}
    return bool(
        failed.update(
            status=StepStatus.QUEUED,
            ready_at=now,
            queued_at=now,
            dispatches=0,
            wake_at=now + times.grace(),
            **values,
        )
    )


def undone(run: SequenceRun, plan: Plan, using: str) -> frozenset[str]:
    """The steps that were undone, or tried to be."""
    rows = _rows(run, using).filter(kind="undo")
    return frozenset(plan.node(name).undoes for name in rows.values_list("step", flat=True))


def forget(run: SequenceRun, plan: Plan, steps: frozenset[str], using: str) -> None:
    """Remove the undos of these steps, and what was done at the failure: all begins again."""
    names = {node.name for node in plan.undos if node.undoes in steps}
    if plan.on_failure is not None:
        names.add(plan.on_failure.name)
    runs.remove(run, names, using)


def _newest(run: SequenceRun, plan: Plan, using: str) -> tuple[Node, StepRun] | None:
    """The newest step run that has an undo which has not begun."""
    found = [(node, row) for node in plan.undos if (row := _not_undone(run, plan, node, using))]
    return max(found, key=lambda pair: pair[1].pk, default=None)


def _not_undone(run: SequenceRun, plan: Plan, node: Node, using: str) -> StepRun | None:
    begun = _rows(run, using).filter(step=node.name, item=OuterRef("item"))
    done = Q(status=StepStatus.SUCCEEDED)
    if node.attempted:
        done |= Q(status__in=(StepStatus.FAILED, StepStatus.CANCELLED), started_at__isnull=False)
    rows = _rows(run, using).filter(done, ~Exists(begun), step=node.undoes)
    # Of a fan-out the items are undone, not the row that waited for them.
    is_fan_out = plan.node(node.undoes).kind == "each"
    rows = rows.filter(item__gt=PLAIN) if is_fan_out else rows
    return rows.order_by("-pk").first()


def _insert(
    run: SequenceRun, plan: Plan, node: Node, of: StepRun | None, now: datetime, using: str
) -> list[Dispatch]:
    row = new_row(run.pk, node, now, now + times.grace())
    if of is not None and of.item != PLAIN:
        row.item, row.payload = of.item, {"item": of.payload, "result": of.result}
    starts.insert([row], using)
    return [dispatch_of(row, plan)]


def _rows(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    return StepRun._base_manager.using(using).filter(run=run.pk)
