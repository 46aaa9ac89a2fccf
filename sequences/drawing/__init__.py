"""Pictures of plans and runs, drawn by us: SVG, Mermaid and text.

Pure: values in, `str` out. All of it is escaped, and whoever shows it marks it as safe.
"""

from ..plan import Plan
from .marks import STATUSES, Labels, Mark
from .picture import svg

#: The steps of a main line that one picture holds. More are shown as a list.
MOST = 60


def is_drawable(plan: Plan) -> bool:
    """Whether a picture of it would still be one. If not: `outline`."""
    return len(plan.main) <= MOST


__all__ = ["MOST", "STATUSES", "Labels", "Mark", "is_drawable", "svg"]
