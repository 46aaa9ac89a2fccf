"""A performed step becomes fact: its state, its `data`, and what is ready after it.

Everything here happens in the transaction that holds the user's own writes. What raises rolls
them back.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from django.db import connections

from ..data import serialization
from ..definitions.plan import Plan
from ..models import UNFINISHED_RUN, RunStatus, SequenceRun, StepRun, StepStatus, Wait
from . import clock, compensation, fanout, notifications, plans, starts, subsequences
from .backends import FastStatements, backend_of
from .locking import lock_run
from .runs import end, save, skip_unfinished, states_of, steps_of
from .types import Change, Claim, ClaimLost, Dispatch, dispatch_of, new_row, wait_for

#: A delay up to this is waited for in the broker too, which is more precise than a sweep.
SHORT = timedelta(seconds=60)
#: How long after its time such a message is taken for lost.
SLACK = timedelta(seconds=2)


def commit_quickly(claim: Claim, change: Change, using: str) -> list[Dispatch] | None:
    """Store what a step of a chain did by one statement, which needs no transaction around it.

    None: nothing is stored, this is a case for `commit`.
    """
    waits = (
        change.receive
        or change.timed_out
        or change.items is not None
        or change.children is not None
    )
    fast = backend_of(using).fast
    if fast is None or change.again is not None or waits or change.finish:
        return None
    plan = plans.load(claim.plan_id, using)
    return _commit_in_chain(fast, claim, change, plan, using) if plan.is_chain else None


def _commit_in_chain(
    fast: FastStatements, claim: Claim, change: Change, plan: Plan, using: str
) -> list[Dispatch] | None:
    following = next(iter(plan.successors(claim.step)), None)
    row = fast.commit_in_chain(claim, change, following, connections[using])
    if row is None:
        return None
    notifications.succeeded(claim.step_run_id, change.status, claim.sequence, using)
    if following is None:
        notifications.ended(claim.run_id, claim.sequence, RunStatus.SUCCEEDED, using)
        return []
    message = Dispatch(
        row, claim.run_id, following.actor, following.queue, options=following.options
    )
    return [message]


def commit(claim: Claim, change: Change, using: str) -> list[Dispatch]:
    """Store what the step did, in the caller's transaction, and say what is to be dispatched.

    Raises `ClaimLost` if the step is not ours any more, and `MergeConflict` if a parallel step
    changed the same key of `data` in another way: then it is to be performed again.
    """
    plan = plans.load(claim.plan_id, using)
    run = lock_run(claim.run_id, using)
    if run is None or run.status not in _commits_in(claim):
        raise ClaimLost
    now = clock.now(using)
    _write_row(claim, change, run, now, using)
    _merge_data(run, claim, change)
    if compensation.stops_here(run, claim):
        ready = compensation.go_on(run, plan, now, using)
    elif change.finish:
        subsequences.cancel(steps_of(run, using), now, using)
        skip_unfinished(run, now, using)
        end(run, RunStatus.SUCCEEDED, now)
        ready = []
    elif claim.is_compensation and change.again is None:
        ready = compensation.go_on(run, plan, now, using)
    elif claim.is_compensation:
        ready = _again(claim, change, plan, now, using)
    else:
        ready = advance(run, plan, now, using)
        if change.children is not None:
            ready += change.dispatches
        elif change.items is not None:
            ready += fanout.go_on(run, plan, claim.step, now, using)
        elif change.again is not None or change.receive or change.timed_out:
            ready += _again(claim, change, plan, now, using)
            if claim.is_item:
                ready += fanout.leave_place(run, plan, claim, now, using)
    save(run, now, using)
    return ready


def _commits_in(claim: Claim) -> tuple[RunStatus, ...]:
    """The states of a run in which this step commits.

    One that executes when its run is to be undone ends first, and is undone then.
    """
    return (RunStatus.UNDOING,) if claim.is_compensation else UNFINISHED_RUN


def _write_row(claim: Claim, change: Change, run: SequenceRun, now: datetime, using: str) -> None:
    values: dict[str, Any] = {"status": change.status, "lost": 0, "wake_at": None, "due_at": None}
    if change.progress is not None:
        values["progress"] = json.loads(change.progress)
    if change.children is not None:
        values.update(subsequences.wait_values(change.children, run, now))
    elif change.items is not None:
        values.update(fanout.wait_values(change.items, run, now))
    elif change.receive or (change.timed_out and claim.step in run.inbox):
        values.update(_receive(claim, change, run, now))
    elif change.again is not None:
        values.update(_wait(claim, change, run, now))
    else:
        values.update(finished_at=now, result=_parsed(change.result))
    rows = StepRun._base_manager.using(using)
    rows = rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING)
    if not rows.update(**values):
        raise ClaimLost
    if "finished_at" in values:
        notifications.succeeded(claim.step_run_id, change.status, claim.sequence, using)


def _wait(claim: Claim, change: Change, run: SequenceRun, now: datetime) -> dict[str, Any]:
    due = now + change.again if isinstance(change.again, timedelta) else change.again
    assert due is not None
    values: dict[str, Any] = {"queued_at": now, "dispatches": 0, "delayed": True}
    if change.repeat:
        values.update(attempts=0, repeats=claim.repeats + 1, ready_at=now)
    if due <= now:
        values.update(status=StepStatus.QUEUED, wake_at=now + clock.grace())
    else:
        slack = SLACK if due - now <= SHORT else timedelta(0)
        values.update(**wait_for(Wait.TIME, now), due_at=due, wake_at=due + slack)
    if run.status == RunStatus.PAUSED:
        values["wake_at"] = None
    return values


def _receive(claim: Claim, change: Change, run: SequenceRun, now: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {"queued_at": now, "dispatches": 0}
    if claim.step in run.inbox:  # delivered since the step has looked
        values.update(status=StepStatus.QUEUED, wake_at=now + clock.grace())
    else:
        due = now + change.again if isinstance(change.again, timedelta) else change.again
        values.update(**wait_for(Wait.EVENT, now), due_at=due, wake_at=due)
    if run.status == RunStatus.PAUSED:
        values["wake_at"] = None
    return values


def _parsed(result: str | None) -> Any:
    return None if result is None else json.loads(result)


def _again(claim: Claim, change: Change, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    row = StepRun._base_manager.using(using).get(pk=claim.step_run_id)
    if row.wake_at is None or (change.receive and row.status == StepStatus.WAITING):
        return []
    if row.due_at is None:
        return [dispatch_of(row, plan)]
    if row.due_at - now > SHORT:
        return []
    return [dispatch_of(row, plan, ceil((row.due_at - now) / timedelta(milliseconds=1)))]


def _merge_data(run: SequenceRun, claim: Claim, change: Change) -> None:
    if change.data is None:
        return
    if run.version == claim.version:
        run.data = change.after
    else:
        run.data = serialization.merge(change.before, run.data, change.after)


def advance(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """Insert what has become ready, and end the run if nothing is left. The run is locked.

    Under a pause, and beside a step that has finally failed, what becomes ready is held.
    """
    states = states_of(run, using)
    failing = plan.is_failing(states)
    held = failing or run.status == RunStatus.PAUSED
    wake_at = None if held else now + clock.grace()
    rows = [new_row(run.pk, node, now, wake_at) for node in plan.ready(states)]
    starts.insert(rows, using)
    if failing:
        return compensation.stop(run, plan, now, using)
    states.update((row.step, row.status) for row in rows)
    outcome = plan.outcome(states)
    if outcome is not None:
        end(run, RunStatus(outcome), now)
    return [] if held else [dispatch_of(row, plan) for row in rows]


def divert(run: SequenceRun, plan: Plan, name: str, now: datetime, using: str) -> list[Dispatch]:
    """A step has finally failed, and another goes on in its place: the run does not fail."""
    states = states_of(run, using)
    left_out = [node for node in plan.left_out(name) if node.name not in states]
    ended = {"status": StepStatus.SKIPPED, "finished_at": now}
    starts.insert([new_row(run.pk, node, now, None, **ended) for node in left_out], using)
    handler = plan.node(plan.node(name).on_error)
    ready = []
    if handler.name not in states:
        others_fail = plan.is_failing({**states, handler.name: StepStatus.QUEUED})
        held = run.status == RunStatus.PAUSED or others_fail
        row = new_row(run.pk, handler, now, None if held else now + clock.grace())
        starts.insert([row], using)
        ready = [] if held else [dispatch_of(row, plan)]
    return ready + advance(run, plan, now, using)


def rivals(claim: Claim, using: str) -> list[str]:
    """The steps that have committed since this one was claimed first."""
    rows = StepRun._base_manager.using(using).filter(
        run=claim.run_id, status=StepStatus.SUCCEEDED, finished_at__gte=claim.now
    )
    return list(rows.exclude(pk=claim.step_run_id).order_by("pk").values_list("step", flat=True))
