"""What user code has given, as it is stored."""

from __future__ import annotations

from typing import Any

from .. import conf
from ..data import serialization


def normalise(value: Any, path: str) -> tuple[Any, str]:
    """The value as JSON has it, and its text. Raises `InvalidData`, which names the path."""
    settings = conf.settings
    return serialization.normalise(
        value, encoder=settings.encoder, max_bytes=settings.max_data_bytes, path=path
    )
