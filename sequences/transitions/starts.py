"""A run comes into being: its row and those of its first steps, in one transaction."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.models import Q

from ..definitions.plan import Node, Plan
from ..models import RunDeadline, SequenceRun, StepRun, StepStatus, Wait
from . import clock, notifications, plans
from .backends import backend_of
from .locking import is_transient
from .refusals import is_unmigrated
from .types import Dispatch, Start, StartedStep, dispatch_of, new_row, wait_for

Labels = Sequence[str]
#: The runs that stand in the way of starts, by their key and its `unique`.
Holders = dict[tuple[str, str], SequenceRun]

#: How often a start looks for its key's holder and inserts, in turn.
_CHANCES = 5


def start_quickly(
    plan: Plan, wanted: Sequence[Start], labels: Labels, using: str
) -> tuple[list[SequenceRun], list[Dispatch]] | None:
    """Insert the runs by one statement, which needs no transaction around it.

    None: nothing is stored, this is a case for `start` or `start_many`. One that has a key is
    started alone: many may stand in each other's way.
    """
    fast, plan_id = backend_of(using).fast, plans.known_id(plan, using)
    if fast is None or plan_id is None or not wanted or (len(wanted) > 1 and _has_keys(wanted)):
        return None
    if any(one.deadline is not None for one in wanted):
        return None
    scope = _scope(labels, wanted, using)
    try:
        rows = fast.start(plan, plan_id, wanted, scope, labels, connections[using])
    except DatabaseError as error:
        if connections[using].in_atomic_block or not (is_transient(error) or is_unmigrated(error)):
            raise
        return None
    if not rows:
        return None
    runs = [_stored(plan, plan_id, one, scope, rows[0].now, using) for one in wanted]
    notifications.started(runs, plan.sequence, using)
    return runs, _dispatches_of(plan, wanted, rows)


def _dispatches_of(
    plan: Plan, wanted: Sequence[Start], rows: Iterable[StartedStep]
) -> list[Dispatch]:
    """The messages of the first steps, in the order of their runs; none for those that wait."""
    ids = {(row.run_id, row.step): row.step_run_id for row in rows}
    return [
        Dispatch(ids[one.id, node.name], one.id, node.actor, node.queue, options=node.options)
        for one in wanted
        if not one.delay
        for node in plan.roots
    ]


def start(
    plan: Plan, wanted: Start, labels: Labels, using: str
) -> tuple[SequenceRun, list[Dispatch]]:
    """Insert the run, or find the one that holds its key: then there is nothing to dispatch.

    To be called in a transaction, which a conflict on the key leaves usable. `labels` are all
    the names that the sequence has had: runs that hold the key may have an earlier one.
    """
    if wanted.key is None:
        return _insert_one(plan, wanted, labels, using)
    for chance in range(_CHANCES):
        existing = _holders(labels, [wanted], using).get(wanted.name)
        if existing is not None:
            wanted.found = existing.pk
            return existing, []
        try:
            with transaction.atomic(using=using):
                return _insert_one(plan, wanted, labels, using)
        except IntegrityError:
            # Another start with the key committed between the look and the insert; or one that
            # has ended meanwhile, and freed the key: then the next chance inserts.
            if chance == _CHANCES - 1:
                raise
    raise AssertionError("not reached")


def start_many(
    plan: Plan, wanted: Sequence[Start], labels: Labels, using: str
) -> tuple[list[SequenceRun], list[Dispatch]]:
    """The same for a batch, by a constant number of queries.

    The runs come in the order of `wanted`; those that existed are those whose pk differs.
    """
    plan_id, now = plans.store_now(plan, using)
    scope = _scope(labels, wanted, using)
    taken = _holders(labels, wanted, using)
    fresh: dict[UUID, SequenceRun] = {}
    for one in wanted:
        if one.name not in taken:
            run = fresh[one.id] = _row(plan, plan_id, one, scope, now)
            if one.key is not None:
                taken[one.key, "unfinished"] = run
                taken.setdefault((one.key, "ever"), run)
    _insert_many(fresh.values(), ignore_conflicts=bool(taken), using=using)
    ours = _inserted(fresh, using)
    if len(ours) < len(fresh):
        taken |= _holders(labels, wanted, using)
    started = [(fresh[one.id], one.delay) for one in wanted if one.id in ours]
    steps = _first_steps(plan, started, now, using)
    _insert_deadlines([one for one in wanted if one.id in ours], now, using)
    notifications.started([run for run, _ in started], plan.sequence, using)
    runs: dict[UUID, SequenceRun] = {}
    for one in sorted(wanted, key=in_order_of_keys):
        known = fresh[one.id] if one.id in ours else taken.get(one.name)
        if known is None:  # its key was freed since the insert met it
            known, more = start(plan, one, labels, using)
            steps += more
        elif known.pk != one.id:
            one.found = known.pk
        runs[one.id] = known
    return [runs[one.id] for one in wanted], steps


def in_order_of_keys(wanted: Start) -> str:
    """The order in which many are inserted, by whoever does.

    A key that another transaction inserts is waited for: two that took the same keys in different
    orders would wait for each other.
    """
    return wanted.key or ""


def _insert_many(runs: Iterable[SequenceRun], *, ignore_conflicts: bool, using: str) -> None:
    # A key that another process has taken meanwhile: its run is found by the look after this.
    SequenceRun._base_manager.using(using).bulk_create(
        sorted(runs, key=lambda run: run.key or ""), ignore_conflicts=ignore_conflicts
    )


def _inserted(fresh: dict[UUID, SequenceRun], using: str) -> set[UUID]:
    keyed = [pk for pk, run in fresh.items() if run.active_key is not None]
    if not keyed:
        return set(fresh)
    found = SequenceRun._base_manager.using(using).filter(pk__in=keyed)
    return (fresh.keys() - set(keyed)) | set(found.values_list("pk", flat=True))


def _insert_one(
    plan: Plan, wanted: Start, labels: Labels, using: str
) -> tuple[SequenceRun, list[Dispatch]]:
    plan_id, now = plans.store_now(plan, using)
    run = _row(plan, plan_id, wanted, _scope(labels, [wanted], using), now)
    run.save(using=using, force_insert=True)
    _insert_deadlines([wanted], now, using)
    notifications.started([run], plan.sequence, using)
    return run, _first_steps(plan, [(run, wanted.delay)], now, using)


def _insert_deadlines(wanted: Iterable[Start], now: datetime.datetime, using: str) -> None:
    rows = [
        RunDeadline(run_id=one.id, due_at=clock.moment(one.deadline, now))
        for one in wanted
        if one.deadline is not None
    ]
    if rows:
        RunDeadline._base_manager.using(using).bulk_create(rows)


def _scope(labels: Labels, wanted: Sequence[Start], using: str) -> str:
    return plans.key_scope(labels, using) if _has_keys(wanted) else ""


def _has_keys(wanted: Sequence[Start]) -> bool:
    return any(one.key is not None for one in wanted)


def _stored(
    plan: Plan, plan_id: int, wanted: Start, scope: str, now: datetime.datetime, using: str
) -> SequenceRun:
    """The run as it was stored."""
    run = _row(plan, plan_id, wanted, scope, now)
    run._state.adding, run._state.db = False, using
    return run


def _row(
    plan: Plan, plan_id: int, wanted: Start, scope: str, now: datetime.datetime
) -> SequenceRun:
    return SequenceRun(
        id=wanted.id,
        plan_id=plan_id,
        sequence=plan.sequence,
        key=wanted.key,
        active_key=wanted.key,
        key_scope=scope if wanted.key is not None else "",
        releases_key=wanted.unique == "unfinished",
        data=wanted.data,
        parent_id=wanted.parent,
        priority=wanted.priority,
        traceparent=wanted.traceparent,
        created_at=now,
        updated_at=now,
    )


def _first_steps(
    plan: Plan,
    started: Iterable[tuple[SequenceRun, timedelta | None]],
    now: datetime.datetime,
    using: str,
) -> list[Dispatch]:
    rows = [_first_step(run.pk, node, now, delay) for run, delay in started for node in plan.roots]
    insert(rows, using)
    return [dispatch_of(row, plan) for row in rows if row.status == StepStatus.QUEUED]


def _first_step(
    run_id: UUID, node: Node, now: datetime.datetime, delay: timedelta | None
) -> StepRun:
    if not delay:
        return new_row(run_id, node, now, now + clock.grace())
    due = now + delay
    return new_row(run_id, node, now, due, **wait_for(Wait.TIME, now), due_at=due)


def insert(rows: list[StepRun], using: str) -> None:
    """Insert step runs, and learn their ids also where the database does not return them."""
    StepRun._base_manager.using(using).bulk_create(rows)
    missing = {(row.run_id, row.step, row.item): row for row in rows if row.pk is None}
    if not missing:
        return
    found = StepRun._base_manager.using(using).filter(run__in={key[0] for key in missing})
    for pk, run_id, step, item in found.values_list("pk", "run_id", "step", "item"):
        row = missing.get((run_id, step, item))
        if row is not None:
            row.pk = pk


def _holders(labels: Labels, wanted: Sequence[Start], using: str) -> Holders:
    """The runs that stand in the way of these starts, by key."""
    keys = [one.key for one in wanted if one.key is not None]
    ever = [one.key for one in wanted if one.key is not None and one.unique == "ever"]
    # A later release holds its keys under one of these names, too: an earlier one knows no other.
    held = Q(key_scope__in=labels, active_key__in=keys)
    runs = SequenceRun._base_manager.using(using).filter(
        held | Q(sequence__in=labels, key__in=ever)
    )
    found: Holders = {}
    for run in runs.order_by("created_at"):
        # A run that has freed its key counts only where no other holds it.
        if run.active_key is not None:
            found[run.active_key, "unfinished"] = found[run.active_key, "ever"] = run
        elif run.key is not None:
            found.setdefault((run.key, "ever"), run)
    return found
