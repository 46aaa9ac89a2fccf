"""The life of a step: claim, perform, commit, hand over.

Whatever strikes in between, one of two things is true: nothing of the step is stored, and its
row says so to the sweep; or all of it is, and what comes next is queued in the same transaction.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import count, islice
from typing import Any, cast

from django.db import Error, connections, transaction
from django.utils import timezone
from dramatiq.middleware import Shutdown, SkipMessage

from . import conf, current, dispatching, flows, heartbeat, interrupts, registry, starting, typed
from . import data as json_data
from .definition import Definition, Event, Failure, Finish, Repeat, Step, Subsequence
from .exceptions import (
    Abort,
    ChildrenFailed,
    DataConflict,
    EventTimeout,
    InvalidData,
    ItemsFailed,
    ReadOnlyData,
    SequenceError,
    StepExpired,
    UnknownSequence,
    UnknownStep,
    did_you_mean,
)
from .interrupts import Interrupt
from .models import PLAIN, RunStatus, SequenceRun, StepRun, StepStatus
from .transitions import children, claims, commits, failures, fanout, plans, times
from .transitions.locks import REPLAYS, back_off, is_transient
from .transitions.values import Change, Claim, ClaimLost, Dispatch, FanOut, dispatch_of

logger = logging.getLogger("sequences")

#: Errors that no other attempt mends: the step fails at once.
FATAL = (
    Abort,
    ChildrenFailed,
    InvalidData,
    DataConflict,
    EventTimeout,
    ItemsFailed,
    ReadOnlyData,
    UnknownSequence,
    UnknownStep,
    StepExpired,
)


class Life:
    """One delivery of one step run."""

    def __init__(self, step_run_id: int, attempts: int, using: str) -> None:
        self.step_run_id, self.attempts, self.using = step_run_id, attempts, using
        self.token = secrets.randbits(63)
        self.claim: Claim | None = None

    @interrupts.revealed
    def live(self) -> list[Dispatch]:
        """All of it but the handing over: that is the caller's, with what this returns.

        Raises what the step raised, after it was recorded, for Dramatiq's retries;
        `SkipMessage` if there was nothing to claim, or the claim was lost. An `Interrupt` may
        come out of any point of it: then `recover`.
        """
        self.claim = claims.claim(
            self.step_run_id, self.attempts, self.token, current.worker(), self.using
        )
        if self.claim is None:
            raise SkipMessage(f"Step run {self.step_run_id} is not to be had.")
        return Attempt(self.claim, self.using).make()

    def recover(self, interrupt: Interrupt) -> list[Dispatch]:
        """A time limit or a shutdown has struck in `live`, or later. The row says where.

        Returns what is to be dispatched. Raises the interrupt, for Dramatiq's retries, if it is
        a time limit that has ended an attempt.
        """
        while True:
            try:
                return self._recover(interrupt)
            except Interrupt as another:
                # A time limit and a shutdown may strike both, the one while we see to the other.
                if another is interrupt:
                    raise
            except Error as error:
                if interrupts.behind(error) in (None, interrupt):
                    raise

    def _recover(self, interrupt: Interrupt) -> list[Dispatch]:
        interrupts.disarm()
        heartbeat.forget(self.token)
        interrupts.discard_connection(self.using)
        row = claims.find(self.step_run_id, self.using)
        if row is not None and row.status == StepStatus.RUNNING and row.token == self.token:
            claim = self.claim or claims.found(row, self.token)
            if self._end_attempt(claim, interrupt):
                raise interrupt
            # It is released; or a commit that was under way came first.
            row = claims.find(self.step_run_id, self.using)
        return self._queued_from(row) if row is not None else []

    def _end_attempt(self, claim: Claim, interrupt: Interrupt) -> bool:
        """Whether it was recorded as a failed one. A shutdown's is given back instead."""
        if isinstance(interrupt, Shutdown):
            claims.release(claim, self.using)
            return False
        failure = failures.Failure.of(interrupt)
        return failures.record(claim, failure, final=False, using=self.using) is not None

    def _queued_from(self, row: StepRun) -> list[Dispatch]:
        """What is queued of this step and of all that comes after it, not only next.

        Steps that were handed over directly may have committed too.
        """
        plan = plans.load(row.run.plan_id, self.using)
        if row.status in (StepStatus.QUEUED, StepStatus.RETRYING):
            return [dispatch_of(row, plan)] if row.wake_at else []
        if row.kind == "item":
            return fanout.after_item(row.run_id, row.step, row.item, self.using)
        steps = [row.step, *plan.descendants(row.step)]
        return claims.queued_after(row.run_id, steps, self.using)


class Attempt:
    """A claimed step run: perform and commit it, or record why not."""

    def __init__(self, claim: Claim, using: str) -> None:
        self.claim, self.using = claim, using
        self.change: Change | None = None  # set once the user's code is done

    def make(self) -> list[Dispatch]:
        """Play it until it commits or fails, and return what became ready."""
        try:
            definition, step = self._find()
            self._refuse_if_expired(definition, step)
            with heartbeat.performing(self.claim) as performance:
                ready = self._play(definition, step, performance)
            return ready + self._after_item()
        except Interrupt:
            raise
        except SkipMessage as skip:
            # The step's own. Dramatiq would acknowledge its message, and nobody end its claim.
            raise self._aborted("raised SkipMessage. Return, or raise Abort.") from skip
        except ClaimLost:
            raise self._lost() from None
        except BaseException as error:
            interrupts.reveal(error)
            self._record(error)
            raise

    def _lost(self) -> Exception:
        row = claims.find(self.claim.step_run_id, self.using)
        if row is None or row.token != self.claim.token or row.run.is_finished:
            return SkipMessage(
                f"Step run {self.claim.step_run_id} was taken away while it ran; "
                "nothing of it is stored."
            )
        # It is ours still: what took it away stood in its own transaction, and is rolled back.
        return self._aborted(
            "has cancelled, finished or restarted its own run, and with it its own commit. "
            "Return finish(), or raise Abort."
        )

    def _aborted(self, why: str) -> Abort:
        error = Abort(f"Step {self.claim.step!r} {why}")
        self._record(error)
        return error

    def _find(self) -> tuple[Definition, Step[Any]]:
        definition = registry.get(self.claim.sequence)._definition
        assert definition is not None
        if definition.label == flows.FLOW:
            plan = plans.load(self.claim.plan_id, self.using)
            definition = flows.definition_for(self.claim.sequence, plan) or definition
        step = definition.step(self.claim.step)
        if step is None:
            raise unknown_step(definition, self.claim.step)
        return definition, step

    def _refuse_if_expired(self, definition: Definition, step: Step[Any]) -> None:
        max_age = definition.options(step).get("max_age")
        age = self.claim.now - self.claim.first_due
        if max_age is not None and age > timedelta(milliseconds=max_age):
            limit = timedelta(milliseconds=max_age)
            raise StepExpired(step=step.name, run=self.claim.run_id, max_age=limit)

    def _play(
        self, definition: Definition, step: Step[Any], performance: heartbeat.Performance
    ) -> list[Dispatch]:
        for replay in count():
            try:
                return self._try(definition, step, performance)
            except json_data.MergeConflict as conflict:
                if replay >= self._most_conflicts():
                    raise self._conflict(conflict) from conflict
                self.change = None
            except ClaimLost:
                raise
            except Exception as error:
                interrupts.reveal(error)
                committed = self._committed(error)
                if committed is not None:
                    return committed
                if replay >= REPLAYS or not self._may_replay(step, error):
                    raise
            back_off(replay)
            claims.refresh(self.claim, self.using)
        raise AssertionError("not reached")

    def _after_item(self) -> list[Dispatch]:
        claim = self.claim
        if not claim.is_item:
            return []
        return fanout.after_item(claim.run_id, claim.step, claim.item, self.using)

    def _most_conflicts(self) -> int:
        # Each is with a step that has committed meanwhile, and every other one may: they all get
        # through, however many there are. Those that repeat themselves have an end here.
        return REPLAYS + len(plans.load(self.claim.plan_id, self.using).names)

    def _may_replay(self, step: Step[Any], error: Exception) -> bool:
        # Without a transaction around it, what the user's code has done stands already.
        return is_transient(error) and (step.atomic or self.change is not None)

    def _conflict(self, conflict: json_data.MergeConflict) -> DataConflict:
        others = commits.rivals(self.claim, self.using)
        return DataConflict(
            key=conflict.key,
            step=self.claim.step,
            run=self.claim.run_id,
            other=", ".join(others) or "an edit",
        )

    def _try(
        self, definition: Definition, step: Step[Any], performance: heartbeat.Performance
    ) -> list[Dispatch]:
        if step.atomic:
            self.change = None
            with transaction.atomic(using=self.using):
                self._perform(definition, step, performance)
                if not _is_untouched(self.using):
                    ready = self._commit()
                    _let_no_hook_fail(self.using)
                    return ready
        elif self.change is None:
            self._perform(definition, step, performance)
        # The caller's transaction, if there is one (a test's), must outlive a lost commit.
        return self._commit(savepoint=True)

    def _perform(
        self, definition: Definition, step: Step[Any], performance: heartbeat.Performance
    ) -> None:
        bound = Bound(definition, self.claim, performance, self.using)
        change = bound.perform(step)
        interrupts.disarm()
        self.change = bound.seal(change)

    def _commit(self, *, savepoint: bool = False) -> list[Dispatch]:
        assert self.change is not None
        if self.claim.is_item and self.change.again is None:
            fanout.commit_item(self.claim, self.change, self.using)
            return []
        ready = commits.commit_quickly(self.claim, self.change, self.using)
        if ready is None:
            with transaction.atomic(using=self.using, savepoint=savepoint):
                ready = commits.commit(self.claim, self.change, self.using)
        return ready

    def _committed(self, error: Exception) -> list[Dispatch] | None:
        """What became ready, if the row says that we have committed: an error never tells."""
        if self.change is None:
            return None
        _repair(self.using)
        row = claims.find(self.claim.step_run_id, self.using)
        if row is None or row.token != self.claim.token or row.status == StepStatus.RUNNING:
            return None
        logger.warning(
            "Step %s of run %s has committed, and then failed: %r",
            row.step, row.run_id, error, exc_info=error,
        )  # fmt: skip
        if self.claim.is_item:
            return []
        plan = plans.load(self.claim.plan_id, self.using)
        following = [node.name for node in plan.successors(row.step)]
        return claims.queued_after(row.run_id, [row.step, *following], self.using)

    def _record(self, error: BaseException) -> None:
        interrupts.disarm()
        _repair(self.using)
        failure = failures.Failure.of(error)
        final = isinstance(error, FATAL)
        ready = failures.record(self.claim, failure, final=final, using=self.using)
        if ready is None:
            raise SkipMessage(
                f"Step run {self.claim.step_run_id} failed, but was not ours any more."
            ) from error
        dispatching.send(ready)


class Bound:
    """The instance that the user's code sees as ``self``, and what it may ask of us."""

    def __init__(
        self,
        definition: Definition,
        claim: Claim,
        performance: heartbeat.Performance,
        using: str,
    ) -> None:
        self.claim, self.performance, self.using = claim, performance, using
        self.before: dict[str, Any] = json_data.loads(claim.data)
        codec = definition.cls._codec
        self.stored = None if codec is None else typed.Stored(codec, claim.data)
        self.sequence = definition.cls._bind(
            data=self.stored or json_data.loads(claim.data),
            attempt=claim.attempts + 1,
            context=self,
        )

    def perform(self, step: Step[Any]) -> Change:
        """Its own delay, then `when`, then the user's code."""
        if self.claim.is_item:
            return self._perform_item(step)
        if isinstance(step, Subsequence) and self.claim.payload is not None:
            return self._gather_children(step)
        if step.each is not None and self.claim.payload is not None:
            return self._gather(step)
        if step.delay is not None and not self.claim.delayed:
            due = self._due(step.delay)
            self.claim.delayed = True
            if due > self.claim.now:
                return Change(again=due)
        if step.when is not None and not step.when(self.sequence):
            return Change(status=StepStatus.SKIPPED)
        if isinstance(step, Event):
            return self._receive(step)
        if isinstance(step, Subsequence):
            return self._start_children(step)
        if self.claim.kind == "undo" and self.claim.item != PLAIN:
            of = self.claim.payload
            return self._change(step.perform(self.sequence, of["item"], of["result"]))
        if step.each is not None:
            return self._fan_out(step)
        return self._change(step.perform(self.sequence))

    def _receive(self, event: Event) -> Change:
        """What was delivered, early or just now; else wait, if there is still time."""
        name, claim = self.claim.step, self.claim
        inbox = claims.inbox(claim.run_id, self.using)
        if name in inbox:
            if inbox[name] is not None:
                self._copy(name, inbox[name])
            return self._change(inbox[name])
        if claim.due_at is not None and claim.due_at <= claim.now + times.EARLY:
            if event.on_timeout == "fail":
                raise EventTimeout(step=name, run=claim.run_id, timeout=event.timeout)
            return Change()
        due = None if event.timeout is None else claim.ready_at + event.timeout
        return Change(receive=True, again=due)

    def _start_children(self, step: Subsequence) -> Change:
        cls = registry.get(step.sequence) if isinstance(step.sequence, str) else step.sequence
        child = cast(Definition, cls._definition)
        parent = self.claim.step_run_id
        wanted = [starting.wanted_by(child, data, parent) for data in self._child_data(step)]
        if not wanted:
            return Change()
        labels = [child.label, *child.aliases]
        ready = children.start(self.claim, child.plan, wanted, labels, self.using)
        return Change(children=len(wanted), dispatches=ready)

    def _child_data(self, step: Subsequence) -> Iterator[Mapping[str, Any]]:
        if step.each is None:
            yield self._json if step.child_data is None else step.child_data(self.sequence)
            return
        for item in self._items(step):
            yield item if step.child_data is None else step.child_data(self.sequence, item)

    def _gather_children(self, step: Subsequence) -> Change:
        """The children have ended: it succeeds, unless too many of them did not."""
        ended = children.ended(self.claim.step_run_id, self.using)
        failed = [child for child in ended if child.status != RunStatus.SUCCEEDED]
        if len(failed) > fanout.Allowance(step.allow_failed).of(len(ended)):
            some = ", ".join(f"{child.pk} ({child.status})" for child in failed[:5])
            raise ChildrenFailed(
                step=self.claim.step, failed=len(failed), total=len(ended), runs=some
            )
        if step.each is not None:
            return Change()
        (child,) = ended
        self._copy(self.claim.step, child.data)
        return self._change(child.data)

    def _perform_item(self, step: Step[Any]) -> Change:
        change = self._change(step.perform(self.sequence, self.claim.payload))
        if change.finish:
            raise SequenceError(
                f"An item of step {self.claim.step!r} returned finish(), which would end its "
                "siblings. Return a result, and finish in a later step."
            )
        return change

    def _fan_out(self, step: Step[Any]) -> Change:
        total = fanout.insert(self.claim, self._items(step), self.using)
        if total:
            return Change(items=FanOut(total, step.concurrency or fanout.WINDOW))
        return Change()

    def _gather(self, step: Step[Any]) -> Change:
        """The items have ended: it succeeds, unless too many of them have failed."""
        total, failed = fanout.counts(self.claim, self.using)
        allowed = fanout.Allowance(step.allow_failed).of(total)
        if failed > allowed:
            raise ItemsFailed(step=self.claim.step, failed=failed, total=total, allowed=allowed)
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
                mend="Put a list there in an earlier step.",
            )
        if isinstance(found, Iterable) and not isinstance(found, str | bytes | dict):
            return found
        raise InvalidData(
            path="each" if callable(each) else f"data[{each!r}]",
            problem=f"gives a {type(found).__name__}, and step {self.claim.step!r} needs items",
            mend="Give a list, or a generator of JSON values.",
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

    def seal(self, change: Change) -> Change:
        """Take `data` as the step left it, and the progress that it told last."""
        after, text = _normalise(self._left(), "data")
        if not json_data.same(self.before, after):
            if self.claim.is_item:
                raise _read_only(self.claim, self.before, after)
            change.data, change.before, change.after = text, self.before, after
        change.progress = self.performance.progress
        return change

    def _left(self) -> dict[str, Any]:
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
                mend="Put values into self.data; do not put another object in its place.",
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
        base = self.claim.first_due
        if isinstance(value, timedelta):
            return base + value
        if isinstance(value, int) and not isinstance(value, bool):
            return base + timedelta(milliseconds=value)
        if isinstance(value, datetime) and timezone.is_aware(value):
            return value
        raise SequenceError(
            f"The delay of step {self.claim.step!r} is {value!r}: it must be a timedelta, an int "
            "of milliseconds, or an aware datetime."
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

    def result(self, name: str, default: Any) -> Any:
        """What that step returned."""
        row = self._rows(name).filter(item=PLAIN).first()
        return default if row is None or row.result is None else row.result

    def results(self, name: str) -> Iterator[Any]:
        """What its items returned, or it itself, in order."""
        rows = self._rows(name).filter(status=StepStatus.SUCCEEDED).order_by("item")
        kind = plans.load(self.claim.plan_id, self.using).node(name).kind
        if kind == "subsequence":
            parents = [row.pk for row in rows]
            found = (child for pk in parents for child in children.ended(pk, self.using))
            return (child.data for child in found if child.status == RunStatus.SUCCEEDED)
        if kind == "each":
            rows = rows.filter(item__gt=PLAIN)
        return (row.result for row in rows.iterator(chunk_size=1000))

    def _rows(self, name: str) -> Any:
        plan = plans.load(self.claim.plan_id, self.using)
        if plan.get(name) is None:
            raise UnknownStep(
                sequence=self.claim.sequence, step=name, mend=did_you_mean(name, plan.names)
            )
        return StepRun._base_manager.using(self.using).filter(run=self.claim.run_id, step=name)

    def failure(self) -> Failure | None:
        """The newest failure of a step of the main line."""
        row = failures.newest(self.claim.run_id, self.claim.plan_id, self.using)
        if row is None:
            return None
        return Failure(row.step, None if row.item == PLAIN else row.item, row.error, row.message)

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        """Keep it; the heartbeat stores it, outside of the step's transaction."""
        told = {"done": done, "total": total, "text": text}
        _, self.performance.progress = _normalise(told, "progress")


def _read_only(claim: Claim, before: dict[str, Any], after: dict[str, Any]) -> ReadOnlyData:
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ReadOnlyData(
        step=claim.step,
        path=" and ".join(f"data[{key!r}]" for key in keys) or "data",
        mend="Return a result, and collect the results with self.results() in a later step.",
    )


def unknown_step(definition: Definition, step: str) -> UnknownStep:
    """The error of a run whose plan has a step that the class no longer has."""
    return UnknownStep(
        sequence=definition.label,
        step=step,
        mend=f"{did_you_mean(step, definition.steps)} If it was renamed, give the step "
        f"aliases=[{step!r}] and retry the run; if it was removed, skip it.",
    )


def _normalise(value: Any, path: str) -> tuple[Any, str]:
    settings = conf.settings
    return json_data.normalise(
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


def _is_untouched(using: str) -> bool:
    """Whether the block around the user's code has sent nothing to the database.

    psycopg sends BEGIN with the first statement: then the commit, one statement, needs neither
    BEGIN nor COMMIT, and leaving the block costs nothing.
    """
    connection: Any = connections[using]
    if connection.vendor != "postgresql" or connection.run_on_commit or connection.needs_rollback:
        return False
    raw = connection.connection
    return raw is not None and raw.info.transaction_status.name == "IDLE"


def _let_no_hook_fail(using: str) -> None:
    """An error in an `on_commit` hook is logged, and neither fails the step nor drops others."""
    connection: Any = connections[using]
    connection.run_on_commit = [(sids, hook, True) for sids, hook, _ in connection.run_on_commit]


def _repair(using: str) -> None:
    """Put aside a connection that an error has broken."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def attempts_so_far() -> int:
    """What the message that this thread processes says."""
    delivery = current.delivery()
    return delivery.attempts if delivery else 0
