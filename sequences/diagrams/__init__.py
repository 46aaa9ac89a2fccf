"""Diagrams of plans and runs, drawn by us: SVG, Mermaid and text.

Pure: values in, `str` out. All of it is escaped, and whoever shows it marks it as safe. Words are
English, or what ``translate`` makes of them.
"""

from ..definitions.plan import Plan
from .marks import STATUSES, Mark
from .svg import svg
from .text import mermaid, text
from .timeline import Lane, Span, timeline

#: How many steps of a main line one picture holds. More are shown as a list.
MAX_STEPS = 60


def is_drawable(plan: Plan) -> bool:
    """Whether a picture of it would still be one. If not: `text`."""
    return 0 < len(plan.main) <= MAX_STEPS


__all__ = [
    "MAX_STEPS",
    "STATUSES",
    "Lane",
    "Mark",
    "Span",
    "is_drawable",
    "mermaid",
    "svg",
    "text",
    "timeline",
]
