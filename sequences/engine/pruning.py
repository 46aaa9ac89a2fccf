"""Old runs are pruned: finished ones, whole trees of them, when their retention is over."""

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

#: Trees of one transaction; fewer, if they have many children.
TREES_PER_TRANSACTION = 500

#: Why a tree is kept.
YOUNG = "a child run has not finished, or finished too recently"
TAKEN = "it is being changed or pruned at the moment"
REFERRED_TO = "other objects of the project reference it"
REFUSED = "the database does not allow it"


@dataclass(frozen=True, slots=True)
class Remaining:
    """A tree that was due, and stays."""

    run: UUID
    why: str
    #: How many objects of the project's models keep it, by their labels.
    by: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What was pruned, or would be."""

    #: Runs of each sequence, children too.
    runs: Counter[str] = field(default_factory=Counter)
    #: Runs without a parent among them.
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
    """Remove the finished runs whose retention is over, with their children, batch by batch.

    ``older_than`` and ``failed_older_than`` take the place of the settings ``RETENTION`` and
    ``RETENTION_FAILED``. What the Meta of a sequence says goes before them, unless ``sequence``
    names it. Each batch commits by itself: it may be stopped at any time, and several may run
    at once. What foreign keys of the project's models keep is in the report.
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
    """How long runs are kept after their end. None: nothing is said."""

    finished: timedelta | None = None
    failed: timedelta | None = None

    def or_else(self, other: _Retention) -> _Retention:
        """What the other says where this one says nothing."""
        finished = other.finished if self.finished is None else self.finished
        return _Retention(finished, other.failed if self.failed is None else self.failed)

    def of(self, status: RunStatus) -> timedelta | None:
        """Of those that ended so; the failed ones never shorter than the others."""
        if status != RunStatus.FAILED:
            return self.finished
        return None if self.failed is None else max(self.failed, self.finished or self.failed)


def _due(sequence: str | None, request: _Retention, now: datetime) -> Iterator[Due]:
    """What to look for: sequences of one retention together, and each way to end by itself."""
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
    except OverflowError:  # for ever
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
            place = roots[-1]  # what stays is behind us

    def remove(self, roots: list[UUID], due: Due) -> None:
        try:
            with locking.no_wait():  # a row of one tree that somebody holds keeps no other
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
            else:  # one of them is kept, and then alone
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
