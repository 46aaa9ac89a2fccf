"""The rollback of a run that fails or is cancelled: one undo after the other.

First, running steps end; then the undos run, newest first. Then come the closing steps,
`on_failure` or `on_cancel` and then `on_end`, which a run that succeeds has, too; and then the end.
All of this happens under the run's lock, in the transaction of what came before, so that no crash
can lose the next undo.

Undoing a subsequence means rolling back its children, unless it declares an undo of its own. They
are stopped with their parent, and rolled back one after the other, newest first. Because locks are
taken from the parent to its children, never the other way, the end of a child is noticed by a check
after its commit, or by the sweep.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.translation import gettext

from ..definitions.kinds import (
    CLOSING_KINDS,
    COMPENSATION_KINDS,
    FAN_OUT_KINDS,
    UNDO_KINDS,
    traits_of,
)
from ..definitions.plan import Node, Plan
from ..models import (
    NO_ITEM,
    UNFINISHED_STEP,
    Operation,
    RunStatus,
    SequenceRun,
    StepRun,
    StepStatus,
    Wait,
)
from . import clock, plans, runs, starts, subsequences
from .limits import clear_on_commit
from .locking import lock_run, transact
from .subsequences import ChildrenUndo
from .types import Claim, Dispatch, dispatch_of, new_row, wait_for

#: The `final_status` of a run that only has to come to a standstill: its parent has an undo for it.
STANDSTILL = "standstill"
#: The `final_status` of a run that is cancelled without a rollback.
STOPPED = "stopped"
#: Final statuses without a rollback.
_NOT_UNDONE = (RunStatus.SUCCEEDED, STOPPED)
#: Runs that have completed all of their steps, even if their `on_end` has failed.
_COMPLETED = Q(status=RunStatus.SUCCEEDED) | Q(
    status=RunStatus.FAILED, final_status=RunStatus.SUCCEEDED
)


def stop(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """A step has failed permanently: put unstarted steps on hold; the run fails once nothing runs.

    It writes first and then reads, so that it sees a step that was claimed just before. Running
    items end first, too; until then, the step that waits for them is checked.
    """
    if run.is_finished:
        return []
    not_started = (StepStatus.QUEUED, StepStatus.WAITING)
    runs.unfinished(run, using).filter(status__in=not_started).update(wake_at=None)
    clear_on_commit(run.pk, using)
    executing = runs.unfinished(run, using).exclude(status__in=not_started)
    items = executing.filter(item__gt=NO_ITEM)
    for own in _rows(run, using).filter(kind__in=FAN_OUT_KINDS, step__in=items.values("step")):
        wait_for_running_items(own, now, using)
    if executing.exists() or plan.outcome(runs.states_of(run, using)) is None:
        return []
    return begin(run, plan, RunStatus.FAILED, now, using)


def begin(
    run: SequenceRun,
    plan: Plan,
    final_status: RunStatus,
    now: datetime,
    using: str,
    *,
    cancels: bool = False,
) -> list[Dispatch]:
    """End the run with this status, once everything is undone. Unstarted steps will never start.

    ``cancels``: steps may still be running; they are cancelled if nothing waits for their end.
    """
    if plan.closing(final_status) or has_undo(run, plan, using):
        run.status, run.final_status = RunStatus.UNDOING, final_status
        return go_on(run, plan, now, using)
    ready: list[Dispatch] = []
    if cancels or final_status == RunStatus.CANCELLED:
        ready = cancel_children(runs.steps_of(run, using), now, using)
        runs.end_unfinished(run, StepStatus.CANCELLED, now, using)
    runs.end(run, final_status, now)
    return ready


def succeed(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """End the run as succeeded, after its `on_end`. Nothing of it is left to do."""
    return _close_as(run, plan, RunStatus.SUCCEEDED, now, using)


def cancel(
    run: SequenceRun, plan: Plan, now: datetime, using: str, *, ends_rollbacks: bool = False
) -> list[Dispatch]:
    """Cancel the run and its child runs at once, without a rollback.

    A closing step that has already started is cancelled, too; the next one runs.
    ``ends_rollbacks``: child runs that are rolling back with it stop, too.
    """
    rows = runs.steps_of(run, using)
    ready = cancel_children(rows, now, using, ends_rollbacks=ends_rollbacks)
    subsequences.note_undoing(run, now, using)
    runs.end_unfinished(run, StepStatus.CANCELLED, now, using)
    return ready + _close_as(run, plan, STOPPED, now, using)


def cancel_children(
    rows: QuerySet[StepRun], now: datetime, using: str, *, ends_rollbacks: bool = False
) -> list[Dispatch]:
    """Cancel the children of these step runs, and theirs. Their parent is locked.

    A child that is ending already goes on with that: its rollback must not get lost because nobody
    needs the child any more. ``ends_rollbacks``: somebody has asked for just that, at the parent.
    """
    ready: list[Dispatch] = []
    for child in subsequences.lock_unfinished(rows, using):
        plan = plans.load(child.plan_id, using)
        if cancels_by_undoing(child, plan):
            ready += begin(child, plan, RunStatus.CANCELLED, now, using)
        elif _is_waiting(child) or (ends_rollbacks and _ends_with_parent(child, plan, using)):
            ready += cancel(child, plan, now, using, ends_rollbacks=ends_rollbacks)
        runs.save(child, now, using)
    return ready


def cancels_by_undoing(run: SequenceRun, plan: Plan) -> bool:
    """Whether its class says that cancelling rolls back, and this run can be rolled back."""
    return plan.cancel == "undo" and _is_waiting(run)


def _ends_with_parent(child: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether a cancellation of its parent cuts its end short.

    A rollback that the parent has not begun, or that the child's class demands, goes on unless
    somebody cancels the child itself.
    """
    if plan.cancel == "undo" or child.final_status == STOPPED:
        return False
    own = StepRun._base_manager.using(using).filter(children=child.pk)
    is_begun = own.filter(children_undo=ChildrenUndo.RUNNING).exists()
    return is_begun or child.final_status == RunStatus.SUCCEEDED


def _is_waiting(run: SequenceRun) -> bool:
    """Whether this unfinished run has not begun to end, or only waits for its parent's rollback."""
    return run.final_status in ("", STANDSTILL)


def _close_as(
    run: SequenceRun, plan: Plan, final_status: str, now: datetime, using: str
) -> list[Dispatch]:
    if not plan.closing(_status_of(final_status)):
        runs.end(run, _status_of(final_status), now)
        return []
    run.status, run.final_status = RunStatus.UNDOING, final_status
    return _close(run, plan, now, using)


def ending_of(run_id: UUID, using: str) -> str:
    """How this run ends, if that is decided: a `RunStatus`, or ""."""
    rows = SequenceRun._base_manager.using(using).filter(pk=run_id)
    status, final_status = rows.values_list("status", "final_status").get()
    return str(_status_of(final_status)) if status == RunStatus.UNDOING and final_status else ""


def _status_of(final_status: str) -> RunStatus:
    """How a run with this `final_status` ends."""
    return RunStatus.CANCELLED if final_status in (STOPPED, STANDSTILL) else RunStatus(final_status)


def has_undo(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether it, or a child run, has something to undo, or may have before it is stopped."""
    if not run.is_finished and plan.undos:
        return True
    if any(_not_undone(run, plan, node, using) for node in plan.undos):
        return True
    if not plan.subsequences:
        return False
    below = (child for own in _parents(run, plan, using) for child in _candidates(own, using))
    return any(_is_left(child, using) for child in below)


def _is_left(child: SequenceRun, using: str) -> bool:
    """Whether this finished child has something to undo, or could not undo it."""
    plan = plans.load(child.plan_id, using)
    return is_stuck(child, using) or has_undo(child, plan, using)


def is_stuck(run: SequenceRun, using: str) -> bool:
    """Whether its rollback has ended with an undo that failed."""
    return run.status == RunStatus.FAILED and has_failed(run, using)


def stops_here(run: SequenceRun, step: StepRun | Claim) -> bool:
    """Whether this step is not retried: its run is rolling back and waits for its end."""
    return run.status == RunStatus.UNDOING and not traits_of(step.kind).is_compensation


def go_on(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """What comes next in a rollback: another undo, `on_failure`, or the end."""
    if _settle(run, now, using):
        return []
    if run.final_status == STANDSTILL:
        return _stand_still(run, plan, now, using)
    if run.final_status in _NOT_UNDONE:
        return _close(run, plan, now, using)
    busy = _rows(run, using).filter(kind__in=COMPENSATION_KINDS, status__in=UNFINISHED_STEP)
    # An `on_failure` on hold runs after the undos.
    if not run.final_status or busy.filter(wake_at__isnull=False).exists():
        return []
    while not (plan.subsequences and subsequences.note_undoing(run, now, using)):
        if has_failed(run, using):
            run.final_status = RunStatus.FAILED
            return _close(run, plan, now, using)
        newest = _newest(run, plan, using)
        if newest is None:
            return _close(run, plan, now, using)
        node, row = newest
        if ready := _undo(run, plan, node, row, now, using):
            return ready
    return []


def _settle(run: SequenceRun, now: datetime, using: str) -> bool:
    """Cancel unstarted steps. Returns whether anything is still running.

    It writes first and then reads, so that it sees a step that was claimed just before.
    """
    main = runs.unfinished(run, using).exclude(kind__in=COMPENSATION_KINDS)
    if not main.exists():
        return False
    clear_on_commit(run.pk, using)
    main.exclude(status=StepStatus.RUNNING).exclude(runs.WAITS_FOR_ITEMS).update(**_cancelled(now))
    running = list(main.filter(status=StepStatus.RUNNING).values_list("step", "item"))
    _stop_items(main, {step for step, item in running if item != NO_ITEM}, now, using)
    _stop_children(run, now, using)
    return bool(running)


def _cancelled(now: datetime) -> dict[str, object]:
    status = StepStatus.CANCELLED
    return {"status": status, "token": None, "wake_at": None, "due_at": None, "finished_at": now}


def _stop_items(main: QuerySet[StepRun], busy: set[str], now: datetime, using: str) -> None:
    """Cancel the fan-outs without a running item; the others wait for their items."""
    for own in main.filter(runs.WAITS_FOR_ITEMS):
        if own.step in busy:
            wait_for_running_items(own, now, using)
        else:
            main.filter(pk=own.pk).update(**_cancelled(now))


def wait_for_running_items(own: StepRun, now: datetime, using: str) -> None:
    """Release no more items; check the fan-out whenever a running item ends."""
    own.members = {**(own.members or {}), "stopping": True}
    own.wake_at = now + clock.grace()
    own.save(using=using, update_fields=["members", "wake_at"])


def _stop_children(run: SequenceRun, now: datetime, using: str) -> None:
    """Stop the child runs: they start nothing more, and wait for their rollback."""
    for child in subsequences.lock_unfinished(runs.steps_of(run, using), using):
        if child.status != RunStatus.UNDOING:
            child.status, child.final_status = RunStatus.UNDOING, ""
            _settle(child, now, using)
            runs.save(child, now, using)


def _undo(
    run: SequenceRun, plan: Plan, node: Node | None, row: StepRun, now: datetime, using: str
) -> list[Dispatch]:
    """Undo this step run, with that step or with its children's own undos. Empty: check again."""
    if node is None:
        return _undo_child(run, row, now, using)
    stopped = _rows(run, using).filter(pk=row.pk)
    unfinished = list(subsequences.lock_unfinished(stopped, using))
    if not unfinished:
        return _insert(run, plan, node, row, now, using)
    ready = [dispatch for child in unfinished for dispatch in _halt(child, now, using)]
    subsequences.note_undoing(run, now, using)
    return ready


def _stand_still(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """Nothing of it is running; once that is true of all child runs, too, it is cancelled."""
    ready: list[Dispatch] = []
    for child in subsequences.lock_unfinished(runs.steps_of(run, using), using):
        ready += _halt(child, now, using)
    if not subsequences.note_undoing(run, now, using):
        ready += _close_as(run, plan, STOPPED, now, using)
    return ready


def _halt(child: SequenceRun, now: datetime, using: str) -> list[Dispatch]:
    """Bring this child to a standstill, unless it already is at one."""
    if child.final_status in (STANDSTILL, STOPPED):
        return []
    child.final_status = STANDSTILL
    ready = go_on(child, plans.load(child.plan_id, using), now, using)
    runs.save(child, now, using)
    return ready


def _undo_child(run: SequenceRun, own: StepRun, now: datetime, using: str) -> list[Dispatch]:
    """Start the rollback of the newest child, which may have nothing to undo and end at once.

    One that has failed to undo itself ends the rollback of its parents, too.
    """
    newest = _newest_child(own, using)
    child = None if newest is None else lock_run(newest.pk, using)
    if child is None:
        return []
    if is_stuck(child, using):
        is_begun = own.children_undo in subsequences.UNDONE
        own.children_undo = ChildrenUndo.FAILED if is_begun else ChildrenUndo.STUCK
        own.save(using=using, update_fields=["children_undo"])
        return []
    is_completed = RunStatus.SUCCEEDED in (child.status, child.final_status)
    if (child.is_finished or child.final_status == RunStatus.FAILED) and not is_completed:
        return []  # someone has ended it in the meantime, or retries its undo
    _look_after(own, ChildrenUndo.RUNNING, now, using)
    child.status, child.final_status = RunStatus.UNDOING, RunStatus.CANCELLED
    child.finished_at = None
    _record(child, "cancel_and_undo", run, now, using)
    ready = go_on(child, plans.load(child.plan_id, using), now, using)
    runs.save(child, now, using)
    return ready


def _look_after(own: StepRun, children_undo: str, now: datetime, using: str) -> None:
    """From now on its children are being rolled back, and the sweep checks on that."""
    own.children_undo = children_undo
    own.queued_at, own.wake_at = now, now + clock.grace()
    own.save(using=using, update_fields=["children_undo", "queued_at", "wake_at"])


def _record(
    child: SequenceRun, action: str, parent: SequenceRun, now: datetime, using: str
) -> None:
    Operation._base_manager.using(using).create(
        run=child,
        action=action,
        reason=gettext("inherited from its parent run %(run)s") % {"run": parent.pk},
        done_at=now,
    )


def _close(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """Everything is undone, or an undo has failed: run the closing steps, then end the run."""
    status = _status_of(run.final_status)
    for node in plan.closing(status):
        row = _rows(run, using).filter(step=node.name).first()
        if row is None:
            return _insert(run, plan, node, None, now, using)
        if row.wait == Wait.UNDO and row.status == StepStatus.WAITING:
            _rows(run, using).filter(pk=row.pk).update(**_queued(now))
            row.refresh_from_db(using=using)
            return [dispatch_of(row, plan)]
        if row.status in UNFINISHED_STEP:
            return []
    has_failed = _closing(run, using).filter(status=StepStatus.FAILED).exists()
    runs.end(run, RunStatus.FAILED if has_failed else status, now)
    return []


def _closing(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    return _rows(run, using).filter(kind__in=CLOSING_KINDS)


def look(step_run_id: int, using: str) -> list[Dispatch]:
    """A child of this step run may have ended: end its wait, or continue the rollback."""
    return subsequences.look(step_run_id, using) or resume(step_run_id, using)


def resume(step_run_id: int, using: str) -> list[Dispatch]:
    """Continue the rollback of the run, if children of this step run were rolled back."""
    row = StepRun._base_manager.using(using).filter(pk=step_run_id).first()
    if row is None or row.status in UNFINISHED_STEP:
        return []
    return transact(using, lambda: _resume(row.run_id, using))


def _resume(run_id: UUID, using: str) -> list[Dispatch]:
    run = lock_run(run_id, using)
    return [] if run is None else proceed(run, clock.now(using), using)


def proceed(run: SequenceRun, now: datetime, using: str) -> list[Dispatch]:
    """Continue the rollback of this locked run, if it has one."""
    if run.status != RunStatus.UNDOING:
        subsequences.note_undoing(run, now, using)
        return []
    ready = go_on(run, plans.load(run.plan_id, using), now, using)
    runs.save(run, now, using)
    return ready


def can_retry(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether an undo has failed, or a closing step after all undos."""
    return has_failed(run, using) or _closing(run, using).filter(status=StepStatus.FAILED).exists()


def has_failed_at_its_end(run: SequenceRun) -> bool:
    """Whether it has failed only because of a closing step, and no step on its main path failed."""
    return run.status == RunStatus.FAILED and run.final_status not in ("", RunStatus.FAILED)


def has_stuck_child(run: SequenceRun, plan: Plan, using: str) -> bool:
    """Whether its rollback ended before it undid anything, because of a child, and has not become
    superfluous since."""
    stuck = _rows(run, using).filter(children_undo=ChildrenUndo.STUCK)
    return stuck.exists() and has_undo(run, plan, using)


def has_failed(run: SequenceRun, using: str) -> bool:
    """Whether an undo has failed permanently: its own, or one of a child run."""
    return _rows(run, using).filter(subsequences.failed_undo()).exists()


def retry(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """Continue with what failed in this locked run's rollback; `on_failure` comes after it."""
    run.status, run.finished_at = RunStatus.UNDOING, None
    failed = _rows(run, using).filter(status=StepStatus.FAILED)
    again = {"attempts": 0, "lost_workers": 0, "token": None, "due_at": None, "finished_at": None}
    failed.filter(kind__in=CLOSING_KINDS).update(**wait_for(Wait.UNDO, now), **again)
    undos = list(failed.filter(kind__in=UNDO_KINDS).values_list("pk", flat=True))
    failed.filter(kind__in=UNDO_KINDS).update(**again, **_queued(now))
    ready = [dispatch_of(row, plan) for row in _rows(run, using).filter(pk__in=undos)]
    for own in _rows(run, using).filter(children_undo__in=subsequences.UNDO_FAILED):
        ready += _retry_children(run, own, now, using)
    return ready or go_on(run, plan, now, using)


def _retry_children(run: SequenceRun, own: StepRun, now: datetime, using: str) -> list[Dispatch]:
    is_begun = own.children_undo == ChildrenUndo.FAILED
    _look_after(own, ChildrenUndo.RUNNING if is_begun else "", now, using)
    failed = subsequences.of(own, using).filter(_stuck(using))
    ready: list[Dispatch] = []
    for run_id in list(failed.order_by("pk").values_list("pk", flat=True)):
        child = lock_run(run_id, using)
        if child is not None and is_stuck(child, using):
            _record(child, "retry", run, now, using)
            ready += retry(child, plans.load(child.plan_id, using), now, using)
            runs.save(child, now, using)
    return ready


def _queued(now: datetime) -> dict[str, object]:
    values = {"status": StepStatus.QUEUED, "ready_at": now, "queued_at": now, "dispatches": 0}
    return {**values, "wake_at": now + clock.grace()}


def undone(run: SequenceRun, plan: Plan, using: str) -> frozenset[str]:
    """The steps that were undone, or whose undo was tried."""
    undos = _rows(run, using).filter(kind__in=UNDO_KINDS).values_list("step", flat=True)
    names = {plan.node(name).undoes for name in undos}
    if plan.subsequences:
        below = _rows(run, using).filter(children_undo__in=subsequences.UNDONE)
        names.update(below.values_list("step", flat=True))
    return frozenset(names)


def forget(run: SequenceRun, plan: Plan, steps: frozenset[str], using: str) -> None:
    """Remove the undos of these steps, and the closing steps: all of them start over.

    A rollback that has stopped before it undid anything is forgotten, too.
    """
    stuck = _rows(run, using).filter(children_undo=ChildrenUndo.STUCK)
    stuck.update(children_undo="")
    names = {node.name for node in plan.undos if node.undoes in steps}
    names |= {node.name for node in plan.nodes if node.traits.is_closing}
    runs.remove(run, names, using)


def _newest(run: SequenceRun, plan: Plan, using: str) -> tuple[Node | None, StepRun] | None:
    """The newest step run with an undo that has not started; no node: its children have undos."""
    candidates: list[tuple[Node | None, StepRun]] = [
        (node, row) for node in plan.undos if (row := _not_undone(run, plan, node, using))
    ]
    if plan.subsequences and (row := _newest_parent(run, plan, using)):
        candidates.append((None, row))
    return max(candidates, key=lambda pair: pair[1].pk, default=None)


def _newest_parent(run: SequenceRun, plan: Plan, using: str) -> StepRun | None:
    """The newest step run with a child that is to be rolled back with its own undos."""
    rows = _parents(run, plan, using).order_by("-pk")
    return next((row for row in rows if _newest_child(row, using)), None)


def _parents(run: SequenceRun, plan: Plan, using: str) -> QuerySet[StepRun]:
    """The step runs whose children are rolled back with their own undos."""
    rows = _rows(run, using).filter(wait=Wait.CHILDREN)
    for node in plan.undos:
        rows = rows.exclude(_done(node), step=node.undoes)
    return rows


def _newest_child(own: StepRun, using: str) -> SequenceRun | None:
    """The newest child that was stopped, is running again, has succeeded with something to undo, or
    has failed to undo itself."""
    for child in _candidates(own, using).order_by("-pk"):
        if not child.is_finished or _is_left(child, using):
            return child
    return None


def _candidates(own: StepRun, using: str) -> QuerySet[SequenceRun]:
    children = subsequences.of(own, using)
    is_open = Q(status__in=(RunStatus.RUNNING, RunStatus.PAUSED))
    is_stopped = Q(status=RunStatus.UNDOING, final_status="")
    completed = _COMPLETED & Q(plan__in=_plans_with_undos(children, using))
    return children.filter(is_open | is_stopped | completed | _stuck(using))


def _stuck(using: str) -> Q:
    """The runs that `is_stuck` is true of."""
    undo = StepRun._base_manager.using(using).filter(subsequences.failed_undo(), run=OuterRef("pk"))
    return Q(Exists(undo), status=RunStatus.FAILED)


def _plans_with_undos(children: QuerySet[SequenceRun], using: str) -> list[int]:
    ids = children.filter(_COMPLETED).values_list("plan", flat=True).distinct()
    loaded = {plan_id: plans.load(plan_id, using) for plan_id in ids}
    return [plan_id for plan_id, plan in loaded.items() if plan.undos or plan.subsequences]


def _not_undone(run: SequenceRun, plan: Plan, node: Node, using: str) -> StepRun | None:
    undo = _rows(run, using).filter(step=node.name, item=OuterRef("item"))
    rows = _rows(run, using).filter(_done(node), ~Exists(undo), step=node.undoes)
    # For a fan-out, its items are undone, not the row that waited for them.
    is_fan_out = plan.node(node.undoes).traits.has_items
    rows = rows.filter(item__gt=NO_ITEM) if is_fan_out else rows
    return rows.order_by("-pk").first()


def _done(node: Node) -> Q:
    """The step runs that this undo is for: completed, or with work that may have had effects.

    What was committed before a repeat has had some, whatever became of the rest.
    """
    unsuccessful = (StepStatus.FAILED, StepStatus.CANCELLED)
    done = Q(status=StepStatus.SUCCEEDED)
    done |= Q(status__in=(*unsuccessful, StepStatus.SKIPPED), repeats__gt=0)
    if node.attempted:
        done |= Q(status__in=unsuccessful, started_at__isnull=False)
    return done


def _insert(
    run: SequenceRun, plan: Plan, node: Node, of: StepRun | None, now: datetime, using: str
) -> list[Dispatch]:
    row = new_row(run.pk, node, now, now + clock.grace())
    if of is not None and of.item != NO_ITEM:
        row.item, row.payload = of.item, {"item": of.payload, "result": of.result}
    starts.insert([row], using)
    return [dispatch_of(row, plan)]


def _rows(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    return StepRun._base_manager.using(using).filter(run=run.pk)
