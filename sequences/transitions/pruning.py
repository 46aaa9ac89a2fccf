"""Deletes finished runs: whole trees, from a run without a parent down to all its children.

None of our foreign keys has a constraint in the database, so our own rows are deleted by statements
that load nothing. What a project's models refer to is deleted as Django would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import DO_NOTHING, Model, Q, QuerySet
from django.db.models.deletion import Collector, get_candidate_relations_to_delete

from ..models import (
    NO_ITEM,
    UNFINISHED_RUN,
    Operation,
    Permit,
    RunDeadline,
    RunSubject,
    SequenceRun,
    StepCall,
    StepFailure,
    StepLoss,
    StepRun,
)
from .backends import backend_of
from .locking import transact

#: Ids per statement.
IDS_PER_STATEMENT = 500
#: The maximum number of children per transaction, except for those of a single tree.
MAX_CHILDREN_PER_TRANSACTION = 5_000
#: What belongs to a run, in the order of deletion.
_PARTS: tuple[type[Model], ...] = (
    *(Operation, Permit, RunDeadline, RunSubject, StepCall, StepFailure, StepLoss, StepRun),
)
_MODELS: tuple[type[Model], ...] = (*_PARTS, SequenceRun)

#: Where a page of candidates ended: start and id.
Place = tuple[datetime, UUID]


@dataclass(frozen=True, slots=True)
class Due:
    """Which runs to delete: those that ended with this status long enough ago."""

    status: str
    #: Finished at or before this time.
    before: datetime
    #: Only of these sequences. None: of all.
    only: frozenset[str] | None = None
    #: But not of these.
    without: frozenset[str] = frozenset()


@dataclass(slots=True)
class Removed:
    """What one transaction did with some trees."""

    #: How many runs of each sequence were deleted.
    runs: Counter[str] = field(default_factory=Counter)
    #: How many trees that were.
    trees: int = 0
    #: The roots of kept trees: a child has not ended, or not long enough ago.
    young: list[UUID] = field(default_factory=list)
    #: Somebody else has locked, deleted or restarted these.
    busy: list[UUID] = field(default_factory=list)


class TooMany(Exception):
    """These trees have too many children together: delete fewer at once."""


def due(request: Due, after: Place | None, limit: int, using: str) -> list[tuple[datetime, UUID]]:
    """The next roots that seem due, in the order of their starts; nothing is locked.

    It follows the index on status and start: a run that started after `before` cannot have ended
    before it.
    """
    rows = SequenceRun._base_manager.using(using).filter(
        status=request.status,
        created_at__lte=request.before,
        finished_at__lte=request.before,
        parent__isnull=True,
    )
    if request.only is not None:
        rows = rows.filter(sequence__in=request.only)
    if request.without:
        rows = rows.exclude(sequence__in=request.without)
    if after is not None:
        began, pk = after
        rows = rows.filter(created_at__gte=began)
        rows = rows.filter(Q(created_at__gt=began) | Q(pk__gt=pk))
    return list(rows.order_by("created_at", "pk").values_list("created_at", "pk")[:limit])


def remove(roots: Sequence[UUID], request: Due, using: str, *, dry: bool = False) -> Removed:
    """Delete these trees in one transaction: all that are still due once they are locked.

    ``dry``: only report what would be deleted. Raises `ProtectedError`, `RestrictedError` or
    `IntegrityError` if something of the project keeps one of them, and `TooMany`, but not for a
    single tree; then nothing is deleted.
    """
    return transact(using, lambda: _remove(roots, request, using, dry))


def _remove(roots: Sequence[UUID], request: Due, using: str, dry: bool) -> Removed:
    trees = _Trees(request, using)
    trees.lock(roots)
    members = trees.members()
    users = _Users(using)
    users.gather(list(members))
    if not dry:
        users.delete()
        _delete(list(members), using)
    return Removed(Counter(members.values()), len(trees.whole), trees.young, trees.busy)


_Row = tuple[str, str, datetime | None]


class _Trees:
    """Trees that are locked from their roots down.

    While it is locked, a finished run starts no child and is not restarted: `retry` and
    `restart_from` wait, and find it gone. This waits for no lock: whoever holds one is changing
    that run.
    """

    def __init__(self, request: Due, using: str) -> None:
        self.request, self.using = request, using
        #: The runs of each tree, with their sequences.
        self.whole: dict[UUID, dict[UUID, str]] = {}
        self.young: list[UUID] = []
        self.busy: list[UUID] = []

    def members(self) -> dict[UUID, str]:
        return {pk: sequence for tree in self.whole.values() for pk, sequence in tree.items()}

    def lock(self, roots: Sequence[UUID]) -> None:
        rows = _locked(roots, self.using, parent__isnull=True)
        level = {pk: pk for pk in roots if self._plants(pk, rows.get(pk))}
        room = MAX_CHILDREN_PER_TRANSACTION if len(roots) > 1 else None
        while below := _children(level, self.using, room):
            room = None if room is None else room - len(below)
            rows = _locked(list(below), self.using)
            level = {pk: root for pk, root in below.items() if self._grows(pk, root, rows.get(pk))}

    def _plants(self, pk: UUID, row: _Row | None) -> bool:
        if row is None or row[1] != self.request.status or not self._is_due(row):
            self.busy.append(pk)
            return False
        self.whole[pk] = {pk: row[0]}
        return True

    def _grows(self, pk: UUID, root: UUID, row: _Row | None) -> bool:
        if root not in self.whole:
            return False
        if row is None or not self._is_due(row):
            (self.busy if row is None else self.young).append(root)
            del self.whole[root]
            return False
        self.whole[root][pk] = row[0]
        return True

    def _is_due(self, row: _Row) -> bool:
        _, status, ended = row
        return status not in UNFINISHED_RUN and ended is not None and ended <= self.request.before


def _locked(ids: Sequence[UUID], using: str, **conditions: Any) -> dict[UUID, _Row]:
    skip = connections[using].features.has_select_for_update_skip_locked
    rows = SequenceRun._base_manager.using(using).filter(**conditions)
    rows = rows.select_for_update(skip_locked=skip).order_by("pk")
    locked: dict[UUID, _Row] = {}
    for chunk in _chunks(ids):
        some = rows.filter(pk__in=chunk).values_list("pk", "sequence", "status", "finished_at")
        locked |= {pk: (sequence, status, ended) for pk, sequence, status, ended in some}
    return locked


def _children(level: dict[UUID, UUID], using: str, room: int | None = None) -> dict[UUID, UUID]:
    """The children of these runs, each with its root. Raises `TooMany` if there are too many."""
    # Not of items: there may be a million of those.
    rows = SequenceRun._base_manager.using(using).filter(parent__item=NO_ITEM)
    children: dict[UUID, UUID] = {}
    for chunk in _chunks(list(level)):
        below = rows.filter(parent__run__in=chunk).values_list("pk", "parent__run")
        children |= {pk: level[above] for pk, above in below[: None if room is None else room + 1]}
        if room is not None and len(children) > room:
            raise TooMany
    return children


def _chunks(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (
        ids[index : index + IDS_PER_STATEMENT] for index in range(0, len(ids), IDS_PER_STATEMENT)
    )


def _delete(ids: Sequence[UUID], using: str) -> None:
    fast = backend_of(using).fast
    for chunk in _chunks(ids):
        if fast is not None:
            fast.delete_runs([model._meta.db_table for model in _PARTS], chunk, connections[using])
            continue
        for model in _PARTS:
            model._base_manager.using(using).filter(run__in=chunk)._raw_delete(using)
        SequenceRun._base_manager.using(using).filter(pk__in=chunk)._raw_delete(using)


class _Users(Collector):
    """The project's objects that refer to our rows: Django's own deletion, without our tables."""

    def gather(self, ids: Sequence[UUID]) -> None:
        """Collect it. Raises `ProtectedError` or `RestrictedError` if it keeps one of them."""
        users = [objects for model in _referred_to() for objects in self._objects(model, ids)]
        for index, objects in enumerate(users, 1):
            # What RESTRICT keeps may be deleted by a CASCADE: only the last relation knows.
            self.collect(objects, fail_on_restricted=index == len(users))
        self._leave_ours()

    def _objects(self, model: type[Model], ids: Sequence[UUID]) -> Iterator[list[Model]]:
        name = "pk__in" if model is SequenceRun else "run__in"
        for chunk in _chunks(ids):
            rows = model._base_manager.using(self.using).filter(**{name: chunk})
            if objects := list(rows.only("pk")):
                yield objects

    def related_objects(self, related_model: Any, related_fields: Any, objs: Any) -> QuerySet[Any]:
        """None of our own tables."""
        if related_model in _MODELS:
            empty: QuerySet[Any] = related_model._base_manager.none()
            return empty
        return super().related_objects(related_model, related_fields, objs)

    def _leave_ours(self) -> None:
        for model in _MODELS:
            self.data.pop(model, None)
        self.fast_deletes = [rows for rows in self.fast_deletes if rows.model not in _MODELS]
        for key in [key for key in self.field_updates if key[0].model in _MODELS]:
            del self.field_updates[key]


def _referred_to() -> list[type[Model]]:
    """Our models that a model of the project refers to."""
    return [model for model in _MODELS if any(map(_is_of_the_project, _relations(model)))]


def _is_of_the_project(relation: Any) -> bool:
    """Whether it comes from a model of the project, so that each of our rows must be checked."""
    return relation.related_model not in _MODELS and relation.on_delete is not DO_NOTHING


def _relations(model: type[Model]) -> Any:
    return get_candidate_relations_to_delete(model._meta)
