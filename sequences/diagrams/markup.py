"""SVG primitives: escaped elements, text that fits, lines with rounded corners."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from html import escape
from importlib import resources
from itertools import accumulate
from typing import Any

Point = tuple[float, float]

ELLIPSIS = "…"
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


def document(
    width: float, height: float, *content: str, label: str, standalone: bool, class_: str = ""
) -> str:
    """The complete picture in its natural size; ``standalone``: including the style sheet."""
    size: dict[str, Any] = {"width": width, "height": height}
    own = [f"<style>{stylesheet()}</style>", element("rect", class_="seq-back", **size)]
    return element(
        "svg",
        *(own if standalone else []),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        class_=f"seq-picture {class_}".rstrip(),
        viewBox=f"0 0 {width:g} {height:g}",
        role="group",
        aria_label=label,
        direction="ltr",
        **size,
    )


def listed(items: Iterable[str]) -> str:
    """A list, for screen readers."""
    return element("g", *(element("g", item, role="listitem") for item in items), role="list")


def hidden(items: Iterable[str], class_: str) -> str:
    """Hidden from screen readers, which read the list instead."""
    return element("g", *items, class_=class_, aria_hidden="true")


def linked(*content: str, label: str, title: str, href: str, class_: str) -> str:
    """An element with a name, and a link if it leads anywhere."""
    content = (element("title", text=title), *content)
    if href:
        return element("a", *content, href=href, class_=class_, aria_label=label)
    return element("g", *content, class_=class_, role="img", aria_label=label)


def number(value: float) -> str:
    """A number as short as possible, to a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:g}"


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """The approximate width of a text in pixels, in the widest of the usual fonts."""
    return sum(map(_em, text)) * size * (1.1 if bold else 1.0)


@lru_cache(maxsize=4096)
def _em(char: str) -> float:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(char) in ("W", "F"):
        return 1.25 if ord(char) > 0xFFFF else 1.02
    if char in _EM:
        return _EM[char]
    return 0.76 if char.isupper() or ord(char) > 0x5FF else 0.64


def fitted(text: str, size: float, room: float, *, bold: bool = False) -> str:
    """Cut a text to the available width in pixels."""
    text = " ".join(clean(text).splitlines())
    if width_of(text, size, bold=bold) <= room:
        return text
    room -= width_of(ELLIPSIS, size, bold=bold)
    widths = accumulate(width_of(char, size, bold=bold) for char in text)
    return text[: sum(width <= room for width in widths)].rstrip() + ELLIPSIS


def rounded(points: Iterable[Point], radius: float = 10) -> str:
    """A path along these points, with rounded corners."""
    way = _corners(points)
    path = [f"M{_xy(way[0])}"]
    for before, corner, after in zip(way, way[1:], way[2:], strict=False):
        here = min(radius, _distance(before, corner) / 2, _distance(corner, after) / 2)
        path.append(f"L{_xy(_towards(corner, before, here))}")
        path.append(f"Q{_xy(corner)} {_xy(_towards(corner, after, here))}")
    return " ".join([*path, f"L{_xy(way[-1])}"])


def curve(start: Point, end: Point, edge: float) -> str:
    """A path that is level up to ``edge``, and then curves, leaving and arriving level."""
    middle = (edge + end[0]) / 2
    level = f" L{_xy((edge, start[1]))}" if edge > start[0] else ""
    return f"M{_xy(start)}{level} C{_xy((middle, start[1]))} {_xy((middle, end[1]))} {_xy(end)}"


def _corners(points: Iterable[Point]) -> list[Point]:
    """Remove points that are repeated or on a straight line."""
    way = list[Point]()
    for point in points:
        if way and _distance(way[-1], point) < 0.01:
            continue
        if len(way) > 1 and _straight(way[-2], way[-1], point):
            way.pop()
        way.append(point)
    return way


def _straight(first: Point, second: Point, third: Point) -> bool:
    return any(first[axis] == second[axis] == third[axis] for axis in (0, 1))


def _distance(start: Point, end: Point) -> float:
    return float(abs(start[0] - end[0]) + abs(start[1] - end[1]))


def _towards(corner: Point, other: Point, distance: float) -> Point:
    part = distance / _distance(corner, other)
    return (corner[0] + (other[0] - corner[0]) * part, corner[1] + (other[1] - corner[1]) * part)


def _xy(point: Point) -> str:
    return f"{number(point[0])},{number(point[1])}"


@lru_cache(maxsize=1)
def stylesheet() -> str:
    """The style sheet for pages and pictures."""
    return (resources.files("sequences") / "static/sequences/states.css").read_text("utf-8")
