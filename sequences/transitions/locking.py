"""Transactions: who locks what, and what is played again when the database says so."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar
from uuid import UUID

from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.models import QuerySet

from ..models import SequenceRun
from .refusals import is_unmigrated, unmigrated

T = TypeVar("T")

#: How often a transaction that the database gave up is played again.
REPLAYS = 8
#: How long a statement that cannot say NOWAIT waits for a lock in a `no_wait` block: milliseconds
#: on PostgreSQL; on MariaDB and MySQL seconds, of which one is the least.
PATIENCE, MYSQL_PATIENCE = 50, 1

# PostgreSQL: lock not available; it gave the transaction up for a serialization failure, a
# deadlock.
_LOCKED_SQLSTATES = {"55P03"}
_SQLSTATES = {"40001", "40P01", *_LOCKED_SQLSTATES}
# MySQL and MariaDB: lock wait timeout, MySQL's NOWAIT; deadlock, record changed since the last
# read.
_LOCKED_ERRNOS = {1205, 3572}
_ERRNOS = {1213, 1020, *_LOCKED_ERRNOS}


class Locked(Exception):
    """Another transaction holds a row that this one needs."""


class _Thread(threading.local):
    #: Whether the next transaction of this thread waits for no lock, and whether the one that it
    #: is in does not.
    no_wait = False
    nowait = False


_thread = _Thread()


def is_transient(error: BaseException) -> bool:
    """Whether the database gave the transaction up for another's sake: play it again."""
    return _is_one_of(error, _SQLSTATES, _ERRNOS)


def _is_locked(error: BaseException) -> bool:
    return _is_one_of(error, _LOCKED_SQLSTATES, _LOCKED_ERRNOS)


def _is_one_of(error: BaseException, sqlstates: set[str], errnos: set[int]) -> bool:
    if not isinstance(error, DatabaseError):
        return False
    if getattr(error.__cause__, "sqlstate", None) in sqlstates:
        return True
    if isinstance(error, OperationalError) and error.args:
        return error.args[0] in errnos or "database is locked" in str(error)
    return False


def back_off(replay: int) -> None:
    """Sleep a moment, longer for each replay, so that two do not meet again."""
    time.sleep(random.uniform(0, min(0.01 * 2**replay, 1.0)))


@contextmanager
def no_wait() -> Iterator[None]:
    """For who serves many: `transact` raises `Locked` in this block instead of waiting.

    What is called after its commit, such as receivers of signals, waits as ever.
    """
    outer, _thread.no_wait = _thread.no_wait, True
    try:
        yield
    finally:
        _thread.no_wait = outer


def transact(using: str, function: Callable[[], T]) -> T:
    """Call `function` in a transaction; play it again when the database gave it up.

    In a transaction of the caller it is a savepoint, and nothing is played again: what the
    database gave up then is the caller's whole transaction.
    """
    if not _thread.no_wait:
        return _transact(using, function)
    _thread.no_wait = False  # for what is called after the commit
    try:
        with _bound_of_session(connections[using]):
            return _transact(using, lambda: _at_once(using, function))
    finally:
        _thread.no_wait = True


def _transact(using: str, function: Callable[[], T]) -> T:
    replays = 0 if connections[using].in_atomic_block else REPLAYS
    for replay in range(replays + 1):
        try:
            with transaction.atomic(using=using):
                return function()
        except DatabaseError as error:
            if is_unmigrated(error):
                raise unmigrated(error, using) from error
            if replay == replays or not is_transient(error):
                raise
            back_off(replay)
    raise AssertionError("not reached")


def _at_once(using: str, function: Callable[[], T]) -> T:
    _thread.nowait = True
    try:
        _bound_transaction(connections[using])
        return function()
    except DatabaseError as error:
        if _is_locked(error):
            raise Locked(str(error)) from error
        raise
    finally:
        _thread.nowait = False


def _bound_transaction(connection: Any) -> None:
    # In a transaction of the caller it would outlive the savepoint.
    if connection.vendor == "postgresql" and not connection.savepoint_ids:
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {PATIENCE}")


def _bound_of_session(connection: Any) -> AbstractContextManager[None]:
    if connection.vendor != "mysql" or connection.in_atomic_block:
        return nullcontext()
    return _mysql_bound(connection)


@contextmanager
def _mysql_bound(connection: Any) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@SESSION.innodb_lock_wait_timeout")
        (usual,) = cursor.fetchone()
        cursor.execute("SET SESSION innodb_lock_wait_timeout = %s", [MYSQL_PATIENCE])
    try:
        yield
    finally:
        with suppress(DatabaseError), connection.cursor() as cursor:  # it may be gone by now
            cursor.execute("SET SESSION innodb_lock_wait_timeout = %s", [usual])


def lock_run(run_id: UUID, using: str) -> SequenceRun | None:
    """Lock the run's row, by a statement of its own: what is read later is not older than it."""
    nowait = _thread.nowait and connections[using].features.has_select_for_update_nowait
    runs = SequenceRun._base_manager.using(using).select_for_update(nowait=nowait)
    return runs.filter(pk=run_id).first()


def lock_free(rows: QuerySet[Any], using: str) -> list[Any]:
    """Lock those of these rows that nobody else has locked, and return their ids."""
    skip = connections[using].features.has_select_for_update_skip_locked
    rows = rows.select_for_update(skip_locked=skip).order_by("pk")
    return list(rows.values_list("pk", flat=True))
