"""The rows by which worker processes tell that they are there. Nothing else depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db import IntegrityError, transaction

from ..models import WorkerProcess
from . import times

#: After this long without a word a process is forgotten.
FORGOTTEN = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a process tells of itself."""

    name: str
    queues: Sequence[str] = ()
    #: 0: it performs no steps, and only sweeps.
    threads: int = 0
    #: How long it has been running.
    age: timedelta = timedelta(0)
    #: How long ago its last sweep ended; None: it has not swept.
    swept: timedelta | None = None


def seen(worker: Seen, using: str) -> None:
    """Write that this process is there now."""
    now = times.now(using)
    values = {
        "queues": sorted(worker.queues),
        "threads": worker.threads,
        # A later process may have the name of one that is gone: the same host and number.
        "started_at": now - worker.age,
        "seen_at": now,
        "swept_at": None if worker.swept is None else now - worker.swept,
    }
    rows = WorkerProcess.objects.using(using)
    if rows.filter(name=worker.name).update(**values):
        return
    try:
        with transaction.atomic(using=using):
            rows.create(name=worker.name, **values)
    except IntegrityError:
        # It was written meanwhile, by what looks like the same process; the next beat updates it.
        return


def gone(name: str, using: str) -> None:
    """The process has ended as it should."""
    WorkerProcess.objects.using(using).filter(name=name).delete()


def forget(using: str) -> None:
    """Remove those that were not seen for long: they were killed."""
    long_ago = times.now(using) - FORGOTTEN
    WorkerProcess.objects.using(using).filter(seen_at__lt=long_ago).delete()
