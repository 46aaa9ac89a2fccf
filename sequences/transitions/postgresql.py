"""The hot path on PostgreSQL: a claim is one statement, and so is the commit of a chain's step.

Both guard in the order that all transactions keep: the run's row first, then the step run. Each
guard is an uncorrelated EXISTS, which PostgreSQL evaluates once: a row that changes while the
statement waits for it is checked against the guard's answer, never against a second look.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import connections

from ..definitions.plan import Node, Plan
from ..models import NO_ITEM, RunStatus, SequenceRun, StepRun
from . import clock, notifications
from .types import Beat, Change, Claim, Dispatch

_STEPS = StepRun._meta.db_table
_RUNS = SequenceRun._meta.db_table


def is_fast(using: str) -> bool:
    """Whether this database takes the statements below."""
    return connections[using].vendor == "postgresql" and not os.environ.get("SEQUENCES_PORTABLE")


# The claim need not survive a crash of the database: a step whose claim is lost is simply
# queued still, so this one transaction does not wait for the disk.
_CLAIM = f"""
UPDATE {_STEPS} mine SET
    status = 'running', token = %(token)s, worker = %(worker)s, started_at = {{now}},
    wake_at = CASE
        WHEN wake_at < {{now}} + {{shortest}} OR wake_at > {{now}} + {{longest}}
        THEN {{now}} + {{lease}} ELSE wake_at END
FROM {_RUNS} run
WHERE mine.id = %(id)s AND attempts = %(attempts)s AND wake_at IS NOT NULL
    AND (lost = 0 OR %(suspects)s)
    AND (mine.status IN ('queued', 'retrying')
        OR mine.status = 'waiting' AND due_at <= {{now}} + {{early}})
    AND run.id = mine.run_id
RETURNING mine.id, mine.run_id, run.sequence, run.plan_id, mine.step, item, mine.kind, attempts,
    repeats, delayed, ready_at, due_at, {{now}}, run.data, run.version, payload, run.trace, lost,
    set_config('synchronous_commit', 'off', true)
"""


def claim(
    step_run_id: int, attempts: int, token: int, worker: str, suspects: bool, using: str
) -> Claim | None:
    """See `claims.claim`."""
    row = _fetch(
        using,
        _CLAIM,
        {
            "id": step_run_id,
            "attempts": attempts,
            "token": token,
            "worker": worker,
            "suspects": suspects,
        },
    )
    if row is None:
        return None
    (pk, run_id, sequence, plan_id, step, item, kind, attempts, *rest) = row
    repeats, delayed, ready_at, due_at, now, data, version, payload, trace, lost, _ = rest
    return Claim(
        pk, run_id, sequence, plan_id, step, item, kind, token, attempts,
        repeats, delayed, ready_at, due_at, now, data, version,
        None if payload is None else json.loads(payload), worker, trace, lost,
    )  # fmt: skip


_GUARD = f"""
WITH ours AS MATERIALIZED (
    SELECT id FROM {_RUNS}
    WHERE id = %(run)s AND version = %(version)s AND status = 'running'
        AND (parent_id IS NULL OR %(next)s::text IS NOT NULL) FOR UPDATE
), done AS (
    UPDATE {_STEPS} SET
        status = %(status)s, result = %(result)s::jsonb, lost = 0, wake_at = NULL, due_at = NULL,
        progress = COALESCE(%(progress)s::jsonb, progress), finished_at = {{now}}
    WHERE id = %(id)s AND token = %(token)s AND status = 'running' AND EXISTS (SELECT FROM ours)
    RETURNING id
)"""

_ADVANCE = f"""{_GUARD}, advanced AS (
    UPDATE {_RUNS} SET
        data = COALESCE(%(data)s::jsonb, data), version = version + 1, updated_at = {{now}}
    WHERE id = %(run)s AND EXISTS (SELECT FROM done)
)
INSERT INTO {_STEPS} (
    run_id, step, item, kind, status, attempts, lost, repeats, dispatches, delayed, worker,
    ready_at, queued_at, wake_at)
SELECT %(run)s, %(next)s, {NO_ITEM}, %(kind)s, 'queued', 0, 0, 0, 0, false, '',
    {{now}}, {{now}}, {{now}} + {{grace}}
FROM done
RETURNING id
"""

_SUCCEED = f"""{_GUARD}
UPDATE {_RUNS} SET
    data = COALESCE(%(data)s::jsonb, data), version = version + 1, updated_at = {{now}},
    status = 'succeeded', finished_at = {{now}},
    active_key = CASE WHEN releases_key THEN NULL ELSE active_key END
WHERE id = %(run)s AND EXISTS (SELECT FROM done)
RETURNING 0
"""


def commit_in_chain(claim: Claim, change: Change, plan: Plan, using: str) -> list[Dispatch] | None:
    """Commit a step of a chain, whose successor waits for this step alone.

    None: nothing was changed; the run is paused, or `data` was changed, or the claim is lost, or
    it is the end of a child, which its parent is to hear of. The slow path finds out which.
    """
    following = plan.successors(claim.step)
    row = _fetch(
        using,
        _ADVANCE if following else _SUCCEED,
        {
            "run": claim.run_id,
            "version": claim.version,
            "id": claim.step_run_id,
            "token": claim.token,
            "status": change.status,
            "result": change.result,
            "progress": change.progress,
            "data": change.data,
            "next": following[0].name if following else None,
            "kind": following[0].kind if following else None,
        },
    )
    if row is None:
        return None
    notifications.succeeded(claim.step_run_id, change.status, claim.sequence, using)
    if not following:
        notifications.ended(claim.run_id, claim.sequence, RunStatus.SUCCEEDED, using)
    return [_message(row[0], claim.run_id, node) for node in following]


# The rows are locked in the order that all transactions keep; one that another has is left out.
_BEAT = f"""
WITH mine AS MATERIALIZED (
    SELECT steps.id, beats.progress
    FROM {_STEPS} steps
    JOIN unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(progress)s::text[])
        AS beats(id, token, progress) ON steps.id = beats.id AND steps.token = beats.token
    WHERE steps.status = 'running'
    ORDER BY steps.id FOR NO KEY UPDATE OF steps SKIP LOCKED
)
UPDATE {_STEPS} steps SET
    wake_at = {{now}} + {{lease}}, progress = COALESCE(mine.progress::jsonb, steps.progress)
FROM mine WHERE steps.id = mine.id
RETURNING steps.token
"""


def beat(beats: Sequence[Beat], using: str) -> set[int]:
    """See `claims.beat`."""
    values: dict[str, Any] = {
        "ids": [each.step_run_id for each in beats],
        "tokens": [each.token for each in beats],
        "progress": [each.progress for each in beats],
    }
    with connections[using].cursor() as cursor:
        cursor.execute(_with_times(_BEAT), values)
        return {token for (token,) in cursor.fetchall()}


# A result of None stays NULL. What is told of the fan-out is as it was at this statement.
_ITEM = f"""
UPDATE {_STEPS} SET
    status = %(status)s, result = %(result)s::jsonb, lost = 0, wake_at = NULL, due_at = NULL,
    progress = COALESCE(%(progress)s::jsonb, progress), finished_at = {{now}}
WHERE id = %(id)s AND token = %(token)s AND status = 'running'
RETURNING (
    SELECT own.payload FROM {_STEPS} own
    WHERE own.run_id = %(run)s AND own.step = %(step)s AND own.item = {NO_ITEM}
        AND own.status = 'waiting')
"""


def commit_item(claim: Claim, change: Change, using: str) -> tuple[Any] | None:
    """Commit an item of a fan-out; returns the state of that. None: it is not ours any more."""
    row = _fetch(
        using,
        _ITEM,
        {
            "run": claim.run_id,
            "step": claim.step,
            "id": claim.step_run_id,
            "token": claim.token,
            "status": change.status,
            "result": change.result,
            "progress": change.progress,
        },
    )
    if row is None:
        return None
    return (None if row[0] is None else json.loads(row[0]),)


def _message(step_run_id: int, run_id: UUID, node: Node) -> Dispatch:
    return Dispatch(step_run_id, run_id, node.actor, node.queue, options=node.options)


def _fetch(using: str, statement: str, values: dict[str, Any]) -> tuple[Any, ...] | None:
    with _cursor(connections[using]) as cursor:
        cursor.execute(_with_times(statement), values)
        row: tuple[Any, ...] | None = cursor.fetchone()
    return row


def _cursor(connection: Any) -> Any:
    """Django's own cursor: it refuses a transaction that is broken already, and logs.

    Where the project has set ``prepare_threshold`` it stands on one of psycopg that binds on the
    server, as only those prepare. Planning costs these statements more than all the rest.
    """
    # As cursor() begins: CONN_HEALTH_CHECKS may put another connection in the place of this one.
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    raw = connection.connection
    if raw.prepare_threshold is None:
        return connection.cursor()
    import psycopg  # only where there is PostgreSQL

    return connection._prepare_cursor(psycopg.Cursor(raw))


def _with_times(statement: str) -> str:
    settings = clock.shortest_lease(), clock.longest_lease(), clock.lease(), clock.grace()
    return _written(statement, clock.sql(), *settings)


@lru_cache
def _written(
    statement: str,
    now: str,
    shortest: timedelta,
    longest: timedelta,
    lease: timedelta,
    grace: timedelta,
) -> str:
    # What hardly ever changes is no parameter: each costs more than it does to look this up.
    return statement.format(
        now=now,
        shortest=_interval(shortest),
        longest=_interval(longest),
        lease=_interval(lease),
        grace=_interval(grace),
        early=_interval(clock.EARLY),
    )


def _interval(duration: timedelta) -> str:
    return f"INTERVAL '{duration.total_seconds():.6f} seconds'"
