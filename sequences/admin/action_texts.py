"""The texts of actions: on buttons, in titles, for many runs, and in the message afterwards.

Each text is one whole message, so that a translation can order the words freely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

from ..models import RunStatus, SequenceRun

Text = str | Promise


@dataclass(frozen=True)
class ActionTexts:
    """The texts of one action. Those of an action on a step contain ``%(step)s``."""

    #: On the button that confirms it, and in the row of a step.
    button: Text
    #: On a button next to others, as the title of its page, and in Django's history.
    title: Text
    #: The same for ``%(count)d`` runs; a plural that takes the count.
    title_of_many: Any
    #: The message when it is done.
    done: Text
    #: The same for ``%(count)d`` runs.
    done_to_many: Any

    def title_for(self, step: str = "") -> str:
        """The title, with the name of the step if it concerns one."""
        return str(self.title) % {"step": step}


TEXTS: dict[str, ActionTexts] = {
    "retry": ActionTexts(
        _("Retry"),
        _("Retry"),
        ngettext_lazy("Retry %(count)d run", "Retry %(count)d runs", "count"),
        _("Retrying the failed steps."),
        ngettext_lazy("%(count)d run retried.", "%(count)d runs retried.", "count"),
    ),
    "restart_from": ActionTexts(
        _("Restart from here"),
        _("Restart from “%(step)s”"),
        ngettext_lazy(
            "Restart %(count)d run from a step", "Restart %(count)d runs from a step", "count"
        ),
        _("Restarted from “%(step)s”."),
        ngettext_lazy("%(count)d run restarted.", "%(count)d runs restarted.", "count"),
    ),
    "skip": ActionTexts(
        _("Skip"),
        _("Skip “%(step)s”"),
        ngettext_lazy("Skip a step in %(count)d run", "Skip a step in %(count)d runs", "count"),
        _("Skipped “%(step)s”."),
        ngettext_lazy(
            "Skipped the step in %(count)d run.", "Skipped the step in %(count)d runs.", "count"
        ),
    ),
    "run_now": ActionTexts(
        _("Run now"),
        _("Run “%(step)s” now"),
        ngettext_lazy(
            "Run a delayed step now in %(count)d run",
            "Run a delayed step now in %(count)d runs",
            "count",
        ),
        _("“%(step)s” is now due."),
        ngettext_lazy(
            "Scheduled the step to run now in %(count)d run.",
            "Scheduled the step to run now in %(count)d runs.",
            "count",
        ),
    ),
    "deliver": ActionTexts(
        _("Deliver"),
        _("Deliver “%(step)s”"),
        ngettext_lazy(
            "Deliver an event to %(count)d run", "Deliver an event to %(count)d runs", "count"
        ),
        _("Delivered “%(step)s”."),
        ngettext_lazy("Delivered to %(count)d run.", "Delivered to %(count)d runs.", "count"),
    ),
    "pause": ActionTexts(
        _("Pause"),
        _("Pause"),
        ngettext_lazy("Pause %(count)d run", "Pause %(count)d runs", "count"),
        _("Paused. No new step starts until the run is resumed."),
        ngettext_lazy("%(count)d run paused.", "%(count)d runs paused.", "count"),
    ),
    "resume": ActionTexts(
        _("Resume"),
        _("Resume"),
        ngettext_lazy("Resume %(count)d run", "Resume %(count)d runs", "count"),
        _("Resumed."),
        ngettext_lazy("%(count)d run resumed.", "%(count)d runs resumed.", "count"),
    ),
    "edit": ActionTexts(
        _("Edit data"),
        _("Edit data"),
        ngettext_lazy("Edit the data of %(count)d run", "Edit the data of %(count)d runs", "count"),
        _("Data saved."),
        ngettext_lazy("Data of %(count)d run saved.", "Data of %(count)d runs saved.", "count"),
    ),
    "finish": ActionTexts(
        _("Mark as succeeded"),
        _("Mark as succeeded"),
        ngettext_lazy(
            "Mark %(count)d run as succeeded", "Mark %(count)d runs as succeeded", "count"
        ),
        _("Marked as succeeded."),
        ngettext_lazy(
            "%(count)d run marked as succeeded.", "%(count)d runs marked as succeeded.", "count"
        ),
    ),
    "cancel": ActionTexts(
        _("Cancel run"),
        _("Cancel run"),
        ngettext_lazy("Cancel %(count)d run", "Cancel %(count)d runs", "count"),
        _("Cancelled."),
        ngettext_lazy("%(count)d run cancelled.", "%(count)d runs cancelled.", "count"),
    ),
    "set_deadline": ActionTexts(
        _("Set deadline"),
        _("Set deadline"),
        ngettext_lazy(
            "Set the deadline of %(count)d run", "Set the deadline of %(count)d runs", "count"
        ),
        _("Deadline saved."),
        ngettext_lazy(
            "Deadline of %(count)d run saved.", "Deadline of %(count)d runs saved.", "count"
        ),
    ),
    "erase": ActionTexts(
        _("Erase data"),
        _("Erase data"),
        ngettext_lazy(
            "Erase the data of %(count)d run", "Erase the data of %(count)d runs", "count"
        ),
        _("Data erased."),
        ngettext_lazy("Data of %(count)d run erased.", "Data of %(count)d runs erased.", "count"),
    ),
}  # fmt: skip

#: The engine's names of operations that differ from the action's own name.
_OPERATIONS: dict[str, Text] = {
    "cancel_and_undo": _("Cancel run, rolling back completed steps"),
    "erase_but_key": _("Erase data, keeping the key"),
}


def title_of(action: str, step: str = "") -> str:
    """The title of an operation: its name, if this release does not know it."""
    if action in TEXTS:
        return TEXTS[action].title_for(step)
    return str(_OPERATIONS.get(action, action.replace("_", " ").capitalize()))


def done_message(action: str, step: str, run: SequenceRun) -> str:
    """The message when it is done, which also says if the run is still paused."""
    if action == "cancel" and run.status == RunStatus.UNDOING:
        return gettext(
            "Completed steps are being rolled back; the run will be cancelled afterwards."
        )
    text = str(TEXTS[action].done) % {"step": step}
    if run.status == RunStatus.PAUSED and action != "pause":
        return f"{text} " + gettext("The run is still paused.")
    return text
