"""Lists that page by key: the thousandth page costs the same as the first.

`?before=` and `?after=` hold the key of a row on the page next to the requested one. OFFSET would
read and discard all rows before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.contrib.admin import ShowFacets
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.paginator import Paginator
from django.db.models import DateTimeField, Field, Model, Q, QuerySet, UUIDField
from django.http import HttpRequest

from ..inspection.wording import format_number
from . import base
from .base import LightChangeList, ReadOnlyAdmin

BEFORE, AFTER = "before", "after"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Counted(int):
    """A number of rows, with thousands separators as text. Templates show it with ``localize off``:
    Django would format the digits again."""

    def __str__(self) -> str:
        return format_number(int(self))


class Capped(Counted):
    """A number of rows that were counted only up to a limit: there are more."""

    def __str__(self) -> str:
        return f"{super().__str__()}+"


def count(rows: QuerySet[Any], column: str = "pk") -> Counted:
    """The number of rows, counted up to the number that people care about."""
    number = rows.order_by().values(column)[: base.COUNTED + 1].count()
    return Counted(number) if number <= base.COUNTED else Capped(base.COUNTED)


def total(counts: Sequence[int]) -> Counted:
    """Their sum, if it is known."""
    number = sum(int(count) for count in counts)
    if number <= base.COUNTED and not any(isinstance(count, Capped) for count in counts):
        return Counted(number)
    return Capped(min(number, base.COUNTED))


@dataclass(frozen=True)
class Place:
    """Where a page begins: next to the row with this key."""

    side: str
    values: tuple[Any, ...]

    def filter(self, rows: QuerySet[Any], keys: Sequence[str]) -> QuerySet[Any]:
        """The rows on this side of it."""
        return rows.filter(beyond(keys, self.values, "lt" if self.side == BEFORE else "gt"))


def beyond(keys: Sequence[str], values: Sequence[Any], compare: str) -> Q:
    """Rows whose key is less (``lt``) or greater (``gt``). The first term is for an index."""
    (first, *rest), (value, *values_of_rest) = keys, values
    strictly = Q(**{f"{first}__{compare}": value})
    if not rest:
        return strictly
    return Q(**{f"{first}__{compare}e": value}) & (strictly | beyond(rest, values_of_rest, compare))


class KeysetChangeList(LightChangeList):
    """Orders only by `page_keys` of its admin, newest or oldest first."""

    model_admin: KeysetAdmin
    place: Place | None = None
    #: The query strings of the adjacent pages; empty: there is none.
    newer_url = older_url = first_url = ""
    #: The last row that was searched, if not all rows were and there are older ones.
    looked_to: Any = None

    def get_filters(self, request: HttpRequest) -> Any:
        for side in (BEFORE, AFTER):
            if text := self.params.pop(side, ""):
                self.place = Place(side, self._values(text))
            self.filter_params.pop(side, None)
        return super().get_filters(request)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        ordering = super().get_ordering(request, queryset)
        first = str(ordering[0]) if ordering else "-"
        self.descending = first.startswith("-")
        sign = "-" if self.descending else ""
        return [f"{sign}{key}" for key in self.model_admin.page_keys]

    def get_results(self, request: HttpRequest) -> None:
        rows, back, on = self._page(self.queryset)
        self.result_list = rows
        self._link(rows, back, on)
        self.result_count = self.count_results()
        # Together, these keep the search form from showing "all of all".
        self.full_result_count = None if self.query else self.result_count
        self.show_full_result_count, self.show_admin_actions = False, True
        self.can_show_all = self.multi_page = False
        self.paginator = Paginator(rows, self.list_per_page)

    def newest(self, rows: QuerySet[Any], among: QuerySet[Any], most: int) -> QuerySet[Any]:
        """Those of these rows that are among the newest of the others, if no index finds them.

        The page after the last of them continues from there.
        """
        keys = self.model_admin.page_keys
        older = among.order_by(*(f"-{key}" for key in keys))
        if self.place is not None and self.place.side == BEFORE:
            older = self.place.filter(older, keys)
        self.looked_to = older.only(*keys)[most - 1 : most].first()
        if self.looked_to is None:
            return rows
        values = [getattr(self.looked_to, key) for key in keys]
        return rows.filter(~beyond(keys, values, "lt"))

    def count_results(self) -> int:
        """The number of rows on all pages, if that is known without counting."""
        kind = Capped if self.newer_url or self.older_url else Counted
        return kind(len(self.result_list))

    def _page(self, rows: QuerySet[Any]) -> tuple[list[Any], bool, bool]:
        """The rows of this page, and whether there are pages before and after it."""
        size, keys = self.list_per_page, self.model_admin.page_keys
        if self.place is not None and self.place.side == (AFTER if self.descending else BEFORE):
            page = list(self.place.filter(rows, keys).reverse()[: size + 1])
            if len(page) > size:
                return page[size - 1 :: -1], True, True
            self.place = None  # the beginning: fill the page
        if self.place is not None:
            rows = self.place.filter(rows, keys)
        page = list(rows[: size + 1])
        return page[:size], self.place is not None, len(page) > size

    def _link(self, rows: Sequence[Any], back: bool, on: bool) -> None:
        ahead, behind = (AFTER, BEFORE) if self.descending else (BEFORE, AFTER)
        urls = {ahead: "", behind: ""}
        if rows and back:
            urls[ahead] = self.get_query_string({ahead: self._text(rows[0])})
        if rows and on:
            urls[behind] = self.get_query_string({behind: self._text(rows[-1])})
        if self.looked_to is not None and not urls[BEFORE]:
            urls[BEFORE] = self.get_query_string({BEFORE: self._text(self.looked_to)})
        self.newer_url, self.older_url = urls[AFTER], urls[BEFORE]
        self.first_url = self.get_query_string() if back else ""

    def _fields(self) -> list[Field[Any, Any]]:
        return [_field(self.model, key) for key in self.model_admin.page_keys]

    def _text(self, row: Model) -> str:
        return "_".join(_to_text(getattr(row, field.attname)) for field in self._fields())

    def _values(self, text: str) -> tuple[Any, ...]:
        try:
            parts = zip(self._fields(), text.split("_"), strict=True)
            return tuple(_from_text(field, part) for field, part in parts)
        except (ValueError, OverflowError) as error:
            raise IncorrectLookupParameters(f"No row has the key {text!r}.") from error


class KeysetAdmin(ReadOnlyAdmin):
    """For the admin of a table that may have millions of rows."""

    # Facets count all rows, once for each choice.
    show_facets = ShowFacets.NEVER
    #: The order of the list: columns that never change, ending with a unique one.
    page_keys: ClassVar[tuple[str, ...]] = ("id",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList


def _field(model: type[Model], name: str) -> Field[Any, Any]:
    field: Field[Any, Any] = model._meta.get_field(name)  # type: ignore[assignment]
    return field


def _to_text(value: Any) -> str:
    if isinstance(value, datetime):
        return str((value - _EPOCH) // timedelta(microseconds=1))
    return value.hex if isinstance(value, UUID) else str(value)


def _from_text(field: Field[Any, Any], text: str) -> Any:
    if isinstance(field, DateTimeField):
        return _EPOCH + timedelta(microseconds=int(text))
    return UUID(text) if isinstance(field, UUIDField) else int(text)
