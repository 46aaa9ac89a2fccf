"""Schedules in the admin: the list, the page of each, and forms to add, edit and operate on them.

Every operation is one method of the schedule. A GET changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import django
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Max, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.crypto import salted_hmac
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..data.redaction import NoSecret, redact, restore
from ..definitions import registry
from ..definitions.schedules import MAX_NAME, Every, Timetable, cron, every
from ..exceptions import InvalidDefinition, SequenceError
from ..inspection import schedules as inspection
from ..inspection.schedules import ScheduleSnapshot
from ..inspection.snapshot import title_of
from ..inspection.wording import explain, format_duration
from ..models import Schedule, ScheduleOperation, SequenceRun
from ..utils.durations import parse_duration
from . import columns, run_context
from .base import EMPTY, MAX_NEWEST_ROWS, LightChangeList, ReadOnlyAdmin, without_secrets
from .failures import list_media
from .forms import ActionForm, JSONText
from .subjects import SubjectViewer

Text = str | Promise

#: The colours of the states: those of similar statuses of runs and steps.
_COLOURS = {
    inspection.ACTIVE: "running",
    inspection.WAITING: "waiting",
    inspection.LATE: "failed",
    inspection.FAILING: "failed",
    inspection.PAUSED: "paused",
    inspection.ORPHANED: "cancelled",
    inspection.OVER: "skipped",
}


@dataclass(frozen=True)
class ScheduleAction:
    """An operation: the texts of its pages, and the permission that it needs."""

    name: str
    label: Text
    explains: Text
    done: Text
    permission: str
    is_dangerous: bool = False
    #: Whether it is harmless even from a page that is out of date.
    is_harmless: bool = False


ACTIONS = {
    action.name: action
    for action in (
        ScheduleAction(
            "run_now",
            _("Run now"),
            _("Starts a run now, in addition to the scheduled ones."),
            _("Run started."),
            "run_now_schedule",
        ),
        ScheduleAction(
            "pause",
            _("Pause"),
            _(
                "No runs start until someone resumes the schedule. It does not catch up on slots "
                "that pass in the meantime."
            ),
            _("The schedule is paused."),
            "pause_schedule",
            is_harmless=True,
        ),
        ScheduleAction(
            "resume",
            _("Resume"),
            _("Starts runs again, from the next slot."),
            _("The schedule is active again."),
            "pause_schedule",
        ),
        ScheduleAction(
            "update",
            _("Edit"),
            _("Changes the timetable, and the data of future runs."),
            _("The schedule was saved."),
            "change_schedule",
        ),
        ScheduleAction(
            "remove",
            _("Remove"),
            _("Removes the schedule. Its runs are kept."),
            _("The schedule was removed."),
            "delete_schedule",
            is_dangerous=True,
        ),
    )
}


class DurationText(forms.CharField):
    """A duration typed by a person. An empty field is None."""

    def to_python(self, value: Any) -> Any:
        """The timedelta. Raises ValidationError if the text is not a duration."""
        text = str(value or "").strip()
        if not text:
            return None
        if (length := parse_duration(text)) is None:
            raise ValidationError(_("Enter a duration such as 90 s, 15 min, 24 h or 7 days."))
        return length

    def run_validators(self, value: Any) -> None:
        """The value is no longer text."""


class TimetableForm(ActionForm):
    """A timetable and its data."""

    cron = forms.CharField(
        label=_("Cron expression"),
        required=False,
        max_length=200,
        help_text=_(
            "Minute, hour, day of the month, month and day of the week, for example 0 3 * * *"
        ),
    )
    timezone = forms.CharField(
        label=_("Time zone"),
        required=False,
        max_length=100,
        help_text=_("For the cron expression. Optional, for example Europe/Berlin"),
    )
    interval = DurationText(
        label=_("Interval"),
        required=False,
        help_text=_("Instead of a cron expression. For example 15 min"),
    )
    overlap = forms.ChoiceField(
        label=_("If the last run is unfinished"),
        choices=[
            ("skip", _("skip the slot")),
            ("wait", _("wait until it has finished")),
            ("allow", _("start anyway")),
        ],
    )
    catch_up = DurationText(
        label=_("Maximum age of a missed slot"),
        required=False,
        help_text=_("No run is started for older slots. Optional, for example 1 h"),
    )
    missed = forms.ChoiceField(
        label=_("If several slots were missed"),
        choices=[("latest", _("start the latest")), ("all", _("start all of them"))],
    )
    jitter = DurationText(
        label=_("Jitter"),
        required=False,
        help_text=_("Delays each start by up to this much. Optional, for example 2 min"),
    )
    run_data = JSONText(label=_("Data (JSON)"), required=False, help_text=_("Optional."))
    field_order = (
        "sequence", "name", "cron", "timezone", "interval", "overlap", "catch_up", "missed",
        "jitter", "run_data", "reason",
    )  # fmt: skip
    #: The start of an interval, if it is not its anchor.
    start: datetime | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].help_text = _("Stored with the schedule.")

    def clean_run_data(self) -> dict[str, Any] | None:
        """The data that runs start with is an object."""
        data: Any = self.cleaned_data["run_data"]
        if data is not None and not isinstance(data, dict):
            raise ValidationError(_("Data must be a JSON object: {…}."))
        return data

    def clean(self) -> dict[str, Any]:
        """Build the timetable. Raises ValidationError."""
        cleaned = super().clean() or {}
        if not self.errors:
            if bool(cleaned["cron"]) == bool(cleaned["interval"]):
                raise ValidationError(_("Enter a cron expression or an interval."))
            try:
                cleaned["timetable"] = self._timetable(cleaned)
            except InvalidDefinition as error:
                raise ValidationError(explain(error)) from error
        return cleaned

    def _timetable(self, cleaned: dict[str, Any]) -> Timetable:
        options: dict[str, Any] = {name: cleaned[name] for name in ("overlap", "missed")}
        lengths = {name: cleaned[name] for name in ("catch_up", "jitter")}
        options |= {name: value for name, value in lengths.items() if value is not None}
        if cleaned["cron"]:
            return cron(cleaned["cron"], timezone=cleaned["timezone"] or None, **options)
        return every(cleaned["interval"], start=self.start, **options)


class CreateForm(TimetableForm):
    """A new schedule."""

    sequence = forms.ChoiceField(label=_("Sequence"))
    name = forms.CharField(label=_("Name"), max_length=MAX_NAME)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.fields["basis"]  # its name can be used only once
        labels = [
            cls._definition.label
            for cls in registry.all()
            if cls._definition is not None and cls._definition.label != registry.INLINE_LABEL
        ]
        field: Any = self.fields["sequence"]
        field.choices = [(label, f"{title_of(label)} ({label})") for label in labels]


class UpdateForm(TimetableForm):
    """The new timetable, and the version that it is based on."""

    fingerprint = forms.CharField(widget=forms.HiddenInput)


def _initial(snapshot: ScheduleSnapshot) -> dict[str, Any]:
    timetable = snapshot.row.timetable
    spec = snapshot.row.spec
    interval = timetable.interval if isinstance(timetable, Every) else None
    return {
        "cron": spec.get("cron", ""),
        "timezone": spec.get("timezone", ""),
        "interval": _typed(interval),
        "overlap": timetable.overlap,
        "catch_up": _typed(timetable.catch_up),
        "missed": timetable.missed,
        "jitter": _typed(timetable.jitter) if timetable.jitter else "",
        "run_data": "" if snapshot.row.data is None else run_context.text_of(snapshot.data),
        "fingerprint": _version_of(timetable),
    }


def _version_of(timetable: Timetable) -> str:
    """What changes with the timetable and its data. Keyed: a plain hash of the data would confirm a
    guess of its secrets."""
    salt = "sequences.admin.schedules"
    return salted_hmac(salt, timetable.fingerprint(), algorithm="sha256").hexdigest()


def _typed(length: timedelta | None) -> str:
    """A duration as a person would type it, exactly."""
    if length is None:
        return ""
    text = format_duration(length)
    return text if parse_duration(text) == length else f"{length.total_seconds():f} s"


class ScheduleList(LightChangeList):
    """Schedules, each with its snapshot."""

    model_admin: ScheduleAdmin

    def get_results(self, request: HttpRequest) -> None:
        """Read what the rows show, with two queries."""
        super().get_results(request)
        rows = list(self.result_list)
        self.model_admin.take_snapshots(request, rows)
        self.result_list = rows


class StateFilter(admin.SimpleListFilter):
    """By the stored part of their states."""

    title = _("state")
    parameter_name = "state"
    _CONDITIONS: dict[str, dict[str, Any]] = {
        inspection.ACTIVE: {"paused_at": None, "orphaned_at": None},
        inspection.FAILING: {"failures__gt": 0, "paused_at": None, "orphaned_at": None},
        inspection.PAUSED: {"paused_at__isnull": False, "orphaned_at": None},
        inspection.ORPHANED: {"orphaned_at__isnull": False},
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(state, inspection.STATES[state]) for state in self._CONDITIONS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**self._CONDITIONS.get(str(self.value()), {}))


@admin.register(Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    """Schedules: the list, a page for each with its history, and its actions."""

    list_display = (
        "name_column",
        "sequence_column",
        "timing_column",
        "state_column",
        "next_column",
        "last_column",
        "run_column",
    )
    list_display_links = ("name_column",)
    list_filter = (StateFilter, "sequence", "is_declared")
    search_fields = ("name", "sequence")
    ordering = ("sequence", "name")
    sortable_by = ("sequence_column", "name_column", "next_column", "last_column")
    change_form_template = "admin/job_sequences/schedule/change_form.html"
    deferred = ("declarations",)

    # Permissions

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # It would tell whether a schedule is about an object that this person may not see.
        is_subject = lookup.partition("__")[0] == "subject_text"
        return not is_subject and super().lookup_allowed(lookup, value, request)

    def has_action_permission(
        self, request: HttpRequest, action: ScheduleAction, schedule: Schedule | None = None
    ) -> bool:
        """Whether this user may do this to this schedule. Projects can override it to restrict it
        further."""
        return request.user.has_perms([f"job_sequences.{action.permission}"])

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perms(["job_sequences.add_schedule"])

    def _sees_runs(self, request: HttpRequest) -> bool:
        return self.admin_site.is_registered(SequenceRun) and request.user.has_perms(
            ["job_sequences.view_sequencerun"]
        )

    # List

    @property
    def media(self) -> forms.Media:
        return super().media + list_media()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ScheduleList]:
        return ScheduleList

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(
            request, {"title": capfirst(self.opts.verbose_name_plural), **(extra_context or {})}
        )

    def take_snapshots(self, request: HttpRequest, rows: Iterable[Any]) -> None:
        """Give each row its snapshot: with its run only for those who may see that."""
        snapshots = inspection.of_many(rows, conf.using())
        ids = [each.last_run.pk for each in snapshots if each.last_run is not None]
        visible_ids = self._visible_runs(request, ids)
        for snapshot in snapshots:
            row: Any = snapshot.row
            row.snapshot = snapshot
            run = snapshot.last_run
            row.visible_run = run if run is not None and run.pk in visible_ids else None

    def _visible_runs(self, request: HttpRequest, ids: list[UUID]) -> set[UUID]:
        if not ids or not self._sees_runs(request):
            return set()
        runs = self.admin_site.get_model_admin(SequenceRun).get_queryset(request)
        return set(runs.filter(pk__in=ids).values_list("pk", flat=True))

    @admin.display(description=_("name"), ordering="name")
    def name_column(self, row: Any) -> str:
        """Its name."""
        return str(row.name)

    @admin.display(description=_("sequence"), ordering="sequence")
    def sequence_column(self, row: Any) -> SafeString:
        """The name of the sequence, for people."""
        return format_html('<span title="{}">{}</span>', row.sequence, title_of(row.sequence))

    @admin.display(description=_("timetable"))
    def timing_column(self, row: Any) -> str:
        """Its slots, in words."""
        return str(row.snapshot.timing)

    @admin.display(description=_("state"))
    def state_column(self, row: Any) -> SafeString:
        """As colour and text, with the sentence as a tooltip."""
        return format_html(
            '<span title="{}">{}</span>', row.snapshot.sentence, _badge(row.snapshot)
        )

    @admin.display(description=_("next slot"), ordering="next_slot")
    def next_column(self, row: Any) -> str:
        """When it starts its next run."""
        is_off = row.paused_at or row.orphaned_at or row.next_slot is None
        return EMPTY if is_off else columns.in_full(row.next_slot)

    @admin.display(description=_("last start"), ordering="last_started_at")
    def last_column(self, row: Any) -> SafeString | str:
        """When it last started a run."""
        if row.last_started_at is None:
            return EMPTY
        return columns.moment(row.last_started_at, row.snapshot.now)

    @admin.display(description=_("last run"))
    def run_column(self, row: Any) -> SafeString | str:
        """The status of that run, as a link to it."""
        return self._run_link(row.visible_run)

    def _run_link(self, run: SequenceRun | None) -> SafeString | str:
        if run is None:
            return EMPTY
        url = reverse(f"{self.admin_site.name}:job_sequences_sequencerun_change", args=[run.pk])
        return format_html('<a href="{}">{}</a>', url, columns.run_badge(run.status))

    # Pages

    def get_urls(self) -> list[URLPattern]:
        """Before Django's own, which treat every URL as the id of a schedule."""
        page = path(
            "<path:object_id>/action/<slug:action>/",
            self.admin_site.admin_view(self.action_view),
            name="job_sequences_schedule_action",
        )
        return [page, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """What it does, and the operations on it. Nothing can be saved here."""
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        row = self._schedule(request, object_id)
        snapshot = row.snapshot
        context = {
            "snapshot": snapshot,
            "subject": SubjectViewer(request, self.admin_site).label(row.subject_key),
            "badge": _badge(snapshot),
            "run_link": self._run_link(row.visible_run),
            "next_slot": self.next_column(row),
            "last_start": self.last_column(row),
            "catch_up": format_duration(snapshot.timetable.catch_up) if snapshot.timetable else "",
            "data": run_context.text_of(snapshot.data) if snapshot.data is not None else "",
            "buttons": self._buttons(request, snapshot),
            "operations": self._operations(request, snapshot),
        }
        return self._show(request, row, self.change_form_template, context | (extra_context or {}))

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add a schedule."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = CreateForm(request.POST or None, initial={"catch_up": "1 h", "overlap": "skip"})
        if request.method == "POST" and form.is_valid():
            cleaned = form.cleaned_data
            try:
                row = registry.get(cleaned["sequence"]).schedules.create(
                    cleaned["name"],
                    cleaned["timetable"],
                    data=cleaned["run_data"],
                    by=request.user,
                    reason=cleaned["reason"],
                )
            except SequenceError as error:
                form.add_error(None, explain(error))
            else:
                self.log_addition(request, row, gettext("Added the schedule."))
                self.message_user(request, gettext("The schedule was added."), messages.SUCCESS)
                return HttpResponseRedirect(self._url("change", row.pk))
        context = {
            "page_title": gettext("Add schedule"),
            "form": form,
            "button": _("Add"),
            "back": self._url("changelist"),
        }
        return self._show(request, None, _FORM, context)

    def action_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponseBase:
        """Ask for confirmation; perform the action when a POST confirms it."""
        row = self._schedule(request, object_id)
        if (named := ACTIONS.get(action)) is None:
            raise Http404
        if not self.has_action_permission(request, named, row):
            raise PermissionDenied
        if named.name not in row.snapshot.actions:
            self.message_user(
                request, gettext("The state of the schedule does not allow this."), messages.ERROR
            )
            return HttpResponseRedirect(self._url("change", row.pk))
        form = _form_for(named, row.snapshot, request, self._basis(request, row))
        if request.method == "POST" and request.POST.get("confirm") == "yes" and form.is_valid():
            response = self._do(request, row, named, form)
            if response is not None:
                return response
        context = {
            "page_title": named.label,
            "action": named,
            "snapshot": row.snapshot,
            "badge": _badge(row.snapshot),
            "form": form,
            "button": _("Save") if named.name == "update" else named.label,
            "back": self._url("change", row.pk),
            "has_secrets": "***" in str(form.initial.get("run_data", "")),
        }
        return self._show(request, row, _FORM, context)

    def _do(
        self, request: HttpRequest, row: Any, action: ScheduleAction, form: ActionForm
    ) -> HttpResponse | None:
        """Perform it. None: it was rejected, and the form says why."""
        options: dict[str, Any] = {"by": request.user, "reason": form.cleaned_data["reason"]}
        row._basis = None if action.is_harmless else form.cleaned_data["basis"]
        try:
            if action.name == "update":
                options |= _changes(row, form)
            run = getattr(row, action.name)(**options)
        except SequenceError as error:
            secrets, typed = row.snapshot.secrets, request.POST.values()
            form.add_error(None, without_secrets(explain(error), secrets, typed))
            return None
        except NoSecret as error:
            problem = _("No hidden value is stored at %(path)s, so *** cannot be used there.")
            form.add_error("run_data", problem % {"path": error.path})
            return None
        self.log_change(request, row, str(action.label))
        self.message_user(request, str(action.done), messages.SUCCESS)
        if run is not None and self._sees_runs(request):
            url = reverse(f"{self.admin_site.name}:job_sequences_sequencerun_change", args=[run.pk])
            return HttpResponseRedirect(url)
        is_gone = action.name == "remove"
        return HttpResponseRedirect(self._url(*(["changelist"] if is_gone else ["change", row.pk])))

    def _schedule(self, request: HttpRequest, object_id: str) -> Any:
        row: Any = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404(gettext("Schedule not found."))
        self.take_snapshots(request, [row])
        return row

    def _basis(self, request: HttpRequest, row: Schedule) -> int:
        """The id of the latest operation on it; 0 if there is none. A POST has its own."""
        if request.method == "POST":
            return 0
        rows = ScheduleOperation.objects.using(conf.using()).filter(schedule=row.pk)
        return rows.aggregate(newest=Max("pk"))["newest"] or 0

    def _buttons(self, request: HttpRequest, snapshot: ScheduleSnapshot) -> list[dict[str, Any]]:
        return [
            {"action": action, "url": self._url("action", snapshot.row.pk, name)}
            for name, action in ACTIONS.items()
            if name in snapshot.actions
            and self.has_action_permission(request, action, snapshot.row)
        ]

    def _operations(self, request: HttpRequest, snapshot: ScheduleSnapshot) -> Any:
        if not request.user.has_perms(["job_sequences.view_scheduleoperation"]):
            return None
        rows = ScheduleOperation.objects.using(conf.using()).filter(schedule=snapshot.row.pk)
        return [
            {"row": row, "label": _DONE.get(row.action, row.action), "lines": _lines(row)}
            for row in rows.order_by("-pk")[:MAX_NEWEST_ROWS]
        ]

    def _url(self, name: str, *args: Any) -> str:
        return reverse(f"{self.admin_site.name}:job_sequences_schedule_{name}", args=args)

    def _show(
        self, request: HttpRequest, row: Schedule | None, template: str, context: dict[str, Any]
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name
        shared = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": row,
            "title": str(row or ""),
            "media": forms.Media(css={"all": ["sequences/states.css", "sequences/console.css"]}),
            "base_template": "admin/change_form.html",
            "has_view_permission": True,
            "preserved_filters": self.get_preserved_filters(request),
            "has_list_crumbs": django.VERSION >= (6, 1),
        }
        return TemplateResponse(request, template, shared | context)


_FORM = "admin/job_sequences/schedule/form.html"
#: Operations, as the page of a schedule calls them.
_DONE: dict[str, Text] = {
    "create": _("Added"),
    "pause": _("Paused"),
    "resume": _("Resumed"),
    "update": _("Edited"),
    "remove": _("Removed"),
    "run_now": _("Run now"),
}


def _badge(snapshot: ScheduleSnapshot) -> SafeString:
    return columns.badge(_COLOURS[snapshot.state], snapshot.state_label)


def _form_for(
    action: ScheduleAction, snapshot: ScheduleSnapshot, request: HttpRequest, basis: int
) -> ActionForm:
    data = request.POST if request.method == "POST" else None
    if action.name != "update":
        form = ActionForm(data, initial={"basis": basis})
        form.fields["reason"].help_text = _("Stored with the schedule.")
        return form
    form = UpdateForm(data, initial={**_initial(snapshot), "basis": basis})
    timetable = snapshot.row.timetable
    form.start = timetable.start if isinstance(timetable, Every) else None
    return form


def _changes(row: Schedule, form: ActionForm) -> dict[str, Any]:
    """The changes in an edited form. Raises `SequenceError` if somebody else has changed it,
    too."""
    cleaned = form.cleaned_data
    if cleaned["fingerprint"] != _version_of(row.timetable):
        raise SequenceError(
            gettext("The schedule has changed in the meantime. Start over from its page.")
        )
    patterns = registry.hidden_by(row.sequence)
    data = restore(cleaned["run_data"] or {}, row.data or {}, patterns)
    return {"timetable": cleaned["timetable"], "data": data}


def _lines(operation: ScheduleOperation) -> list[run_context.Line]:
    """The changes made by an operation; the log has no secrets."""
    patterns = registry.hidden_by(operation.sequence)
    before, after = (
        {**value, "data": redact(value.get("data"), patterns)} if value else {}
        for value in (operation.before, operation.after)
    )
    if operation.action != "update":
        return []
    return run_context.differences(run_context.sorted_text(before), run_context.sorted_text(after))
