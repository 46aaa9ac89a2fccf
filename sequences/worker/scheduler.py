"""Schedules in a process that sweeps: who is due is looked up, and each turn is taken apart.

What a turn calls is users' code: a function that makes data, receivers of signals. It may hang, so
a few threads of its own take the turns, and the sweep goes on. A turn that hangs is that of its
schedule only: its thread no longer counts, and another one takes the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from .. import conf
from ..engine import outages
from ..engine.schedules import give_turn, is_ours, sync
from ..models import Schedule
from ..transitions import clock, schedules
from .registration import close_all

logger = logging.getLogger("sequences")

#: Schedules that one look reads.
SCHEDULES_PER_LOOK = 500
#: Slots that one turn starts, if so many are due: others have their turns, too.
MAX_SLOTS = 50
#: Seconds until the next look after a turn was given: the slot after it may be due soon.
SOON_SECONDS = 0.1
#: Turns that are taken at once.
THREADS = 4
#: Seconds after which a turn counts as hanging.
HANGS_AFTER_SECONDS = 30.0
#: Seconds between two looks at what the code declares.
SYNC_INTERVAL_SECONDS = 20.0


class Turns:
    """The threads that take turns, as many as there is to do, for as long as there is."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        #: The turns in hand, and since when each is taken.
        self._in_hand: dict[int, float] = {}
        self._hanging: set[int] = set()
        self._threads = 0
        self._stopped = False

    def add(self, pk: int) -> None:
        """Take the turn of this schedule, unless that is in hand already."""
        with self._lock:
            if self._stopped or pk in self._in_hand or pk in self._waiting:
                return
            self._waiting.append(pk)
            if self._threads - len(self._hanging) < THREADS:
                self._threads += 1
                threading.Thread(target=self._run, name="sequences-schedules", daemon=True).start()

    def stop(self) -> None:
        """Take no more, and wait a moment for those in hand."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
        until = time.monotonic() + 2
        while self._in_hand and time.monotonic() < until:
            time.sleep(0.02)

    def note_hanging(self) -> None:
        """Count the threads no more whose turn takes too long."""
        now = time.monotonic()
        with self._lock:
            hanging = [pk for pk, at in self._in_hand.items() if now - at > HANGS_AFTER_SECONDS]
            for pk in set(hanging) - self._hanging:
                self._hanging.add(pk)
                logger.error(
                    "Schedule %d has been starting its run for %.0f s: does the function that "
                    "makes its data hang? This process skips the schedule until the function "
                    "returns.",
                    pk, HANGS_AFTER_SECONDS,
                )  # fmt: skip

    def _run(self) -> None:
        while (pk := self._next()) is not None:
            try:
                self._take(pk)
            except BaseException as error:  # the others have their turns
                if not outages.noted(error):
                    logger.exception("Could not process schedule %d.", pk)
            finally:
                close_all()
                self._done(pk)

    def _next(self) -> int | None:
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return None
            pk = self._waiting.popleft()
            self._in_hand[pk] = time.monotonic()
            return pk

    def _done(self, pk: int) -> None:
        with self._lock:
            del self._in_hand[pk]
            self._hanging.discard(pk)


class TakesTurns(Protocol):
    """What takes the turn of a schedule, and must raise nothing."""

    def add(self, pk: int, /) -> None: ...
    def note_hanging(self) -> None: ...
    def stop(self) -> None: ...


class AtOnce:
    """Takes each turn in the thread that looks: for a sweep outside of a worker."""

    def add(self, pk: int) -> None:
        """Take it, and those of its other slots that are due."""
        for _ in range(MAX_SLOTS):
            if give_turn(pk, conf.using()) is None:
                break

    def note_hanging(self) -> None:
        """Nobody could."""

    def stop(self) -> None:
        """There is nothing in hand."""


class Scheduler:
    """Of one process: it syncs what the code declares, and gives turns."""

    def __init__(self, turns: TakesTurns | None = None) -> None:
        self._turns = turns or Turns(AtOnce().add)
        self._synced: float | None = None
        #: The turns that the last look has given: whose, and when each was due.
        self._last_turns: set[tuple[int, datetime | None]] = set()

    def look(self, using: str, within: float = 0) -> float | None:
        """Give the due their turns. Returns in how many seconds the next is due, if within these.

        Without schedules it is one query.
        """
        self._turns.note_hanging()
        self._sync(using)
        rows = schedules.upcoming(SCHEDULES_PER_LOOK, using)
        if not rows:
            return None
        now = clock.now(using)
        due = [row for row in rows if _seconds_until(row, now) <= 0 and is_ours(row, now)]
        for row in due:
            self._turns.add(row.pk)
        # One that somebody has locked stays due, and is no reason for another look.
        before, self._last_turns = self._last_turns, {(row.pk, row.wake_at) for row in due}
        soon = [SOON_SECONDS] if self._last_turns - before else []
        waits = [wait for row in rows if (wait := _seconds_until(row, now)) > 0]
        wait = min([*soon, *waits[:1]], default=within)
        return wait if wait < within else None

    def stop(self) -> None:
        """Give no more turns."""
        self._turns.stop()

    def _sync(self, using: str) -> None:
        now = time.monotonic()
        if self._synced is None or now - self._synced >= SYNC_INTERVAL_SECONDS:
            sync(using)
            self._synced = now


def _seconds_until(row: Schedule, now: datetime) -> float:
    return 0.0 if row.wake_at is None else (row.wake_at - now).total_seconds()
