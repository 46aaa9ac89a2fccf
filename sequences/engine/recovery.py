"""Recovery of an interrupted or failed step: each function reads the row, and leaves it right.

An exception from a commit never says whether it committed, and an interrupt can come anywhere. The
row says it, by the token of the claim.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import Error, connections
from dramatiq.errors import Retry
from dramatiq.middleware import Shutdown, SkipMessage

from ..data.serialization import MergeConflict
from ..definitions.steps import Step
from ..exceptions import (
    Abort,
    Cancelled,
    ChildrenFailed,
    DataConflict,
    EventTimeout,
    InvalidData,
    ItemsFailed,
    ReadOnlyData,
    SequenceError,
    StepExpired,
    StepKindChanged,
    UnknownSequence,
    UnknownStep,
)
from ..models import StepRun, StepStatus
from ..transitions import claims, commits, failures, plans
from ..transitions.locking import REPLAYS, is_transient
from ..transitions.types import Claim, ClaimLost, Dispatch, dispatch_of
from . import current, dispatcher, interrupts, kinds, leases
from .current import CurrentAttempt
from .interrupts import Interrupt

if TYPE_CHECKING:
    from .executor import StepExecution

logger = logging.getLogger("sequences")

#: Errors that a retry would only meet again: the step fails at once.
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


class Parked(Exception):
    """The step has no place under its limits: its row waits in line, and this claim is over."""


class LaterRelease(Exception):
    """A later release started the run; its workers execute this step as they know it."""


# --- a commit has failed: did it go through, and may the step run again?


def find_commit(
    execution: StepExecution, step: Step[Any], error: BaseException, replay: int
) -> list[Dispatch] | None:
    """Return what became ready if the step has committed anyway. None: it may run again.

    Raises the error if it may not.
    """
    if isinstance(error, MergeConflict):
        if replay >= _most_conflicts(execution):
            raise _conflict(execution, error) from error
        execution.context.change = None
        return None
    interrupts.reraise_interrupt(error)
    committed = _committed(execution, error)
    if committed is None and (replay >= REPLAYS or not _may_replay(execution, step, error)):
        raise error
    return committed


def _most_conflicts(execution: StepExecution) -> int:
    # Each conflict is with a step that has committed, and every other step can cause one: with
    # this many replays, all of them get through. Only steps that repeat can need more.
    return REPLAYS + len(execution.context.plan.names)


def _may_replay(execution: StepExecution, step: Step[Any], error: BaseException) -> bool:
    # Without a transaction, the effects of the user's code are already permanent.
    is_undone = execution.is_atomic(step)
    return is_transient(error) and (is_undone or execution.context.change is not None)


def _conflict(execution: StepExecution, conflict: MergeConflict) -> DataConflict:
    claim = execution.context.claim
    others = commits.rivals(claim, execution.using)
    return DataConflict(
        key=conflict.key,
        step=claim.step,
        run=claim.run_id,
        other=", ".join(others) or "an edit",
    )


def _committed(execution: StepExecution, error: BaseException) -> list[Dispatch] | None:
    claim, using = execution.context.claim, execution.using
    if execution.context.change is None:
        return None
    _repair(using)
    row = claims.find(claim.step_run_id, using)
    if row is None or row.token != claim.token or row.status == StepStatus.RUNNING:
        return None
    logger.warning(
        "Step %s of run %s failed after its commit: %r",
        row.step, row.run_id, error, exc_info=error,
    )  # fmt: skip
    context = execution.context
    ready = context.kind.follow_up(context, row, context.plan)
    return ready + give_back(execution)


def give_back(execution: StepExecution) -> list[Dispatch]:
    """Release the next step: that commit may have claimed it, and nobody executes it."""
    if execution.claim is None or execution.offer is None:
        return []
    return claims.give_back(execution.claim.run_id, execution.offer.token, execution.using)


# --- an attempt has failed


def end_attempt(execution: StepExecution, error: BaseException) -> None:
    """Record why the attempt ended without a commit. Raises what is to be raised instead."""
    if isinstance(error, SkipMessage):
        # The step's own error. Dramatiq would acknowledge the message, and nobody would end the
        # claim.
        raise _abort(execution, "raised SkipMessage. Return early, or raise Abort.") from error
    if isinstance(error, ClaimLost):
        raise _lost(execution) from None
    if isinstance(error, Parked):
        raise SkipMessage(str(error)) from None
    if isinstance(error, LaterRelease):
        raise _left_to_others(execution) from None
    if isinstance(error, Cancelled):
        raise _cancelled(execution) from None
    interrupts.reraise_interrupt(error)
    _record(execution, error)


def _lost(execution: StepExecution) -> Exception:
    claim = execution.context.claim
    row = claims.find(claim.step_run_id, execution.using)
    if row is None or row.token != claim.token or row.run.is_finished:
        return SkipMessage(
            f"Step run {claim.step_run_id} lost its claim while it was running; nothing was stored."
        )
    # The claim is still ours: the change that took it was in its own transaction, and is rolled
    # back.
    return _abort(
        execution,
        "cancelled, finished or restarted its own run, so its own commit was rejected. "
        "Return finish() or raise Abort instead.",
    )


def _cancelled(execution: StepExecution) -> Exception:
    """The step has found that its run is being stopped, and has ended itself: not a failed
    attempt."""
    if not execution.context.is_over:
        return _abort(
            execution,
            "raised Cancelled, but was not cancelled. Call self.raise_if_cancelled() instead.",
        )
    interrupts.disable_interrupts()
    _repair(execution.using)
    dispatcher.send(claims.release(execution.context.claim, execution.using))
    return SkipMessage(f"Step run {execution.step_run_id} was cancelled.")


def _abort(execution: StepExecution, why: str) -> Abort:
    error = Abort(f"Step {execution.context.claim.step!r} {why}")
    _record(execution, error)
    return error


def _left_to_others(execution: StepExecution) -> SkipMessage:
    # Not dispatched at once, because we would get it again. The sweep dispatches it after a grace.
    claims.release(execution.context.claim, execution.using)
    return SkipMessage(
        f"Step run {execution.step_run_id} is left to workers of a later release, in which "
        "the step is of another kind."
    )


def unreadable(claim: Claim, error: SequenceError, using: str) -> SkipMessage:
    """Leave the step to workers of the release that has written the plan of its run."""
    claims.leave(claim, using)
    logger.warning(
        "Step %s of run %s is waiting for a worker that can read its plan: %s",
        claim.step, claim.run_id, error,
    )  # fmt: skip
    return SkipMessage(f"The plan of step run {claim.step_run_id} cannot be read.")


def _record(execution: StepExecution, error: BaseException) -> None:
    interrupts.disable_interrupts()
    _repair(execution.using)
    _in_milliseconds(error)
    _limit_retries(execution, error)
    ready = failures.record(
        execution.context.claim,
        execution.context.redacted(failures.Failure.of(error)),
        final=isinstance(error, FATAL),
        timed_out=isinstance(error, EventTimeout),
        using=execution.using,
    )
    if ready is None:
        raise SkipMessage(
            f"Step run {execution.step_run_id} failed after it had lost its claim."
        ) from error
    current.counted()
    dispatcher.send(ready)


def _limit_retries(execution: StepExecution, error: BaseException) -> None:
    """Let Dramatiq decide about a retry, with the option for this exception."""
    definition, delivery = execution.context.definition, execution.delivery
    step = definition.step(execution.context.claim.step) if definition else None
    if step is not None and delivery is not None:
        delivery.message.options.update(step.retry_limit(error))


def _in_milliseconds(error: BaseException) -> None:
    """Dramatiq accepts the delay of its `Retry` in no other unit."""
    delay: Any = error.delay if isinstance(error, Retry) else None
    if isinstance(error, Retry) and isinstance(delay, timedelta):
        error.delay = delay // timedelta(milliseconds=1)


def _repair(using: str) -> None:
    """Replace a connection that an error has broken."""
    connection = connections[using]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


# --- an interrupt


def recover(execution: StepExecution, interrupt: Interrupt) -> list[Dispatch]:
    """A time limit or a shutdown came during `StepExecution.live`, or later. The row says where.

    Returns what to dispatch. Raises the interrupt, for Dramatiq's retries, if it is a time limit
    that ended an attempt.
    """
    while True:
        try:
            return _recover(execution, interrupt)
        except Interrupt as another:
            # A time limit and a shutdown may both come, one while the other is being handled.
            if another is interrupt:
                raise
        except Error as error:
            if interrupts.interrupt_behind(error) in (None, interrupt):
                raise


def _recover(execution: StepExecution, interrupt: Interrupt) -> list[Dispatch]:
    interrupts.disable_interrupts()
    leases.forget(execution.token)
    interrupts.discard_connection(execution.using)
    execution.leave_place()
    row = claims.find(execution.step_run_id, execution.using)
    if row is not None and execution.holds(row):
        claim = execution.claim or claims.claim_in(row, execution.token)
        if _end_interrupted(claim, interrupt, execution.using):
            raise interrupt
        # It was released, or a commit that was in progress came first.
        row = claims.find(execution.step_run_id, execution.using)
    ready = _queued_from(row, execution.using) if row is not None else []
    return ready + give_back(execution)


def _end_interrupted(claim: Claim, interrupt: Interrupt, using: str) -> bool:
    """Whether it was recorded as a failed attempt. After a shutdown, the step is released
    instead."""
    if isinstance(interrupt, Shutdown):
        claims.release(claim, using)
        return False
    interrupts.explain(interrupt, claim.step_run_id)
    attempt = _attempt_of(claim)
    current.failed(attempt)
    failure = attempt.redacted(failures.Failure.of(interrupt))
    ready = failures.record(claim, failure, final=False, using=using)
    if ready is None:
        return False
    current.counted()
    dispatcher.send(ready)
    return True


def _attempt_of(claim: Claim) -> CurrentAttempt:
    """The attempt of this claim, if this thread still knows it."""
    attempt = current.current_attempt()
    return attempt if attempt and attempt.claim.token == claim.token else CurrentAttempt(claim)


def _queued_from(row: StepRun, using: str) -> list[Dispatch]:
    """What is queued of this step, or of the steps after it."""
    plan = plans.load(row.run.plan_id, using)
    if row.status in (StepStatus.QUEUED, StepStatus.RETRYING):
        return [dispatch_of(row, plan)] if row.wake_at else []
    return kinds.kind_of(row.kind).queued_from(row, plan, using)
