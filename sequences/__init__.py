"""Durable job sequences for Django, on Dramatiq."""

from .compose import chain, group
from .definition import Sequence, event, finish, on_failure, repeat, step, subsequence
from .exceptions import Abort
from .flows import astart_definition, start_definition
from .jobs import job
from .loading import load
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
    # as data
    "astart_definition",
    "chain",
    "group",
    "job",
    "load",
    "start_definition",
    # by name
    "get",
]
