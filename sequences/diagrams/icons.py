"""A shape for each status and each kind of step, so that colour is never the only cue."""

from __future__ import annotations

from typing import NamedTuple

from .markup import element, shifted


class Look(NamedTuple):
    """How a status is shown."""

    #: In a terminal, and in one that has ASCII only.
    sign: str
    ascii_sign: str
    #: In a 16 by 16 drawing: a circle, if any, and a path. Filled ones have ended, open ones have
    #: not.
    circle: str
    path: str


#: The statuses of runs and steps. ``pending`` is a step that the run has not reached.
STATUSES = {
    "pending": Look("·", ".", "ring dotted", ""),
    "waiting": Look("◷", "w", "ring", "M8,4.5 V8 L10.5,9.8"),
    "queued": Look("○", "o", "ring", "M4.8,8 H4.9 M7.95,8 H8.05 M11.1,8 H11.2"),
    "running": Look("●", "*", "track", "M8,1.8 A6.2,6.2 0 0 1 14.2,8"),
    "retrying": Look("↻", "r", "", "M13,3 V6.2 H9.8 M12.7,6 A5.4,5.4 0 1 0 13.4,8.6"),
    "succeeded": Look("✓", "+", "disc", "M4.9,8.3 L7.2,10.5 L11.2,5.9"),
    "failed": Look("✗", "x", "disc", "M5.6,5.6 L10.4,10.4 M10.4,5.6 L5.6,10.4"),
    "skipped": Look("-", "-", "ring", "M4.4,11.6 L11.6,4.4"),
    "cancelled": Look("-", "-", "ring", "M5,8 H11"),
    "paused": Look("‖", "=", "ring", "M6.4,5.6 V10.4 M9.6,5.6 V10.4"),
    "undoing": Look("↺", "u", "", "M3,3 V6.2 H6.2 M3.3,6 A5.4,5.4 0 1 1 2.6,8.6"),
}
#: 12 by 12 drawings.
_KINDS = {
    "each": "M1.5,4.5 H8 V10.5 H1.5 Z M4,4.5 V1.5 H10.5 V8 H8",
    "event": "M1.5,3 H10.5 V9.5 H1.5 Z M1.5,3.4 L6,7 L10.5,3.4",
    "subsequence": "M1,1.5 H5 V5 H1 Z M7,7 H11 V10.5 H7 Z M3,5 V8.7 H7",
    "undo": "M4,2 L1.5,4.5 L4,7 M1.8,4.5 H7.5 A2.6,2.6 0 0 1 7.5,9.8 H4",
    "on_failure": "M6,1.5 L11,10.2 H1 Z M6,5 V7 M6,8.6 V8.7",
    "on_cancel": "M2.5,2.5 L9.5,9.5 M9.5,2.5 L2.5,9.5",
    "on_end": "M2.5,1.5 V10.5 M2.5,2 H10 L8,4.2 L10,6.5 H2.5",
    "on_error": "M2,10.5 V6 Q2,4 4,4 H10 M7.5,1.5 L10,4 L7.5,6.5",
    "any_of": "M1.5,2 L5.5,6 L1.5,10 M5.5,6 H10.5 M8.2,3.7 L10.5,6 L8.2,8.3",
    "delay": "M6,1.3 A4.7,4.7 0 1 1 5.99,1.3 Z M6,3.4 V6 L8,7.4",
    "step": "M6,3 A3,3 0 1 1 5.99,3 Z",
}


def state_icon(status: str, x: float, y: float) -> str:
    """The icon of a status, 16 pixels wide, with its top left corner at this point."""
    look = STATUSES[status]
    radius = 7 if look.circle == "disc" else 6.2
    parts = [
        element("circle", cx=8, cy=8, r=radius, class_=look.circle) if look.circle else "",
        element("path", d=look.path) if look.path else "",
    ]
    return element("g", *parts, class_="seq-icon", transform=shifted(x, y))


def kind_icon(kind: str, x: float, y: float) -> str:
    """The icon of a kind of step, 12 pixels wide; for a plain step, a dot."""
    path = element("path", d=_KINDS[kind])
    return element("g", path, class_="seq-kind", transform=shifted(x, y))
