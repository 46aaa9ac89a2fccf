"""Parts of texts that stand in other texts. Pure."""

from __future__ import annotations


def class_name(path: str) -> str:
    """Of an error's class: without its module."""
    return path.rpartition(".")[2] or path


def first_line(text: str, longest: int) -> str:
    """The first line that says something, cut to so many characters."""
    line = next((line for line in map(str.strip, text.splitlines()) if line), "")
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
