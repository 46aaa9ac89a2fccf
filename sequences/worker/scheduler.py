"""Schedules in a process that sweeps: finds those that are due, and handles each separately.

Handling one calls users' code: a function that makes data, receivers of signals. That code may
hang, so a few separate threads do this, and the sweep continues. A schedule that hangs affects only
itself: its thread no longer counts, and another thread handles the others.
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
from ..transitions.schedules import Declaration
from ..utils.durations import format_seconds
from .registration import close_all

logger = logging.getLogger("sequences")

#: The number of schedules read at once.
SCHEDULES_PER_LOOK = 500
#: The number of slots started before other schedules get their turn.
MAX_SLOTS = 50
#: Seconds until the next check after a slot was handled: the next one may be due soon.
SOON_SECONDS = 0.1
#: The number of schedules handled at once.
THREADS = 4
#: The number of seconds after which a schedule counts as hanging.
HANGS_AFTER_SECONDS = 30.0
#: Seconds between two checks of what the code declares.
SYNC_INTERVAL_SECONDS = 20.0


class Turns:
    """Threads that handle schedules: as many as needed, for as long as they are needed."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        #: The schedules being handled, and since when.
        self._in_hand: dict[int, float] = {}
        self._hanging: set[int] = set()
        self._threads = 0
        self._stopped = False

    def add(self, pk: int) -> None:
        """Handle this schedule, unless that is being done already."""
        with self._lock:
            if self._stopped or pk in self._in_hand or pk in self._waiting:
                return
            self._waiting.append(pk)
            if self._threads - len(self._hanging) < THREADS:
                self._threads += 1
                threading.Thread(target=self._run, name="sequences-schedules", daemon=True).start()

    def stop(self) -> None:
        """Accept no more, and wait a moment for those in progress."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
        until = time.monotonic() + 2
        while self._in_hand and time.monotonic() < until:
            time.sleep(0.02)

    def note_hanging(self) -> None:
        """Stop counting the threads that take too long."""
        now = time.monotonic()
        with self._lock:
            hanging = [pk for pk, at in self._in_hand.items() if now - at > HANGS_AFTER_SECONDS]
            for pk in set(hanging) - self._hanging:
                self._hanging.add(pk)
                logger.error(
                    "Schedule %d has been starting its run for %s: is its data function "
                    "stuck? This process skips the schedule until the function returns.",
                    pk, format_seconds(HANGS_AFTER_SECONDS),
                )  # fmt: skip

    def _run(self) -> None:
        while (pk := self._next()) is not None:
            try:
                self._take(pk)
            except BaseException as error:  # the others must be handled
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
    """Handles the slot of a schedule; must not raise."""

    def add(self, pk: int, /) -> None: ...
    def note_hanging(self) -> None: ...
    def stop(self) -> None: ...


class AtOnce:
    """Handles each schedule in the calling thread: for a sweep outside a worker."""

    def add(self, pk: int) -> None:
        """Handle it, with all of its slots that are due."""
        for _ in range(MAX_SLOTS):
            if give_turn(pk, conf.using()) is None:
                break

    def note_hanging(self) -> None:
        """Nothing to do: it does not use threads."""

    def stop(self) -> None:
        """Nothing to do: nothing is in progress."""


class Scheduler:
    """The scheduler of one process: syncs what the code declares, and handles what is due."""

    def __init__(self, turns: TakesTurns | None = None) -> None:
        self._turns = turns or Turns(AtOnce().add)
        self._synced: float | None = None
        #: The declarations that did not apply at the last sync, which the log has named.
        self._hidden: set[Declaration] = set()
        #: What the last check handled: which schedules, and when each was due.
        self._last_turns: set[tuple[int, datetime | None]] = set()

    def look(self, using: str, within: float = 0) -> float | None:
        """Handle what is due. Returns in how many seconds the next one is due, if within this time.

        Without schedules, this is one query.
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
        # A locked schedule stays due, and is no reason to check again soon.
        before, self._last_turns = self._last_turns, {(row.pk, row.wake_at) for row in due}
        soon = [SOON_SECONDS] if self._last_turns - before else []
        waits = [wait for row in rows if (wait := _seconds_until(row, now)) > 0]
        wait = min([*soon, *waits[:1]], default=within)
        return wait if wait < within else None

    def stop(self) -> None:
        """Handle no more schedules."""
        self._turns.stop()

    def _sync(self, using: str) -> None:
        now = time.monotonic()
        if self._synced is None or now - self._synced >= SYNC_INTERVAL_SECONDS:
            hidden = sync(using)
            for declaration in hidden - self._hidden:
                logger.warning(
                    "Schedule %s in the code starts no runs: a schedule with this "
                    "name was created at run time. Remove that one, or rename one of the two.",
                    declaration,
                )
            self._hidden, self._synced = hidden, now


def _seconds_until(row: Schedule, now: datetime) -> float:
    return 0.0 if row.wake_at is None else (row.wake_at - now).total_seconds()
