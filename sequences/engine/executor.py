"""The life of a step: claim → execute → commit. The caller hands off what became ready.

Whatever goes wrong in between, one of two things is true: nothing of the step is stored, and its
row tells the sweep so; or everything is stored, and the next steps were queued in the same
transaction. `recovery` handles what goes wrong.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Self

import dramatiq
from django.db import Error, connections, transaction
from dramatiq.broker import MessageProxy
from dramatiq.errors import Retry
from dramatiq.middleware import AgeLimit, SkipMessage

from ..definitions import registry
from ..definitions.definition import Definition
from ..definitions.plan import Node
from ..definitions.steps import Step
from ..exceptions import SequenceError, StepExpired, StepKindChanged, UnknownStep, did_you_mean
from ..models import StepRun, StepStatus
from ..transitions import claims, losses, plans
from ..transitions.backends import backend_of
from ..transitions.locking import back_off
from ..transitions.notifications import PendingSignal
from ..transitions.plans import PendingPlan
from ..transitions.types import Claim, ClaimLost, Dispatch, Offer
from ..utils import text
from ..utils.text import raises_printable
from . import current, dispatcher, interrupts, kinds, limits, outages, recovery, suspects, tracing
from .context import ExecutionContext
from .interrupts import Interrupt

logger = logging.getLogger("sequences")


@dataclass(eq=False, repr=False)  # its claim has all of `data`
class StepExecution:
    """One delivery of one step run."""

    step_run_id: int
    #: The number of failed attempts according to the message.
    attempts: int
    using: str
    #: Set once the step run is claimed. The commit before this one may have claimed it already.
    claim: Claim | None = None
    token: int = field(default_factory=partial(secrets.randbits, 63))
    worker: str = field(default_factory=current.worker)
    #: The message that it came with. None: it came without one.
    delivery: current.Delivery | None = field(default_factory=current.delivery)
    #: Lets the commit claim the next step.
    offer: Offer | None = None
    #: Whether the step's last worker was lost, and this process has reserved a place for it.
    is_suspect: bool = False
    #: Set once the claim is accepted.
    context: ExecutionContext = field(init=False)

    @classmethod
    def of(cls, claim: Claim, using: str) -> Self:
        """The execution of an existing claim."""
        return cls(claim.step_run_id, claim.attempts, using, claim, claim.token)

    def live(self) -> list[Dispatch]:
        """Claim, execute and commit; return what became ready and must be handed off.

        Raises what the step raised, after recording it, for Dramatiq's retries; `SkipMessage` if
        there was nothing to claim, or the claim was lost. An `Interrupt` may be raised anywhere in
        it: then call `recovery.recover`.
        """
        try:
            self._claim()
            ready = self.execute()
        except Interrupt:
            raise  # the connection may be in any state: `recover` leaves the place
        except BaseException as error:
            interrupts.reraise_interrupt(error)
            self.leave_place()
            raise
        if self.is_suspect:
            self.leave_place()
        return ready

    def execute(self) -> list[Dispatch]:
        """Execute and commit the claimed step, or record why that failed."""
        with current.executing(self.context), tracing.attempt(self.context):
            try:
                step = self._enter()
                ready = self._commit_once(step)
                return ready + look() if (look := self.context.after_commit) else ready
            except Interrupt:
                raise
            except BaseException as error:
                recovery.end_attempt(self, error)
                raise

    def _enter(self) -> Step[Any]:
        """Return the step, after it was given its places under limits."""
        step, definition = self._find_step(), self.context.definition
        if step.limits or (definition is not None and definition.limits):
            limits.enter(self.context, step, self.using)
        return step

    def _commit_once(self, step: Step[Any]) -> list[Dispatch]:
        """Run the step until it has committed: again only if it was its commit that failed."""
        for replay in count():
            try:
                return self._run_and_commit(step)
            except (ClaimLost, Interrupt):
                raise
            except BaseException as error:  # a receiver of a signal may call sys.exit()
                committed = recovery.find_commit(self, step, error, replay)
                if committed is not None:
                    return committed
            back_off(replay)
            claims.refresh(self.context.claim, self.using)
        raise AssertionError("not reached")

    def _run_and_commit(self, step: Step[Any]) -> list[Dispatch]:
        context = self.context
        if self.is_atomic(step):
            context.change = None
            earlier = len(connections[self.using].run_on_commit)
            with StepBlock(self.using) as block:
                context.execute(step)
                if not block.is_untouched():
                    ready = self._commit()
                    _let_no_hook_fail(self.using, earlier)
                    return ready
        elif context.change is None:
            with _whole_transaction(self.using):
                context.execute(step)
        # The caller's transaction, if there is one (a test's), must survive a lost commit.
        return self._commit(savepoint=True)

    def _commit(self, *, savepoint: bool = False) -> list[Dispatch]:
        change = self.context.change
        assert change is not None
        return self.context.kind.commit(self.context, change, savepoint=savepoint)

    # --- the claim

    def _claim(self) -> None:
        try:
            claim = self.claim or self._take_connected(suspects=False) or self._take_suspect()
        except Error as error:
            interrupts.reraise_interrupt(error)
            if not outages.noted(error):
                raise
            # Dramatiq tries this again, without logging a traceback for each message.
            raise Retry("The database is not available.") from error
        if claim is None:
            raise SkipMessage(f"Step run {self.step_run_id} cannot be claimed.")
        self._accept(claim)
        if claim.due_at is not None:
            self.context.kind.admit(claim, self.using)

    def _take_connected(self, *, suspects: bool) -> Claim | None:
        """Claim the step run: on a new connection if the old one has died while idle."""
        was_connected = connections[self.using].connection is not None
        try:
            return self._take(suspects=suspects)
        except Error as error:
            interrupts.reraise_interrupt(error)
            if not (was_connected and interrupts.replace_connection(error, self.using)):
                raise
            logger.info("Claiming step run %s again, on a new connection.", self.step_run_id)
        # The first attempt may have succeeded before its connection broke: the token tells.
        return self._take(suspects=suspects) or self._find_claim()

    def _take(self, *, suspects: bool) -> Claim | None:
        return claims.claim(
            self.step_run_id, self.attempts, self.token, self.worker, self.using, suspects=suspects
        )

    def _find_claim(self) -> Claim | None:
        row = claims.find(self.step_run_id, self.using)
        return claims.claim_in(row, self.token) if row is not None and self.holds(row) else None

    def holds(self, row: StepRun) -> bool:
        """Whether the row is claimed by this execution."""
        return row.status == StepStatus.RUNNING and row.token == self.token

    def _take_suspect(self) -> Claim | None:
        """Its last worker was lost: claim it only if this process is running no other such step."""
        suspicion = losses.suspicion(self.step_run_id, self.attempts, self.using)
        if suspicion is None:
            return None
        self.is_suspect = True
        if not suspects.enter(self.token, alone=suspicion.alone):
            room = "nothing else" if suspicion.alone else "no other such step"
            raise SkipMessage(
                f"Step run {self.step_run_id} has lost its worker and is waiting for a process "
                f"that is running {room}."
            )
        return self._take_connected(suspects=True)

    def leave_place(self) -> None:
        """Give up this process's place for a suspect."""
        if self.is_suspect and suspects.leave(self.token):
            suspects.call_next(self.using)

    def _accept(self, claim: Claim) -> None:
        self.claim, kind = claim, kinds.kind_of(claim.kind)
        try:
            plan = plans.load_of(claim.sequence, claim.plan_id, self.using)
            node = plan.node(claim.step)
        except SequenceError as error:  # even without a plan, the claim must not count as lost
            raise recovery.unreadable(claim, error, self.using) from None
        self.context = ExecutionContext(
            claim, using=self.using, kind=kind, plan=plan, offer=self.offer
        )
        if self.delivery is not None:
            self._check_message(self.delivery.message, claim, node)

    def _check_message(self, message: MessageProxy, claim: Claim, node: Node) -> None:
        """Only the step's own actor may execute it, because its options are the step's."""
        if message.actor_name != node.actor:
            # Its own message may have arrived in the meantime and found it claimed.
            dispatcher.send(claims.release(claim, self.using))
            raise SkipMessage(
                f"Step run {claim.step_run_id} must be executed by the actor {node.actor}."
            )
        if message.options.pop(current.ATTEMPTS_OPTION, None) is not None:
            # From here on, `Retries` counts attempts again, not deliveries without an attempt.
            message.options["retries"] = claim.attempts
        # The retry options come from the run's plan, whatever the message says.
        for name in _OF_RETRIES:
            message.options.pop(name, None)
            if name in node.options:
                message.options[name] = node.options[name]

    # --- the step

    def _find_step(self) -> Step[Any]:
        claim, plan = self.context.claim, self.context.plan
        definition = registry.definition(claim.sequence, plan)
        step = definition.step(claim.step)
        if step is None:
            raise unknown_step(definition, claim.step)
        # Plans with the same fingerprint have the same kinds.
        if definition.plan.fingerprint != plan.fingerprint:
            self._refuse_if_changed(definition)
        self.context.definition = definition
        self._refuse_if_expired(step)
        return step

    def _refuse_if_changed(self, definition: Definition) -> None:
        """The run's plan decides what its rows wait for, so the code must agree with it."""
        claim = self.context.claim
        change = definition.change_of_kind(claim.step, self.context.plan)
        if change is None:
            return
        if plans.store(definition.plan, self.using) < claim.plan_id:
            raise recovery.LaterRelease
        before, now = change
        raise StepKindChanged(
            step=claim.step, run=claim.run_id, before=before, now=now,
            hint=f"The run needs code in which the step is {before}.",
        )  # fmt: skip

    def _refuse_if_expired(self, step: Step[Any]) -> None:
        options, claim = step.options, self.context.claim
        max_age = options["max_age"] if "max_age" in options else _max_age_of_all()
        if max_age is None:
            return
        limit = timedelta(milliseconds=max_age)
        if claim.now - claim.first_due > limit:
            raise StepExpired(step=step.name, run=claim.run_id, max_age=limit)

    def is_atomic(self, step: Step[Any]) -> bool:
        """Whether one transaction holds the step and its commit."""
        return step.atomic or self.context.kind.is_atomic


class StepBlock(transaction.Atomic):
    """`transaction.atomic()` that costs almost nothing to leave if no statement was sent inside."""

    def __init__(self, using: str) -> None:
        super().__init__(using, savepoint=True, durable=False)
        self._using, self._untouched = using, False

    def __enter__(self) -> Self:  # type: ignore[override]  # Atomic gives nothing
        super().__enter__()
        return self

    def is_untouched(self) -> bool:
        """Whether the step has sent no statement and left nothing for the commit.

        If so, its commit, a single statement, needs neither BEGIN nor COMMIT.
        """
        connection: Any = connections[self._using]
        has_work = connection.run_on_commit or connection.needs_rollback
        self._untouched = not has_work and backend_of(self._using).is_idle(connection)
        return self._untouched

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None and self._untouched:
            # As Django does, but without a COMMIT, which would have nothing to commit. This is the
            # outermost block: inside another one, or without autocommit, a SAVEPOINT would have
            # been sent.
            connection: Any = connections[self._using]
            connection.atomic_blocks.pop()
            connection.in_atomic_block = False
            connection.set_autocommit(True)
        else:
            super().__exit__(kind, error, traceback)


@contextmanager
def _whole_transaction(using: str) -> Iterator[None]:
    """Keep the caller's transaction, if there is one (a test's), usable after a database error.

    Without a transaction, only the failed statement would be lost. Here, on PostgreSQL, everything
    since the savepoint is.
    """
    connection: Any = connections[using]
    if not connection.in_atomic_block:
        yield
        return
    savepoint = connection.savepoint()
    try:
        yield
    finally:
        if backend_of(using).has_failed_transaction(connection):
            connection.savepoint_rollback(savepoint)


#: Options that `Retries` would take from a message in preference to the actor's.
_OF_RETRIES = ("max_retries", "min_backoff", "max_backoff", "on_retry_exhausted")


def _max_age_of_all() -> int | None:
    """The project's age limit for messages. For a step, the age of its row counts."""
    middleware = dramatiq.get_broker().middleware
    return next((each.max_age for each in middleware if isinstance(each, AgeLimit)), None)


def unknown_step(definition: Definition, step: str) -> UnknownStep:
    """The error of a run whose plan has a step that the class no longer has."""
    return UnknownStep(
        sequence=definition.label,
        step=step,
        hint=f"{did_you_mean(step, definition.steps)} If it was renamed, give the step "
        f"aliases=[{step!r}].",
    )


def _let_no_hook_fail(using: str, earlier: int) -> None:
    """Log an error in an `on_commit` hook; it must not fail the step or skip other hooks.

    Only in the hooks of this step: the transaction of a test keeps those of all steps before it.
    """
    hooks: Any = connections[using].run_on_commit
    hooks[earlier:] = [(sids, _named(hook), True) for sids, hook, _ in hooks[earlier:]]


def _named(hook: Any) -> Any:
    # To log a failed hook, Django needs its name and a traceback; without one of them, logging
    # itself would raise.
    if isinstance(hook, PendingSignal | PendingPlan | _NamedHook):
        return hook
    return _NamedHook(hook)


class _NamedHook:
    """A hook with a name, whose error can be logged."""

    def __init__(self, hook: Any) -> None:
        self._hook, self.__qualname__ = hook, text.name_of(hook)

    @raises_printable
    def __call__(self) -> None:
        self._hook()
