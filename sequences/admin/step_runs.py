"""Step runs in the admin, across all runs."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.views.main import ORDER_VAR
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..definitions.kinds import traits_of
from ..inspection.snapshot import report_of, visible, visible_payload, visible_text
from ..models import NO_ITEM, SequenceRun, StepRun
from . import columns
from .base import EMPTY, heavy, pretty
from .failures import list_media
from .filters import CreatedFilter, SequenceOfRunFilter, runs_for
from .inlines import StepFailureInline, StepLossInline
from .pagination import KeysetAdmin, KeysetChangeList
from .search import named

#: How many step runs a filter searches, the newest: there is no index for it.
FILTERED = 20_000


#: How many durable calls the page of a step run shows.
NEWEST_CALLS = 100


class ReadyFilter(CreatedFilter):
    """By the time since it became ready."""

    title = _("ready time")
    parameter_name = "ready"
    field = "ready_at"


def _time_column(name: str, description: Any) -> Any:
    """A time to the second and with its time zone, as in logs."""

    @admin.display(description=description, empty_value=EMPTY)
    def column(self: StepRunAdmin, row: StepRun) -> str:
        return columns.in_full(getattr(row, name)) or EMPTY

    return column


class StepRunList(KeysetChangeList):
    """The step runs of one run, or the newest."""

    model_admin: StepRunAdmin

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request, exclude_parameters)
        is_of_runs = self.query or any(
            name.startswith(("run__id", "run_id")) for name in self.params
        )
        if not is_of_runs and set(self.params) - {ORDER_VAR}:
            return self.newest(rows, self.root_queryset, FILTERED)
        return rows


@admin.register(StepRun)
class StepRunAdmin(KeysetAdmin):
    """Step runs, across all runs that the runs' admin would show."""

    list_display = (
        "id",
        "run_column",
        "step",
        "item_column",
        "status_column",
        "attempts",
        "queued_column",
        "started_column",
        "finished_column",
    )
    list_display_links = ("id", "step")
    list_filter = (SequenceOfRunFilter, "status", ReadyFilter)
    list_select_related = ("run",)
    search_fields = ("run__key",)
    search_help_text = _("Run ID (or prefix) or key.")
    ordering = ("-id",)
    sortable_by = ("id",)
    deferred = (*heavy("run__"), "payload", "result", "progress")
    inlines = (StepFailureInline, StepLossInline)
    fields = readonly_fields = (
        "id",
        "run_column",
        "step",
        "item_column",
        "kind_column",
        "status_column",
        "attempts",
        "lost_workers",
        "repeats",
        "worker",
        "progress_column",
        "payload_column",
        "result_column",
        "calls_column",
        "ready_column",
        "queued_column",
        "started_column",
        "finished_column",
        "due_column",
        "wake_column",
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[StepRunList]:
        return StepRunList

    def runs_for(self, request: HttpRequest) -> QuerySet[SequenceRun]:
        """The runs that this person may see: those in their admin on this site."""
        if self.admin_site.is_registered(SequenceRun):
            runs: QuerySet[SequenceRun] = self.admin_site.get_model_admin(SequenceRun).get_queryset(
                request
            )
            return runs
        return SequenceRun.objects.using(conf.using())

    @property
    def media(self) -> forms.Media:
        console = forms.Media(css={"all": ["sequences/console.css"]})
        return super().media + list_media() + console

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(request, {"title": _("Step runs"), **(extra_context or {})})

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        runs = runs_for(self, request)
        return rows if runs is None else rows.filter(run__in=runs.values("pk"))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The step runs of the run with this id, id prefix or key."""
        if not search_term.strip():
            return queryset, False
        runs = named(SequenceRun.objects.using(queryset.db), search_term)
        rows = queryset.none() if runs is None else queryset.filter(run__in=runs.values("pk"))
        return rows, False

    @admin.display(description=_("status"))
    def status_column(self, row: StepRun) -> str:
        """Its status."""
        return columns.step_badge(row.status)

    @admin.display(description=_("run"))
    def run_column(self, row: StepRun) -> str:
        """A link to its run."""
        if not self.admin_site.is_registered(SequenceRun):
            return str(row.run)
        url = reverse(f"{self.admin_site.name}:job_sequences_sequencerun_change", args=[row.run_id])
        return format_html('<a href="{}">{}</a>', url, columns.run_name(row.run))

    @admin.display(description=_("item"))
    def item_column(self, row: StepRun) -> str:
        """The index of an item."""
        return EMPTY if row.item == NO_ITEM else str(row.item)

    ready_column = _time_column("ready_at", pgettext_lazy("time", "ready"))
    queued_column = _time_column("queued_at", pgettext_lazy("time", "queued"))
    started_column = _time_column("started_at", pgettext_lazy("time", "started"))
    finished_column = _time_column("finished_at", pgettext_lazy("time", "finished"))
    due_column = _time_column("due_at", pgettext_lazy("time", "due"))
    wake_column = _time_column("wake_at", _("wake-up"))

    @admin.display(description=_("kind"))
    def kind_column(self, row: StepRun) -> str:
        """Its kind, in words."""
        return gettext(traits_of(row.kind).label)

    @admin.display(description=_("progress"))
    def progress_column(self, row: StepRun) -> str:
        """The progress that it reported last, until it has succeeded."""
        progress = report_of(row)
        if isinstance(progress, dict):
            text = visible_text(str(progress.get("text") or ""), row.run)
            progress = {**progress, "text": text}
        return pretty(progress, row.run.sequence, row.step)

    @admin.display(description=_("payload"))
    def payload_column(self, row: StepRun) -> str:
        """Its input."""
        return pretty(visible_payload(row), row.run.sequence)

    @admin.display(description=_("result"))
    def result_column(self, row: StepRun) -> str:
        """What it returned."""
        return pretty(row.result, row.run.sequence, row.step)

    @admin.display(description=_("durable calls"))
    def calls_column(self, row: StepRun) -> str:
        """What `self.once` has stored: redacted like results of the step, and by the calls'
        names."""
        sequence, step = row.run.sequence, row.step
        newest = row.calls.order_by("-pk")[:NEWEST_CALLS]
        results = {call.name: visible(call.result, sequence, step) for call in reversed(newest)}
        return pretty(results or None, sequence, step)
