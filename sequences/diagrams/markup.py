"""SVG primitives: escaped elements, text that fits, lines with rounded corners."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache, partial
from html import escape
from importlib import resources
from math import dist

from ..utils.terminal import cells, cut

Point = tuple[float, float]

#: Of corners, in pixels.
RADIUS = 10.0
#: Relative widths in DejaVu Sans, which is wider than most system fonts.
_WIDTHS = {"ijlI .,:;'`|!·": 0.34, "ftr()[]": 0.42, "csvxyzkJ": 0.59, "mwMW@%&—": 1.0}
_EM = {char: width for chars, width in _WIDTHS.items() for char in chars}
#: Characters that XML 1.0 cannot represent.
_FORBIDDEN = dict.fromkeys((*range(32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "�")
_FORBIDDEN |= {9: " ", 10: "\n", 13: " "}


def clean(text: object) -> str:
    """Remove characters that XML does not allow."""
    return str(text).translate(_FORBIDDEN)


def element(name: str, *content: str, text: object = "", **attributes: object) -> str:
    """An element. ``content`` is markup, ``text`` is not; ``class_`` is ``class``.

    An attribute whose value is None or empty is left out.
    """
    inner = "".join(content) + escape(clean(text))
    pairs = "".join(_attribute(key, value) for key, value in attributes.items())
    return f"<{name}{pairs}>{inner}</{name}>" if inner else f"<{name}{pairs}/>"


def _attribute(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    text = number(value) if isinstance(value, float) else clean(value)
    return f' {name.rstrip("_").replace("_", "-")}="{escape(text)}"'


def document(width: float, height: float, *content: str, label: str, class_: str = "") -> str:
    """The complete picture in its natural size."""
    return element(
        "svg",
        *content,
        xmlns="http://www.w3.org/2000/svg",
        class_=f"seq-picture {class_}".rstrip(),
        viewBox=f"0 0 {width:g} {height:g}",
        role="group",
        aria_label=label,
        width=width,
        height=height,
    )


def listed(items: Iterable[str]) -> str:
    """A list, for screen readers."""
    return element("g", *(element("g", item, role="listitem") for item in items), role="list")


def hidden(items: Iterable[str], class_: str) -> str:
    """Hidden from screen readers, which read the list instead."""
    return element("g", *items, class_=class_, aria_hidden="true")


def linked(
    *content: str, label: str, words: Iterable[str], note: str = "", href: str, **attributes: str
) -> str:
    """An element whose name is a label with words, and a link if it leads anywhere.

    The tooltip is the name, and a note.
    """
    name = ": ".join(filter(None, (label, ", ".join(words))))
    title = element("title", text="\n".join(filter(None, (name, note))))
    tag, role = ("a", "") if href else ("g", "img")
    return element(tag, title, *content, href=href, role=role, aria_label=name, **attributes)


def shifted(x: float, y: float) -> str:
    """The transformation that moves an element to this point."""
    return f"translate({number(x)} {number(y)})"


def number(value: float) -> str:
    """A number as short as possible, to a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:g}"


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """The approximate width of a text in pixels, in the widest of the usual fonts."""
    return sum(map(_em, text)) * size * (1.1 if bold else 1.0)


@lru_cache(maxsize=4096)
def _em(char: str) -> float:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0.0
    if cells(char) == 2:
        return 1.25 if ord(char) > 0xFFFF else 1.02
    if char in _EM:
        return _EM[char]
    return 0.76 if char.isupper() or ord(char) > 0x5FF else 0.64


def fitted(text: str, size: float, room: float, *, bold: bool = False) -> str:
    """Cut a text to the available width in pixels."""
    text = " ".join(clean(text).splitlines())
    return cut(text, room, width_of=partial(width_of, size=size, bold=bold))


def straight(*points: Point) -> str:
    """A path along straight lines."""
    return f"M{' L'.join(map(_xy, points))}"


def elbow(start: Point, x: float, end: Point) -> str:
    """A path that is level up to ``x``, vertical there, and level again, with rounded corners."""
    if start[1] == end[1]:
        return straight(start, end)
    first, second = (x, start[1]), (x, end[1])
    corners = f"{_corner(start, first, second)} {_corner(first, second, end)}"
    return f"M{_xy(start)} {corners} L{_xy(end)}"


def curve(start: Point, end: Point, edge: float) -> str:
    """A path that is level up to ``edge``, and then curves, leaving and arriving level."""
    middle = (max(edge, start[0]) + end[0]) / 2
    level = f" L{_xy((edge, start[1]))}" if edge > start[0] else ""
    return f"M{_xy(start)}{level} C{_xy((middle, start[1]))} {_xy((middle, end[1]))} {_xy(end)}"


def _corner(before: Point, corner: Point, after: Point) -> str:
    radius = min(RADIUS, dist(before, corner) / 2, dist(corner, after) / 2)
    start, end = _towards(corner, before, radius), _towards(corner, after, radius)
    return f"L{_xy(start)} Q{_xy(corner)} {_xy(end)}"


def _towards(corner: Point, other: Point, distance: float) -> Point:
    part = distance / dist(corner, other)
    return (corner[0] + (other[0] - corner[0]) * part, corner[1] + (other[1] - corner[1]) * part)


def _xy(point: Point) -> str:
    return f"{number(point[0])},{number(point[1])}"


@lru_cache(maxsize=1)
def stylesheet() -> str:
    """The style sheet for pages and pictures."""
    return (resources.files("sequences") / "static/sequences/states.css").read_text("utf-8")
