"""Every exception of the package; one root. The docstring of each is its message."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "Abort",
    "ChildrenFailed",
    "DataConflict",
    "EventTimeout",
    "InvalidData",
    "InvalidDefinition",
    "InvalidTransition",
    "ItemsFailed",
    "ReadOnlyData",
    "SequenceError",
    "StepExpired",
    "UnknownJob",
    "UnknownSequence",
    "UnknownStep",
    "WorkerLost",
]


class SequenceError(Exception):
    """Something is wrong with a sequence."""

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(_format(type(self), details) if message is None else message)
        self.__dict__.update(details)


class InvalidDefinition(SequenceError):
    """{where}: {problem}. {mend}"""

    where: str
    problem: str
    mend: str


class InvalidData(SequenceError):
    """{path} {problem}. {mend}"""

    #: Of typed data: pairs of a path and what is wrong there.
    errors: list[tuple[str, str]] | None = None
    path: str
    problem: str
    mend: str


class DataConflict(SequenceError):
    """Step {step!r} of run {run} changed {key}, and so did, meanwhile: {other}."""

    key: str
    step: str
    run: Any
    other: str


class UnknownStep(SequenceError, LookupError):
    """{sequence} has no step {step!r}. {mend}"""

    sequence: str
    step: str
    mend: str


class UnknownJob(SequenceError, LookupError):
    """There is no job {job!r}. {mend}"""

    job: str
    mend: str


class UnknownSequence(SequenceError, LookupError):
    """There is no sequence {name!r}. {mend}"""

    name: str
    mend: str


class InvalidTransition(SequenceError):
    """Cannot {action} run {run}: it is {status}. Allowed while it is {allowed}."""

    action: str
    run: Any
    status: str
    allowed: str


class WorkerLost(SequenceError):
    """Step {step!r} of run {run} lost {lost} workers in a row, the last one {worker}."""

    step: str
    run: Any
    lost: int
    worker: str


class StepExpired(SequenceError):
    """Step {step!r} of run {run} was first queued longer ago than its max_age of {max_age}."""

    step: str
    run: Any
    max_age: Any


class EventTimeout(SequenceError):
    """Event {step!r} of run {run} was not delivered within {timeout}."""

    step: str
    run: Any
    timeout: Any


class ItemsFailed(SequenceError):
    """{failed} of {total} items of step {step!r} failed, and {may} may. {first}"""

    step: str
    failed: int
    total: int
    allowed: int
    #: The same in words.
    may: str
    #: Which item is the first that failed, and its error.
    first: str


class ChildrenFailed(SequenceError):
    """{failed} of {total} runs that step {step!r} has started did not succeed: {runs}."""

    step: str
    failed: int
    total: int
    runs: str


class ReadOnlyData(SequenceError):
    """An item of step {step!r} changed {path}, but items cannot change data. {mend}"""

    step: str
    path: str
    mend: str


class Abort(SequenceError):
    """Raise this in a step to fail it now, without retries: ``raise Abort("why")``."""

    def __init__(self, message: str = "Aborted.", **details: Any) -> None:
        super().__init__(message, **details)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The mend for an unknown name: the nearest known one, or else all of them."""
    choices = list(known)
    if near := get_close_matches(str(name), choices, n=1):
        return f"Did you mean {near[0]!r}?"
    return f"There are: {', '.join(choices)}." if choices else "There are none."


class _Details(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _format(cls: type[SequenceError], details: dict[str, Any]) -> str:
    # python -OO strips docstrings: the details are what is left to say.
    template = inspect.getdoc(cls) or " ".join(f"{{{key}}}" for key in details) or cls.__name__
    return template.format_map(_Details(details))
