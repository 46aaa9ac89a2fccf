"""The periodic check: timers, expired leases, lost messages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from .. import conf
from ..definitions import registry
from ..definitions.plan import Plan
from ..engine import current, dispatcher, kinds, outages, outbox, subjects
from ..engine.executor import unknown_step
from ..engine.limits import look, store_declared
from ..models import StepRun
from ..transitions import deadlines, due, failures, limits, locking, plans
from ..transitions import subjects as subject_rows
from ..transitions.types import Dispatch
from . import queue_monitor
from .registration import WorkerRegistration, close_all
from .scheduler import AtOnce, Scheduler

logger = logging.getLogger("sequences")


#: The number of batches per sweep. The next sweep handles what is left.
MAX_BATCHES_PER_SWEEP = 50

NOT_EXPIRED = "The sweep could not mark run %s as failed after its deadline."
NOT_ERASED = "The sweep could not erase run %s, whose subject was deleted."

T = TypeVar("T")


class LossDetector(Protocol):
    """Decides whether the message of a queued step run is lost."""

    def is_message_lost(self, queue: str, queued_at: datetime, now: datetime) -> bool | None: ...
    def knows(self, actor: str) -> bool: ...
    def look(self) -> None: ...


class AssumeLost:
    """For a sweep outside a worker, which sees no queues: an overdue message counts as lost.

    It resends with increasing pauses of up to five minutes, so that a long queue gets few
    duplicates.
    """

    def is_message_lost(self, queue: str, queued_at: datetime, now: datetime) -> bool:
        """Always true."""
        return True

    def knows(self, actor: str) -> bool:
        """Always false."""
        return False

    def look(self) -> None:
        """Nothing to do."""


def sweep(evidence: LossDetector, using: str) -> int:
    """Handle everything that is due; return how many messages the broker accepted.

    It waits for no lock: a row that is locked by another transaction, or whose run is, stays due
    for the next sweep. An error with one row does not affect others.
    """
    sent, place = 0, None
    for _ in range(MAX_BATCHES_PER_SWEEP):
        batch = due.take(evidence.is_message_lost, using, knows=evidence.knows, after=place)
        # First what needs no more queries, so that nothing delays its message.
        sent += _dispatch(_known_dispatches(batch, using), using)
        for row in batch.expired:
            sent += _dispatch(_look_after(row, failures.reap, batch, using), using)
        for row in batch.waiting:
            sent += _dispatch(_look_after(row, _look, batch, using), using)
        if (place := batch.more) is None:
            break
    for run_id in deadlines.due(using):
        expired = _give_turn(deadlines.expire, deadlines.put_off, NOT_EXPIRED, run_id, using)
        sent += _dispatch(expired or [], using)
    for run_id in subject_rows.due(using):
        _give_turn(subjects.erase, subject_rows.put_off, NOT_ERASED, run_id, using)
    return sent + _look_at_lines(using) + _look_at_outbox(using)


def _look_at_outbox(using: str) -> int:
    """Messages of actors with a delay, and those whose process died before it sent them."""
    with suppress(locking.Locked), locking.no_wait():
        return outbox.send_due(using)
    return 0


def _look_at_lines(using: str) -> int:
    """Steps that wait for a limit: whoever had to pass on a place may have died."""
    sent = 0
    for line in limits.due(using):
        with suppress(locking.Locked), locking.no_wait():
            sent += _dispatch(look(line, using), using)
    return sent


def _give_turn(
    act: Callable[[UUID, str], T],
    put_off: Callable[[UUID, str], None],
    problem: str,
    run_id: UUID,
    using: str,
) -> T | None:
    """Handle what is due for this run. If it is locked, the next sweep does it."""
    try:
        with locking.no_wait():
            return act(run_id, using)
    except locking.Locked:
        return None
    except Exception as error:
        if outages.is_away(error, using):
            raise
        logger.exception(problem, run_id)
        put_off(run_id, using)
        return None


def _dispatch(dispatches: list[Dispatch], using: str) -> int:
    accepted = dispatcher.send(dispatches)
    if accepted:
        due.accepted([each.step_run_id for each in accepted], using)
    return len(accepted)


def _known_dispatches(batch: due.Due, using: str) -> list[Dispatch]:
    """The dispatches of all steps except those that no release knows any more."""
    pairs = zip(batch.rows, batch.dispatches, strict=True)
    return [
        each
        for row, dispatch in pairs
        for each in _look_after(row, partial(_unless_unknown, dispatch), batch, using)
    ]


def _unless_unknown(dispatch: Dispatch, row: StepRun, using: str) -> list[Dispatch]:
    return [] if _fails_as_unknown(row, using) else [dispatch]


def _look_after(
    row: StepRun, act: Callable[[StepRun, str], list[Dispatch]], batch: due.Due, using: str
) -> list[Dispatch]:
    try:
        with locking.no_wait():
            return act(row, using)
    except locking.Locked:
        if row.wake_at != batch.times[row.pk]:
            due.put_back(row, batch.times[row.pk], using)
    except Exception as error:
        if outages.is_away(error, using):
            raise
        logger.exception(
            "The sweep could not handle step %s of run %s; it will try again later.",
            row.step, row.run_id,
        )  # fmt: skip
        due.put_off(row, using)
    return []


def _look(row: StepRun, using: str) -> list[Dispatch]:
    return kinds.kind_of(row.kind).look(row, using)


def _fails_as_unknown(row: StepRun, using: str) -> bool:
    """Fail a step that this release has removed; a step of a later release waits for its worker.

    The ids of the plans, which grow with the releases, tell which it is.
    """
    definition = registry.definition_of(row.run.sequence)
    if definition is None or definition.step(row.step) is not None:
        return False
    if registry.is_inline(row.run.sequence):  # its definition is stored with its plan
        return False
    own, _ = plans.store_now(definition.plan, using)
    if own < row.run.plan_id:
        return False
    failures.fail_unknown(row, unknown_step(definition, row.step), using)
    return True


def store_plans(using: str) -> bool:
    """Write this release's plans, whose ids tell its age, and the numbers of its limits.

    False: not all of them could be written yet.
    """
    declared = [cls._definition.plan for cls in registry.all() if cls._definition is not None]
    missing = [plan for plan in declared if not _stores(plan, using)]
    store_declared(using)
    return not missing


def _stores(plan: Plan, using: str) -> bool:
    try:
        with locking.no_wait():
            plans.store(plan, using)
    except locking.Locked:  # by the first start of this release, which has not committed yet
        return False
    return True


class Sweeper(threading.Thread):
    """Sweeps in a worker process until it is stopped."""

    def __init__(
        self, monitor: LossDetector, interval: float, registration: WorkerRegistration | None = None
    ) -> None:
        super().__init__(name="sequences-sweep", daemon=True)
        self._monitor, self._interval = monitor, interval
        self._registration = registration or WorkerRegistration()
        self._stopped = threading.Event()
        self._scheduler = Scheduler()
        #: The number of seconds until a schedule is due, if that is before the next sweep.
        self._due_in: float | None = None

    def run(self) -> None:
        failed = 0
        self._stored = False
        # At once: otherwise, a plan that a later release stores meanwhile would look older than
        # ours.
        self._succeeds(self._store_plans)
        self._succeeds(self._look_around)
        sweep_at = time.monotonic() + self._interval
        while not self._stopped.wait(self._pause_until(sweep_at)):
            if time.monotonic() >= sweep_at:
                failed = 0 if self._succeeds(self._sweep) else failed + 1
                sweep_at = time.monotonic() + self._interval * min(2**failed, 30)
            if not failed:
                self._succeeds(self._look_at_schedules)
        close_all()

    def _pause_until(self, sweep_at: float) -> float:
        pause = max(sweep_at - time.monotonic(), 0)
        return pause if self._due_in is None else min(pause, self._due_in)

    def _look_at_schedules(self) -> None:
        self._due_in = None  # even if the check fails
        self._due_in = self._scheduler.look(conf.using(), within=self._interval)

    def _look_around(self) -> None:
        # A worker cannot say that a message is lost before it has seen its queue: a sweep now would
        # postpone overdue rows, each by the time that it has already waited.
        until = time.monotonic() + queue_monitor.DRAINED_AFTER_SECONDS
        self._monitor.look()
        self._succeeds(self._look_at_schedules)
        while time.monotonic() < until and not self._stopped.wait(
            self._pause_until(time.monotonic() + self._interval)
        ):
            self._monitor.look()
            self._succeeds(self._look_at_schedules)

    def _succeeds(self, part: Callable[[], None]) -> bool:
        try:
            part()
        # a receiver of a signal may call sys.exit(), but the sweep must continue
        except BaseException as error:
            if not outages.noted(error):
                logger.exception("The sweep failed; it will be tried again.")
            close_all()
            return False
        return True

    def _sweep(self) -> None:
        self._monitor.look()
        sweep(self._monitor, conf.using())
        outages.over()
        self._registration.swept()
        self._store_plans()

    def _store_plans(self) -> None:
        if not self._stored:
            self._stored = store_plans(conf.using())

    def stop(self) -> None:
        """Stop sweeping, and wait for the sweep in progress."""
        self._stopped.set()
        self._scheduler.stop()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=5)


def once() -> int:
    """Sweep once, as from cron; return how many messages the broker accepted."""
    sent = sweep(AssumeLost(), conf.using())
    Scheduler(AtOnce()).look(conf.using())
    # One row for all of them: the next sweep is another process.
    registration = WorkerRegistration(name=f"{current.host()}:sweep")
    registration.swept()
    registration.beat(conf.using())
    return sent


def run_forever(interval: float) -> None:
    """Sweep in this thread, for the command."""
    registration, scheduler = WorkerRegistration(), Scheduler(AtOnce())
    try:
        while True:
            sweep(AssumeLost(), conf.using())
            scheduler.look(conf.using())
            registration.swept()
            registration.beat(conf.using())
            time.sleep(interval)
    finally:
        registration.end(conf.using())
