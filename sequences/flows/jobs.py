"""Jobs: functions registered under a name, which definitions as data can run."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, ParamSpec, TypeVar

from ..data.secret_types import secret_patterns
from ..definitions import registry
from ..definitions.limits import Limit
from ..definitions.option_types import Limits
from ..definitions.steps import Finish, Repeat, as_tuple, no_attribute
from ..definitions.validation import are_limits, innermost
from ..exceptions import InvalidData, InvalidDefinition, UnknownJob, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

#: The parameter that receives the sequence itself.
SEQUENCE = "sequence"

_by_name: dict[str, Job[Any, Any]] = {}


@dataclass(frozen=True, eq=False)
class Use:
    """A job as a step of a composition, with its arguments and options. See `Job.with_`."""

    job: str
    keys: Mapping[str, Any] = field(default_factory=dict)

    is_step_elsewhere: ClassVar[bool] = True  # in a definition, not in a class


@dataclass(frozen=True, eq=False)
class Job(Generic[P, R]):
    """A registered function. Calling it calls the function; definitions refer to it by ``name``."""

    name: str
    function: Callable[P, R]
    limits: tuple[Limit, ...] = ()

    is_step_elsewhere: ClassVar[bool] = True  # in a definition, not in a class

    if not TYPE_CHECKING:  # so that type checkers do not accept every attribute

        def __getattr__(self, name: str) -> NoReturn:
            hint = "Start it as part of a definition: start_definition(chain(job), data)."
            raise no_attribute("A job", name, hint)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def with_(
        self,
        args: Mapping[str, Any] | None = None,
        *,
        delay: timedelta | int | str | None = None,
        **keys: Any,
    ) -> Use:
        """Use this job in a `chain` or `group`, with literal ``args`` for some of its parameters.

        ``delay`` is a timedelta, milliseconds, or a string such as ``"15 min"``. ``keys`` are the
        keys of a step in a definition (``inputs``, ``when``, ``each``, …), Dramatiq's options, and
        ``name``, the name of the step.
        """
        own = {"args": args, "delay": delay}
        # For keys, None is a value: max_retries=None means without limit.
        own = {name: value for name, value in own.items() if value is not None}
        return Use(self.name, own | keys)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its parameters by name, without `sequence` and ``**kwargs``."""
        parameters = inspect.signature(self.function).parameters
        return {
            name: parameter
            for name, parameter in parameters.items()
            if name != SEQUENCE and parameter.kind is not parameter.VAR_KEYWORD
        }

    @cached_property
    def takes_sequence(self) -> bool:
        """Whether it has a parameter named `sequence`."""
        return SEQUENCE in inspect.signature(self.function).parameters

    @cached_property
    def takes_any(self) -> bool:
        """Whether it takes arbitrary keyword arguments."""
        parameters = inspect.signature(self.function).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    def perform(
        self,
        sequence: Any,
        explicit: Mapping[str, Any],
        missing: Mapping[str, str] = types.MappingProxyType({}),
    ) -> Any:
        """Call it with ``explicit`` arguments, and take the rest from `data`.

        ``missing`` are parameters whose value was to come from elsewhere, but does not exist: their
        defaults apply. Raises `InvalidData`. Returns JSON if the return value is annotated.
        """
        arguments = dict(self._arguments(sequence.data, explicit, missing))
        if self.takes_any:
            arguments |= {name: explicit[name] for name in explicit.keys() - arguments.keys()}
        if self.takes_sequence:
            arguments[SEQUENCE] = sequence
        if self._has_secret_result:  # said before the function has done anything
            raise InvalidData(
                path=f"The result of job {self.name!r}",
                problem="has a secret type, so only asterisks would be stored",
                hint="Return a str, and hide the step's result with redact.",
            )
        function: Any = self.function
        returned = function(**arguments)
        if isinstance(returned, Coroutine):
            return self._awaited(returned)
        return self._result(returned)

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._result(await coroutine)

    def _arguments(
        self, data: Mapping[str, Any], explicit: Mapping[str, Any], missing: Mapping[str, str]
    ) -> Iterator[tuple[str, Any]]:
        for name, parameter in self.parameters.items():
            if name in explicit:
                yield name, self._checked(name, explicit[name])
            elif name in data and name not in missing:
                yield name, self._checked(name, data[name])
            elif parameter.default is parameter.empty:
                raise self._missing(name, missing.get(name))

    def _missing(self, name: str, source: str | None) -> InvalidData:
        if source is None:
            problem = "has no value and no default"
            hint = f"Put {name!r} into data, or pass it with args or inputs."
        else:
            problem = f"has no value: {source} does not exist"
            hint = "Fix its inputs or the step that they read, or give the parameter a default."
        return InvalidData(path=self._path(name), problem=problem, hint=hint)

    def _checked(self, name: str, value: Any) -> Any:
        annotations = self._annotations
        if name not in annotations:
            return value
        hint = f"Fix data[{name!r}], or the value passed by args or inputs."
        return _validated(annotations[name], value, self._path(name), hint)

    @cached_property
    def _has_secret_result(self) -> bool:
        return bool(secret_patterns(self._annotations.get("return")))

    def _result(self, value: Any) -> Any:
        if "return" not in self._annotations or isinstance(value, Repeat | Finish):
            return value
        annotation = self._annotations["return"]
        path = f"The result of job {self.name!r}"
        checked = _validated(annotation, value, path, "Fix the function or its annotation.")
        adapter = _adapter(annotation)
        return checked if adapter is None else adapter.dump_python(checked, mode="json")

    def _path(self, name: str) -> str:
        return f"Parameter {name!r} of job {self.name!r}"

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        # Not at registration: names in the annotations may be defined below the function.
        try:
            return typing.get_type_hints(inspect.unwrap(self.function), include_extras=True)
        except NameError as error:
            problem = f"its annotations cannot be resolved: {error}"
            hint = "Use only names that its module defines at run time."
            raise InvalidDefinition(
                where=f"job {self.name!r}", problem=problem, hint=hint
            ) from None


def job(name: str, /, *, limits: Limits = ()) -> Callable[[Callable[P, R]], Job[P, R]]:
    """Register a function under a name: ``@job("fetch_data")``.

    Every step that runs it needs a place in its ``limits``; a definition can name them for other
    steps, too.

    When a definition runs the job, each parameter gets the value of the same name in ``data``,
    unless the definition's ``inputs`` or ``args`` set it. Pydantic validates values by the
    annotations; if pydantic is not installed, jobs cannot have annotations. A parameter
    ``sequence`` gets the sequence itself. Raises `InvalidDefinition`.
    """
    if not isinstance(name, str) or not name:
        raise InvalidDefinition(
            where=f"job {_path(name) if callable(name) else repr(name)}",
            problem="it has no name",
            hint='Write @job("fetch_data") with a name of your choice.',
        )
    return lambda function: _register(name, function, _checked(name, limits))


def get(name: str) -> Job[Any, Any]:
    """Return the job with that name. Raises `UnknownJob`."""
    if job_of_name := _by_name.get(name):
        return job_of_name
    raise UnknownJob(job=name, hint=did_you_mean(name, sorted(_by_name)))


def find(name: str) -> Job[Any, Any] | None:
    """The job with that name, if there is one."""
    return _by_name.get(name)


def names() -> list[str]:
    """The names of all jobs."""
    return sorted(_by_name)


@contextmanager
def isolated() -> Iterator[None]:
    """Forget everything that is registered inside the block."""
    saved = dict(_by_name)
    try:
        yield
    finally:
        _by_name.clear()
        _by_name.update(saved)


def _checked(name: str, limits: Limits) -> tuple[Limit, ...]:
    if not are_limits(limits):
        hint = "It must be a list of Limit objects with different names."
        raise InvalidDefinition(where=f"job {name!r}", problem=f"limits is {limits!r}", hint=hint)
    return as_tuple(limits)


def _register(name: str, function: Callable[P, R], limits: tuple[Limit, ...]) -> Job[P, R]:
    for problem, hint in _problems(name, function):
        raise InvalidDefinition(where=f"job {name!r}", problem=problem, hint=hint)
    registry.note_limits(limits)
    registered = _by_name[name] = Job(name, function, limits)
    return registered


def _problems(name: str, function: Any) -> Iterator[tuple[str, str]]:
    if not inspect.isroutine(function):
        yield f"{function!r} is not a function", "Decorate a function."
    code = innermost(function)
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        yield "it is a generator function", "Return a list instead of yielding."
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            yield (
                f"its parameter {parameter} cannot be passed by name",
                "Make it a keyword parameter.",
            )
    if _is_annotated(function) and find_spec("pydantic") is None:
        problem = (
            "its parameters are annotated, but pydantic, which validates them, is not installed"
        )
        yield problem, "Install django-dramatiq-sequences[pydantic], or remove the annotations."
    other = _by_name.get(name)
    # A reloaded module registers its functions again, and the new ones replace the old ones.
    if other is not None and _path(other.function) != _path(function):
        problem = f"{_path(function)} and {_path(other.function)} have the same name"
        yield problem, "Rename one of them."


def _is_annotated(function: Any) -> bool:
    """Whether there is something to validate; a `sequence` parameter does not count."""
    annotated = getattr(inspect.unwrap(function), "__annotations__", {})
    return bool(annotated.keys() - {SEQUENCE})


def _path(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _validated(annotation: Any, value: Any, path: str, hint: str) -> Any:
    adapter = _adapter(annotation)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value)
    except ValueError as error:
        problem = f"is not a valid {_name(annotation)}: {_first_of(error)}"
        raise InvalidData(path=path, problem=problem, hint=hint) from None


def _first_of(error: Any) -> str:
    """The place and the message, without the value, which may be a secret."""
    detail = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, detail["loc"]))
    return f"{place}: {detail['msg']}" if place else str(detail["msg"])


def _adapter(annotation: Any) -> Any:
    """Pydantic's adapter, or None if this annotation needs no validation."""
    try:
        return _built_adapter(annotation)
    except TypeError:  # not hashable
        return _build_adapter(annotation)


def _build_adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    # A class that pydantic does not know is checked with isinstance.
    for config in (None, ConfigDict(arbitrary_types_allowed=True)):
        with suppress(PydanticUserError):
            return TypeAdapter(annotation, config=config)
    return None


_built_adapter = cache(_build_adapter)


def _name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type) and not typing.get_args(annotation)
        else str(annotation)
    )
