"""What the admin pages of this app have in common.

They read from the database that holds the runs, and redact secrets: values selected by
`Meta.redact` are shown as ``***``. If this code no longer has a run's class, the run's values are
hidden, because nobody knows which of them are secret.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import FieldDoesNotExist
from django.db.models import JSONField, Model, QuerySet, TextField
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from .. import conf
from ..data.redaction import hide
from ..inspection.snapshot import visible

#: How many rows a list counts at most: in a table of millions, counting takes seconds.
COUNTED = 10_000
#: How many rows of one kind a page shows, the newest.
MAX_NEWEST_ROWS = 100

EMPTY = "-"


def pretty(value: Any, sequence: str, step: str = "") -> SafeString | str:
    """A stored value for people: indented, redacted, escaped."""
    if value is None:
        return EMPTY
    return format_html("<pre>{}</pre>", _text(visible(value, sequence, step)))


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


class Newest(BaseInlineFormSet):  # type: ignore[type-arg]
    """The newest rows only, in order of creation."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_queryset"):
            rows = super().get_queryset().order_by("-pk")
            self._queryset = list(rows[:MAX_NEWEST_ROWS])[::-1]
        return self._queryset


class LightChangeList(ChangeList):
    """A list that does not load columns that may be large."""

    model_admin: ReadOnlyAdmin

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        rows = super().get_queryset(request, exclude_parameters)
        return rows.defer(*self.model_admin.deferred)

    def get_filters(self, request: HttpRequest) -> Any:
        if any("\0" in text for _name, texts in request.GET.lists() for text in texts):
            raise IncorrectLookupParameters(
                "A NUL character matches no row, and PostgreSQL rejects it."
            )
        return super().get_filters(request)


class ReadOnly:
    """For admins and inlines: with the permission to view, one can view; nobody can change
    anything."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """From the database that holds the runs, whatever a router says."""
        rows: QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        return rows.using(conf.using())


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    show_full_result_count = False
    list_per_page = 50
    #: Columns that the list does not load.
    deferred: ClassVar[tuple[str, ...]] = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LightChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # ?data__token__startswith=a would reveal secrets letter by letter.
        if _asks_for_content(self.model, lookup) or _is_expression(lookup):
            return False
        return super().lookup_allowed(lookup, value, request)


class ReadOnlyInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    formset = Newest
    extra = 0
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # Each row needs its run's sequence.
        return super().get_queryset(request).select_related("run").defer(*heavy("run__"))


def _asks_for_content(model: type[Model], lookup: str) -> bool:
    """Whether such a filter in a URL asks for a value or text that may contain secrets."""
    for name in lookup.split("__"):
        try:
            field: Any = model._meta.get_field(name)
        except FieldDoesNotExist:
            return False
        if isinstance(field, JSONField | TextField):
            return True
        if not field.is_relation:
            return False
        model = field.related_model
    return False


def _is_expression(lookup: str) -> bool:
    """Whether the database would reject some values (each database with a different error) or
    search for minutes."""
    return lookup.endswith(("__regex", "__iregex"))


def without_secrets(text: str, secrets: Collection[str], typed: Iterable[object]) -> str:
    """An error without these secrets, except those that were typed: stars in the place of a guess
    would confirm it."""
    if hide(text, secrets) == text:
        return text
    form = "\n".join(map(str, typed))
    quoted = (secret for secret in secrets if hide(text, [secret]) != text)
    return hide(text, [secret for secret in quoted if hide(form, [secret]) == form])


def is_refresh(request: HttpRequest) -> bool:
    """Whether the page's script requests the page again: then nobody would see the messages."""
    return request.headers.get("X-Requested-With") == "sequences-live"


def heavy(prefix: str = "") -> tuple[str, ...]:
    return f"{prefix}data", f"{prefix}inbox"


def uuid_of(term: str) -> UUID | None:
    """The id that this text stands for, if it is one."""
    try:
        return UUID(term.strip())
    except ValueError:
        return None
