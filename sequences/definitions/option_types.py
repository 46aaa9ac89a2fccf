"""The options that `step` and its like, and a sequence's Meta, take: for editors and type checkers.

What an option is at run time is checked in `validation`; a middleware of the project may add more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict

from django.utils.functional import Promise

from .limits import Limit, WhenFull
from .schedules import Timetable

if TYPE_CHECKING:
    from django.db.models import Model


class NamedStep(Protocol):
    """A `Step`, whose module imports this one."""

    name: str
    declared: Any

    @property
    def kind(self) -> str: ...


class NamedGroup(Protocol):
    """An `AnyOf`, whose module imports this one."""

    @property
    def steps(self) -> tuple[Any, ...]: ...


Named: TypeAlias = NamedStep | str
After: TypeAlias = Named | NamedGroup | Iterable[Named | NamedGroup]
Names: TypeAlias = str | Iterable[str]
Limits: TypeAlias = Limit | Iterable[Limit]
Text: TypeAlias = str | Promise  # a promise: it is translated when it is read
Duration: TypeAlias = timedelta | int  # milliseconds
Delay: TypeAlias = int | timedelta | Callable[[Any], timedelta | datetime]
Each: TypeAlias = str | Callable[[Any], Iterable[Any]]
Exceptions: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
#: What becomes of a run when the object that it is about is deleted.
OnSubjectDelete: TypeAlias = Literal["keep", "cancel", "erase"]
Retries: TypeAlias = Mapping[type[BaseException], int | None]


class ActorOptions(TypedDict, total=False):
    """The options of a Dramatiq actor that a step may have; in ``options`` those of others."""

    queue_name: str
    priority: int
    max_retries: int | None
    min_backoff: Duration
    max_backoff: Duration
    retry_when: Callable[[int, Any], bool] | None
    throws: Exceptions | None
    on_retry_exhausted: str | None
    max_age: Duration | None
    time_limit: Duration | float | None  # math.inf: no limit
    notify_shutdown: bool
    store_results: bool
    result_ttl: int
    #: Of the project's own middleware, whose names no type checker knows.
    options: Mapping[str, Any]


class BaseOptions(ActorOptions, total=False):
    """Those of every step, whatever its kind."""

    aliases: Names
    delay: Delay | None
    label: Text
    #: For each class of exceptions; None: without end.
    retries: Retries | None
    when: Callable[[Any], Any] | None


class ClosingOptions(BaseOptions, total=False):
    """Those of `on_failure`, `on_cancel` and `on_end`."""

    atomic: bool
    limits: Limits


class UndoOptions(BaseOptions, total=False):
    """Those of `Step.undo`."""

    atomic: bool
    attempted: bool
    limits: Limits


class StepOptions(BaseOptions, total=False):
    """Those of `step`."""

    after: After | None
    atomic: bool
    limits: Limits
    on_error: Named | None


class FanOutOptions(StepOptions, total=False):
    """Those of a `step` that has ``each``."""

    allow_failed: bool | float
    batch: int | None
    concurrency: int | None


class StartOptions(TypedDict, total=False):
    """Those of a start."""

    #: A run of the sequence that has it already is returned instead.
    key: str | None
    #: Whether a key is taken for ever, or until its run has ended.
    unique: Literal["ever", "unfinished"]
    #: Before the first steps become ready.
    delay: timedelta | int | None  # milliseconds
    #: Its order where limits make runs wait: as in Dramatiq, the lowest first.
    priority: int
    #: By when the run must be finished, or how long after its start. None: no deadline, whatever
    #: its Meta says.
    deadline: timedelta | datetime | None
    #: The object that the run is about.
    subject: Model | None


class SequenceMeta:
    """The options of a sequence's Meta, for ``class Meta(SequenceMeta)``. It need not inherit."""

    # Of this class only
    abstract: bool
    aliases: Names
    app_label: str | None
    schedule: Timetable | None
    schedules: Mapping[str, Timetable]
    verbose_name: Text | None
    # Of the sequence, and of those that inherit from it
    cancel: Literal["undo"] | None
    deadline: timedelta | None
    defaults: Mapping[str, Any]
    handoff: Literal["broker", "direct"]
    limits: Limits
    on_subject_delete: OnSubjectDelete | None
    redact: Names
    retention: timedelta | None
    retention_failed: timedelta | None
    when_full: WhenFull
    # Defaults of its steps
    atomic: bool
    delay: Any  # a function in a class body is a method, to a type checker
    retries: Retries | None
    when: Any
    # Defaults of its actors: those of `ActorOptions`
    queue_name: str
    priority: int
    max_retries: int | None
    min_backoff: Duration
    max_backoff: Duration
    retry_when: Any
    throws: Exceptions | None
    on_retry_exhausted: str | None
    max_age: Duration | None
    time_limit: Duration | float | None
    notify_shutdown: bool
    store_results: bool
    result_ttl: int
