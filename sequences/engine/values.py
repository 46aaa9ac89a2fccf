"""Values from user code, normalised for storage."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils.timezone import is_aware

from .. import conf
from ..data import serialization
from ..definitions.steps import MAX_WAIT
from ..exceptions import SequenceError


def normalise(value: Any, path: str) -> tuple[Any, str]:
    """The value as JSON, and its text. Raises `InvalidData`, which names the path."""
    settings = conf.settings
    return serialization.normalise(
        value, encoder=settings.encoder, max_bytes=settings.max_data_bytes, path=path
    )


def checked_deadline(value: Any, call: str) -> timedelta | datetime | None:
    """Validate a deadline. Raises `SequenceError`, which names the call."""
    if value is None or (isinstance(value, datetime) and is_aware(value)):
        return value
    if isinstance(value, timedelta) and timedelta() < value <= MAX_WAIT:
        return value
    raise SequenceError(
        f"{call}: deadline is {value!r}; it must be a positive timedelta, an aware datetime, or "
        "None."
    )
