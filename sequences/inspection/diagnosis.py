"""A sentence about a run: why it is stuck, or what it is waiting for.

For the admin, the command line and the pages of a project. Plain text: code that shows it as HTML
escapes it. Each case is one whole message, so that a translation can order the words freely. If
there are two things to say, there are two sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext

from .. import conf
from ..exceptions import (
    DeadlineExceeded,
    EventTimeout,
    SequenceError,
    StepExpired,
    StepKindChanged,
    UnknownStep,
    WorkerLost,
)
from ..models import NO_ITEM, Operation, RunStatus, StepFailure, StepRun, StepStatus, Wait
from ..transitions.causes import CHILDREN_FAILED, ITEMS_FAILED
from ..transitions.compensation import STANDSTILL, STOPPED, has_failed_at_its_end
from ..transitions.subsequences import UNDO_FAILED, ChildrenUndo
from ..utils.text import class_name, first_line
from .actions import was_undone
from .losses import deaths_sentence
from .old_workers import PICKUP_TIME
from .snapshot import RunSnapshot, StepSnapshot
from .wording import format_amount, format_duration, listed, quoted

#: How many characters of an error's message the sentence quotes.
ERROR_LENGTH = 200


def summary(snapshot: RunSnapshot, last: Operation | None = None) -> str:
    """The sentence about this run; ``last`` is the latest operation on it, if known.

    The error is that of the snapshot's failure.
    """
    if not snapshot.is_readable:
        return _("A newer release started this run. This release can neither show nor change it.")
    text = _OF_RUN[RunStatus(snapshot.run.status)](snapshot, last)
    return " ".join(filter(None, (text, _class_gone(snapshot), _erased(snapshot))))


def error_of(failure: StepFailure) -> str:
    """The error and the first line of its message: ``CardError: insufficient funds``."""
    name, line = class_name(failure.error), first_line(failure.message, ERROR_LENGTH + 1)
    return f"{name}: {line}" if line else name


def _class_gone(snapshot: RunSnapshot) -> str:
    """What it means that this code lacks the class, unless the run no longer needs it."""
    if snapshot.is_known or snapshot.run.status in (RunStatus.SUCCEEDED, RunStatus.CANCELLED):
        return ""
    if snapshot.run.status == RunStatus.FAILED:
        message = _(
            "No step can run again until a release with the class %(sequence)s is deployed."
        )
    else:
        message = _(
            "No step can run, because this code has no class %(sequence)s. The run continues on "
            "its own once a release with the class is deployed."
        )
    return message % {"sequence": snapshot.run.sequence}


def _erased(snapshot: RunSnapshot) -> str:
    erasure = snapshot.erasure
    if erasure is None:
        return ""
    ago = format_duration(snapshot.now - erasure.done_at)
    if erasure.by:
        message = _("Its data was erased by %(by)s %(ago)s ago.")
    else:
        message = _("Its data was erased %(ago)s ago.")
    return _with_reason(message % {"by": erasure.by, "ago": ago}, erasure)


# Runs that have ended


def _succeeded(snapshot: RunSnapshot, last: Operation | None) -> str:
    values = _times(snapshot)
    if last is None or last.action != "finish":
        return _("Succeeded %(ago)s ago, after %(span)s.") % values
    if last.by:
        message = _("Marked as succeeded by %(by)s %(ago)s ago, after %(span)s.")
    else:
        message = _("Marked as succeeded %(ago)s ago, after %(span)s.")
    return _with_reason(message % {"by": last.by, **values}, last)


def _cancelled(snapshot: RunSnapshot, last: Operation | None) -> str:
    values = _times(snapshot)
    if last is None or last.action not in _CANCELLING:
        return _("Cancelled %(ago)s ago.") % values
    message = _("Cancelled %(ago)s ago by %(by)s.") if last.by else _("Cancelled %(ago)s ago.")
    return _with_reason(message % {"by": last.by, **values}, last)


_CANCELLING = ("cancel", "cancel_and_undo")


def _failed(snapshot: RunSnapshot, last: Operation | None) -> str:
    undo = next((step for step in snapshot.steps if _is_failed_undo(step)), None)
    if undo is not None:
        return f"{_failed_at(snapshot)} {_failed_rollback(snapshot, undo)}"
    below = next((step for step in snapshot.steps if step.children_undo in UNDO_FAILED), None)
    if below is not None:
        message = _("The rollback of the child runs of %(step)s failed, too.")
        return f"{_failed_at(snapshot)} " + message % {"step": _name(below)}
    if has_failed_at_its_end(snapshot.run):
        return _failed_at_its_end(snapshot)
    is_undone = was_undone(snapshot)
    rollback = _("Completed steps were rolled back.") if is_undone else ""
    parts = (_failed_at(snapshot, with_error=True), rollback, _way_out(snapshot, is_undone))
    text = " ".join(filter(None, parts))
    if is_undone or not snapshot.plan.failed(snapshot.states):
        return text
    return _with_blocked(snapshot, text)


def _way_out(snapshot: RunSnapshot, is_undone: bool) -> str:
    """What to do about an error of this package.

    Its message cannot say that: it was stored before the rollback, after which neither a retry nor
    a skip is possible.
    """
    failure = snapshot.current_failure
    if failure is None or failure.error not in _WAYS_OUT:
        return ""
    if failure.error == _full_name(UnknownStep) and failure.step not in snapshot.removed:
        return ""  # the code of the step asked for one that does not exist
    if is_undone:
        return _("To run it again, restart it from a step.")
    return _(_WAYS_OUT[failure.error])


def _full_name(error: type[SequenceError]) -> str:
    return f"{error.__module__}.{error.__qualname__}"


_WAYS_OUT = {
    _full_name(EventTimeout): gettext_noop("Retry the run to wait again, or skip the step."),
    _full_name(StepExpired): gettext_noop("Retry the run, or skip the step."),
    _full_name(DeadlineExceeded): gettext_noop("Retry the run to continue without a deadline."),
    _full_name(WorkerLost): gettext_noop("Find out why its workers died, then retry the run."),
    _full_name(StepKindChanged): gettext_noop(
        "Retry the run once the code declares the step as before, or skip the step."
    ),
    _full_name(UnknownStep): gettext_noop(
        "Retry the run once the code has the step again, or skip the step."
    ),
}


def _failed_at_its_end(snapshot: RunSnapshot) -> str:
    """It would have succeeded, or been cancelled, if its closing step had not failed."""
    closing = (step for step in snapshot.steps if step.node.traits.is_closing)
    failed = next((step for step in closing if step.status == StepStatus.FAILED), None)
    if failed is None:
        return _failed_at(snapshot, with_error=True)
    message = (
        _("All other steps have ended, but %(step)s failed %(ago)s ago: %(error)s.")
        if snapshot.run.final_status == RunStatus.SUCCEEDED
        else _("The run was cancelled, but %(step)s failed %(ago)s ago: %(error)s.")
    )
    values = {"step": _name(failed), "error": _error(snapshot, failed), **_times(snapshot)}
    return message % values


def _failed_at(snapshot: RunSnapshot, *, with_error: bool = False) -> str:
    """Which steps failed the run, and when; the error is that of the first."""
    names = snapshot.plan.failed(snapshot.states)
    failed = snapshot.at[0] if names else None
    error = _error(snapshot, failed) if with_error else ""
    values = {"steps": listed(names), "error": error, **_times(snapshot)}
    attempts = failed.attempts if failed is not None and with_error else 0
    if not names:
        message = (
            _("The run failed %(ago)s ago: %(error)s.")
            if error
            else _("The run failed %(ago)s ago.")
        )
    elif attempts < 2:
        message = (
            _("%(steps)s failed %(ago)s ago: %(error)s.")
            if error
            else _("%(steps)s failed %(ago)s ago.")
        )
    elif error:
        message = ngettext(
            "%(steps)s failed %(ago)s ago after %(count)d attempt: %(error)s.",
            "%(steps)s failed %(ago)s ago after %(count)d attempts: %(error)s.",
            attempts,
        )
    else:
        message = ngettext(
            "%(steps)s failed %(ago)s ago after %(count)d attempt.",
            "%(steps)s failed %(ago)s ago after %(count)d attempts.",
            attempts,
        )
    return message % {"count": attempts, **values}


def _failed_rollback(snapshot: RunSnapshot, undo: StepSnapshot) -> str:
    error = _error(snapshot, undo)
    message = (
        _("The rollback failed, too, at %(step)s: %(error)s.")
        if error
        else _("The rollback failed, too, at %(step)s.")
    )
    return message % {"step": _name(undo), "error": error}


def _is_failed_undo(step: StepSnapshot) -> bool:
    is_failed = step.status == "failed" or bool(step.items.get("failed"))
    return step.node.traits.is_undo and is_failed


def _with_blocked(snapshot: RunSnapshot, text: str) -> str:
    """Add what a failure blocks: the steps beside the failed one, and the steps after it."""
    on_hold = sum(step.is_on_hold for step in snapshot.steps)
    is_more = any(not step.status for step in snapshot.steps if not step.node.off_path)
    if on_hold and is_more:
        message = ngettext(
            "%(count)d other step is on hold, and later steps are blocked.",
            "%(count)d other steps are on hold, and later steps are blocked.",
            on_hold,
        )
    elif on_hold:
        message = ngettext(
            "%(count)d other step is on hold.", "%(count)d other steps are on hold.", on_hold
        )
    elif is_more:
        message = _("Later steps are blocked.")
    else:
        return text
    return f"{text} " + message % {"count": on_hold}


# Runs that are being rolled back


def _undoing(snapshot: RunSnapshot, last: Operation | None) -> str:
    return " ".join([_why_undoing(snapshot, last), *_undoing_now(snapshot)])


def _why_undoing(snapshot: RunSnapshot, last: Operation | None) -> str:
    failed = snapshot.plan.failed(snapshot.states)
    if not snapshot.run.final_status:
        return _("Stopped together with its parent; it will be rolled back when its turn comes.")
    if snapshot.run.final_status == STANDSTILL:
        return _("Being cancelled together with its parent, which has an undo for this run.")
    if snapshot.run.final_status == RunStatus.SUCCEEDED:
        return _("All other steps have ended.")
    if snapshot.run.final_status in (RunStatus.CANCELLED, STOPPED):
        return _being_cancelled(snapshot, last)
    if failed:
        return _("%(steps)s failed; rolling back completed steps.") % {"steps": listed(failed)}
    return _("Rolling back completed steps.")


def _being_cancelled(snapshot: RunSnapshot, last: Operation | None) -> str:
    operation = last if last is not None and last.action in _CANCELLING else None
    by = operation.by if operation is not None else ""
    if any(step.node.traits.is_closing and step.status for step in snapshot.steps):
        message = _("Being cancelled by %(by)s.") if by else _("Being cancelled.")
    elif by:
        message = _("Being cancelled by %(by)s; rolling back first.")
    else:
        message = _("Being cancelled; rolling back first.")
    text = message % {"by": by}
    return text if operation is None else _with_reason(text, operation)


def _undoing_now(snapshot: RunSnapshot) -> list[str]:
    """What the rollback is doing, or what it is waiting for."""
    running = [step.name for step in snapshot.steps if _still_executes(step)]
    if running:
        return [_("Waiting for %(steps)s to finish first.") % {"steps": listed(running)}]
    below = [step for step in snapshot.steps if _undoes_below(step)]
    if below:
        return [_("The child runs of %(step)s are being rolled back.") % {"step": _name(below[0])}]
    compensations = [
        step for step in snapshot.steps if step.node.traits.is_compensation and _is_open(step)
    ]
    return [_now(snapshot, step) for step in compensations[:1]]


def _undoes_below(step: StepSnapshot) -> bool:
    """Whether its children are being rolled back; nothing else watches a step that has ended."""
    is_watched = step.row is not None and step.row.wake_at is not None
    has_ended = step.node.traits.has_children and step.status not in _OF_STEP
    return step.children_undo == ChildrenUndo.RUNNING or (has_ended and is_watched)


def _still_executes(step: StepSnapshot) -> bool:
    running = step.status == StepStatus.RUNNING or bool(step.items.get("running"))
    return running and not step.node.traits.is_compensation


def _is_open(step: StepSnapshot) -> bool:
    is_held = step.row is not None and step.row.wake_at is None
    return step.status in _OF_STEP and not is_held


# Runs that continue, or could


def _paused(snapshot: RunSnapshot, last: Operation | None) -> str:
    sentences = [_why_paused(snapshot)]
    if snapshot.is_failing:
        sentences.append(_failing(snapshot))
    if running := [step.name for step in snapshot.steps if step.status == StepStatus.RUNNING]:
        message = ngettext(
            "%(steps)s is still running.", "%(steps)s are still running.", len(running)
        )
        sentences.append(message % {"steps": listed(running)})
    return " ".join(sentences)


def _why_paused(snapshot: RunSnapshot) -> str:
    pause = snapshot.pause
    if pause is None:
        return _("Paused. No new step starts until the run is resumed.")
    ago = format_duration(snapshot.now - pause.done_at)
    message = _("Paused by %(by)s %(ago)s ago.") if pause.by else _("Paused %(ago)s ago.")
    return _with_reason(message % {"by": pause.by, "ago": ago}, pause)


def _running(snapshot: RunSnapshot, last: Operation | None) -> str:
    if snapshot.is_failing:
        return _failing(snapshot)
    steps = sorted(snapshot.at, key=lambda step: _urgency(snapshot, step))
    if not steps:
        return _("The first steps are about to start.")
    text = _now(snapshot, steps[0])
    if race := _race(snapshot, steps[0]):
        return f"{text} {race}"
    more = len(steps) - 1
    if not more:
        return text
    beside = ngettext("%(count)d other step is active.", "%(count)d other steps are active.", more)
    return f"{text} " + beside % {"count": more}


def _race(snapshot: RunSnapshot, step: StepSnapshot) -> str:
    """That other steps may be faster than this one, and what starts then."""
    for later in snapshot.plan.successors(step.name):
        group = next((group for group in later.any_of if step.name in group), None)
        if group is not None and later.name not in snapshot.states:
            message = _("%(step)s starts as soon as one of %(steps)s has succeeded.")
            return message % {"step": quoted(later.name), "steps": listed(group)}
    return ""


def _failing(snapshot: RunSnapshot) -> str:
    text = _failed_step(snapshot, snapshot.at[0])
    others = [step.name for step in snapshot.steps if step.state in ("running", "retrying")]
    if not others:
        return _with_blocked(snapshot, text)
    message = ngettext(
        "The run fails once %(steps)s has finished.",
        "The run fails once %(steps)s have finished.",
        len(others),
    )
    return f"{text} " + message % {"steps": listed(others)}


def _failed_step(snapshot: RunSnapshot, step: StepSnapshot) -> str:
    attempts, error = step.attempts, _error(snapshot, step)
    if attempts < 2:
        message = _("%(step)s failed: %(error)s.") if error else _("%(step)s failed.")
    elif error:
        message = ngettext(
            "%(step)s failed after %(count)d attempt: %(error)s.",
            "%(step)s failed after %(count)d attempts: %(error)s.",
            attempts,
        )
    else:
        message = ngettext(
            "%(step)s failed after %(count)d attempt.",
            "%(step)s failed after %(count)d attempts.",
            attempts,
        )
    return message % {"step": _name(step), "count": attempts, "error": error}


def _urgency(snapshot: RunSnapshot, step: StepSnapshot) -> int:
    """What blocks most comes first."""
    row = step.row
    if row is None:
        return 9
    if row.status == StepStatus.RUNNING:
        return 0 if _silence(snapshot, row) is not None else 5
    if row.status == StepStatus.QUEUED:
        return 1 if snapshot.now - row.queued_at > PICKUP_TIME else 6
    if row.status == StepStatus.RETRYING:
        return 2
    return 3 if step.is_awaiting_event else 4


# Steps


def _now(snapshot: RunSnapshot, step: StepSnapshot) -> str:
    """What this step is doing."""
    if step.row is None:
        return _("%(step)s is running.") % {"step": _name(step)}
    return _OF_STEP[StepStatus(step.row.status)](snapshot, step, step.row)


def _queued_step(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    values = {
        "step": _name(step),
        "ago": format_duration(snapshot.now - row.queued_at),
        "queue": step.node.queue,
    }
    if step.loss is not None:
        message = _(
            "%(step)s has been queued for %(ago)s. Because it lost its worker, it runs only in a "
            "process that is not running another such step."
        )
        return f"{message % values} {deaths_sentence(row, step.loss)}"
    if step.node.queue in snapshot.queues_of_old_workers:
        message = _(
            "%(step)s has been queued for %(ago)s and no worker has picked it up. All workers of "
            "the queue “%(queue)s” were started before this version of the sequence first "
            "appeared, so they may be running older code: restart them."
        )
    elif snapshot.now - row.queued_at > PICKUP_TIME:
        message = _(
            "%(step)s has been queued for %(ago)s and no worker has picked it up. Is a worker "
            "running for the queue “%(queue)s”?"
        )
    elif row.lost_workers:
        message = _("The worker of %(step)s was lost; another one will take over.")
    else:
        message = _("%(step)s has been queued for %(ago)s.")
    return message % values


def _running_step(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    silence = _silence(snapshot, row)
    if silence is not None and row.wake_at is not None:
        return _silent_worker(snapshot, step, silence, row.wake_at)
    text = _with_progress(
        step,
        _("%(step)s has been running for %(span)s."),
        _("%(step)s has been running for %(span)s: %(text)s."),
        _("%(step)s has been running for %(span)s (%(done)s of %(total)s)."),
        _("%(step)s has been running for %(span)s: %(text)s (%(done)s of %(total)s)."),
        {"span": format_duration(snapshot.now - (row.started_at or snapshot.now))},
    )
    return text if step.loss is None else f"{text} {deaths_sentence(row, step.loss)}"


def _silent_worker(
    snapshot: RunSnapshot, step: StepSnapshot, silence: timedelta, expires_at: datetime
) -> str:
    if expires_at > snapshot.now:
        message = _(
            "The worker of %(step)s seems to be lost: no heartbeat for %(silence)s. The step will "
            "be requeued when its lease expires, in %(left)s."
        )
        left = format_duration(expires_at - snapshot.now)
        return message % {"step": _name(step), "silence": format_duration(silence), "left": left}
    message = _(
        "The worker of %(step)s was lost. Its lease expired %(ago)s ago and no sweep has requeued "
        "the step yet. Is any worker running?"
    )
    return message % {"step": _name(step), "ago": format_duration(snapshot.now - expires_at)}


def _silence(snapshot: RunSnapshot, row: StepRun) -> timedelta | None:
    """How long its worker has given no sign of life, if that is too long."""
    if row.wake_at is None or row.started_at is None:
        return None
    lease = timedelta(seconds=conf.settings.lease)
    patience = timedelta(seconds=2 * conf.settings.heartbeat)
    # A heartbeat extends the lease to its full length; a claim may leave less than that.
    silence = min(snapshot.now - (row.wake_at - lease), snapshot.now - row.started_at)
    return silence if silence > patience or row.wake_at <= snapshot.now else None


def _retrying_step(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    overdue = snapshot.now - row.due_at if row.due_at is not None else timedelta(0)
    if overdue < timedelta(0):
        message = ngettext(
            "Retrying %(step)s in %(time)s (%(count)d failed attempt).",
            "Retrying %(step)s in %(time)s (%(count)d failed attempts).",
            row.attempts,
        )
    elif overdue > PICKUP_TIME:
        message = ngettext(
            "%(step)s has been due for a retry for %(time)s (%(count)d failed attempt) and no "
            "worker has picked it up. Is a worker running for the queue “%(queue)s”?",
            "%(step)s has been due for a retry for %(time)s (%(count)d failed attempts) and no "
            "worker has picked it up. Is a worker running for the queue “%(queue)s”?",
            row.attempts,
        )
    else:
        message = ngettext(
            "Retrying %(step)s now (%(count)d failed attempt).",
            "Retrying %(step)s now (%(count)d failed attempts).",
            row.attempts,
        )
    text = message % {
        "step": _name(step),
        "time": format_duration(abs(overdue)),
        "count": row.attempts,
        "queue": step.node.queue,
    }
    error = _error(snapshot, step)
    return f"{text} " + _("Last error: %(error)s.") % {"error": error} if error else text


def _in_line(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    wait = snapshot.limit_waits.get(row.pk)
    if wait is None:
        return _("%(step)s is about to check its limits again.") % {"step": _name(step)}
    if row.due_at is not None:
        message = _("%(step)s starts in %(time)s: the limit %(limit)s allows %(rate)s per %(per)s.")
    elif wait.is_full and wait.key:
        message = _(
            "%(step)s is waiting for the limit %(limit)s (%(key)s): %(in_use)d of %(places)d in "
            "use."
        )
    elif wait.is_full:
        message = _("%(step)s is waiting for the limit %(limit)s: %(in_use)d of %(places)d in use.")
    elif wait.rate is not None:
        message = _(
            "%(step)s is waiting for the limit %(limit)s, which allows %(rate)s per %(per)s."
        )
    else:
        message = _("%(step)s is waiting for the limit %(limit)s: others are ahead of it.")
    left = max((row.due_at or snapshot.now) - snapshot.now, timedelta(0))
    return message % {**wait.values, "step": _name(step), "time": format_duration(left)}


def _items_in_line(snapshot: RunSnapshot, row: StepRun) -> str:
    wait = snapshot.limit_waits.get(row.pk)
    if wait is None or not wait.items:
        return ""
    if wait.is_full:
        message = ngettext(
            "%(count)d item is waiting for the limit %(limit)s: %(in_use)d of %(places)d in use.",
            "%(count)d items are waiting for the limit %(limit)s: %(in_use)d of %(places)d in use.",
            wait.items,
        )
    else:
        message = ngettext(
            "%(count)d item is waiting for the limit %(limit)s.",
            "%(count)d items are waiting for the limit %(limit)s.",
            wait.items,
        )
    return message % {**wait.values, "count": wait.items}


def _waiting_step(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    if row.wait == Wait.EVENT:
        return _awaiting(snapshot, step, row)
    if row.wait == Wait.TIME:
        return _delayed(snapshot, step, row)
    if row.wait == Wait.LIMIT:
        return _in_line(snapshot, step, row)
    if row.wait == Wait.CHILDREN:
        count = (row.members or {}).get("total", 1)
        message = ngettext(
            "%(step)s is waiting for its child run.",
            "%(step)s is waiting for its %(count)d child runs.",
            count,
        )
        return message % {"step": _name(step), "count": count}
    text = _with_progress(
        step,
        _("%(step)s is running."),
        _("%(step)s is running: %(text)s."),
        _("%(step)s is running (%(done)s of %(total)s)."),
        _("%(step)s is running: %(text)s (%(done)s of %(total)s)."),
    )
    text = " ".join(filter(None, (text, _items_in_line(snapshot, row))))
    failed = step.items.get("failed", 0)
    if not failed:
        return text
    message = ngettext("%(count)d item failed.", "%(count)d items failed.", failed)
    return f"{text} " + message % {"count": failed}


def _awaiting(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    since = row.waiting_since or row.queued_at
    left = row.due_at - snapshot.now if row.due_at is not None else None
    if left is None:
        message = _("Waiting for the event %(step)s (%(time)s so far). It has no timeout.")
    elif left < timedelta(0):
        message = _("Waiting for the event %(step)s (%(time)s so far). Its timeout has passed.")
    else:
        message = _("Waiting for the event %(step)s (%(time)s so far). It times out in %(left)s.")
    time = format_duration(snapshot.now - since)
    return message % {"step": _name(step), "time": time, "left": format_duration(left)}


def _delayed(snapshot: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    left = (row.due_at or snapshot.now) - snapshot.now
    if left < timedelta(0):
        return _("%(step)s is due now.") % {"step": _name(step)}
    return _("%(step)s starts in %(left)s.") % {"step": _name(step), "left": format_duration(left)}


# Values in the messages


def _name(step: StepSnapshot) -> str:
    return quoted(step.name)


def _times(snapshot: RunSnapshot) -> dict[str, str]:
    ended = snapshot.run.finished_at or snapshot.now
    return {
        "ago": format_duration(snapshot.now - ended),
        "span": format_duration(snapshot.duration),
    }


def _error(snapshot: RunSnapshot, step: StepSnapshot | None) -> str:
    """The run's error, if it belongs to this step: its deepest cause, with its place."""
    failure = snapshot.current_failure
    if failure is None or (step is not None and failure.step != step.name):
        return ""
    if snapshot.cause is not None:
        return _cause(snapshot, snapshot.cause)
    return reported(failure) or error_of(failure).rstrip(".")


def reported(failure: StepFailure) -> str:
    """A failure that others have caused, and whose cause no longer exists.

    Its own message is about past statuses and ids.
    """
    if failure.error == CHILDREN_FAILED:
        return _("a child run had failed")
    if failure.error == ITEMS_FAILED:
        return _("items had failed")
    return ""


def _cause(snapshot: RunSnapshot, cause: StepFailure) -> str:
    is_own, is_item = cause.run_id == snapshot.run.pk, cause.item != NO_ITEM
    items = _items_of(snapshot, cause)
    failed = items.get("failed", 0)
    if is_own and failed > 1:
        message = _("%(error)s (item %(item)d; %(failed)d of %(total)d items failed)")
    elif is_own:
        message = _("%(error)s (item %(item)d)")
    elif is_item:
        message = _("%(error)s (item %(item)d of “%(step)s” of run %(run)s)")
    else:
        message = _("%(error)s (“%(step)s” of run %(run)s)")
    values = {"step": cause.step, "item": cause.item, "run": cause.run}
    counts = {"failed": failed, "total": sum(items.values())}
    return message % {"error": error_of(cause).rstrip("."), **values, **counts}


def _items_of(snapshot: RunSnapshot, cause: StepFailure) -> Mapping[str, int]:
    step = snapshot.step(cause.step)
    return step.items if step is not None and cause.item != NO_ITEM else {}


def _with_progress(
    step: StepSnapshot,
    plain: str,
    with_text: str,
    with_amount: str,
    with_both: str,
    values: dict[str, str] | None = None,
) -> str:
    """The one of the four messages that fits what the step has reported."""
    text, amount = step.progress_text, step.progress
    if amount is None:
        message = with_text if text else plain
    else:
        message = with_both if text else with_amount
    done, total = amount or (0, 0)
    return message % {
        "step": _name(step),
        "text": text,
        "done": format_amount(done),
        "total": format_amount(total),
        **(values or {}),
    }


def _with_reason(text: str, operation: Operation) -> str:
    """Add the first line of the reason, if someone gave one."""
    reason = next(iter(operation.reason.strip().splitlines()), "").rstrip(".")
    return f"{text} " + _("Reason: %(reason)s.") % {"reason": reason} if reason else text


_OF_RUN = {
    RunStatus.RUNNING: _running,
    RunStatus.PAUSED: _paused,
    RunStatus.UNDOING: _undoing,
    RunStatus.SUCCEEDED: _succeeded,
    RunStatus.FAILED: _failed,
    RunStatus.CANCELLED: _cancelled,
}
_OF_STEP = {
    StepStatus.QUEUED: _queued_step,
    StepStatus.RUNNING: _running_step,
    StepStatus.RETRYING: _retrying_step,
    StepStatus.WAITING: _waiting_step,
}
