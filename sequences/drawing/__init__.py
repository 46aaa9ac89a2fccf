"""Pictures of plans and runs, drawn by us: SVG, Mermaid and text.

Pure: values in, `str` out. All of it is escaped, and whoever shows it marks it as safe.
"""

from ..plan import Plan
from .lanes import Lane, Span, timeline
from .marks import STATUSES, Labels, Mark
from .outline import Row, outline
from .picture import svg
from .words import SIGNS, mermaid, text

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
