"""Creates runs: the row of a run and those of its first steps, in one transaction."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.models import Q

from ..definitions.plan import Node, Plan
from ..models import RunDeadline, RunSubject, SequenceRun, StepRun, StepStatus, Wait
from . import clock, notifications, plans
from .backends import backend_of
from .locking import is_transient
from .refusals import is_unmigrated
from .types import Dispatch, Start, StartedStep, dispatch_of, new_row, wait_for

Labels = Sequence[str]
#: The existing runs that prevent starts, by key and `unique`.
Holders = dict[tuple[str, str], SequenceRun]

#: How often a start alternates between looking for the key's holder and inserting.
_CHANCES = 5


def start_quickly(
    plan: Plan, requests: Sequence[Start], labels: Labels, using: str
) -> tuple[list[SequenceRun], list[Dispatch]] | None:
    """Insert the runs with one statement, which needs no transaction around it.

    None: nothing was stored; use `start` or `start_many`. A run with a key is inserted alone: of
    many, some keys may be taken, and all runs belong to one transaction.
    """
    if len(requests) > 1 and _has_keys(requests):
        return None
    try:
        inserted = _insert_at_once(plan, requests, labels, using)
    except DatabaseError as error:
        if connections[using].in_atomic_block or not (is_transient(error) or is_unmigrated(error)):
            raise
        return None
    if inserted is None:
        return None
    runs, dispatches = inserted
    return [runs[request.id] for request in requests], dispatches


def _insert_at_once(
    plan: Plan, requests: Sequence[Start], labels: Labels, using: str
) -> tuple[dict[UUID, SequenceRun], list[Dispatch]] | None:
    """Insert all runs whose keys are free, with one statement. None: there was none to insert."""
    fast, plan_id = backend_of(using).fast, plans.known_id(plan, using)
    if fast is None or plan_id is None or not requests:
        return None
    scope = _scope(labels, requests, using)
    rows = fast.start(plan, plan_id, requests, scope, labels, connections[using])
    if not rows:
        return None
    ids, now = {row.run_id for row in rows}, rows[0].now
    started = [request for request in requests if request.id in ids]
    runs = {request.id: _stored(plan, plan_id, request, scope, now, using) for request in started}
    notifications.started(runs.values(), plan.sequence, using)
    return runs, _dispatches_of(plan, started, rows)


def _dispatches_of(
    plan: Plan, requests: Sequence[Start], rows: Iterable[StartedStep]
) -> list[Dispatch]:
    """The messages of the first steps, in the order of their runs; none for steps that wait."""
    ids = {(row.run_id, row.step): row.step_run_id for row in rows}
    ready = (request.id for request in requests if not request.delay)
    return [
        Dispatch(ids[run_id, node.name], run_id, node.actor, node.queue, options=node.options)
        for run_id in ready
        for node in plan.roots
    ]


def start(
    plan: Plan, request: Start, labels: Labels, using: str
) -> tuple[SequenceRun, list[Dispatch]]:
    """Insert the run, or return the one that holds its key, with nothing to dispatch.

    Call it in a transaction, which stays usable after a conflict on the key. `labels` are all names
    that the sequence has had: a run that holds the key may have an earlier one.
    """
    if request.key is None:
        return _insert_one(plan, request, labels, using)
    for chance in range(_CHANCES):
        existing = _holders(labels, [request], using).get(request.name)
        if existing is not None:
            request.existing = existing.pk
            return existing, []
        try:
            with transaction.atomic(using=using):
                return _insert_one(plan, request, labels, using)
        except IntegrityError:
            # Another start with the key committed between the lookup and the INSERT; or the run
            # that held it has ended in the meantime, and the next attempt inserts.
            if chance == _CHANCES - 1:
                raise
    raise AssertionError("not reached")


def start_many(
    plan: Plan, requests: Sequence[Start], labels: Labels, using: str
) -> tuple[list[SequenceRun], list[Dispatch]]:
    """The same for many, with a constant number of queries.

    The runs are in the order of `requests`; an existing run has another pk than its request.
    """
    inserted = _insert_at_once(plan, requests, labels, using)
    if inserted is None:
        return _start_many(plan, requests, labels, using)
    ours, steps = inserted
    rest = [request for request in requests if request.id not in ours]
    holders = _holders(labels, rest, using) if rest else {}
    return _all_of(requests, ours, holders, steps, plan, labels, using)


def _start_many(
    plan: Plan, requests: Sequence[Start], labels: Labels, using: str
) -> tuple[list[SequenceRun], list[Dispatch]]:
    plan_id, now = plans.store_now(plan, using)
    scope = _scope(labels, requests, using)
    holders = _holders(labels, requests, using)
    fresh: dict[UUID, SequenceRun] = {}
    for request in requests:
        if request.name not in holders:
            run = fresh[request.id] = _row(plan, plan_id, request, scope, now)
            if request.key is not None:
                holders[request.key, "unfinished"] = run
                holders.setdefault((request.key, "ever"), run)
    _insert_many(fresh.values(), ignore_conflicts=bool(holders), using=using)
    ours = _inserted(fresh, using)
    if len(ours) < len(fresh):
        holders |= _holders(labels, requests, using)
    started = [(fresh[request.id], request.delay) for request in requests if request.id in ours]
    steps = _first_steps(plan, started, now, using)
    _insert_beside([request for request in requests if request.id in ours], now, using)
    notifications.started([run for run, _ in started], plan.sequence, using)
    return _all_of(requests, {pk: fresh[pk] for pk in ours}, holders, steps, plan, labels, using)


def _all_of(
    requests: Sequence[Start],
    ours: dict[UUID, SequenceRun],
    holders: Holders,
    steps: list[Dispatch],
    plan: Plan,
    labels: Labels,
    using: str,
) -> tuple[list[SequenceRun], list[Dispatch]]:
    """The runs that were inserted, and those that hold the keys of the others."""
    runs: dict[UUID, SequenceRun] = {}
    for request in sorted(requests, key=in_order_of_keys):
        holder = ours[request.id] if request.id in ours else holders.get(request.name)
        if holder is None:  # its key was freed after the INSERT had found it taken
            holder, more = start(plan, request, labels, using)
            steps += more
        elif holder.pk != request.id:
            request.existing = holder.pk
        runs[request.id] = holder
    return [runs[request.id] for request in requests], steps


def in_order_of_keys(request: Start) -> str:
    """The order in which many runs are inserted, by everyone.

    A key that another transaction inserts is waited for: two transactions that insert the same keys
    in different orders would deadlock.
    """
    return request.key or ""


def _insert_many(runs: Iterable[SequenceRun], *, ignore_conflicts: bool, using: str) -> None:
    # A key that another process has taken in the meantime: the next lookup finds its run.
    SequenceRun._base_manager.using(using).bulk_create(
        sorted(runs, key=lambda run: run.key or ""), ignore_conflicts=ignore_conflicts
    )


def _inserted(fresh: dict[UUID, SequenceRun], using: str) -> set[UUID]:
    keyed = [pk for pk, run in fresh.items() if run.active_key is not None]
    if not keyed:
        return set(fresh)
    rows = SequenceRun._base_manager.using(using).filter(pk__in=keyed)
    return (fresh.keys() - set(keyed)) | set(rows.values_list("pk", flat=True))


def _insert_one(
    plan: Plan, request: Start, labels: Labels, using: str
) -> tuple[SequenceRun, list[Dispatch]]:
    plan_id, now = plans.store_now(plan, using)
    run = _row(plan, plan_id, request, _scope(labels, [request], using), now)
    run.save(using=using, force_insert=True)
    _insert_beside([request], now, using)
    notifications.started([run], plan.sequence, using)
    return run, _first_steps(plan, [(run, request.delay)], now, using)


def _insert_beside(requests: Sequence[Start], now: datetime.datetime, using: str) -> None:
    """What only some runs have."""
    _insert_deadlines(requests, now, using)
    _insert_subjects(requests, using)


def _insert_subjects(requests: Iterable[Start], using: str) -> None:
    keys = [(each.id, each.subject_key) for each in requests if each.subject_key is not None]
    if keys:
        RunSubject._base_manager.using(using).bulk_create(
            RunSubject(run_id=pk, model=key.model, object_id=key.pk) for pk, key in keys
        )


def _insert_deadlines(requests: Iterable[Start], now: datetime.datetime, using: str) -> None:
    rows = [
        RunDeadline(run_id=request.id, due_at=clock.moment(request.deadline, now))
        for request in requests
        if request.deadline is not None
    ]
    if rows:
        RunDeadline._base_manager.using(using).bulk_create(rows)


def _scope(labels: Labels, requests: Sequence[Start], using: str) -> str:
    return plans.key_scope(labels, using) if _has_keys(requests) else ""


def _has_keys(requests: Sequence[Start]) -> bool:
    return any(request.key is not None for request in requests)


def _stored(
    plan: Plan, plan_id: int, request: Start, scope: str, now: datetime.datetime, using: str
) -> SequenceRun:
    """The run as it was stored. With all values in order, Django creates it in a third of the
    time."""
    values = _DEFAULTS | _values(plan, plan_id, request, scope, now) | {"inbox": {}}
    return SequenceRun.from_db(using, _COLUMNS, [values[name] for name in _COLUMNS])


_COLUMNS = [field.attname for field in SequenceRun._meta.concrete_fields]
_DEFAULTS = {field.attname: field.get_default() for field in SequenceRun._meta.concrete_fields}


def _row(
    plan: Plan, plan_id: int, request: Start, scope: str, now: datetime.datetime
) -> SequenceRun:
    return SequenceRun(**_values(plan, plan_id, request, scope, now))


def _values(
    plan: Plan, plan_id: int, request: Start, scope: str, now: datetime.datetime
) -> dict[str, Any]:
    return {
        "id": request.id,
        "plan_id": plan_id,
        "sequence": plan.sequence,
        "key": request.key,
        "active_key": request.key,
        "key_scope": scope if request.key is not None else "",
        "releases_key": request.unique == "unfinished",
        "data": request.data,
        "parent_id": request.parent,
        "priority": request.priority,
        "traceparent": request.traceparent,
        "created_at": now,
        "updated_at": now,
    }


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
    """Insert step runs, and learn their ids even if the database does not return them."""
    StepRun._base_manager.using(using).bulk_create(rows)
    missing = {(row.run_id, row.step, row.item): row for row in rows if row.pk is None}
    if not missing:
        return
    stored = StepRun._base_manager.using(using).filter(run__in={key[0] for key in missing})
    for pk, run_id, step, item in stored.values_list("pk", "run_id", "step", "item"):
        row = missing.get((run_id, step, item))
        if row is not None:
            row.pk = pk


def _holders(labels: Labels, requests: Sequence[Start], using: str) -> Holders:
    """The existing runs that prevent these starts, by key."""
    keys = [request.key for request in requests if request.key is not None]
    ever = [
        request.key for request in requests if request.key is not None and request.unique == "ever"
    ]
    # A later release holds its keys under one of these names, too: an earlier one knows no others.
    unfinished = Q(key_scope__in=labels, active_key__in=keys)
    runs = SequenceRun._base_manager.using(using).filter(
        unfinished | Q(sequence__in=labels, key__in=ever)
    )
    holders: Holders = {}
    for run in runs.order_by("created_at"):
        # A run that has freed its key counts only if no other holds it.
        if run.active_key is not None:
            holders[run.active_key, "unfinished"] = holders[run.active_key, "ever"] = run
        elif run.key is not None:
            holders.setdefault((run.key, "ever"), run)
    return holders
