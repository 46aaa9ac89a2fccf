"""The search: for names through indexes, and for text in the newest runs."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast, Lower

from ..definitions import registry
from ..inspection.snapshot import visible
from ..models import SequenceRunQuerySet
from ..utils.text import id_digits
from .base import uuid_of

#: Digits of an id that a search takes as a prefix: enough for the day and about the minute.
SHORTEST_PREFIX = 8
#: How many runs with secrets have their data searched in this process, the newest.
SEARCHED_HERE = 1_000


def named(runs: Any, search_term: str) -> QuerySet[Any] | None:
    """Runs with this id, an id with this prefix, or exactly this key, if there are any."""
    term = search_term.strip()
    candidates = [_with_id(runs, term), runs.filter(key=term)]
    return next((rows for rows in candidates if rows is not None and rows.exists()), None)


def holding(runs: QuerySet[Any], term: str) -> QuerySet[Any]:
    """Runs with this text in their key, or in their visible data. Reads all of them."""
    runs = runs.alias(data_text=Lower(Cast("data", TextField())))
    return runs.filter(Q(key__icontains=term) | _with_data(runs, term))


def _with_id(runs: SequenceRunQuerySet, term: str) -> QuerySet[Any] | None:
    if run_id := uuid_of(term):
        return runs.filter(pk=run_id)
    digits = id_digits(term, SHORTEST_PREFIX)
    return runs.whose_id_begins(digits) if digits else None


def _with_data(runs: QuerySet[Any], term: str) -> Q:
    """Runs whose data contains this text where people may see it."""
    matches = Q()
    for spelling in _spellings(term):
        matches |= Q(data_text__icontains=spelling)
    open_to_all = Q(sequence__in=_labels_without_secrets())
    guarded = runs.filter(~open_to_all & matches).order_by("-created_at")
    return matches & open_to_all | Q(pk__in=_visibly_with(guarded[:SEARCHED_HERE], term))


def _spellings(term: str) -> set[str]:
    """The text as it is, as JSON writes it, and as JSON writes it in ASCII; also in lower case, for
    databases that compare JSON by characters."""
    spellings = {term, json.dumps(term, ensure_ascii=False)[1:-1], json.dumps(term)[1:-1]}
    return spellings | {spelling.lower() for spelling in spellings}


def _labels_without_secrets() -> list[str]:
    definitions = [cls._definition for cls in registry.all()]
    return [
        label
        for definition in definitions
        if definition is not None and not registry.hidden(definition)
        for label in (definition.label, *definition.aliases)
    ]


def _visibly_with(runs: QuerySet[Any], term: str) -> list[UUID]:
    """Runs with the text outside what is redacted: a search must not reveal secrets."""
    spellings = _spellings(term)
    ids = []
    # Deferred columns would be loaded row by row.
    for run in runs.defer(None).only("sequence", "data"):
        text = json.dumps(visible(run.data, run.sequence), ensure_ascii=False).lower()
        if any(spelling in text for spelling in spellings):
            ids.append(run.pk)
    return ids
