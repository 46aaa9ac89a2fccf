"""The life of a step: claim → execute → commit. The caller hands off what that made ready.

Whatever strikes in between, one of two things is true: nothing of the step is stored, and its row
says so to the sweep; or all of it is, and what comes next is queued in the same transaction.
`recovery` has what is done when something strikes.
"""

from __future__ import annotations

import logging
import secrets
from datetime import timedelta
from itertools import count
from typing import Any, Self

import dramatiq
from django.db import Error, connections
from dramatiq.broker import MessageProxy
from dramatiq.errors import Retry
from dramatiq.middleware import AgeLimit, SkipMessage

from ..definitions import registry
from ..definitions.definition import Definition
from ..definitions.plan import Node, Plan
from ..definitions.steps import Step
from ..exceptions import StepExpired, StepKindChanged, UnknownStep, did_you_mean
from ..models import StepRun, StepStatus
from ..transitions import claims, losses, plans
from ..transitions.locking import back_off
from ..transitions.notifications import PendingSignal
from ..transitions.types import Claim, ClaimLost, Dispatch, Offer
from ..utils import text
from ..utils.text import raises_printable
from . import current, dispatcher, interrupts, limits, outages, recovery, suspects, tracing
from .blocks import StepBlock
from .context import ExecutionContext
from .interrupts import Interrupt

logger = logging.getLogger("sequences")


class StepExecution:
    """One delivery of one step run."""

    plan: Plan
    context: ExecutionContext

    def __init__(self, step_run_id: int, attempts: int, using: str) -> None:
        self.step_run_id, self.attempts, self.using = step_run_id, attempts, using
        self.token = secrets.randbits(63)
        self.claim: Claim | None = None
        self.offer: Offer | None = None
        self.is_suspect = False

    @classmethod
    def of(cls, claim: Claim, using: str) -> Self:
        """The execution of what is claimed already."""
        execution = cls.claimed(claim, using)
        execution._accept(claim)
        return execution

    @classmethod
    def claimed(cls, claim: Claim, using: str) -> Self:
        """The same, before it is looked at more closely: its life is still to come."""
        execution = cls(claim.step_run_id, claim.attempts, using)
        execution.token, execution.claim = claim.token, claim
        return execution

    @interrupts.reraises_interrupts
    def live(self) -> list[Dispatch]:
        """Claim, execute, commit; what is returned became ready, and is to be handed off.

        Raises what the step raised, after it was recorded, for Dramatiq's retries; `SkipMessage` if
        there was nothing to claim, or the claim was lost. An `Interrupt` may come out of any point
        of it: then `recovery.recover`.
        """
        try:
            self._claim()
            ready = self.execute()
        except Interrupt:
            raise  # in whatever state the connection is now: `recover` leaves the place
        except BaseException:
            self.leave_place()
            raise
        self.leave_place()
        return ready

    def execute(self) -> list[Dispatch]:
        """Execute and commit the claimed step, or record why not."""
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
        """The step, which has its places now."""
        step, definition = self._find_step(), self.context.definition
        if step.limits or (definition is not None and definition.limits):
            limits.enter(self.context, step, self.using)
        return step

    def _commit_once(self, step: Step[Any]) -> list[Dispatch]:
        """Run the step until it has committed: again where only its commit has failed."""
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
            with StepBlock(self.using) as block:
                context.execute(step)
                if not block.is_untouched():
                    ready = self._commit()
                    _let_no_hook_fail(self.using)
                    return ready
        elif context.change is None:
            context.execute(step)
        # The caller's transaction, if there is one (a test's), must outlive a lost commit.
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
            # Which Dramatiq tries again, and writes no traceback of for each message.
            raise Retry("The database is not available.") from error
        if claim is None:
            raise SkipMessage(f"Step run {self.step_run_id} cannot be claimed.")
        self._accept(claim)
        self._check_message()
        self.context.kind.admit(claim, self.using)

    def _take_connected(self, *, suspects: bool) -> Claim | None:
        """Take the step run: on a new connection if the old one has died while it was idle."""
        was_connected = connections[self.using].connection is not None
        try:
            return self._take(suspects=suspects)
        except Error as error:
            interrupts.reraise_interrupt(error)
            if not (was_connected and interrupts.replace_connection(error, self.using)):
                raise
            logger.info("Claiming step run %s again, on a new connection.", self.step_run_id)
        # The first may have come through before its connection broke: the token tells.
        return self._take(suspects=suspects) or self._find_claim()

    def _take(self, *, suspects: bool) -> Claim | None:
        worker = current.worker()
        return claims.claim(
            self.step_run_id, self.attempts, self.token, worker, self.using, suspects=suspects
        )

    def _find_claim(self) -> Claim | None:
        row = claims.find(self.step_run_id, self.using)
        return claims.claim_in(row, self.token) if row is not None and self.holds(row) else None

    def holds(self, row: StepRun) -> bool:
        """Whether the row is claimed by this execution."""
        return row.status == StepStatus.RUNNING and row.token == self.token

    def _take_suspect(self) -> Claim | None:
        """Its last worker was lost: it is taken if this process has no other such step."""
        suspicion = losses.suspicion(self.step_run_id, self.attempts, self.using)
        if suspicion is None:
            return None
        self.is_suspect = True
        if not suspects.enter(self.token, alone=suspicion.alone):
            raise SkipMessage(
                f"Step run {self.step_run_id} is waiting to run alone, because its last "
                "worker was lost."
            )
        return self._take_connected(suspects=True)

    def leave_place(self) -> None:
        """Give up the place that a process has for one suspect."""
        if self.is_suspect and suspects.leave(self.token):
            suspects.call_next(self.using)

    def _accept(self, claim: Claim) -> None:
        self.claim, self.context = claim, ExecutionContext(claim, self.using)
        self.context.offer = self.offer
        plans.forget_unless_of(claim.sequence, claim.plan_id, self.using)
        self.plan = plans.load(claim.plan_id, self.using)

    def _check_message(self) -> None:
        """Only the step's own actor executes it, for its options are those of the step."""
        claim, node = self.context.claim, self.plan.node(self.context.claim.step)
        delivery = current.delivery()
        if delivery is None:
            return
        if delivery.message.actor_name != node.actor:
            # Its own message may have come meanwhile, and found it taken.
            dispatcher.send(claims.release(claim, self.using))
            raise SkipMessage(f"Step run {claim.step_run_id} is executed by {node.actor}.")
        _set_retry_options(delivery.message, node)

    # --- the step

    def _find_step(self) -> Step[Any]:
        claim = self.context.claim
        definition = registry.definition(claim.sequence, self.plan)
        step = definition.step(claim.step)
        if step is None:
            raise unknown_step(definition, claim.step)
        # Two plans of one fingerprint have the same kinds.
        if definition.plan.fingerprint != self.plan.fingerprint:
            self._refuse_if_changed(definition)
        self.context.definition = definition
        self._refuse_if_expired(step)
        return step

    def _refuse_if_changed(self, definition: Definition) -> None:
        """What its rows wait for is what the run's plan says: the code must say the same."""
        claim = self.context.claim
        change = definition.change_of_kind(claim.step, self.plan)
        if change is None:
            return
        if plans.store(definition.plan, self.using) < claim.plan_id:
            raise recovery.LaterRelease
        before, now = change
        raise StepKindChanged(
            step=claim.step, run=claim.run_id, before=before, now=now,
            hint=f"Retry the run with code in which the step is {before}, or skip the step.",
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


#: What `Retries` would take from a message before it asks the actor.
_OF_RETRIES = ("max_retries", "min_backoff", "max_backoff", "on_retry_exhausted")


def _set_retry_options(message: MessageProxy, node: Node) -> None:
    """How often this step may fail is said by its run's plan, whatever its message says."""
    for name in _OF_RETRIES:
        message.options.pop(name, None)
        if name in node.options:
            message.options[name] = node.options[name]


def _max_age_of_all() -> int | None:
    """What the project's age limit says of every message. Of a step its row's age counts."""
    middleware = dramatiq.get_broker().middleware
    return next((each.max_age for each in middleware if isinstance(each, AgeLimit)), None)


def unknown_step(definition: Definition, step: str) -> UnknownStep:
    """The error of a run whose plan has a step that the class no longer has."""
    return UnknownStep(
        sequence=definition.label,
        step=step,
        hint=f"{did_you_mean(step, definition.steps)} If it was renamed, give the step "
        f"aliases=[{step!r}] and retry the run; if it was removed, skip it.",
    )


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
