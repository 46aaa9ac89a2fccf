"""`Sequence` and `step`: from a class to its plan. Nothing here touches a broker or a database."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar, overload

from asgiref.sync import sync_to_async
from django.apps import apps
from django.utils.functional import Promise
from django.utils.text import camel_case_to_spaces
from dramatiq import Actor

from . import registry
from .exceptions import InvalidDefinition, SequenceError
from .plan import Node, Plan

if TYPE_CHECKING:
    from .models import SequenceRun, SequenceRunQuerySet, StepRun

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S", bound="Sequence")

Delay = int | timedelta | Callable[[Any], timedelta | datetime]
Unique = Literal["ever", "unfinished"]
Problem = tuple[str, str]  # what is wrong, and the mend

STEP_OPTIONS = frozenset(
    {"after", "aliases", "args", "atomic", "delay", "kwargs", "label", "when"}
)  # every other option is Dramatiq's
META_STEP_OPTIONS = frozenset({"atomic", "delay", "when"})
META_INHERITED = frozenset({"defaults", "handoff", "redact", "retention"})
META_OWN = frozenset({"abstract", "aliases", "app_label", "verbose_name"})

REFUSED_OPTIONS: dict[str, Problem] = {
    "broker": ("all steps use the broker of the project", "Leave it out."),
    "actor_name": ("it is made from the sequence's label and the step's name", "Leave it out."),
    "actor_class": ("the actor of a step is this package's own", "Leave it out."),
    "on_success": (
        "Dramatiq loses it if the broker is down at that moment",
        "Declare a step after this one.",
    ),
    "on_failure": (
        "Dramatiq loses it if the broker is down at that moment",
        "Handle the error in the step itself.",
    ),
}
REFUSED_PIPE: Problem = ("the plan decides what comes next", "Declare the next step.")
MAX_STEP_NAME, MAX_LABEL = 100, 200  # the columns' lengths
QUEUE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")  # Dramatiq's own rule


class Performer(Protocol[R_co]):
    """A class of which ``step(cls)`` makes a step."""

    def perform(self, sequence: Any, /) -> R_co: ...


class Step(Generic[R]):
    """One declared unit of a sequence, made by `step`.

    On the class it is this object, which ``after=`` and the methods of a run take; on an instance
    it is the bound method.
    """

    name: str
    function: Callable[..., Any]
    after: tuple[Step[Any] | str, ...] | None
    aliases: tuple[str, ...]
    atomic: bool
    delay: Delay | None
    when: Callable[[Any], Any] | None
    args: Callable[[Any], Iterable[Any]] | None
    kwargs: Callable[[Any], Mapping[str, Any]] | None
    options: dict[str, Any]

    def __init__(self, function: Callable[..., Any], declared: Mapping[str, Any]) -> None:
        self.name = ""
        self.function = function
        self.declared = dict(declared)
        self.after = None if declared.get("after") is None else _as_tuple(declared["after"])
        self.aliases = _as_tuple(declared.get("aliases", ()))
        self.atomic = declared.get("atomic", True)
        self.delay = declared.get("delay")
        self.when = declared.get("when")
        self.args = declared.get("args")
        self.kwargs = declared.get("kwargs")
        self.options = {name: value for name, value in declared.items() if name not in STEP_OPTIONS}
        self.__doc__ = getattr(function, "__doc__", None)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[[], R]: ...
    def __get__(self, instance: object | None, owner: type) -> Self | Callable[[], R]:
        if instance is None:
            return self
        if inspect.isfunction(self.function):
            return MethodType(self.function, instance)
        return partial(self.perform, instance)

    def __repr__(self) -> str:
        return f"<step {self.name or getattr(self.function, '__name__', self.function)}>"

    @property
    def label(self) -> str:
        """What people read in the admin."""
        return str(self.declared.get("label") or self.name.replace("_", " "))

    def perform(self, sequence: Any) -> R:
        """Call the user's code with the bound sequence, and return what it returns."""
        function: Any = self.function
        if isinstance(function, Actor):
            args = self.args(sequence) if self.args else ()
            kwargs = self.kwargs(sequence) if self.kwargs else {}
            function = partial(function.fn, *args, **kwargs)
        elif isinstance(function, type):
            function = partial(function().perform, sequence)
        else:
            function = partial(function, sequence)
        result: R = function()
        return result

    def with_defaults(self, defaults: Mapping[str, Any]) -> Step[R]:
        """The same step, with these options where it declares none."""
        declared = {**defaults, **_actor_options(self.function), **self.declared}
        resolved: Step[R] = Step(self.function, declared)
        resolved.name = self.name
        return resolved


@overload
def step(
    target: Actor[..., R],
    /,
    *,
    args: Callable[[Any], Iterable[Any]] | None = None,
    kwargs: Callable[[Any], Mapping[str, Any]] | None = None,
    **options: Any,
) -> Step[R]: ...
@overload
def step(target: type[Performer[R]], /, **options: Any) -> Step[R]: ...
@overload
def step(target: Callable[[Any], R], /, **options: Any) -> Step[R]: ...
@overload
def step(
    *,
    after: Step[Any] | str | Iterable[Step[Any] | str] | None = None,
    delay: Delay | None = None,
    when: Callable[[Any], Any] | None = None,
    atomic: bool = True,
    aliases: Iterable[str] = (),
    label: str = "",
    **options: Any,
) -> Callable[[Callable[[Any], R]], Step[R]]: ...
def step(target: Any = None, /, **declared: Any) -> Any:
    """Declare a step: ``@step``, ``@step(max_retries=5)``, or ``name = step(callable)``.

    A callable is called with the sequence; of a class, ``perform`` is; a Dramatiq actor's function
    is called with what ``args`` and ``kwargs``, callables that take the sequence, return.

    - ``after``: the steps that it waits for; without it, every open end declared above.
    - ``delay``: a timedelta, milliseconds, or a callable that takes the sequence and returns a
      timedelta or an aware datetime. Durable.
    - ``when``: a callable that takes the sequence; the step is skipped if it returns false.
    - ``atomic``: whether the step is wrapped in a transaction; if not, its effects happen at least
      once instead of exactly once.
    - ``aliases``: earlier names of the step, for the runs in flight.
    - ``label``: what the admin shows; the name with spaces if there is none.

    Every other option is Dramatiq's own. Errors are found when the class is created.
    """
    if target is None:
        return lambda function: Step(function, declared)
    return Step(target, declared)


@dataclass(frozen=True)
class Repeat:
    """What `repeat` returns."""

    after: timedelta


@dataclass(frozen=True)
class Finish:
    """What `finish` returns."""


def repeat(after: timedelta | int | None = None) -> Repeat:
    """Return this from a step to commit what it did, and to have it run again.

    ``after`` is a timedelta, or an int of milliseconds, from the commit on; none means at once.
    """
    wait = timedelta() if after is None else after
    if problem := _duration_problem(wait):
        raise SequenceError(f"repeat(after={after!r}): {problem}.")
    return Repeat(wait if isinstance(wait, timedelta) else timedelta(milliseconds=wait))


def finish() -> Finish:
    """Return this from a step to end the run now, as succeeded; what is unfinished is skipped."""
    return Finish()


@dataclass(frozen=True, eq=False)
class Definition:
    """What a sequence's class declares, validated; ``steps`` have the defaults of its Meta."""

    label: str
    app_label: str
    cls: type[Sequence]
    steps: dict[str, Step[Any]]
    plan: Plan
    aliases: tuple[str, ...]
    handoff: Literal["broker", "direct"]
    retention: timedelta | None
    redact: tuple[str, ...]
    defaults: dict[str, Any]
    verbose_name: str

    def step(self, name: str) -> Step[Any] | None:
        """The step of that name or alias, if there is one."""
        return self.steps.get(name) or self._by_alias.get(name)

    def options(self, step: Step[Any]) -> dict[str, Any]:
        """The Dramatiq options of a step: those of Meta, and over them its own."""
        return dict(self.steps[step.name].options)

    @cached_property
    def _by_alias(self) -> dict[str, Step[Any]]:
        return {alias: step for step in self.steps.values() for alias in step.aliases}


class StepContext(Protocol):
    """What a step that is being performed can ask the engine for."""

    @property
    def idempotency_key(self) -> str: ...
    def result(self, name: str, default: Any) -> Any: ...
    def results(self, name: str) -> Iterator[Any]: ...
    def progress(self, done: float | None, total: float | None, text: str) -> None: ...


class Starter(Protocol):
    """What starts sequences; installed when Django is ready."""

    def start(
        self,
        cls: type[S],
        data: Mapping[str, Any] | None,
        *,
        key: str | None,
        unique: Unique,
        delay: timedelta | int | None,
    ) -> S: ...
    def start_many(self, cls: type[S], iterable: Iterable[Any]) -> list[S]: ...
    def runs(self, cls: type[Sequence]) -> SequenceRunQuerySet: ...


_starter: Starter | None = None


def install(starter: Starter) -> None:
    """Let sequences start; called once Django is ready."""
    global _starter
    _starter = starter


class _Body(dict[str, Any]):
    """The namespace of a class body, in which a step cannot be hidden by a second one."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(self.get(name), Step):
            raise InvalidDefinition(
                where=f"{self['__module__']}.{self['__qualname__']}.{name}",
                problem="this name is declared twice in the class",
                mend="Rename one of them.",
            )
        super().__setitem__(name, value)


class SequenceType(type):
    """The type of `Sequence` classes: calling one starts a sequence."""

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body()

    if not TYPE_CHECKING:
        # Not __new__ of the class: copying or unpickling an instance calls that one too.
        def __call__(cls, /, **data: Any) -> Sequence:
            return cls.start(data)


class _Runs:
    def __get__(self, instance: object | None, owner: type[Sequence]) -> SequenceRunQuerySet:
        return _starter_for(owner).runs(owner)


class Sequence(metaclass=SequenceType):
    """A durable sequence of steps.

    ``ContactForm(name="Joel")`` writes a run with that data, and starts it on commit.
    """

    _definition: Definition | None = None
    _step_run: StepRun | None
    _context: StepContext | None

    data: dict[str, Any]
    """What the steps share: JSON. What a step changes in it is saved when the step commits."""
    run: SequenceRun
    """The row of this run."""
    attempt: int
    """Which attempt at the step this is: 1, 2, …; 0 outside a step."""
    created: bool
    """Whether this call started the run; false if one with its key existed."""
    runs = _Runs()
    """The runs of this class: a queryset."""

    if TYPE_CHECKING:

        def __init__(self, /, **data: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _declare(cls)

    @classmethod
    def start(
        cls,
        data: Mapping[str, Any] | None = None,
        /,
        *,
        key: str | None = None,
        unique: Unique = "ever",
        delay: timedelta | int | None = None,
    ) -> Self:
        """Write a run with this data, and start it: when the transaction around it commits.

        With a ``key``, a run that has it already (``unique="unfinished"``: and is not finished) is
        returned instead, and ``created`` is false. ``delay`` is a timedelta or milliseconds.
        Raises `InvalidData`.
        """
        return _starter_for(cls).start(cls, data, key=key, unique=unique, delay=delay)

    @classmethod
    def start_many(cls, iterable: Iterable[Any], /) -> list[Self]:
        """Start a run for each item of data, in bulk."""
        return _starter_for(cls).start_many(cls, iterable)

    @classmethod
    async def astart(
        cls,
        data: Mapping[str, Any] | None = None,
        /,
        *,
        key: str | None = None,
        unique: Unique = "ever",
        delay: timedelta | int | None = None,
    ) -> Self:
        """`start`, for asynchronous code."""
        return await sync_to_async(cls.start)(data, key=key, unique=unique, delay=delay)

    @classmethod
    async def astart_many(cls, iterable: Iterable[Any], /) -> list[Self]:
        """`start_many`, for asynchronous code."""
        return await sync_to_async(cls.start_many)(iterable)

    @classmethod
    def _bind(
        cls,
        *,
        run: SequenceRun,
        data: dict[str, Any],
        created: bool = False,
        step_run: StepRun | None = None,
        attempt: int = 0,
        context: StepContext | None = None,
    ) -> Self:
        sequence = object.__new__(cls)
        sequence.run, sequence.data, sequence.created = run, data, created
        sequence._step_run, sequence.attempt, sequence._context = step_run, attempt, context
        return sequence

    @property
    def step_run(self) -> StepRun:
        """The row of the step that is being performed."""
        if self._step_run is None:
            raise _outside_a_step(self, "step_run")
        return self._step_run

    @property
    def idempotency_key(self) -> str:
        """A key to hand to other services: it stays the same when this step is tried again."""
        return self._in_step("idempotency_key").idempotency_key

    def result(self, step: Step[Any] | str, default: Any = None) -> Any:
        """What an earlier step returned, as JSON; ``default`` if it returned nothing."""
        return self._in_step("result").result(_name(step), default)

    def results(self, step: Step[Any] | str) -> Iterator[Any]:
        """What the items of an earlier step returned, in order."""
        return self._in_step("results").results(_name(step))

    def progress(
        self, done: float | None = None, total: float | None = None, text: str = ""
    ) -> None:
        """Show how far this step is. Cheap, live, and outside the step's transaction."""
        self._in_step("progress").progress(done, total, text)

    def _in_step(self, name: str) -> StepContext:
        if self._context is None:
            raise _outside_a_step(self, name)
        return self._context

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} {self.run}>"


RESERVED = frozenset(
    {name for name in (*vars(Sequence), *Sequence.__annotations__) if not name.startswith("_")}
    | {"Meta", "failure"}
)


def _declare(cls: type[Sequence]) -> None:
    """Validate the class, and register its definition, unless it is abstract."""
    cls._definition = None
    _check_body(cls)
    meta = _Meta.of(cls)
    steps = {name: step.with_defaults(meta.step_defaults) for name, step in _collect(cls).items()}
    for name, found in steps.items():
        _raise_first(f"{_path(cls)}.{name}", _step_problems(name, found))
    _check_step_aliases(cls, steps)
    if meta.abstract:
        return
    _define(cls, meta, steps, app_label=meta.app_label or "-")  # all but the label is known now
    if meta.app_label:
        _register(cls, meta, steps)
    else:
        registry.when_apps_are_loaded(partial(_register, cls, meta, steps))


def _register(cls: type[Sequence], meta: _Meta, steps: dict[str, Step[Any]]) -> None:
    app_label = meta.app_label or _containing_app_label(cls)
    cls._definition = _define(cls, meta, steps, app_label=app_label)
    registry.register(cls)


def _define(
    cls: type[Sequence], meta: _Meta, steps: dict[str, Step[Any]], *, app_label: str
) -> Definition:
    label = f"{app_label}.{cls.__name__}"
    if len(label) > MAX_LABEL:
        raise _invalid(cls, f"its label is longer than {MAX_LABEL} characters", "Shorten its name.")
    return Definition(
        label=label,
        app_label=app_label,
        cls=cls,
        steps=steps,
        plan=Plan.build(label, _nodes(cls, label, steps), where=_path(cls)),
        aliases=meta.aliases,
        handoff=meta.handoff,
        retention=meta.retention,
        redact=meta.redact,
        defaults=meta.defaults,
        verbose_name=meta.verbose_name or camel_case_to_spaces(cls.__name__),
    )


def _containing_app_label(cls: type[Sequence]) -> str:
    if config := apps.get_containing_app_config(cls.__module__):
        return config.label
    raise _invalid(
        cls,
        f"its module {cls.__module__} is in no installed app",
        "Add its app to INSTALLED_APPS, or set app_label in its Meta.",
    )


# The steps of a class, and what they wait for.


def _collect(cls: type) -> dict[str, Step[Any]]:
    """The steps of a class: those of its bases in their order, then its own."""
    names = [name for base in cls.__bases__ for name in _collect(base)]
    names += [name for name, value in vars(cls).items() if isinstance(value, Step)]
    found = {name: inspect.getattr_static(cls, name) for name in dict.fromkeys(names)}
    for name, value in found.items():
        if value is not None and not isinstance(value, Step):
            raise _invalid(
                cls,
                "it replaces a step with something that is not one",
                "Decorate it with @step, or remove the step with None.",
                step=name,
            )
    return {name: value for name, value in found.items() if value is not None}


def _nodes(cls: type[Sequence], label: str, steps: dict[str, Step[Any]]) -> Iterator[Node]:
    open_ends: list[str] = []
    for name, found in steps.items():
        after = open_ends if found.after is None else [_name(other) for other in found.after]
        open_ends = [*(end for end in open_ends if end not in after), name]
        queue = found.options.get("queue_name", "default")
        yield Node(name=name, after=tuple(after), actor=f"{label}.{name}", queue=queue)


def _name(step: Step[Any] | str) -> str:
    return step.name if isinstance(step, Step) else step


def _actor_options(function: object) -> dict[str, Any]:
    """What an existing actor declares, where that differs from Dramatiq's defaults."""
    if not isinstance(function, Actor):
        return {}
    options = dict(function.options)
    if function.queue_name != "default":
        options["queue_name"] = function.queue_name
    if function.priority:
        options["priority"] = function.priority
    return options


# Meta.


@dataclass(frozen=True)
class _Meta:
    abstract: bool
    app_label: str | None
    aliases: tuple[str, ...]
    verbose_name: str
    handoff: Literal["broker", "direct"]
    retention: timedelta | None
    redact: tuple[str, ...]
    defaults: dict[str, Any]
    step_defaults: dict[str, Any]

    @classmethod
    def of(cls, owner: type[Sequence]) -> _Meta:
        options = _meta_options(owner)
        _raise_first(f"{_path(owner)}.Meta", _meta_problems(options))
        return cls(
            abstract=options.pop("abstract", False),
            app_label=options.pop("app_label", None),
            aliases=_as_tuple(options.pop("aliases", ())),
            verbose_name=options.pop("verbose_name", ""),
            handoff=options.pop("handoff", "broker"),
            retention=options.pop("retention", None),
            redact=_as_tuple(options.pop("redact", ())),
            defaults=deepcopy(dict(options.pop("defaults", {}))),
            step_defaults=options,
        )


def _meta_options(cls: type) -> dict[str, Any]:
    """The options of the Meta of a class, and those that it inherits."""
    inherited: dict[str, Any] = {}
    parents = [vars(base)["Meta"] for base in cls.__mro__[1:] if "Meta" in vars(base)]
    for parent in reversed(parents):
        inherited |= _without_own(_public(parent))
    own = vars(cls).get("Meta")
    for base in reversed(own.__mro__ if own else ()):
        inherited |= _without_own(_public(base)) if base in parents else _public(base)
    return inherited


def _public(meta: type) -> dict[str, Any]:
    return {name: value for name, value in vars(meta).items() if not name.startswith("_")}


def _without_own(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in META_OWN}


def _meta_problems(options: dict[str, Any]) -> Iterator[Problem]:
    yield from _rule_problems(_META_RULES, options)
    for name in sorted(STEP_OPTIONS - META_STEP_OPTIONS - META_OWN):
        if name in options:
            yield f"{name} is an option of one step, not of all", "Set it on the step."
    yield from _option_problems(options)


# What a class, or a step, can have wrong with it.


def _check_body(cls: type[Sequence]) -> None:
    for name, value in vars(cls).items():
        if name in ("__init__", "__new__"):
            problem = f"it defines {name}, and a sequence is created by its run, not by your code"
            raise _invalid(cls, problem, "Put what it needs into data.")
        if name in RESERVED - {"Meta"}:
            problem = "this name is reserved: every sequence has an attribute of that name"
            raise _invalid(cls, problem, "Rename it.", step=name)
        if _wraps_step(value):
            problem = f"a step cannot be a {type(value).__name__}"
            raise _invalid(cls, problem, "Make it a plain method.", step=name)


def _wraps_step(value: object) -> bool:
    return any(isinstance(getattr(value, name, None), Step) for name in ("__func__", "fget"))


def _check_step_aliases(cls: type[Sequence], steps: dict[str, Step[Any]]) -> None:
    taken = set(steps)
    for name, found in steps.items():
        for alias in found.aliases:
            if alias in taken:
                problem = f"its alias {alias!r} is the name or an alias of another step"
                raise _invalid(cls, problem, "Remove the alias.", step=name)
            taken.add(alias)


def _step_problems(name: str, step: Step[Any]) -> Iterator[Problem]:
    yield from _name_problems(name, step)
    yield from _function_problems(step.function)
    yield from _argument_problems(step)
    yield from _after_problems(step.after or ())
    yield from _rule_problems(_STEP_RULES, step.declared)
    yield from _option_problems(step.options)


def _name_problems(name: str, step: Step[Any]) -> Iterator[Problem]:
    if step.name != name:
        yield f"it is the step {step.name!r} already", "Declare a step of its own with step(…)."
    if name.startswith("_"):
        yield "the name of a step cannot start with an underscore", "Rename it."
    if name in RESERVED:
        yield "this name is reserved: every sequence has an attribute of that name", "Rename it."
    if len(name) > MAX_STEP_NAME:
        yield f"its name is longer than {MAX_STEP_NAME} characters", "Shorten it."


def _function_problems(function: Any) -> Iterator[Problem]:
    if isinstance(function, Step):
        yield "it is a step of a step", "Use @step once."
    elif isinstance(function, staticmethod | classmethod | property):
        yield f"a step cannot be a {type(function).__name__}", "Make it a plain method."
    elif not callable(function):
        yield f"{function!r} cannot be called", "Give @step a method, a function, or a class."
    elif inspect.isclass(function) and not callable(getattr(function, "perform", None)):
        yield f"{function.__qualname__} has no method perform", "Add perform(self, sequence)."
    else:
        yield from _kind_problems(_code(function))


def _code(function: Any) -> Any:
    """What in the end is called: a function, where there is one."""
    if isinstance(function, Actor):
        return inspect.unwrap(function.fn)  # Dramatiq wraps a coroutine function
    if inspect.isclass(function):
        return function.perform  # type: ignore[attr-defined]
    return (
        function
        if inspect.isroutine(function) or isinstance(function, partial)
        else (type(function).__call__)
    )


def _kind_problems(code: Any) -> Iterator[Problem]:
    if inspect.iscoroutinefunction(code):
        yield "it is a coroutine function", "Define it without async."
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        yield "it is a generator function", "Return a value instead of yielding."


def _argument_problems(step: Step[Any]) -> Iterator[Problem]:
    if isinstance(step.function, Actor):
        if not (step.args or step.kwargs) and not _accepts(step.function.fn):
            yield "its actor takes arguments", "Give them with args= or kwargs=, callables."
    elif step.args is not None or step.kwargs is not None:
        yield "args and kwargs are for a Dramatiq actor", "Read what you need from self.data."
    elif not inspect.isclass(step.function) and not _accepts(step.function, None):
        yield "it cannot be called with the sequence only", "Take self, and read self.data."


def _accepts(function: Any, *args: object) -> bool:
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


def _after_problems(after: Iterable[object]) -> Iterator[Problem]:
    for other in after:
        if isinstance(other, Step) and not other.name:
            yield f"after has {other!r}, which no class declares", "Declare it above this step."
        elif not isinstance(other, Step | str):
            yield f"after has {other!r}, which is no step", "Give steps, or their names."


def _option_problems(options: Mapping[str, Any]) -> Iterator[Problem]:
    for name in options:
        if reason := REFUSED_OPTIONS.get(name) or (name.startswith("pipe_") and REFUSED_PIPE):
            yield f"the option {name} is refused: {reason[0]}", reason[1]


def _duration_problem(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | timedelta):
        return "it must be a timedelta or an int of milliseconds"
    length = value if isinstance(value, timedelta) else timedelta(milliseconds=value)
    return "it cannot be negative" if length < timedelta() else None


def _is_delay(value: object) -> bool:
    return value is None or _is_function(value) or not _duration_problem(value)


def _is_function(value: object) -> bool:
    return callable(value) and not any(_kind_problems(_code(value)))


def _is_text(value: object) -> bool:
    return isinstance(value, str | Promise)


def _are_names(value: object) -> bool:
    return all(isinstance(name, str) and name for name in _as_tuple(value))


def _are_labels(value: object) -> bool:
    return _are_names(value) and all(name.count(".") == 1 for name in _as_tuple(value))


def _is_retention(value: object) -> bool:
    return value is None or (isinstance(value, timedelta) and value >= timedelta())


def _is_data(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


Rules = dict[str, tuple[Callable[[Any], bool], str]]
_STEP_RULES: Rules = {
    "atomic": (lambda value: isinstance(value, bool), "True or False"),
    "delay": (_is_delay, "a timedelta, an int of milliseconds, or a function of the sequence"),
    "when": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "args": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "kwargs": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "aliases": (_are_names, "a list of names"),
    "label": (_is_text, "a text"),
    "queue_name": (
        lambda value: isinstance(value, str) and bool(QUEUE_NAME.fullmatch(value)),
        "a name of letters, digits, underscores, hyphens and dots",
    ),
    "priority": (lambda value: type(value) is int, "an int"),
}
_META_RULES: Rules = {
    name: rule for name, rule in _STEP_RULES.items() if name not in STEP_OPTIONS - META_STEP_OPTIONS
} | {
    "abstract": (lambda value: isinstance(value, bool), "True or False"),
    "app_label": (lambda value: isinstance(value, str) and value.isidentifier(), "an app's label"),
    "aliases": (_are_labels, 'a list of labels, such as "shop.ContactForm"'),
    "verbose_name": (_is_text, "a text"),
    "handoff": (lambda value: value in ("broker", "direct"), '"broker" or "direct"'),
    "retention": (_is_retention, "a timedelta, or None to keep runs"),
    "redact": (_are_names, "a list of names"),
    "defaults": (_is_data, "a dict with strings as keys"),
}


def _rule_problems(rules: Rules, options: Mapping[str, Any]) -> Iterator[Problem]:
    for name, (is_right, expected) in rules.items():
        if name in options and not is_right(options[name]):
            yield f"{name} is {options[name]!r}", f"It must be {expected}."


def _raise_first(where: str, problems: Iterator[Problem]) -> None:
    for problem, mend in problems:
        raise InvalidDefinition(where=where, problem=problem, mend=mend)


def _invalid(cls: type, problem: str, mend: str, *, step: str = "") -> InvalidDefinition:
    where = f"{_path(cls)}.{step}" if step else _path(cls)
    return InvalidDefinition(where=where, problem=problem, mend=mend)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Step) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)


def _starter_for(cls: type[Sequence]) -> Starter:
    if _starter is None:
        raise SequenceError(
            f"{_path(cls)} cannot be used before Django is ready."
            " Add the app to INSTALLED_APPS, and call this later than at import."
        )
    if cls._definition is None:
        raise SequenceError(f"{_path(cls)} is abstract. Start a subclass that is not.")
    return _starter


def _outside_a_step(sequence: Sequence, name: str) -> SequenceError:
    return SequenceError(f"{_path(type(sequence))}.{name} is only there inside a step.")
