"""Pruning: removes finished runs, with all of their children, when their retention has expired."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError
from django.db.models import ProtectedError, RestrictedError

from .. import conf
from ..definitions import registry
from ..definitions.definition import Definition
from ..models import RunStatus
from ..transitions import clock, limits, locking, pruning
from ..transitions.pruning import Due

__all__ = ["TREES_PER_TRANSACTION", "Remaining", "Report", "prune"]

#: The number of trees per transaction; fewer if they have many children.
TREES_PER_TRANSACTION = 500

#: Why a tree is kept.
YOUNG = "with a child run that has not finished, or finished too recently"
TAKEN = "being changed or pruned at the moment"
REFERRED_TO = "referenced by other objects of the project"
REFUSED = "protected by the database"


@dataclass(frozen=True, slots=True)
class Remaining:
    """A tree whose retention has expired, but which is kept."""

    run: UUID
    why: str
    #: How many objects of the project's models reference it, by their labels.
    by: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What was pruned, or would be."""

    #: The number of runs of each sequence, including children.
    runs: Counter[str] = field(default_factory=Counter)
    #: The number of runs without a parent among them.
    trees: int = 0
    remaining: list[Remaining] = field(default_factory=list)
    #: Whether any run has a retention at all.
    has_retention: bool = False


def prune(
    *,
    sequence: str | None = None,
    older_than: timedelta | None = None,
    failed_older_than: timedelta | None = None,
    batch: int = TREES_PER_TRANSACTION,
    dry_run: bool = False,
) -> Report:
    """Remove finished runs whose retention has expired, with their children, batch by batch.

    ``older_than`` and ``failed_older_than`` override the settings ``RETENTION`` and
    ``RETENTION_FAILED``. The Meta of a sequence takes precedence over both, unless ``sequence``
    names it. Each batch commits on its own: you can stop pruning at any time, and several processes
    may prune at once. The report lists what foreign keys of the project's models keep.
    """
    using = conf.using()
    request = _Retention(older_than, failed_older_than)
    work = _Work(batch, dry_run, using)
    for due in _due(sequence, request, clock.now(using)):
        work.do(due)
    if not dry_run:
        limits.prune(using)
    return work.report


@dataclass(frozen=True, slots=True)
class _Retention:
    """How long runs are kept after they have ended. None: not set."""

    finished: timedelta | None = None
    failed: timedelta | None = None

    def or_else(self, other: _Retention) -> _Retention:
        """This retention, with the other one's values where it has none."""
        finished = other.finished if self.finished is None else self.finished
        return _Retention(finished, other.failed if self.failed is None else self.failed)

    def of(self, status: RunStatus) -> timedelta | None:
        """The retention of runs with this status; failed runs are never kept for less than
        others."""
        if status != RunStatus.FAILED:
            return self.finished
        return None if self.failed is None else max(self.failed, self.finished or self.failed)


def _due(sequence: str | None, request: _Retention, now: datetime) -> Iterator[Due]:
    """What to look for: sequences with the same retention together, and each final status
    separately."""
    usual = _Retention(conf.settings.retention, conf.settings.retention_failed)
    if sequence is not None:
        own = _own(registry.definition_of(sequence))
        only = frozenset(registry.names_of(sequence))
        yield from _ended(request.or_else(own).or_else(usual), now, only=only)
        return
    others: dict[_Retention, set[str]] = defaultdict(set)
    for cls in registry.all():
        definition = cls._definition
        if definition is not None and (own := _own(definition)) != _Retention():
            others[own].update((definition.label, *definition.aliases))
    for own, labels in others.items():
        yield from _ended(own.or_else(request).or_else(usual), now, only=frozenset(labels))
    rest: frozenset[str] = frozenset().union(*others.values())
    yield from _ended(request.or_else(usual), now, without=rest)


def _own(definition: Definition | None) -> _Retention:
    if definition is None:
        return _Retention()
    return _Retention(definition.retention, definition.retention_failed)


def _ended(
    retention: _Retention,
    now: datetime,
    *,
    only: frozenset[str] | None = None,
    without: frozenset[str] = frozenset(),
) -> Iterator[Due]:
    for status in (RunStatus.SUCCEEDED, RunStatus.CANCELLED, RunStatus.FAILED):
        period = retention.of(status)
        if period is not None and (before := _before(now, period)) is not None:
            yield Due(status, before, only, without)


def _before(now: datetime, period: timedelta) -> datetime | None:
    try:
        return now - period
    except OverflowError:  # forever
        return None


class _Work:
    """One pruning, batch after batch."""

    def __init__(self, batch: int, dry: bool, using: str) -> None:
        self.batch, self.dry, self.using = batch, dry, using
        self.report = Report()

    def do(self, due: Due) -> None:
        self.report.has_retention = True
        place = None
        while roots := pruning.due(due, place, self.batch, self.using):
            self.remove([pk for _, pk in roots], due)
            place = roots[-1]  # what is kept was already passed

    def remove(self, roots: list[UUID], due: Due) -> None:
        try:
            with locking.no_wait():  # a locked row of one tree must not keep the others
                removed = pruning.remove(roots, due, self.using, dry=self.dry)
        except pruning.TooMany:
            self.halve(roots, due)
            return
        except locking.Locked:
            if len(roots) == 1:
                self.report.remaining.append(Remaining(roots[0], TAKEN))
            else:
                self.halve(roots, due)
            return
        except (ProtectedError, RestrictedError, IntegrityError) as error:
            if len(roots) == 1:
                self.report.remaining.append(_remaining(roots[0], error))
            else:  # one of them must be kept, so try each of them alone
                self.halve(roots, due)
            return
        self.report.runs.update(removed.runs)
        self.report.trees += removed.trees
        self.report.remaining += [Remaining(pk, YOUNG) for pk in removed.young]
        self.report.remaining += [Remaining(pk, TAKEN) for pk in removed.busy]

    def halve(self, roots: list[UUID], due: Due) -> None:
        middle = len(roots) // 2
        self.remove(roots[:middle], due)
        self.remove(roots[middle:], due)


def _remaining(root: UUID, error: IntegrityError) -> Remaining:
    objects = getattr(error, "protected_objects", None)
    objects = getattr(error, "restricted_objects", None) if objects is None else objects
    if objects is None:
        return Remaining(root, f"{REFUSED}: {error}".strip())
    return Remaining(root, REFERRED_TO, Counter(type(row)._meta.label for row in objects))
