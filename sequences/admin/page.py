"""The page of one run."""

from __future__ import annotations

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from ..models import SequenceRun
from .base import ReadOnlyAdmin, shown
from .inlines import OperationInline, StepFailureInline, StepRunInline


class RunPage(ReadOnlyAdmin):
    """The part of the runs' admin that shows one of them."""

    inlines = (StepRunInline, StepFailureInline, OperationInline)
    fields = readonly_fields = (
        "id",
        "sequence",
        "key",
        "status",
        "shown_data",
        "shown_inbox",
        "version",
        "plan",
        "parent",
        "created_at",
        "updated_at",
        "finished_at",
    )

    @admin.display(description=_("data"))
    def shown_data(self, run: SequenceRun) -> str:
        """What its steps share."""
        return shown(run.data, run.sequence)

    @admin.display(description=_("inbox"))
    def shown_inbox(self, run: SequenceRun) -> str:
        """Events that came early."""
        return shown(run.inbox, run.sequence)
