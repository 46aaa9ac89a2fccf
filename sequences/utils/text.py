"""Parts of texts that stand in other texts. Pure."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from functools import wraps
from hashlib import blake2s
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Unprintable(Exception):
    """In the place of an error of which Python makes no traceback, for those who ask for one.

    A SyntaxError whose text is bytes, say: whoever logs it fails with a TypeError. This one says
    what it was, and to `isinstance` it is that still.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {text_of(error)}")
        self._error = error
        self.__traceback__ = error.__traceback__

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._error)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._error, name)
        if name == "exceptions":  # of a group, which is formatted with all of them
            return tuple(printable(error) for error in value)
        return value


def printable(error: BaseException) -> BaseException:
    """The error itself, or what stands in its place where it cannot be formatted."""
    try:
        traceback.format_exception(error)
    except Exception:
        return Unprintable(error)
    return error


def raises_printable(function: Callable[P, T]) -> Callable[P, T]:
    """The same, but whoever catches what it raises can log it."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            substitute = printable(error)
            if substitute is error:
                raise
        raise substitute  # out here, where the error does not become its context

    return wrapped


class Printable(logging.Filter):
    """For a logger: no handler fails with the error that it is to write."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (substitute := printable(error)) is not error:
            record.exc_info = (type(substitute), substitute, substitute.__traceback__)
        return True


#: What differs between two messages that say the same: quotes, ids, numbers.
_VARIABLE = re.compile(
    r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|“[^”]*”|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b0x[0-9a-f]+\b"""
    r"""|\b[0-9a-f]{12,}\b|\d+(?:[.,:]\d+)*""",
    re.IGNORECASE,
)
#: Of a message, so many characters tell what it is about.
SHAPED_LENGTH = 1_000


def fingerprint_of(message: str) -> str:
    """A digest of what a message says, whatever it says it of; nothing for an empty one."""
    text = _VARIABLE.sub("#", message.strip()[:SHAPED_LENGTH])
    return blake2s(text.encode(errors="replace"), digest_size=8).hexdigest() if text else ""


def text_of(value: object) -> str:
    """What it says, or what happens when it is asked."""
    try:
        return str(value)
    except (Exception, SystemExit) as broken:
        return f"<{type(broken).__name__} in __str__>"


def trace_of(error: BaseException) -> str:
    """Its traceback with all that it came from, or at least with its own frames."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception as broken:
        frames = "".join(traceback.format_tb(error.__traceback__))
        name = type(error).__name__
        return f"{frames}{name}: {text_of(error)}\n<{type(broken).__name__} in its traceback>\n"


def name_of(function: Any) -> str:
    """Of something that is called, and where it stands if it has no name of its own."""
    name = getattr(function, "__qualname__", None) or repr(function)
    code = getattr(function, "__code__", None)
    if code is None or not name.endswith("<lambda>"):
        return name
    return f"{name} ({code.co_filename}:{code.co_firstlineno})"


def label_of(name: str) -> str:
    """What people call a step that declares no label: its name with spaces."""
    return name.replace("_", " ")


def class_name(path: str) -> str:
    """Of an error's class: without its module."""
    return path.rpartition(".")[2] or path


def first_line(text: str, longest: int) -> str:
    """The first line that says something, cut to so many characters."""
    line = next((line for line in map(str.strip, text.splitlines()) if line), "")
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
