"""The failed attempts of a step run, on its page."""

from __future__ import annotations

from typing import Any

from .. import conf
from ..inspection.snapshot import hide_secrets
from ..models import StepFailure
from .base import Newest, ReadOnlyInline


class NewestFailures(Newest):
    """The latest ones, redacted."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_queryset"):
            rows = super().get_queryset()
            hide_secrets(rows, [failure.run for failure in rows], conf.using())
        return self._queryset


class StepFailureInline(ReadOnlyInline):
    model = StepFailure
    formset = NewestFailures
    template = "admin/job_sequences/steprun/failures.html"
    fields = readonly_fields = ("attempt",)
