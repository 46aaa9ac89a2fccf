"""Durations, numbers, names and lists for sentences, in the language of the reader."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from django.db.models import Choices
from django.utils.formats import get_format, number_format
from django.utils.text import capfirst
from django.utils.translation import gettext, gettext_noop

from ..exceptions import (
    Amount,
    InvalidData,
    InvalidDefinition,
    InvalidSchedule,
    InvalidTransition,
    SequenceError,
    Text,
    UnknownSequence,
    UnknownStep,
)
from ..utils import durations
from ..utils.text import digits_of

_UNITS = {
    "d": gettext_noop("%(count)s d"),
    "h": gettext_noop("%(count)s h"),
    "min": gettext_noop("%(count)s min"),
    "s": gettext_noop("%(count)s s"),
    "ms": gettext_noop("%(count)s ms"),
}


def format_duration(value: timedelta | None, none: str = "") -> str:
    """A duration, as in `utils.durations`; ``none`` for None."""
    if value is None:
        return none
    separator = get_format("DECIMAL_SEPARATOR")
    return " ".join(
        gettext(_UNITS[unit]) % {"count": amount.replace(".", separator)}
        for amount, unit in durations.parts_of(value)
    )


def format_seconds(seconds: float) -> str:
    """The same for a number of seconds."""
    return format_duration(timedelta(seconds=seconds))


def format_number(number: int) -> str:
    """A number with thousands separators."""
    return number_format(number, force_grouping=True)


def format_amount(number: float) -> str:
    """The same for a number that may have decimals."""
    return number_format(digits_of(number), force_grouping=True)


def quoted(name: str) -> str:
    """The name of a step or a run, or a message in English, in quotation marks."""
    return gettext("“%(name)s”") % {"name": name}


def listed(names: Collection[str]) -> str:
    """Several names, in a list."""
    return ", ".join(map(quoted, names))


def explain(error: SequenceError) -> str:
    """Why something was rejected. Problems with code or data are reported in English."""
    if isinstance(error, InvalidTransition):
        return capfirst(_translated(error.problem))
    if isinstance(error, InvalidSchedule | InvalidDefinition):
        return f"{capfirst(_translated(error.problem))}. {_translated(error.hint)}"
    if isinstance(error, InvalidData) and error.errors:
        problems = "; ".join(f"{path}: {_reported(message)}" for path, message in error.errors)
        return gettext("The data is not valid. %(problems)s") % {"problems": problems}
    if isinstance(error, InvalidData) and isinstance(error.problem, Text):
        return gettext("%(path)s %(problem)s. %(hint)s") % {
            "path": _translated(error.path) if isinstance(error.path, Text) else error.path,
            "problem": _translated(error.problem),
            "hint": _translated(error.hint),
        }
    if isinstance(error, UnknownSequence):
        return gettext("This code has no sequence %(sequence)s.") % {"sequence": error.name}
    message = error.args[0] if error.args else ""
    if isinstance(message, Text):
        return _translated(message)
    if isinstance(error, UnknownStep):
        return gettext("The run has no such step.")
    return str(error)


def _reported(message: str) -> str:
    """What is wrong with a value: in our words, or quoted from a library."""
    return _translated(message) if isinstance(message, Text) else quoted(message)


def _translated(text: str) -> str:
    """A part of an error's message, translated, with its values."""
    if not isinstance(text, Text):
        return gettext(text) if text else ""
    if not text.values:
        return gettext(text.message)
    return gettext(text.message) % {name: _value(value) for name, value in text.values.items()}


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(str(_value(alternative)) for alternative in value)
    if isinstance(value, Amount):
        return format_number(value)
    if isinstance(value, Choices):
        return str(value.label)
    return _translated(value) if isinstance(value, Text) else value
