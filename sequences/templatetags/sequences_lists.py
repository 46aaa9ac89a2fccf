"""For the templates of lists in the admin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django import template

register = template.Library()


@register.filter
def short_name(path: str) -> str:
    """Of the class of an error: without its module."""
    return path.rpartition(".")[2] or path


@register.filter
def by_row(results: Iterable[Any], changelist: Any) -> Iterator[tuple[Any, Any]]:
    """The rows of a list with their cells: what swaps rows must know which is which."""
    return zip(changelist.result_list, results, strict=True)
