"""What may be done to a run in its state: the buttons of the admin, and who may press them.

The run's own methods decide in the end, under its lock: this tells beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from ..definitions.plan import COMPENSATION_KINDS
from ..models import UNFINISHED_RUN, RunStatus, StepStatus
from ..transitions.subsequences import UNDONE, Undoing
from .snapshot import RunSnapshot, StepSnapshot

_GOING = (RunStatus.FAILED, RunStatus.RUNNING, RunStatus.PAUSED)


@dataclass(frozen=True, slots=True)
class Action:
    """One of the methods of a run, as people know it."""

    #: The method of the run.
    name: str
    label: str | Promise
    #: What it will do, for the page that asks for confirmation.
    explains: str | Promise
    #: Whether it concerns one step.
    on_step: bool = False
    #: What cannot be taken back.
    is_dangerous: bool = False
    #: The permission that it needs, if not one of its own name.
    needs: str = ""
    #: Of many runs those that it is for, by their states: the likeliest first.
    meant_for: tuple[RunStatus, ...] = ()

    @property
    def permission(self) -> str:
        """In full, as `user.has_perm` takes it. None comes with the one to view."""
        return f"job_sequences.{self.needs or self.name}_sequencerun"


ACTIONS: dict[str, Action] = {
    act.name: act
    for act in (
        Action(
            "retry",
            _("Retry"),
            _(
                "The failed steps begin again, with all their attempts; what waits for its next "
                "attempt is tried now. Steps that have succeeded are not performed again. Of a run "
                "that was undone, the undos that have failed begin again."
            ),
            meant_for=(RunStatus.FAILED,),
        ),
        Action(
            "restart_from",
            _("Restart from here"),
            _(
                "This step is performed again, and all that come after it. The data stays as it "
                "is now. Events among these steps ask again."
            ),
            on_step=True,
            is_dangerous=True,
            needs="restart",
            meant_for=(*_GOING, RunStatus.CANCELLED),
        ),
        Action(
            "skip",
            _("Skip"),
            _("The run goes on without this step, as if it had nothing to do."),
            on_step=True,
            is_dangerous=True,
            meant_for=_GOING,
        ),
        Action(
            "run_now",
            _("Run now"),
            _("The step does not wait for its time any longer."),
            on_step=True,
            meant_for=(RunStatus.RUNNING, RunStatus.UNDOING),
        ),
        Action(
            "deliver",
            _("Deliver"),
            _("The event that this step waits for has come, with this payload."),
            on_step=True,
            meant_for=_GOING,
        ),
        Action(
            "pause",
            _("Pause"),
            _("A running step may end; nothing new begins until it is resumed."),
            meant_for=(RunStatus.RUNNING,),
        ),
        Action(
            "resume",
            _("Resume"),
            _("What the pause holds goes on; what fell due meanwhile is performed now."),
            needs="pause",
            meant_for=(RunStatus.PAUSED,),
        ),
        Action(
            "edit",
            _("Edit data"),
            _("Other data takes the place of what the steps share."),
            is_dangerous=True,
        ),
        Action(
            "finish",
            _("Finish"),
            _("The run succeeds as it is now; what has not ended is skipped."),
            is_dangerous=True,
            meant_for=(RunStatus.RUNNING, RunStatus.PAUSED),
        ),
        Action(
            "cancel",
            _("Cancel"),
            _(
                "The run ends here; a step that runs just now loses its commit. If what was done "
                "is undone first, the step ends before that."
            ),
            is_dangerous=True,
            meant_for=UNFINISHED_RUN,
        ),
        Action(
            "erase",
            _("Erase"),
            _(
                "Data, payloads, results, the texts of failures, earlier reasons and the key are "
                "blanked, for good: of the run, and of all that it has started."
            ),
            is_dangerous=True,
            meant_for=(RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED),
        ),
    )
}


def allowed(portrait: RunSnapshot) -> Iterator[tuple[Action, StepSnapshot | None]]:
    """What the state of this run allows; with the step, of what concerns one."""
    if not portrait.is_readable:
        return
    for name, is_allowed in _OF_RUN.items():
        if is_allowed(portrait):
            yield ACTIONS[name], None
    for step in portrait.steps:
        for name, is_allowed_on in _OF_STEP.items():
            if is_allowed_on(portrait, step):
                yield ACTIONS[name], step


def permitted(user: Any, act: Action) -> bool:
    """Whether this user may do it."""
    return bool(user.is_active and user.has_perm(act.permission))


def _status(portrait: RunSnapshot, *statuses: str) -> bool:
    return portrait.run.status in statuses


def _goes(portrait: RunSnapshot) -> bool:
    return _status(portrait, *_GOING)


def _undone(portrait: RunSnapshot) -> frozenset[str]:
    """The steps that were undone, or tried to be."""
    undos = (step for step in portrait.steps if step.node.kind == "undo" and step.status)
    below = (step.name for step in portrait.steps if step.undoing in UNDONE)
    return frozenset({*(step.node.undoes for step in undos), *below})


def _may_retry(portrait: RunSnapshot) -> bool:
    if _undone(portrait):
        return _status(portrait, RunStatus.FAILED) and any(map(_has_failed, portrait.steps))
    retrying = any(
        step.status == "retrying" or step.items.get("retrying") for step in portrait.steps
    )
    return _goes(portrait) and (portrait.is_failing or retrying)


def _has_failed(step: StepSnapshot) -> bool:
    """Whether it is an undo or `on_failure` that has failed, or its children's undos have."""
    failed = step.status == "failed" or bool(step.items.get("failed"))
    return (step.node.kind in COMPENSATION_KINDS and failed) or step.undoing == Undoing.FAILED


def _may_edit(portrait: RunSnapshot) -> bool:
    return not any(step.status == "running" or step.items.get("running") for step in portrait.steps)


def _may_skip(portrait: RunSnapshot, step: StepSnapshot) -> bool:
    if not _goes(portrait):
        return False
    if step.node.kind in COMPENSATION_KINDS:
        return _status(portrait, RunStatus.FAILED) and _has_failed(step)
    if _undone(portrait) or step.row is None:
        return False
    if step.status == StepStatus.FAILED:
        return step.name in portrait.plan.failed(portrait.states)
    return step.status in (StepStatus.WAITING, StepStatus.QUEUED, StepStatus.RETRYING)


def _may_restart(portrait: RunSnapshot, step: StepSnapshot) -> bool:
    if (
        _status(portrait, RunStatus.UNDOING)
        or step.row is None
        or step.node.kind in COMPENSATION_KINDS
    ):
        return False
    plan = portrait.plan
    again = plan.again(step.name)
    if _undone(portrait) - again:
        return False
    states = {name: status for name, status in portrait.states.items() if name not in again}
    return not plan.is_failing(states)


def asked_again(portrait: RunSnapshot, step: StepSnapshot) -> list[StepSnapshot]:
    """The events whose deliveries a restart from this step forgets, unless they are kept."""
    again, inbox = portrait.plan.again(step.name), _inbox(portrait)
    return [one for one in portrait.steps if one.name in again and one.name in inbox]


def _may_deliver(portrait: RunSnapshot, step: StepSnapshot) -> bool:
    if step.node.kind != "event" or not _goes(portrait):
        return False
    # One that the run has not come to yet can be delivered early, from code.
    return step.status in (StepStatus.WAITING, StepStatus.FAILED) and step.name not in _inbox(
        portrait
    )


def _inbox(portrait: RunSnapshot) -> dict[str, Any]:
    return {} if "inbox" in portrait.run.get_deferred_fields() else portrait.run.inbox


def _may_run_now(portrait: RunSnapshot, step: StepSnapshot) -> bool:
    if not _status(portrait, RunStatus.RUNNING, RunStatus.UNDOING):
        return False
    if step.items.get("retrying"):
        return True
    return step.is_delayed and step.row is not None and step.row.wake_at is not None


_OF_RUN: dict[str, Callable[[RunSnapshot], bool]] = {
    "retry": _may_retry,
    "resume": lambda portrait: _status(portrait, RunStatus.PAUSED),
    "pause": lambda portrait: _status(portrait, RunStatus.RUNNING),
    "edit": _may_edit,
    "finish": lambda portrait: _status(portrait, RunStatus.RUNNING, RunStatus.PAUSED),
    "cancel": lambda portrait: _status(portrait, *UNFINISHED_RUN),
    "erase": lambda portrait: portrait.run.is_finished,
}
_OF_STEP: dict[str, Callable[[RunSnapshot, StepSnapshot], bool]] = {
    "run_now": _may_run_now,
    "deliver": _may_deliver,
    "skip": _may_skip,
    "restart_from": _may_restart,
}
