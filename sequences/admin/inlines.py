"""The failed attempts of a step run, below it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..inspection.snapshot import hide_secrets
from ..models import StepFailure
from .base import EMPTY, NEWEST, Newest, ReadOnlyInline


class NewestFailures(Newest):
    """Without what their run hides."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_queryset"):
            rows = super().get_queryset()
            hide_secrets(rows, [failure.run for failure in rows], conf.using())
        return self._queryset


class StepFailureInline(ReadOnlyInline):
    model = StepFailure
    formset = NewestFailures
    verbose_name_plural = _("failed attempts (newest %(count)d)") % {"count": NEWEST}
    fields = readonly_fields = (
        "step",
        "item",
        "attempt",
        "error",
        "message",
        "traceback_column",
        "worker",
        "failed_at",
    )

    @admin.display(description=_("traceback"))
    def traceback_column(self, failure: StepFailure) -> str:
        """Escaped: it holds whatever the step was given."""
        if not failure.traceback:
            return EMPTY
        return format_html("<pre>{}</pre>", failure.traceback)
