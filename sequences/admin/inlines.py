"""The rows of a run below it: step runs, failed attempts, operations."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from ..models import Operation, StepFailure, StepRun
from .base import EMPTY, NEWEST, ReadOnlyInline, shown


class StepRunInline(ReadOnlyInline):
    model = StepRun
    verbose_name_plural = _("step runs (the newest %(count)d)") % {"count": NEWEST}
    fields = readonly_fields = (
        "step",
        "item",
        "status",
        "attempts",
        "lost",
        "queued_at",
        "started_at",
        "finished_at",
        "due_at",
        "shown_result",
    )
    show_change_link = True

    @admin.display(description=_("result"))
    def shown_result(self, row: StepRun) -> str:
        """What it returned."""
        return shown(row.result, row.run.sequence, row.step)


class StepFailureInline(ReadOnlyInline):
    model = StepFailure
    verbose_name_plural = _("failed attempts (the newest %(count)d)") % {"count": NEWEST}
    fields = readonly_fields = (
        "step",
        "item",
        "attempt",
        "error",
        "message",
        "shown_traceback",
        "worker",
        "failed_at",
    )

    @admin.display(description=_("traceback"))
    def shown_traceback(self, failure: StepFailure) -> str:
        """Escaped: it holds whatever the step was given."""
        if not failure.traceback:
            return EMPTY
        return format_html("<pre>{}</pre>", failure.traceback)


class OperationInline(ReadOnlyInline):
    model = Operation
    verbose_name_plural = _("operations (the newest %(count)d)") % {"count": NEWEST}
    fields = readonly_fields = (
        "action",
        "step",
        "by",
        "reason",
        "shown_before",
        "shown_after",
        "done_at",
    )

    @admin.display(description=_("before"))
    def shown_before(self, operation: Operation) -> str:
        """The data that was edited."""
        return shown(operation.before, operation.run.sequence)

    @admin.display(description=_("after"))
    def shown_after(self, operation: Operation) -> str:
        """What was put in its place."""
        return shown(operation.after, operation.run.sequence)
