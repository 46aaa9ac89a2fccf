"""What a step did when, derived from its row: one rule for every kind, picture and table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ..definitions.kinds import traits_of
from ..models import StepRun, StepStatus, Wait

#: ``items`` and ``children``: those of the step are in progress, and it waits for them. ``held``:
#: it is on hold.
Kind = Literal["waited", "ran", "failed", "items", "children", "held"]
#: The phases in which something was in progress.
AT_WORK: tuple[Kind, ...] = ("ran", "failed", "items", "children")
_MEMBERS: dict[str, Kind] = {Wait.ITEMS: "items", Wait.CHILDREN: "children"}


@dataclass(frozen=True, slots=True)
class Phase:
    """A period in which a step waited or ran, or others worked for it."""

    kind: Kind
    begins: datetime
    #: None: it has not ended.
    ends: datetime | None = None

    def length(self, now: datetime) -> timedelta:
        """How long it took, or has taken so far."""
        return max((self.ends or now) - self.begins, timedelta(0))


def phases_of(
    row: StepRun, held_since: datetime | None = None, failed_at: datetime | None = None
) -> tuple[Phase, ...]:
    """The phases of a step, from the time when it was ready.

    A row knows its last attempt and its last wait; everything before that counts as one wait.
    ``failed_at``: when its latest attempt failed, if known.
    """
    return tuple(phase for phase in _Phases(row, held_since, failed_at) if _is_there(phase))


def _is_there(phase: Phase) -> bool:
    return phase.ends is None or phase.ends > phase.begins


class _Phases:
    def __init__(
        self, row: StepRun, held_since: datetime | None, failed_at: datetime | None
    ) -> None:
        self.row, self.held_since = row, held_since
        # Anything from before it was ready belongs to an earlier execution.
        self.started_at = self._of_this_turn(row.started_at)
        self.waiting_since = self._of_this_turn(row.waiting_since) if row.wait else None
        self.failed_at = failed_at if failed_at and self._is_after_start(failed_at) else None

    def __iter__(self) -> Iterator[Phase]:
        if traits_of(self.row.kind).takes_delivery:
            # No code of the project runs in it, and no worker works on it. An event that times out
            # is an attempt that fails, whose row is ready from that time on.
            return self._idle(min(self.row.ready_at, self.row.waiting_since or self.row.ready_at))
        if self.waiting_since is None:
            return self._attempt(self.row.ready_at)
        if self.started_at is None or self.started_at <= self.waiting_since:
            return self._until_wait(self.waiting_since)
        return self._after_wait(self.waiting_since)

    def _of_this_turn(self, moment: datetime | None) -> datetime | None:
        return moment if moment is not None and moment >= self.row.ready_at else None

    def _is_after_start(self, moment: datetime) -> bool:
        return self.started_at is not None and moment >= self.started_at

    def _until_wait(self, since: datetime) -> Iterator[Phase]:
        """An attempt that has started a wait, which is the last one that the row knows."""
        row, begins = self.row, self.row.ready_at
        has_run = row.wait in _MEMBERS or row.repeats or row.attempts
        if self.started_at is not None and has_run:
            yield Phase("waited", begins, self.started_at)
            begins = self.failed_at or since
            yield Phase("failed" if self.failed_at else "ran", self.started_at, begins)
        if row.wait not in _MEMBERS:
            yield from self._idle(begins)
            return
        yield Phase("waited", begins, since)
        is_released = row.status != StepStatus.WAITING and row.queued_at > since
        yield from self._members(since, row.queued_at if is_released else None)

    def _members(self, since: datetime, released_at: datetime | None) -> Iterator[Phase]:
        kind, ended_at = _MEMBERS[self.row.wait], self.row.finished_at
        if released_at is not None:
            yield Phase(kind, since, released_at)
            yield from self._idle(released_at)
        elif ended_at is None and self.held_since is not None:
            yield Phase(kind, since, self.held_since)
            yield Phase("held", max(since, self.held_since))
        else:
            yield Phase(kind, since, ended_at)

    def _after_wait(self, since: datetime) -> Iterator[Phase]:
        """The attempt after the wait, which collects the results of items or children."""
        if self.row.wait not in _MEMBERS or self.started_at is None:
            yield from self._attempt(self.row.ready_at)
            return
        released_at = self.row.queued_at
        if not since < released_at <= self.started_at:
            released_at = self.started_at
        yield Phase("waited", self.row.ready_at, since)
        yield Phase(_MEMBERS[self.row.wait], since, released_at)
        yield from self._attempt(released_at)

    def _attempt(self, begins: datetime) -> Iterator[Phase]:
        """A wait for a worker, and what is known of the attempt after it."""
        row, started_at = self.row, self.started_at
        if started_at is None:
            yield from self._idle(begins)
            return
        yield Phase("waited", begins, started_at)
        if row.status == StepStatus.RUNNING:
            yield Phase("ran", started_at)
            return
        ended_at = self._attempt_ended_at(started_at)
        has_failed = row.status == StepStatus.FAILED or self.failed_at == ended_at
        yield Phase("failed" if has_failed else "ran", started_at, ended_at)
        if ended_at != row.finished_at:
            yield from self._idle(ended_at)

    def _attempt_ended_at(self, started_at: datetime) -> datetime:
        """A row is queued again when its attempt ends, unless the step has ended."""
        row = self.row
        if row.status in (StepStatus.SUCCEEDED, StepStatus.FAILED) and row.finished_at:
            return row.finished_at
        if self.failed_at is not None:
            return self.failed_at
        if row.queued_at > started_at or row.finished_at is None:
            return max(row.queued_at, started_at)
        return row.finished_at

    def _idle(self, begins: datetime) -> Iterator[Phase]:
        """A wait in which nothing works; on hold from the time when its run stopped it."""
        ended_at = self.row.finished_at
        if ended_at is not None or self.held_since is None:
            yield Phase("waited", begins, ended_at)
            return
        yield Phase("waited", begins, self.held_since)
        yield Phase("held", max(begins, self.held_since))
