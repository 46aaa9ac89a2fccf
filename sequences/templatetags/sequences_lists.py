"""For the templates of lists in the admin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django import template
from django.template import Context
from django.template.base import Parser, Token
from django.utils.safestring import SafeString

from ..admin.columns import exact_time
from ..admin.regions import digests_from, region
from ..inspection.tracebacks import blocks_of
from ..utils.text import class_name

register = template.Library()


register.filter("class_name", class_name)
register.filter("exact_time", exact_time)
register.filter("traceback_blocks", blocks_of)


class LiveRegion(template.Node):
    """An element with an id that the script of its page refreshes, if it has changed."""

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
def by_row(results: Iterable[Any], changelist: Any) -> Iterator[tuple[Any, Any]]:
    """The rows of a list with their cells: what swaps rows must know which is which."""
    return zip(changelist.result_list, results, strict=True)
