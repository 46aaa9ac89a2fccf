"""Definitions that are data: a mapping becomes a sequence whose steps run registered jobs.

Nothing in a definition is imported or evaluated: it names jobs, keys of `data` and steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

import dramatiq
from django.apps import apps
from django.core.serializers.json import DjangoJSONEncoder
from django.utils.dateparse import parse_duration

from . import conf, jobs
from . import data as json_data
from .definition import (
    Composed,
    Definition,
    Sequence,
    SequenceType,
    Unique,
    define,
    install_builder,
)
from .exceptions import Abort, InvalidData, InvalidDefinition, did_you_mean
from .plan import Node, Plan
from .registry import KEPT
from .registry import all as every_class
from .registry import definition_of as registered
from .steps import Event, Finish, OnFailure, Repeat, Step, Subsequence, Undo, event, subsequence
from .steps import step as declare
from .validation import path_of

#: What a definition may have, and what of it one that is kept with its run may not.
CLASS_KEYS = ("name", "handoff", "retention", "redact", "verbose_name", "aliases")
KEYS = (*CLASS_KEYS, "$schema", "steps", "outputs", "on_failure", "options", "defaults")

KINDS = ("job", "event", "subsequence")
CALL_KEYS = ("job", "inputs", "args")
EVENT_KEYS = ("timeout", "on_timeout")
#: What a step may have. Every other key is an option of Dramatiq's.
STEP_KEYS = (
    *KINDS, "after", "aliases", "allow_failed", "args", "atomic", "batch", "concurrency", "delay",
    "each", "inputs", "label", "on_error", "save", "undo", "when",
)  # fmt: skip
#: What is no use to steps of these kinds.
NOT_FOR = {
    "event": {"inputs", "args", "save", "undo"},
    "subsequence": {"save", "undo"},
}
#: Options of Dramatiq that are milliseconds.
DURATIONS = ("max_age", "max_backoff", "min_backoff", "time_limit")
NOT_DATA = {
    "throws": "it is a class, and a definition is data",
    "retry_when": "it is a function, and a definition is data",
}

#: Options that a definition cannot have that is kept with its run.
NOT_KEPT = {
    "priority": (
        "it has a priority, which Dramatiq has for each actor, not each message",
        "Leave it out, or give the step a queue_name.",
    ),
    "on_retry_exhausted": (
        "it has on_retry_exhausted, which could name any actor",
        "Give the definition on_failure, with a job.",
    ),
}

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
CLASS_NAME = re.compile(r"(?:([A-Za-z_]\w*)\.)?([A-Za-z_]\w*)")
MAX_STEPS = 500
MISSING = object()


Data = Mapping[str, Any] | Composed


def from_definition(
    cls: type[Sequence[Any]], definition: Data, *, name: str | None, module: str, file: str = ""
) -> type[Sequence[Any]]:
    """See `Sequence.from_definition`; ``file`` is where it stands, for the errors."""
    where = file or module
    given = _given(definition, where)
    app_label, class_name = _label(name or given.get("name"), where)
    where = file or f"{module}.{class_name}"
    if cls._codec is not None and not cls._codec.is_dict:
        problem = f"{path_of(cls)} has data of the type {cls._codec.name}, and jobs read a dict"
        raise InvalidDefinition(where=where, problem=problem, mend="Make it a TypedDict.")
    mapping = _normalised(given, where)
    parsed = _Parser(where).parse(mapping)
    if app_label:
        parsed.meta["app_label"] = app_label
    return _class(cls, class_name, parsed, module=module, where=where, file=file)


install_builder(from_definition)


# Definitions that are kept with their run


class Flow(Sequence):
    """What performs the steps of definitions that were given at their start.

    Its label stands for all of them, and its actor performs all of their steps.
    """

    class Meta:
        app_label = "job_sequences"
        verbose_name = "flow"

    @declare
    def job(self) -> None:
        """Stands for every step."""
        raise Abort("Start a flow with sequences.start_definition(definition, data).")


FLOW = KEPT
ACTOR = f"{FLOW}.job"
MAX_NAME = 150


def start_definition(
    definition: Data,
    data: Mapping[str, Any] | None = None,
    /,
    *,
    key: str | None = None,
    name: str = "flow",
    unique: Unique = "ever",
    delay: timedelta | int | None = None,
) -> Sequence[Any]:
    """Start a run of a definition that is kept with it: a mapping, a `chain` or a `group`.

    Every worker can perform it, whatever it has imported, if it has the jobs. ``name`` is what
    people read, and what ``key`` is unique for; the rest is as in `Sequence.start`. What differs
    from run to run belongs into ``data``: each new definition is stored once.

    Raises `InvalidDefinition` and `InvalidData`.
    """
    where = f"start_definition, {name!r}"
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        mend = f"Give a text of 1 to {MAX_NAME} characters."
        raise InvalidDefinition(where="start_definition", problem=f"name is {name!r}", mend=mend)
    mapping = _normalised(_given(definition, where), where)
    for refused in CLASS_KEYS:
        if refused in mapping:
            problem = f"it has {refused}, which is for a definition that is declared"
            mend = "Leave it out, or declare it with Sequence.from_definition."
            raise InvalidDefinition(where=where, problem=problem, mend=mend)
    built = _kept(mapping, f"{FLOW}:{name}", where, strict=True)
    _check_messages(built, where)
    return built.cls.start(data, key=key, unique=unique, delay=delay)


def definition_for(sequence: str, plan: Plan) -> Definition | None:
    """What a run of this sequence and plan follows: the class, or what is kept with the run."""
    if plan.definition is None:
        return registered(sequence)
    if "definition" not in plan.memo:
        plan.memo["definition"] = _kept(plan.definition, sequence, sequence, strict=False)
    found: Definition = plan.memo["definition"]
    return found


def _kept(mapping: Mapping[str, Any], label: str, where: str, *, strict: bool) -> Definition:
    parsed = _Parser(where, strict=strict).parse(mapping)
    parsed.meta |= {"app_label": "job_sequences", "abstract": True}
    name = label.removeprefix("job_sequences.")
    cls = _class(Sequence, name, parsed, module=__name__, where=where, file=where)
    found = define(cls)
    nodes = tuple(_kept_node(node, found.steps[node.name]) for node in found.plan.nodes)
    kept = replace(found, plan=Plan(label, nodes, definition=mapping))
    cls._definition = kept
    return kept


def _kept_node(node: Node, step: Step[Any]) -> Node:
    """Its options go with its messages: the actor has none of its own."""
    options = {name: value for name, value in step.options.items() if name != "queue_name"}
    return replace(node, actor=ACTOR, options=options)


def _check_messages(definition: Definition, where: str) -> None:
    """What their one actor cannot do for each of its messages."""
    declared = dramatiq.get_broker().get_declared_queues()
    queues = sorted({"default", *declared, *_queues_of_classes()})
    for node in definition.plan.nodes:
        place = f"{where}: step {node.name!r}"
        if node.queue not in queues:
            problem = f"no worker of this project consumes the queue {node.queue!r}"
            mend = did_you_mean(node.queue, queues)
            raise InvalidDefinition(where=place, problem=problem, mend=mend)
        for name in NOT_KEPT.keys() & node.options.keys():
            problem, mend = NOT_KEPT[name]
            raise InvalidDefinition(where=place, problem=problem, mend=mend)


def _queues_of_classes() -> Iterator[str]:
    for cls in every_class():
        if cls._definition is not None:
            yield from (node.queue for node in cls._definition.plan.nodes)


# From a mapping to steps


@dataclass
class Parsed:
    """What a class is made of."""

    steps: dict[str, Step[Any]]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Ref:
    """Where a value comes from: ``data.key``, ``steps.name.path``, ``item.path``."""

    text: str
    root: str
    path: tuple[str, ...]
    step: str = ""
    many: bool = False

    def read(self, sequence: Any, given: Mapping[str, Any]) -> Any:
        """The value, or MISSING."""
        value = self._root(sequence, given)
        for part in self.path:
            value = _part(value, part)
        return value

    def has_root(self, sequence: Any) -> bool:
        """Whether the step that it reads has a result at all."""
        return self._root(sequence, {}) is not MISSING

    def _root(self, sequence: Any, given: Mapping[str, Any]) -> Any:
        if self.root == "data":
            return sequence.data
        if self.root == "steps":
            if self.many:
                return list(sequence.results(self.step))
            return sequence.result(self.step, MISSING)
        return given.get(self.root, MISSING)


def _part(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, MISSING)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return MISSING


@dataclass(frozen=True)
class Arguments:
    """What a definition gives a step: literals, and values from elsewhere."""

    inputs: Mapping[str, Ref]
    args: Mapping[str, Any]

    def read(
        self, sequence: Any, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The values, and what was not there."""
        found = {name: ref.read(sequence, given) for name, ref in self.inputs.items()}
        values = {name: value for name, value in found.items() if value is not MISSING}
        missing = {name: self.inputs[name].text for name in found.keys() - values.keys()}
        return {**self.args, **values}, missing


@dataclass(frozen=True)
class Call:
    """The code of a step that runs a job."""

    job: str
    arguments: Arguments
    save: str | None = None

    def __call__(self, sequence: Any, *of_item: Any) -> Any:
        given = dict(zip(("item", "result"), of_item, strict=False))
        explicit, missing = self.arguments.read(sequence, given)
        job = jobs.get(self.job)
        implied = {name: value for name, value in given.items() if name in job.parameters}
        result = job.perform(sequence, implied | explicit, missing)
        if self.save is not None and not isinstance(result, Repeat | Finish):
            sequence.data[self.save] = result
        return result


@dataclass(frozen=True)
class ChildData:
    """The data of a subsequence's run."""

    arguments: Arguments

    def __call__(self, sequence: Any, *item: Any) -> dict[str, Any]:
        values, missing = self.arguments.read(sequence, dict(zip(("item",), item, strict=False)))
        for name, source in missing.items():
            problem = f"has no value: there is no {source}"
            path = f"data[{name!r}] of the subsequence"
            raise InvalidData(path=path, problem=problem, mend="Mend its inputs.")
        return values


@dataclass(frozen=True)
class Items:
    """The items of a fan-out."""

    ref: Ref

    def __call__(self, sequence: Any) -> Any:
        found = self.ref.read(sequence, {})
        if isinstance(found, list):
            return found
        problem = "is not there" if found is MISSING else f"is a {type(found).__name__}, not a list"
        mend = "Mend each, or put a list there in an earlier step."
        raise InvalidData(path=self.ref.text, problem=problem, mend=mend)


@dataclass(frozen=True)
class Conditions:
    """What ``when`` says: all of it must be so."""

    truths: tuple[tuple[Ref, bool], ...] = ()
    values: tuple[tuple[Ref, Any], ...] = ()

    def __call__(self, sequence: Any) -> bool:
        for ref, wanted in self.truths:
            found = ref.read(sequence, {})
            if (found is not MISSING and bool(found)) is not wanted:
                return False
        return all(json_data.same(ref.read(sequence, {}), value) for ref, value in self.values)


@dataclass(frozen=True)
class Outputs:
    """The code of the last step: it puts results into `data`."""

    refs: Mapping[str, Ref]

    def __call__(self, sequence: Any) -> None:
        for name, ref in self.refs.items():
            value = ref.read(sequence, {})
            if value is MISSING and (ref.root != "steps" or ref.has_root(sequence)):
                mend = "Mend the outputs, or what the step returns."
                raise InvalidData(path=ref.text, problem="is not there", mend=mend)
            sequence.data[name] = None if value is MISSING else value


class _Parser:
    """One definition; its errors name the place and the step."""

    def __init__(self, where: str, *, strict: bool = True) -> None:
        self.where, self.strict = where, strict
        self.specs: dict[str, dict[str, Any]] = {}
        self.above: dict[str, set[str]] = {}
        self.step = ""

    def parse(self, mapping: Mapping[str, Any]) -> Parsed:
        self._known(mapping, KEYS, "key of a definition")
        self.specs = dict(self._specs(mapping.get("steps")))
        self._check_kinds()
        order = self._order()
        steps: dict[str, Step[Any]] = {}
        for name in order:
            self.step = name
            steps |= self._declared(self.step, self.specs[self.step])
        self.step = ""
        if "on_failure" in mapping:
            self.step = "on_failure"
            steps["on_failure"] = self._aside(mapping["on_failure"], OnFailure)
        if "outputs" in mapping:
            self.step = "outputs"
            steps["outputs"] = self._outputs(mapping["outputs"])
        self.step = ""
        return Parsed(steps, self._meta(mapping))

    def _specs(self, steps: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(steps, list):
            pairs = [(self._named(one), one) for one in steps]
        elif isinstance(steps, Mapping):
            pairs = list(steps.items())
        else:
            raise self._error("it has no steps", "Add steps: a mapping of names to steps.")
        if not pairs:
            raise self._error("its steps are empty", "Add a step.")
        if len(pairs) > MAX_STEPS:
            problem = f"it has {len(pairs)} steps, and {MAX_STEPS} at most fit"
            raise self._error(problem, "Use each, or subsequences.")
        seen: set[str] = set()
        for name, spec in pairs:
            self.step = name
            if not NAME.fullmatch(self.step):
                mend = "Use letters, digits, underscores and hyphens; begin with a letter."
                raise self._error("its name is not allowed", mend)
            if self.step in (*seen, "outputs", "on_failure"):
                raise self._error("this name is taken already", "Rename the step.")
            seen.add(self.step)
            self._mapping(spec, "the step")
            yield self.step, {key: value for key, value in spec.items() if key != "name"}
        self.step = ""

    def _named(self, spec: Any) -> str:
        self._mapping(spec, "a step")
        if not isinstance(spec.get("name"), str):
            raise self._error("a step of its list has no name", "Give each step a name.")
        return str(spec["name"])

    def _check_kinds(self) -> None:
        for name, spec in self.specs.items():
            self.step = name
            kinds = [kind for kind in KINDS if kind in spec]
            if len(kinds) != 1:
                problem = f"it has {' and '.join(kinds)}" if kinds else "it has nothing to do"
                raise self._error(problem, "Give it one of job, event and subsequence.")
            for key in sorted(NOT_FOR.get(kinds[0], set()) & spec.keys()):
                raise self._error(f"{key} is not for a step with {kinds[0]}", "Leave it out.")
            self._check_keys(spec, STEP_KEYS)
            if not isinstance(spec.get("on_error", ""), str | None):
                raise self._error(f"on_error is {spec['on_error']!r}", "Give the name of a step.")
        self.step = ""

    # the order

    def _order(self) -> list[str]:
        """Each step below what it waits for; as they are declared, where that is open."""
        needs = dict(self._needs())
        while needs:
            # What is placed has what is above it.
            ready = (name for name, wanted in needs.items() if wanted <= self.above.keys())
            name = next(ready, None)
            if name is None:
                raise self._circle(needs)
            reached = (self.above[other] | {other} for other in needs.pop(name))
            self.above[name] = set().union(*reached)
        return list(self.above)

    def _needs(self) -> Iterator[tuple[str, set[str]]]:
        beside = {spec.get("on_error") for spec in self.specs.values()}
        self.beside = {name for name in self.specs if name in beside and not self._after(name)[0]}
        main: list[str] = []
        for name in self.specs:
            self.step = name
            said, after = self._after(self.step)
            for other in after:
                if other not in self.specs:
                    problem = f"after names {other!r}, which is not a step of it"
                    raise self._error(problem, did_you_mean(other, self.specs))
            if self.step in self.beside:
                yield self.step, set()
                continue
            yield self.step, set(after) if said else set(main)
            main.append(self.step)
        self.step = ""

    def _after(self, name: str) -> tuple[bool, list[str]]:
        after = self.specs[name].get("after")
        if after is None:
            return False, []
        names = [after] if isinstance(after, str) else after
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            self.step = name
            raise self._error(f"after is {after!r}", "Give the name of a step, or a list of names.")
        return True, names

    def _circle(self, needs: dict[str, set[str]]) -> InvalidDefinition:
        name = next(iter(needs))
        way: list[str] = []
        while name not in way:
            way.append(name)
            name = next(other for other in needs[name] if other in needs)
        circle = [*way[way.index(name) :], name]
        self.step = name
        text = " → ".join(reversed(circle))
        return self._error(f"after goes in a circle: {text}", "Remove one of these.")

    # one step

    def _declared(self, name: str, spec: dict[str, Any]) -> Iterator[tuple[str, Step[Any]]]:
        options = self._step_options(spec)
        if "event" in spec:
            yield name, self._event(spec["event"], options)
        elif "subsequence" in spec:
            yield name, self._subsequence(spec, options)
        else:
            call = self._call(spec, each="each" in spec)
            found: Step[Any] = Step(call, options)
            yield name, found
            if "undo" in spec:
                yield self._undo(name, spec["undo"], found)

    def _step_options(self, spec: dict[str, Any]) -> dict[str, Any]:
        names = ("after", "aliases", "allow_failed", "atomic", "batch", "concurrency", "label")
        options = {name: spec[name] for name in (*names, "on_error") if spec.get(name) is not None}
        if spec.get("delay") is not None:
            options["delay"] = self._duration("delay", spec["delay"])
        if spec.get("when") is not None:
            options["when"] = self._when(spec["when"])
        if spec.get("each") is not None:
            options["each"] = Items(self._bare_ref("each", spec["each"]))
        return options | self._dramatiq_options(spec, STEP_KEYS)

    def _dramatiq_options(self, spec: Mapping[str, Any], ours: Iterable[str]) -> dict[str, Any]:
        options = {name: value for name, value in spec.items() if name not in set(ours)}
        for name, why in NOT_DATA.items():
            if name in options:
                mend = "Leave it out, or declare the sequence as a class."
                raise self._error(f"the option {name} is refused: {why}", mend)
        for name in DURATIONS:
            if options.get(name) is not None:
                options[name] = _milliseconds(self._duration(name, options[name]))
        retries = options.get("max_retries")
        if retries is not None and (type(retries) is not int or retries < 0):
            raise self._error(f"max_retries is {retries!r}", "Give a number, or null for no end.")
        return options

    def _event(self, spec: Any, options: dict[str, Any]) -> Event:
        spec = {} if spec is True or spec is None else spec
        self._mapping(spec, "event")
        self._known(spec, EVENT_KEYS, "key of event")
        if spec.get("timeout") is not None:
            options["timeout"] = self._duration("timeout", spec["timeout"])
        return event(**options, **{key: spec[key] for key in ("on_timeout",) if key in spec})

    def _subsequence(self, spec: dict[str, Any], options: dict[str, Any]) -> Subsequence:
        label = spec["subsequence"]
        if not isinstance(label, str) or not CLASS_NAME.fullmatch(label) or "." not in label:
            mend = 'Give the label of a sequence, such as "shop.ShipOrder".'
            raise self._error(f"subsequence is {label!r}", mend)
        arguments = self._arguments(spec, ("item",) if "each" in spec else ())
        given = arguments.inputs or arguments.args
        return subsequence(label, data=ChildData(arguments) if given else None, **options)

    def _undo(self, name: str, spec: Any, of: Step[Any]) -> tuple[str, Step[Any]]:
        options = {"undoes": of}
        if isinstance(spec, Mapping) and "attempted" in spec:
            options["attempted"] = spec["attempted"]
        found = self._aside(spec, Undo, options, given=("item", "result") if of.each else ())
        return f"undo_{name}", found

    def _aside(
        self,
        spec: Any,
        kind: Callable[[Any, Mapping[str, Any]], Step[Any]],
        options: Mapping[str, Any] | None = None,
        given: tuple[str, ...] = (),
    ) -> Step[Any]:
        spec = {"job": spec} if isinstance(spec, str) else spec
        self._mapping(spec, self.step if kind is OnFailure else "undo")
        keys = (*CALL_KEYS, "aliases", "label", *(("attempted",) if kind is Undo else ()))
        self._check_keys(spec, keys)
        own = {name: spec[name] for name in ("aliases", "label") if name in spec}
        call = self._call(spec, given=given, anywhere=True)
        declared = {**(options or {}), **own, **self._dramatiq_options(spec, keys)}
        return kind(call, declared)

    def _call(
        self,
        spec: Mapping[str, Any],
        *,
        each: bool = False,
        given: tuple[str, ...] = (),
        anywhere: bool = False,
    ) -> Call:
        name = spec.get("job")
        if not isinstance(name, str):
            raise self._error(f"job is {name!r}", "Give the name of a registered job.")
        save = spec.get("save")
        if save is not None and (not isinstance(save, str) or each):
            problem = "items cannot change data, and save would" if each else f"save is {save!r}"
            raise self._error(problem, "Give a key of data, and only to a step without each.")
        arguments = self._arguments(spec, ("item",) if each else given, anywhere=anywhere)
        if self.strict:
            self._check_job(name, arguments, each=each)
        return Call(name, arguments, save)

    def _check_job(self, name: str, arguments: Arguments, *, each: bool) -> None:
        job = jobs.find(name)
        if job is None:
            mend = "Jobs are registered when the module with their @job is imported."
            problem = f"there is no job {name!r}"
            raise self._error(problem, f"{did_you_mean(name, jobs.names())} {mend}")
        for parameter in {**arguments.inputs, **arguments.args}:
            if parameter not in job.parameters and not job.takes_any:
                problem = f"job {name!r} has no parameter {parameter!r}"
                raise self._error(problem, did_you_mean(parameter, job.parameters))
        reads = any(ref.root == "item" for ref in arguments.inputs.values())
        if each and not (reads or "item" in job.parameters or job.takes_sequence):
            mend = f"Add inputs, such as {next(iter(job.parameters), 'item')}: item."
            raise self._error(f"job {name!r} would not get the item", mend)

    def _arguments(
        self, spec: Mapping[str, Any], given: tuple[str, ...], *, anywhere: bool = False
    ) -> Arguments:
        inputs, args = spec.get("inputs") or {}, spec.get("args") or {}
        self._mapping(inputs, "inputs")
        self._mapping(args, "args")
        for name in inputs.keys() & args.keys():
            raise self._error(f"{name!r} is in inputs and in args", "Leave out one of them.")
        refs = {
            name: self._ref(f"inputs.{name}", text, given, anywhere=anywhere)
            for name, text in inputs.items()
        }
        return Arguments(refs, args)

    def _outputs(self, spec: Any) -> Step[Any]:
        self._mapping(spec, "outputs")
        refs = {name: self._ref(name, text, (), anywhere=True) for name, text in spec.items()}
        return Step(Outputs(refs), {})

    # values

    def _when(self, value: Any) -> Conditions:
        if isinstance(value, str):
            negated = value.startswith("not ")
            ref = self._bare_ref("when", value.removeprefix("not ").strip())
            return Conditions(truths=((ref, not negated),))
        if isinstance(value, Mapping) and value:
            pairs = [(self._bare_ref("when", text), wanted) for text, wanted in value.items()]
            return Conditions(values=tuple(pairs))
        mend = 'Give a key of data, "not key", or a mapping of keys to the values that they need.'
        raise self._error(f"when is {value!r}", mend)

    def _bare_ref(self, what: str, text: Any) -> Ref:
        """A reference, or a key of data by its name only."""
        if isinstance(text, str) and text and text.partition(".")[0] not in ("data", "steps"):
            text = f"data.{text}"
        return self._ref(what, text, ())

    def _ref(self, what: str, text: Any, given: tuple[str, ...], *, anywhere: bool = False) -> Ref:
        parts = text.split(".") if isinstance(text, str) else []
        roots = ("data", "steps", *given)
        if not parts or not all(parts) or parts[0] not in roots:
            forms = ["data.key", "steps.name", *given]
            mend = f"Write {' or '.join(forms)}, or give a literal value with args."
            raise self._error(f"{what} is {text!r}", mend)
        if parts[0] != "steps":
            return Ref(text, parts[0], tuple(parts[1:]))
        if len(parts) == 1:
            raise self._error(f"{what} is 'steps'", "Name the step: steps.name.")
        self._check_read(what, parts[1], anywhere=anywhere)
        many = self.specs[parts[1]].get("each") is not None
        return Ref(text, "steps", tuple(parts[2:]), parts[1], many)

    def _check_read(self, what: str, name: str, *, anywhere: bool) -> None:
        if name not in self.specs:
            problem = f"{what} reads {name!r}, which is not a step of it"
            raise self._error(problem, did_you_mean(name, self.specs))
        above = self.above.get(self.step, set())
        aside = self.step in self.beside or above & self.beside
        if not (anywhere or aside or name in above):
            problem = f"{what} reads step {name!r}, for which it does not wait"
            raise self._error(problem, f"Add {name!r} to its after.")

    def _duration(self, what: str, value: Any) -> timedelta:
        if (found := duration(value)) is not None:
            return found
        mend = 'Give milliseconds, or a text such as "15 min", "3 days" or "PT1H30M".'
        raise self._error(f"{what} is {value!r}", mend)

    def _meta(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        options = mapping.get("options") or {}
        self._mapping(options, "options")
        self._check_keys(options, ("atomic",))
        meta = self._dramatiq_options(options, ())
        names = ("handoff", "redact", "verbose_name", "aliases", "defaults")
        meta |= {name: mapping[name] for name in names if mapping.get(name) is not None}
        if mapping.get("retention") is not None:
            meta["retention"] = self._duration("retention", mapping["retention"])
        return meta

    # errors

    def _known(self, mapping: Mapping[str, Any], known: Iterable[str], what: str) -> None:
        for key in mapping:
            if key not in set(known):
                raise self._error(f"{key!r} is no {what}", did_you_mean(key, known))

    def _check_keys(self, spec: Mapping[str, Any], ours: tuple[str, ...]) -> None:
        """Refuse what is no option of Dramatiq's. Other middleware may bring options of its own,
        which only a broker knows that is there already."""
        known = {*_DRAMATIQ, *ours}
        for key in spec:
            if key in known or not (apps.ready or get_close_matches(key, known, n=1)):
                continue
            if apps.ready and key in dramatiq.get_broker().actor_options:
                continue
            problem = f"{key!r} is no key of a step, nor an option of Dramatiq's"
            raise self._error(problem, did_you_mean(key, sorted(known)))

    def _mapping(self, value: Any, what: str) -> None:
        if not isinstance(value, Mapping):
            raise self._error(f"{what} is {value!r:.60}", "Give a mapping.")

    def _error(self, problem: str, mend: str) -> InvalidDefinition:
        where = f"{self.where}: step {self.step!r}" if self.step else self.where
        return InvalidDefinition(where=where, problem=problem, mend=mend)


_DRAMATIQ = {"queue_name", "priority", "on_success", "on_failure", "broker", "actor_name"}.union(
    *(middleware().actor_options for middleware in dramatiq.middleware.default_middleware)
)

_UNITS = {
    "ms": 0.001, "millisecond": 0.001,
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400,
    "w": 604800, "week": 604800,
}  # fmt: skip
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*(?:,|and)?\s*")


def duration(value: Any) -> timedelta | None:
    """Milliseconds, ``"1 h 30 min"`` or ISO 8601; None for anything else."""
    try:
        if type(value) is int and value >= 0:
            return timedelta(milliseconds=value)
        if not isinstance(value, str):
            return None
        if value.startswith("P"):
            found = (
                parse_duration(value) if value[-1].isupper() and value not in ("P", "PT") else None
            )
            return found if found is None or found >= timedelta() else None
        return _sum_of_amounts(value.strip().lower())
    except OverflowError:
        return None


def _sum_of_amounts(text: str) -> timedelta | None:
    found = _AMOUNT.findall(text)
    if not found or _AMOUNT.sub("", text):
        return None
    units = [unit if unit in _UNITS else unit.removesuffix("s") for _, unit in found]
    if not all(unit in _UNITS for unit in units):
        return None
    amounts = (float(number) * _UNITS[unit] for (number, _), unit in zip(found, units, strict=True))
    return timedelta(seconds=sum(amounts))


def _milliseconds(wait: timedelta) -> int:
    return wait // timedelta(milliseconds=1)


# The class


def _given(definition: Data, where: str) -> dict[str, Any]:
    if isinstance(definition, Mapping):
        return dict(definition)
    if callable(getattr(definition, "definition", None)):
        return definition.definition()
    problem = f"a definition is a mapping, and this is a {type(definition).__name__}"
    mend = "Give a mapping, or what chain() or group() returns."
    raise InvalidDefinition(where=where, problem=problem, mend=mend)


def _normalised(given: dict[str, Any], where: str) -> dict[str, Any]:
    """JSON, with its steps in a list: databases do not keep the order of keys."""
    try:
        mapping, _ = json_data.normalise(
            given, encoder=DjangoJSONEncoder, path="definition",
            max_bytes=conf.settings.max_data_bytes,
        )  # fmt: skip
    except InvalidData as error:
        problem = f"{error.path} {error.problem}"
        raise InvalidDefinition(where=where, problem=problem, mend=error.mend) from None
    if isinstance(steps := mapping.get("steps"), dict):
        mapping["steps"] = [_listed(name, step, where) for name, step in steps.items()]
    result: dict[str, Any] = mapping
    return result


def _listed(name: str, step: Any, where: str) -> dict[str, Any]:
    if not isinstance(step, dict):
        mend = "Give a mapping, such as {job: fetch_data}."
        place = f"{where}: step {name!r}"
        raise InvalidDefinition(where=place, problem=f"the step is {step!r:.60}", mend=mend)
    if "name" in step:
        problem = "name is no key of a step here: the key above it is its name"
        place = f"{where}: step {name!r}"
        raise InvalidDefinition(where=place, problem=problem, mend="Leave it out.")
    return {"name": name, **step}


def _label(name: Any, where: str) -> tuple[str | None, str]:
    found = CLASS_NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        problem = "it has no name" if name is None else f"its name is {name!r}"
        mend = 'Add name: an app\'s label and a name, such as "shop.Import".'
        raise InvalidDefinition(where=where, problem=problem, mend=mend)
    return found[1], found[2]


def _class(
    base: type[Sequence[Any]], name: str, parsed: Parsed, *, module: str, where: str, file: str
) -> type[Sequence[Any]]:
    body = {
        "__module__": module,
        "__qualname__": name,
        "_file": file or None,
        "Meta": type("Meta", (), parsed.meta),
        **parsed.steps,
    }
    try:
        cls: Any = SequenceType(name, (base,), body)
    except InvalidDefinition as error:
        raise _placed(error, file or f"{module}.{name}", where) from None
    found: type[Sequence[Any]] = cls
    return found


def _placed(error: InvalidDefinition, path: str, where: str) -> InvalidDefinition:
    """The same, with the step as a file's reader knows it."""
    if not error.where.startswith(path):
        return error
    step = error.where[len(path) :].removeprefix(".")
    place = f"{where}: step {step!r}" if step and step != "Meta" else where
    return InvalidDefinition(where=place, problem=error.problem, mend=error.mend)
