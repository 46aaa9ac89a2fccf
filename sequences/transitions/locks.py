"""Transactions: who locks what, and what is played again when the database says so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from django.db import DatabaseError, OperationalError, connections, transaction

from ..models import SequenceRun

T = TypeVar("T")

#: How often a transaction that the database gave up is played again.
REPLAYS = 8

# PostgreSQL: serialization failure, deadlock, lock not available.
_SQLSTATES = {"40001", "40P01", "55P03"}
# MySQL and MariaDB: lock wait timeout, deadlock, record changed since the last read.
_ERRNOS = {1205, 1213, 1020}


def is_transient(error: BaseException) -> bool:
    """Whether the database gave the transaction up for another's sake: play it again."""
    if not isinstance(error, DatabaseError):
        return False
    cause = error.__cause__
    if getattr(cause, "sqlstate", None) in _SQLSTATES:
        return True
    if isinstance(error, OperationalError) and error.args:
        return error.args[0] in _ERRNOS or "database is locked" in str(error)
    return False


def back_off(replay: int) -> None:
    """Sleep a moment, longer for each replay, so that two do not meet again."""
    time.sleep(random.uniform(0, min(0.01 * 2**replay, 1.0)))


def transact(using: str, function: Callable[[], T]) -> T:
    """Call `function` in a transaction; play it again when the database gave it up.

    In a transaction of the caller it is a savepoint, and nothing is played again: what the
    database gave up then is the caller's whole transaction.
    """
    replays = 0 if connections[using].in_atomic_block else REPLAYS
    for replay in range(replays + 1):
        try:
            with transaction.atomic(using=using):
                return function()
        except DatabaseError as error:
            if replay == replays or not is_transient(error):
                raise
            back_off(replay)
    raise AssertionError("not reached")


def lock_run(run_id: UUID, using: str) -> SequenceRun | None:
    """Lock the run's row, by a statement of its own: what is read later is not older than it."""
    runs = SequenceRun._base_manager.using(using).select_for_update()
    return runs.filter(pk=run_id).first()
