"""Durable job sequences for Django, on Dramatiq."""

from .definition import Sequence, event, finish, on_failure, repeat, step, subsequence
from .exceptions import Abort
from .registry import get

__all__ = [  # noqa: RUF022 (grouped)
    # declaring
    "Sequence",
    "event",
    "on_failure",
    "step",
    "subsequence",
    # inside a step
    "Abort",
    "finish",
    "repeat",
    # by name
    "get",
]
