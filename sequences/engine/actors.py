"""The actors: each step is a Dramatiq actor of its own, declared when Django is ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
from dramatiq import middleware, results
from dramatiq.middleware import Middleware, SkipMessage

from .. import conf
from ..definitions import registry
from ..definitions.definition import Definition
from ..definitions.steps import Step
from ..definitions.validation import META_OPTIONS, PROJECT_OPTIONS, own_options, path_of, refusal
from ..exceptions import InvalidDefinition, did_you_mean
from ..sequence import Sequence
from . import crowds, handoff
from .recovery import FATAL

logger = logging.getLogger("sequences")

#: The largest possible id of a row.
MAX_ID = 2**63 - 1

_problems: list[tuple[str, str]] = []


def bind_all() -> None:
    """Declare the actors of every registered sequence."""
    for cls in registry.all():
        _bind_or_note(cls)


def problems() -> list[tuple[str, str]]:
    """Problems of sequences that only the broker can find, each with a hint; for the system
    check."""
    return list(_problems)


def _bind_or_note(cls: type[Sequence[Any]]) -> None:
    try:
        bind(cls)
    except InvalidDefinition as error:
        _problems.append((f"{error.where}: {error.problem}.", error.hint))


def bind(cls: type[Sequence[Any]]) -> None:
    """Declare the actors of one sequence; raises `InvalidDefinition` for an unknown option."""
    definition = cls._definition
    assert definition is not None
    broker = dramatiq.get_broker()
    for step in definition.steps.values():
        _check_options(definition, step, broker)
    actors = dict(broker.actors)
    try:
        for step in definition.steps.values():
            for name in _names(definition, step):
                _declare(name, definition, step, broker)
    except BaseException:
        broker.actors.clear()
        broker.actors.update(actors)
        raise


def _names(definition: Definition, step: Step[Any]) -> Iterator[str]:
    """The name of the step's actor, and those in the plans of earlier releases."""
    for label in (definition.label, *definition.aliases):
        for name in (step.name, *step.aliases):
            yield f"{label}.{name}"


def _declare(name: str, definition: Definition, step: Step[Any], broker: dramatiq.Broker) -> None:
    options = definition.options(step)
    queue_name = options.pop("queue_name", "default")
    priority = options.pop("priority", 0)
    # The age of the row counts, by the database's clock: see `executor`.
    options["max_age"] = None
    if step.retries:
        # the middleware's own option, which would take precedence over `retries`
        options["retry_when"] = None
    options["throws"] = (*_as_tuple(options.get("throws")), *FATAL)
    broker.actors.pop(name, None)
    dramatiq.Actor(
        _performer(definition, step),
        broker=broker,
        actor_name=name,
        queue_name=queue_name,
        priority=priority,
        options=options,
    )


def _performer(definition: Definition, step: Step[Any]) -> Callable[..., None]:
    is_direct, is_crowd = definition.handoff == "direct", crowds.is_for(step)

    def perform(*args: Any, **kwargs: Any) -> None:
        if is_crowd:
            crowds.perform(_step_run_in(args), step, is_direct)
        else:
            handoff.perform(_step_run_in(args), is_direct)

    # Dramatiq names the actor's logger after it.
    perform.__module__ = definition.cls.__module__
    return perform


def _step_run_in(args: tuple[Any, ...]) -> int:
    """The id in a message's arguments. Raises `SkipMessage` if they are not a step's."""
    if len(args) == 2 and type(args[1]) is int and 0 <= args[1] <= MAX_ID:
        return args[1]
    logger.warning("Ignoring a message with malformed arguments: %.200r", args)
    raise SkipMessage("The arguments of the message are malformed.")


def _as_tuple(throws: Any) -> tuple[type[BaseException], ...]:
    if throws is None:
        return ()
    return throws if isinstance(throws, tuple) else (throws,)


def _check_options(definition: Definition, step: Step[Any], broker: dramatiq.Broker) -> None:
    of_broker = broker.actor_options | {"queue_name", "priority", "max_age"}
    for name in definition.options(step):
        if name in of_broker:
            continue
        place, owner, ours = _declared_in(definition, step, name)
        options = {option for option in of_broker if not refusal(option)} | ours
        raise InvalidDefinition(
            where=place,
            problem=f"{name!r} is not a valid option of {owner}, nor of an actor of this broker",
            hint=_hint_for(name, sorted(options)),
        )


def _hint_for(name: str, options: list[str]) -> str:
    owner = _middleware_with(name)
    if owner is results.Results:
        return (
            "It belongs to 'dramatiq.results.Results', which this broker does not have. "
            "django_dramatiq adds it if DRAMATIQ_RESULT_BACKEND is set."
        )
    if owner is not None:
        path = f"dramatiq.middleware.{owner.__name__}"
        return (
            f"It belongs to {path!r}, which this broker does not have. Add it to "
            "DRAMATIQ_BROKER['MIDDLEWARE']."
        )
    return (
        f"{did_you_mean(name, options)} If it belongs to a middleware, add that middleware to "
        "DRAMATIQ_BROKER['MIDDLEWARE']."
    )


def _middleware_with(option: str) -> type[Middleware] | None:
    """The middleware of Dramatiq's own that has this option for actors."""
    exported = (*vars(middleware).values(), results.Results)
    classes = [cls for cls in exported if isinstance(cls, type) and issubclass(cls, Middleware)]
    # Not initialised, because some need a backend; the names of the options do not.
    return next((cls for cls in classes if option in cls.__new__(cls).actor_options), None)


def _declared_in(
    definition: Definition, step: Step[Any], name: str
) -> tuple[str, str, frozenset[str]]:
    """The place where an option was set, the name of that place, and its other valid options."""
    path = path_of(definition.cls)
    if name not in definition.step_defaults:
        return f"{path}.{step.name}", "a step", own_options(step)
    if name in conf.settings.defaults:
        return 'SEQUENCES["DEFAULTS"]', "a project", PROJECT_OPTIONS
    return f"{path}.Meta", "Meta", META_OPTIONS
