"""Durable job sequences for Django, on Dramatiq."""

from .definitions.limits import Limit
from .definitions.option_types import SequenceMeta
from .definitions.schedules import cron, every
from .definitions.steps import (
    Finish,
    Repeat,
    any_of,
    event,
    finish,
    on_cancel,
    on_end,
    on_failure,
    repeat,
    step,
    subsequence,
)
from .exceptions import Abort
from .flows.builder import astart_definition, define, start_definition
from .flows.composition import chain, group
from .flows.files import load
from .flows.jobs import job
from .outbox import adispatch, dispatch
from .sequence import Sequence, get

__all__ = [  # noqa: RUF022 (grouped)
    # declaring
    "Limit",
    "Sequence",
    "SequenceMeta",
    "any_of",
    "event",
    "on_cancel",
    "on_end",
    "on_failure",
    "step",
    "subsequence",
    # schedules
    "cron",
    "every",
    # inside a step
    "Abort",
    "Finish",
    "Repeat",
    "adispatch",
    "dispatch",
    "finish",
    "repeat",
    # as data
    "astart_definition",
    "chain",
    "define",
    "group",
    "job",
    "load",
    "start_definition",
    # by name
    "get",
]
