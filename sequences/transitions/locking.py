"""Transactions: locks, and replays when the database gives up a transaction."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from django.db import DatabaseError, connections, transaction
from django.db.models import QuerySet

from ..models import SequenceRun
from .backends import backend_of, is_error
from .refusals import is_unmigrated, unmigrated

T = TypeVar("T")

#: How many times a transaction is replayed that the database gave up.
REPLAYS = 8


class Locked(Exception):
    """Another transaction holds a row that this one needs."""


class _Thread(threading.local):
    #: Whether this thread's next transaction waits for no lock, and whether its current one does
    #: not.
    no_wait = False
    nowait = False


_thread = _Thread()


def is_transient(error: BaseException) -> bool:
    """Whether the database gave up the transaction because of another one: replay it."""
    return is_error(error, lambda backend, error: backend.is_transient(error))


def _is_locked(error: BaseException) -> bool:
    return is_error(error, lambda backend, error: backend.is_locked(error))


def back_off(replay: int) -> None:
    """Sleep a moment, longer for each replay, so that the two do not collide again."""
    time.sleep(random.uniform(0, min(0.01 * 2**replay, 1.0)))


@contextmanager
def no_wait() -> Iterator[None]:
    """For threads that serve many: in this block, `transact` raises `Locked` instead of waiting.

    Code called after its commit, such as signal receivers, waits as usual.
    """
    outer, _thread.no_wait = _thread.no_wait, True
    try:
        yield
    finally:
        _thread.no_wait = outer


def transact(using: str, function: Callable[[], T]) -> T:
    """Call `function` in a transaction; replay it if the database gave the transaction up.

    Inside a transaction of the caller's, this is a savepoint, and nothing is replayed: the database
    would have given up the caller's whole transaction.
    """
    if not _thread.no_wait:
        return _transact(using, function)
    _thread.no_wait = False  # for code called after the commit
    try:
        with backend_of(using).limit_session(connections[using]):
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
        backend_of(using).limit_transaction(connections[using])
        return function()
    except DatabaseError as error:
        if _is_locked(error):
            raise Locked(str(error)) from error
        raise
    finally:
        _thread.nowait = False


def lock_run(run_id: UUID, using: str) -> SequenceRun | None:
    """Lock the run's row, in a separate statement, so that later reads are not older than the
    lock."""
    nowait = _thread.nowait and connections[using].features.has_select_for_update_nowait
    runs = SequenceRun._base_manager.using(using).select_for_update(nowait=nowait)
    return runs.filter(pk=run_id).first()


def lock_free(rows: QuerySet[Any], using: str) -> list[Any]:
    """Lock those of these rows that nobody else has locked; return their ids."""
    skip = connections[using].features.has_select_for_update_skip_locked
    rows = rows.select_for_update(skip_locked=skip).order_by("pk")
    return list(rows.values_list("pk", flat=True))
