"""What is the matter with a run, in a sentence: why it is stuck, and what it waits for.

For the admin, the command line and the pages of a project. Plain text: whoever shows it as HTML
escapes it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import conf
from ..definitions.plan import COMPENSATION_KINDS
from ..models import Operation, RunStatus, StepFailure, StepRun, StepStatus
from ..transitions.compensation import STANDSTILL
from ..transitions.subsequences import Undoing
from ..utils.durations import format_duration
from ..utils.text import class_name, first_line
from .snapshot import RunSnapshot, StepSnapshot

#: How much of an error's message stands in the sentence, in characters.
LONGEST = 200
#: A queued step whose message is this old finds no worker.
PATIENCE = timedelta(seconds=30)


def summary(portrait: RunSnapshot, last: Operation | None = None) -> str:
    """What is the matter with this run; ``last`` is the newest act on it, if that is known.

    The failure of the portrait tells the error.
    """
    if not portrait.is_readable:
        return _("A newer release has started this run: this one can neither show nor change it.")
    return _OF[RunStatus(portrait.run.status)](portrait, last)


def error_of(failure: StepFailure) -> str:
    """The error and the first line of its message: ``CardError: insufficient funds``."""
    name, line = class_name(failure.error), first_line(failure.message, LONGEST + 1)
    return f"{name}: {line}" if line else name


# A run that has ended


def _succeeded(portrait: RunSnapshot, last: Operation | None) -> str:
    told = _("Succeeded %(ago)s ago, after %(span)s.") % _times(portrait)
    return _by(told, last, "finish")


def _cancelled(portrait: RunSnapshot, last: Operation | None) -> str:
    told = _("Cancelled %(ago)s ago.") % _times(portrait)
    return _by(told, last, "cancel", "cancel_and_undo")


def _failed(portrait: RunSnapshot, last: Operation | None) -> str:
    undo = next((step for step in portrait.steps if _is_failed_undo(step)), None)
    names = _names(portrait.plan.failed(portrait.states))
    told = _("Failed at %(steps)s %(ago)s ago") % {"steps": names, **_times(portrait)}
    if undo is not None:
        told += ". " + _("Its undo %(step)s has failed, too") % {"step": _name(undo)}
        return f"{told}{_error(portrait, undo)}."
    below = next((step for step in portrait.steps if step.undoing == Undoing.FAILED), None)
    if below is not None:
        why = _("The undo of a run that %(step)s has started has failed, too.")
        return f"{told}. " + why % {"step": _name(below)}
    if not names:
        return _("Failed %(ago)s ago") % _times(portrait) + f"{_error(portrait, None)}."
    failed = portrait.at[0]
    told += _attempts(failed) + _error(portrait, failed) + ". "
    if portrait.plan.undos or any(step.undoing for step in portrait.steps):
        return told + _("What it had done is undone.")
    return told + _("What comes after it is held.") if _is_held(portrait) else told.strip()


def _is_failed_undo(step: StepSnapshot) -> bool:
    is_failed = step.status == "failed" or bool(step.items.get("failed"))
    return step.node.kind == "undo" and is_failed


def _is_held(portrait: RunSnapshot) -> bool:
    """Whether there is more to do, were it not for the failure."""
    return any(step.status not in _ENDED for step in portrait.steps if not step.node.aside)


_ENDED = ("succeeded", "failed", "skipped", "cancelled")


# A run that has not


def _undoing(portrait: RunSnapshot, last: Operation | None) -> str:
    failed = portrait.plan.failed(portrait.states)
    if not portrait.run.ending:
        told = _("It is stopped with its parent, and is undone when its turn comes.")
    elif portrait.run.ending == STANDSTILL:
        told = _("It is cancelled with its parent, which has an undo for it.")
    elif portrait.run.ending == RunStatus.CANCELLED:
        told = _by(_("It is cancelled, and undone before that."), last, "cancel_and_undo")
    elif failed:
        told = _("%(steps)s has failed, and what was done is undone.") % {"steps": _names(failed)}
    else:
        told = _("It is undone.")
    return " ".join([told, *_undoing_now(portrait)])


def _undoing_now(portrait: RunSnapshot) -> list[str]:
    """What an undoing is about, or waits for."""
    running = [step.name for step in portrait.steps if _still_executes(step)]
    if running:
        return [_("First %(steps)s must end.") % {"steps": _names(running)}]
    below = [step for step in portrait.steps if step.undoing == Undoing.RUNNING]
    if below:
        told = _("The runs that %(step)s has started are being undone.")
        return [told % {"step": _name(below[0])}]
    aside = [
        step for step in portrait.steps if step.node.kind in COMPENSATION_KINDS and _is_open(step)
    ]
    return [_now(portrait, step) for step in aside[:1]]


def _still_executes(step: StepSnapshot) -> bool:
    running = step.status == StepStatus.RUNNING or bool(step.items.get("running"))
    return running and step.node.kind not in COMPENSATION_KINDS


def _is_open(step: StepSnapshot) -> bool:
    is_held = step.row is not None and step.row.wake_at is None
    return step.status in _OF_STEP and not is_held


def _paused(portrait: RunSnapshot, last: Operation | None) -> str:
    if last is not None and last.action == "pause":
        ago = format_duration(portrait.now - last.done_at)
        by_whom, by_nobody = (
            _("Paused by %(by)s %(ago)s ago%(why)s."),
            _("Paused %(ago)s ago%(why)s."),
        )
        told = by_whom if last.by else by_nobody
        told %= {"by": last.by, "ago": ago, "why": _why(last)}
    else:
        told = _("Paused: nothing new begins until it is resumed.")
    if portrait.is_failing:
        told += " " + _failing(portrait)
    running = [step for step in portrait.steps if step.status == StepStatus.RUNNING]
    if running:
        may = _("%(steps)s may end still.") % {"steps": _names(step.name for step in running)}
        told += f" {may}"
    return told


def _running(portrait: RunSnapshot, last: Operation | None) -> str:
    if portrait.is_failing:
        return _failing(portrait)
    steps = sorted(portrait.at, key=lambda step: _urgency(portrait, step))
    if not steps:
        return _("Its first steps are about to begin.")
    told = _now(portrait, steps[0])
    more = len(steps) - 1
    if not more:
        return told
    beside = ngettext("%(count)d other step is open.", "%(count)d other steps are open.", more)
    return f"{told} " + beside % {"count": more}


def _failing(portrait: RunSnapshot) -> str:
    failed = portrait.at[0]
    told = _("%(step)s has failed") % {"step": _name(failed)}
    told += _attempts(failed) + _error(portrait, failed) + ". "
    others = [step for step in portrait.steps if step.status in ("running", "retrying")]
    if not others:
        return told + _("What comes after it is held.")
    names = _names(step.name for step in others)
    return told + _("The run fails when %(steps)s has ended.") % {"steps": names}


def _urgency(portrait: RunSnapshot, step: StepSnapshot) -> int:
    """What stands in the way of most comes first."""
    row = step.row
    if row is None:
        return 9
    if row.status == StepStatus.RUNNING:
        return 0 if _silent(portrait, row) is not None else 5
    if row.status == StepStatus.QUEUED:
        return 1 if portrait.now - row.queued_at > PATIENCE else 6
    if row.status == StepStatus.RETRYING:
        return 2
    return 3 if step.is_awaiting_event else 4


def _now(portrait: RunSnapshot, step: StepSnapshot) -> str:
    """What this step is about."""
    if step.row is None:
        return _("%(step)s is under way.") % {"step": _name(step)}
    return _OF_STEP[StepStatus(step.row.status)](portrait, step, step.row)


def _queued_step(portrait: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    values = {
        "step": _name(step),
        "ago": format_duration(portrait.now - row.queued_at),
        "queue": step.node.queue,
    }
    if step.loss is not None:
        values["deaths"] = step.deaths
        return (
            _(
                "%(step)s has %(deaths)s. It waits for a process that has no other such step in "
                "hand, for %(ago)s now."
            )
            % values
        )
    if portrait.now - row.queued_at > PATIENCE:
        return (
            _(
                "%(step)s has been queued for %(ago)s: no worker takes it. Is one running for the "
                "queue “%(queue)s”?"
            )
            % values
        )
    if row.lost:
        return _("The worker of %(step)s was lost; another one takes it.") % values
    return _("%(step)s has been queued for %(ago)s.") % values


def _running_step(portrait: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    silent = _silent(portrait, row)
    values: dict[str, Any] = {
        "step": _name(step),
        "span": format_duration(portrait.now - (row.started_at or portrait.now)),
        "worker": row.worker,
    }
    if silent is None or row.wake_at is None:
        told = _("%(step)s has been running for %(span)s") % values
        told += f"{_progress(step)}."
        return told if step.loss is None else told + _(" It has %s.") % step.deaths
    values |= {
        "silent": format_duration(silent),
        "left": format_duration(row.wake_at - portrait.now),
    }
    if row.wake_at > portrait.now:
        return (
            _(
                "The worker of %(step)s seems to be lost: no sign of life for %(silent)s. The step "
                "is taken back when its lease runs out, in %(left)s."
            )
            % values
        )
    values["left"] = format_duration(portrait.now - row.wake_at)
    return (
        _(
            "The worker of %(step)s was lost. Its lease ran out %(left)s ago, and no sweep has "
            "taken the step back yet: is any worker running?"
        )
        % values
    )


def _silent(portrait: RunSnapshot, row: StepRun) -> timedelta | None:
    """How long its worker has given no sign of life, if that is too long."""
    if row.wake_at is None or row.started_at is None:
        return None
    lease = timedelta(seconds=conf.settings.lease)
    patience = timedelta(seconds=2 * conf.settings.heartbeat)
    # A heartbeat extends the lease to its full length; a claim may leave less than that.
    silent = min(portrait.now - (row.wake_at - lease), portrait.now - row.started_at)
    return silent if silent > patience or row.wake_at <= portrait.now else None


def _retrying_step(portrait: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    tried = ngettext("%(count)d failed attempt", "%(count)d failed attempts", row.attempts)
    values = {"step": _name(step), "tried": tried % {"count": row.attempts}}
    if row.due_at is not None and row.due_at > portrait.now:
        values["left"] = format_duration(row.due_at - portrait.now)
        told = _("%(step)s is retried in %(left)s (%(tried)s)") % values
    else:
        told = _("%(step)s is about to be retried (%(tried)s)") % values
        if row.due_at is not None and portrait.now - row.due_at > PATIENCE:
            values |= {"ago": format_duration(portrait.now - row.due_at), "queue": step.node.queue}
            told = (
                _(
                    "%(step)s should have been retried %(ago)s ago (%(tried)s), and no worker "
                    "takes it. Is one running for the queue “%(queue)s”?"
                )
                % values
            )
    return f"{told}{_error(portrait, step)}."


def _waiting_step(portrait: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    if step.is_delayed and step.node.kind != "event":
        return _delayed(portrait, step, row)
    if step.node.kind == "event":
        return _awaiting(portrait, step, row)
    if step.node.kind == "subsequence":
        count = _count(row.payload, "children")
        told = ngettext(
            "%(step)s waits for the run that it has started.",
            "%(step)s waits for the %(count)d runs that it has started.",
            count,
        )
        return told % {"step": _name(step), "count": count}
    return _("%(step)s is under way%(progress)s.") % {
        "step": _name(step),
        "progress": _progress(step),
    }


def _awaiting(portrait: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    if row.payload is None and row.due_at is not None:  # its own delay is not over
        return _delayed(portrait, step, row)
    since = _since(row) or row.queued_at
    values = {"step": _name(step), "ago": format_duration(portrait.now - since)}
    told = _("Waiting for the event %(step)s for %(ago)s") % values
    if row.due_at is None:
        return f"{told}. " + _("It may take for ever: it has no timeout.")
    left = row.due_at - portrait.now
    if left < timedelta(0):
        return f"{told}; " + _("its time is over.")
    return f"{told}; " + _("it times out in %(left)s.") % {"left": format_duration(left)}


def _since(row: StepRun) -> datetime | None:
    payload = row.payload if isinstance(row.payload, dict) else {}
    return parse_datetime(str(payload.get("waiting_since", "")))


def _delayed(portrait: RunSnapshot, step: StepSnapshot, row: StepRun) -> str:
    left = (row.due_at or portrait.now) - portrait.now
    if left < timedelta(0):
        return _("The time that %(step)s has waited for has come.") % {"step": _name(step)}
    return _("%(step)s waits for its time, in %(left)s.") % {
        "step": _name(step),
        "left": format_duration(left),
    }


def _count(payload: Any, key: str) -> int:
    found = payload.get(key) if isinstance(payload, dict) else None
    return found if isinstance(found, int) else 1


# Parts of the sentences


def _name(step: StepSnapshot) -> str:
    return f"“{step.name}”"


def _names(names: Any) -> str:
    return ", ".join(f"“{name}”" for name in names)


def _times(portrait: RunSnapshot) -> dict[str, str]:
    ended = portrait.run.finished_at or portrait.now
    return {
        "ago": format_duration(portrait.now - ended),
        "span": format_duration(portrait.duration),
    }


def _attempts(step: StepSnapshot) -> str:
    count = step.row.attempts if step.row is not None else 0
    if count < 2:
        return ""
    return " " + _("after %(count)d attempts") % {"count": count}


def _error(portrait: RunSnapshot, step: StepSnapshot | None) -> str:
    """The run's error, if it is this step's."""
    failure = portrait.current_failure
    if failure is None or (step is not None and failure.step != step.name):
        return ""
    return f": {error_of(failure)}".rstrip(".")


def _progress(step: StepSnapshot) -> str:
    told = [f": {step.progress_text}"] if step.progress_text else []
    if step.progress is not None:
        done, total = step.progress
        told.append(" " + _("(%(done)g of %(total)g)") % {"done": done, "total": total})
    failed = step.items.get("failed")
    if failed:
        told.append(", " + ngettext("%(count)d failed", "%(count)d failed", failed))
        told[-1] %= {"count": failed}
    return "".join(told)


def _by(told: str, last: Operation | None, *actions: str) -> str:
    """The sentence, and who did it, if that is known."""
    if last is None or last.action not in actions or not (last.by or last.reason):
        return told
    who = _("By %(by)s%(why)s.") if last.by else _("Why%(why)s.")
    return f"{told} " + who % {"by": last.by, "why": _why(last)}


def _why(act: Operation) -> str:
    line = next(iter(act.reason.strip().splitlines()), "")
    return f": {line}".rstrip(".") if line else ""


_OF = {
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
