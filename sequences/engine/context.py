"""The execution of an attempt: the instance that the user's code gets, and what it can ask for.

Everything happens in the step's own claim and transaction. The result is a `Change` to commit. What
an attempt does depends on the step's kind: see `kinds`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import Error, connections
from django.utils import timezone

from .. import conf
from ..data import serialization, typed
from ..definitions.definition import Failure, Outcome
from ..definitions.plan import Node, Plan
from ..definitions.steps import FIRST_MOMENT, LAST_MOMENT, Step
from ..exceptions import Abort, Cancelled, InvalidData, UnknownStep, did_you_mean
from ..models import NO_ITEM, SequenceRun, StepRun, StepStatus
from ..transitions import calls, compensation, failures
from ..transitions.backends import backend_of
from ..transitions.types import (
    Change,
    Claim,
    Conclusion,
    Dispatch,
    Offer,
    Skipped,
    WaitForTime,
)
from . import coroutines, interrupts, kinds, leases
from .current import CurrentAttempt
from .kinds.base import Kind
from .recovery import FATAL

#: The column's length: characters in the name of a durable call.
MAX_CALL_NAME = 100


@dataclass(kw_only=True, repr=False)
class ExecutionContext(CurrentAttempt):
    """A claimed step during its execution: what it does, and what its ``self`` can ask for."""

    using: str
    kind: Kind
    #: The plan of its run.
    plan: Plan
    #: How to claim the next step, if this worker would execute it itself.
    offer: Offer | None = None
    #: The result of its coroutine, if that was already awaited elsewhere.
    awaiting: coroutines.Awaiting | None = None
    #: What to check after the commit, in a transaction of its own.
    after_commit: Callable[[], list[Dispatch]] | None = None
    #: The stored results of durable calls in earlier attempts; None: not read yet.
    _calls: dict[str, Any] | None = None
    _called: set[str] = field(default_factory=set)

    def execute(self, step: Step[Any]) -> None:
        """Run the step on an instance of its own; `change` is what it wants to commit."""
        if self.awaiting is None:
            self._bind_to(step)
        try:
            conclusion = self.kind.perform(self, step)
        except interrupts.Interrupt:
            raise
        except BaseException as error:
            # Otherwise, the record of this failure would be part of that transaction.
            if self._has_open_transaction():
                interrupts.leave_open_transactions(self._depth, error, self.using)
            if not isinstance(error, FATAL) and connections[self.using].closed_in_transaction:
                raise self._closed() from error
            raise
        interrupts.disable_interrupts()
        if self._has_open_transaction():
            raise self._left_open()
        if connections[self.using].closed_in_transaction:
            raise self._closed()
        self.change = self._collect_changes(conclusion)

    def _bind_to(self, step: Step[Any]) -> None:
        self._depth, self._step = _depth(self.using), step
        self._autocommit = connections[self.using].autocommit
        self.bind()

    def _has_open_transaction(self) -> bool:
        """Whether the user's code has left a transaction open, which would hold our commit."""
        connection: Any = connections[self.using]
        if connection.connection is None:
            return False
        if _depth(self.using) > self._depth or self._autocommit > connection.autocommit:
            return True
        # With autocommit, only a BEGIN that was sent as text opens one.
        return connection.autocommit and backend_of(self.using).is_in_transaction(connection)

    def begin(self, step: Step[Any]) -> Any:
        """Start an item; return its coroutine, to be awaited elsewhere."""
        self._bind_to(step)
        return step.perform(self.sequence, self.claim.payload)

    def call(self, step: Step[Any], *arguments: Any) -> Any:
        """Run the user's code and return its result; awaits a coroutine unless that was already
        done."""
        if self.awaiting is not None:
            return self.awaiting.outcome()
        returned = step.perform(self.sequence, *arguments)
        if isinstance(returned, Coroutine):
            return coroutines.finish(self, returned)
        return returned

    def bind(self) -> None:
        """Build the instance for the user's code."""
        assert self.definition is not None
        data, codec = self.claim.data, self.definition.cls._codec
        self.before: dict[str, Any] = json.loads(data)
        self.stored = None if codec is None else typed.Stored(codec, data)
        self.sequence = self.definition.cls._bind(
            data=self.stored or json.loads(data),
            attempt=self.claim.attempts + 1,
            context=self,
        )

    def _closed(self) -> Abort:
        """A step that closes the connection of its own transaction would do so on each attempt."""
        return Abort(
            f"Step {self.claim.step!r} closed the database connection inside its own "
            "transaction, so everything it wrote was rolled back. Remove "
            "close_old_connections(), connection.close() or connections.close_all(): "
            "workers manage their connections between steps. Or declare the step with "
            "atomic=False."
        )

    def _left_open(self) -> Abort:
        """A step that does not end its transaction would not end it on any attempt."""
        abort = Abort(
            f"Step {self.claim.step!r} left a database transaction open, so everything in it was "
            "rolled back: the step's own commit would have been part of it. End every transaction "
            "that the step begins: use `with transaction.atomic():`, turn autocommit on again "
            "after set_autocommit(False), and send no BEGIN without a COMMIT."
        )
        interrupts.leave_open_transactions(self._depth, abort, self.using)
        return abort

    def put_off(self, step: Step[Any]) -> Conclusion | None:
        """Evaluate its own delay, then `when`. None: the step runs now."""
        if step.delay is not None and not self.claim.delay_evaluated:
            due = self._due(step.delay)
            if due > self.claim.now or step.limits:
                # Only the commit of this wait records that the delay was evaluated: an attempt that
                # fails before it, or is replayed, must still evaluate the delay.
                return WaitForTime(due)
            self.claim.delay_evaluated = True
        if step.when is not None and not step.when(self.sequence):
            return Skipped()
        return None

    def _collect_changes(self, conclusion: Conclusion) -> Change:
        """Add `data` as the step left it, and its latest progress."""
        after, text = serialization.normalise(self._data_after(), **conf.settings.as_json)
        if serialization.same(self.before, after):
            return Change(conclusion, progress=self.latest_progress)
        return Change(conclusion, text, self.before, after, self.latest_progress)

    def _data_after(self) -> dict[str, Any]:
        """The `data` that the step left, almost as JSON."""
        if self.stored is not None:
            # Typed data that was never read is not in the instance.
            left = vars(self.sequence).get("data", self.stored)
            return self.before if left is self.stored else self.stored.after(left)
        data = self.sequence.data
        if not isinstance(data, dict):
            raise InvalidData(
                path="data",
                problem=f"is of type {type(data).__name__}, not a dict",
                hint="Change values in self.data; do not replace self.data with another object.",
            )
        return data

    @property
    def json(self) -> dict[str, Any]:
        """`data` as JSON, for options that name a key of it."""
        return self.sequence.data if self.stored is None else self.stored.baseline

    def copy(self, name: str, value: Any) -> None:
        """A result from outside is also copied into `data`, unless a type decides what is in
        there."""
        if self.stored is None:
            self.sequence.data[name] = value

    def _due(self, delay: Any) -> datetime:
        value = delay(self.sequence) if callable(delay) else delay
        out_of_range = "the date is out of range"
        try:
            due = _moment(value, self.claim.first_due)
        except OverflowError:
            raise self._invalid_delay(value, out_of_range) from None
        if due is not None and not FIRST_MOMENT <= due <= LAST_MOMENT:
            raise self._invalid_delay(value, out_of_range)
        if due is None:
            problem = "it must be a timedelta, a whole number of milliseconds, or an aware datetime"
            raise self._invalid_delay(value, problem)
        return due

    def _invalid_delay(self, value: Any, problem: str) -> InvalidData:
        path = f"The delay of step {self.claim.step!r}"
        hint = "Return a valid delay."
        return InvalidData(
            f"{path} is {value!r}: {problem}.", path=path, problem=problem, hint=hint
        )

    @property
    def run(self) -> SequenceRun:
        """The row of the run. Built only on demand, because that costs as much as the rest of this
        class."""
        return _run_of(self.claim, self.using)

    @property
    def step_run(self) -> StepRun:
        """The row of the step; also built on demand."""
        return _step_run_of(self.claim, self.using)

    @property
    def idempotency_key(self) -> str:
        """The same for all attempts; new after `restart_from` (a new row), and after each
        repeat."""
        return f"{self.claim.run_id.hex}-{self.claim.step_run_id}-{self.claim.repeats}"

    def once(self, name: str, call: Callable[[], Any]) -> Any:
        """The stored result of this call; if there is none, make the call and store its result."""
        stored = self._stored_calls(name)
        return stored[name] if name in stored else self._keep_call(name, call())

    async def aonce(self, name: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """`once`, for a coroutine function."""
        stored = await sync_to_async(self._stored_calls)(name)
        if name in stored:
            return stored[name]
        return await sync_to_async(self._keep_call)(name, await call())

    def _stored_calls(self, name: str) -> dict[str, Any]:
        self._check_call(name)
        if self._calls is None:
            self._calls = calls.results(self.claim.step_run_id, self.using)
        return self._calls

    def _keep_call(self, name: str, returned: Any) -> Any:
        path = f"The result of once({name!r})"
        result, text = serialization.normalise(returned, path=path, **conf.settings.as_json)
        self._store_call(name, text)
        return result

    def _store_call(self, name: str, text: str) -> None:
        try:
            calls.store(self.claim, name, text, self.using)
        except Error as error:
            # The connection was idle during the call, and may have died of that: store the result
            # again instead of making the call again. If the first INSERT succeeded, its row is
            # there.
            interrupts.reraise_interrupt(error)
            if not interrupts.replace_connection(error, self.using):
                raise
            if name not in calls.results(self.claim.step_run_id, self.using):
                calls.store(self.claim, name, text, self.using)

    def _check_call(self, name: str) -> None:
        if self._step.atomic:
            raise Abort(
                f"Step {self.claim.step!r} calls self.once() inside its transaction, which would "
                "be rolled back with the step. Declare the step with atomic=False."
            )
        if _depth(self.using) > self._depth:
            raise Abort(
                f"Step {self.claim.step!r} calls self.once({name!r}) inside transaction.atomic(), "
                "so its result would not be committed immediately. Call it outside that block."
            )
        if not isinstance(name, str) or not 0 < len(name) <= MAX_CALL_NAME:
            raise Abort(
                f"Step {self.claim.step!r} calls self.once({name!r}): the name must be a string "
                f"of 1 to {MAX_CALL_NAME} characters."
            )
        if name in self._called:
            raise Abort(
                f"Step {self.claim.step!r} calls self.once({name!r}) twice in one attempt, and the "
                "second call would not be made. Give each its own name, such as "
                f'once(f"{name}-{{number}}", …).'
            )
        self._called.add(name)

    def result(self, name: str, default: Any) -> Any:
        """The result of that step."""
        row = self._rows(name).filter(item=NO_ITEM, status=StepStatus.SUCCEEDED).first()
        if row is None:
            return default
        if self._patterns():
            self.keep_secrets(row.result, self.keys_of(name))
        return kinds.kind_of(row.kind).result(row, default)

    def results(self, name: str) -> Iterator[Any]:
        """The results of its items in order, or its own."""
        succeeded = StepStatus.SUCCEEDED  # also the result of a child run
        return (outcome.result for outcome in self._outcomes(name, status=succeeded))

    def outcomes(self, name: str) -> Iterator[Outcome]:
        """The outcomes of its items in order, or its own."""
        return self._outcomes(name)

    def _outcomes(self, name: str, **conditions: Any) -> Iterator[Outcome]:
        kind = kinds.kind_of(self._node(name).kind)
        outcomes = kind.outcomes(self._rows(name), self.using).filter(**conditions)
        every = (Outcome(*values) for values in outcomes.iterator(chunk_size=1000))
        return self._with_secrets(every, self.keys_of(name)) if self._patterns() else every

    def _with_secrets(self, outcomes: Iterator[Outcome], keys: set[str]) -> Iterator[Outcome]:
        for outcome in outcomes:
            self.keep_secrets(outcome.item, keys)
            self.keep_secrets(outcome.result, keys)
            yield outcome

    def keys_of(self, name: str) -> set[str]:
        """The keys of `data` under which the items and results of this step are hidden."""
        assert self.definition is not None
        step = self.definition.step(name)
        keys = {name, self._node(name).name}
        if step is not None:
            keys |= {step.name, step.each} if isinstance(step.each, str) else {step.name}
        return keys

    def _node(self, name: str) -> Node:
        """The step in the plan of the run, which may know it by an earlier name."""
        assert self.definition is not None
        name_in_plan = self.definition.name_in(self.plan, name)
        if name_in_plan is None:
            raise UnknownStep(
                sequence=self.claim.sequence, step=name, hint=did_you_mean(name, self.plan.names)
            )
        return self.plan.node(name_in_plan)

    def _rows(self, name: str) -> Any:
        rows = StepRun._base_manager.using(self.using).filter(run=self.claim.run_id)
        return rows.filter(step=self._node(name).name)

    def failure(self) -> Failure | None:
        """The latest failure of a step on the main path."""
        row = failures.newest(self.claim.run_id, self.claim.plan_id, self.using)
        if row is None:
            return None
        return Failure(row.step, None if row.item == NO_ITEM else row.item, row.error, row.message)

    @property
    def cancelled(self) -> bool:
        """Whether the heartbeat has found that it was cancelled."""
        return leases.is_over(self, self.using)

    def raise_if_cancelled(self) -> None:
        """End the attempt if it was cancelled."""
        if self.cancelled:
            raise Cancelled(step=self.claim.step, run=self.claim.run_id)

    @property
    def final_status(self) -> str:
        """The status that the run is about to end with."""
        return compensation.ending_of(self.claim.run_id, self.using)

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        """Note the progress; the heartbeat stores it, outside the step's transaction."""
        progress = {"done": done, "total": total, "text": text}
        _, self.latest_progress = serialization.normalise(
            progress, path="progress", **conf.settings.as_json
        )


def _depth(using: str) -> int:
    """The number of open transaction.atomic() blocks."""
    connection: Any = connections[using]
    return len(connection.atomic_blocks)


def _moment(value: Any, base: datetime) -> datetime | None:
    """The end of a delay, in UTC, whose calendar is the database's. None: not a valid delay."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = timedelta(milliseconds=value)
    if isinstance(value, timedelta):
        return base + value
    if isinstance(value, datetime) and timezone.is_aware(value):
        return value.astimezone(UTC)
    return None


def _run_of(claim: Claim, using: str) -> SequenceRun:
    names = ["id", "plan_id", "sequence", "version"]
    values = [claim.run_id, claim.plan_id, claim.sequence, claim.version]
    return SequenceRun.from_db(using, names, values)


def _step_run_of(claim: Claim, using: str) -> StepRun:
    names = ["id", "run_id", "step", "item", "attempts", "repeats", "token", "worker"]
    values = [claim.step_run_id, claim.run_id, claim.step, claim.item]
    values += [claim.attempts, claim.repeats, claim.token, claim.worker]
    return StepRun.from_db(using, names, values)
