"""`Sequence`: how a class becomes a plan. Nothing here uses a broker or a database."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from asgiref.sync import sync_to_async
from django.apps import apps

from .data import serialization, typed
from .definitions import registry
from .definitions.definition import Definition, Failure, Outcome
from .definitions.inputs import Inputs
from .definitions.option_types import StartOptions
from .definitions.options import MetaOptions
from .definitions.plan import Node, Plan
from .definitions.schedules import DEFAULT_NAME, Timetable
from .definitions.steps import Step, Undo, flat, name_of, no_attribute
from .definitions.validation import (
    MAX_LABEL,
    check_body,
    check_closing_names,
    check_limits,
    check_names,
    check_references,
    check_step_aliases,
    invalid,
    path_of,
    raise_first,
    step_problems,
)
from .exceptions import InvalidDefinition, SequenceError, UnknownSchedule, did_you_mean
from .port import Engine, get_engine

if TYPE_CHECKING:
    from django.db.models import Model

    from .models import Schedule, ScheduleQuerySet, SequenceRun, SequenceRunQuerySet, StepRun

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")
# defaults of type parameters came with Python 3.13, but type checkers already know them
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    D = TypeVarWithDefault("D", default=dict[str, Any])
else:
    D = TypeVar("D")


class StepContext(Protocol):
    """What a running step can ask of the engine."""

    @property
    def run(self) -> SequenceRun: ...
    @property
    def step_run(self) -> StepRun: ...
    @property
    def idempotency_key(self) -> str: ...
    def once(self, name: str, call: Callable[[], Any]) -> Any: ...
    async def aonce(self, name: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any: ...
    def result(self, name: str, default: Any) -> Any: ...
    def results(self, name: str) -> Iterator[Any]: ...
    def outcomes(self, name: str) -> Iterator[Outcome]: ...
    def progress(self, done: float | None, total: float | None, text: str) -> None: ...
    def failure(self) -> Failure | None: ...
    @property
    def cancelled(self) -> bool: ...
    def raise_if_cancelled(self) -> None: ...
    @property
    def final_status(self) -> str: ...


class _Body(dict[str, Any]):
    """The namespace of a class body; makes sure that every declared step ends up in the class."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: list[Step[Any]] = []

    def note_step(self, step: Step[Any]) -> None:
        """Note a declared step. Its name is known only when the body ends."""
        self.declared.append(step)

    def refuse_lost_steps(self) -> None:
        """Raise if a decorator above ``@step`` has replaced a step with something else."""
        steps = [value for value in self.values() if isinstance(value, Step)]
        # Steps that other steps refer to are reported elsewhere.
        ids = {id(named) for step in steps for named in (step, *_references(step))}
        for lost in self.declared:
            if id(lost) not in ids:
                name = getattr(lost.function, "__name__", "a step")
                raise InvalidDefinition(
                    where=f"{self['__module__']}.{self['__qualname__']}.{name}",
                    problem="it was declared as a step, but the class has no such step",
                    hint="Move @step above all other decorators, and give each step a name.",
                )

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(self.get(name), Step):
            raise InvalidDefinition(
                where=f"{self['__module__']}.{self['__qualname__']}.{name}",
                problem="the class declares this name twice",
                hint="Rename one of them.",
            )
        super().__setitem__(name, value)


def _references(step: Step[Any]) -> Iterator[Any]:
    yield from flat(step.after or ())
    yield step.on_error
    yield getattr(step, "undoes", None)


class SequenceType(type):
    """The type of `Sequence` classes: calling one starts a sequence."""

    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **kwargs: Any) -> _Body:
        return _Body()

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **kwargs: Any
    ) -> SequenceType:
        if isinstance(namespace, _Body):
            namespace.refuse_lost_steps()
        return super().__new__(cls, name, bases, namespace, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        if isinstance(value, Step) and not value.name:
            problem = "a step cannot be added to an existing class"
            raise invalid(cls, problem, "Declare it in the class or in a subclass.", step=name)
        super().__setattr__(name, value)

    if not TYPE_CHECKING:
        # Not in __new__ of the class, which copying and unpickling an instance also call.
        def __call__(cls, /, *args: Any, **data: Any) -> Sequence[Any]:
            if args:
                raise SequenceError(
                    f"{path_of(cls)}(…) takes its data as keyword arguments. To pass a "
                    f"single object, use {cls.__name__}.start(data)."
                )
            return cls.start(data)

        def __getattr__(cls, name: str) -> NoReturn:
            hint = f"Start it with {cls.__name__}(…), or {cls.__name__}.start(data, delay=…)."
            raise no_attribute(f"The sequence {path_of(cls)}", name, hint)


class _Runs:
    def __get__(self, instance: object | None, owner: type[Sequence[Any]]) -> SequenceRunQuerySet:
        runs: SequenceRunQuerySet = _startable(owner).runs(owner)
        return runs


class Schedules(Generic[D]):
    """The schedules of one sequence: declared in its Meta, or created at run time."""

    def __init__(self, cls: type[Sequence[D]]) -> None:
        self._cls = cls

    def create(
        self,
        name: str,
        timetable: Timetable,
        /,
        *,
        data: D | Mapping[str, Any] | None = None,
        subject: Model | None = None,
        by: Any = "",
        reason: str = "",
    ) -> Schedule:
        """Create a schedule, ``cron(…)`` or ``every(…)``, that starts runs with this data.

        The schedule is a row, written in the surrounding transaction; no code declares it.
        ``subject`` is the object that the runs are about; ``by`` and ``reason`` are stored with the
        schedule.
        Raises `InvalidSchedule` if the sequence already has a schedule of that name, or if the
        timetable's data is a function, and `InvalidData` if the data is not valid.
        """
        schedule: Schedule = _startable(self._cls).create_schedule(
            self._cls, name, timetable, data=data, subject=subject, by=by, reason=reason
        )
        return schedule

    async def acreate(
        self,
        name: str,
        timetable: Timetable,
        /,
        *,
        data: D | Mapping[str, Any] | None = None,
        subject: Model | None = None,
        by: Any = "",
        reason: str = "",
    ) -> Schedule:
        """`create`, for asynchronous code."""
        create = sync_to_async(self.create)
        return await create(name, timetable, data=data, subject=subject, by=by, reason=reason)

    def all(self) -> ScheduleQuerySet:
        """A queryset of the rows. A worker writes the rows of declared schedules when it boots."""
        schedules: ScheduleQuerySet = _startable(self._cls).schedules(self._cls)
        return schedules

    def get(self, name: str = DEFAULT_NAME, /) -> Schedule:
        """The row of that name; by default, that of ``Meta.schedule``. Raises `UnknownSchedule`."""
        schedules = self.all()
        if (schedule := schedules.filter(name=name).first()) is not None:
            return schedule
        hint = did_you_mean(name, schedules.values_list("name", flat=True))
        label = path_of(self._cls)
        raise UnknownSchedule(sequence=label, schedule=name, hint=hint)

    async def aget(self, name: str = DEFAULT_NAME, /) -> Schedule:
        """`get`, for asynchronous code."""
        return await sync_to_async(self.get)(name)


class _SchedulesOfClass:
    def __get__(self, instance: object | None, owner: type[Sequence[D]]) -> Schedules[D]:
        return Schedules(owner)


class Sequence(Generic[D], metaclass=SequenceType):
    """A durable sequence of steps.

    ``ContactForm(name="Joel")`` stores a run with that data, and starts it on commit.
    ``class Checkout(Sequence[Order])`` has typed data: a pydantic model, a dataclass or a
    TypedDict.
    """

    _definition: Definition | None = None
    _file: str | None = None  # the file that declares it, if it is not declared in Python
    _codec: typed.Codec | None = None  # of typed data
    _inputs: Inputs | None = None  # that a definition as data declares
    _stored: typed.Stored
    _context: StepContext | None

    if TYPE_CHECKING:
        data: D
        "The data that the steps share. Changes are saved when the step commits."
        subject: Any
        """The object that the run is about. Declare its type: ``subject: Order``.

        None if the run was started without one, or if it no longer exists.
        """
    else:

        @cached_property
        def subject(self) -> Any:
            """The run's subject, loaded once per attempt."""
            return self.run.subject

        @cached_property
        def data(self) -> Any:
            """Typed data only; other data is a dict in the instance."""
            return self._stored.read()

    attempt: int
    "The number of the current attempt: 1, 2, …; 0 outside a step."
    created: bool
    "Whether this call started the run; False if a run with its key already existed."
    runs = _Runs()
    "The runs of this class, as a queryset."
    schedules = _SchedulesOfClass()
    "The schedules that start runs of this class automatically."

    if TYPE_CHECKING:

        def __init__(self, /, **data: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _declare(cls)

    @classmethod
    def start(
        cls, data: D | Mapping[str, Any] | None = None, /, **options: Unpack[StartOptions]
    ) -> Self:
        """Create a run with this data; it starts when the surrounding transaction commits.

        - ``key``: if a run with this key exists (with ``unique="unfinished"``: an unfinished one),
          it is returned instead, and ``created`` is false.
        - ``delay``: how long to wait before the first steps, a timedelta or milliseconds.
        - ``priority``: the order under limits; as in Dramatiq, the lowest number goes first.
        - ``deadline``: a timedelta from now or an aware datetime, by which the run must be
          finished, or it fails. None: no deadline, even if Meta has one.
        - ``subject``: the object that the run is about, of any model: see `subject`.

        Raises `InvalidData` if the data is not valid, and `SequenceError` for an invalid option.
        """
        sequence: Self = _startable(cls).start(cls, data, **options)
        return sequence

    @classmethod
    def start_many(cls, iterable: Iterable[Any], /) -> list[Self]:
        """Start a run per item: an item is data, or data paired with a dict of `start` options."""
        return _startable(cls).start_many(cls, iterable)

    @classmethod
    async def astart(
        cls, data: D | Mapping[str, Any] | None = None, /, **options: Unpack[StartOptions]
    ) -> Self:
        """`start`, for asynchronous code."""
        return await sync_to_async(cls.start)(data, **options)

    @classmethod
    async def astart_many(cls, iterable: Iterable[Any], /) -> list[Self]:
        """`start_many`, for asynchronous code."""
        return await sync_to_async(cls.start_many)(iterable)

    @classmethod
    def _bind(
        cls,
        *,
        data: Any,
        run: SequenceRun | None = None,
        created: bool = False,
        attempt: int = 0,
        context: StepContext | None = None,
    ) -> Self:
        sequence = object.__new__(cls)
        if run is not None:
            sequence.run = run
        if cls._codec is None:
            sequence.data = data
        else:
            sequence._hold(data)
        sequence.created, sequence.attempt, sequence._context = created, attempt, context
        return sequence

    def _hold(self, data: Any) -> None:
        """Set the data: a dict of JSON, or the `Stored` value of typed data."""
        if self._codec is None:
            self.data = data
        else:
            is_read = isinstance(data, typed.Stored)
            self._stored = data if is_read else typed.Stored(self._codec, serialization.dumps(data))
            vars(self).pop("data", None)

    @cached_property
    def run(self) -> SequenceRun:
        """The row of this run, a `SequenceRun`."""
        return self._in_step("run").run

    @cached_property
    def step_run(self) -> StepRun:
        """The row of the step that is running, a `StepRun`."""
        return self._in_step("step_run").step_run

    def once(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call once for all attempts of this step (a durable call), and return its result.

        ``name`` identifies the call, and must be unique within an attempt. The first time, the
        function is called, and its result is stored as JSON in a commit of its own. Later attempts
        and repeats of the step get that result. Only for steps with ``atomic=False``. If the call
        raises, or the process dies before the result is stored, the next attempt calls it again:
        pass `idempotency_key` and the name to other systems. Raises `Abort` if it is misused.
        """
        call = partial(function, *args, **kwargs)
        result: T = self._in_step("once").once(name, call)
        return result

    async def asubject(self) -> Any:
        """`subject`, for steps that are ``async def``."""
        return await sync_to_async(lambda: self.subject)()

    @property
    def idempotency_key(self) -> str:
        """A key to pass to other systems: the same for all retries of this step."""
        return self._in_step("idempotency_key").idempotency_key

    @overload
    def result(self, step: Step[R]) -> R: ...
    @overload
    def result(self, step: Step[R], default: T) -> R | T: ...
    @overload
    def result(self, step: str, default: Any = None) -> Any: ...
    def result(self, step: Step[Any] | str, default: Any = None) -> Any:
        """What an earlier step returned, as JSON; for an event, the payload that was delivered.

        Returns ``default`` if there is no result: the step has not succeeded (yet), was skipped,
        timed out, or is a fan-out (see `results`). A step that returned None has the result None.
        """
        return self._in_step("result").result(name_of(step), default)

    @overload
    def results(self, step: Step[R]) -> Iterator[R]: ...
    @overload
    def results(self, step: str) -> Iterator[Any]: ...
    def results(self, step: Step[Any] | str) -> Iterator[Any]:
        """What the items of an earlier step returned, in order; only those that succeeded."""
        return self._in_step("results").results(name_of(step))

    def outcomes(self, step: Step[Any] | str) -> Iterator[Outcome]:
        """All items of an earlier step, in order, each with its status and result."""
        return self._in_step("outcomes").outcomes(name_of(step))

    @overload
    async def aresult(self, step: Step[R]) -> R: ...
    @overload
    async def aresult(self, step: Step[R], default: T) -> R | T: ...
    @overload
    async def aresult(self, step: str, default: Any = None) -> Any: ...
    async def aresult(self, step: Step[Any] | str, default: Any = None) -> Any:
        """`result`, for steps that are ``async def``."""
        return await sync_to_async(lambda: self.result(step, default))()

    @overload
    def aresults(self, step: Step[R]) -> AsyncIterator[R]: ...
    @overload
    def aresults(self, step: str) -> AsyncIterator[Any]: ...
    async def aresults(self, step: Step[Any] | str) -> AsyncIterator[Any]:
        """`results`, for steps that are ``async def``."""
        for result in await sync_to_async(lambda: list(self.results(step)))():
            yield result

    async def aoutcomes(self, step: Step[Any] | str) -> AsyncIterator[Outcome]:
        """`outcomes`, for steps that are ``async def``."""
        for outcome in await sync_to_async(lambda: list(self.outcomes(step)))():
            yield outcome

    async def aonce(
        self,
        name: str,
        function: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """`once`, for a coroutine function in a step that is ``async def``."""
        result: T = await self._in_step("aonce").aonce(name, partial(function, *args, **kwargs))
        return result

    def progress(
        self, done: float | None = None, total: float | None = None, text: str = ""
    ) -> None:
        """Report how far this step has got. Cheap, and visible while the step is running."""
        self._in_step("progress").progress(done, total, text)

    @property
    def failure(self) -> Failure | None:
        """Why the run failed, for undos and `on_failure`; None if it was cancelled."""
        return self._in_step("failure").failure()

    @property
    def cancelled(self) -> bool:
        """Whether this step's work is no longer needed.

        True if somebody has cancelled, finished or restarted the run, if its deadline has passed,
        or if another worker has taken over the step. Cheap: the worker's heartbeat checks it, so it
        is at most one heartbeat (3 s) late. In tests without a worker, it queries the database.
        """
        return self._in_step("cancelled").cancelled

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` if this step was `cancelled`: the attempt ends and is not counted."""
        self._in_step("raise_if_cancelled").raise_if_cancelled()

    @property
    def final_status(self) -> Literal["", "succeeded", "failed", "cancelled"]:
        """How the run ends, in undos, `on_failure`, `on_cancel` and `on_end`; before that: ""."""
        final_status: Any = self._in_step("final_status").final_status
        return final_status  # type: ignore[no-any-return]

    def _in_step(self, name: str) -> StepContext:
        if self._context is None:
            raise _outside_a_step(self, name)
        return self._context

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} {self.run}>"


RESERVED = frozenset(
    name for name in (*vars(Sequence), *Sequence.__annotations__) if not name.startswith("_")
)


class Composed(Protocol):
    """What `chain` and `group` return: anything from which a definition can be made."""

    def definition(self) -> dict[str, Any]: ...


def define_abstract(cls: type[Sequence[Any]]) -> Definition:
    """Build a definition that is stored with a run and not registered."""
    meta = MetaOptions.of(cls)
    steps = {name: step.with_defaults(meta.step_defaults) for name, step in _collect(cls).items()}
    return _define(cls, meta, steps, app_label=meta.app_label or "-")


def _declare(cls: type[Sequence[Any]]) -> None:
    """Validate the class, and register its definition unless it is abstract."""
    cls._definition = None
    check_body(cls)
    cls._codec = typed.codec_of(cls, Sequence)
    meta = MetaOptions.of(cls)
    if not meta.abstract:
        check_closing_names(cls)
    steps = {name: step.with_defaults(meta.step_defaults) for name, step in _collect(cls).items()}
    check_names(cls, [*vars(cls), *steps], RESERVED)
    for name, step in steps.items():
        raise_first(f"{path_of(cls)}.{name}", step_problems(name, step, steps))
    check_step_aliases(cls, steps)
    check_references(cls, steps)
    check_limits(cls, meta.limits, steps)
    if meta.abstract:
        return
    # everything but the label is known now
    _define(cls, meta, steps, app_label=meta.app_label or "-")
    if meta.app_label:
        _register(cls, meta, steps)
    else:
        registry.when_apps_are_loaded(partial(_register, cls, meta, steps))


def _register(cls: type[Sequence[Any]], meta: MetaOptions, steps: dict[str, Step[Any]]) -> None:
    app_label = meta.app_label or _containing_app_label(cls)
    cls._definition = _define(cls, meta, steps, app_label=app_label)
    try:
        registry.register(cls)
    except BaseException:
        cls._definition = None  # an invalid class starts nothing
        raise


def _define(
    cls: type[Sequence[Any]], meta: MetaOptions, steps: dict[str, Step[Any]], *, app_label: str
) -> Definition:
    label = f"{app_label}.{cls.__name__}"
    if len(label) > MAX_LABEL:
        raise invalid(cls, f"its label is longer than {MAX_LABEL} characters", "Shorten its name.")
    return Definition(
        label=label,
        app_label=app_label,
        cls=cls,
        steps=steps,
        plan=Plan.build(
            label, _nodes(cls, label, steps), where=path_of(cls), cancel=meta.cancel or ""
        ),
        aliases=meta.aliases,
        handoff=meta.handoff,
        retention=meta.retention,
        retention_failed=meta.retention_failed,
        deadline=meta.deadline,
        redact=(*meta.redact, *(cls._codec.secrets if cls._codec else ())),
        on_subject_delete=meta.on_subject_delete,
        limits=meta.limits,
        when_full=meta.when_full,
        defaults=meta.defaults,
        schedules=meta.schedules,
        declared_name=meta.verbose_name,
        step_defaults=meta.step_defaults,
    )


def _containing_app_label(cls: type[Sequence[Any]]) -> str:
    if config := apps.get_containing_app_config(cls.__module__):
        return config.label
    raise invalid(
        cls,
        f"its module {cls.__module__} does not belong to an installed app",
        "Add its app to INSTALLED_APPS, or set app_label in its Meta.",
    )


def _collect(cls: type) -> dict[str, Step[Any]]:
    """Collect the steps of a class: those of its bases in their order, then its own."""
    names = [name for base in cls.__bases__ for name in _collect(base)]
    names += [name for name, value in vars(cls).items() if isinstance(value, Step)]
    attributes = {name: inspect.getattr_static(cls, name) for name in dict.fromkeys(names)}
    for name, value in attributes.items():
        if value is not None and not isinstance(value, Step):
            raise invalid(
                cls,
                "it overrides a step with something that is not a step",
                "Decorate it with @step, or set it to None to remove the step.",
                step=name,
            )
    return {name: value for name, value in attributes.items() if value is not None}


def _nodes(cls: type[Sequence[Any]], label: str, steps: dict[str, Step[Any]]) -> Iterator[Node]:
    open_ends: list[str] = []
    handlers = {name_of(step.on_error) for step in steps.values() if step.on_error is not None}
    for name, step in steps.items():
        off_path = step.traits.is_compensation or (name in handlers and step.after is None)
        after: list[str] = []
        if not off_path:
            after = open_ends if step.after is None else list(map(name_of, flat(step.after)))
            open_ends = [*(end for end in open_ends if end not in after), name]
        yield Node(
            name=name,
            after=tuple(after),
            actor=f"{label}.{name}",
            queue=step.options.get("queue_name", "default"),
            kind=step.kind,
            any_of=tuple(tuple(map(name_of, group)) for group in step.any_of),
            undoes=name_of(step.undoes) if isinstance(step, Undo) else "",
            attempted=isinstance(step, Undo) and _undoes_attempted(step, steps),
            on_error="" if step.on_error is None else name_of(step.on_error),
            off_path=off_path,
        )


def _undoes_attempted(undo: Undo, steps: dict[str, Step[Any]]) -> bool:
    if undo.attempted is None:
        return not steps[name_of(undo.undoes)].atomic
    return undo.attempted


def _startable(cls: type[Sequence[Any]]) -> Engine:
    engine = get_engine()
    if cls._definition is None:
        raise SequenceError(f"{path_of(cls)} is abstract. Start a subclass that is not abstract.")
    return engine


def _outside_a_step(sequence: Sequence[Any], name: str) -> SequenceError:
    return SequenceError(f"{path_of(type(sequence))}.{name} is only available inside a step.")


def get(label: str) -> type[Sequence[Any]]:
    """Return the sequence with this label (``"shop.Order"``) or alias. Raises `UnknownSequence`."""
    return registry.get(label)
