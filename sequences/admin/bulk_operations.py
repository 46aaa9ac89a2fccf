"""Actions on many runs at once, from the list: a transaction for each run, and a report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Min, Q, QuerySet
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import escape, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import conf
from ..definitions import registry
from ..definitions.rules import RULES, Rule
from ..exceptions import SequenceError
from ..inspection import actions as run_actions
from ..inspection.records import newest_operation
from ..inspection.wording import explain
from ..models import NO_ITEM, RunStatus, SequenceRun, StepRun
from ..utils.text import label_of
from .action_texts import TEXTS, title_of
from .base import heavy
from .forms import ActionForm
from .operations import FORMS, RunActions, perform

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

#: The actions on many runs: all except edit, which is about the data of a single run.
ON_MANY = tuple(name for name in run_actions.ACTIONS if name != "edit")
#: Runs per request. The rest needs another request, or the command line.
MAX_RUNS_PER_REQUEST = 1_000
#: Runs that are loaded together.
RUNS_PER_QUERY = 100
#: Seconds after which a request processes no further runs: a proxy would give up.
MAX_SECONDS_PER_REQUEST = 20
#: How many runs a report links for each reason.
MAX_LINKED_RUNS = 3
Action = Callable[["ManyRuns", HttpRequest, "QuerySet[SequenceRun]"], HttpResponseBase]


def _on_many(name: str, description: _StrPromise) -> Action:
    """An entry in the list of actions."""
    needed = run_actions.ACTIONS[name].needs or name

    @admin.action(description=description, permissions=[needed])
    def action(
        self: ManyRuns, request: HttpRequest, queryset: QuerySet[SequenceRun]
    ) -> HttpResponseBase:
        return self._operate_on_many(request, run_actions.ACTIONS[name], queryset)

    return action


def _may(name: str) -> Callable[[ManyRuns, HttpRequest], bool]:
    """Whether this user may do it to runs at all."""

    def has_permission(self: ManyRuns, request: HttpRequest) -> bool:
        return self.has_action_permission(request, run_actions.ACTIONS[name])

    return has_permission


class ManyRuns(RunActions):
    """The part of the runs' admin for actions on many runs."""

    actions = tuple(f"{name}_runs" for name in ON_MANY)

    retry_runs = _on_many("retry", gettext_lazy("Retry the selected runs"))
    restart_from_runs = _on_many(
        "restart_from", gettext_lazy("Restart the selected runs from a step")
    )
    skip_runs = _on_many("skip", gettext_lazy("Skip a step in the selected runs"))
    run_now_runs = _on_many("run_now", gettext_lazy("Run a delayed step now in the selected runs"))
    deliver_runs = _on_many("deliver", gettext_lazy("Deliver an event to the selected runs"))
    pause_runs = _on_many("pause", gettext_lazy("Pause the selected runs"))
    resume_runs = _on_many("resume", gettext_lazy("Resume the selected runs"))
    finish_runs = _on_many("finish", gettext_lazy("Mark the selected runs as succeeded"))
    cancel_runs = _on_many("cancel", gettext_lazy("Cancel the selected runs"))
    set_deadline_runs = _on_many(
        "set_deadline", gettext_lazy("Set the deadline of the selected runs")
    )
    erase_runs = _on_many("erase", gettext_lazy("Erase the data of the selected runs"))

    # Django calls this for an action's permissions.
    has_retry_permission = _may("retry")
    has_restart_permission = _may("restart_from")
    has_skip_permission = _may("skip")
    has_run_now_permission = _may("run_now")
    has_deliver_permission = _may("deliver")
    has_pause_permission = _may("pause")
    has_finish_permission = _may("finish")
    has_cancel_permission = _may("cancel")
    has_set_deadline_permission = _may("set_deadline")
    has_erase_permission = _may("erase")

    def _operate_on_many(
        self, request: HttpRequest, action: run_actions.Action, queryset: QuerySet[SequenceRun]
    ) -> HttpResponseBase:
        if not self.has_view_permission(request) or not self.has_action_permission(request, action):
            raise PermissionDenied
        statuses = _likeliest(queryset, action)
        ids = list(statuses)
        is_confirmed = request.POST.get("confirm") == "yes"
        basis = 0 if is_confirmed else newest_operation(ids[:MAX_RUNS_PER_REQUEST])
        form = FORMS.get(action.name, ActionForm)(
            request.POST if is_confirmed else None, initial={"basis": basis}
        )
        form.fields.pop("parents", None)  # each of these runs is retried alone
        if action.on_step and not _ask_for_step(form, action, ids[:MAX_RUNS_PER_REQUEST]):
            self.message_user(request, _no_step(), messages.WARNING)
            return HttpResponseRedirect(request.get_full_path())
        if not is_confirmed or not form.is_valid():
            return self._ask_about_many(request, action, statuses, form)
        report = self._do_to_many(request, action, ids, form.cleaned_data)
        self._report(request, action, report)
        return HttpResponseRedirect(request.get_full_path())

    def _ask_about_many(
        self,
        request: HttpRequest,
        action: run_actions.Action,
        status_of: dict[UUID, str],
        form: ActionForm,
    ) -> HttpResponseBase:
        ids, statuses = list(status_of)[:MAX_RUNS_PER_REQUEST], list(status_of.values())
        texts, count = TEXTS[action.name], len(ids)
        counts = Counter(statuses[:MAX_RUNS_PER_REQUEST])
        context = {
            "page_title": texts.title_of_many % {"count": count},
            "button": texts.title_of_many % {"count": count},
            "action": action,
            "action_name": request.POST.get("action"),
            "counts": [(status, status.label, counts[status]) for status in RunStatus],
            "count": count,
            "are_more": len(statuses) > MAX_RUNS_PER_REQUEST,
            "most": MAX_RUNS_PER_REQUEST,
            "classless": _classless(ids) if action.starts_steps else [],
            "form": form,
            "checkbox": ACTION_CHECKBOX_NAME,
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
            "across": request.POST.get("select_across", "0"),
            "back": request.get_full_path(),
        }
        template = "admin/job_sequences/sequencerun/confirm_many.html"
        return self._show(request, None, template, context)

    def _do_to_many(
        self,
        request: HttpRequest,
        action: run_actions.Action,
        ids: Sequence[UUID],
        cleaned: dict[str, Any],
    ) -> Report:
        report = Report(left=max(len(ids) - MAX_RUNS_PER_REQUEST, 0))
        until = monotonic() + MAX_SECONDS_PER_REQUEST
        batch = ids[:MAX_RUNS_PER_REQUEST]
        for index, run in enumerate(self._one_by_one(request, batch)):
            if monotonic() > until:
                report.left += len(batch) - index
                break
            if not self.has_action_permission(request, action, run):
                report.skipped[_("you do not have permission")].append(run)
                continue
            self._do_to_one(request, action, run, cleaned, report)
        return report

    def _one_by_one(self, request: HttpRequest, ids: Sequence[UUID]) -> Iterator[SequenceRun]:
        for index in range(0, len(ids), RUNS_PER_QUERY):
            batch = ids[index : index + RUNS_PER_QUERY]
            yield from self.get_queryset(request).filter(pk__in=batch).defer(*heavy())

    def _do_to_one(
        self,
        request: HttpRequest,
        action: run_actions.Action,
        run: SequenceRun,
        cleaned: dict[str, Any],
        report: Report,
    ) -> None:
        step = cleaned.get("step", "")
        try:
            counts = perform(run, action, step, cleaned, request.user)
        except SequenceError as error:
            report.skipped[explain(error)].append(run)
        else:
            if not counts:
                report.skipped[_why_it_does_not_count(run, step)].append(run)
                return
            self.log_change(request, run, _title(action, cleaned))
            report.done += 1

    def _report(self, request: HttpRequest, action: run_actions.Action, report: Report) -> None:
        if report.done:
            message = str(TEXTS[action.name].done_to_many % {"count": report.done})
            self.message_user(request, message, messages.SUCCESS)
        for reason, runs in report.skipped.items():
            self.message_user(request, self._skipped(reason, runs), messages.WARNING)
        if report.left:
            message = ngettext(
                "%(count)d more run remains: repeat the action, or use manage.py sequences.",
                "At least %(count)d more runs remain: repeat the action, or use manage.py "
                "sequences.",
                report.left,
            )
            self.message_user(request, message % {"count": report.left}, messages.WARNING)

    def _skipped(self, reason: str, runs: Sequence[SequenceRun]) -> SafeString:
        message = ngettext(
            "%(count)d run skipped: %(reason)s. (%(runs)s)",
            "%(count)d runs skipped: %(reason)s. (%(runs)s)",
            len(runs),
        )
        name = f"{self.admin_site.name}:job_sequences_sequencerun_change"
        links = [(reverse(name, args=[run.pk]), str(run)) for run in runs[:MAX_LINKED_RUNS]]
        names = format_html_join(", ", '<a href="{}">{}</a>', links)
        more = ", …" if len(runs) > MAX_LINKED_RUNS else ""
        values = {"count": len(runs), "reason": escape(reason.rstrip(".")), "runs": names + more}
        return mark_safe(escape(message) % values)  # noqa: S308 - its values are escaped


@dataclass
class Report:
    """What happened to the runs."""

    done: int = 0
    #: Runs for which it was not possible, by the reason.
    skipped: dict[str, list[SequenceRun]] = field(default_factory=lambda: defaultdict(list))
    #: How many runs, at least, are left for another request.
    left: int = 0


def _likeliest(queryset: QuerySet[SequenceRun], action: run_actions.Action) -> dict[UUID, str]:
    """The runs of one request, with their statuses; one more, if there are more."""
    statuses: dict[UUID, str] = {}
    # Otherwise, repeating the action would start with the runs that were skipped before.
    for status in dict.fromkeys([*action.rule.targets, *RunStatus.values]):
        if room := MAX_RUNS_PER_REQUEST + 1 - len(statuses):
            runs = queryset.filter(status=status)
            statuses |= dict(runs.values_list("pk", "status")[:room])
    return statuses


def _classless(ids: Sequence[UUID]) -> list[str]:
    """The sequences of these runs whose class this code does not have."""
    labels = SequenceRun.objects.using(conf.using()).filter(pk__in=ids).order_by()
    distinct = labels.values_list("sequence", flat=True).distinct()
    return sorted(label for label in distinct if registry.find(label) is None)


def _title(action: run_actions.Action, cleaned: dict[str, Any]) -> str:
    return title_of(action.name, label_of(cleaned.get("step", "")))


def _why_it_does_not_count(run: SequenceRun, event: str) -> str:
    """Why a delivery has changed nothing."""
    if run.delivered(event):
        return _("the event was already delivered")
    return _("the event is no longer needed because another event or step came first")


def _no_step() -> str:
    return _("None of these runs has a step that allows this action.")


def _rows_for(rule: Rule) -> Q:
    return Q(kind__in=rule.kinds, status__in=rule.offered_steps or rule.step_states)


#: The step runs for which an action on a step may be possible.
_STEP_RUNS = {
    "skip": Q(item=NO_ITEM) & (_rows_for(RULES["skip"]) | _rows_for(RULES["skip_compensation"])),
    "run_now": Q(due_at__isnull=False) & _rows_for(RULES["run_now"]),
    "deliver": _rows_for(RULES["deliver"]),
    "restart_from": Q(item=NO_ITEM) & _rows_for(RULES["restart_from"]),
}


def _ask_for_step(form: ActionForm, action: run_actions.Action, ids: Sequence[UUID]) -> bool:
    """Let people choose a step that these runs have. False: there is none."""
    rows = StepRun.objects.using(conf.using()).filter(_STEP_RUNS[action.name], run__in=ids)
    counts = rows.order_by().values_list("step").annotate(Count("run", distinct=True), Min("pk"))
    choices = [
        (step, ngettext("%(step)s (%(count)d run)", "%(step)s (%(count)d runs)", count)
            % {"step": label_of(step), "count": count})
        for step, count, _first in sorted(counts, key=itemgetter(2))
    ]  # fmt: skip
    form.fields["step"] = forms.ChoiceField(label=_("Step"), choices=choices)
    form.order_fields(["step"])
    return bool(choices)
