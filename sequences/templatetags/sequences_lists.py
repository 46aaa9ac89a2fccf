"""For the templates of lists in the admin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django import template

from ..admin.columns import exact_time
from ..utils.text import class_name

register = template.Library()


register.filter("class_name", class_name)
register.filter("exact_time", exact_time)


@register.filter
def by_row(results: Iterable[Any], changelist: Any) -> Iterator[tuple[Any, Any]]:
    """The rows of a list with their cells: what swaps rows must know which is which."""
    return zip(changelist.result_list, results, strict=True)
