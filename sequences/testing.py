"""For tests: execute sequences in the caller's thread, without a worker or a broker.

The real engine executes them: with the same claims, commits and retries on the same tables.
Everything works in a plain `django.test.TestCase`; there, `run_sequence` and `drain` also send the
signals of `sequences.signals`, as if each of the engine's transactions had been committed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Any, TypeVar
from uuid import UUID

import dramatiq
from asgiref.sync import sync_to_async
from django.db.models import Min, Q, QuerySet
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.middleware import CurrentMessage, Middleware, Retries

from . import conf
from .definitions import registry
from .definitions.definition import Outcome
from .definitions.kinds import traits_of
from .engine import dispatcher, handoff, limits, subjects
from .engine import outbox as sending
from .engine import schedules as scheduling
from .engine.executor import StepExecution
from .flows import jobs
from .models import (
    UNFINISHED_STEP,
    LimitKey,
    PermitState,
    RunDeadline,
    RunStatus,
    Schedule,
    SequenceRun,
    StepFailure,
    StepRun,
    StepStatus,
    Wait,
)
from .sequence import Sequence
from .transitions import clock as database_clock
from .transitions import compensation, deadlines, notifications, plans, schedules
from .transitions import subjects as subject_rows
from .transitions.types import (
    WaitForChildren,
    WaitForEvent,
    WaitForItems,
    WaitForTime,
    dispatch_of,
)
from .worker.middleware import SequencesMiddleware

__all__ = [
    "Clock",
    "adrain",
    "arun_sequence",
    "assert_steps",
    "build",
    "clock",
    "drain",
    "isolate_sequences",
    "outbox",
    "run_sequence",
    "sync_schedules",
]

S = TypeVar("S", bound=Sequence[Any])

#: How many steps `drain` and `run_sequence` execute before they give up.
LIMIT = 10_000
RUN_LIMIT = 1_000


def run_sequence(cls: type[S], /, **data: Any) -> S:
    """Start a sequence and run it to its end: retries follow at once, and delays are skipped.

    Returns the sequence with its final run and data. If a step raises, this function does not: the
    run has failed, and `assert_steps` shows why. Raises AssertionError after a thousand steps,
    because the sequence probably never ends.
    """
    with dispatcher.capture_dispatches(), clock() as moving:
        sequence = cls.start(data)
        draining = _Draining(sequence.run, RUN_LIMIT)
        draining.go_on()
        while moving.move_to_next(sequence.run):
            draining.go_on()
    sequence.run.refresh_from_db(using=conf.using())
    sequence._hold(sequence.run.data)
    return sequence


def drain(limit: int = LIMIT) -> int:
    """Run every step that is due, and whatever becomes due meanwhile; return how many were run.

    Each attempt that succeeded, failed, was skipped by its ``when``, or is to be repeated counts as
    one. A step that only began to wait (for its delay, for a place under a limit, for an event, or
    for its items or child runs) does not count. A fan-out counts once, not once for each item.

    Retries follow at once, and so does the erasure of runs whose subject was deleted. Delays,
    deadlines and schedules follow the clock (see `clock`). Schedules written by `sync_schedules`
    start a run for each slot that has passed, one after the other, as if a worker had been running
    all the time. Raises AssertionError after ``limit`` steps.
    """
    with dispatcher.capture_dispatches():
        draining = _Draining(None, limit)
        draining.go_on()
        while _start_next_slot():
            draining.go_on()
        _erase_due()
        return draining.attempts


def _erase_due() -> None:
    """Erase the runs whose subjects were deleted."""
    for run_id in subject_rows.due(conf.using()):
        subjects.erase(run_id, conf.using())


async def arun_sequence(cls: type[S], /, **data: Any) -> S:
    """`run_sequence`, for asynchronous tests."""
    return await sync_to_async(run_sequence)(cls, **data)


async def adrain(limit: int = LIMIT) -> int:
    """`drain`, for asynchronous tests."""
    return await sync_to_async(drain)(limit)


def outbox() -> list[Message[Any]]:
    """The messages that `sequences.dispatch` has written and that have not been sent yet, in order.

    A `TestCase` never commits, so these are all messages that the code under test has dispatched.
    """
    return sending.unsent(conf.using())


def _start_next_slot() -> bool:
    """Handle the schedule that is due first, at its own time. False: none is due."""
    using = conf.using()
    now = database_clock.now(using)
    for row in schedules.upcoming(LIMIT, using):
        if row.wake_at is not None and row.wake_at <= now and scheduling.is_ours(row, now):
            scheduling.give_turn(row.pk, using, as_of=row.wake_at)
            return True
    return False


def sync_schedules(*classes: type[Sequence[Any]]) -> None:
    """Write the schedules that these sequences (or all) declare, as a worker does when it boots.

    Their first slots come after this moment, so call it before you move the clock.
    """
    using = conf.using()
    labels = {cls._definition.label for cls in classes if cls._definition is not None}
    for declaration in scheduling.declarations(using):
        if not classes or declaration.sequence in labels:
            schedules.declare(declaration, None, using)


class _Draining:
    """The execution of what is due: of this run and its children, or of all runs."""

    def __init__(self, run: SequenceRun | None, limit: int) -> None:
        self._run, self._limit, self._using = run, limit, conf.using()
        self._ending, self._signals = _Ending(), notifications.HeldSignals(self._using)
        self._broker = _InlineBroker(dramatiq.get_broker(), self._ending)
        #: How many step runs had their turn, whatever came of it: it must end some time.
        self._turns = 0
        #: How many attempts have ended.
        self.attempts = 0

    def go_on(self) -> None:
        """Execute until nothing is due any more."""
        due = _Due(self._run, self._using)
        self._signals.send()  # signals of the starts
        while (row := due.next()) is not None or self._expire():
            if row is None:
                continue  # its deadline has failed a run: run what that made ready
            if self._turns >= self._limit:  # not by assert, which python -O leaves out
                raise AssertionError(
                    f"The limit on steps has been reached, but step {row} of {row.run} is still "
                    "due. Does a step repeat forever? If not, call drain() with a higher limit."
                )
            due.add(self._execute(row))

    def _execute(self, row: StepRun) -> list[int]:
        """Return the rows that may be due now."""
        using, plan = self._using, plans.load(row.run.plan_id, self._using)
        if row.status == StepStatus.WAITING:
            # The clock may be a few milliseconds behind what the database shows.
            StepRun.objects.using(using).filter(pk=row.pk).update(wake_at=row.due_at)
        turn, self._ending.failed = handoff.Handoff(False, using), None
        with dispatcher.capture_dispatches() as dispatches:
            ready = handoff.process(dispatch_of(row, plan), self._broker, using, turn)
            self._signals.send()
        if not traits_of(row.kind).is_item:
            self._turns += 1
            self.attempts += self._ending.is_of(turn.execution)
        # Including the row itself: a failed attempt is retried at once.
        return [row.pk, *(made.step_run_id for made in [*ready, *dispatches])]

    def _expire(self) -> bool:
        """Fail the runs whose deadlines have passed. False: there were none."""
        using = self._using
        family = None if self._run is None else frozenset(_family(self._run, using))
        passed = [pk for pk in deadlines.due(using) if family is None or pk in family]
        for pk in passed:
            deadlines.expire(pk, using)
            self._signals.send()
        return bool(passed)


class _Ending(Middleware):
    """How the message of a step ended, which tells whether that was an attempt."""

    #: None: it was skipped, because nothing was claimed, or the step waits for a limit.
    failed: bool | None = None

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        """The message was not skipped."""
        self.failed = exception is not None

    def is_of(self, execution: StepExecution | None) -> bool:
        """Whether this execution was an attempt that has ended."""
        if self.failed is None or execution is None or execution.claim is None:
            return False
        if self.failed:
            return True
        change = execution.context.change
        return change is not None and not isinstance(change.conclusion, _WAITS)


#: What attempts conclude that only begin to wait.
_WAITS = WaitForTime | WaitForEvent | WaitForItems | WaitForChildren


class _Due:
    """The step runs that are due, oldest first: of this run and its children, or of all runs.

    Dispatches tell which steps became ready, so the table is queried only when no other step is
    left: each step costs the same, however many runs there are.
    """

    def __init__(self, run: SequenceRun | None, using: str) -> None:
        self._run, self._using = run, using
        self._family = frozenset[UUID]()
        self._ids: list[int] = []

    def add(self, ids: Iterable[int]) -> None:
        """Add rows that may be due now."""
        for pk in ids:
            heappush(self._ids, pk)

    def next(self) -> StepRun | None:
        """Return the next one. None: there is none."""
        while self._ids or self._look():
            row = self._ready().filter(pk=heappop(self._ids)).first()
            if row is not None and self._is_ours(row):
                return row
        return None

    def _look(self) -> bool:
        rows = self._ready()
        if self._run is not None:
            self._family = frozenset(_family(self._run, self._using))
            rows = rows.filter(run__in=self._family)
        self.add(
            rows.values_list("pk", flat=True)
            or _woken_parents(self._using)
            or _admitted(self._using)
        )
        return bool(self._ids)

    def _ready(self) -> QuerySet[StepRun]:
        rows = StepRun.objects.using(self._using).filter(wake_at__isnull=False)
        ready = Q(status__in=(StepStatus.QUEUED, StepStatus.RETRYING))
        due = Q(status=StepStatus.WAITING, due_at__lte=database_clock.now(self._using))
        return rows.filter(ready | due).select_related("run")

    def _is_ours(self, row: StepRun) -> bool:
        if self._run is None or row.run_id in self._family:
            return True
        self._family = frozenset(_family(self._run, self._using))
        return row.run_id in self._family


def _family(run: SequenceRun, using: str) -> list[UUID]:
    """The run, and all runs that its steps have started."""
    ids, newest = [run.pk], [run.pk]
    while newest:
        below = SequenceRun.objects.using(using).filter(parent__run__in=newest)
        newest = list(below.values_list("pk", flat=True))
        ids += newest
    return ids


def _woken_parents(using: str) -> list[int]:
    """Parents that wait for children that have ended: they are notified only after a commit."""
    rows = _parents(using)
    woken = [dispatch.step_run_id for row in rows for dispatch in compensation.look(row.pk, using)]
    # its deadline may have ended a run, which may be a child
    if not woken and _parents(using) != rows:
        return _woken_parents(using)
    return woken


def _admitted(using: str) -> list[int]:
    """Rows that now have a place under their limits: one may have been freed in a transaction of a
    test, which never commits."""
    due = [pk for pk, _ in _lines(using)]
    return [dispatch.step_run_id for pk in due for dispatch in limits.look(pk, using)]


def _lines(using: str) -> list[tuple[int, datetime | None]]:
    """The lines in which somebody is waiting, each with its next moment."""
    lines = LimitKey.objects.using(using).filter(permits__state=PermitState.WAITING)
    return list(lines.distinct().order_by("pk").values_list("pk", "next_at"))


def _parents(using: str) -> list[StepRun]:
    """The step runs that wait for their children, or for the rollback of their children."""
    rows = StepRun.objects.using(using).filter(wait=Wait.CHILDREN)
    ended = ~Q(status__in=UNFINISHED_STEP)
    waiting = rows.filter(Q(status=StepStatus.WAITING) | ended, wake_at__isnull=False)
    return list(waiting.order_by("pk"))


class _InlineBroker(Broker):
    """A broker with the project's actors, and the middleware that affects steps. Sends nothing."""

    def __init__(self, project: Broker, *more: Middleware) -> None:
        ours: list[Middleware] = [
            middleware
            for middleware in project.middleware
            if isinstance(middleware, SequencesMiddleware | Retries | CurrentMessage)
        ]
        super().__init__(middleware=[*ours, *more])
        self.actors = project.actors

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        self.emit_before("enqueue", message, delay)
        self.emit_after("enqueue", message, delay)
        return message


class Clock:
    """The engine's clock: the database's own, moved forward by a test."""

    def __init__(self) -> None:
        self._start = database_clock.moved()

    def move(self, by: timedelta) -> None:
        """Move the clock forward. Then call `drain` to run what has become due."""
        database_clock.move(by)

    def move_to_next(self, run: SequenceRun | Schedule) -> bool:
        """Move to the next due time of this run, or to the next slot of this schedule.

        Returns False if there is none.
        """
        using = conf.using()
        if isinstance(run, Schedule):
            row = schedules.read(run.pk, using)
            return row is not None and self._move_to(row.wake_at)
        family = _family(run, using)
        waiting = StepRun.objects.using(using).filter(
            run__in=family,
            status=StepStatus.WAITING,
            due_at__isnull=False,
            wake_at__isnull=False,
        )
        ends = RunDeadline.objects.using(using).filter(
            run__in=family, run__status__in=(RunStatus.RUNNING, RunStatus.PAUSED)
        )
        now = database_clock.now(using)
        moments = [rows.aggregate(next=Min("due_at"))["next"] for rows in (waiting, ends)]
        moments += [moment for _, moment in _lines(using) if moment and moment > now]
        return self._move_to(min(filter(None, moments), default=None))

    def _move_to(self, moment: datetime | None) -> bool:
        if moment is None:
            return False
        length = moment - database_clock.now(conf.using())
        database_clock.move(max(length, timedelta(0)) + timedelta(milliseconds=1))
        return True

    def restore(self) -> None:
        """Set the clock back to where it was when the test began."""
        database_clock.move(self._start - database_clock.moved())


@contextmanager
def clock() -> Iterator[Clock]:
    """Return a clock that can be moved inside the block. It is reset at the end."""
    moving = Clock()
    try:
        yield moving
    finally:
        moving.restore()


def build(cls: type[S], /, **data: Any) -> S:
    """Return an instance with this data, but without a row, to call the method of a single step."""
    definition = cls._definition
    data = {**deepcopy(definition.defaults if definition else {}), **data}
    data = data if cls._codec is None else cls._codec.admit(data, {})
    run = SequenceRun(sequence=definition.label if definition else "", data=data)
    SequenceRun.subject.keep(run, None)
    return cls._bind(data=data, attempt=1, context=_Alone(run))


class _Alone:
    """What a step that is called on its own can ask for."""

    idempotency_key = "test"
    cancelled = False
    final_status = ""

    def __init__(self, run: SequenceRun) -> None:
        self.run, self.step_run = run, StepRun()

    def once(self, name: str, call: Callable[[], Any]) -> Any:
        return call()

    async def aonce(self, name: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return await call()

    def result(self, name: str, default: Any) -> Any:
        return default

    def results(self, name: str) -> Iterator[Any]:
        return iter(())

    def outcomes(self, name: str) -> Iterator[Outcome]:
        return iter(())

    def failure(self) -> None:
        return None

    def raise_if_cancelled(self) -> None:
        pass

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        pass


@contextmanager
def isolate_sequences() -> Iterator[None]:
    """Forget the sequences and jobs declared inside, and their actors.

    A context manager and a decorator. A class whose module does not belong to an app needs
    ``app_label`` in its Meta.
    """
    broker = dramatiq.get_broker()
    actors = dict(broker.actors)
    try:
        with registry.isolated(), jobs.isolated():
            yield
    finally:
        broker.actors.clear()
        broker.actors.update(actors)


def assert_steps(run: SequenceRun | Sequence[Any], expected: Iterable[tuple[str, str]]) -> None:
    """Assert which steps the run has reached, in the order in which they became ready.

    ``assert_steps(sequence, [("charge", "succeeded"), ("ship", "failed")])``. The error shows the
    difference and the failed attempts.
    """
    row = run.run if isinstance(run, Sequence) else run
    using = conf.using()
    # Not through the run's related managers, which ask the router where to read.
    steps = StepRun.objects.using(using).filter(run=row.pk).order_by("pk")
    ledger = [(str(step), str(step.status)) for step in steps]
    entries = list(expected)
    failed = StepFailure.objects.using(using).filter(run=row.pk)
    failures = "\n".join(_failure_lines(failed))
    if ledger != entries:  # not an assert statement, which python -O removes
        raise AssertionError(
            f"The steps of run {row.pk} are\n  {ledger}\nExpected:\n  "
            f"{entries}\nFailures:\n{failures}"
        )


def _failure_lines(failures: Iterable[StepFailure]) -> Iterator[str]:
    """A line for each failed attempt; one for several in a row that differ only in their number."""
    series: list[list[StepFailure]] = []
    for failure in failures:
        if series and _continues(series[-1][-1], failure):
            series[-1].append(failure)
        else:
            series.append([failure])
    for first, *more in series:
        last = f" to #{more[-1].attempt}" if more else ""
        yield f"  {first.step} #{first.attempt}{last}: {first.error}: {first.message}"


def _continues(earlier: StepFailure, later: StepFailure) -> bool:
    same = all(
        getattr(earlier, name) == getattr(later, name)
        for name in ("step", "item", "error", "message")
    )
    return same and later.attempt == earlier.attempt + 1
