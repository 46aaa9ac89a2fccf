"""Tags for the admin's lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django import template
from django.template import Context
from django.template.base import Parser, Token
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import capfirst

from ..admin.base import EMPTY
from ..admin.columns import exact_time, in_full
from ..admin.regions import digests_from, region
from ..inspection.tracebacks import blocks_of
from ..utils.text import class_name

register = template.Library()


register.filter("class_name", class_name)
register.filter("exact_time", exact_time)
register.filter("in_full", in_full)
register.filter("traceback_blocks", blocks_of)


class LiveRegion(template.Node):
    """An element with an id that the page's script replaces if it has changed."""

    def __init__(self, nodelist: template.NodeList) -> None:
        self.nodelist = nodelist

    def render(self, context: Context) -> SafeString:
        return region(self.nodelist.render(context), digests_from(context.get("request")))


@register.tag
def live_region(parser: Parser, token: Token) -> LiveRegion:
    """``{% live_region %}<section id="…" data-seq-region>…</section>{% endlive_region %}``."""
    nodelist = parser.parse(("endlive_region",))
    parser.delete_first_token()
    return LiveRegion(nodelist)


@register.filter
def with_labels(cells: Iterable[SafeString], headers: Iterable[Any]) -> Iterator[SafeString]:
    """The cells of a row, each with the head of its column, for rows that are shown as cards."""
    for cell, header in zip(cells, headers, strict=True):
        label = escape(capfirst(header["text"]))
        is_empty = cell.endswith(f">{EMPTY}</td>")
        mark = ' data-empty=""' if is_empty else ""
        # Both are escaped: the cell by Django, the label here.
        yield mark_safe(cell.replace("<td", f'<td data-label="{label}"{mark}', 1))  # noqa: S308


@register.filter
def with_code(text: str) -> SafeString:
    """Text with backticks as code."""
    parts = enumerate(str(text).split("`"))
    pieces = ((format_html("<code>{}</code>", part) if n % 2 else part,) for n, part in parts)
    return format_html_join("", "{}", pieces)


@register.filter
def by_row(results: Iterable[Any], changelist: Any) -> Iterator[tuple[Any, Any]]:
    """The rows of a list with their cells, by id: the script that swaps rows must know which is
    which."""
    return zip(changelist.result_list, results, strict=True)
