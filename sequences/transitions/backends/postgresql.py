"""PostgreSQL: the hot path in one statement each, and its own clock, locks and errors.

A claim is one statement; so are the commit of a chain's step, and a start. Each is a function where
possible. Claims and commits lock in the order that all transactions keep: the run's row first, then
the step run. Each guard is an uncorrelated EXISTS, which PostgreSQL evaluates once: if a row
changes while the statement waits for it, it is checked against the guard's first answer, never
evaluated again.

A row is found by its key alone: what else must hold is written so that no index serves it, as in
``status || '' = 'running'``. While hardly any run is unfinished, an index on what is unfinished
seems as good as the key, and a session that keeps this plan reads all of that index for each step
once there are many.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import product
from typing import Any, ClassVar
from uuid import UUID

from django.db import DatabaseError, InterfaceError, OperationalError

from ...definitions.plan import Node, Plan
from ...models import NO_ITEM, RunDeadline, RunSubject, SequenceRun, StepRun, StoredPlan
from ..types import WINDOW, Beat, Change, Claim, Offer, Start, StartedStep
from .base import Backend, FastStatements, Holder, holder_of, state_of
from .functions import CLOCK, Function, Installed

#: In a `no_wait` block, how long a statement that cannot say NOWAIT waits for a lock, in
#: milliseconds.
LOCK_TIMEOUT = 50

# Lock not available.
_LOCKED = {"55P03"}
# A serialization failure, a deadlock.
_TRANSIENT = {"40001", "40P01", *_LOCKED}
# Undefined table, undefined column.
_UNDEFINED = {"42P01", "42703"}
# Not in the repertoire, no equivalent in the database's encoding.
_CHARACTERS = {"22021", "22P05"}

#: PQTRANS_IDLE: no transaction is open.
_IDLE = 0
#: PQTRANS_INERROR: one is, and a statement in it has failed.
_FAILED_TRANSACTION = 3
#: The same or PQTRANS_INTRANS: one is open.
_IN_TRANSACTION = {2, _FAILED_TRANSACTION}

_STEPS = StepRun._meta.db_table
_RUNS = SequenceRun._meta.db_table
_PLANS = StoredPlan._meta.db_table
_SUBJECTS = RunSubject._meta.db_table
_DEADLINES = RunDeadline._meta.db_table

# The claim need not survive a crash of the database: a step whose claim is lost is simply still
# queued. So this one transaction does not wait for the disk.
_CLAIM = f"""
UPDATE {_STEPS} mine SET
    status = 'running', token = %(token)s, worker = %(worker)s, started_at = {{now}},
    wake_at = CASE
        WHEN wake_at < {{now}} + {{shortest}} OR wake_at > {{now}} + {{longest}}
        THEN {{now}} + {{lease}} ELSE wake_at END
FROM {_RUNS} run
WHERE mine.id = %(id)s AND attempts = %(attempts)s
    AND COALESCE(wake_at, 'infinity') < 'infinity'
    AND (lost_workers = 0 OR %(suspects)s)
    AND (mine.status IN ('queued', 'retrying')
        OR mine.status = 'waiting' AND due_at <= {{now}} + {{early}})
    AND run.id = mine.run_id
RETURNING mine.id, mine.run_id, run.sequence::text, run.plan_id, mine.step::text, item,
    mine.kind::text, attempts, repeats, delay_evaluated, ready_at, due_at, {{now}}, run.data,
    run.version, wait::text, payload, run.traceparent::text, lost_workers,
    set_config('synchronous_commit', 'off', true)
"""

_GUARD = f"""
WITH ours AS MATERIALIZED (
    SELECT id FROM {_RUNS}
    WHERE id = %(run)s AND version = %(version)s AND status || '' = 'running'
        AND (parent_id IS NULL OR %(next)s::text IS NOT NULL) FOR UPDATE
), done AS (
    UPDATE {_STEPS} SET
        status = %(status)s, result = %(result)s::jsonb, lost_workers = 0, wake_at = NULL,
        due_at = NULL, progress = COALESCE(%(progress)s::jsonb, progress), finished_at = {{now}}
    WHERE id = %(id)s AND token = %(token)s AND status = 'running' AND EXISTS (SELECT FROM ours)
    RETURNING id
)"""

_ADVANCE = f"""{_GUARD}, advanced AS (
    UPDATE {_RUNS} SET
        data = COALESCE(%(data)s::jsonb, data), version = version + 1, updated_at = {{now}}
    WHERE id = %(run)s AND EXISTS (SELECT FROM done)
)
INSERT INTO {_STEPS} (
    run_id, step, item, kind, status, attempts, lost_workers, repeats, dispatches, delay_evaluated,
    worker, ready_at, queued_at, wake_at)
SELECT %(run)s, %(next)s, {NO_ITEM}, %(kind)s, 'queued', 0, 0, 0, 0, false, '',
    {{now}}, {{now}}, {{now}} + {{grace}}
FROM done
RETURNING id
"""

# Nobody else can have claimed it: the row appears with the commit. This one waits for the disk,
# like any commit.
_TAKE = f"""{_GUARD}, advanced AS (
    UPDATE {_RUNS} SET
        data = COALESCE(%(data)s::jsonb, data), version = version + 1, updated_at = {{now}}
    WHERE id = %(run)s AND EXISTS (SELECT FROM done)
    RETURNING data
)
INSERT INTO {_STEPS} (
    run_id, step, item, kind, status, attempts, lost_workers, repeats, dispatches, delay_evaluated,
    token, worker, ready_at, queued_at, started_at, wake_at)
SELECT %(run)s, %(next)s, {NO_ITEM}, %(kind)s, 'running', 0, 0, 0, 0, false, %(next_token)s,
    %(worker)s, {{now}}, {{now}}, {{now}}, {{now}} + {{lease}}
FROM done
RETURNING id, {{now}}, (SELECT data FROM advanced WHERE %(data)s::jsonb IS NOT NULL)
"""

_SUCCEED = f"""{_GUARD}
UPDATE {_RUNS} SET
    data = COALESCE(%(data)s::jsonb, data), version = version + 1, updated_at = {{now}},
    status = 'succeeded', finished_at = {{now}},
    active_key = CASE WHEN releases_key THEN NULL ELSE active_key END
WHERE id = %(run)s AND EXISTS (SELECT FROM done)
RETURNING 0
"""

# A run whose key is taken is not inserted; nor is any run if the row of their plan is gone. The
# caller finds out which. A key that another transaction is inserting is waited for; all
# transactions insert keys in the same order. OFFSET prevents both lookups from becoming joins,
# which could be planned once and for all while the table is small: joins that read all of it.
_UNHELD = f"""
    WHERE NOT EXISTS (
        SELECT FROM {_RUNS} held
        WHERE held.key_scope = ANY(%(labels)s) AND held.active_key = new.key OFFSET 0)
    AND (new.releases OR NOT EXISTS (
        SELECT FROM {_RUNS} held
        WHERE held.key = new.key AND held.sequence || '' = ANY(%(labels)s) OFFSET 0))
    ORDER BY new.key COLLATE "C", new.id
    ON CONFLICT DO NOTHING"""

_UNTIL = f""", deadline AS (
    INSERT INTO {_DEADLINES} (run_id, due_at)
    SELECT run.id, COALESCE(new.due, {{now}} + new.within)
    FROM run JOIN new USING (id) WHERE new.due IS NOT NULL OR new.within IS NOT NULL
)"""

_START = f"""
WITH plan AS MATERIALIZED (
    SELECT id FROM {_PLANS}
    WHERE id = %(plan)s AND sequence = %(sequence)s AND fingerprint = %(fingerprint)s
), new AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(runs)s::jsonb) AS new (
        id uuid, data jsonb, key text, scope text, releases boolean, delay interval, parent bigint,
        traceparent text, priority smallint, within interval, due timestamptz{{subject}})
), run AS (
    INSERT INTO {_RUNS} (
        id, plan_id, sequence, key, active_key, key_scope, releases_key, status, final_status, data,
        version, inbox, parent_id, created_at, updated_at, traceparent, priority)
    SELECT new.id, plan.id, %(sequence)s, new.key, new.key, COALESCE(new.scope, ''),
        COALESCE(new.releases, false), 'running', '', new.data, 0, '{{{{}}}}', new.parent,
        {{now}}, {{now}}, COALESCE(new.traceparent, ''), COALESCE(new.priority, 0)
    FROM plan CROSS JOIN new{{unheld}}
    RETURNING id
){{about}}{{until}}
INSERT INTO {_STEPS} (
    run_id, step, item, kind, status, wait, waiting_since, attempts, lost_workers, repeats,
    dispatches, delay_evaluated, worker, ready_at, queued_at, due_at, wake_at)
SELECT run.id, first.name, {NO_ITEM}, first.kind,
    CASE WHEN new.delay IS NULL THEN 'queued' ELSE 'waiting' END,
    CASE WHEN new.delay IS NULL THEN '' ELSE 'time' END,
    CASE WHEN new.delay IS NOT NULL THEN {{now}} END,
    0, 0, 0, 0, false, '',
    {{now}}, {{now}}, {{now}} + new.delay, {{now}} + COALESCE(new.delay, {{grace}})
FROM run JOIN new USING (id)
    CROSS JOIN jsonb_to_recordset(%(steps)s::jsonb) AS first (name text, kind text)
RETURNING run_id, id, step::text, {{now}}
"""

# The most common start: one run, with nothing but its data, whose plan begins with one step. Plain
# values cost both sides less than JSON for many runs.
_START_ONE = f"""
WITH run AS (
    INSERT INTO {_RUNS} (
        id, plan_id, sequence, key_scope, releases_key, status, final_status, data, version, inbox,
        created_at, updated_at, traceparent, priority)
    SELECT %(run)s, plan.id, %(sequence)s, '', false, 'running', '', %(data)s::jsonb, 0, '{{{{}}}}',
        {{now}}, {{now}}, '', 0
    FROM {_PLANS} plan
    WHERE plan.id = %(plan)s AND plan.sequence = %(sequence)s
        AND plan.fingerprint = %(fingerprint)s
    RETURNING id
)
INSERT INTO {_STEPS} (
    run_id, step, item, kind, status, attempts, lost_workers, repeats, dispatches, delay_evaluated,
    worker, ready_at, queued_at, wake_at)
SELECT run.id, %(next)s, {NO_ITEM}, %(kind)s, 'queued', 0, 0, 0, 0, false, '',
    {{now}}, {{now}}, {{now}} + {{grace}}
FROM run
RETURNING id, {{now}}
"""

# Only if one of the runs has a subject.
_ABOUT = f""", about AS (
    INSERT INTO {_SUBJECTS} (run_id, model, object_id)
    SELECT run.id, new.model, new.object FROM run JOIN new USING (id) WHERE new.model IS NOT NULL
)"""

# The rows are locked in the order that all transactions keep; rows that another one has locked are
# left out.
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

# A result of None stays NULL. The state of the fan-out is returned as of this statement; if it
# limits its items, with the number of those that were released last and are still queued.
_ITEM = f"""
UPDATE {_STEPS} SET
    status = %(status)s, result = %(result)s::jsonb, lost_workers = 0, wake_at = NULL,
    due_at = NULL, progress = COALESCE(%(progress)s::jsonb, progress), finished_at = {{now}}
WHERE id = %(id)s AND token = %(token)s AND status = 'running'
RETURNING (
    SELECT CASE WHEN (own.members->>'window')::integer = {WINDOW} THEN own.members
        ELSE own.members || jsonb_build_object('queued', (
            SELECT COUNT(*) FROM {_STEPS} other
            WHERE other.run_id = own.run_id AND other.step = own.step
                AND other.item >= (own.members->>'next')::integer
                    - (own.members->>'window')::integer
                AND other.item < (own.members->>'next')::integer AND other.item > {NO_ITEM}
                AND other.status || '' = 'queued' AND other.due_at IS NULL
                AND COALESCE(other.wake_at, 'infinity') < 'infinity' AND other.lost_workers = 0))
        END
    FROM {_STEPS} own
    WHERE own.run_id = %(run)s AND own.step = %(step)s AND own.item = {NO_ITEM}
        AND own.status = 'waiting' AND own.wait = 'items')
"""

# The ids are written only once: repeated in nine statements, they cost more than the deletion.
_DELETE = f"""
WITH these AS MATERIALIZED (SELECT %s::uuid[] AS ids), {{parts}}
DELETE FROM {_RUNS} WHERE id = ANY((SELECT ids FROM these)::uuid[])
"""

# A row's xmax is the transaction that has locked it. If that was a savepoint that has been
# released, it has no lock of its own any more: then report the oldest transaction that has locked
# rows of these tables.
_HOLDER = f"""
SELECT activity.pid, activity.usename, activity.application_name, activity.state,
    EXTRACT(EPOCH FROM CLOCK_TIMESTAMP() - activity.xact_start), EXISTS (
        SELECT FROM pg_locks own
        WHERE own.pid = activity.pid AND own.locktype = 'transactionid' AND own.granted
            AND own.transactionid IN (
                SELECT xmax FROM {_STEPS} WHERE run_id = %(run)s AND step = %(step)s
                UNION ALL SELECT xmax FROM {_RUNS} WHERE id = %(run)s)
    ) AS is_certain
FROM pg_stat_activity activity
WHERE activity.pid <> pg_backend_pid() AND activity.xact_start IS NOT NULL AND EXISTS (
    SELECT FROM pg_locks held
    JOIN pg_database here ON here.oid = held.database AND here.datname = CURRENT_DATABASE()
    WHERE held.pid = activity.pid AND held.locktype = 'relation' AND held.granted
        AND held.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
        AND held.relation IN ('{_STEPS}'::regclass, '{_RUNS}'::regclass))
ORDER BY is_certain DESC, activity.xact_start
LIMIT 1
"""


_STARTED = ("uuid", "bigint", "text", "timestamptz")


def _start(is_about: bool, has_key: bool, has_deadline: bool) -> Function:
    purpose, parts = "start", {"{unheld}": "", "{about}": "", "{subject}": "", "{until}": ""}
    if is_about:
        purpose += "_about"
        parts |= {"{about}": _ABOUT, "{subject}": ", model text, object text"}
    if has_key:
        purpose += "_by_key"
        parts["{unheld}"] = _UNHELD
    if has_deadline:
        purpose += "_until"
        parts["{until}"] = _UNTIL
    statement = _START
    for place, part in parts.items():
        statement = statement.replace(place, part)
    return Function(purpose, statement, _STARTED, has_many=True)


#: Variants by whether one of the runs has a subject, a key or a deadline: what is not needed costs
#: nothing.
STARTS = {needs: _start(*needs) for needs in product((False, True), repeat=3)}
START_ONE = Function("start_one", _START_ONE, ("bigint", "timestamptz"))
CLAIM = Function(
    "claim",
    _CLAIM,
    (
        "bigint", "uuid", "text", "bigint", "text", "integer", "text", "integer", "integer",
        "boolean", "timestamptz", "timestamptz", "timestamptz", "jsonb", "bigint", "text", "jsonb",
        "text", "smallint", "text",
    ),
)  # fmt: skip
ADVANCE = Function("advance", _ADVANCE, ("bigint",))
TAKE = Function("take", _TAKE, ("bigint", "timestamptz", "jsonb"))
SUCCEED = Function("succeed", _SUCCEED, ("integer",))
ITEM = Function("item", _ITEM, ("jsonb",))
#: Rare, and never called as a function.
BEAT = Function("beat", _BEAT, ("bigint",))
INSTALLED = Installed((*STARTS.values(), START_ONE, CLAIM, ADVANCE, TAKE, SUCCEED, ITEM))


class Statements:
    """The hot path. Each statement uses the database's clock, and reads and writes once."""

    def start(
        self,
        plan: Plan,
        plan_id: int,
        requests: Sequence[Start],
        scope: str,
        labels: Sequence[str],
        connection: Any,
    ) -> list[StartedStep]:
        """See `FastStatements`."""
        if len(requests) == len(plan.roots) == 1 and not _rare_values(requests[0], scope):
            return _start_one(plan, plan_id, requests[0], connection)
        is_keyed = any(request.key is not None for request in requests)
        is_about = any(request.subject_key is not None for request in requests)
        values = {
            "plan": plan_id,
            "sequence": plan.sequence,
            "fingerprint": plan.fingerprint,
            "runs": f"[{','.join(_as_json(request, scope) for request in requests)}]",
            "steps": _first_steps(plan),
            "labels": list(labels) if is_keyed else None,
        }
        has_deadline = any(request.deadline is not None for request in requests)
        rows = INSTALLED.fetch(STARTS[is_about, is_keyed, has_deadline], values, connection)
        return [StartedStep(*row) for row in rows]

    def claim(
        self,
        step_run_id: int,
        attempts: int,
        token: int,
        worker: str,
        suspects: bool,
        connection: Any,
    ) -> Claim | None:
        """See `claims.claim`."""
        values = {
            "id": step_run_id,
            "attempts": attempts,
            "token": token,
            "worker": worker,
            "suspects": suspects,
        }
        row = INSTALLED.fetch_one(CLAIM, values, connection)
        if row is None:
            return None
        pk, run_id, sequence, plan_id, step, item, kind, attempts, *rest = row
        repeats, delay_evaluated, ready_at, due_at, now, data, version, wait, *rest = rest
        payload, traceparent, lost_workers, _ = rest
        return Claim(
            pk, run_id, sequence, plan_id, step, item, kind, token, attempts,
            repeats, delay_evaluated, ready_at, due_at, now, data, version, wait,
            None if payload is None else json.loads(payload), worker, traceparent, lost_workers,
        )  # fmt: skip

    def commit_in_chain(
        self, claim: Claim, change: Change, following: Node | None, connection: Any
    ) -> int | None:
        """See `FastStatements`."""
        values = {
            **_changed(claim, change),
            "version": claim.version,
            "data": change.data,
            "next": None if following is None else following.name,
            "kind": None if following is None else following.kind,
        }
        function = SUCCEED if following is None else ADVANCE
        row = INSTALLED.fetch_one(function, values, connection)
        return None if row is None else row[0]

    def commit_and_claim(
        self, claim: Claim, change: Change, following: Node, offer: Offer, connection: Any
    ) -> Claim | None:
        """See `FastStatements`."""
        values = {
            **_changed(claim, change),
            "version": claim.version,
            "data": change.data,
            "next": following.name,
            "kind": following.kind,
            "next_token": offer.token,
            "worker": offer.worker,
        }
        row = INSTALLED.fetch_one(TAKE, values, connection)
        if row is None:
            return None
        pk, now, data = row
        return Claim(
            pk, claim.run_id, claim.sequence, claim.plan_id, following.name, NO_ITEM,
            following.kind, offer.token, 0, 0, False, now, None, now,
            claim.data if data is None else data, claim.version + 1,
            worker=offer.worker, traceparent=claim.traceparent,
        )  # fmt: skip

    def commit_item(self, claim: Claim, change: Change, connection: Any) -> tuple[Any] | None:
        """See `FastStatements`."""
        values = {**_changed(claim, change), "step": claim.step}
        row = INSTALLED.fetch_one(ITEM, values, connection)
        if row is None:
            return None
        return (None if row[0] is None else json.loads(row[0]),)

    def beat(self, beats: Sequence[Beat], connection: Any) -> set[int]:
        """See `claims.beat`."""
        values: dict[str, Any] = {
            "ids": [each.step_run_id for each in beats],
            "tokens": [each.token for each in beats],
            "progress": [each.progress for each in beats],
        }
        with connection.cursor() as cursor:
            cursor.execute(BEAT.plain(), values)
            return {token for (token,) in cursor.fetchall()}

    def delete_runs(self, parts: Sequence[str], ids: Sequence[UUID], connection: Any) -> None:
        """See `FastStatements`."""
        statement = _DELETE.format(parts=", ".join(map(_delete_part, parts)))
        with connection.cursor() as cursor:
            cursor.execute(statement, [f"{{{','.join(map(str, ids))}}}"])


class PostgreSQL(Backend):
    """Also works behind PgBouncer in transaction mode: nothing is set for longer than a
    transaction."""

    vendor = "postgresql"
    can_be_broker = True
    clock = CLOCK
    fast: ClassVar[FastStatements | None] = Statements()
    character_set_hint = "Create the database with ENCODING 'UTF8'."

    def follow_migration(self, connection: Any) -> None:
        """Create or remove the functions of the hot path."""
        if _has_tables(connection):
            INSTALLED.create(connection)
        else:
            INSTALLED.drop(connection)

    def missing_functions(self, connection: Any) -> list[str]:
        """Missing functions of the hot path; none if there are no tables either."""
        return INSTALLED.missing(connection) if _has_tables(connection) else []

    def limit_transaction(self, connection: Any) -> None:
        """Set a limit, but not inside the caller's transaction, where it would outlive the
        savepoint."""
        if not connection.savepoint_ids:
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}")

    def is_idle(self, connection: Any) -> bool:
        """psycopg sends BEGIN with the first statement."""
        raw = connection.connection
        return raw is not None and raw.pgconn.transaction_status == _IDLE

    def is_in_transaction(self, connection: Any) -> bool:
        """The server reports it with each response."""
        raw = connection.connection
        return raw is not None and raw.pgconn.transaction_status in _IN_TRANSACTION

    def has_failed_transaction(self, connection: Any) -> bool:
        """Every error of a statement has this effect."""
        raw = connection.connection
        return raw is not None and raw.pgconn.transaction_status == _FAILED_TRANSACTION

    def holder(self, run: UUID, step: str, connection: Any) -> Holder | None:
        """The transaction that has locked the row, or the most likely one."""
        with connection.cursor() as cursor:
            cursor.execute(_HOLDER, {"run": run, "step": step})
            return holder_of(cursor.fetchone())

    def is_transient(self, error: DatabaseError) -> bool:
        """Whether it gave up the transaction because of another one."""
        return state_of(error) in _TRANSIENT

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether another transaction holds a row that this one needs."""
        return state_of(error) in _LOCKED

    def is_undefined(self, error: DatabaseError) -> bool:
        """Whether a table or a column is missing."""
        return state_of(error) in _UNDEFINED

    def is_of_characters(self, error: DatabaseError) -> bool:
        """Whether the database's encoding lacks a character."""
        return state_of(error) in _CHARACTERS

    def is_of_connection(self, error: OperationalError | InterfaceError) -> bool:
        """Whether it is libpq's own error, a connection exception, or the server's shutdown
        message."""
        state = state_of(error)
        return state is None or state[:2] == "08" or state[:3] == "57P"

    def not_unicode(self, tables: Iterable[str], connection: Any) -> list[str]:
        """One encoding applies to the whole database."""
        encoding = _setting_of("server_encoding", connection)
        return [] if encoding == "UTF8" else [f"its encoding is {encoding}"]

    def configured_isolation(self, options: dict[str, Any]) -> str:
        """Without an option, the server decides: see `actual_isolation`."""
        from django.db.backends.postgresql.psycopg_any import IsolationLevel

        level = options.get("isolation_level")
        if level is None:
            return super().configured_isolation(options)
        names = {each.value: each.name for each in IsolationLevel}
        return names.get(level, repr(level)).lower().replace("_", " ")

    def actual_isolation(self, connection: Any) -> str:
        """The server's default may differ."""
        return _setting_of("transaction_isolation", connection)


def _delete_part(table: str) -> str:
    return f"""
gone_of_{table} AS (DELETE FROM {table} WHERE run_id = ANY((SELECT ids FROM these)::uuid[]))"""


def _has_tables(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [_STEPS])
        return bool(cursor.fetchone()[0])


def _changed(claim: Claim, change: Change) -> dict[str, Any]:
    return {
        "run": claim.run_id,
        "id": claim.step_run_id,
        "token": claim.token,
        "status": change.conclusion.status,
        "result": change.conclusion.result,
        "progress": change.progress,
    }


def _setting_of(setting: str, connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW {setting}")
        (value,) = cursor.fetchone()
    return str(value)


def _start_one(plan: Plan, plan_id: int, request: Start, connection: Any) -> list[StartedStep]:
    (first,) = plan.roots
    rows = INSTALLED.fetch(
        START_ONE,
        {
            "run": request.id,
            "sequence": plan.sequence,
            "data": request.text,
            "plan": plan_id,
            "fingerprint": plan.fingerprint,
            "next": first.name,
            "kind": first.kind,
        },
        connection,
    )
    return [StartedStep(request.id, pk, first.name, now) for pk, now in rows]


def _as_json(request: Start, scope: str) -> str:
    """The request as JSON. Its data already is JSON."""
    rare = _rare_values(request, scope)
    more = f",{json.dumps(rare)[1:-1]}" if rare else ""
    return f'{{"id":"{request.id}","data":{request.text}{more}}}'


def _rare_values(request: Start, scope: str) -> dict[str, Any]:
    """What a request gives besides its data."""
    rare: dict[str, Any] = {}
    if request.key is not None:
        rare["key"], rare["scope"] = request.key, scope
    if request.unique == "unfinished":
        rare["releases"] = True
    if request.delay:
        rare["delay"] = f"{request.delay.total_seconds():.6f} seconds"
    if request.priority:
        rare["priority"] = request.priority
    if isinstance(request.deadline, timedelta):
        rare["within"] = f"{request.deadline.total_seconds():.6f} seconds"
    elif request.deadline is not None:
        rare["due"] = request.deadline.isoformat()
    if request.parent is not None:
        rare["parent"] = request.parent
    if request.subject_key is not None:
        rare["model"], rare["object"] = request.subject_key
    if request.traceparent:
        rare["traceparent"] = request.traceparent
    return rare


def _first_steps(plan: Plan) -> str:
    steps: str | None = plan.memo.get("first_steps")
    if steps is None:
        rows = [{"name": node.name, "kind": node.kind} for node in plan.roots]
        steps = plan.memo["first_steps"] = json.dumps(rows)
    return steps
