"""Step runs in the admin, whatever run they belong to."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from ..models import StepRun
from .base import ReadOnlyAdmin, heavy, shown, uuid_of
from .inlines import StepFailureInline
from .listing import SequenceOfRunFilter


@admin.register(StepRun)
class StepRunAdmin(ReadOnlyAdmin):
    """Step runs, whatever run they belong to."""

    list_display = (
        "id",
        "run_link",
        "step",
        "item",
        "status",
        "attempts",
        "queued_at",
        "started_at",
        "finished_at",
    )
    list_filter = (SequenceOfRunFilter, "status", ("ready_at", admin.DateFieldListFilter))
    list_select_related = ("run",)
    search_fields = ("step", "run__key")
    search_help_text = _("The id of a run, or a part of its key or of a step's name.")
    ordering = ("-id",)
    deferred = (*heavy("run__"), "payload", "result", "progress")
    inlines = (StepFailureInline,)
    fields = readonly_fields = (
        "id",
        "run_link",
        "step",
        "item",
        "kind",
        "status",
        "attempts",
        "lost",
        "repeats",
        "worker",
        "shown_progress",
        "shown_payload",
        "shown_result",
        "ready_at",
        "queued_at",
        "started_at",
        "finished_at",
        "due_at",
        "wake_at",
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By the id of the run if it is one."""
        run_id = uuid_of(search_term)
        if run_id:
            return queryset.filter(run=run_id), False
        return super().get_search_results(request, queryset, search_term)

    @admin.display(description=_("run"), ordering="run")
    def run_link(self, row: StepRun) -> str:
        """To its run."""
        url = reverse(f"{self.admin_site.name}:job_sequences_sequencerun_change", args=[row.run_id])
        return format_html('<a href="{}">{}</a>', url, row.run)

    @admin.display(description=_("progress"))
    def shown_progress(self, row: StepRun) -> str:
        """What it told last."""
        return shown(row.progress, row.run.sequence, row.step)

    @admin.display(description=_("payload"))
    def shown_payload(self, row: StepRun) -> str:
        """What it was given."""
        return shown(row.payload, row.run.sequence, row.step)

    @admin.display(description=_("result"))
    def shown_result(self, row: StepRun) -> str:
        """What it returned."""
        return shown(row.result, row.run.sequence, row.step)
