"""The rows in which worker processes report that they are alive. Nothing else depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Q

from .. import conf
from ..models import WorkerProcess
from . import clock
from .locking import lock_free, transact

#: Seconds between two reports of a process.
REPORT_INTERVAL_SECONDS = 10.0
#: A process that has not been seen for this long is gone or stuck.
STALE_AFTER = timedelta(seconds=4 * REPORT_INTERVAL_SECONDS)
#: A process that has not reported for this long is forgotten.
FORGOTTEN_AFTER = timedelta(hours=1)
#: A row that was written within this time belongs to a live process.
FRESH_FOR = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """What a process reports."""

    name: str
    queues: Sequence[str] = ()
    #: 0: it runs no steps, and only sweeps.
    threads: int = 0
    #: How many of its threads have died.
    dead_threads: int = 0
    #: How long it has been running.
    age: timedelta = timedelta(0)
    #: How long ago its last sweep ended; None: it has not swept.
    swept: timedelta | None = None
    #: Whether the row with its name is known to be its own.
    is_known: bool = True
    #: The tokens of claims that it holds but could not extend.
    unextended_claims: Sequence[int] = ()


def register(worker: ProcessReport, using: str) -> bool:
    """Write that this process is alive. False: so is another one with the same name."""
    return transact(using, lambda: _register(worker, using))


def _register(worker: ProcessReport, using: str) -> bool:
    now = clock.now(using)
    values = {
        "queues": sorted(worker.queues),
        "threads": worker.threads,
        "unextended_claims": list(worker.unextended_claims),
        "dead_threads": worker.dead_threads,
        # A new process may have the name of one that is gone: the same host and process id.
        "started_at": now - worker.age,
        "seen_at": now,
        "swept_at": None if worker.swept is None else now - worker.swept,
        "stopped_at": None,
    }
    rows = WorkerProcess.objects.using(using)
    own = rows.filter(name=worker.name)
    if not worker.is_known:
        own = own.filter(Q(seen_at__lt=now - FRESH_FOR) | Q(stopped_at__isnull=False))
    if own.update(**values):
        return True
    try:
        with transaction.atomic(using=using):
            rows.create(name=worker.name, **values)
    except IntegrityError:
        return worker.is_known  # it was written in the meantime; the next beat updates it
    return True


def holds(token: int, using: str) -> bool:
    """Whether a process has just reported that it holds this claim but could not extend its lease.

    Someone had locked the row: the worker is not lost, and extends it with its next heartbeat.
    """
    fresh = clock.now(using) - 2 * timedelta(seconds=conf.settings.heartbeat)
    rows = WorkerProcess.objects.using(using).filter(seen_at__gte=fresh)
    return any(
        token in unextended_claims
        for unextended_claims in rows.values_list("unextended_claims", flat=True)
    )


def stopped(name: str, swept: timedelta | None, using: str) -> None:
    """Write that the process has shut down cleanly, and when its last sweep ended.

    The row stays, so that health can tell since when there has been no worker and no sweep.
    """
    transact(using, lambda: _stopped(name, swept, using))


def _stopped(name: str, swept: timedelta | None, using: str) -> None:
    now = clock.now(using)
    WorkerProcess.objects.using(using).filter(name=name).update(
        seen_at=now,
        swept_at=None if swept is None else now - swept,
        stopped_at=now,
        unextended_claims=[],
    )


def forget(using: str) -> None:
    """Delete those that were not seen for long: they have stopped, or were killed."""
    transact(using, lambda: _forget(using))


def _forget(using: str) -> None:
    rows = WorkerProcess.objects.using(using)
    gone = rows.filter(seen_at__lt=clock.now(using) - FORGOTTEN_AFTER)
    rows.filter(pk__in=lock_free(gone, using)).delete()
