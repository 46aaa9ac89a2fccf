"""The list of runs: what it shows, its filters and its search."""

from __future__ import annotations

import json
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin
from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast, Lower
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from .. import conf, registry
from ..models import StoredPlan
from ..portrait import visible
from .base import ReadOnlyAdmin, heavy, uuid_of

#: Runs whose hidden data a search looks through, the newest.
SEARCHED = 1_000


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


class RunListing(ReadOnlyAdmin):
    """The part of the runs' admin that lists and searches them."""

    list_display = ("id", "sequence", "key", "status", "created_at", "updated_at", "finished_at")
    list_filter = (SequenceFilter, "status", "created_at")
    search_fields = ("key",)
    search_help_text = _("An id, or a part of a key or of the data.")
    ordering = ("-created_at",)
    deferred = heavy()

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id if it is one; else a part of the key, or of what is shown of the data."""
        term = search_term.strip()
        if not term:
            return queryset, False
        run_id = uuid_of(term)
        if run_id and queryset.filter(pk=run_id).exists():
            return queryset.filter(pk=run_id), False
        runs = queryset.alias(data_text=Lower(Cast("data", TextField())))
        return runs.filter(Q(key__icontains=term) | _with_data(runs, term)), False


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
