"""The objects that runs are about: what is stored when one of them is deleted.

A run without a subject has no row here, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from ..definitions.subjects import SubjectKey
from ..models import RunSubject
from . import clock
from .locking import lock_free, transact

#: Ids per statement.
IDS_PER_STATEMENT = 500
#: The maximum number of runs that one sweep erases.
RUNS_PER_SWEEP = 500


def runs_about(key: SubjectKey, using: str) -> list[tuple[UUID, str, str]]:
    """The runs about this object: id, sequence and status of each, parents first."""
    rows = RunSubject._base_manager.using(using).filter(model=key.model, object_id=key.pk)
    # By their ids in Python, whose order is the order of starts on every database.
    return sorted(rows.values_list("run_id", "run__sequence", "run__status"))


def request_erasure(run_ids: Sequence[UUID], using: str) -> None:
    """Have the sweep erase these runs, each once it has finished."""
    now = clock.now(using)
    for index in range(0, len(run_ids), IDS_PER_STATEMENT):
        rows = RunSubject._base_manager.using(using)
        rows.filter(run__in=run_ids[index : index + IDS_PER_STATEMENT]).update(erase_at=now)


def due(using: str) -> list[UUID]:
    """The runs whose erasure is due, oldest first."""
    rows = RunSubject._base_manager.using(using).filter(erase_at__lte=clock.now(using))
    return list(rows.order_by("erase_at").values_list("run_id", flat=True)[:RUNS_PER_SWEEP])


def put_off(run_id: UUID, using: str) -> None:
    """Check this run later: it has not finished, or cannot be erased now."""
    rows = RunSubject._base_manager.using(using).filter(run=run_id)
    later = clock.now(using) + clock.grace()
    transact(using, lambda: rows.filter(pk__in=lock_free(rows, using)).update(erase_at=later))
