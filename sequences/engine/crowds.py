"""Items of a fan-out that wait in one thread: those of an `async def` with ``atomic=False``.

Each has its own claim, attempts and commit. Only their awaiting is concurrent, in one event loop;
everything that uses the database runs one after the other, in the thread of the message that
arrived. Atomic items cannot do this, because the thread has only one connection.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import dramatiq
from asgiref.sync import async_to_sync, sync_to_async
from dramatiq.middleware import SkipMessage

from .. import conf
from ..definitions.kinds import traits_of
from ..definitions.steps import Step, code_of
from ..transitions import claims
from ..transitions.types import Dispatch
from ..utils.text import raises_printable
from . import current, dispatcher, handoff, interrupts
from .coroutines import Awaiting
from .executor import StepExecution
from .hooks import DirectBroker
from .interrupts import Terms

#: The number of items that wait in one thread if their step sets no `concurrency`.
DEFAULT_CONCURRENCY = 100


def is_for(step: Step[Any]) -> bool:
    """Whether the items of this step can wait together."""
    is_async = inspect.iscoroutinefunction(code_of(step.function))
    return step.traits.has_items and not step.atomic and is_async


@raises_printable
def perform(step_run_id: int, step: Step[Any], is_direct: bool) -> None:
    """What the actor of such a fan-out does with a message: run its item, and others with it."""
    using = conf.using()
    interrupts.ensure_clean_connection(using)
    row = claims.find(step_run_id, using)
    if row is None or not traits_of(row.kind).is_item:
        handoff.perform(step_run_id, is_direct)
        return
    size = step.concurrency or DEFAULT_CONCURRENCY
    crowd = Crowd(row.run_id, row.step, size, interrupts.take_over(), using)
    async_to_sync(crowd.run)(WaitingExecution(step_run_id, current.failed_attempts(), using))


class WaitingExecution(StepExecution):
    """An execution in two parts, with what it awaits in between."""

    # a Step; as a class attribute of that type, it would return its bound method
    _entered: Any = None
    _error: BaseException | None = None

    def begin(self, terms: Terms) -> Awaiting | None:
        """Claim it, and call the user's code. None: there is nothing to await."""
        try:
            super()._claim()
        except BaseException:
            self.leave_place()  # `live` is only the second part
            raise
        if not traits_of(self.context.claim.kind).is_item:
            return None  # the fan-out's own row, which has only the second part
        try:
            self._entered = super()._enter()
            coroutine = self.context.begin(self._entered)
        except Exception as error:
            self._error = error
            return None
        self.context.awaiting = Awaiting(self.context, coroutine, terms)
        return self.context.awaiting

    def _enter(self) -> Step[Any]:
        if self._error is not None:
            raise self._error
        step: Step[Any] = self._entered or super()._enter()
        return step

    def _claim(self) -> None:
        """Do nothing: it was claimed in the first part."""


class Turn(handoff.Handoff):
    """The second part of an execution, with a message of its own."""

    def execution_of(self, dispatch: Dispatch) -> StepExecution:
        """The execution already exists."""
        assert self.execution is not None
        return self.execution


class Crowd:
    """The items of one fan-out that one thread is executing."""

    def __init__(self, run_id: UUID, step: str, size: int, terms: Terms, using: str) -> None:
        self._run_id, self._step, self._using = run_id, step, using
        self._size, self._terms = size, terms
        self._until = time.monotonic() + handoff.MAX_TURN_SECONDS
        self._tasks: set[asyncio.Task[list[Dispatch]]] = set()

    async def run(self, first: WaitingExecution) -> None:
        """Run until the last item has ended; other items may join while there is time."""
        self._add([first])
        self._add(await sync_to_async(self._queued)(first.step_run_id))
        errors: list[BaseException] = []
        while self._tasks:
            done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            errors += [error for task in done if (error := task.exception()) is not None]
            ready = [each for task in done if not task.exception() for each in task.result()]
            self._add(await sync_to_async(self._go_on)(ready))
        if errors:
            raise errors[0]

    def _add(self, executions: Iterable[WaitingExecution]) -> None:
        self._tasks |= {asyncio.create_task(self._live(each)) for each in executions}

    def _queued(self, first: int) -> list[WaitingExecution]:
        """Items whose messages are on their way; those messages will find nothing to claim."""
        rows = claims.queued_items(self._run_id, self._step, self._size, self._using)
        others = [row for row in rows if row[0] != first][: self._size - 1]
        return [WaitingExecution(*row, self._using) for row in others]

    def _go_on(self, ready: list[Dispatch]) -> list[WaitingExecution]:
        """Execute ready items here as far as there is room; dispatch the rest."""
        is_over = current.stopping.is_set() or time.monotonic() > self._until
        room = 0 if is_over else self._size - len(self._tasks)
        ours = [each for each in ready if each.run_id == self._run_id and each.delay is None]
        ours = [each for each in ours if each.actor.endswith(f".{self._step}")][:room]
        dispatcher.send([each for each in ready if each not in ours])
        return [WaitingExecution(each.step_run_id, each.attempts, self._using) for each in ours]

    async def _live(self, execution: WaitingExecution) -> list[Dispatch]:
        try:
            awaiting = await sync_to_async(execution.begin)(self._terms)
        except SkipMessage:
            return []
        # Its lease must also be extended while it waits for its turn in the thread.
        with current.executing(execution.context):
            if awaiting is not None:
                await awaiting.run()
            return await sync_to_async(self._end)(execution)

    def _end(self, execution: WaitingExecution) -> list[Dispatch]:
        claim = execution.context.claim
        node = execution.context.plan.node(claim.step)
        dispatch = Dispatch(
            claim.step_run_id, claim.run_id, node.actor, node.queue, claim.attempts,
            options=node.options,
        )  # fmt: skip
        return handoff.process(
            dispatch, DirectBroker(dramatiq.get_broker()), self._using,
            Turn(False, self._using, execution),
        )  # fmt: skip
