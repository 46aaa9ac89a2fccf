"""The life of a step: claim, perform, commit, hand over.

Whatever strikes in between, one of two things is true: nothing of the step is stored, and its
row says so to the sweep; or all of it is, and what comes next is queued in the same transaction.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import dramatiq
from django.db import Error, connections, transaction
from dramatiq.errors import Retry
from dramatiq.middleware import AgeLimit, Shutdown, SkipMessage

from ..data import serialization
from ..definitions import registry
from ..definitions.definition import Definition
from ..definitions.plan import COMPENSATION_KINDS
from ..definitions.steps import Step
from ..exceptions import (
    Abort,
    ChildrenFailed,
    DataConflict,
    EventTimeout,
    InvalidData,
    ItemsFailed,
    ReadOnlyData,
    StepExpired,
    StepKindChanged,
    UnknownSequence,
    UnknownStep,
    did_you_mean,
)
from ..models import RunStatus, StepRun, StepStatus
from ..transitions import claims, commits, failures, fanout, losses, plans
from ..transitions.backends import backend_of
from ..transitions.locking import REPLAYS, back_off, is_transient
from ..transitions.notifications import PendingSignal
from ..transitions.types import Change, Claim, ClaimLost, Dispatch, dispatch_of
from ..utils import text
from ..utils.text import raises_printable
from . import current, dispatcher, interrupts, leases, outages, suspects, tracing
from .context import Bound
from .interrupts import Interrupt

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
    StepKindChanged,
)


class _LaterRelease(Exception):
    """The run was started by a later release, whose workers perform this step as they have it."""


class StepExecution:
    """One delivery of one step run."""

    def __init__(self, step_run_id: int, attempts: int, using: str) -> None:
        self.step_run_id, self.attempts, self.using = step_run_id, attempts, using
        self.token = secrets.randbits(63)
        self.claim: Claim | None = None

    @interrupts.reraises_interrupts
    def live(self) -> list[Dispatch]:
        """All of it but the handing over: that is the caller's, with what this returns.

        Raises what the step raised, after it was recorded, for Dramatiq's retries;
        `SkipMessage` if there was nothing to claim, or the claim was lost. An `Interrupt` may
        come out of any point of it: then `recover`.
        """
        try:
            ready = self._live()
        except Interrupt:
            raise  # in whatever state the connection is now: `recover` makes room
        except BaseException:
            self._make_room()
            raise
        self._make_room()
        return ready

    def _live(self) -> list[Dispatch]:
        try:
            self.claim = self._claim(suspects=False) or self._claim_suspect()
        except Error as error:
            interrupts.reraise_interrupt(error)
            if not outages.noted(error):
                raise
            # Which Dramatiq tries again, and writes no traceback of for each message.
            raise Retry("The database cannot be used.") from error
        if self.claim is None:
            raise SkipMessage(f"Step run {self.step_run_id} is not to be had.")
        plans.forget_unless_of(self.claim.sequence, self.claim.plan_id, self.using)
        self._check_message(self.claim)
        self._find_place(self.claim)
        return Attempt(self.claim, self.using).make()

    def _check_message(self, claim: Claim) -> None:
        """Only the step's own actor performs it, for its options are those of the step."""
        delivery = current.delivery()
        node = plans.load(claim.plan_id, self.using).node(claim.step)
        if delivery is None:
            return
        if delivery.message.actor_name != node.actor:
            released = claims.release(claim, self.using)
            # Its own message may have come meanwhile, and found it taken.
            dispatcher.send([released] if released else [])
            raise SkipMessage(f"Step run {claim.step_run_id} is performed by {node.actor}.")
        dispatcher.options_of(delivery.message, node)

    def _claim(self, *, suspects: bool) -> Claim | None:
        """Take the step run: on a new connection if the old one has died while it was idle."""
        was_connected = connections[self.using].connection is not None
        try:
            return self._take(suspects=suspects)
        except Error as error:
            interrupts.reraise_interrupt(error)
            if not (was_connected and interrupts.replace_connection(error, self.using)):
                raise
            logger.info("Step run %s is claimed again, on a new connection.", self.step_run_id)
        # The first may have come through before its connection broke: the token tells.
        return self._take(suspects=suspects) or self._taken()

    def _take(self, *, suspects: bool) -> Claim | None:
        worker = current.worker()
        return claims.claim(
            self.step_run_id, self.attempts, self.token, worker, self.using, suspects=suspects
        )

    def _taken(self) -> Claim | None:
        row = claims.find(self.step_run_id, self.using)
        return claims.found(row, self.token) if row is not None and self._holds(row) else None

    def _holds(self, row: StepRun) -> bool:
        return row.status == StepStatus.RUNNING and row.token == self.token

    def _claim_suspect(self) -> Claim | None:
        """Its last worker was lost: it is taken if this process has no other such step."""
        suspicion = losses.suspicion(self.step_run_id, self.attempts, self.using)
        if suspicion is None:
            return None
        if not suspects.enter(self.token, alone=suspicion.alone):
            raise SkipMessage(
                f"Step run {self.step_run_id}, whose last worker was lost, waits for a process "
                "that can tell whether it is to blame."
            )
        return self._claim(suspects=True)

    def _make_room(self) -> None:
        if suspects.leave(self.token):
            suspects.call_next(self.using)

    def _find_place(self, claim: Claim) -> None:
        """An item that has waited for a time of its own needs a place among the others again."""
        if not claim.is_item or claim.due_at is None:
            return
        try:
            if fanout.find_place(claim, self.using):
                return
        except ClaimLost:
            raise SkipMessage(f"Step run {self.step_run_id} was taken away.") from None
        dispatcher.send(fanout.look(claim.run_id, claim.step, self.using))
        raise SkipMessage(f"Step run {self.step_run_id} waits for a place among its siblings.")

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
                if interrupts.interrupt_behind(error) in (None, interrupt):
                    raise

    def _recover(self, interrupt: Interrupt) -> list[Dispatch]:
        interrupts.disable_interrupts()
        leases.forget(self.token)
        interrupts.discard_connection(self.using)
        self._make_room()
        row = claims.find(self.step_run_id, self.using)
        if row is not None and self._holds(row):
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
        current_attempt = _in_hand(claim)
        current.failed(current_attempt)
        failure = current_attempt.redacted(failures.Failure.of(interrupt))
        ready = failures.record(claim, failure, final=False, using=self.using)
        dispatcher.send(ready or [])
        return ready is not None

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
        if row.run.status == RunStatus.UNDOING:
            steps += [node.name for node in plan.nodes if node.kind in COMPENSATION_KINDS]
        return claims.queued_after(row.run_id, steps, self.using)


def _in_hand(claim: Claim) -> current.CurrentAttempt:
    """The attempt of this claim, if this thread knows it still."""
    known = current.current_attempt()
    return known if known and known.claim.token == claim.token else current.CurrentAttempt(claim)


class Attempt:
    """A claimed step run: perform and commit it, or record why not."""

    def __init__(self, claim: Claim, using: str) -> None:
        self.claim, self.using = claim, using
        self.current_attempt = current.CurrentAttempt(claim)  # what others see of it
        self.change: Change | None = None  # set once the user's code is done
        self.looks = False  # whether an item has ended so that others are to be looked after

    def make(self) -> list[Dispatch]:
        """Play it until it commits or fails, and return what became ready."""
        with current.performing(self.current_attempt), tracing.attempt(self.current_attempt):
            ready = self._make()
            self.current_attempt.change = self.change
            return ready

    def _make(self) -> list[Dispatch]:
        try:
            definition, step = self._find()
            self.current_attempt.definition = definition
            self._refuse_if_expired(definition, step)
            with leases.held(self.claim) as lease:
                ready = self._play(definition, step, lease)
            return ready + self._after_item()
        except Interrupt:
            raise
        except SkipMessage as skip:
            # The step's own. Dramatiq would acknowledge its message, and nobody end its claim.
            raise self._aborted("raised SkipMessage. Return, or raise Abort.") from skip
        except ClaimLost:
            raise self._lost() from None
        except _LaterRelease:
            raise self._left_to_others() from None
        except BaseException as error:
            interrupts.reraise_interrupt(error)
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
        plan = plans.load(self.claim.plan_id, self.using)
        definition = registry.get(self.claim.sequence)._definition_for(self.claim.sequence, plan)
        assert definition is not None
        step = definition.step(self.claim.step)
        if step is None:
            raise unknown_step(definition, self.claim.step)
        self._refuse_if_changed(definition)
        return definition, step

    def _refuse_if_changed(self, definition: Definition) -> None:
        """What its rows wait for is what the run's plan says: the code must say the same."""
        plan = plans.load(self.claim.plan_id, self.using)
        change = definition.change_of_kind(self.claim.step, plan)
        if change is None:
            return
        if plans.store(definition.plan, self.using) < self.claim.plan_id:
            raise _LaterRelease
        before, now = change
        raise StepKindChanged(
            step=self.claim.step, run=self.claim.run_id, before=before, now=now,
            hint=f"Retry the run with code in which it is {before}, or skip the step.",
        )  # fmt: skip

    def _left_to_others(self) -> SkipMessage:
        # Not dispatched at once: we would be the ones to get it. The sweep does, after a grace.
        claims.release(self.claim, self.using)
        return SkipMessage(
            f"Step run {self.claim.step_run_id} is left to the workers of a later release: its "
            "step is of another kind there."
        )

    def _refuse_if_expired(self, definition: Definition, step: Step[Any]) -> None:
        max_age = definition.options(step).get("max_age", _max_age_of_all())
        age = self.claim.now - self.claim.first_due
        if max_age is not None and age > timedelta(milliseconds=max_age):
            limit = timedelta(milliseconds=max_age)
            raise StepExpired(step=step.name, run=self.claim.run_id, max_age=limit)

    def _play(self, definition: Definition, step: Step[Any], lease: leases.Lease) -> list[Dispatch]:
        for replay in count():
            try:
                return self._try(definition, step, lease)
            except serialization.MergeConflict as conflict:
                if replay >= self._most_conflicts():
                    raise self._conflict(conflict) from conflict
                self.change = None
            except (ClaimLost, Interrupt):
                raise
            except BaseException as error:  # a receiver of a signal may call sys.exit()
                interrupts.reraise_interrupt(error)
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
        if not claim.is_item or not self.looks:
            return []
        return fanout.after_item(claim.run_id, claim.step, claim.item, self.using)

    def _most_conflicts(self) -> int:
        # Each is with a step that has committed meanwhile, and every other one may: they all get
        # through, however many there are. Those that repeat themselves have an end here.
        return REPLAYS + len(plans.load(self.claim.plan_id, self.using).names)

    def _may_replay(self, step: Step[Any], error: BaseException) -> bool:
        # Without a transaction around it, what the user's code has done stands already.
        return is_transient(error) and (self._is_atomic(step) or self.change is not None)

    def _is_atomic(self, step: Step[Any]) -> bool:
        # A fan-out is expanded in one transaction, whatever its items do.
        return step.atomic or (step.each is not None and not self.claim.is_item)

    def _conflict(self, conflict: serialization.MergeConflict) -> DataConflict:
        others = commits.rivals(self.claim, self.using)
        return DataConflict(
            key=conflict.key,
            step=self.claim.step,
            run=self.claim.run_id,
            other=", ".join(others) or "an edit",
        )

    def _try(self, definition: Definition, step: Step[Any], lease: leases.Lease) -> list[Dispatch]:
        if self._is_atomic(step):
            self.change = None
            with transaction.atomic(using=self.using):
                self._perform(definition, step, lease)
                if not _is_untouched(self.using):
                    ready = self._commit()
                    _let_no_hook_fail(self.using)
                    return ready
        elif self.change is None:
            self._perform(definition, step, lease)
        # The caller's transaction, if there is one (a test's), must outlive a lost commit.
        return self._commit(savepoint=True)

    def _perform(self, definition: Definition, step: Step[Any], lease: leases.Lease) -> None:
        bound = Bound(definition, self.claim, lease, self.using)
        self.current_attempt.sequence = bound.sequence
        with self._connection_stays_open():
            change = bound.perform(step)
        interrupts.disable_interrupts()
        self.change = bound.seal(change)

    @contextmanager
    def _connection_stays_open(self) -> Iterator[None]:
        """A step that closes the connection of its own transaction does so at each attempt."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, FATAL) and connections[self.using].closed_in_transaction:
                raise self._closed() from error
            raise
        if connections[self.using].closed_in_transaction:
            raise self._closed()

    def _closed(self) -> Abort:
        return Abort(
            f"Step {self.claim.step!r} closed the database connection inside its own transaction, "
            "and everything it wrote is rolled back. Remove close_old_connections(), "
            "connection.close() or connections.close_all(): workers see to their connections "
            "between steps. Or declare the step with atomic=False."
        )

    def _commit(self, *, savepoint: bool = False) -> list[Dispatch]:
        assert self.change is not None
        if self.claim.is_item and self.change.again is None:
            self.looks = fanout.commit_item(self.claim, self.change, self.using)
            return []
        ready = commits.commit_quickly(self.claim, self.change, self.using)
        if ready is None:
            with transaction.atomic(using=self.using, savepoint=savepoint):
                ready = commits.commit(self.claim, self.change, self.using)
        return ready

    def _committed(self, error: BaseException) -> list[Dispatch] | None:
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
            self.looks = row.status == StepStatus.SUCCEEDED
            return []
        plan = plans.load(self.claim.plan_id, self.using)
        following = [node.name for node in plan.successors(row.step)]
        return claims.queued_after(row.run_id, [row.step, *following], self.using)

    def _record(self, error: BaseException) -> None:
        interrupts.disable_interrupts()
        _repair(self.using)
        _in_milliseconds(error)
        failure = self.current_attempt.redacted(failures.Failure.of(error))
        final = isinstance(error, FATAL)
        timed_out = isinstance(error, EventTimeout)
        ready = failures.record(
            self.claim, failure, final=final, timed_out=timed_out, using=self.using
        )
        if ready is None:
            raise SkipMessage(
                f"Step run {self.claim.step_run_id} failed, but was not ours any more."
            ) from error
        dispatcher.send(ready)


def _max_age_of_all() -> int | None:
    """What the project's age limit says of every message. Of a step its row's age counts."""
    found = (one for one in dramatiq.get_broker().middleware if isinstance(one, AgeLimit))
    return next((one.max_age for one in found), None)


def _in_milliseconds(error: BaseException) -> None:
    """Dramatiq takes no other delay of its `Retry`."""
    delay: Any = error.delay if isinstance(error, Retry) else None
    if isinstance(error, Retry) and isinstance(delay, timedelta):
        error.delay = delay // timedelta(milliseconds=1)


def unknown_step(definition: Definition, step: str) -> UnknownStep:
    """The error of a run whose plan has a step that the class no longer has."""
    return UnknownStep(
        sequence=definition.label,
        step=step,
        hint=f"{did_you_mean(step, definition.steps)} If it was renamed, give the step "
        f"aliases=[{step!r}] and retry the run; if it was removed, skip it.",
    )


def _is_untouched(using: str) -> bool:
    """Whether the block around the user's code has sent nothing to the database.

    Then the commit, one statement, needs neither BEGIN nor COMMIT, and leaving the block costs
    nothing.
    """
    connection: Any = connections[using]
    if connection.run_on_commit or connection.needs_rollback:
        return False
    return backend_of(using).is_idle(connection)


def _let_no_hook_fail(using: str) -> None:
    """An error in an `on_commit` hook is logged, and neither fails the step nor drops others."""
    connection: Any = connections[using]
    connection.run_on_commit = [
        (sids, _named(hook), True) for sids, hook, _ in connection.run_on_commit
    ]


def _named(hook: Any) -> Any:
    # Django logs a hook that fails by its name, and its error with a traceback: without the one
    # or the other it raises in the middle of that.
    if isinstance(hook, PendingSignal):
        return hook
    call = raises_printable(lambda: hook())
    call.__qualname__ = text.name_of(hook)
    return call


def _repair(using: str) -> None:
    """Put aside a connection that an error has broken."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def attempts_so_far() -> int:
    """What the message that this thread processes says."""
    delivery = current.delivery()
    return delivery.attempts if delivery else 0
