"""Runs and step runs in Django's admin: to be read, not to be changed.

What `Meta.redact` names is shown as stars. A run whose class this code no longer has is shown
without its values, as nobody knows what is secret in them.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast, Lower
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from . import conf, registry
from .models import Operation, SequenceRun, StepFailure, StepRun, StoredPlan
from .redaction import HIDDEN, redact

__all__ = ["SequenceRunAdmin", "StepRunAdmin"]

#: Rows that are counted in a list: a table of millions would take seconds.
COUNTED = 10_000
#: Rows of one kind that the page of a run shows, the newest.
NEWEST = 100
#: Runs whose hidden data a search looks through, the newest.
SEARCHED = 1_000

EMPTY = "-"


def shown(value: Any, sequence: str, step: str = "") -> SafeString | str:
    """A stored value as people may see it: indented, redacted, escaped."""
    if value is None:
        return EMPTY
    return format_html("<pre>{}</pre>", _text(visible(value, sequence, step)))


def visible(value: Any, sequence: str, step: str = "") -> Any:
    """Without what the sequence hides; a value of a step is hidden as if it stood in `data`."""
    definition = registry.definition_of(sequence)
    patterns = ["*"] if definition is None else definition.redact
    if definition is None and not isinstance(value, dict):
        return HIDDEN
    value = redact(value, patterns)
    return redact({step: value}, patterns)[step] if step else value


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than it must to be useful."""

    @cached_property
    def count(self) -> int:
        """The rows, or `COUNTED` if there are more."""
        rows: Any = self.object_list[:COUNTED]
        return int(rows.count())


class Newest(BaseInlineFormSet):  # type: ignore[type-arg]
    """The newest rows only, in the order in which they came into being."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_queryset"):
            rows = super().get_queryset().order_by("-pk")
            self._queryset = list(rows[:NEWEST])[::-1]
        return self._queryset


class LightChangeList(ChangeList):
    """A list that does not load what may be large."""

    model_admin: ReadOnlyAdmin

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        rows = super().get_queryset(request, exclude_parameters)
        return rows.defer(*self.model_admin.deferred)


class ReadOnly:
    """For admins and inlines: whoever may view, views; nobody changes anything here."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """From the database that holds the runs, wherever a router reads from."""
        rows: QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        return rows.using(conf.using())


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    #: Columns that the list does not load.
    deferred: ClassVar[tuple[str, ...]] = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LightChangeList


class ReadOnlyInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    formset = Newest
    extra = 0
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # Each row asks for its run's sequence.
        return super().get_queryset(request).select_related("run").defer(*_heavy("run__"))


def _heavy(prefix: str = "") -> tuple[str, ...]:
    return f"{prefix}data", f"{prefix}inbox"


class SequenceFilter(admin.SimpleListFilter):
    """By sequence. The few stored plans know them all, without a look at the runs."""

    title = _("sequence")
    parameter_name = "sequence"
    field: ClassVar[str] = "sequence"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        labels = StoredPlan.objects.using(conf.using()).values_list("sequence", flat=True)
        return [(label, label) for label in labels.distinct().order_by("sequence")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.field: self.value()}) if self.value() else queryset


class SequenceOfRunFilter(SequenceFilter):
    field = "run__sequence"


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


@admin.register(SequenceRun)
class SequenceRunAdmin(ReadOnlyAdmin):
    """Runs: list, search, and one with all that happened in it."""

    list_display = ("id", "sequence", "key", "status", "created_at", "updated_at", "finished_at")
    list_filter = (SequenceFilter, "status", "created_at")
    search_fields = ("key",)
    search_help_text = _("An id, or a part of a key or of the data.")
    ordering = ("-created_at",)
    deferred = _heavy()
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

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id if it is one; else a part of the key, or of what is shown of the data."""
        term = search_term.strip()
        if not term:
            return queryset, False
        run_id = _uuid(term)
        if run_id and queryset.filter(pk=run_id).exists():
            return queryset.filter(pk=run_id), False
        runs = queryset.alias(data_text=Lower(Cast("data", TextField())))
        return runs.filter(Q(key__icontains=term) | _with_data(runs, term)), False

    @admin.display(description=_("data"))
    def shown_data(self, run: SequenceRun) -> str:
        """What its steps share."""
        return shown(run.data, run.sequence)

    @admin.display(description=_("inbox"))
    def shown_inbox(self, run: SequenceRun) -> str:
        """Events that came early."""
        return shown(run.inbox, run.sequence)


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


def _with_data(runs: QuerySet[Any], term: str) -> Q:
    """Those whose data holds this text, where people may see it."""
    found = Q()
    for spelling in _spellings(term):
        found |= Q(data_text__icontains=spelling)
    open_to_all = Q(sequence__in=_labels_without_secrets())
    guarded = runs.filter(~open_to_all & found).order_by("-created_at")
    return found & open_to_all | Q(pk__in=_seen(guarded[:SEARCHED], term))


def _spellings(term: str) -> set[str]:
    """As it stands, as JSON writes it, and as JSON writes it in ASCII; in small letters too, for
    databases that compare JSON letter by letter."""
    spellings = {term, json.dumps(term, ensure_ascii=False)[1:-1], json.dumps(term)[1:-1]}
    return spellings | {spelling.lower() for spelling in spellings}


def _labels_without_secrets() -> list[str]:
    definitions = [cls._definition for cls in registry.all()]
    return [
        label
        for definition in definitions
        if definition is not None and not definition.redact
        for label in (definition.label, *definition.aliases)
    ]


def _seen(runs: QuerySet[Any], term: str) -> list[UUID]:
    """Those that hold the text outside of what is redacted: a search must not tell secrets."""
    spellings = _spellings(term)
    found = []
    for run in runs.only("sequence", "data"):
        text = json.dumps(visible(run.data, run.sequence), ensure_ascii=False).lower()
        if any(spelling in text for spelling in spellings):
            found.append(run.pk)
    return found


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
    deferred = (*_heavy("run__"), "payload", "result", "progress")
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
        run_id = _uuid(search_term.strip())
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
