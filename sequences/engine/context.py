"""What a step does when it is performed: the user's code, or what its kind has instead.

All of it in the step's own claim and transaction. What comes out is a `Change`, to be committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, cast

from django.db import Error, connections
from django.utils import timezone

from .. import conf
from ..data import serialization, typed
from ..definitions import registry
from ..definitions.definition import Definition, Failure, Outcome
from ..definitions.plan import COMPENSATION_KINDS, Node
from ..definitions.steps import Event, Finish, Repeat, Step, Subsequence
from ..exceptions import (
    Abort,
    ChildrenFailed,
    EventTimeout,
    InvalidData,
    ItemsFailed,
    ReadOnlyData,
    SequenceError,
    StepKindChanged,
    UnknownStep,
    did_you_mean,
)
from ..models import (
    NO_ITEM,
    UNFINISHED_RUN,
    RunStatus,
    SequenceRun,
    StepFailure,
    StepRun,
    StepStatus,
    Wait,
)
from ..transitions import calls, claims, clock, failures, fanout, plans, subsequences
from ..transitions.types import Change, Claim, FanOut
from ..utils.text import class_name, first_line
from . import interrupts, start, tracing
from .current import CurrentAttempt
from .recovery import FATAL

#: Characters of the name of a durable call: the column's length.
MAX_CALL_NAME = 100
#: Characters of an item's error that stand in the error of its step.
QUOTED = 300


class ExecutionContext(CurrentAttempt):
    """A claimed step in execution: what it does, and what its ``self`` may ask of us."""

    def __init__(self, claim: Claim, using: str) -> None:
        super().__init__(claim)
        self.using = using
        self.is_item = claim.kind == "item"
        #: Results of durable calls that earlier attempts have stored; None: not read yet.
        self._calls: dict[str, Any] | None = None
        self._called: set[str] = set()

    def execute(self, step: Step[Any]) -> None:
        """Run the step on an instance of its own; `change` is what is to be committed of it."""
        self._bind()
        self._depth = _depth(self.using)
        self._step = step
        try:
            change = self._perform(step)
        except Exception as error:
            if not isinstance(error, FATAL) and connections[self.using].closed_in_transaction:
                raise self._closed() from error
            raise
        if connections[self.using].closed_in_transaction:
            raise self._closed()
        interrupts.disable_interrupts()
        self.change = self._collect_changes(change)

    def _bind(self) -> None:
        assert self.definition is not None
        data, codec = self.claim.data, self.definition.cls._codec
        self.before: dict[str, Any] = serialization.loads(data)
        self.stored = None if codec is None else typed.Stored(codec, data)
        self.sequence = self.definition.cls._bind(
            data=self.stored or serialization.loads(data),
            attempt=self.claim.attempts + 1,
            context=self,
        )

    def _closed(self) -> Abort:
        """A step that closes the connection of its own transaction does so at each attempt."""
        return Abort(
            f"Step {self.claim.step!r} closed the database connection inside its own transaction, "
            "and everything it wrote is rolled back. Remove close_old_connections(), "
            "connection.close() or connections.close_all(): workers see to their connections "
            "between steps. Or declare the step with atomic=False."
        )

    def _perform(self, step: Step[Any]) -> Change:
        """Its own delay, then `when`, then the user's code."""
        if self.is_item:
            return self._perform_item(step)
        if self.claim.wait == Wait.CHILDREN and isinstance(step, Subsequence):
            return self._gather_children(step)
        if self.claim.wait == Wait.ITEMS:
            return self._gather(step)
        if step.delay is not None and not self.claim.delayed:
            due = self._due(step.delay)
            if due > self.claim.now:
                # Only the commit of this wait says that the delay was evaluated: an attempt that
                # fails before it, or is replayed, still has the delay before it.
                return Change(again=due)
            self.claim.delayed = True
        if step.when is not None and not step.when(self.sequence):
            return Change(status=StepStatus.SKIPPED)
        if isinstance(step, Event):
            return self._receive(step)
        if isinstance(step, Subsequence):
            return self._start_children(step)
        if self.claim.kind in COMPENSATION_KINDS:
            return self._perform_compensation(step)
        if step.each is not None:
            return self._fan_out(step)
        return self._change(step.perform(self.sequence))

    def _receive(self, event: Event) -> Change:
        """What was delivered, early or just now; else wait, if there is still time."""
        name, claim = self.claim.step, self.claim
        inbox = claims.inbox(claim.run_id, self.using)
        if name in inbox:
            self._copy(name, inbox[name])
            return self._change(inbox[name])
        waits = claim.wait == Wait.EVENT
        if waits and claim.due_at is not None and claim.due_at <= claim.now + clock.EARLY:
            if event.on_timeout == "fail":
                raise EventTimeout(step=name, run=claim.run_id, timeout=event.timeout)
            # What was never delivered is no result, not even None.
            return Change(timed_out=True, status=StepStatus.SKIPPED)
        # Its `due_at` may be that of a delay or a retry before; the timeout counts from now on.
        return Change(receive=True, again=claim.due_at if waits else event.timeout)

    def _start_children(self, step: Subsequence) -> Change:
        cls = registry.get(step.sequence) if isinstance(step.sequence, str) else step.sequence
        child = cast(Definition, cls._definition)
        parent = self.claim.step_run_id
        wanted = [
            start.wanted_by(child, self._given(data), parent) for data in self._child_data(step)
        ]
        if not wanted:
            return Change()
        labels = [child.label, *child.aliases]
        with tracing.starting(child.plan, wanted):
            ready = subsequences.start(self.claim, child.plan, wanted, labels, self.using)
        return Change(children=len(wanted), dispatches=ready)

    def _child_data(self, step: Subsequence) -> Iterator[Mapping[str, Any]]:
        if step.each is None:
            yield self._json if step.child_data is None else step.child_data(self.sequence)
            return
        for item in self._items(step):
            yield item if step.child_data is None else step.child_data(self.sequence, item)

    def _given(self, data: Any) -> Any:
        """The data of a child; None, of a function without a return, say, is a slip."""
        if data is None:
            raise InvalidData(
                path=f"The data for a run that step {self.claim.step!r} starts",
                problem="is None",
                hint="Return a dict; {} if the child needs no data.",
            )
        return data

    def _gather_children(self, step: Subsequence) -> Change:
        """The children have ended: it succeeds, unless too many of them did not."""
        ended = subsequences.ended(self.claim.step_run_id, self.using)
        if ended.filter(status__in=UNFINISHED_RUN).exists():
            # Whatever has woken it, or somebody has begun one of them again: it has not failed.
            return Change(children=ended.count())
        failed = ended.exclude(status=RunStatus.SUCCEEDED)
        total, failures = ended.count(), failed.count()
        if failures > fanout.Allowance(step.allow_failed).of(total):
            some = ", ".join(
                f"{pk} ({status})" for pk, status in failed.values_list("pk", "status")[:5]
            )
            raise ChildrenFailed(step=self.claim.step, failed=failures, total=total, runs=some)
        if step.each is not None:
            return Change()
        if total != 1:
            raise self._no_only_child(total)
        data = ended.get().data
        self._copy(self.claim.step, data)
        return self._change(data)

    def _no_only_child(self, total: int) -> SequenceError:
        if not total:  # somebody has deleted it
            return SequenceError(f"The run that step {self.claim.step!r} has started is gone.")
        return StepKindChanged(
            step=self.claim.step,
            run=self.claim.run_id,
            before=f"a subsequence for each of {total} items",
            now="one for all",
            hint="Retry the run with code in which it has its `each`, or skip the step.",
        )

    def _perform_item(self, step: Step[Any]) -> Change:
        change = self._change(step.perform(self.sequence, self.claim.payload))
        if change.finish:
            raise Abort(
                f"An item of step {self.claim.step!r} returned finish(), which would end its "
                "siblings. Return a result, and finish in a later step."
            )
        return change

    def _perform_compensation(self, step: Step[Any]) -> Change:
        """An undo, of an item with that and its result; or `on_failure`."""
        of = self.claim.payload
        arguments = () if self.claim.item == NO_ITEM else (of["item"], of["result"])
        change = self._change(step.perform(self.sequence, *arguments))
        if change.finish:
            raise Abort(
                f"Step {self.claim.step!r} returned finish() while its run fails. Return nothing; "
                "what has failed stays so."
            )
        return change

    def _fan_out(self, step: Step[Any]) -> Change:
        total = fanout.insert(self.claim, self._items(step), self.using)
        if total:
            return Change(items=FanOut(total, step.concurrency or fanout.WINDOW))
        return Change()

    def _gather(self, step: Step[Any]) -> Change:
        """The items have ended: it succeeds, unless too many of them have failed."""
        if fanout.has_unfinished(self.claim.run_id, self.claim.step, self.using):
            raise SequenceError(f"Step {self.claim.step!r} was woken before its items had ended.")
        total, failed = fanout.counts(self.claim, self.using)
        allowed = fanout.Allowance(step.allow_failed).of(total)
        if failed > allowed:
            raise ItemsFailed(
                step=self.claim.step,
                failed=failed,
                total=total,
                allowed=allowed,
                may=str(allowed or "none"),
                first=_told(fanout.first_failure(self.claim, self.using)),
            )
        return Change()

    def _items(self, step: Step[Any]) -> Iterator[Any]:
        found = self._declared_items(step.each)
        items = (_normalise(item, f"item {index}")[0] for index, item in enumerate(found))
        if step.batch is None:
            return items
        return iter(lambda: list(islice(items, step.batch)), [])

    def _declared_items(self, each: Any) -> Iterable[Any]:
        if callable(each):
            found = each(self.sequence)
        elif each in self._json:
            found = self._json[each]
        else:
            raise InvalidData(
                path=f"data[{each!r}]",
                problem=f"is not there, and step {self.claim.step!r} runs for each item of it",
                hint="Put a list there in an earlier step.",
            )
        if isinstance(found, Iterable) and not isinstance(found, str | bytes | dict):
            return found
        raise InvalidData(
            path="each" if callable(each) else f"data[{each!r}]",
            problem=f"gives a {type(found).__name__}, and step {self.claim.step!r} needs items",
            hint="Give a list, or a generator of JSON values.",
        )

    def _change(self, returned: Any) -> Change:
        if isinstance(returned, Repeat):
            return Change(again=returned.after, repeat=True)
        if isinstance(returned, Finish):
            return Change(finish=True)
        if returned is None:
            return Change()
        _, text = _normalise(returned, "result")
        return Change(result=text)

    def _collect_changes(self, change: Change) -> Change:
        """Add `data` as the step left it, and its latest progress."""
        after, text = _normalise(self._data_after(), "data")
        if not serialization.same(self.before, after):
            if self.is_item:
                raise _read_only(self.claim, self.before, after)
            change.data, change.before, change.after = text, self.before, after
        change.progress = self.latest_progress
        return change

    def _data_after(self) -> dict[str, Any]:
        """What the step left as `data`, as something like JSON."""
        if self.stored is not None:
            # Typed data that was not asked for is not in the instance.
            left = vars(self.sequence).get("data", self.stored)
            return self.before if left is self.stored else self.stored.after(left)
        data = self.sequence.data
        if not isinstance(data, dict):
            raise InvalidData(
                path="data",
                problem=f"is a {type(data).__name__}, not a dict",
                hint="Put values into self.data; do not put another object in its place.",
            )
        return data

    @property
    def _json(self) -> dict[str, Any]:
        return self.sequence.data if self.stored is None else self.stored.baseline

    def _copy(self, name: str, value: Any) -> None:
        """What came from outside stands in `data` too, unless its type decides what does."""
        if self.stored is None:
            self.sequence.data[name] = value

    def _due(self, delay: Any) -> datetime:
        value = delay(self.sequence) if callable(delay) else delay
        try:
            due = _moment(value, self.claim.first_due)
        except OverflowError:
            raise self._invalid_delay(value, "it goes beyond the calendar") from None
        if due is None:
            problem = "it must be a timedelta, an int of milliseconds, or an aware datetime"
            raise self._invalid_delay(value, problem)
        return due

    def _invalid_delay(self, value: Any, problem: str) -> InvalidData:
        path = f"The delay of step {self.claim.step!r}"
        hint = "Return another one."
        return InvalidData(
            f"{path} is {value!r}: {problem}.", path=path, problem=problem, hint=hint
        )

    @property
    def run(self) -> SequenceRun:
        """Built only for those who ask: it costs as much as the rest of this class."""
        return _run_of(self.claim, self.using)

    @property
    def step_run(self) -> StepRun:
        """The same."""
        return _step_run_of(self.claim, self.using)

    @property
    def idempotency_key(self) -> str:
        """Stable over attempts; new after `restart_from`, a new row, and after each repeat."""
        return f"{self.claim.run_id.hex}-{self.claim.step_run_id}-{self.claim.repeats}"

    def once(self, name: str, call: Callable[[], Any]) -> Any:
        """The result of this call: an earlier attempt's, or else it is made and stored."""
        self._check_call(name)
        if self._calls is None:
            self._calls = calls.results(self.claim.step_run_id, self.using)
        if name in self._calls:
            return self._calls[name]
        result, text = _normalise(call(), f"The result of once({name!r})")
        self._store_call(name, text)
        return result

    def _store_call(self, name: str, text: str) -> None:
        try:
            calls.store(self.claim, name, text, self.using)
        except Error as error:
            # The connection was idle for as long as the call took: the call is not made again
            # because it has died of that. If the first has come through, it is stored.
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
                "so its result would not be committed at once. Call it outside of that block."
            )
        if not isinstance(name, str) or not 0 < len(name) <= MAX_CALL_NAME:
            raise Abort(
                f"Step {self.claim.step!r} calls self.once({name!r}): the name must be a text of "
                f"1 to {MAX_CALL_NAME} characters."
            )
        if name in self._called:
            raise Abort(
                f"Step {self.claim.step!r} calls self.once({name!r}) twice in one attempt, and the "
                "second call would not be made. Give each its own name, such as "
                f'once(f"{name}-{{number}}", …).'
            )
        self._called.add(name)

    def result(self, name: str, default: Any) -> Any:
        """What that step returned."""
        row = self._rows(name).filter(item=NO_ITEM, status=StepStatus.SUCCEEDED).first()
        if row is None or (row.result is None and row.kind in ("each", "subsequence")):
            return default  # of many items or children, `results` has what they came to
        return row.result

    def results(self, name: str) -> Iterator[Any]:
        """What its items returned, or it itself, in order."""
        succeeded = StepStatus.SUCCEEDED  # of a child, too
        return (one.result for one in self._outcomes(name, status=succeeded))

    def outcomes(self, name: str) -> Iterator[Outcome]:
        """How its items have ended, or it itself, in order."""
        return self._outcomes(name)

    def _outcomes(self, name: str, **conditions: Any) -> Iterator[Outcome]:
        kind = self._node(name).kind
        rows: Any = self._rows(name).order_by("item")
        columns = ["payload", "status", "result"]
        if kind == "subsequence":
            parent = rows.filter(item=NO_ITEM).values_list("pk", flat=True).first()
            rows, columns = subsequences.ended(parent, self.using), ["pk", "status", "data"]
        elif kind == "each":
            rows = rows.filter(item__gt=NO_ITEM)
        found = rows.filter(**conditions).values_list(*columns)
        return (Outcome(*values) for values in found.iterator(chunk_size=1000))

    def _node(self, name: str) -> Node:
        plan = plans.load(self.claim.plan_id, self.using)
        node = plan.get(name)
        if node is None:
            raise UnknownStep(
                sequence=self.claim.sequence, step=name, hint=did_you_mean(name, plan.names)
            )
        return node

    def _rows(self, name: str) -> Any:
        self._node(name)
        return StepRun._base_manager.using(self.using).filter(run=self.claim.run_id, step=name)

    def failure(self) -> Failure | None:
        """The newest failure of a step of the main line."""
        row = failures.newest(self.claim.run_id, self.claim.plan_id, self.using)
        if row is None:
            return None
        return Failure(row.step, None if row.item == NO_ITEM else row.item, row.error, row.message)

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        """Keep it; the heartbeat stores it, outside of the step's transaction."""
        told = {"done": done, "total": total, "text": text}
        _, self.latest_progress = _normalise(told, "progress")


def _depth(using: str) -> int:
    """How many transaction.atomic() blocks are open around us."""
    connection = connections[using]
    return connection.in_atomic_block + len(connection.savepoint_ids)


def _moment(value: Any, base: datetime) -> datetime | None:
    """When a delay is over: in UTC, whose calendar is the database's. None: it is no delay."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = timedelta(milliseconds=value)
    if isinstance(value, timedelta):
        return base + value
    if isinstance(value, datetime) and timezone.is_aware(value):
        return value.astimezone(UTC)
    return None


def _told(failure: StepFailure | None) -> str:
    """What an item failed with, short enough to stand in another message."""
    if failure is None:  # somebody has deleted it
        return ""
    line = first_line(failure.message, QUOTED)
    return f"The first is item {failure.item}: {class_name(failure.error)}: {line}"


def _read_only(claim: Claim, before: dict[str, Any], after: dict[str, Any]) -> ReadOnlyData:
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ReadOnlyData(
        step=claim.step,
        path=" and ".join(f"data[{key!r}]" for key in keys) or "data",
        hint="Return a result, and collect the results with self.results() in a later step.",
    )


def _normalise(value: Any, path: str) -> tuple[Any, str]:
    settings = conf.settings
    return serialization.normalise(
        value, encoder=settings.encoder, max_bytes=settings.max_data_bytes, path=path
    )


def _run_of(claim: Claim, using: str) -> SequenceRun:
    names = ["id", "plan_id", "sequence", "version"]
    values = [claim.run_id, claim.plan_id, claim.sequence, claim.version]
    return SequenceRun.from_db(using, names, values)


def _step_run_of(claim: Claim, using: str) -> StepRun:
    names = ["id", "run_id", "step", "item", "attempts", "repeats", "token", "worker"]
    values = [claim.step_run_id, claim.run_id, claim.step, claim.item]
    values += [claim.attempts, claim.repeats, claim.token, claim.worker]
    return StepRun.from_db(using, names, values)
