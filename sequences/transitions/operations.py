"""What people and programs do to a run from outside.

Each request locks the run and writes every step run that it concerns: a step that is running
meanwhile finds its row changed when it commits, and rolls back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Case, Q, QuerySet, When
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from ..data.redaction import redact
from ..definitions import registry
from ..definitions.kinds import EVENT_KINDS, ITEM_KINDS
from ..definitions.plan import Plan
from ..definitions.rules import (
    NOT_STARTED,
    RULES,
    Rule,
    fails_elsewhere,
    has_handler,
    is_past,
    left_undone,
    skip_rule,
)
from ..exceptions import InvalidTransition, Text
from ..models import NO_ITEM, Operation, RunStatus, SequenceRun, StepRun, StepStatus, Wait
from . import (
    clock,
    commits,
    compensation,
    deadlines,
    erasing,
    fanout,
    limits,
    plans,
    races,
    runs,
    starts,
    subsequences,
)
from .locking import lock_run, transact
from .refusals import with_text
from .types import Dispatch, dispatch_of, new_row, wait_for

#: Waits that something else ends, not a time.
_WAITS_FOR_OTHERS = (Wait.EVENT, Wait.ITEMS, Wait.CHILDREN)


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """Who does what, and why: stored as an `Operation` row."""

    action: str
    by: str = ""
    step: str = ""
    reason: str = ""
    before: Any = None
    after: Any = None
    #: The id of the newest operation that the decision is based on. None: it does not matter.
    basis: int | None = None


class LockedRun:
    """A run under its lock, with what all requests do with it."""

    def __init__(
        self,
        run: SequenceRun,
        request: OperationRequest,
        using: str,
        *,
        keep_deliveries: bool = False,
    ) -> None:
        self.run, self.request, self.using = run, request, using
        self.keep_deliveries = keep_deliveries
        #: Whether the request has changed something. If not, it is not stored as an operation:
        #: whoever audits the run must not take it for one that counted.
        self.has_effect = True
        self.now: datetime = clock.now(using)
        self.plan: Plan = plans.load_of(run.sequence, run.plan_id, using)

    def steps(self, **conditions: Any) -> QuerySet[StepRun]:
        return StepRun._base_manager.using(self.using).filter(run=self.run.pk, **conditions)

    def status_of(self, step: str) -> str:
        """The status of this step. For a fan-out, that of its own row, not of an item."""
        row = self.steps(step=step).order_by("item").first()
        return NOT_STARTED if row is None else row.status

    def allow(self, rule: Rule) -> None:
        """Reject the request if this rule does not allow the run's status."""
        if not rule.allows(self.run.status):
            states = tuple(map(RunStatus, rule.run_states))
            self.refuse(_wrong_status(RunStatus(self.run.status), states))

    def refuse(self, problem: str, **values: Any) -> None:
        why = _why(problem, values)
        raise InvalidTransition(
            _refusal_of_run(self.request, self.run.pk, why["problem"]),
            action=self.request.action,
            run=self.run.pk,
            status=self.run.status,
            **why,
        )

    def check_basis(self) -> None:
        """Reject a decision about a state that an operation has changed since.

        The steps' own progress does not matter, or nobody could operate on a busy run.
        """
        operations = Operation._base_manager.using(self.using).filter(run=self.run.pk)
        basis = self.request.basis
        if basis is not None and operations.filter(pk__gt=basis).exists():
            self.refuse(
                _("it has changed since you opened the page. Look at it again before you decide.")
            )

    def done(self) -> None:
        """Store the run, and the operation."""
        runs.save(self.run, self.now, self.using)
        with_text(self._log, self.request, self.using)

    def _log(self, request: OperationRequest) -> None:
        Operation._base_manager.using(self.using).create(
            run=self.run,
            action=request.action,
            step=request.step[:100],
            reason=request.reason,
            by=request.by[:150],
            before=request.before,
            after=request.after,
            done_at=self.now,
        )

    def wake(self) -> list[Dispatch]:
        """Release what was on hold: steps that are due at once, the others when their time
        comes."""
        on_hold = self.steps(wake_at__isnull=True)
        timed = on_hold.filter(due_at__isnull=False)
        for row in timed.filter(status__in=(StepStatus.WAITING, StepStatus.RETRYING)):
            due = row.due_at
            if due is not None and due > self.now:
                # If it had a message, that may have come and gone during the pause.
                on_hold.filter(pk=row.pk).update(**self._waiting(row), wake_at=due)
            elif due is not None:
                on_hold.filter(pk=row.pk).update(**self.queued())
        in_line = on_hold.filter(status=StepStatus.WAITING, wait=Wait.LIMIT, due_at__isnull=True)
        in_line.update(**self.queued())  # it asks again, and keeps its position
        on_hold.filter(status=StepStatus.QUEUED).update(**self.queued())
        ended = []
        for own in subsequences.waiting(self.run, self.using):
            self.steps(pk=own.pk).update(wake_at=self.now + clock.grace())
            ended += subsequences.look(own.pk, self.using)
        for own in fanout.waiting(self.run, self.using):
            self.steps(pk=own.pk).update(wake_at=self.now + clock.grace())
            fanout.go_on(self.run, self.plan, own.step, self.now, self.using)
        woken = self.steps(status=StepStatus.QUEUED, queued_at=self.now)
        return ended + [dispatch_of(row, self.plan) for row in woken.order_by("pk")]

    def _waiting(self, row: StepRun) -> dict[str, Any]:
        """Waits for others continue as before; the next attempt is a time to wait for."""
        if row.status == StepStatus.RETRYING and row.wait not in _WAITS_FOR_OTHERS:
            return wait_for(Wait.TIME, self.now)
        return {"status": StepStatus.WAITING}

    def wake_retries(self) -> list[Dispatch]:
        """Release only retries: nothing else continues after a step has failed permanently."""
        retries = self.steps(wake_at__isnull=True, status=StepStatus.RETRYING)
        return [self._wake_retry(row) for row in retries.order_by("pk")]

    def _wake_retry(self, row: StepRun) -> Dispatch:
        due = max(row.due_at or self.now, self.now)
        self.steps(pk=row.pk).update(wake_at=due + clock.grace(), queued_at=self.now, dispatches=0)
        delay = ceil((due - self.now) / timedelta(milliseconds=1)) or None
        return dispatch_of(row, self.plan, delay)

    def queued(self) -> dict[str, Any]:
        return {
            "status": StepStatus.QUEUED,
            "queued_at": self.now,
            "dispatches": 0,
            "wake_at": self.now + clock.grace(),
        }

    def receive(self, row: StepRun) -> list[Dispatch]:
        """End the wait of an event's row: it can be claimed like any other, unless it is on
        hold."""
        is_held = self.run.status != RunStatus.RUNNING or self.is_failing()
        values = self.queued() | ({"wake_at": None} if is_held else {})
        self.steps(pk=row.pk, status=StepStatus.WAITING).update(**values, due_at=None)
        states = runs.states_of(self.run, self.using)
        _, ready = races.settle(
            self.run, self.plan, states, self.now, self.using, delivered=[row.step]
        )
        return ready + ([] if is_held else [dispatch_of(row, self.plan)])

    def requeue_cancelled(self) -> list[SequenceRun]:
        """Restart what was cancelled; a delay that was not over starts again, too.

        Returns the children to restart.
        """
        cancelled = self.steps(status=StepStatus.CANCELLED)
        cancelled.filter(attempts=0).update(delay_evaluated=False)
        fanout.reopen(cancelled.filter(item=NO_ITEM), self.using)
        ended = self._reopen_parents(cancelled.filter(item=NO_ITEM))
        self.requeue(cancelled)
        return ended

    def requeue(self, rows: QuerySet[StepRun]) -> None:
        """Restart these, on hold until `wake`; earlier failed attempts do not count."""
        rows.filter(kind__in=EVENT_KINDS).update(wait="", waiting_since=None)
        rows.update(
            status=StepStatus.QUEUED, token=None, attempts=0, lost_workers=0, ready_at=self.now,
            # An item may have lost its place: its claim finds another.
            wake_at=None, due_at=Case(When(kind__in=ITEM_KINDS, then=self.now), default=None),
            finished_at=None,
        )  # fmt: skip

    def begin_failed_again(self) -> list[Dispatch]:
        """Restart this run, and those of its children that did not succeed."""
        self.forget_failure()
        failed = self._reopen()
        return self.begin_children_again(failed) + self.go_on()

    def begin_children_again(self, ended: list[SequenceRun]) -> list[Dispatch]:
        return [dispatch for child in ended for dispatch in self._begin_child_again(child)]

    def _begin_child_again(self, child: SequenceRun) -> list[Dispatch]:
        run = lock_run(child.pk, self.using)
        if run is None or not run.is_finished or run.status == RunStatus.SUCCEEDED:
            return []
        request = OperationRequest(
            self.request.action,
            self.request.by,
            reason=gettext("inherited from its parent run %(run)s") % {"run": self.run.pk},
        )
        locked = LockedRun(run, request, self.using, keep_deliveries=self.keep_deliveries)
        if compensation.is_stuck(run, self.using):
            # What it has done must not be done twice: first it ends its rollback, and fails again.
            dispatches = locked.retry_undo()
            locked.done()
            return dispatches
        if locked.undone():  # it starts from nothing
            every = frozenset(locked.plan.names)
            locked.forget_deliveries(every)
            compensation.forget(run, locked.plan, every, self.using)
            subsequences.part(locked.steps(), self.using)
            runs.remove(run, every, self.using)
        dispatches = locked.begin_failed_again()
        locked.done()
        return dispatches

    def _reopen(self) -> list[SequenceRun]:
        """Prepare failed and retrying steps, or a fan-out's failed items, for a restart, on hold.

        Returns the children to restart, too.
        """
        ended = []
        if self.run.is_finished:  # unstarted steps were on hold, or cancelled
            ended = self.requeue_cancelled()
        failed = self.plan.failed(runs.states_of(self.run, self.using))
        rows = self.steps(item=NO_ITEM, status=StepStatus.FAILED, step__in=failed)
        fanout.reopen(rows, self.using)
        ended += self._reopen_parents(rows)
        self.requeue(rows)
        self.requeue(self.steps(status=StepStatus.RETRYING))
        return ended

    def _reopen_parents(self, rows: QuerySet[StepRun]) -> list[SequenceRun]:
        """For steps that wait for children: restart the failed children, not the wait."""
        failed: list[SequenceRun] = []
        for own in rows.filter(wait=Wait.CHILDREN):
            failed += subsequences.unsuccessful(self.steps(pk=own.pk), self.using)
            self.steps(pk=own.pk).update(
                **wait_for(Wait.CHILDREN, self.now), attempts=0, lost_workers=0, finished_at=None
            )
        return failed

    def has_stopped_steps(self) -> bool:
        """Whether steps wait for a retry, or were cancelled because the run failed by its
        deadline."""
        failed = self.run.status == RunStatus.FAILED
        stopped = (StepStatus.RETRYING, StepStatus.CANCELLED) if failed else (StepStatus.RETRYING,)
        return self.steps(status__in=stopped).exists()

    def undone(self) -> frozenset[str]:
        return compensation.undone(self.run, self.plan, self.using)

    def retries_only_undos(self) -> bool:
        """Whether a retry would run the undos or the closing steps again, and no other step."""
        if compensation.has_failed_at_its_end(self.run) or self.undone():
            return True
        return compensation.has_stuck_child(self.run, self.plan, self.using)

    def retry_undo(self) -> list[Dispatch]:
        """Continue with the failed undo or closing step."""
        self.allow(RULES["retry_compensation"])
        if not compensation.can_retry(self.run, self.plan, self.using):
            self.refuse(_ROLLED_BACK)
        self._begin_again()
        return compensation.retry(self.run, self.plan, self.now, self.using)

    def skip_compensation(self, step: str, rule: Rule) -> list[Dispatch]:
        """Continue the rollback without this undo."""
        rows = self.steps(step=step, status__in=rule.step_states)
        if not rows.update(status=StepStatus.SKIPPED):
            _refuse_status(self, rule.step_states)
        self._begin_again()
        self.run.status = RunStatus.UNDOING
        return compensation.go_on(self.run, self.plan, self.now, self.using)

    def forget_deliveries(self, steps: frozenset[str]) -> None:
        """Make the events among these steps wait again; the operation names those with
        deliveries."""
        delivered = [name for name in self.run.inbox if name in steps]
        if not delivered:
            return
        kept_events = delivered if self.keep_deliveries else []
        self.request = replace(
            self.request, before={"deliveries": delivered}, after={"deliveries": kept_events}
        )
        inbox = self.run.inbox.items()
        self.run.inbox = {
            name: value for name, value in inbox if name in kept_events or name not in steps
        }

    def forget_failure(self) -> None:
        """The run continues: it will have another failure, or none."""
        compensation.forget(self.run, self.plan, frozenset(), self.using)

    def go_on(self) -> list[Dispatch]:
        """The run continues, even if it had ended, and what is ready is dispatched."""
        if self.run.finished_at is not None:
            self._begin_again()
            self.run.final_status = ""
        ready = commits.advance(self.run, self.plan, self.now, self.using)
        if self.run.status != RunStatus.RUNNING or self.is_failing():
            return ready
        woken = self.wake()
        woken_ids = {dispatch.step_run_id for dispatch in woken}
        return woken + [dispatch for dispatch in ready if dispatch.step_run_id not in woken_ids]

    def _begin_again(self) -> None:
        self.run.status = RunStatus.RUNNING
        self.run.finished_at = None
        if self.run.key is not None and self.run.active_key is None:
            self._hold_key(self.run.key)

    def _hold_key(self, key: str) -> None:
        other = self._holder(key)
        if other is not None:
            self.refuse(
                _("its key %(key)r is now held by run %(run)s. Finish or cancel that run first."),
                run=other.pk,
                key=key,
            )
        self.run.active_key = key

    def _holder(self, key: str) -> SequenceRun | None:
        """The run that holds the key, under whichever name the sequence had when it started."""
        names = registry.names_of(self.run.sequence)
        of_sequence = Q(sequence__in=names) | Q(key_scope__in=[self.run.key_scope, *names])
        rivals = SequenceRun._base_manager.using(self.using).exclude(pk=self.run.pk)
        return rivals.filter(of_sequence, active_key=key).first()

    def is_failing(self) -> bool:
        return runs.is_failing(self.run, self.plan, self.using)


_OVER = _(
    "it failed, and a retry would no longer wait for this event. Restart it from a step instead."
)
_TAKEN_OVER = _("its on_error step has already taken over.")
_ROLLED_BACK = _("its completed steps were rolled back. Restart it from a step instead.")


def _operate(
    run_id: UUID,
    request: OperationRequest,
    using: str,
    function: Callable[[LockedRun], list[Dispatch]],
) -> list[Dispatch]:
    def operation() -> list[Dispatch]:
        run = lock_run(run_id, using)
        if run is None:
            problem = Text(_("it no longer exists."))
            raise InvalidTransition(
                _refusal_of_run(request, run_id, problem),
                action=request.action,
                run=run_id,
                status="gone",
                allowed="",
                problem=problem,
            )
        locked_run = LockedRun(run, request, using)
        dispatches = function(locked_run)
        if locked_run.has_effect:
            locked_run.check_basis()  # last, because all other reasons say more
            locked_run.done()
            limits.clear_on_commit(run_id, using)
        return dispatches

    try:
        return transact(using, operation)
    except IntegrityError:
        # Another run has taken its key between the check and the write: the next check finds it.
        return transact(using, operation)


def pause(run_id: UUID, request: OperationRequest, using: str) -> list[Dispatch]:
    """Put unstarted steps on hold; running steps may finish."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["pause"])
        locked.run.status = RunStatus.PAUSED
        states = (StepStatus.WAITING, StepStatus.QUEUED, StepStatus.RETRYING)
        locked.steps(status__in=states).update(wake_at=None)
        return []

    return _operate(run_id, request, using, function)


def resume(run_id: UUID, request: OperationRequest, using: str) -> list[Dispatch]:
    """Release what the pause holds."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["resume"])
        locked.run.status = RunStatus.RUNNING
        if not locked.is_failing():
            return locked.wake()
        retries = locked.wake_retries()
        return retries + compensation.stop(locked.run, locked.plan, locked.now, using)

    return _operate(run_id, request, using, function)


def set_deadline(
    run_id: UUID,
    request: OperationRequest,
    using: str,
    *,
    deadline: timedelta | datetime | None,
) -> list[Dispatch]:
    """Change or remove the deadline of the run. The sweep takes the same lock."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["set_deadline"])
        before, after = deadlines.move(run_id, deadline, locked.now, using)
        locked.has_effect = before != after
        locked.request = replace(
            locked.request, before=_deadline_text(before), after=_deadline_text(after)
        )
        return []

    return _operate(run_id, request, using, function)


def _deadline_text(deadline: datetime | None) -> dict[str, str | None]:
    return {"deadline": None if deadline is None else deadline.isoformat(timespec="seconds")}


def cancel(
    run_id: UUID,
    request: OperationRequest,
    using: str,
    *,
    undo: bool | None = None,
    ends_rollbacks: bool = True,
) -> list[Dispatch]:
    """End the run; nothing of it can commit any more. If requested, roll it back first.

    ``undo``: None means as its class says. ``ends_rollbacks``: False leaves alone a run that is
    already ending, and child runs that are.
    """

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["cancel" if ends_rollbacks else "cancel_and_undo"])
        if undo or (undo is None and locked.plan.cancel == "undo"):
            locked.request = replace(locked.request, action="cancel_and_undo")
            locked.allow(RULES["cancel_and_undo"])
            return compensation.begin(
                locked.run, locked.plan, RunStatus.CANCELLED, locked.now, using
            )
        return compensation.cancel(
            locked.run, locked.plan, locked.now, using, ends_rollbacks=ends_rollbacks
        )

    return _operate(run_id, request, using, function)


def finish(run_id: UUID, request: OperationRequest, using: str) -> list[Dispatch]:
    """End the run as succeeded; unfinished steps are skipped."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["finish"])
        return commits.finish(locked.run, locked.plan, locked.now, using)

    return _operate(run_id, request, using, function)


def retry(run_id: UUID, request: OperationRequest, using: str) -> list[Dispatch]:
    """Restart the failed steps, and release what their failure holds.

    A step that waits for a retry is retried now.
    """

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["retry"])
        if locked.retries_only_undos():
            return locked.retry_undo()
        if not locked.is_failing() and not locked.has_stopped_steps():
            locked.refuse(_("no step has failed or is waiting for a retry."))
        return locked.begin_failed_again()

    return _operate(run_id, request, using, function)


def skip(run_id: UUID, request: OperationRequest, using: str) -> list[Dispatch]:
    """Continue without this step."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["skip"])
        rule = skip_rule(locked.plan.node(request.step).kind)
        locked.allow(rule)
        if rule is RULES["skip_compensation"]:
            return locked.skip_compensation(request.step, rule)
        if locked.undone():
            locked.refuse(_ROLLED_BACK)
        rows = locked.steps(step=request.step)
        ended = {"status": StepStatus.SKIPPED, "finished_at": locked.now}
        ended |= {"token": None, "wake_at": None, "due_at": None}
        if has_handler(locked.plan, runs.states_of(locked.run, using), request.step):
            _refuse_step(locked, _TAKEN_OVER)
        # The write decides, not an earlier check: a claim may come in between.
        if not rows.filter(item=NO_ITEM, status__in=rule.step_states).update(**ended):
            _refuse_status(locked, rule.step_states)
        cancelled = compensation.cancel_children(rows, locked.now, using)
        items = rows.filter(item__gt=NO_ITEM)
        items.filter(status__in=(*rule.step_states, StepStatus.RUNNING)).update(**ended)
        again = locked.requeue_cancelled() if locked.run.is_finished else []
        locked.forget_failure()
        return cancelled + locked.begin_children_again(again) + locked.go_on()

    return _operate(run_id, request, using, function)


_TIMED = Q(status=StepStatus.RETRYING) | Q(status=StepStatus.WAITING, wait=Wait.TIME)


def run_now(run_id: UUID, request: OperationRequest, using: str) -> list[Dispatch]:
    """End a step's wait for a time; for a fan-out, every item's that waits for a time.

    Their due time is now, so that anything counted from it is right. Messages sent earlier with the
    delay arrive later: they find the rows claimed, or serve just as well.
    """

    def function(locked: LockedRun) -> list[Dispatch]:
        if locked.run.status == RunStatus.PAUSED:
            locked.refuse(_("it is paused. Resume it first."))
        locked.allow(RULES["run_now"])
        timed = locked.steps(step=request.step).filter(_TIMED)
        # The write decides, not an earlier check: a claim or a sweep may come in between.
        due = locked.queued() | {"due_at": locked.now}
        if not timed.filter(wake_at__isnull=False).update(**due):
            _refuse_step(locked, _held_or_not_timed(timed))
        # A step queued at the same moment gets a duplicate message, which is harmless.
        queued = locked.steps(step=request.step, status=StepStatus.QUEUED, queued_at=locked.now)
        return [dispatch_of(row, locked.plan) for row in queued.order_by("pk")]

    return _operate(run_id, request, using, function)


def _held_or_not_timed(timed: QuerySet[StepRun]) -> str:
    if timed.exists():
        return _("it is on hold because another step failed. Retry or skip that step first.")
    return _("it is not waiting for a delay or a retry.")


def _wrong_status(status: Any, allowed: tuple[Any, ...]) -> Text:
    return Text(
        _("its status is %(status)s. Allowed: %(allowed)s."), status=status, allowed=allowed
    )


def _step_state(state: str) -> str:
    return StepStatus(state) if state else Text(_("not started"))


def _why(problem: str, values: dict[str, Any]) -> dict[str, str]:
    """The problem, in translatable form, and the statuses in which there would be none."""
    text = problem if isinstance(problem, Text) else Text(problem, **values)
    return {"problem": text, "allowed": text.value("allowed")}


#: How messages name the operations whose methods have a name that does not read as a verb.
_ON_RUN = {
    "deliver": "deliver to",
    "restart_from": "restart",
    "run_now": "run a step of",
    "set_deadline": "set the deadline of",
    "skip": "skip a step of",
}
_ON_STEP = {"deliver": "deliver to", "restart_from": "restart from", "run_now": "run"}


def _refusal_of_run(request: OperationRequest, run_id: UUID, problem: str) -> str:
    return f"Cannot {_ON_RUN.get(request.action, request.action)} run {run_id}: {problem}"


def _refuse_status(locked: LockedRun, states: tuple[str, ...]) -> None:
    status = _step_state(locked.status_of(locked.request.step))
    _refuse_step(locked, _wrong_status(status, tuple(map(_step_state, states))))


def _refuse_step(locked: LockedRun, problem: str) -> None:
    request, why = locked.request, _why(problem, {})
    verb = _ON_STEP.get(request.action, request.action)
    raise InvalidTransition(
        f"Cannot {verb} step {request.step!r} of run {locked.run.pk}: {why['problem']}",
        action=request.action,
        run=locked.run.pk,
        status=str(_step_state(locked.status_of(request.step))),
        **why,
    )


def restart_from(
    run_id: UUID, request: OperationRequest, using: str, *, keep_deliveries: bool = False
) -> list[Dispatch]:
    """Restart this step, and run all later steps again."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.keep_deliveries = keep_deliveries
        _check_restart(locked, RULES["restart_from"])
        again = locked.plan.again(request.step, runs.states_of(locked.run, using))
        locked.forget_deliveries(again)
        compensation.forget(locked.run, locked.plan, again, using)
        cancelled = compensation.cancel_children(locked.steps(step__in=again), locked.now, using)
        subsequences.part(locked.steps(step__in=again), using)
        runs.remove(locked.run, again, using)
        ended = locked.requeue_cancelled()
        row = new_row(run_id, locked.plan.node(request.step), locked.now, None)
        starts.insert([row], using)
        return cancelled + locked.begin_children_again(ended) + locked.go_on()

    return _operate(run_id, request, using, function)


def _check_restart(locked: LockedRun, rule: Rule) -> None:
    plan, step = locked.plan, locked.request.step
    locked.allow(rule)
    if locked.status_of(step) not in rule.step_states:
        _refuse_step(locked, _("it has not started."))
    if plan.node(step).kind not in rule.kinds:
        _refuse_step(
            locked,
            _("it is an undo, on_failure, on_cancel or on_end. Retry the run to run it again."),
        )
    if undone := left_undone(plan, locked.undone(), step):
        names = ", ".join(map(repr, sorted(undone)))
        locked.refuse(
            _(
                "a restart from %(step)r would not run the rolled-back steps again: %(steps)s. "
                "Restart from an earlier step."
            ),
            step=step,
            steps=names,
        )
    if fails_elsewhere(plan, runs.states_of(locked.run, locked.using), step):
        locked.refuse(_("another step has failed. Retry or skip that step first."))


def deliver(
    run_id: UUID, payload: Any, request: OperationRequest, using: str
) -> tuple[list[Dispatch], bool]:
    """Store a payload for an event, and end its wait.

    False: there already was one, for it or for another step of its `any_of`.
    """
    counts = True

    def function(locked: LockedRun) -> list[Dispatch]:
        nonlocal counts
        locked.allow(RULES["deliver"])
        row = locked.steps(step=request.step).first()
        states, inbox = runs.states_of(locked.run, using), locked.run.inbox
        others = [name for name in inbox if name != request.step]
        has_lost = locked.plan.has_lost(request.step, states, others)
        counts = request.step not in inbox and not has_lost
        if not counts:
            locked.has_effect = False
            return []
        status = NOT_STARTED if row is None else row.status
        if status not in RULES["deliver"].step_states:
            _refuse_status(locked, RULES["deliver"].step_states)
        if locked.run.status == RunStatus.FAILED and locked.retries_only_undos():
            locked.refuse(_OVER)
        if has_handler(locked.plan, states, request.step):
            _refuse_step(locked, _TAKEN_OVER)
        if is_past(locked.plan, states, request.step):
            _refuse_step(locked, _("it only takes over after a failure, and there was none."))
        locked.run.inbox = {**locked.run.inbox, request.step: payload}
        if row is None or row.status != StepStatus.WAITING:
            return []  # it finds the payload when it checks, or when it commits its wait
        if row.wait != Wait.EVENT:
            return []  # its own delay is not over
        return locked.receive(row)

    return _operate(run_id, request, using, function), counts


def edit(
    run_id: UUID,
    version: int,
    data: dict[str, Any],
    hidden: tuple[str, ...],
    request: OperationRequest,
    using: str,
) -> list[Dispatch]:
    """Replace the run's data, while no step is running."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["edit"])
        if locked.steps(status=StepStatus.RUNNING).exists():
            locked.refuse(_("a step is running. Wait until it has finished."))
        if locked.run.version != version:
            locked.refuse(
                _(
                    "it has changed since it was read (version %(version)d, now %(now)d). Call "
                    "refresh_from_db() and edit again."
                ),
                version=version,
                now=locked.run.version,
            )
        # What is stored, not the caller's instance, which may have been changed in place.
        locked.has_effect = _as_text(locked.run.data) != _as_text(data)
        before, after = redact(locked.run.data, hidden), redact(data, hidden)
        locked.request = replace(request, before=before, after=after)
        locked.run.data = data
        return []

    return _operate(run_id, request, using, function)


def _as_text(data: dict[str, Any]) -> str:
    """For comparisons: 1, 1.0 and True are equal in Python, but not in JSON."""
    return json.dumps(data, sort_keys=True)


def erase(
    run_id: UUID, request: OperationRequest, using: str, *, keep_key: bool = False
) -> list[Dispatch]:
    """Permanently erase the stored data of the run and of its child runs."""

    def function(locked: LockedRun) -> list[Dispatch]:
        locked.allow(RULES["erase"])
        below = erasing.lock_below(run_id, using)
        _refuse_unfinished(locked, below)
        ids = [child.pk for child in below]
        erasing.blank([run_id, *ids], locked.now, using, keep_key=keep_key)
        locked.run.data, locked.run.inbox = {}, {}
        if not keep_key:
            locked.run.active_key = None
        reason = gettext("inherited from its parent run %(run)s") % {"run": run_id}
        Operation._base_manager.using(using).bulk_create(
            Operation(
                run_id=pk, action=request.action, by=request.by, reason=reason, done_at=locked.now
            )
            for pk in ids
        )
        return []

    return _operate(run_id, request, using, function)


def _refuse_unfinished(locked: LockedRun, below: list[SequenceRun]) -> None:
    child = next((child for child in below if not child.is_finished), None)
    if child is not None:
        locked.refuse(
            _(
                "its child run %(run)s has not finished (status %(status)s). Cancel it, or wait "
                "until it has finished."
            ),
            run=child.pk,
            status=RunStatus(child.status),
        )
