"""Sequences defined by data: declared ones, and those that are stored with their run.

Nothing in a definition is imported or evaluated: it names jobs, keys of `data` and steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, Unpack

import dramatiq
from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder

from .. import conf
from ..data import serialization
from ..definitions.definition import Definition
from ..definitions.option_types import StartOptions
from ..definitions.plan import Node, Plan
from ..definitions.registry import INLINE_LABEL, find
from ..definitions.registry import all as every_class
from ..definitions.steps import Step, Subsequence
from ..definitions.steps import step as declare
from ..definitions.validation import path_of, raise_first
from ..exceptions import Abort, InvalidData, InvalidDefinition, did_you_mean
from ..sequence import Composed, Sequence, SequenceType, define_abstract
from .parser import CLASS_KEYS, CLASS_NAME, Parsed, Parser

#: Options that a definition stored with its run cannot have.
NOT_INLINE = {
    "priority": (
        "it has a priority, but Dramatiq sets priorities per actor, not per message",
        "Leave it out, or give the step a queue_name.",
    ),
    "on_retry_exhausted": (
        "it has on_retry_exhausted, which could name any actor",
        "Add on_failure with a job to the definition instead.",
    ),
}

Data = Mapping[str, Any] | Composed

S = TypeVar("S", bound=Sequence[Any])


def define(definition: Data, /, *, name: str | None = None, base: type[S] | None = None) -> type[S]:
    """Declare a sequence as data: a mapping whose steps name registered jobs, or a `chain`.

    ``name`` is its label (``"shop.Import"``), if the mapping has none; ``base`` is the class that
    it inherits from. It is registered and bound like any class. Raises `InvalidDefinition`.
    """
    module = sys._getframe(1).f_globals["__name__"]
    return build(base or Sequence, definition, name=name, module=module)


def build(
    cls: type[Sequence[Any]], definition: Data, *, name: str | None, module: str, file: str = ""
) -> type[Any]:
    """See `define`; ``file`` is the file of the definition, for error messages."""
    where = file or module
    mapping = _mapping_of(definition, where)
    app_label, class_name = _label(name or mapping.get("name"), where)
    where = file or f"{module}.{class_name}"
    if cls._codec is not None and not cls._codec.is_dict:
        problem = f"{path_of(cls)} has data of the type {cls._codec.name}, but jobs read a dict"
        raise InvalidDefinition(where=where, problem=problem, hint="Use a TypedDict.")
    mapping = _normalised(mapping, where)
    parsed = Parser(where).parse(mapping)
    if app_label:
        parsed.meta["app_label"] = app_label
    return _class(cls, class_name, parsed, module=module, where=where, file=file)


# Definitions that are stored with their run


class Flow(Sequence):
    """The class of all runs that store their own definition.

    Its label stands for all of them, and its actor runs all of their steps.
    """

    class Meta:
        app_label = "job_sequences"
        verbose_name = "flow"

    @classmethod
    def _definition_for(cls, label: str, plan: Plan) -> Definition | None:
        if plan.definition is None:
            return cls._definition
        if "definition" not in plan.memo:
            plan.memo["definition"] = _inline(plan.definition, label, label, strict=False)
        definition: Definition = plan.memo["definition"]
        return definition

    @declare
    def job(self) -> None:
        """Stands for every step."""
        raise Abort("Start a flow with sequences.start_definition(definition, data).")


ACTOR = f"{INLINE_LABEL}.job"
MAX_NAME = 150


def start_definition(
    definition: Data,
    data: Mapping[str, Any] | None = None,
    /,
    *,
    name: str = "flow",
    **options: Unpack[StartOptions],
) -> Sequence[Any]:
    """Start a run that stores its own definition: a mapping, a `chain` or a `group`.

    Every worker that has the jobs can run it. ``name`` is shown to people, and is the scope of
    ``key``; the other options are those of `Sequence.start`. Put whatever differs from run to run
    into ``data``, because each distinct definition is stored once.

    Raises `InvalidDefinition` and `InvalidData`.
    """
    where = f"start_definition, {name!r}"
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        hint = f"Use a string of 1 to {MAX_NAME} characters."
        raise InvalidDefinition(where="start_definition", problem=f"name is {name!r}", hint=hint)
    serialization.normalise(name, path="name")
    mapping = _normalised(_mapping_of(definition, where), where)
    for refused in CLASS_KEYS:
        if refused in mapping:
            problem = f"it has {refused}, which only declared definitions can have"
            hint = "Leave it out, or declare the definition with sequences.define."
            raise InvalidDefinition(where=where, problem=problem, hint=hint)
    built = _inline(mapping, f"{INLINE_LABEL}:{name}", where, strict=True)
    _check_inline(built, where)
    cls: type[Sequence[Any]] = built.cls
    return cls.start(data, **options)


def plan_of(definition: Data, where: str) -> Plan:
    """The plan of a definition that was not started; ``where`` names it in errors."""
    mapping = _normalised(_mapping_of(definition, where), where)
    steps = {key: value for key, value in mapping.items() if key not in CLASS_KEYS}
    return _inline(steps, str(mapping.get("name") or where), where, strict=True).plan


async def astart_definition(
    definition: Data,
    data: Mapping[str, Any] | None = None,
    /,
    *,
    name: str = "flow",
    **options: Unpack[StartOptions],
) -> Sequence[Any]:
    """`start_definition`, for asynchronous code."""
    start = sync_to_async(start_definition)
    return await start(definition, data, name=name, **options)


def _inline(mapping: Mapping[str, Any], label: str, where: str, *, strict: bool) -> Definition:
    parsed = Parser(where, strict=strict).parse(mapping)
    parsed.meta |= {"app_label": "job_sequences", "abstract": True}
    name = label.removeprefix("job_sequences.")
    cls = _class(Sequence, name, parsed, module=__name__, where=where, file=where)
    definition = define_abstract(cls)
    steps = definition.steps
    nodes = tuple(_inline_node(node, steps[node.name]) for node in definition.plan.nodes)
    plan = Plan(label, nodes, definition=mapping, cancel=definition.plan.cancel)
    cls._definition = replace(definition, plan=plan)
    return cls._definition


def _inline_node(node: Node, step: Step[Any]) -> Node:
    """The options go with the messages of the step, because the actor has none of its own."""
    ours = ("queue_name", "max_age", "retry_when", "throws")
    options = {name: value for name, value in step.options.items() if name not in ours}
    return replace(node, actor=ACTOR, options=options)


def _check_inline(definition: Definition, where: str) -> None:
    """Check for options that the shared actor cannot apply, and for names that do not exist."""
    others = [cls._definition for cls in every_class() if cls._definition is not None]
    labels = [other.label for other in others]
    declared = dramatiq.get_broker().get_declared_queues()
    queues = {"default", *declared, *(node.queue for other in others for node in other.plan.nodes)}
    for node in definition.plan.nodes:
        problems = _problems(node, definition.steps[node.name], sorted(queues), labels)
        raise_first(f"{where}: step {node.name!r}", problems)


def _problems(
    node: Node, step: Step[Any], queues: list[str], labels: list[str]
) -> Iterator[tuple[str, str]]:
    if isinstance(step, Subsequence) and find(step.sequence) is None:
        yield f"no sequence is registered as {step.sequence!r}", did_you_mean(step.sequence, labels)
    if node.queue not in queues:
        problem = f"no worker of this project consumes the queue {node.queue!r}"
        yield problem, did_you_mean(node.queue, queues)
    yield from (NOT_INLINE[name] for name in NOT_INLINE.keys() & node.options.keys())


# The class


def _mapping_of(definition: Data, where: str) -> dict[str, Any]:
    if isinstance(definition, Mapping):
        return dict(definition)
    if callable(getattr(definition, "definition", None)):
        return definition.definition()
    problem = f"a definition must be a mapping; this is of type {type(definition).__name__}"
    hint = "Pass a mapping, or the result of chain() or group()."
    raise InvalidDefinition(where=where, problem=problem, hint=hint)


def _normalised(mapping: dict[str, Any], where: str) -> dict[str, Any]:
    """As JSON, with its steps in a list: databases do not keep the order of keys."""
    try:
        mapping, _ = serialization.normalise(
            mapping, encoder=DjangoJSONEncoder, path="definition",
            max_bytes=conf.settings.max_data_bytes,
        )  # fmt: skip
    except InvalidData as error:
        problem = f"{error.path} {error.problem}"
        raise InvalidDefinition(where=where, problem=problem, hint=error.hint) from None
    if isinstance(steps := mapping.get("steps"), dict):
        mapping["steps"] = [_listed(name, step, where) for name, step in steps.items()]
    result: dict[str, Any] = mapping
    return result


def _listed(name: str, step: Any, where: str) -> dict[str, Any]:
    if not isinstance(step, dict):
        hint = "Use a mapping, such as {job: fetch_data}."
        place = f"{where}: step {name!r}"
        raise InvalidDefinition(where=place, problem=f"the step is {step!r:.60}", hint=hint)
    if "name" in step:
        problem = "a step in a mapping cannot have a name key: its key in the mapping is its name"
        place = f"{where}: step {name!r}"
        raise InvalidDefinition(where=place, problem=problem, hint="Leave it out.")
    return {"name": name, **step}


def _label(name: Any, where: str) -> tuple[str | None, str]:
    match = CLASS_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        problem = "it has no name" if name is None else f"its name is {name!r}"
        hint = 'Add name: with an app label and a name, such as "shop.Import".'
        raise InvalidDefinition(where=where, problem=problem, hint=hint)
    return match[1], match[2]


def _class(
    base: type[Sequence[Any]], name: str, parsed: Parsed, *, module: str, where: str, file: str
) -> type[Sequence[Any]]:
    body = {
        "__module__": module,
        "__qualname__": name,
        "_file": file or None,
        **({} if parsed.inputs is None else {"_inputs": parsed.inputs}),
        "Meta": type("Meta", (), parsed.meta),
        **parsed.steps,
    }
    try:
        cls: Any = SequenceType(name, (base,), body)
    except InvalidDefinition as error:
        raise _placed(error, file or f"{module}.{name}", where) from None
    sequence_class: type[Sequence[Any]] = cls
    return sequence_class


def _placed(error: InvalidDefinition, path: str, where: str) -> InvalidDefinition:
    """The same error, with the step named as in the file."""
    if not error.where.startswith(path):
        return error
    step = error.where[len(path) :].removeprefix(".")
    place = f"{where}: step {step!r}" if step and step != "Meta" else where
    return InvalidDefinition(where=place, problem=error.problem, hint=error.hint)
