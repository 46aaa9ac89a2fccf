"""Every exception of the package. All of them inherit from `SequenceError`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from .utils.durations import format_duration

__all__ = [
    "Abort",
    "Cancelled",
    "ChildrenFailed",
    "DataConflict",
    "DeadlineExceeded",
    "EventTimeout",
    "InvalidData",
    "InvalidDefinition",
    "InvalidSchedule",
    "InvalidTransition",
    "ItemsFailed",
    "ReadOnlyData",
    "SequenceError",
    "StepExpired",
    "StepKindChanged",
    "UnknownJob",
    "UnknownSchedule",
    "UnknownSequence",
    "UnknownStep",
    "WorkerLost",
]

#: For `make messages`, which looks for this name. The admin translates the messages that it shows.
_ = str


class Text(str):
    """A translatable part of an error's message; it keeps its template and its values.

    A tuple among the values lists alternatives: a, b or c.
    """

    message: str
    values: dict[str, Any]

    def __new__(cls, message: str, /, **values: Any) -> Self:
        plain = {name: _plain(value) for name, value in values.items()}
        text = super().__new__(cls, message % plain if values else message)
        text.message, text.values = message, values
        return text

    def value(self, name: str) -> str:
        """One of its values, as it appears in the text; empty if it has none of that name."""
        return str(_plain(self.values.get(name, "")))


class Amount(int):
    """A number that is shown with separators."""

    def __str__(self) -> str:
        return f"{int(self):,}"


def _plain(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    *others, last = map(str, value)
    return f"{', '.join(others)} or {last}" if others else last


class SequenceError(Exception):
    """The base class of all errors. ``template`` is the message, with placeholders.

    When an error fails a step, its message is stored before it is known whether the run will be
    rolled back, and that decides which operations are possible. So messages recommend no operation
    on the run: the sentence about the run does (`inspection.diagnosis`).
    """

    template: ClassVar[str] = "Something is wrong with a sequence."

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(_format(type(self), details) if message is None else message)
        self.__dict__.update(details)


class InvalidDefinition(SequenceError):
    """A class or a definition is invalid."""

    template = "{where}: {problem}. {hint}"

    where: str
    problem: str
    hint: str


class InvalidData(SequenceError):
    """Data cannot be stored, or does not fit its type."""

    template = "{path} {problem}. {hint}"

    #: For typed data: pairs of a path and the problem there.
    errors: list[tuple[str, str]] | None = None
    path: str
    problem: str
    hint: str


class DataConflict(SequenceError):
    """Parallel steps kept changing the same key."""

    template = (
        "Step {step!r} of run {run} changed {key}, which was changed by {other} at the same time. "
        "Make parallel steps write to different keys."
    )

    key: str
    step: str
    run: Any
    other: str


class UnknownStep(SequenceError, LookupError):
    """The plan of the run has no step of that name."""

    template = "{sequence} has no step {step!r}. {hint}"

    sequence: str
    step: str
    hint: str


class UnknownJob(SequenceError, LookupError):
    """No job is registered under that name."""

    template = "No job is registered as {job!r}. {hint}"

    job: str
    hint: str


class UnknownSequence(SequenceError, LookupError):
    """No sequence is registered under that label."""

    template = "No sequence is registered as {name!r}. {hint}"

    name: str
    hint: str


class InvalidTransition(SequenceError):
    """The state of the run does not allow the operation."""

    template = "Cannot {action} run {run}: {problem}"

    action: str
    run: Any
    #: The status of the run, or of the step in question.
    status: str
    #: The statuses that allow the operation; empty if the reason is not the status.
    allowed: str
    #: Why it is not allowed, and what to do instead.
    problem: str


class InvalidSchedule(SequenceError):
    """The operation is not possible on this schedule, or the name is already taken."""

    template = "Cannot {action} schedule {schedule}: {problem}. {hint}"

    action: str
    schedule: str
    problem: str
    hint: str


class UnknownSchedule(SequenceError, LookupError):
    """The sequence has no schedule of that name."""

    template = "{sequence} has no schedule {schedule!r}. {hint}"

    sequence: str
    schedule: str
    hint: str


class WorkerLost(SequenceError):
    """Too many workers in a row died while running a step."""

    template = (
        "Step {step!r} of run {run} lost {lost_workers} workers in a row, most recently {worker}. "
        "Check its host for out-of-memory kills and crashes."
    )

    step: str
    run: Any
    lost_workers: int
    worker: str


class StepKindChanged(SequenceError):
    """A step is another kind of step in this code than in the plan of its run."""

    template = (
        "Step {step!r} was {before} when run {run} started, but is {now} in this code. {hint}"
    )

    step: str
    run: Any
    before: str
    now: str
    hint: str


class StepExpired(SequenceError):
    """A step is older than its ``max_age``."""

    template = (
        "Step {step!r} of run {run} expired: its max_age of {max_age} has passed since it was "
        "first queued."
    )

    step: str
    run: Any
    max_age: Any


class EventTimeout(SequenceError):
    """An event was not delivered in time."""

    template = "Event {step!r} of run {run} was not delivered within {timeout}."

    step: str
    run: Any
    timeout: Any


class DeadlineExceeded(SequenceError):
    """A run was not finished by its deadline."""

    template = "The deadline of run {run}, {deadline}, has passed. Unfinished steps: {steps}."

    run: Any
    #: When the run should have been finished.
    deadline: Any
    #: The names of the steps that were unfinished.
    steps: str


class ItemsFailed(SequenceError):
    """More items of a fan-out failed than its ``allow_failed`` permits."""

    template = "{failed} of {total} items of step {step!r} failed ({may} allowed). {first}"

    step: str
    failed: int
    total: int
    allowed: int
    #: How many may fail, in words.
    may: str
    #: The first failed item, with its error.
    first: str


class ChildrenFailed(SequenceError):
    """More child runs failed than ``allow_failed`` permits."""

    template = "{failed} of {total} child runs of step {step!r} did not succeed: {runs}."

    step: str
    failed: int
    total: int
    runs: str


class ReadOnlyData(SequenceError):
    """An item of a fan-out changed ``data``."""

    template = "An item of step {step!r} changed {path}, but items must not change data. {hint}"

    step: str
    path: str
    hint: str


class Abort(SequenceError):
    """Raise this in a step to fail it now, without retries: ``raise Abort("why")``."""

    def __init__(self, message: str = "Aborted.", **details: Any) -> None:
        super().__init__(message, **details)


class Cancelled(SequenceError):
    """The step was cancelled while running; raised by `Sequence.raise_if_cancelled`.

    It ends the attempt, which does not count as a failed attempt.
    """

    template = "Step {step!r} of run {run} was cancelled while it was running."

    step: str
    run: Any


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """The hint for an unknown name: the most similar known name, or else all of them."""
    choices = list(names)
    if near := get_close_matches(str(name), choices, n=1):
        return Text(_("Did you mean %(name)r?"), name=near[0])
    if not choices:
        return Text(_("None exist."))
    return Text(_("Available: %(names)s."), names=", ".join(choices))


class _Details(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _format(cls: type[SequenceError], details: dict[str, Any]) -> str:
    values = {name: _readable(value) for name, value in details.items()}
    return cls.template.format_map(_Details(values))


def _readable(value: Any) -> Any:
    return format_duration(value) if isinstance(value, timedelta) else value
