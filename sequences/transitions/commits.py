"""Commits of executed steps: the step's status, its `data`, and what is ready after it.

Everything here happens in the transaction that holds the user's own writes, which an error rolls
back.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from django.db import connections

from ..data import serialization
from ..definitions.plan import Node, Plan
from ..models import UNFINISHED_RUN, RunStatus, SequenceRun, StepRun, StepStatus, Wait
from . import (
    clock,
    compensation,
    fanout,
    limits,
    notifications,
    plans,
    races,
    starts,
    subsequences,
)
from .backends import FastStatements, backend_of
from .locking import lock_run
from .periods import MESSAGE_SLACK
from .runs import save, skip_unfinished, states_of, steps_of
from .types import (
    Change,
    Claim,
    ClaimLost,
    Completed,
    Conclusion,
    Dispatch,
    FinishRun,
    Offer,
    Repeat,
    Skipped,
    TimedOut,
    WaitForChildren,
    WaitForEvent,
    WaitForItems,
    WaitForTime,
    dispatch_of,
    new_row,
    wait_for,
)

#: Longer delays are left to the sweep; shorter ones also go to the broker, which is more precise.
MAX_BROKER_DELAY = timedelta(seconds=60)


def commit_quickly(
    claim: Claim, plan: Plan, change: Change, using: str, offer: Offer | None = None
) -> list[Dispatch] | None:
    """Commit a step of a chain with one statement, which needs no transaction around it.

    With an offer, the same statement claims the next step, unless something of the caller's must
    happen before that could start. None: nothing was stored; use `commit`.
    """
    fast = backend_of(using).fast
    if fast is None or claim.is_limited or not isinstance(change.conclusion, Completed | Skipped):
        return None
    if plan.chain is None:
        return None
    following = plan.chain[claim.step]
    if following is None and plan.on_end is not None:
        return None
    if offer and following and _is_next_at_once(claim, following, offer, using):
        return _commit_and_claim(fast, claim, change, following, offer, using)
    row = fast.commit_in_chain(claim, change, following, connections[using])
    if row is None:
        return None
    notifications.succeeded(claim.step_run_id, change.conclusion.status, claim.sequence, using)
    if following is None:
        notifications.ended(claim.run_id, claim.sequence, RunStatus.SUCCEEDED, using)
        return []
    return [
        Dispatch(row, claim.run_id, following.actor, following.queue, options=following.options)
    ]


def _is_next_at_once(claim: Claim, following: Node, offer: Offer, using: str) -> bool:
    """Whether the next step can start before hooks or receivers use up its lease."""
    if connections[using].run_on_commit or notifications.are_heard(claim.sequence):
        return False
    return offer.accepts(following.actor, following.queue)


def _commit_and_claim(
    fast: FastStatements, claim: Claim, change: Change, following: Node, offer: Offer, using: str
) -> list[Dispatch] | None:
    next_claim = fast.commit_and_claim(claim, change, following, offer, connections[using])
    if next_claim is None:
        return None
    return [
        Dispatch(
            next_claim.step_run_id, claim.run_id, following.actor, following.queue,
            options=following.options, claim=next_claim,
        )
    ]  # fmt: skip


def commit(claim: Claim, change: Change, using: str) -> list[Dispatch]:
    """Commit what the step did, in the caller's transaction; return what to dispatch.

    Raises `ClaimLost` if the claim is lost, and `MergeConflict` if a parallel step changed the same
    key of `data` in another way: then the step must run again.
    """
    run, plan, now = _store(claim, change, UNFINISHED_RUN, using)
    ready = _go_on(claim, change.conclusion, run, plan, now, using)
    save(run, now, using)
    return ready + _leave_limits(run, claim, using)


def _leave_limits(run: SequenceRun, claim: Claim, using: str) -> list[Dispatch]:
    """Pass on the places that end with this claim, and with the run. Lines are locked last."""
    return limits.end_claim(run, claim.step_run_id, using) if claim.is_limited else []


def commit_waiting_item(claim: Claim, change: Change, using: str) -> list[Dispatch]:
    """The same for an item that will run again: until then, another item may have its place."""
    run, plan, now = _store(claim, change, UNFINISHED_RUN, using)
    ready = _go_on(claim, change.conclusion, run, plan, now, using)
    ready += fanout.leave_place(run, plan, claim, now, using)
    save(run, now, using)
    return ready + _leave_limits(run, claim, using)


def commit_compensation(claim: Claim, change: Change, using: str) -> list[Dispatch]:
    """The same for an undo or `on_failure`: the rollback decides what comes next."""
    run, plan, now = _store(claim, change, (RunStatus.UNDOING,), using)
    match change.conclusion:
        case Completed() | Skipped():
            ready = compensation.go_on(run, plan, now, using)
        case _:
            ready = _message(claim, plan, now, using)
    save(run, now, using)
    if run.is_finished:
        limits.clear_on_commit(run.pk, using)
    return ready + _leave_limits(run, claim, using)


def _store(
    claim: Claim, change: Change, states: Collection[RunStatus], using: str
) -> tuple[SequenceRun, Plan, datetime]:
    """Write the row of the step, and its data into the run, which is locked from here on."""
    plan = plans.load(claim.plan_id, using)
    run = lock_run(claim.run_id, using)
    if run is None or run.status not in states:
        raise ClaimLost
    now = clock.now(using)
    _write_row(claim, change, run, now, using)
    _merge_data(run, claim, change)
    return run, plan, now


def _go_on(
    claim: Claim, conclusion: Conclusion, run: SequenceRun, plan: Plan, now: datetime, using: str
) -> list[Dispatch]:
    """What is ready after a step on the main path."""
    if run.status == RunStatus.UNDOING:  # it was running when the rollback of its run started
        return compensation.go_on(run, plan, now, using)
    if isinstance(conclusion, FinishRun):
        return finish(run, plan, now, using)
    ready = advance(run, plan, now, using)
    match conclusion:
        case WaitForChildren():
            return [*ready, *conclusion.dispatches]
        case WaitForItems():
            return ready + fanout.go_on(run, plan, claim.step, now, using)
        case WaitForTime() | Repeat() | WaitForEvent() | TimedOut():
            return ready + _message(claim, plan, now, using)
        case _:
            return ready


def finish(run: SequenceRun, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """End the run as succeeded; unfinished steps are skipped."""
    ready = compensation.cancel_children(steps_of(run, using), now, using)
    skip_unfinished(run, now, using)
    return ready + compensation.succeed(run, plan, now, using)


def _write_row(claim: Claim, change: Change, run: SequenceRun, now: datetime, using: str) -> None:
    values: dict[str, Any] = {"lost_workers": 0, "wake_at": None, "due_at": None}
    if change.progress is not None:
        values["progress"] = json.loads(change.progress)
    values |= _values(claim, change, run, now)
    if run.status == RunStatus.PAUSED:
        values["wake_at"] = None
    rows = StepRun._base_manager.using(using)
    rows = rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING)
    if not rows.update(**values):
        raise ClaimLost
    if "finished_at" in values:
        notifications.succeeded(claim.step_run_id, change.conclusion.status, claim.sequence, using)


def _values(claim: Claim, change: Change, run: SequenceRun, now: datetime) -> dict[str, Any]:
    """The new values of the step's row."""
    match change.conclusion:
        case WaitForTime(until):
            return _again(until, now)
        case Repeat(after):
            next_turn = {"attempts": 0, "repeats": claim.repeats + 1, "ready_at": now}
            return _again(now + after, now) | next_turn
        case WaitForEvent() | TimedOut() if claim.step in run.inbox:
            return _queued(now)  # delivered since the step checked
        case WaitForEvent(until):
            due = now + until if isinstance(until, timedelta) else until
            times = {"queued_at": now, "dispatches": 0, "due_at": due, "wake_at": due}
            return wait_for(Wait.EVENT, now) | times
        case WaitForItems() as items:
            return fanout.wait_values(items, now)
        case WaitForChildren(total):
            return subsequences.wait_values(total, now)
        case _:
            ended = {"status": change.conclusion.status, "finished_at": now}
            return ended | {"result": _parsed(change.conclusion.result)}


def _again(due: datetime, now: datetime) -> dict[str, Any]:
    values = {"queued_at": now, "dispatches": 0, "delay_evaluated": True}
    if due <= now:
        return _queued(now) | values
    slack = MESSAGE_SLACK if due - now <= MAX_BROKER_DELAY else timedelta(0)
    return wait_for(Wait.TIME, now) | values | {"due_at": due, "wake_at": due + slack}


def _queued(now: datetime) -> dict[str, Any]:
    times = {"queued_at": now, "wake_at": now + clock.grace()}
    return {"status": StepStatus.QUEUED, "dispatches": 0, **times}


def _parsed(result: str | None) -> Any:
    return None if result is None else json.loads(result)


def _message(claim: Claim, plan: Plan, now: datetime, using: str) -> list[Dispatch]:
    """The message for a step that will run again: at once, or soon enough for the broker to
    wait."""
    row = StepRun._base_manager.using(using).get(pk=claim.step_run_id)
    waits_for_event = row.status == StepStatus.WAITING and row.wait == Wait.EVENT
    if row.wake_at is None or waits_for_event:
        return []
    if row.due_at is None:
        return [dispatch_of(row, plan)]
    if row.due_at - now > MAX_BROKER_DELAY:
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

    If the run is paused, or a step has failed permanently, the new steps are on hold.
    """
    states, ready = races.settle(run, plan, states_of(run, using), now, using)
    states = _leave_out(run, plan, states, now, using)
    failing = plan.is_failing(states)
    is_on_hold = failing or run.status == RunStatus.PAUSED
    wake_at = None if is_on_hold else now + clock.grace()
    rows = [new_row(run.pk, node, now, wake_at) for node in plan.ready(states)]
    starts.insert(rows, using)
    if failing:
        return ready + compensation.stop(run, plan, now, using)
    states.update((row.step, row.status) for row in rows)
    if plan.outcome(states) is not None:
        return ready + compensation.succeed(run, plan, now, using)
    return ready + ([] if is_on_hold else [dispatch_of(row, plan) for row in rows])


def divert(run: SequenceRun, plan: Plan, name: str, now: datetime, using: str) -> list[Dispatch]:
    """A step has failed permanently and its handler takes over: the run does not fail.

    Unless another step of an `any_of` was first, so that the handler has been skipped.
    """
    states, handler = states_of(run, using), plan.node(plan.node(name).on_error)
    is_new = handler.name not in states
    states = _leave_out(run, plan, {handler.name: StepStatus.QUEUED, **states}, now, using)
    ready = []
    if is_new:
        is_on_hold = run.status == RunStatus.PAUSED or plan.is_failing(states)
        row = new_row(run.pk, handler, now, None if is_on_hold else now + clock.grace())
        starts.insert([row], using)
        ready = [] if is_on_hold else [dispatch_of(row, plan)]
    return ready + advance(run, plan, now, using)


def _leave_out(
    run: SequenceRun, plan: Plan, states: dict[str, str], now: datetime, using: str
) -> dict[str, str]:
    """Skip what the run no longer reaches because handlers have taken over; return the new
    statuses."""
    ended = {"status": StepStatus.SKIPPED, "finished_at": now}
    # What is left out now cannot fail any more, so its own handler may be left out next.
    while left_out := plan.left_out(states):
        starts.insert([new_row(run.pk, node, now, None, **ended) for node in left_out], using)
        states = states | dict.fromkeys((node.name for node in left_out), StepStatus.SKIPPED.value)
    return states


def rivals(claim: Claim, using: str) -> list[str]:
    """The steps that have committed since this one was first claimed."""
    rows = StepRun._base_manager.using(using).filter(
        run=claim.run_id, status=StepStatus.SUCCEEDED, finished_at__gte=claim.now
    )
    return list(rows.exclude(pk=claim.step_run_id).order_by("pk").values_list("step", flat=True))
