"""The operations on runs: their buttons, and the pages that ask for confirmation.

Every operation is one method of the run. A GET changes nothing; a POST does only what it confirms.
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.forms import BaseForm
from django.http import Http404, HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.translation import gettext as _

from ..data.redaction import NoSecret, changed_secrets, redact, restore, secrets_of
from ..definitions import registry
from ..definitions.rules import RULES
from ..exceptions import InvalidData, SequenceError
from ..inspection import actions, records
from ..inspection.diagnosis import summary
from ..inspection.snapshot import (
    RunSnapshot,
    StepSnapshot,
    deadline_of,
    visible,
)
from ..inspection.wording import explain
from ..models import RunStatus, SequenceRun
from . import action_texts, run_context
from .base import without_secrets
from .forms import (
    ActionForm,
    CancelForm,
    DeadlineForm,
    DeliverForm,
    EditForm,
    EraseForm,
    RestartForm,
    RetryForm,
    SkipForm,
)
from .run_context import Urls
from .run_detail import RunPage

#: Longer data, in characters, must be edited by code: Django would reject such a form.
EDITABLE = 500_000
FORMS: dict[str, type[ActionForm]] = {
    "retry": RetryForm,
    "skip": SkipForm,
    "cancel": CancelForm,
    "set_deadline": DeadlineForm,
    "restart_from": RestartForm,
    "deliver": DeliverForm,
    "edit": EditForm,
    "erase": EraseForm,
}


class RunActions(RunPage):
    """The part of the runs' admin for operations on a run."""

    def get_urls(self) -> list[URLPattern]:
        """Add one page for each action."""
        return [
            *self._paths(("action/<slug:name>/", self.action_view, "action")),
            *super().get_urls(),
        ]

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log it under the run's id: a key may have to be erased, and Django's history cannot
        be."""
        return super().log_change(request, SequenceRun(pk=obj.pk, sequence=obj.sequence), message)

    def action_view(self, request: HttpRequest, object_id: str, name: str) -> HttpResponseBase:
        """Ask for confirmation; perform the action when a POST confirms it."""
        action = actions.ACTIONS.get(name)
        if action is None:
            raise Http404
        run = self._run(request, object_id)
        if not self.has_action_permission(request, action, run):
            raise PermissionDenied
        basis = self._basis(request, run)  # before the snapshot, which may know of more
        run_snapshot = self._snapshot(request, run)
        return _ActionRequest(self, request, action, run_snapshot, basis).answer()

    def _basis(self, request: HttpRequest, run: SequenceRun) -> int:
        """The id of the latest operation on it; 0 if there is none. A POST has its own."""
        return 0 if request.method == "POST" else records.newest_operation([run.pk])


def _step(
    request: HttpRequest, action: actions.Action, run_snapshot: RunSnapshot
) -> StepSnapshot | None:
    if not action.on_step:
        return None
    step = run_snapshot.step(request.GET.get("step", ""))
    if step is None:
        raise Http404(_("The run has no such step."))
    return step


class _ActionRequest:
    """A request for an action."""

    def __init__(
        self,
        admin: RunActions,
        request: HttpRequest,
        action: actions.Action,
        run_snapshot: RunSnapshot,
        basis: int,
    ) -> None:
        self.admin, self.request, self.action, self.basis = admin, request, action, basis
        self.snapshot, self.run = run_snapshot, run_snapshot.run
        self.step = _step(request, action, run_snapshot)
        self.patterns = registry.hidden_by(self.run.sequence)
        self.urls = Urls(admin.admin_site.name, self.run)
        self.held_up = self._held_up()
        if self.held_up:  # the form may retry the topmost of them instead
            self.basis = max(basis, admin._basis(request, self.held_up[-1]))
        self.payload_form = self._payload_form()
        self.form = self._form()

    def answer(self) -> HttpResponseBase:
        """The response to a GET or a POST."""
        if self.request.method != "POST":
            return self._ask() if self._is_allowed() else self._refused(_not_allowed())
        if self.action.name == "edit":
            return self._edit()
        if self.request.POST.get("confirm") != "yes":
            return self._ask(status=400)
        return self._do(self._cleaned()) if self._is_valid() else self._ask()

    def _is_valid(self) -> bool:
        forms = filter(None, (self.form, self.payload_form))
        return all(form.is_valid() for form in forms)  # each reports its own errors

    def _cleaned(self) -> dict[str, Any]:
        payload = {"payload": self.payload_form} if self.payload_form else {}
        return self.form.cleaned_data | payload

    def _is_allowed(self) -> bool:
        allowed = actions.allowed(self.snapshot, {self._step_name()})
        names = {(action.name, step.name if step else "") for action, step in allowed}
        return (self.action.name, self._step_name()) in names

    def _form(self) -> ActionForm:
        data = self.request.POST if self.request.method == "POST" else None
        kind = ActionForm if self.payload_form else FORMS.get(self.action.name, ActionForm)
        form = kind(data, initial={**self._initial(), "basis": self.basis})
        if self.action.name == "cancel" and not self._may_undo():
            del form.fields["undo"]
        if self.action.name == "retry":
            _name_parents(form, self.held_up)
        if self.action.name == "restart_from" and self.step:
            _name_events(form, actions.asked_again(self.snapshot, self.step))
        return form

    def _payload_form(self) -> BaseForm | None:
        """The event's own form; separate from ours, because it may have fields with the same
        names."""
        if self.action.name != "deliver" or self.step is None or self.step.form is None:
            return None
        data = self.request.POST if self.request.method == "POST" else None
        choice = self.step.choices.get(self.request.GET.get("choice", ""))
        initial = choice if isinstance(choice, dict) else None
        return self.step.form(data, prefix="payload", initial=initial)

    def _held_up(self) -> list[SequenceRun]:
        """The parent runs that this person may retry with it."""
        if self.action.name != "retry":
            return []
        runs = self.admin._relatives(self.request, self.snapshot).held_up
        may = self.admin.has_action_permission
        return runs if runs and may(self.request, self.action, runs[-1]) else []

    def _may_undo(self) -> bool:
        plan = self.snapshot.plan
        # Only their own plans tell whether child runs have undos: without asking, assume that they
        # may.
        has_undos = bool(plan.undos or plan.subsequences)
        return has_undos and RULES["cancel_and_undo"].allows(self.run.status)

    def _initial(self) -> dict[str, Any]:
        if self.action.name == "deliver" and self.step:
            return _payload_of(self.step, self.request.GET.get("choice", ""))
        if self.action.name == "cancel":
            return {"undo": self.snapshot.plan.cancel == "undo"}
        if self.action.name == "set_deadline":
            return {"deadline": deadline_of(self.run)}
        if self.action.name != "edit":
            return {}
        data = run_context.text_of(visible(self.run.data, self.run.sequence))
        return {"text": data, "version": self.run.version}

    # Responses

    def _ask(self, status: int = 200, **context: Any) -> HttpResponseBase:
        template = "edit" if self.action.name == "edit" else "confirm"
        context = {
            "page_title": self._title(),
            "action": self.action,
            "texts": action_texts.TEXTS[self.action.name],
            "step": self.step,
            "run": self.run,
            "snapshot": self.snapshot,
            "summary": summary(self.snapshot),
            "warning": actions.warning(self.snapshot, self.action),
            "form": self.form,
            "payload_form": self.payload_form,
            "back": self._back(),
            "step_status": run_context.label_of_step(self.step) if self.step else "",
            "is_too_large": self._is_too_large(),
            **context,
        }
        template = f"admin/job_sequences/sequencerun/{template}.html"
        return self.admin._show(self.request, self.run, template, context, status=status)

    def _title(self) -> str:
        return action_texts.title_of(self.action.name, self._step_label())

    def _is_too_large(self) -> bool:
        return self.action.name == "edit" and len(self.form.initial["text"]) > EDITABLE

    def _back(self) -> str:
        anchor = f"#step-{self.step.name}" if self.step else ""
        return self.urls.to("change", self.run.pk) + anchor

    def _refused(self, why: str) -> HttpResponseBase:
        self.admin.message_user(self.request, why, messages.ERROR)
        return HttpResponseRedirect(self.urls.to("change", self.run.pk))

    # Performing it

    def _do(self, cleaned: dict[str, Any]) -> HttpResponseBase:
        try:
            counts = perform(
                self._target(cleaned), self.action, self._step_name(), cleaned, self.request.user
            )
        except InvalidData as error:
            secrets, typed = secrets_of(self.run.data, self.patterns), self.request.POST.values()
            self.form.add_error(None, without_secrets(explain(error), secrets, typed))
            return self._ask()
        except SequenceError as error:
            return self._refused(explain(error))
        if not counts:
            return self._refused(self._why_it_does_not_count())
        self.admin.log_change(self.request, self.run, self._title())
        self.admin.message_user(self.request, self._done(), messages.SUCCESS)
        return HttpResponseRedirect(self.urls.to("change", self.run.pk))

    def _why_it_does_not_count(self) -> str:
        if self.run.delivered(self._step_name()):
            return _("The event was already delivered: only the first delivery counts.")
        return _("This event is no longer needed: another event or step came first.")

    def _target(self, cleaned: dict[str, Any]) -> SequenceRun:
        """The run to operate on: a retry of the topmost run restarts all of them."""
        return self.held_up[-1] if cleaned.get("parents") else self.run

    def _step_name(self) -> str:
        return self.step.name if self.step else ""

    def _step_label(self) -> str:
        return self.step.label if self.step else ""

    def _done(self) -> str:
        return action_texts.done_message(self.action.name, self._step_label(), self.run)

    # Editing data

    def _edit(self) -> HttpResponseBase:
        """Show the changes, and store them once that is confirmed."""
        if "again" in self.request.POST or not self.form.is_valid():
            return self._ask()
        cleaned = self.form.cleaned_data
        if cleaned["version"] != self.run.version:
            return self._changed_meanwhile()
        try:
            data = restore(cleaned["text"], self.run.data, self.patterns)
        except NoSecret as error:
            self.form.add_error("text", _no_secret(error.path))
            return self._ask()
        except RecursionError:
            self.form.add_error("text", _("This is nested too deeply."))
            return self._ask()
        if self.request.POST.get("confirm") == "yes":
            return self._do(cleaned | {"data": data})
        return self._preview(data, cleaned["text"])

    def _changed_meanwhile(self) -> HttpResponseBase:
        error = _(
            "The run has changed since you opened this form, so nothing was saved. Its current "
            "data is shown below the form."
        )
        self.form.add_error(None, error)
        now = run_context.value_of(self.run.data, self.run.sequence, "", self.urls.value("data"))
        return self._ask(data_now=now, version_now=self.run.version)

    def _preview(self, data: dict[str, Any], typed: Any) -> HttpResponseBase:
        before, after = (
            run_context.sorted_text(redact(values, self.patterns))
            for values in (self.run.data, data)
        )
        secrets = changed_secrets(self.run.data, typed, self.patterns)
        lines = run_context.differences(before, after)
        return self._ask(is_preview=True, lines=lines, secrets=secrets)


def _payload_of(step: StepSnapshot, choice: str) -> dict[str, Any]:
    """The payload of one of the event's choices, shown before it is delivered."""
    if choice not in step.choices:
        return {}
    return {"payload": run_context.text_of(step.choices[choice])}


def _name_parents(form: ActionForm, runs: list[SequenceRun]) -> None:
    """Name these runs in the form; if there are none, remove the field."""
    if not runs:
        del form.fields["parents"]
        return
    form.fields["parents"].help_text = ", ".join(map(str, runs))


def _name_events(form: ActionForm, events: list[StepSnapshot]) -> None:
    """Name the events that would be asked for again; if there are none, remove the field."""
    if not events:
        del form.fields["keep_deliveries"]
        return
    names = ", ".join(event.label for event in events)
    text = _("Otherwise, the run waits for these again: %(events)s.")
    form.fields["keep_deliveries"].help_text = text % {"events": names}


def perform(
    run: SequenceRun, action: actions.Action, step: str, cleaned: dict[str, Any], by: Any
) -> bool:
    """Call the run's own method. False: it was a delivery that came too late."""
    log = {"by": by, "reason": cleaned.get("reason", "")}
    run._basis = None if action.is_harmless else cleaned.get("basis")
    if action.name == "deliver":
        return run.deliver(step, cleaned["payload"], **log)
    if action.name == "edit":
        run.edit(cleaned["data"], **log)
    elif action.name == "cancel":
        is_undoing = run.status == RunStatus.UNDOING
        run.cancel(undo=cleaned.get("undo", False if is_undoing else None), **log)
    elif action.name == "set_deadline":
        run.set_deadline(cleaned["deadline"], **log)
    elif action.name == "erase":
        run.erase(keep_key=cleaned.get("keep_key", False), **log)
    elif action.name == "restart_from":
        run.restart_from(step, keep_deliveries=cleaned.get("keep_deliveries", False), **log)
    elif action.on_step:
        getattr(run, action.name)(step, **log)
    else:
        getattr(run, action.name)(**log)
    return True


def _not_allowed() -> str:
    return _("The state of the run does not allow this. It may have changed in the meantime.")


def _no_secret(path: str) -> str:
    return _(
        "It is unclear which hidden value the *** at %(path)s stands for. Leave *** only where it "
        "was; anywhere else, enter the value itself."
    ) % {"path": path}
