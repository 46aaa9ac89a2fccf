"""The failed attempts of a step run and the workers that it lost, on its page."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from .. import conf
from ..inspection.losses import loss_sentence
from ..inspection.snapshot import hide_secrets
from ..models import StepFailure, StepLoss
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


class NewestLosses(Newest):
    """The latest ones, each with its sentence."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_queryset"):
            for loss in super().get_queryset():
                loss.sentence = loss_sentence(loss)
        return self._queryset


class StepLossInline(ReadOnlyInline):
    model = StepLoss
    formset = NewestLosses
    template = "admin/job_sequences/steprun/losses.html"
    fields = readonly_fields = ("worker",)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may see failed attempts may see these."""
        return request.user.has_perms(["job_sequences.view_stepfailure"])
