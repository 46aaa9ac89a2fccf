"""Pictures of plans and runs, drawn by us: SVG, Mermaid and text.

Pure: values in, `str` out. All of it is escaped, and whoever shows it marks it as safe.
"""

from ..definitions.plan import Plan
from .marks import STATUSES, Labels, Mark
from .outline import Row, outline
from .svg import svg
from .text import SIGNS, mermaid, text
from .timeline import Lane, Span, timeline

#: The steps of a main line that one picture holds. More are shown as a list.
MOST = 60


def is_drawable(plan: Plan) -> bool:
    """Whether a picture of it would still be one. If not: `outline`."""
    return 0 < len(plan.main) <= MOST


__all__ = [
    "MOST",
    "SIGNS",
    "STATUSES",
    "Labels",
    "Lane",
    "Mark",
    "Row",
    "Span",
    "is_drawable",
    "mermaid",
    "outline",
    "svg",
    "text",
    "timeline",
]
