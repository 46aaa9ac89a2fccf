"""Fan-out: a step run for each item, and the step's own, which waits for them.

An item's commit guards only its own row, so items never wait for each other. After it, in a
separate transaction, someone checks whether more items can be released, or all have ended; if the
process dies in between, the sweep does it, when the `wake_at` of the step's own row passes.

An item in flight has a place. Free places are filled together, once workers may run out of queued
items: each check locks the run, and costs more than an item.

An item that waits for a time of its own (`repeat(after=…)`, backoff) has no place; its `due_at`
says so until it has found another one. Its claim looks for one; if there is none, the item is on
hold, and is the next to be released.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Q, QuerySet, Subquery

from ..definitions.plan import Plan
from ..models import (
    NO_ITEM,
    UNFINISHED_STEP,
    RunStatus,
    SequenceRun,
    StepFailure,
    StepRun,
    StepStatus,
    Wait,
)
from . import clock, notifications, plans
from .backends import backend_of
from .compensation import proceed, stop
from .locking import lock_run, transact
from .runs import WAITS_FOR_ITEMS, is_failing, save, stops
from .types import WINDOW, Change, Claim, ClaimLost, Dispatch, WaitForItems, dispatch_of, wait_for

#: In that case, this many are released at once, which saves most of the checks.
ITEMS_PER_RELEASE = 100
#: Rows per INSERT.
ROWS_PER_INSERT = 1000

#: The `members` of a fan-out's own row.
State = dict[str, int]

#: An item that waits for a limit keeps its place: it must come before the items behind it.
_HAS_A_PLACE = (
    Q(status=StepStatus.RUNNING)
    | Q(status=StepStatus.QUEUED, due_at__isnull=True)
    | Q(status__in=(StepStatus.WAITING, StepStatus.QUEUED), wait=Wait.LIMIT)
)
#: An item on hold: neither dispatched, nor waiting for a time.
_HELD = Q(status=StepStatus.WAITING, wait=Wait.PLACE)


def insert(claim: Claim, items: Iterable[Any], using: str) -> int:
    """Insert a step run for each item, on hold until it is released; return their number.

    In the transaction of the step's attempt: after a crash, it expands again from the beginning.
    """
    total = 0
    for batch in _batches(items):
        rows = [
            StepRun(
                run_id=claim.run_id,
                step=claim.step,
                item=total + index,
                kind="item",
                payload=item,
                **wait_for(Wait.PLACE, claim.now),
                ready_at=claim.now,
                queued_at=claim.now,
            )
            for index, item in enumerate(batch)
        ]
        StepRun._base_manager.using(using).bulk_create(rows)
        total += len(rows)
    return total


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, ROWS_PER_INSERT)):
        yield batch


def wait_values(items: WaitForItems, now: datetime) -> dict[str, Any]:
    """The values of the step's own row while its items run."""
    return {
        **wait_for(Wait.ITEMS, now),
        "members": {"total": items.total, "window": items.window, "next": 0},
        "delay_evaluated": True,
        "wake_at": now + clock.grace(),
    }


def commit_item(claim: Claim, change: Change, using: str) -> State | None:
    """Store an item's result. Raises `ClaimLost` if the claim is lost.

    Returns the state of the fan-out if the siblings must be checked after this commit.
    """
    fast = backend_of(using).fast
    if fast is not None:
        row = fast.commit_item(claim, change, connections[using])
        if row is None:
            raise ClaimLost
        notifications.succeeded(claim.step_run_id, change.conclusion.status, claim.sequence, using)
        return row[0] if _calls_for_a_look(row[0], claim.item) else None
    values: dict[str, Any] = {
        "status": change.conclusion.status,
        "lost_workers": 0,
        "wake_at": None,
        "due_at": None,
    }
    if change.progress is not None:
        values["progress"] = json.loads(change.progress)
    if change.conclusion.result is not None:
        values["result"] = json.loads(change.conclusion.result)
    rows = StepRun._base_manager.using(using)
    rows = rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING)
    if not rows.update(**values, finished_at=clock.now(using)):
        raise ClaimLost
    notifications.succeeded(claim.step_run_id, change.conclusion.status, claim.sequence, using)
    state = _state_of(claim.run_id, claim.step, using)
    if state is not None and state["window"] != WINDOW:
        state["queued"] = _count_queued(claim, state, using)
    return state if _calls_for_a_look(state, claim.item) else None


def _count_queued(claim: Claim, state: State, using: str) -> int:
    """How many of the items that were released last can be claimed."""
    latest = _items(claim.run_id, claim.step, using).filter(
        item__gte=state["next"] - state["window"], item__lt=state["next"]
    )
    claimable = {"due_at": None, "wake_at__isnull": False, "lost_workers": 0}
    return latest.filter(status=StepStatus.QUEUED, **claimable).count()


def after_item(
    run_id: UUID, step: str, item: int, using: str, state: State | None = None
) -> list[Dispatch]:
    """An item has ended: release others, and end the wait if it was the last one."""
    # The state as of its commit is enough to know that there is something to release.
    if state is None or not _releases(state):
        state = _state_of(run_id, step, using)
    if state is None or not _calls_for_a_look(state, item):
        return []
    if "stopping" not in state and not _releases(state) and has_unfinished(run_id, step, using):
        return []
    return look(run_id, step, using, None if state["window"] != WINDOW else _share(state, item))


def leave_place(
    run: SequenceRun, plan: Plan, step: Claim | StepRun, now: datetime, using: str
) -> list[Dispatch]:
    """This item waits for a time of its own: release another into its place. The run is locked."""
    state = _state_of(run.pk, step.step, using)
    if state is None or not _share(state, step.item):
        return []
    return go_on(run, plan, step.step, now, using)


def find_place(claim: Claim, using: str) -> bool:
    """Whether an item that returns from a wait may run; if not, it is put on hold.

    Then the fan-out must be checked once more: a place may have become free just before.
    """
    return transact(using, lambda: _find_place(claim, using))


def _find_place(claim: Claim, using: str) -> bool:
    state = _state_of(claim.run_id, claim.step, using)
    if state is None or state["window"] == WINDOW:
        return True
    lock_run(claim.run_id, using)
    own = _own(claim.run_id, claim.step, using)
    if own is None or not own.members:
        raise ClaimLost
    others = _items(claim.run_id, claim.step, using).exclude(pk=claim.step_run_id)
    busy = others.filter(_HAS_A_PLACE, wake_at__isnull=False).count()
    values: dict[str, Any] = {}
    if is_full := busy >= own.members["window"]:
        own.members["held"] = own.members.get("held", 0) + 1
        own.save(using=using, update_fields=["members"])
        values = {**wait_for(Wait.PLACE, claim.now), "token": None, "wake_at": None}
    rows = StepRun._base_manager.using(using)
    rows = rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING)
    if not rows.update(**values, due_at=None, ready_at=claim.first_due):
        raise ClaimLost
    return not is_full


def _calls_for_a_look(state: State | None, item: int) -> bool:
    # Until all are released, most ends need no check: items that are released later end later.
    if state is None:
        return False
    if not _releases(state) or "stopping" in state:
        return True
    return _share(state, item) > 0 and not _has_enough_queued(state)


def _has_enough_queued(state: State) -> bool:
    """Whether workers have enough to do without the places that are free. The queued items will
    end later than this one, and check then; so many places are filled at once."""
    return state.get("queued", 0) > state["window"] // 2


def _state_of(run_id: UUID, step: str, using: str) -> State | None:
    """The state of a fan-out that is waiting for its items."""
    rows = StepRun._base_manager.using(using).filter(run=run_id, step=step, item=NO_ITEM)
    state: State | None = rows.filter(WAITS_FOR_ITEMS).values_list("members", flat=True).first()
    return state


def _releases(state: State) -> bool:
    return state["next"] < state["total"] or state.get("held", 0) > 0


def _share(state: State, item: int) -> int:
    """How many items are released when this one ends."""
    if state["window"] != WINDOW:
        return 1
    return ITEMS_PER_RELEASE if item % ITEMS_PER_RELEASE == ITEMS_PER_RELEASE - 1 else 0


def look(run_id: UUID, step: str, using: str, more: int | None = None) -> list[Dispatch]:
    """Release `more` items, or as many as the window allows; end the wait if none is left."""
    return transact(using, lambda: _look(run_id, step, using, more))


def _look(run_id: UUID, step: str, using: str, more: int | None) -> list[Dispatch]:
    run = lock_run(run_id, using)
    if run is None:
        return []
    plan, now = plans.load(run.plan_id, using), clock.now(using)
    if run.status == RunStatus.UNDOING:
        return proceed(run, now, using)
    if not stops(run, plan, using):
        return go_on(run, plan, step, now, using, more)
    ready = stop(run, plan, now, using)
    save(run, now, using)
    return ready


def go_on(
    run: SequenceRun, plan: Plan, step: str, now: datetime, using: str, more: int | None = None
) -> list[Dispatch]:
    """The same under the run's lock; does nothing if the run has stopped."""
    if run.status != RunStatus.RUNNING or is_failing(run, plan, using):
        return []
    own = _own(run.pk, step, using)
    if own is None or own.status != StepStatus.WAITING or not own.members:
        return []
    if _releases(own.members):
        ready = _release(own, plan, now, using, more)
        if ready or _releases(own.members):
            return ready
    if has_unfinished(run.pk, step, using):
        return []
    own.status, own.queued_at, own.dispatches = StepStatus.QUEUED, now, 0
    own.wake_at = now + clock.grace()
    own.save(using=using, update_fields=["status", "queued_at", "dispatches", "wake_at"])
    return [dispatch_of(own, plan)]


def _release(
    own: StepRun, plan: Plan, now: datetime, using: str, more: int | None
) -> list[Dispatch]:
    items = _items(own.run_id, own.step, using)
    state: State = own.members or {}
    if more is None or state["window"] != WINDOW:
        # Whatever triggered this check, another one may have released items already.
        busy = items.filter(_HAS_A_PLACE, wake_at__isnull=False).count()
        room = max(state["window"] - busy, 0)
        more = room if more is None else min(more, room)
    if not more:
        return []
    again = _held_again(items, state, more)
    rows = _next(items, state, more - len(again))
    own.members = state
    own.save(using=using, update_fields=["members"])
    queued = {"status": StepStatus.QUEUED, "queued_at": now, "wake_at": now + clock.grace()}
    items.filter(pk__in=[row.pk for row in again]).update(**queued, dispatches=0)
    items.filter(pk__in=[row.pk for row in rows]).update(**queued, ready_at=now)
    return [dispatch_of(row, plan) for row in [*again, *rows]]


def _held_again(items: QuerySet[StepRun], state: State, more: int) -> list[StepRun]:
    """Items that were in flight before, and have lost their places since."""
    if not state.get("held"):
        return []
    rows = list(items.filter(_HELD, item__lt=state["next"]).order_by("item")[:more])
    # Fewer than requested: these were the last. A skip may have ended others.
    state["held"] = max(state["held"] - len(rows), 0) if len(rows) == more else 0
    return rows


def _next(items: QuerySet[StepRun], state: State, more: int) -> list[StepRun]:
    if not more or state["next"] >= state["total"]:
        return []
    rows = list(items.filter(_HELD, item__gte=state["next"]).order_by("item")[:more])
    # As above.
    state["next"] = rows[-1].item + 1 if len(rows) == more else state["total"]
    return rows


def reopen(rows: QuerySet[StepRun], using: str) -> None:
    """Restart these fan-outs: wait for their items that failed or were cancelled."""
    now = clock.now(using)
    for own in rows.filter(wait=Wait.ITEMS):
        ended = (StepStatus.FAILED, StepStatus.CANCELLED)
        _items(own.run_id, own.step, using).filter(status__in=ended).update(
            **wait_for(Wait.PLACE, now), token=None, attempts=0, lost_workers=0, wake_at=None,
            due_at=None, finished_at=None,
        )  # fmt: skip
        rows.filter(pk=own.pk).update(
            **wait_for(Wait.ITEMS, now), members=_begun_again(own), attempts=0, lost_workers=0,
            finished_at=None,
        )  # fmt: skip


def _begun_again(own: StepRun) -> State:
    state: State = own.members or {}
    return {"total": state["total"], "window": state["window"], "next": 0}


def waiting(run: SequenceRun, using: str) -> QuerySet[StepRun]:
    """The own rows of the fan-outs that are waiting for their items."""
    return StepRun._base_manager.using(using).filter(WAITS_FOR_ITEMS, run=run.pk)


def counts(claim: Claim, using: str) -> tuple[int, int]:
    """The number of items, and of failed items."""
    items = _items(claim.run_id, claim.step, using)
    return items.count(), items.filter(status=StepStatus.FAILED).count()


def first_failure(claim: Claim, using: str) -> StepFailure | None:
    """The latest failed attempt of the first failed item."""
    items = _items(claim.run_id, claim.step, using).filter(status=StepStatus.FAILED)
    first = items.order_by("item").values("pk")[:1]
    rows = StepFailure._base_manager.using(using).filter(run=claim.run_id)
    return rows.filter(step_run=Subquery(first)).order_by("-pk").first()


def has_unfinished(run_id: UUID, step: str, using: str) -> bool:
    """Whether an item has not ended. Starts with the last ones, which are the most likely."""
    items = _items(run_id, step, using).filter(status__in=UNFINISHED_STEP)
    return bool(list(items.order_by("-item").values_list("pk", flat=True)[:1]))


def _items(run_id: UUID, step: str, using: str) -> QuerySet[StepRun]:
    return StepRun._base_manager.using(using).filter(run=run_id, step=step, item__gt=NO_ITEM)


def _own(run_id: UUID, step: str, using: str) -> StepRun | None:
    rows = StepRun._base_manager.using(using)
    return rows.filter(run=run_id, step=step, item=NO_ITEM).first()


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many items may fail."""

    declared: bool | int | float

    def of(self, total: int) -> int:
        """The number for this many items."""
        if isinstance(self.declared, bool):
            return total if self.declared else 0
        if isinstance(self.declared, float):
            return int(self.declared * total)
        return self.declared
