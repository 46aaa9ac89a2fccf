"""Diagrams of plans and runs: SVG, Mermaid and text.

Pure: values in, `str` out. Everything is escaped, and the code that shows it marks it as safe.
Words are in English, unless ``translate`` translates them.
"""

from ..definitions.plan import Plan
from .icons import STATUSES
from .marks import Mark
from .svg import svg
from .text import mermaid, text
from .timeline import Lane, Span, timeline

#: The most steps on the main path of a plan that is drawn. Larger plans are shown as a list.
MAX_STEPS = 60


def is_drawable(plan: Plan) -> bool:
    """Whether the plan is small enough to draw. If not, use `text`."""
    return 0 < len(plan.main) <= MAX_STEPS


__all__ = [
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
