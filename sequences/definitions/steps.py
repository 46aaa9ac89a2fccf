"""`step` and its siblings: declarations as values. See also `validation` and `definition`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import FrameType, MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    Self,
    TypeGuard,
    TypeVar,
    Unpack,
    overload,
)

from django.forms import BaseForm
from dramatiq import Actor

from ..exceptions import InvalidData, InvalidDefinition, SequenceError
from ..utils.durations import to_milliseconds
from ..utils.text import label_of
from .kinds import Traits, traits_of
from .limits import Limit
from .option_types import (
    ActorOptions,
    After,
    ClosingOptions,
    Delay,
    Duration,
    Each,
    FanOutOptions,
    Named,
    Names,
    Retries,
    StepOptions,
    Text,
    UndoOptions,
)

if TYPE_CHECKING:
    from django.db.models import Model

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

FAN_OUT_OPTIONS = frozenset({"allow_failed", "batch", "concurrency", "each"})
STEP_OPTIONS = FAN_OUT_OPTIONS | {
    "after",
    "aliases",
    "args",
    "atomic",
    "delay",
    "kwargs",
    "label",
    "limits",
    "on_error",
    "options",
    "retries",
    "when",
}  # every other option is Dramatiq's
#: Options of Dramatiq that are times, which Dramatiq takes in milliseconds only.
DURATION_OPTIONS = frozenset({"max_age", "max_backoff", "min_backoff", "time_limit"})
#: The longest wait: added to any moment, it still yields a valid date.
MAX_WAIT = timedelta(days=365_000)
#: The first and the last moment that are a valid date in every time zone.
FIRST_MOMENT, LAST_MOMENT = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


class Performer(Protocol[R_co]):
    """A class that ``step(cls)`` turns into a step."""

    def perform(self, sequence: Any, /) -> R_co: ...


class AsyncPerformer(Protocol[R_co]):
    """The same, with an ``async def``."""

    async def perform(self, sequence: Any, /) -> R_co: ...


class AsyncItemPerformer(Protocol[R_co]):
    """The same, for ``step(cls, each=…)``."""

    async def perform(self, sequence: Any, item: Any, /) -> R_co: ...


class DjangoTask(Protocol[R_co]):
    """The result of ``@task``, from `django.tasks` or from the package `django-tasks`.

    A protocol, because Django 5.2 has no such class.
    """

    @property
    def func(self) -> Callable[..., R_co]: ...
    @property
    def queue_name(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def run_after(self) -> datetime | None: ...
    @property
    def takes_context(self) -> bool: ...


class ItemPerformer(Protocol[R_co]):
    """A class that ``step(cls, each=…)`` turns into a fan-out."""

    def perform(self, sequence: Any, item: Any, /) -> R_co: ...


@dataclass(frozen=True)
class AnyOf:
    """The result of `any_of`."""

    steps: tuple[Any, ...]  # of Step[Any] | str


def any_of(*steps: Named) -> AnyOf:
    """For ``after``: the step is ready as soon as the first of these has succeeded.

    The others, and the steps that come only after them or lead only to them, are skipped in the
    same transaction, which ends their waits. An event counts as succeeded once its payload is
    delivered. If all of them are skipped, the step is ready, too.
    """
    return AnyOf(steps)


class Step(Generic[R]):
    """One declared unit of a sequence, created by `step`.

    Accessed on the class, it is this object, which you can pass to ``after=`` and to the methods of
    a run; on an instance, it is the bound method.
    """

    name: str
    function: Callable[..., Any]
    after: tuple[Step[Any] | str | AnyOf, ...] | None
    aliases: tuple[str, ...]
    atomic: bool
    delay: Delay | None
    when: Callable[[Any], Any] | None
    on_error: Any  # a Step or its name, or None
    args: Callable[..., Iterable[Any]] | None
    kwargs: Callable[..., Mapping[str, Any]] | None
    limits: tuple[Limit, ...]
    options: dict[str, Any]
    retries: Mapping[type[BaseException], int | None]
    each: Each | None
    concurrency: int | None
    batch: int | None
    allow_failed: bool | int | float

    def __init__(self, function: Callable[..., Any], declared: Mapping[str, Any]) -> None:
        declared = _flattened(declared)
        self.name = ""
        self.function = function
        self.after = None if declared.get("after") is None else as_tuple(declared["after"])
        self.aliases = as_tuple(declared.get("aliases", ()))
        self.declared = {**declared, "after": self.after, "aliases": self.aliases}
        self.atomic = declared.get("atomic", True)
        self.delay = declared.get("delay")
        self.when = declared.get("when")
        self.on_error = declared.get("on_error")
        self.args = declared.get("args")
        self.kwargs = declared.get("kwargs")
        self.retries = declared.get("retries") or {}
        self.limits = as_tuple(declared.get("limits", ()))
        self.each = declared.get("each")
        self.concurrency = declared.get("concurrency")
        self.batch = declared.get("batch")
        self.allow_failed = declared.get("allow_failed", False)
        self.options = {
            name: _as_dramatiq(name, value)
            for name, value in declared.items()
            if name not in STEP_OPTIONS
        }
        self.__doc__ = getattr(function, "__doc__", None)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[..., R]: ...
    def __get__(self, instance: object | None, owner: type) -> Self | Callable[..., R]:
        if instance is None:
            return self
        if getattr(instance, "_context", self) is None:
            return partial(self._refuse_call, instance)
        if inspect.isfunction(self.function):
            return MethodType(self.function, instance)
        return partial(self.perform, instance)

    def __repr__(self) -> str:
        return f"<step {self.name or getattr(self.function, '__name__', self.function)}>"

    if not TYPE_CHECKING:  # so that type checkers do not accept every attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute("A step", name, "Workers run steps. Start the sequence instead.")

        def __call__(self, sequence=None, /, *args, **kwargs) -> Any:
            """Called on the class, with an instance: the same as a call on the instance."""
            if getattr(sequence, "_context", None) is None:
                self._refuse_call(sequence)
            return self.__get__(sequence, type(sequence))(*args, **kwargs)

    def _refuse_call(self, sequence: Any, *args: Any, **kwargs: Any) -> NoReturn:
        declared: Any = self.function
        if not callable(declared) and not is_task(declared):  # @step(3) above a method
            raise InvalidDefinition(
                where=f"The decorator of {getattr(sequence, '__qualname__', repr(sequence))}",
                problem=f"{self.function!r:.60} is not callable",
                hint="Write @step, or name the options: @step(max_retries=3).",
            )
        owner = f"{type(sequence).__qualname__}." if hasattr(sequence, "_context") else ""
        raise SequenceError(
            f"{owner}{self.name or self.function} is a step, and workers run steps. A "
            "direct call would run its body here, outside the run. In tests, call it on an "
            "instance from sequences.testing.build(…). Move code that you also need "
            "elsewhere into a plain method."
        )

    @property
    def kind(self) -> str:
        """Its kind, as in the plan."""
        return "step" if self.each is None else "each"

    @property
    def traits(self) -> Traits:
        """The traits of its kind."""
        return traits_of(self.kind)

    @property
    def any_of(self) -> tuple[tuple[Step[Any] | str, ...], ...]:
        """The groups in `after` of which one step is enough."""
        return tuple(other.steps for other in self.after or () if isinstance(other, AnyOf))

    @property
    def label(self) -> str:
        """The name shown to people."""
        return str(self.declared.get("label") or label_of(self.name))

    def perform(self, sequence: Any, *item: Any) -> R:
        """Call the user's code with the bound sequence, and return what it returns.

        The code of a fan-out also takes an item. If it is an ``async def``, this returns a
        coroutine.
        """
        function: Any = self.function
        if is_called_with_arguments(function):
            function = partial(code_of(function), *self._args(sequence, *item))
            function = partial(function, **self._kwargs(sequence, *item))
        elif isinstance(function, type):
            function = partial(function().perform, sequence, *item)
        else:
            function = partial(function, sequence, *item)
        result: R = function()
        return result

    def _args(self, sequence: Any, *item: Any) -> Iterable[Any]:
        if self.args is not None:
            return self.args(sequence, *item)
        return item if self.kwargs is None and self.each is not None else ()

    def _kwargs(self, sequence: Any, *item: Any) -> Mapping[str, Any]:
        return {} if self.kwargs is None else self.kwargs(sequence, *item)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Step[R]:
        """The same step, with these options as defaults."""
        declared = inherit(defaults, {**own_options_of(self.function), **self.declared})
        resolved = type(self)(self.function, declared)
        resolved.name = self.name
        return resolved

    def retry_limit(self, error: BaseException) -> dict[str, int | None]:
        """The Dramatiq option that ``retries`` implies for this exception; empty if there is none.

        The first matching class in the exception's method resolution order counts.
        """
        for kind in type(error).__mro__:
            if kind in self.retries:
                return {"max_retries": self.retries[kind]}
        return {}

    @overload
    def undo(self, target: Callable[..., Any], /) -> Undo: ...
    @overload
    def undo(self, /, **options: Unpack[UndoOptions]) -> Callable[[Callable[..., Any]], Undo]: ...
    def undo(self, target: Any = None, /, **declared: Any) -> Any:
        """Declare the compensation of this step: ``@charge.undo`` on a method.

        If the run fails, the undos of all completed steps run, newest first. Each is a durable step
        with its own retries. With ``attempted=True`` (the default if the step has
        ``atomic=False``), the undo also runs if the step was tried and failed. It runs in any case
        if the step has committed a repeat. For a fan-out, the method is called for each item, with
        the item and its result. For a subsequence, it replaces the children's own undos.
        """
        make = partial(_make, Undo, {"undoes": self, **declared})
        return Decorator(make) if target is None else noted(make(target), sys._getframe(1))


class AsyncStep(Step[R]):
    """An ``async def`` step, for type checkers: ``R`` is what it returns when awaited."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: type) -> Self: ...
        @overload
        def __get__(
            self, instance: object, owner: type
        ) -> Callable[..., Coroutine[Any, Any, R]]: ...
        def __get__(self, instance: object | None, owner: type) -> Any: ...


class StepDecorator(Protocol):
    """What ``step(…)`` returns until it is applied to a method."""

    @overload
    def __call__(self, function: Callable[[Any], Coroutine[Any, Any, R]], /) -> AsyncStep[R]: ...
    @overload
    def __call__(self, function: Callable[[Any], R], /) -> Step[R]: ...


class ItemDecorator(Protocol):
    """What ``step(each=…)`` returns until it is applied to a method."""

    @overload
    def __call__(
        self, function: Callable[[Any, Any], Coroutine[Any, Any, R]], /
    ) -> AsyncStep[R]: ...
    @overload
    def __call__(self, function: Callable[[Any, Any], R], /) -> Step[R]: ...


class _Other(Step[Any]):
    """A declaration other than a plain step."""

    def with_defaults(self, defaults: Mapping[str, Any]) -> Step[Any]:
        """The defaults that apply to it are Dramatiq's, such as the queue."""
        ours = STEP_OPTIONS - {"retries"}
        return super().with_defaults(
            {name: value for name, value in defaults.items() if name not in ours}
        )


class Undo(_Other):
    """A step that undoes another one, created by `Step.undo`."""

    undoes: Any  # a Step; as a class attribute of that type, it would return its bound method
    attempted: bool | None  # None: true if the step it undoes is not atomic, which Meta may decide

    def __init__(self, function: Callable[..., Any], declared: Mapping[str, Any]) -> None:
        super().__init__(function, declared)
        self.undoes = self.options.pop("undoes")
        self.attempted = self.options.pop("attempted", None)

    @property
    def kind(self) -> str:
        """It starts only when its run is rolled back."""
        return "undo"

    def takes_item(self, steps: Mapping[str, Step[Any]]) -> bool:
        """Whether it is called for each item of a fan-out, with the item and its result.

        ``steps`` are the steps of the class, which may have redeclared the undone step.
        """
        undone = steps.get(name_of(self.undoes))
        return undone is not None and undone.traits.has_items


class OnFailure(_Other):
    """The step that runs once when a run has failed, created by `on_failure`."""

    @property
    def kind(self) -> str:
        """It starts only when its run has failed and the rollback is complete."""
        return "on_failure"


class OnCancel(_Other):
    """The step that runs once when a run is cancelled, created by `on_cancel`."""

    @property
    def kind(self) -> str:
        """It starts only when its run is cancelled and the rollback is complete."""
        return "on_cancel"


class OnEnd(_Other):
    """The step that runs once, however a run ends, created by `on_end`."""

    @property
    def kind(self) -> str:
        """It is the last step of its run."""
        return "on_end"


class Event(_Other):
    """A step that waits for a payload from outside, created by `event`."""

    timeout: timedelta | None
    on_timeout: Literal["fail", "continue"]
    #: The payloads that people are offered, by label.
    choices: Mapping[str, Any]
    #: The Django form that validates a payload.
    form: type[BaseForm] | None

    def __init__(self, function: Callable[..., Any], declared: Mapping[str, Any]) -> None:
        super().__init__(function, declared)
        timeout = self.options.pop("timeout", None)
        self.timeout = timeout if duration_problem(timeout) else as_timedelta(timeout)
        self.on_timeout = self.options.pop("on_timeout", "fail")
        self.choices = self.options.pop("choices", None) or {}
        self.form = self.options.pop("form", None)

    @property
    def kind(self) -> str:
        """Its row waits until something is delivered, or until it times out."""
        return "event"


@overload  # an actor is not a coroutine function, but mypy cannot know
def step(  # type: ignore[overload-overlap]
    target: Actor[..., R],
    /,
    *,
    args: Callable[[Any], Iterable[Any]] | None = None,
    kwargs: Callable[[Any], Mapping[str, Any]] | None = None,
    **options: Unpack[StepOptions],
) -> Step[R]: ...
@overload
def step(  # type: ignore[overload-overlap]
    target: Actor[..., R],
    /,
    *,
    each: Each,
    args: Callable[[Any, Any], Iterable[Any]] | None = None,
    kwargs: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    **options: Unpack[FanOutOptions],
) -> Step[R]: ...
@overload
def step(
    target: DjangoTask[R],
    /,
    *,
    args: Callable[[Any], Iterable[Any]] | None = None,
    kwargs: Callable[[Any], Mapping[str, Any]] | None = None,
    **options: Unpack[StepOptions],
) -> Step[R]: ...
@overload
def step(
    target: DjangoTask[R],
    /,
    *,
    each: Each,
    args: Callable[[Any, Any], Iterable[Any]] | None = None,
    kwargs: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    **options: Unpack[FanOutOptions],
) -> Step[R]: ...
@overload
def step(target: type[AsyncPerformer[R]], /, **options: Unpack[StepOptions]) -> AsyncStep[R]: ...
@overload
def step(target: type[Performer[R]], /, **options: Unpack[StepOptions]) -> Step[R]: ...
@overload
def step(
    target: type[AsyncItemPerformer[R]], /, *, each: Each, **options: Unpack[FanOutOptions]
) -> AsyncStep[R]: ...
@overload
def step(
    target: type[ItemPerformer[R]], /, *, each: Each, **options: Unpack[FanOutOptions]
) -> Step[R]: ...
@overload
def step(
    target: Callable[[Any], Coroutine[Any, Any, R]], /, **options: Unpack[StepOptions]
) -> AsyncStep[R]: ...
@overload
def step(target: Callable[[Any], R], /, **options: Unpack[StepOptions]) -> Step[R]: ...
@overload
def step(
    target: Callable[[Any, Any], Coroutine[Any, Any, R]],
    /,
    *,
    each: Each,
    **options: Unpack[FanOutOptions],
) -> AsyncStep[R]: ...
@overload
def step(
    target: Callable[[Any, Any], R], /, *, each: Each, **options: Unpack[FanOutOptions]
) -> Step[R]: ...
@overload
def step(*, each: Each, **options: Unpack[FanOutOptions]) -> ItemDecorator: ...
@overload
def step(**options: Unpack[StepOptions]) -> StepDecorator: ...
def step(target: Any = None, /, **declared: Any) -> Any:
    """Declare a step: ``@step``, ``@step(max_retries=5)``, or ``name = step(callable)``.

    A function is called with the sequence. A class is instantiated, and its ``perform`` is called
    with the sequence. A Dramatiq actor or a Django task is called with what ``args`` and ``kwargs``
    return: these are callables that take the sequence and, with ``each``, also the item. With
    ``each`` and neither of them, the item is the only argument.

    - ``after``: the step or steps to wait for; by default, it comes after all steps declared above
      it. `any_of` in it waits for the first of a group.
    - ``delay``: how long to wait before it starts: a timedelta, milliseconds, or a callable that
      takes the sequence and returns a timedelta or an aware datetime. Stored in the database.
    - ``when``: a callable that takes the sequence; the step is skipped if it returns false.
    - ``atomic``: whether the step is wrapped in a transaction; if not, its effects happen at least
      once instead of exactly once.
    - ``on_error``: the step that takes over when this one has failed permanently; the run does not
      fail. The steps after this one are skipped, except those that also come after the handler.
      A handler without ``after`` runs only in this case.
    - ``limits``: the `Limit`s under which it needs a place to run; it waits for one in line,
      without a worker. Each item of a fan-out needs a place of its own.
    - ``aliases``: earlier names of the step, for unfinished runs.
    - ``label``: what the admin shows; by default, the name with spaces.
    - ``each``: makes it a fan-out: a key of ``data`` that holds a list, or a callable that takes
      the sequence and returns or yields JSON values. The step is called with the sequence and
      one item, for each item in parallel; what it returns is the item's result. Items cannot
      change ``data``.
    - ``concurrency``: how many items may be in flight. ``batch``: pass lists of this many items.
      ``allow_failed``: True, a number of items, or a fraction of them (0.01) that may fail.
    - ``options``: options of the project's own middleware, which type checkers cannot know:
      ``options={"trace": True}`` means ``trace=True``.
    - ``retries``: how many retries each exception allows, such as ``{ConnectionError: 10}``; None
      means no limit. All retries of the step count, whatever caused them. ``max_retries`` applies
      to all other exceptions.

    Every other option is Dramatiq's own. Invalid options raise `InvalidDefinition` when the class
    is created.
    """
    make = partial(_make, Step, declared)
    return Decorator(make) if target is None else noted(make(target), sys._getframe(1))


class Subsequence(_Other):
    """A step that starts other sequences and waits for them, created by `subsequence`."""

    sequence: Any  # a Sequence class, or its label
    child_data: Callable[..., Mapping[str, Any]] | None
    child_subject: Callable[..., Model | None] | None

    def __init__(self, function: Callable[..., Any], declared: Mapping[str, Any]) -> None:
        super().__init__(function, declared)
        self.sequence = self.options.pop("sequence")
        self.child_data = self.options.pop("data", None)
        self.child_subject = self.options.pop("subject", None)

    @property
    def kind(self) -> str:
        """Its row waits for the runs that it has started."""
        return "subsequence"


def subsequence(
    sequence: Any,
    /,
    *,
    data: Callable[..., Mapping[str, Any]] | None = None,
    subject: Callable[..., Model | None] | None = None,
    each: Each | None = None,
    allow_failed: bool | float = False,
    after: After | None = None,
    when: Callable[[Any], Any] | None = None,
    delay: Delay | None = None,
    on_error: Named | None = None,
    aliases: Names = (),
    label: Text = "",
    retries: Retries | None = None,
    **options: Unpack[ActorOptions],
) -> Subsequence:
    """Declare a step that starts a run of another sequence and waits for it, without a worker.

    ``sequence`` is its class or label. ``data`` is a callable that takes this sequence and returns
    the child's data; without it, the child starts with a copy of this run's data. The child's
    final data is the result of the step, and is also stored in ``data`` under the step's name.
    ``subject`` is a callable too, which returns the object that the child is about; without it,
    the child has none.

    With ``each`` (a key of ``data``, or a callable that returns items), there is a child for each
    item: ``data`` and ``subject`` are also called with the item, and without ``data``, the items
    are the children's data. `Sequence.results` returns the children's data, in order.

    The step fails if a child fails or is cancelled, unless ``allow_failed`` permits it. Cancelling,
    rolling back or retrying the parent does the same to its children.
    """
    declared = {
        "sequence": sequence,
        "data": data,
        "subject": subject,
        "each": each,
        "allow_failed": allow_failed,
        "after": after,
        "when": when,
        "delay": delay,
        "on_error": on_error,
        "aliases": aliases,
        "label": label,
        **options,
    }
    if retries is not None:
        declared["retries"] = retries
    return noted(Subsequence(_wait, declared), sys._getframe(1))


def event(
    *,
    timeout: Duration | None = None,
    on_timeout: Literal["fail", "continue"] = "fail",
    choices: Mapping[str, Any] | None = None,
    form: type[BaseForm] | None = None,
    after: After | None = None,
    when: Callable[[Any], Any] | None = None,
    delay: Delay | None = None,
    on_error: Named | None = None,
    aliases: Names = (),
    label: Text = "",
    **options: Unpack[ActorOptions],
) -> Event:
    """Declare a wait for something from outside: ``approval = event(timeout=timedelta(days=3))``.

    The wait occupies no worker. ``run.deliver("approval", payload)`` ends it; the payload is the
    result of the step, and is also stored in ``data["approval"]``. Early deliveries are stored.

    - ``timeout``: how long to wait, a timedelta or milliseconds. After that, the step fails, or is
      skipped if ``on_timeout="continue"``: it has no result, and ``data`` stays as it is.
    - ``on_error``: the step that takes over when the event has timed out; the run does not fail.
    - ``choices``: payloads that the admin offers as buttons, by their labels:
      ``{"Approve": {"approved": True}, "Refuse": {"approved": False}}``. Code may deliver others.
    - ``form``: a Django form that validates each payload, which is a dict of its fields; the form's
      ``cleaned_data`` is what is delivered. The admin and the page of a `deliver_url` show it.
    - ``options``: options of Dramatiq.
    """
    declared = {
        "timeout": timeout,
        "on_timeout": on_timeout,
        "choices": choices,
        "form": form,
        "after": after,
        "when": when,
        "delay": delay,
        "on_error": on_error,
        "aliases": aliases,
        "label": label,
        **options,
    }
    return noted(Event(_wait, declared), sys._getframe(1))


@overload
def on_failure(target: Callable[[Any], Any], /) -> OnFailure: ...
@overload
def on_failure(
    **options: Unpack[ClosingOptions],
) -> Callable[[Callable[[Any], Any]], OnFailure]: ...
def on_failure(target: Any = None, /, **options: Any) -> Any:
    """Declare a step that runs once when the run has failed: ``@on_failure`` on a method.

    It is durable, has its own retries, and runs after the undos. ``self.failure`` names the failed
    step and its error.
    """
    make = partial(_make, OnFailure, options)
    return Decorator(make) if target is None else noted(make(target), sys._getframe(1))


@overload
def on_cancel(target: Callable[[Any], Any], /) -> OnCancel: ...
@overload
def on_cancel(
    **options: Unpack[ClosingOptions],
) -> Callable[[Callable[[Any], Any]], OnCancel]: ...
def on_cancel(target: Any = None, /, **options: Any) -> Any:
    """Declare a step that runs once when the run is cancelled: ``@on_cancel`` on a method.

    It is durable, has its own retries, and runs after the rollback, whoever cancels: code, the
    admin, or the parent run. If it fails permanently, the run fails.
    """
    make = partial(_make, OnCancel, options)
    return Decorator(make) if target is None else noted(make(target), sys._getframe(1))


@overload
def on_end(target: Callable[[Any], Any], /) -> OnEnd: ...
@overload
def on_end(**options: Unpack[ClosingOptions]) -> Callable[[Callable[[Any], Any]], OnEnd]: ...
def on_end(target: Any = None, /, **options: Any) -> Any:
    """Declare a step that runs once, however the run ends: ``@on_end`` on a method.

    It is durable, has its own retries, and runs last, after `on_failure` or `on_cancel`.
    ``self.final_status`` says how the run ends. If it fails permanently, the run fails.
    """
    make = partial(_make, OnEnd, options)
    return Decorator(make) if target is None else noted(make(target), sys._getframe(1))


def _wait(sequence: Any) -> None:
    """An event does nothing when it is called."""


@dataclass(frozen=True)
class Repeat:
    """The type that `repeat` returns."""

    after: timedelta


@dataclass(frozen=True)
class Finish:
    """The type that `finish` returns."""


def repeat(after: timedelta | int | None = None) -> Repeat:
    """Return this from a step to commit its work and run it again.

    ``after``: how long after the commit, a timedelta or milliseconds; by default, at once.
    """
    wait = timedelta() if after is None else after
    if problem := duration_problem(wait):
        call = f"repeat(after={after!r})"
        hint = "Use a timedelta or a number of milliseconds."
        raise InvalidData(f"{call}: {problem}.", path=call, problem=problem, hint=hint)
    return Repeat(as_timedelta(wait))


def finish() -> Finish:
    """Return this from a step to end the run now, as succeeded. Unfinished steps are skipped."""
    return Finish()


class Decorator:
    """What ``step(…)`` and its siblings return until they are applied to a method."""

    def __init__(self, make: Callable[[Any], Step[Any]]) -> None:
        self.make = make

    def __call__(self, function: Any) -> Step[Any]:
        return noted(self.make(function), sys._getframe(1))


def _make(kind: type[Step[Any]], declared: Mapping[str, Any], function: Any) -> Step[Any]:
    return kind(function, declared)


S = TypeVar("S", bound=Step[Any])


def noted(step: S, caller: FrameType) -> S:
    """Return the step after registering it with the class body in which it is declared.

    A decorator above it may replace it with something else, which would go unnoticed otherwise.
    """
    note = getattr(caller.f_locals, "note_step", None)
    if note is not None:
        note(step)
    return step


#: How other libraries start their tasks; here, you start the sequence.
FOREIGN_CALLS = frozenset(
    {"apply_async", "delay", "enqueue", "message", "perform_async", "s", "send", "si"}
    | {"send_with_options", "signature"}
)


def no_attribute(owner: str, name: str, hint: str) -> AttributeError:
    """The error for a missing attribute, with a hint if it is how another library starts tasks."""
    text = f"{owner} has no attribute {name!r}."
    return AttributeError(f"{text} {hint}" if name in FOREIGN_CALLS else text, name=name)


def name_of(step: Step[Any] | str) -> str:
    return step.name if isinstance(step, Step) else step


def is_callable(value: object) -> bool:
    """Whether an option may call it. A step is callable only so that it can say why not."""
    return callable(value) and not isinstance(value, Step)


def flat(after: Iterable[Any]) -> Iterator[Any]:
    """The steps in an ``after``, including those in `any_of`."""
    for other in after:
        yield from other.steps if isinstance(other, AnyOf) else (other,)


def is_task(value: object) -> TypeGuard[DjangoTask[Any]]:
    """Whether it is a task of `django.tasks`, or of the package with the same interface."""
    bases = (sys.modules.get(f"{name}.base") for name in ("django.tasks", "django_tasks"))
    return isinstance(value, tuple(base.Task for base in bases if base is not None))


def is_called_with_arguments(value: object) -> bool:
    """Whether it is an actor or a task, which knows nothing of sequences."""
    return isinstance(value, Actor) or is_task(value)


def code_of(function: Any) -> Callable[..., Any]:
    """The function that a step finally calls.

    For an actor that is a coroutine function, the coroutine function, not Dramatiq's wrapper.
    """
    if isinstance(function, type):
        return function.perform  # type: ignore[attr-defined,no-any-return]
    if is_task(function):
        return function.func
    if not isinstance(function, Actor):
        return function  # type: ignore[no-any-return]
    code: Any = function.fn
    if getattr(code, "__globals__", {}).get("__name__") == "dramatiq.asyncio":
        return code.__wrapped__  # type: ignore[no-any-return]
    return code  # type: ignore[no-any-return]


def own_options_of(function: object) -> dict[str, Any]:
    """The options that an actor or a task declares, if they differ from the defaults."""
    if isinstance(function, Actor):
        return dict(function.options) | _place_of(function.queue_name, function.priority)
    if is_task(function):
        # Django's task backends run the task with the higher number first, and Dramatiq the message
        # with the lower one.
        return _place_of(function.queue_name, -function.priority)
    return {}


def _place_of(queue_name: str, priority: int) -> dict[str, Any]:
    place = {"queue_name": queue_name} if queue_name != "default" else {}
    return {**place, "priority": priority} if priority else place


#: Options that decide about retries: declaring one of them replaces the others.
_REPLACES = {
    "max_retries": ("retries", "retry_when"),
    "retries": ("retry_when",),
    "retry_when": ("retries",),
}


def inherit(defaults: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The declared options over their defaults."""
    replaced = {other for name in _REPLACES if name in declared for other in _REPLACES[name]}
    inherited = {name: value for name, value in defaults.items() if name not in replaced}
    return {**inherited, **declared}


def duration_problem(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | timedelta):
        return "it must be a timedelta or a whole number of milliseconds"
    length = value if isinstance(value, int) else to_milliseconds(value)
    if length < 0:
        return "it must not be negative"
    return "it must not be longer than 1,000 years" if length > to_milliseconds(MAX_WAIT) else None


def as_timedelta(value: timedelta | int) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(milliseconds=value)


def _flattened(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    """The declared options, including those in ``options``; keyword arguments take precedence."""
    further = declared.get("options")
    if not isinstance(further, Mapping) or not all(isinstance(name, str) for name in further):
        return declared  # `validation` reports the problem
    return {**further, **{name: declared[name] for name in declared if name != "options"}}


def _as_dramatiq(name: str, value: Any) -> Any:
    """Convert an option to Dramatiq's form. `validation` reports invalid values later."""
    if name == "time_limit" and value in (None, float("inf")):
        # Dramatiq cannot handle None, and messages of inline definitions are JSON.
        return to_milliseconds(MAX_WAIT)
    if name in DURATION_OPTIONS and isinstance(value, timedelta):
        return to_milliseconds(value)
    return value


def as_tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Step) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)
