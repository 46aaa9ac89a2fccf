"""The options of `step`, of its siblings and of a sequence's Meta, for editors and type checkers.

`validation` checks the values at run time; middleware of the project may add more options.
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
Text: TypeAlias = str | Promise  # lazy: translated when it is read
Duration: TypeAlias = timedelta | int  # milliseconds
Delay: TypeAlias = int | timedelta | Callable[[Any], timedelta | datetime]
Each: TypeAlias = str | Callable[[Any], Iterable[Any]]
Exceptions: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
#: What happens to a run when the object that it is about is deleted.
OnSubjectDelete: TypeAlias = Literal["keep", "cancel", "erase"]
Retries: TypeAlias = Mapping[type[BaseException], int | None]


class ActorOptions(TypedDict, total=False):
    """The options of a Dramatiq actor that a step may have; ``options`` is for all others."""

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
    #: Options of the project's own middleware, which type checkers cannot know.
    options: Mapping[str, Any]


class BaseOptions(ActorOptions, total=False):
    """The options of every step, whatever its kind."""

    aliases: Names
    delay: Delay | None
    label: Text
    #: For each exception class; None: unlimited.
    retries: Retries | None
    when: Callable[[Any], Any] | None


class ClosingOptions(BaseOptions, total=False):
    """The options of `on_failure`, `on_cancel` and `on_end`."""

    atomic: bool
    limits: Limits


class UndoOptions(BaseOptions, total=False):
    """The options of `Step.undo`."""

    atomic: bool
    attempted: bool
    limits: Limits


class StepOptions(BaseOptions, total=False):
    """The options of `step`."""

    after: After | None
    atomic: bool
    limits: Limits
    on_error: Named | None


class FanOutOptions(StepOptions, total=False):
    """The options of a `step` with ``each``."""

    allow_failed: bool | float
    batch: int | None
    concurrency: int | None


class StartOptions(TypedDict, total=False):
    """The options of `Sequence.start`."""

    #: If a run of the sequence already has this key, it is returned instead.
    key: str | None
    #: Whether the key is taken forever, or until its run has ended.
    unique: Literal["ever", "unfinished"]
    #: How long to wait before the first steps become ready.
    delay: timedelta | int | None  # milliseconds
    #: The order under limits; as in Dramatiq, the lowest number goes first.
    priority: int
    #: When the run must be finished, or how long after its start. None: no deadline, even if Meta
    #: has one.
    deadline: timedelta | datetime | None
    #: The object that the run is about.
    subject: Model | None


class SequenceMeta:
    """The options of a sequence's Meta. ``class Meta(SequenceMeta)`` is optional."""

    # Options of this class only
    abstract: bool
    aliases: Names
    app_label: str | None
    schedule: Timetable | None
    schedules: Mapping[str, Timetable]
    verbose_name: Text | None
    # Options of the sequence and its subclasses
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
    delay: Any  # to a type checker, a function in a class body is a method
    retries: Retries | None
    when: Any
    # Defaults of its actors: the options in `ActorOptions`
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
