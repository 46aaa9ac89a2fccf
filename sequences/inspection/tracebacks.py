"""Tracebacks for people: the project's own frames first, those of libraries folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

#: The directory of this package: its frames say nothing about the project's code.
PACKAGE = Path(__file__).resolve().parent.parent
#: A frame; those of an exception group have rails in front of them.
_FRAME = re.compile(r'^(?P<rails>[ |+-]*)File "(?P<path>.+)", line \d+')
_LIBRARY = re.compile(
    r"[/\\](site-packages|dist-packages)[/\\]|[/\\]lib[/\\]python\d[\d.]*[/\\]|^<"
)
_START = "Traceback (most recent call last):"


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of a traceback that belong together."""

    text: str
    #: The number of library frames in it; 0: it is not folded.
    folded: int = 0


def blocks_of(traceback: str) -> list[Block]:
    """The traceback in blocks; in each of its parts, the project's own frames come first.

    The library frames that led to them come last, folded like all library frames.
    """
    return [block for part in _parts(traceback) for block in _ordered(part)]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A frame with the lines below it, or a line that belongs to no frame."""

    lines: tuple[str, ...]
    path: str = ""

    @property
    def is_library(self) -> bool:
        return bool(self.path) and is_library(self.path)


@lru_cache(maxsize=1024)
def is_library(path: str) -> bool:
    """Whether a file belongs to a library, to Python, or to this package."""
    if _LIBRARY.search(path):
        return True
    below = path.replace("\\", "/").rpartition("/sequences/")[2]
    # The worker may have had the package elsewhere, but with the same files.
    return below != path and below.endswith(".py") and (PACKAGE / below).is_file()


def _chunks(lines: Iterable[str]) -> Iterator[_Chunk]:
    frame: list[str] = []
    path = rails = ""
    for line in lines:
        match = _FRAME.match(line)
        is_below = bool(frame) and match is None and line.startswith(f"{rails}  ")
        if is_below or (frame and line.startswith(f"{rails}[Previous line repeated")):
            frame.append(line)
            continue
        if frame:
            yield _Chunk(tuple(frame), path)
            frame = []
        if match is None:
            yield _Chunk((line,))
        else:
            frame, path, rails = [line], match["path"], match["rails"]
    if frame:
        yield _Chunk(tuple(frame), path)


def _parts(traceback: str) -> Iterator[list[_Chunk]]:
    """The parts from one ``Traceback`` line to the next: an exception, and those behind it."""
    part: list[_Chunk] = []
    for chunk in _chunks(traceback.rstrip("\n").split("\n")):
        if not chunk.path and _START in chunk.lines[0] and part:
            yield part
            part = []
        part.append(chunk)
    yield part


def _ordered(part: list[_Chunk]) -> Iterator[Block]:
    groups = [(folded, list(chunks)) for folded, chunks in groupby(part, lambda c: c.is_library)]
    own = next((i for i, (_, chunks) in enumerate(groups) if _has_own_frame(chunks)), None)
    if own is None:
        yield from (_block(folded, chunks) for folded, chunks in groups)
        return
    outer = [group for group in groups[:own] if group[0]]
    yield from (_block(*group) for group in groups if group not in outer)
    yield from (_block(*group) for group in outer)


def _has_own_frame(chunks: Iterable[_Chunk]) -> bool:
    return any(chunk.path and not chunk.is_library for chunk in chunks)


def _block(folded: bool, chunks: list[_Chunk]) -> Block:
    text = "\n".join(line for chunk in chunks for line in chunk.lines)
    return Block(text, len(chunks) if folded else 0)
