"""Helpers for texts and error messages. Pure."""

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
    """Replaces an error whose traceback Python cannot format, for code that will log it.

    For example, logging a SyntaxError whose text is bytes raises a TypeError. The replacement says
    what the error was, and is still an instance of its class.
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
        if name == "exceptions":  # of a group, all of whose errors are formatted
            return tuple(printable(error) for error in value)
        return value


def printable(error: BaseException) -> BaseException:
    """The error itself, or a replacement if it cannot be formatted."""
    try:
        traceback.format_exception(error)
    except Exception:
        return Unprintable(error)
    return error


def raises_printable(function: Callable[P, T]) -> Callable[P, T]:
    """Make sure that whoever catches an error of this function can log it."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            substitute = printable(error)
            if substitute is error:
                raise
        raise substitute  # outside the except block, so that the error does not become its context

    return wrapped


class Printable(logging.Filter):
    """For loggers: makes sure that the error can be formatted by a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (substitute := printable(error)) is not error:
            record.exc_info = (type(substitute), substitute, substitute.__traceback__)
        return True


#: The parts that differ between two messages about the same problem: quotes, ids, numbers.
_VARIABLE = re.compile(
    r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|“[^”]*”|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b0x[0-9a-f]+\b"""
    r"""|\b[0-9a-f]{12,}\b|\d+(?:[.,:]\d+)*""",
    re.IGNORECASE,
)
#: How many characters of a message identify its subject.
SHAPED_LENGTH = 1_000


def fingerprint_of(message: str) -> str:
    """A digest of what a message says, ignoring quotes, ids and numbers; "" for an empty
    message."""
    text = _VARIABLE.sub("#", message.strip()[:SHAPED_LENGTH])
    return blake2s(text.encode(errors="replace"), digest_size=8).hexdigest() if text else ""


def text_of(value: object) -> str:
    """Its message, or the error that asking for it raised."""
    try:
        return str(value)
    except (Exception, SystemExit) as broken:
        return f"<{type(broken).__name__} in __str__>"


def trace_of(error: BaseException) -> str:
    """Its traceback with all causes, or at least with its own frames."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception as broken:
        frames = "".join(traceback.format_tb(error.__traceback__))
        name = type(error).__name__
        return f"{frames}{name}: {text_of(error)}\n<{type(broken).__name__} in its traceback>\n"


def name_of(function: Any) -> str:
    """The name of a callable, or its position in a file if it has no name of its own."""
    name = getattr(function, "__qualname__", None) or repr(function)
    code = getattr(function, "__code__", None)
    if code is None or not name.endswith("<lambda>"):
        return name
    return f"{name} ({code.co_filename}:{code.co_firstlineno})"


def label_of(name: str) -> str:
    """The label of a step that declares none: its name with spaces."""
    return name.replace("_", " ")


def class_name(path: str) -> str:
    """The name of an error's class, without its module."""
    return path.rpartition(".")[2] or path


def first_line(text: str, longest: int) -> str:
    """The first line that is not empty, cut to this many characters."""
    line = next((line for line in map(str.strip, text.splitlines()) if line), "")
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def id_digits(text: str, shortest: int) -> str:
    """The digits of an id, or of a prefix with at least this many; "" if the text is neither."""
    digits = text.replace("-", "").lower()
    return digits if re.fullmatch(r"[0-9a-f]{1,32}", digits) and len(digits) >= shortest else ""


def digits_of(number: float) -> str:
    """A number without an exponent, and with at most six decimals: ``1500000``, ``0.25``."""
    return f"{number:.6f}".rstrip("0").rstrip(".")
