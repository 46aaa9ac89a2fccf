"""The actions that the state of a run allows: the buttons of the admin, and who may press them.

Both this and the run's own methods follow `definitions.rules`; the methods decide, under the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..definitions.rules import (
    RULES,
    Rule,
    fails_elsewhere,
    has_handler,
    is_past,
    left_undone,
    skip_rule,
)
from ..transitions.compensation import has_failed_at_its_end
from ..transitions.subsequences import UNDO_FAILED, UNDONE, ChildrenUndo
from .snapshot import RunSnapshot, StepSnapshot
from .wording import listed


@dataclass(frozen=True, slots=True)
class Action:
    """One of the methods of a run, as an action for people."""

    #: The method of the run.
    name: str
    #: What it does, for the page that asks for confirmation.
    explains: str | Promise
    #: Whether it cannot be reverted.
    is_dangerous: bool = False
    #: The permission that it needs, if not the one with its own name.
    needs: str = ""
    #: Whether it makes steps run.
    starts_steps: bool = False
    #: Whether it needs more than a click, although it is not dangerous.
    asks: bool = False
    #: Whether it is harmless even from a page that is out of date.
    is_harmless: bool = False

    @property
    def rule(self) -> Rule:
        """The statuses of a run, and of a step, that allow it."""
        return RULES[self.name]

    @property
    def warns(self) -> bool:
        """Whether its buttons warn. A delivery asks for confirmation, but is the normal course of
        things."""
        return self.is_dangerous and self.name != "deliver"

    @property
    def on_step(self) -> bool:
        """Whether it concerns a single step."""
        return self.rule.is_on_step

    @property
    def permission(self) -> str:
        """The full name, for `user.has_perm`. The permission to view a run includes none of
        these."""
        return f"job_sequences.{self.needs or self.name}_sequencerun"


ACTIONS: dict[str, Action] = {
    action.name: action
    for action in (
        Action(
            "retry",
            _(
                "Restarts the failed steps with fresh attempts; pending retries run now. "
                "Completed steps do not run again. In a run that was rolled back, the failed "
                "undos restart instead."
            ),
            starts_steps=True,
        ),
        Action(
            "restart_from",
            _(
                "The chosen step and all later steps run again. The data stays as it is now. "
                "Events among these steps wait for a new delivery."
            ),
            is_dangerous=True,
            needs="restart",
            starts_steps=True,
        ),
        Action(
            "skip",
            _("Continues without this step, as if there had been nothing to do."),
            is_dangerous=True,
            starts_steps=True,
        ),
        Action(
            "run_now",
            _("Runs the step now instead of at its scheduled time."),
            starts_steps=True,
        ),
        Action(
            "deliver",
            _(
                "Delivers the event with this payload. This cannot be undone: only the first "
                "delivery counts."
            ),
            is_dangerous=True,
            starts_steps=True,
        ),
        Action(
            "pause",
            _("Running steps finish; no new step starts until you resume."),
            is_harmless=True,
        ),
        Action(
            "resume",
            _("Steps on hold continue; anything that became due in the meantime runs now."),
            needs="pause",
            starts_steps=True,
        ),
        Action(
            "edit",
            _("Replaces the data shared by the steps."),
            is_dangerous=True,
        ),
        Action(
            "finish",
            _("Marks the run as succeeded; unfinished steps are skipped."),
            is_dangerous=True,
        ),
        Action(
            "set_deadline",
            _("The run fails if it is not finished by the deadline."),
            asks=True,
        ),
        Action(
            "cancel",
            _(
                "Stops the run here. A running step can no longer save its work; if you also roll "
                "back completed steps, the running step finishes first."
            ),
            is_dangerous=True,
        ),
        Action(
            "erase",
            _(
                "Permanently erases data, payloads, results, error texts, earlier reasons, the "
                "key and the subject of this run, and of every run that it has started."
            ),
            is_dangerous=True,
        ),
    )
}


def allowed(
    snapshot: RunSnapshot, steps: Collection[str] | None = None
) -> Iterator[tuple[Action, StepSnapshot | None]]:
    """The actions that the state of this run allows; with the step, if an action concerns one.

    ``steps``: only actions on these steps, or on the whole run.
    """
    if not snapshot.is_readable:
        return
    status = snapshot.run.status
    for name, accepts in _RUN_ACTIONS.items():
        if RULES[name].allows(status) and accepts(snapshot):
            yield ACTIONS[name], None
    for step in snapshot.steps:
        if steps is not None and step.name not in steps:
            continue
        for name, step_accepts in _STEP_ACTIONS.items():
            if RULES[name].allows(status) and step_accepts(snapshot, step):
                yield ACTIONS[name], step


def warning(snapshot: RunSnapshot, action: Action) -> str:
    """What people must know before they do it: that this code cannot carry it out; or ""."""
    if not action.starts_steps or not snapshot.is_readable:
        return ""
    sequence = snapshot.run.sequence
    if not snapshot.is_known:
        return gettext(
            "This code has no class %(sequence)s. The run accepts the action, but no step runs "
            "until a release that has the class is deployed; then the run continues on its own."
        ) % {"sequence": sequence}
    steps = [name for name in snapshot.removed if _has_failed(snapshot, name)]
    if action.name != "retry" or not steps:
        return ""
    names = listed(steps)
    message = ngettext(
        "%(sequence)s no longer declares the step %(steps)s. The step fails again at once, "
        "unless a release that declares it is deployed first.",
        "%(sequence)s no longer declares the steps %(steps)s. The steps fail again at once, "
        "unless a release that declares them is deployed first.",
        len(steps),
    )
    return message % {"sequence": sequence, "steps": names}


def _has_failed(snapshot: RunSnapshot, name: str) -> bool:
    return snapshot.states.get(name) == "failed"


def permitted(user: Any, action: Action) -> bool:
    """Whether this user may do it."""
    return bool(user.is_active and user.has_perm(action.permission))


def asked_again(snapshot: RunSnapshot, step: StepSnapshot) -> list[StepSnapshot]:
    """The events whose deliveries a restart from this step forgets, unless they are kept."""
    again, inbox = snapshot.plan.again(step.name, snapshot.states), _inbox(snapshot)
    return [event for event in snapshot.steps if event.name in again and event.name in inbox]


def was_undone(snapshot: RunSnapshot) -> bool:
    """Whether a retry of this run would retry its undo or closing step, and not its steps."""
    has_stuck_child = any(step.children_undo == ChildrenUndo.STUCK for step in snapshot.steps)
    return has_stuck_child or bool(_undone(snapshot)) or has_failed_at_its_end(snapshot.run)


def _undone(snapshot: RunSnapshot) -> frozenset[str]:
    """The steps that were undone, or whose undo was tried."""
    undos = (step for step in snapshot.steps if step.node.traits.is_undo and step.status)
    below = (step.name for step in snapshot.steps if step.children_undo in UNDONE)
    return frozenset({*(step.node.undoes for step in undos), *below})


def _inbox(snapshot: RunSnapshot) -> dict[str, Any]:
    return {} if "inbox" in snapshot.run.get_deferred_fields() else snapshot.run.inbox


def _has(step: StepSnapshot, *statuses: str) -> bool:
    """Whether the step, or one of its items, has one of these statuses."""
    return any(step.status == status or step.items.get(status) for status in statuses)


def _failed_to_undo(step: StepSnapshot) -> bool:
    """Whether it is an undo or a closing step that has failed, or its children's undos have."""
    is_failed = step.node.traits.is_compensation and _has(step, "failed")
    return is_failed or step.children_undo in UNDO_FAILED


# Conditions that depend on more than the status of the run


def _always(snapshot: RunSnapshot) -> bool:
    return True


def _has_something_to_retry(snapshot: RunSnapshot) -> bool:
    if was_undone(snapshot):
        rule = RULES["retry_compensation"]
        return rule.allows(snapshot.run.status) and any(map(_failed_to_undo, snapshot.steps))
    states = ("retrying", "cancelled") if snapshot.run.status == "failed" else ("retrying",)
    return snapshot.is_failing or any(_has(step, *states) for step in snapshot.steps)


def _is_editable(snapshot: RunSnapshot) -> bool:
    return not snapshot.is_erased and not any(_has(step, "running") for step in snapshot.steps)


def _has_something_to_erase(snapshot: RunSnapshot) -> bool:
    """Whether it has data, or a key that was kept. Code may erase it again, with no effect."""
    return not snapshot.is_erased or bool(snapshot.run.key)


def _is_skippable(snapshot: RunSnapshot, step: StepSnapshot) -> bool:
    rule = skip_rule(step.node.kind)
    if snapshot.is_failing and step.is_on_hold:
        return False  # offered only if it is the problem, although the engine would accept it
    if not (rule.allows(snapshot.run.status) and rule.offers_step(step.status, step.node.kind)):
        return False
    if rule is RULES["skip_compensation"]:
        return True
    return not _undone(snapshot) and not has_handler(snapshot.plan, snapshot.states, step.name)


def _can_be_restarted(snapshot: RunSnapshot, step: StepSnapshot) -> bool:
    plan, name = snapshot.plan, step.name
    return (
        RULES["restart_from"].offers_step(step.status, step.node.kind)
        and not left_undone(plan, _undone(snapshot), name)
        and not fails_elsewhere(plan, snapshot.states, name)
    )


def _lacks_delivery(snapshot: RunSnapshot, step: StepSnapshot) -> bool:
    offered = RULES["deliver"].offers_step(step.status, step.node.kind)
    return offered and step.name not in _inbox(snapshot) and has_use_for(snapshot, step.name)


def has_use_for(snapshot: RunSnapshot, event: str) -> bool:
    """Whether the run, or a retry of it, would use a delivery for this event."""
    is_over = snapshot.run.status == "failed" and was_undone(snapshot)
    return not is_over and not is_past(snapshot.plan, snapshot.states, event)


def _waits_for_time(snapshot: RunSnapshot, step: StepSnapshot) -> bool:
    """Whether it, or one of its items, waits for a time and no failure holds it."""
    if step.items.get("retrying"):
        return True
    return step.is_delayed and step.row is not None and step.row.wake_at is not None


#: The buttons, in order.
_RUN_ACTIONS: dict[str, Callable[[RunSnapshot], bool]] = {
    "retry": _has_something_to_retry,
    "resume": _always,
    "pause": _always,
    "edit": _is_editable,
    "set_deadline": _always,
    "finish": _always,
    "cancel": _always,
    "erase": _has_something_to_erase,
}
_STEP_ACTIONS: dict[str, Callable[[RunSnapshot, StepSnapshot], bool]] = {
    "run_now": _waits_for_time,
    "deliver": _lacks_delivery,
    "skip": _is_skippable,
    "restart_from": _can_be_restarted,
}
