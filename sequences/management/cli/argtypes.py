"""Parsers for arguments: durations, JSON, times."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.db.models import Model
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ...data.serialization import MAX_DEPTH, depth_of
from ...definitions.subjects import SubjectKey
from ...flows import files
from ...utils.durations import parse_duration
from .base import wrong


def duration(text: str) -> timedelta:
    """``90s``, ``24h``, ``1h30m``, ``3 days``, ``PT1H``: as in a definition."""
    if (length := parse_duration(text)) is not None:
        return length
    raise ArgumentTypeError(f"{text!r} is not a duration such as 90s, 15m, 24h or 7d")


def moment(text: str) -> timedelta | datetime:
    """A duration before now, or a date, or a date and a time in the project's time zone."""
    for parse in (date, duration):
        with suppress(ArgumentTypeError):
            return parse(text)
    raise ArgumentTypeError(
        f"{text!r} is neither a duration such as 24h nor a date such as 2026-11-21"
    )


def date(text: str) -> datetime:
    """A date, which is its midnight, or a date and a time in the project's time zone."""
    try:
        time = parse_datetime(text)
    except ValueError:  # well-formed, but not in the calendar
        time = None
    if time is None:
        raise ArgumentTypeError(f"{text!r} is not a date such as 2026-11-21 or 2026-11-21T08:00")
    return time if timezone.is_aware(time) else timezone.make_aware(time)


def json_value(text: str) -> Any:
    """JSON, the contents of a file (``@in.json``), or standard input (``-``)."""
    try:
        value = json.loads(_read(text))
        if depth_of(value) > MAX_DEPTH:
            raise RecursionError
        return value
    except RecursionError:
        raise ArgumentTypeError("the JSON is nested too deeply") from None
    except OSError as error:
        raise ArgumentTypeError(f"{text[1:]} cannot be read: {error.strerror}") from None
    except ValueError as error:
        where = {"-": "standard input"}.get(text, text[1:] if text[:1] == "@" else f"{text!r}")
        raise ArgumentTypeError(
            f"{where} is not JSON: {error}. Use JSON, @file, or - for standard input"
        ) from None


def json_object(text: str) -> dict[str, Any]:
    """The same, but only an object."""
    value = json_value(text)
    if isinstance(value, dict):
        return value
    raise ArgumentTypeError(
        f'data must be a JSON object such as {{"name": "Joel"}}, not {json.dumps(value)[:60]}'
    )


def subject_key(text: str) -> SubjectKey:
    """``shop.order:17``, for a model that exists."""
    try:
        text.encode()  # bytes that are not UTF-8 are lone surrogates in Python
        key = SubjectKey.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    if key.model_class is None:
        raise ArgumentTypeError(f"there is no model {key.model}")
    return key


def subject(text: str) -> Model:
    """The object itself."""
    key = subject_key(text)
    if (row := key.load()) is None:
        raise ArgumentTypeError(f"there is no {key}")
    return row


def assignment(text: str) -> tuple[str, Any]:
    """``key=JSON``; text that is not JSON stands for itself."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ArgumentTypeError(f"{text!r} does not have the form key=value")
    if value[:1] == "@" or value == "-":
        return key, json_value(value)
    try:
        return key, json.loads(value)
    except RecursionError:
        raise ArgumentTypeError(f"the JSON of {key} is nested too deeply") from None
    except ValueError:
        return key, value


def count(text: str) -> int:
    """A positive number."""
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return min(int(text), sys.maxsize)  # no database takes more
    raise ArgumentTypeError(f"{text!r} is not a positive integer")


def _read(text: str) -> str:
    if text == "-":
        return sys.stdin.read()
    return Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text


def definition_in(path: Path) -> dict[str, Any]:
    """The definition in a file. Raises `CommandError` and `InvalidDefinition`."""
    try:
        return files.read(path.resolve())
    except OSError as error:
        raise wrong(f"{path} cannot be read: {error.strerror}.") from None
