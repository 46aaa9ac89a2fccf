"""Problems that a sequence's class can have, with a hint for each."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from asgiref.sync import AsyncToSync
from django.forms import BaseForm
from django.utils.functional import Promise

from ..conf import ON_SUBJECT_DELETE
from ..exceptions import InvalidDefinition, did_you_mean
from .kinds import CLOSING_KINDS
from .limits import WHEN_FULL, Limit, conflict
from .schedules import Timetable, declaration_problems
from .steps import (
    FAN_OUT_OPTIONS,
    MAX_WAIT,
    STEP_OPTIONS,
    AnyOf,
    Decorator,
    Step,
    Subsequence,
    Undo,
    as_tuple,
    code_of,
    duration_problem,
    event,
    flat,
    is_callable,
    is_called_with_arguments,
    is_task,
    name_of,
    on_cancel,
    on_end,
    on_failure,
    step,
    subsequence,
)

Problem = tuple[str, str]  # a problem and its hint

#: The kinds off the main path, in messages.
CLOSING = "an undo, on_failure, on_cancel or on_end"

META_STEP_OPTIONS = frozenset({"atomic", "delay", "retries", "when"})
META_OWN = frozenset(  # not inherited
    {"abstract", "aliases", "app_label", "schedule", "schedules", "verbose_name"}
)
REFUSED_OPTIONS: dict[str, Problem] = {
    "broker": ("all steps use the project's broker", "Leave it out."),
    "actor_name": ("it is derived from the sequence's label and the step's name", "Leave it out."),
    "actor_class": ("this package provides the actors of steps", "Leave it out."),
    "on_success": (
        "Dramatiq loses the callback's message if the broker is down when the step ends",
        "Declare a step after this one instead.",
    ),
    "on_failure": (
        "Dramatiq loses the callback's message if the broker is down when the step ends",
        "Handle the error in the step itself.",
    ),
}
REFUSED_PIPE: Problem = ("the plan decides which step comes next", "Declare the next step instead.")
MAX_STEP_NAME, MAX_LABEL = 100, 200  # the columns' lengths
QUEUE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")  # Dramatiq's own rule


def check_body(cls: type) -> None:
    if not isinstance(vars(cls).get("Meta", object), type):
        raise invalid(
            cls, "its Meta is not a class", "Write class Meta: and put the options in it."
        )
    for name, value in vars(cls).items():
        if isinstance(value, type) and _looks_like_meta(name, value):
            problem = f"its class {name} has no effect"
            raise invalid(cls, problem, "Put the options in `class Meta`, with a capital M.")
    for name in ("__init__", "__new__"):
        if name in vars(cls):
            problem = (
                f"it defines {name}, but instances of a sequence are created by the engine, not "
                "by your code"
            )
            raise invalid(cls, problem, "Put what the steps need into data.")
    for owner in (cls, *_mixins(cls)):
        for name, value in vars(owner).items():
            for problem, hint in _lookalike_problems(value):
                raise invalid(owner, problem, hint, step=name)


def _looks_like_meta(name: str, value: type) -> bool:
    if name.lower() == "config":  # as pydantic has it; it may be the project's own, too
        return not META_OPTIONS.isdisjoint(vars(value))
    return name.lower() == "meta" and name != "Meta"


def _mixins(cls: type) -> Iterator[type]:
    """Plain classes among its bases, which have not been checked yet."""
    return (base for base in cls.__mro__[1:] if not hasattr(base, "_definition"))


def _lookalike_problems(value: object) -> Iterator[Problem]:
    """Find attributes of a class that look like steps but would not run."""
    if isinstance(value, staticmethod | classmethod | property) and hidden_step(value):
        yield f"a step cannot be a {type(value).__name__}", "Make it a plain method."
    elif hidden_step(value):
        yield "another decorator hides the step below it", "Move @step above all other decorators."
    elif isinstance(value, Decorator):
        yield "the decorator has no method below it", "Put it above a method."
    elif any(value is declare for declare in _DECLARING):
        name = getattr(value, "__name__", "step")
        yield f"{name}() is assigned without being called", f"Call it: {name}(…)."
    elif is_called_with_arguments(value) or getattr(type(value), "is_step_elsewhere", False):
        hint = "Make it a step with step(…), or move it out of the class."
        yield f"{value!r:.60} is not a step", hint


_DECLARING = (step, event, subsequence, on_failure, on_cancel, on_end)


def hidden_step(value: object) -> Step[Any] | None:
    """The step wrapped by another decorator, if there is one."""
    for _ in range(_MOST_DECORATORS):
        inner = next(_inside(value), None)
        if inner is None or isinstance(inner, Step):
            return inner
        value = inner
    return None


_MOST_DECORATORS = 20


def _inside(value: object) -> Iterator[Any]:
    for name in ("__wrapped__", "__func__", "fget", "func"):
        if (inner := getattr(value, name, None)) is not None:
            yield inner
    # Without functools.wraps. A step that has a name is already declared, and only used here.
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            if isinstance(cell.cell_contents, Step) and not cell.cell_contents.name:
                yield cell.cell_contents


def check_names(cls: type, names: Iterable[str], reserved: frozenset[str]) -> None:
    for name in names:
        if name in reserved:
            problem = "this name is reserved: every sequence has an attribute with this name"
            raise invalid(cls, problem, "Rename it.", step=name)


def check_closing_names(cls: type) -> None:
    """Refuse what is called on_failure, on_cancel or on_end but is not declared as one."""
    for name in sorted(CLOSING_KINDS):
        value = inspect.getattr_static(cls, name, None)
        if isinstance(value, Step):
            if not value.traits.is_compensation:
                problem = f"it is {value.traits.noun}, despite its name"
                raise invalid(cls, problem, f"Declare it with @{name}, or rename it.", step=name)
        elif callable(value) or isinstance(value, classmethod):
            problem = "it has a handler's name but no decorator, so nothing would ever call it"
            raise invalid(cls, problem, f"Put @{name} above it, or rename it.", step=name)


def check_step_aliases(cls: type, steps: dict[str, Step[Any]]) -> None:
    names = set(steps)
    for name, declaration in steps.items():
        for alias in declaration.aliases:
            if alias in names:
                problem = f"its alias {alias!r} is also the name or an alias of another step"
                raise invalid(cls, problem, "Remove the alias.", step=name)
            names.add(alias)


def check_references(cls: type, steps: dict[str, Step[Any]]) -> None:
    """Check the steps that steps name: the undone step, and the error handler."""
    undone: set[str] = set()
    for name, declaration in steps.items():
        for role, other in _references(declaration):
            if other not in steps:
                hint = did_you_mean(other, steps)
                raise invalid(
                    cls, f"{role} {other!r}, which is not a step of this sequence", hint, step=name
                )
            if other == name or steps[other].traits.is_compensation:
                hint = f"Name another step that is not {CLOSING}."
                raise invalid(cls, f"{role} {other!r}", hint, step=name)
        if isinstance(declaration, Undo):
            if name_of(declaration.undoes) in undone:
                problem = f"it undoes {name_of(declaration.undoes)!r}, which already has an undo"
                raise invalid(cls, problem, "Combine them into one.", step=name)
            undone.add(name_of(declaration.undoes))
    for kind in sorted(CLOSING_KINDS):
        names = [name for name, declaration in steps.items() if declaration.kind == kind]
        if len(names) > 1:
            problem = f"it is a second @{kind}; the first is {names[0]!r}"
            raise invalid(cls, problem, "Combine them into one.", step=names[1])


def check_limits(cls: type, limits: tuple[Limit, ...], steps: dict[str, Step[Any]]) -> None:
    """Check that each name stands for one limit, and that no step waits for its own run's limit."""
    of_run = {limit.name for limit in limits}
    for name, declaration in steps.items():
        for limit in declaration.limits:
            if limit.name in of_run:
                problem = (
                    f"its limit {limit.name!r} is also a limit of the whole run, so the step would "
                    "wait for its own run"
                )
                raise invalid(cls, problem, "Remove it here or in Meta.", step=name)
    declared = [limit for step in steps.values() for limit in step.limits]
    if twice := conflict([*limits, *declared]):
        hint = "Declare the limit once and reuse it, or give each one a name of its own."
        raise invalid(cls, f"it has two limits named {twice!r} with different numbers", hint)


def _references(step: Step[Any]) -> Iterator[tuple[str, str]]:
    if isinstance(step, Undo):
        yield "it undoes", name_of(step.undoes)
    if step.on_error is not None:
        yield "its on_error is", name_of(step.on_error)


def meta_problems(options: dict[str, Any]) -> Iterator[Problem]:
    yield from _rule_problems(_META_RULES, options)
    yield from declaration_problems(options)
    for name in sorted(STEP_OPTIONS - META_STEP_OPTIONS - META_OWN - {"limits"}):
        if name in options:
            yield f"{name} can only be set on a step, not for all steps", "Set it on the step."
    yield from _option_problems(options)


def default_problems(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems with ``SEQUENCES["DEFAULTS"]``."""
    for name in sorted((STEP_OPTIONS | META_OPTIONS) - PROJECT_OPTIONS):
        if name in options:
            hint = "Set it on the sequence or the step."
            yield f"{name} cannot be set for all steps of the project", hint
    yield from _rule_problems(_META_RULES, options)
    yield from _option_problems(options)


def step_problems(name: str, step: Step[Any], steps: Mapping[str, Step[Any]]) -> Iterator[Problem]:
    yield from _name_problems(name, step)
    yield from _function_problems(step)
    yield from _misplaced_problems(step)
    yield from _argument_problems(step, steps)
    yield from _after_problems(step.after or ())
    yield from _rule_problems(_STEP_RULES, step.declared)
    yield from _signature_problems(step, steps)
    yield from _fan_out_problems(step)
    yield from _limit_problems(step)
    if step.retries and step.options.get("retry_when") is not None:
        yield "retries and retry_when both decide when the step is retried", "Keep one of them."
    yield from _option_problems(step.options)


def _name_problems(name: str, step: Step[Any]) -> Iterator[Problem]:
    if step.name != name:
        yield (
            f"it is the same step object as {step.name!r}",
            "Declare a separate step with step(…).",
        )
    if name.startswith("_"):
        yield "step names must not start with an underscore", "Rename it."
    if len(name) > MAX_STEP_NAME:
        yield f"its name is longer than {MAX_STEP_NAME} characters", "Shorten it."


def _function_problems(step: Step[Any]) -> Iterator[Problem]:
    function: Any = step.function
    if isinstance(function, Step) or hidden_step(function):
        yield "@step is applied twice", "Use @step only once."
    elif isinstance(function, staticmethod | classmethod | property):
        yield f"a step cannot be a {type(function).__name__}", "Make it a plain method."
    elif not callable(function) and not is_task(function):
        yield f"{function!r} is not callable", "Pass a function, a method or a class to @step."
    elif inspect.isclass(function) and not callable(getattr(function, "perform", None)):
        yield f"{function.__qualname__} has no perform method", "Add perform(self, sequence)."
    else:
        yield from _generator_problems(_code(function))


def _code(function: Any) -> Any:
    """What is finally called: the function, if there is one."""
    if inspect.isclass(function) and not hasattr(function, "perform"):
        return function  # an option, which is itself called
    if is_called_with_arguments(function) or inspect.isclass(function):
        return innermost(code_of(function))
    if isinstance(function, AsyncToSync):
        return type(function).__call__  # it runs the coroutine and returns its result
    if inspect.isroutine(function) or isinstance(function, partial):
        return innermost(function)
    return innermost(type(function).__call__)


def innermost(function: Any) -> Any:
    """The function inside wrappers and partials, which only forward the call."""
    while (inner := getattr(function, "__wrapped__", None) or _of_partial(function)) is not None:
        function = inner
    return function


def _of_partial(function: Any) -> Any:
    return function.func if isinstance(function, partial) else None


def _kind_problems(code: Any) -> Iterator[Problem]:
    if inspect.iscoroutinefunction(code):
        yield "it is a coroutine function", "Remove async."
    yield from _generator_problems(code)


def _generator_problems(code: Any) -> Iterator[Problem]:
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        yield "it is a generator function", "Return a value instead of yielding."


def _argument_problems(step: Step[Any], steps: Mapping[str, Step[Any]]) -> Iterator[Problem]:
    if is_called_with_arguments(step.function):
        yield from _task_problems(step.function)
        yield from _callable_problems(step)
    elif step.args is not None or step.kwargs is not None:
        yield (
            "args and kwargs are only for steps that run a Dramatiq actor or a Django task",
            "Read what you need from self.data instead.",
        )
    elif isinstance(step, Subsequence):
        if not _is_sequence(step.sequence):
            yield f"{step.sequence!r} is not a sequence", "Pass a Sequence class or its label."
    elif isinstance(step, Undo) and step.takes_item(steps):
        if not inspect.isclass(step.function) and not _accepts(step.function, None, None, None):
            yield (
                "it cannot be called with an item and its result",
                "Take the parameters self, item and result.",
            )
    elif step.each is not None:
        if not inspect.isclass(step.function) and not _accepts(step.function, None, None):
            yield (
                "it cannot be called with the sequence and an item",
                "Take the parameters self and item.",
            )
    elif not inspect.isclass(step.function) and not _accepts(step.function, None):
        yield "it cannot be called with the sequence alone", "Take only self, and read self.data."


def _callable_problems(step: Step[Any]) -> Iterator[Problem]:
    """Whether code that knows nothing of sequences gets the arguments that it needs."""
    kind = "task" if is_task(step.function) else "actor"
    if step.args or step.kwargs:
        return
    if step.each is None and not _accepts(code_of(step.function)):
        yield (
            f"its {kind} requires arguments",
            "Pass args= or kwargs=, functions of the sequence that return the arguments.",
        )
    if step.each is not None and not _accepts(code_of(step.function), None):
        yield (
            f"its {kind} cannot be called with an item alone",
            "Pass args= or kwargs=, functions of the sequence and the item.",
        )


def _task_problems(task: Any) -> Iterator[Problem]:
    if not is_task(task):
        return
    if task.takes_context:
        yield (
            "its task takes a context, which only Django's task backends provide",
            "Leave out takes_context, or move the part that needs no context into a function and "
            "call that from a step.",
        )
    if task.run_after is not None:
        yield "its task has run_after", "Leave it out, and give the step a delay."


def _fan_out_problems(step: Step[Any]) -> Iterator[Problem]:
    if step.traits.is_compensation:
        for name in sorted((FAN_OUT_OPTIONS | {"after", "on_error"}) & step.declared.keys()):
            if step.declared[name] is not None:
                yield f"{name} cannot be set on {CLOSING}", "Leave it out."
    for name in sorted(FAN_OUT_OPTIONS - {"each"}):
        if step.each is None and step.declared.get(name) not in (None, False):
            yield f"{name} needs each", f"Add each=, or leave out {name}."


def _misplaced_problems(step: Step[Any]) -> Iterator[Problem]:
    """Options of other kinds of steps, which would do nothing here."""
    if not (step.traits.takes_delivery or step.traits.has_children):
        return
    for name in sorted(STEP_OPTIONS - _HAVE_PROBLEMS - own_options(step)):
        if step.declared.get(name) is not None:
            hint = _INSTEAD.get((step.kind, name), "Leave it out.")
            yield f"{step.traits.noun} cannot have {name}", hint


#: Others say more about these; ``retries`` may come from the defaults, which are for all kinds.
_HAVE_PROBLEMS = frozenset({"args", "kwargs", "limits", "retries"})
_IN_META = (
    "To limit how many children run at once, set limits in the Meta of the sequence that it starts."
)
_INSTEAD = {("subsequence", "concurrency"): _IN_META}


def _limit_problems(step: Step[Any]) -> Iterator[Problem]:
    if step.limits and step.traits.takes_delivery:
        problem = "an event cannot have limits, because nothing runs while it waits"
        yield problem, "Limit the step after it."
    if step.limits and step.traits.has_children:
        hint = "Set limits in the Meta of the sequence that it starts."
        yield "a subsequence cannot have limits, because it only waits for other runs", hint


def _is_sequence(value: object) -> bool:
    return (isinstance(value, type) and hasattr(value, "_definition")) or (
        isinstance(value, str) and value.count(".") == 1
    )


def _is_each(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    if value is None or not is_callable(value):
        return value is None
    code = _code(value)
    return not (inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code))


def _signature_problems(step: Step[Any], steps: Mapping[str, Step[Any]]) -> Iterator[Problem]:
    """Options whose functions cannot be called with their arguments, judging by the signatures."""
    items: tuple[str, ...] = () if step.each is None else ("the item",)
    if isinstance(step, Undo) and step.takes_item(steps):
        items = ("the item", "its result")
    for name in sorted(_FUNCTIONS & step.declared.keys()):
        arguments: tuple[str, ...] = ("the sequence", *(items if name in _OF_AN_ITEM else ()))
        if name == "retry_when":
            arguments = ("the number of retries", "the exception")
        function = step.declared[name]
        if callable(function) and not _accepts(function, *arguments):
            hint = f"It must take {' and '.join(arguments)}."
            yield f"{name} is a function with the wrong arguments", hint


#: Options that are functions; in a fan-out, some of them also take the item.
_OF_AN_ITEM = frozenset({"args", "data", "kwargs", "subject"})
_FUNCTIONS = _OF_AN_ITEM | {"delay", "each", "retry_when", "when"}


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and value > 0)


def _is_allowance(value: object) -> bool:
    if isinstance(value, bool):
        return True
    return (type(value) is int and value >= 0) or (isinstance(value, float) and 0 <= value <= 1)


def _accepts(function: Any, *args: object) -> bool:
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return False
    except (ValueError, NameError):  # a builtin, or annotations that only type checkers can read
        return True
    return True


def _after_problems(after: tuple[object, ...]) -> Iterator[Problem]:
    groups = [other for other in after if isinstance(other, AnyOf)]
    for other in flat(after):
        if isinstance(other, Step) and not other.name:
            yield (
                f"after contains {other!r}, which no class declares",
                "Declare it above this step.",
            )
        elif not isinstance(other, Step | str):
            yield f"after contains {other!r}, which is not a step", "Pass steps or their names."
    names = Counter(name_of(other) for other in flat(after) if isinstance(other, Step | str))
    for group in groups:
        if len(group.steps) < 2:
            yield "any_of needs at least two steps", "Name one step without any_of."
        if twice := [name for other in group.steps if names[name := name_of(other)] > 1]:
            hint = "Name it once, either inside any_of or beside it."
            yield f"after names {twice[0]!r} more than once", hint


def _option_problems(options: Mapping[str, Any]) -> Iterator[Problem]:
    for name in options:
        if reason := refusal(name):
            yield f"the option {name} is not supported: {reason[0]}", reason[1]


def refusal(name: str) -> Problem | None:
    """Why a step does not support this option of Dramatiq, if that is so."""
    return REFUSED_OPTIONS.get(name) or (REFUSED_PIPE if name.startswith("pipe_") else None)


def own_options(step: Step[Any]) -> frozenset[str]:
    """The options of such a step that this package defines."""
    return _OPTIONS_OF_KIND.get(step.kind, STEP_OPTIONS)


_OF_ALL = frozenset({"aliases", "delay", "label", "options", "when"})
_OPTIONS_OF_KIND = {
    "event": _OF_ALL | {"after", "choices", "form", "on_error", "on_timeout", "timeout"},
    "subsequence": _OF_ALL
    | {"after", "allow_failed", "data", "each", "on_error", "retries", "subject"},
    "undo": _OF_ALL | {"atomic", "attempted", "limits", "retries"},
    **dict.fromkeys(CLOSING_KINDS, _OF_ALL | {"atomic", "limits", "retries"}),
}


def _are_choices(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, Mapping) and all(isinstance(name, str) and name for name in value)


def _is_delay(value: object) -> bool:
    return value is None or _is_function(value) or not duration_problem(value)


def _is_function(value: object) -> bool:
    return is_callable(value) and not any(_kind_problems(_code(value)))


def _is_text(value: object) -> bool:
    return isinstance(value, str | Promise)


def _are_names(value: object) -> bool:
    return all(isinstance(name, str) and name for name in as_tuple(value))


def are_limits(value: object) -> bool:
    """Whether this is a list of limits with different names."""
    limits = as_tuple(value)
    names = {limit.name for limit in limits if isinstance(limit, Limit)}
    return len(names) == len(limits)


def _are_labels(value: object) -> bool:
    return _are_names(value) and all(name.count(".") == 1 for name in as_tuple(value))


def _is_retention(value: object) -> bool:
    return value is None or (isinstance(value, timedelta) and value >= timedelta())


def _is_deadline(value: object) -> bool:
    return value is None or (isinstance(value, timedelta) and timedelta() < value <= MAX_WAIT)


def _is_data(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_duration(value: object) -> bool:
    return not duration_problem(value)


def _is_limit(value: object) -> bool:
    """Whether it is a finite time; shorter than a millisecond, it would mean no limit."""
    if value is None:
        return True
    return _is_duration(value) and value >= (1 if isinstance(value, int) else _MILLISECOND)  # type: ignore[operator]


_MILLISECOND = timedelta(milliseconds=1)


def _are_retries(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) and _is_retry_count(count)
        for kind, count in value.items()
    )


def _is_retry_count(value: object) -> bool:
    return value is None or (type(value) is int and value >= 0)


def _are_exceptions(value: object) -> bool:
    classes = value if isinstance(value, tuple) else (value,)
    return value is None or all(
        isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes
    )


DURATION = "a timedelta or a whole number of milliseconds, at most 1,000 years"
LIMIT = f"{DURATION}; or None for no limit"
Rules = dict[str, tuple[Callable[[Any], bool], str]]
_STEP_RULES: Rules = {
    "atomic": (lambda value: isinstance(value, bool), "True or False"),
    "delay": (
        _is_delay,
        "a timedelta, a whole number of milliseconds, or a function of the sequence",
    ),
    "when": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "args": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "kwargs": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "aliases": (_are_names, "a list of names"),
    "label": (_is_text, "a string"),
    "limits": (are_limits, "a list of Limit objects with different names"),
    "options": (_is_data, "a dict with strings as keys"),
    "queue_name": (
        lambda value: isinstance(value, str) and bool(QUEUE_NAME.fullmatch(value)),
        "a name of letters, digits, underscores, hyphens and dots",
    ),
    "priority": (lambda value: type(value) is int, "an int"),
    "max_retries": (
        _is_retry_count,
        "a non-negative int, or None for no limit",
    ),
    "retry_when": (
        lambda value: value is None or _is_function(value),
        "a function of the number of retries and the exception",
    ),
    "retries": (_are_retries, "a dict from exception classes to numbers of retries"),
    "throws": (_are_exceptions, "an exception class, or a tuple of exception classes"),
    "max_age": (_is_limit, LIMIT),
    "time_limit": (lambda value: value == math.inf or _is_limit(value), LIMIT),
    "max_backoff": (_is_duration, DURATION),
    "min_backoff": (_is_duration, DURATION),
    "each": (_is_each, "a key of data, or a function of the sequence that returns items"),
    "concurrency": (_is_count, "a positive int"),
    "batch": (_is_count, "a positive int"),
    "allow_failed": (_is_allowance, "True, a number of items, or a fraction of them such as 0.01"),
    "data": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "subject": (lambda value: value is None or _is_function(value), "a function of the sequence"),
    "on_error": (
        lambda value: value is None or isinstance(value, Step | str),
        "a step or its name",
    ),
    "attempted": (lambda value: isinstance(value, bool), "True or False"),
    "timeout": (
        lambda value: value is None or _is_duration(value),
        DURATION,
    ),
    "on_timeout": (lambda value: value in ("fail", "continue"), '"fail" or "continue"'),
    "choices": (
        lambda value: value is None or _are_choices(value),
        'a dict of payloads, such as {"Approve": {"approved": True}}',
    ),
    "form": (
        lambda value: value is None or (isinstance(value, type) and issubclass(value, BaseForm)),
        "a Django form class",
    ),
}
_META_RULES: Rules = {
    name: rule for name, rule in _STEP_RULES.items() if name not in STEP_OPTIONS - META_STEP_OPTIONS
} | {
    "abstract": (lambda value: isinstance(value, bool), "True or False"),
    "app_label": (lambda value: isinstance(value, str) and value.isidentifier(), "an app label"),
    "aliases": (_are_labels, 'a list of labels, such as "shop.ContactForm"'),
    "verbose_name": (_is_text, "a string"),
    "handoff": (lambda value: value in ("broker", "direct"), '"broker" or "direct"'),
    "schedule": (lambda value: isinstance(value, Timetable | None), "cron(…) or every(…)"),
    "schedules": (
        lambda value: isinstance(value, Mapping | None),
        "a dict from names to cron(…) or every(…)",
    ),
    "retention": (_is_retention, "a timedelta, or None to keep runs forever"),
    "retention_failed": (_is_retention, "a timedelta, or None to keep runs forever"),
    "deadline": (_is_deadline, "a positive timedelta of at most 1,000 years, or None"),
    "cancel": (lambda value: value in ("undo", None), '"undo" or None'),
    "on_subject_delete": (
        lambda value: value is None or value in ON_SUBJECT_DELETE,
        '"keep", "cancel", "erase", or None to follow the setting ON_SUBJECT_DELETE',
    ),
    "redact": (_are_names, "a list of names"),
    "limits": (are_limits, "a list of Limit objects with different names"),
    "when_full": (lambda value: value in WHEN_FULL, '"wait", "skip" or "cancel_oldest"'),
    "defaults": (_is_data, "a dict with strings as keys"),
}
_NOT_OF_META = {"attempted", "choices", "data", "form", "on_timeout", "subject", "timeout"}
#: The options of Meta that this package defines.
META_OPTIONS = frozenset(_META_RULES) - _NOT_OF_META
_OF_DRAMATIQ = frozenset(_STEP_RULES) - STEP_OPTIONS - _NOT_OF_META
#: The options that a project can set for all of its steps.
PROJECT_OPTIONS = _OF_DRAMATIQ | {"atomic", "handoff", "retries"}


def _rule_problems(rules: Rules, options: Mapping[str, Any]) -> Iterator[Problem]:
    for name, (is_right, expected) in rules.items():
        if name in options and not is_right(options[name]):
            yield f"{name} is {options[name]!r}", f"It must be {expected}."


def raise_first(where: str, problems: Iterator[Problem]) -> None:
    for problem, hint in problems:
        raise InvalidDefinition(where=where, problem=problem, hint=hint)


def invalid(cls: type, problem: str, hint: str, *, step: str = "") -> InvalidDefinition:
    where = f"{path_of(cls)}.{step}" if step else path_of(cls)
    return InvalidDefinition(where=where, problem=problem, hint=hint)


def path_of(cls: type) -> str:
    return vars(cls).get("_file") or f"{cls.__module__}.{cls.__qualname__}"
