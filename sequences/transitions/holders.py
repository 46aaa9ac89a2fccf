"""Who has locked what is due, as far as the database tells. Only read, by people's leave."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError, connections, transaction
from django.db.models import QuerySet

from ..models import SequenceRun, StepRun
from .locking import lock_free

#: Rows that are tried, those first that were due first.
TRIED = 200
#: MariaDB and MySQL: this user may not see the transactions of others.
_NOT_ALLOWED = {1227, 1142}


@dataclass(frozen=True, slots=True)
class Locked:
    """Step runs that are due, and that another transaction keeps from the sweep."""

    count: int
    #: When the first of them was due.
    since: datetime
    run: UUID
    step: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A session of the database."""

    #: What ends it: ``pg_terminate_backend(pid)``, ``KILL pid``.
    pid: int
    user: str
    application: str
    #: What it does, such as "idle in transaction".
    state: str
    #: How long its transaction has been open.
    age: timedelta
    #: Whether it is known to hold the row, and not only the likeliest.
    is_certain: bool


def locked(rows: QuerySet[StepRun], using: str) -> Locked | None:
    """Those of these step runs that are locked, or whose run is."""
    tried = list(rows.order_by("wake_at", "pk")[:TRIED])
    with transaction.atomic(using=using):
        steps = StepRun._base_manager.using(using).filter(pk__in=[row.pk for row in tried])
        runs = SequenceRun._base_manager.using(using).filter(pk__in={row.run_id for row in tried})
        free_runs, free_steps = set(lock_free(runs, using)), set(lock_free(steps, using))
    kept = [row for row in tried if row.pk not in free_steps or row.run_id not in free_runs]
    if not kept or kept[0].wake_at is None:
        return None
    return Locked(len(kept), kept[0].wake_at, kept[0].run_id, kept[0].step)


def holder(of: Locked, using: str) -> Holder | None:
    """Whose transaction that is. None: the database does not tell, or it has ended."""
    asked = {"postgresql": _on_postgresql, "mysql": _on_mysql}.get(connections[using].vendor)
    return None if asked is None else asked(of, using)


# A row names the transaction that has locked it in xmax. That of a savepoint that was released
# has no lock of its own any more: then it is the oldest that has locked rows of these tables.
_POSTGRESQL = f"""
SELECT activity.pid, activity.usename, activity.application_name, activity.state,
    EXTRACT(EPOCH FROM CLOCK_TIMESTAMP() - activity.xact_start), EXISTS (
        SELECT FROM pg_locks own
        WHERE own.pid = activity.pid AND own.locktype = 'transactionid' AND own.granted
            AND own.transactionid IN (
                SELECT xmax FROM {StepRun._meta.db_table} WHERE run_id = %(run)s AND step = %(step)s
                UNION ALL SELECT xmax FROM {SequenceRun._meta.db_table} WHERE id = %(run)s)
    ) AS is_certain
FROM pg_stat_activity activity
WHERE activity.pid <> pg_backend_pid() AND activity.xact_start IS NOT NULL AND EXISTS (
    SELECT FROM pg_locks held
    JOIN pg_database here ON here.oid = held.database AND here.datname = CURRENT_DATABASE()
    WHERE held.pid = activity.pid AND held.locktype = 'relation' AND held.granted
        AND held.mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
        AND held.relation IN (
            '{StepRun._meta.db_table}'::regclass, '{SequenceRun._meta.db_table}'::regclass))
ORDER BY is_certain DESC, activity.xact_start
LIMIT 1
"""


def _on_postgresql(of: Locked, using: str) -> Holder | None:
    return _holder(_POSTGRESQL, {"run": of.run, "step": of.step}, using)


# InnoDB names the tables of those locks only that somebody waits for.
_MYSQL = """
SELECT trx.trx_mysql_thread_id, process.user, '', process.command,
    TIMESTAMPDIFF(SECOND, trx.trx_started, NOW()), FALSE
FROM information_schema.innodb_trx trx
JOIN information_schema.processlist process ON process.id = trx.trx_mysql_thread_id
WHERE process.id <> CONNECTION_ID() AND process.db = DATABASE()
    AND (trx.trx_rows_locked > 0 OR trx.trx_rows_modified > 0)
ORDER BY trx.trx_started
LIMIT 1
"""


def _on_mysql(of: Locked, using: str) -> Holder | None:
    try:
        return _holder(_MYSQL, None, using)
    except DatabaseError as error:
        if error.args and error.args[0] in _NOT_ALLOWED:
            return None
        raise


def _holder(statement: str, values: dict[str, Any] | None, using: str) -> Holder | None:
    with connections[using].cursor() as cursor:
        cursor.execute(statement, values)
        row = cursor.fetchone()
    if row is None:
        return None
    pid, user, application, state, seconds, is_certain = row
    age = timedelta(seconds=float(seconds or 0))
    return Holder(pid, user or "", application or "", state or "", age, bool(is_certain))
