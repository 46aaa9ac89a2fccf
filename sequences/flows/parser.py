"""Turns a definition as data into steps. Nothing in it is imported or evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

import dramatiq
from django.apps import apps

from ..definitions import registry
from ..definitions.inputs import Input, Inputs
from ..definitions.limits import Limit
from ..definitions.schedules import Timetable, cron, every
from ..definitions.steps import (
    DURATION_OPTIONS,
    Event,
    OnCancel,
    OnEnd,
    OnFailure,
    Step,
    Subsequence,
    Undo,
    any_of,
    event,
    subsequence,
)
from ..definitions.validation import refusal
from ..exceptions import InvalidDefinition, did_you_mean
from ..utils.durations import parse_duration, to_milliseconds
from . import jobs
from .references import (
    Arguments,
    Call,
    Calls,
    ChildData,
    Conditions,
    Items,
    Outputs,
    Ref,
    Source,
    Template,
    Text,
)

#: The keys of a definition, and those that a definition stored with its run cannot have.
RETENTIONS = ("retention", "retention_failed")
SCHEDULES = ("schedule", "schedules")
CLASS_KEYS = (
    "name", "handoff", "deadline", *RETENTIONS, *SCHEDULES, "redact", "verbose_name", "aliases",
)  # fmt: skip
CLOSING: dict[str, type[Step[Any]]] = {
    "on_failure": OnFailure, "on_cancel": OnCancel, "on_end": OnEnd,
}  # fmt: skip
KEYS = (
    *CLASS_KEYS, "$schema", "steps", "inputs", "outputs", *CLOSING, "cancel", "options", "defaults",
)  # fmt: skip
INPUT_KEYS = ("label", "required", "default")

#: The keys of a schedule, in addition to cron and timezone, or every.
SCHEDULE_KEYS = ("data", "overlap", "catch_up", "missed", "jitter")
KINDS = ("job", "event", "subsequence")
CALL_KEYS = ("job", "inputs", "args", "limits")
EVENT_KEYS = ("timeout", "on_timeout", "choices")
#: The keys of a step. All other keys are options of Dramatiq.
STEP_KEYS = (
    *KINDS, "after", "aliases", "allow_failed", "args", "atomic", "batch", "concurrency", "delay",
    "each", "inputs", "label", "limits", "on_error", "save", "undo", "when",
)  # fmt: skip
#: Keys that these kinds of steps cannot have.
NOT_FOR = {
    "event": {
        "inputs",
        "args",
        "limits",
        "save",
        "undo",
        "each",
        "concurrency",
        "batch",
        "allow_failed",
        "atomic",
    },
    "subsequence": {"limits", "save", "concurrency", "batch", "atomic"},
}
NOT_DATA = {
    "throws": "it is a class, but definitions are plain data",
    "retry_when": "it is a function, but definitions are plain data",
}

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
#: A placeholder in a string, and its escape.
PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
CLASS_NAME = re.compile(r"(?:([A-Za-z_]\w*)\.)?([A-Za-z_]\w*)")
MAX_STEPS = 500


@dataclass
class Parsed:
    """The ingredients of a class."""

    steps: dict[str, Step[Any]]
    meta: dict[str, Any]
    inputs: Inputs | None = None


class Parser:
    """Parses one definition; its errors name the place and the step."""

    def __init__(self, where: str, *, strict: bool = True) -> None:
        self.where, self.strict = where, strict
        self.specs: dict[str, dict[str, Any]] = {}
        self.above: dict[str, set[str]] = {}
        self.step = ""

    def parse(self, mapping: Mapping[str, Any]) -> Parsed:
        self._check_names(mapping, KEYS, "key of a definition")
        self.specs = dict(self._specs(mapping.get("steps")))
        self._check_kinds()
        order = self._order()
        steps: dict[str, Step[Any]] = {}
        for name in order:
            self.step = name
            steps |= self._declared(self.step, self.specs[self.step])
        for self.step in [name for name in CLOSING if name in mapping]:
            steps[self.step] = self._closing(mapping[self.step], CLOSING[self.step])
        if "outputs" in mapping:
            self.step = "outputs"
            steps["outputs"] = self._outputs(mapping["outputs"])
        self.step = ""
        meta, inputs = self._meta(mapping), self._declared_inputs(mapping.get("inputs"))
        return Parsed(steps, self._with_defaults(meta, inputs), inputs)

    def _specs(self, steps: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(steps, list):
            pairs = [(self._named(spec), spec) for spec in steps]
        elif isinstance(steps, Mapping):
            pairs = list(steps.items())
        else:
            raise self._error("it has no steps", "Add steps: a mapping of names to steps.")
        if not pairs:
            raise self._error("it has no steps", "Add a step.")
        if len(pairs) > MAX_STEPS:
            problem = f"it has {len(pairs)} steps; the limit is {MAX_STEPS}"
            raise self._error(problem, "Use each or subsequences.")
        names: set[str] = set()
        for name, spec in pairs:
            self.step = name
            if not NAME.fullmatch(self.step):
                hint = "Use letters, digits, underscores and hyphens, and start with a letter."
                raise self._error("its name is not valid", hint)
            if self.step in (*names, "outputs", *CLOSING):
                raise self._error("this name is already taken", "Rename the step.")
            names.add(self.step)
            self._mapping(spec, "the step")
            yield self.step, {key: value for key, value in spec.items() if key != "name"}
        self.step = ""

    def _named(self, spec: Any) -> str:
        self._mapping(spec, "a step")
        if not isinstance(spec.get("name"), str):
            raise self._error("a step in the list has no name", "Give each step a name.")
        return str(spec["name"])

    def _check_kinds(self) -> None:
        for name, spec in self.specs.items():
            self.step = name
            kinds = [kind for kind in KINDS if kind in spec]
            if len(kinds) != 1:
                problem = (
                    f"it has {' and '.join(kinds)}"
                    if kinds
                    else "it has no job, event or subsequence"
                )
                raise self._error(problem, "Use exactly one of job, event and subsequence.")
            for key in sorted(NOT_FOR.get(kinds[0], set()) & spec.keys()):
                raise self._error(f"{key} cannot be combined with {kinds[0]}", "Leave it out.")
            self._check_keys(spec, STEP_KEYS)
            if not isinstance(spec.get("on_error", ""), str | None):
                raise self._error(f"on_error is {spec['on_error']!r}", "Use the name of a step.")
        self.step = ""

    # order

    def _order(self) -> list[str]:
        """Sort each step below what it waits for; otherwise, keep the declared order."""
        needs = dict(self._needs())
        while needs:
            # Steps that have been placed have their dependencies above them.
            ready = (name for name, names in needs.items() if names <= self.above.keys())
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
            is_explicit, after = self._after(self.step)
            for other in after:
                if other not in self.specs:
                    problem = f"after names {other!r}, which is not a step of this definition"
                    raise self._error(problem, did_you_mean(other, self.specs))
            if self.step in self.beside:
                yield self.step, set()
                continue
            yield self.step, set(after) if is_explicit else set(main)
            main.append(self.step)
        self.step = ""

    def _after(self, name: str) -> tuple[bool, list[str]]:
        after = self.specs[name].get("after")
        if after is None:
            return False, []
        groups = [group if is_any else [group] for is_any, group in self._joined(after)]
        if not all(isinstance(group, list) for group in groups) or not all(
            isinstance(other, str) for group in groups for other in group
        ):
            self.step = name
            hint = 'Use the name of a step, {"any_of": [name, …]}, or a list of these.'
            raise self._error(f"after is {after!r}", hint)
        return True, [other for group in groups for other in group]

    def _joined(self, after: Any) -> Iterator[tuple[bool, Any]]:
        """Each part of an ``after``, and whether it is a group of which the first is enough."""
        for part in after if isinstance(after, list) else [after]:
            is_group = isinstance(part, Mapping) and part.keys() == {"any_of"}
            yield is_group, part["any_of"] if is_group else part

    def _circle(self, needs: dict[str, set[str]]) -> InvalidDefinition:
        name = next(iter(needs))
        way: list[str] = []
        while name not in way:
            way.append(name)
            name = next(other for other in needs[name] if other in needs)
        circle = [*way[way.index(name) :], name]
        self.step = name
        text = " → ".join(reversed(circle))
        return self._error(f"after is circular: {text}", "Remove one of these dependencies.")

    # steps

    def _declared(self, name: str, spec: dict[str, Any]) -> Iterator[tuple[str, Step[Any]]]:
        options = self._step_options(spec)
        if "event" in spec:
            yield name, self._event(spec["event"], options)
            return
        declaration: Step[Any]
        if "subsequence" in spec:
            declaration = self._subsequence(spec, options)
        else:
            declaration = Step(self._call(spec, each="each" in spec), options)
        yield name, declaration
        if "undo" in spec:
            yield self._undo(name, spec["undo"], declaration)

    def _step_options(self, spec: dict[str, Any]) -> dict[str, Any]:
        names = ("aliases", "allow_failed", "atomic", "batch", "concurrency", "label", "on_error")
        options = {name: spec[name] for name in names if spec.get(name) is not None}
        if spec.get("after") is not None:
            parts = self._joined(spec["after"])
            options["after"] = [any_of(*part) if is_any else part for is_any, part in parts]
        if spec.get("delay") is not None:
            options["delay"] = self._length("delay", spec["delay"])
        if spec.get("when") is not None:
            options["when"] = self._when(spec["when"])
        if spec.get("each") is not None:
            options["each"] = Items(self._bare_ref("each", spec["each"]))
        return options | self._limits(spec) | self._dramatiq_options(spec, STEP_KEYS)

    def _limits(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The limits of its job, and those that it names."""
        names = spec.get("limits") or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._error(f"limits is {names!r}", "It must be a list of names.")
        job = jobs.find(spec["job"]) if isinstance(spec.get("job"), str) else None
        limits = {limit.name: limit for limit in (job.limits if job else ())}
        declared = registry.limits() if names else {}
        for name in names:
            if name not in declared:
                hint = "Jobs and sequences in the code declare limits, with limits=[…]."
                problem = f"no limit is declared as {name!r}"
                raise self._error(problem, f"{did_you_mean(name, sorted(declared))} {hint}")
            limits[name] = declared[name]
        return {"limits": list(limits.values())} if limits else {}

    def _dramatiq_options(self, spec: Mapping[str, Any], ours: Iterable[str]) -> dict[str, Any]:
        options = {name: value for name, value in spec.items() if name not in set(ours)}
        for name, why in NOT_DATA.items():
            if name in options:
                hint = "Leave it out, or declare the sequence as a class."
                raise self._error(f"the option {name} is not supported: {why}", hint)
        for name in DURATION_OPTIONS:
            if options.get(name) is not None:
                options[name] = self._length(name, options[name])
        retries = options.get("max_retries")
        if retries is not None and (type(retries) is not int or retries < 0):
            raise self._error(
                f"max_retries is {retries!r}", "Use a non-negative integer, or null for no limit."
            )
        return options

    def _event(self, spec: Any, options: dict[str, Any]) -> Event:
        spec = {} if spec is True or spec is None else spec
        self._mapping(spec, "event")
        if "form" in spec:
            hint = "Offer choices, or declare the event in a class."
            raise self._error("form is a class, but definitions are plain data", hint)
        self._check_names(spec, EVENT_KEYS, "key of an event")
        if spec.get("timeout") is not None:
            options["timeout"] = self._length("timeout", spec["timeout"])
        own = {key: spec[key] for key in ("on_timeout", "choices") if key in spec}
        return event(**options, **own)

    def _subsequence(self, spec: dict[str, Any], options: dict[str, Any]) -> Subsequence:
        label = spec["subsequence"]
        if not isinstance(label, str) or not CLASS_NAME.fullmatch(label) or "." not in label:
            hint = 'Use the label of a sequence, such as "shop.ShipOrder".'
            raise self._error(f"subsequence is {label!r}", hint)
        arguments = self._arguments(spec, ("item", "index") if "each" in spec else ())
        data = ChildData(arguments) if arguments.inputs or arguments.args else None
        return subsequence(label, data=data, **options)

    def _undo(self, name: str, spec: Any, of: Step[Any]) -> tuple[str, Step[Any]]:
        if (own := f"undo_{name}") in self.specs:
            problem = f"its undo would be named {own!r}, but a step already has that name"
            raise self._error(problem, f"Rename the step {own!r}.")
        options = {"undoes": of}
        if isinstance(spec, Mapping) and "attempted" in spec:
            options["attempted"] = spec["attempted"]
        # For a subsequence, the undo replaces the undos of its children.
        roots = ("item", "index", "result") if of.traits.has_items else ()
        declaration = self._off_path(spec, Undo, options, roots=roots)
        return own, declaration

    def _off_path(
        self,
        spec: Any,
        kind: Callable[[Any, Mapping[str, Any]], Step[Any]],
        options: Mapping[str, Any] | None = None,
        roots: tuple[str, ...] = (),
    ) -> Step[Any]:
        spec = {"job": spec} if isinstance(spec, str) else spec
        self._mapping(spec, "undo" if kind is Undo else self.step)
        keys = (*CALL_KEYS, "aliases", "label", *(("attempted",) if kind is Undo else ()))
        self._check_keys(spec, keys)
        own = {name: spec[name] for name in ("aliases", "label") if name in spec}
        call = self._call(spec, roots=roots, anywhere=True)
        own |= self._limits(spec)
        declared = {**(options or {}), **own, **self._dramatiq_options(spec, keys)}
        return kind(call, declared)

    def _closing(self, spec: Any, kind: type[Step[Any]]) -> Step[Any]:
        """One job, or several jobs that run one after the other in one step."""
        if not isinstance(spec, list):
            return self._off_path(spec, kind)
        if not spec:
            raise self._error("it has no jobs", "Add one, or leave it out.")
        calls: list[Call] = []
        limits: dict[str, Limit] = {}
        for part in spec:
            call = {"job": part} if isinstance(part, str) else part
            self._mapping(call, f"a job of {self.step}")
            self._check_names(call, CALL_KEYS, f"key of a job of {self.step}")
            calls.append(self._call(call, anywhere=True))
            limits |= {limit.name: limit for limit in self._limits(call).get("limits", ())}
        return kind(Calls(tuple(calls)), {"limits": list(limits.values())} if limits else {})

    def _call(
        self,
        spec: Mapping[str, Any],
        *,
        each: bool = False,
        roots: tuple[str, ...] = (),
        anywhere: bool = False,
    ) -> Call:
        name = spec.get("job")
        if not isinstance(name, str):
            raise self._error(f"job is {name!r}", "Use the name of a registered job.")
        save = spec.get("save")
        if save is not None and (not isinstance(save, str) or each):
            problem = (
                "save is not allowed with each, because items cannot change data"
                if each
                else f"save is {save!r}"
            )
            raise self._error(problem, "Use a key of data, and only on a step without each.")
        roots = ("item", "index") if each else roots
        arguments = self._arguments(spec, roots, anywhere=anywhere)
        if self.strict:
            self._check_job(name, arguments, each=each)
        return Call(name, arguments, save)

    def _check_job(self, name: str, arguments: Arguments, *, each: bool) -> None:
        job = jobs.find(name)
        if job is None:
            hint = "Jobs are registered when the module with their @job is imported."
            problem = f"no job is registered as {name!r}"
            raise self._error(problem, f"{did_you_mean(name, jobs.names())} {hint}")
        for parameter in {**arguments.inputs, **arguments.args}:
            if parameter not in job.parameters and not job.takes_any:
                problem = f"job {name!r} has no parameter {parameter!r}"
                raise self._error(problem, did_you_mean(parameter, job.parameters))
        if each and not (
            arguments.reads("item")
            or arguments.reads("index")
            or "item" in job.parameters
            or job.takes_sequence
        ):
            hint = f"Add inputs, such as {next(iter(job.parameters), 'item')}: item."
            raise self._error(f"job {name!r} does not receive the item", hint)

    def _arguments(
        self, spec: Mapping[str, Any], roots: tuple[str, ...], *, anywhere: bool = False
    ) -> Arguments:
        inputs, args = spec.get("inputs") or {}, spec.get("args") or {}
        self._mapping(inputs, "inputs")
        self._mapping(args, "args")
        for name in inputs.keys() & args.keys():
            raise self._error(f"{name!r} is in both inputs and args", "Remove one of them.")
        sources = {
            name: self._source(f"inputs.{name}", value, roots, anywhere=anywhere)
            for name, value in inputs.items()
        }
        return Arguments(sources, args)

    def _outputs(self, spec: Any) -> Step[Any]:
        self._mapping(spec, "outputs")
        sources = {
            name: self._source(name, value, (), anywhere=True) for name, value in spec.items()
        }
        return Step(Outputs(sources), {})

    def _declared_inputs(self, spec: Any) -> Inputs | None:
        if spec is None:
            return None
        self._mapping(spec, "inputs")
        return Inputs({name: self._input(name, value or {}) for name, value in spec.items()})

    def _input(self, name: str, spec: Any) -> Input:
        what = f"input {name!r}"
        self._mapping(spec, what)
        self._check_names(spec, INPUT_KEYS, f"key of {what}")
        label, is_required = spec.get("label", ""), spec.get("required", False)
        if not isinstance(label, str):
            raise self._error(f"label of {what} is {label!r}", "Use a string.")
        if not isinstance(is_required, bool):
            raise self._error(f"{what} has required: {is_required!r}", "Use true or false.")
        if is_required and "default" in spec:
            raise self._error(f"{what} is required and has a default", "Remove one of them.")
        return Input(label, is_required, {k: spec[k] for k in ("default",) if k in spec})

    def _with_defaults(self, meta: dict[str, Any], inputs: Inputs | None) -> dict[str, Any]:
        """Inputs' defaults become defaults of data."""
        defaults = inputs.defaults if inputs else {}
        if not defaults:
            return meta
        others = meta.get("defaults", {})
        self._mapping(others, "defaults")
        if twice := sorted(others.keys() & defaults.keys()):
            raise self._error(f"{twice[0]!r} has a default in inputs and in defaults", "Keep one.")
        return meta | {"defaults": {**others, **defaults}}

    # values

    def _source(
        self, what: str, value: Any, roots: tuple[str, ...], *, anywhere: bool = False
    ) -> Source:
        """A reference, or a string, list or mapping that contains references."""
        if isinstance(value, list | dict):
            return Template(self._template(what, value, roots, anywhere=anywhere))
        if isinstance(value, str) and "${" in value:
            return self._text(what, value, roots, anywhere=anywhere)
        return self._ref(what, value, roots, anywhere=anywhere)

    def _template(self, what: str, value: Any, roots: tuple[str, ...], *, anywhere: bool) -> Any:
        if isinstance(value, dict):
            return {
                name: self._template(f"{what}.{name}", part, roots, anywhere=anywhere)
                for name, part in value.items()
            }
        if isinstance(value, list):
            return [
                self._template(f"{what}.{index}", part, roots, anywhere=anywhere)
                for index, part in enumerate(value)
            ]
        if isinstance(value, str) and "${" in value:
            return self._text(what, value, roots, anywhere=anywhere)
        return value

    def _text(self, what: str, value: str, roots: tuple[str, ...], *, anywhere: bool) -> Source:
        """A string that is one reference is its value; inside other text, it is inserted as
        text."""
        parts: list[str | Ref] = []
        end = 0
        for match in PLACEHOLDER.finditer(value):
            parts.append(value[end : match.start()])
            end = match.end()
            if match[0] == "$${":
                parts.append("${")
            elif match[1] is None:
                hint = "Write ${data.key}, or $${ for a literal ${."
                raise self._error(f"{what} has a ${{ without its }}: {value!r:.60}", hint)
            else:
                parts.append(self._ref(what, match[1].strip(), roots, anywhere=anywhere))
        parts = [part for part in (*parts, value[end:]) if part != ""]
        if len(parts) == 1 and isinstance(parts[0], Ref):
            return parts[0]
        return Text(tuple(parts))

    def _when(self, value: Any) -> Conditions:
        if isinstance(value, str):
            negated = value.startswith("not ")
            ref = self._bare_ref("when", value.removeprefix("not ").strip())
            return Conditions(truths=((ref, not negated),))
        if isinstance(value, Mapping) and value:
            pairs = [(self._bare_ref("when", text), expected) for text, expected in value.items()]
            return Conditions(values=tuple(pairs))
        hint = 'Use a key of data, "not key", or a mapping of keys to the values they must have.'
        raise self._error(f"when is {value!r}", hint)

    def _bare_ref(self, what: str, text: Any) -> Ref:
        """A reference, or just the name of a key of data."""
        if isinstance(text, str) and text and text.partition(".")[0] not in ("data", "steps"):
            text = f"data.{text}"
        return self._ref(what, text, ())

    def _ref(
        self, what: str, text: Any, extra_roots: tuple[str, ...], *, anywhere: bool = False
    ) -> Ref:
        parts = text.split(".") if isinstance(text, str) else []
        roots = ("data", "steps", *extra_roots)
        if not parts or not all(parts) or parts[0] not in roots:
            forms = ["data.key", "steps.name", *extra_roots]
            hint = f"Use {' or '.join(forms)}, or pass a literal value with args."
            raise self._error(f"{what} is {text!r}", hint)
        if parts[0] != "steps":
            return Ref(text, parts[0], tuple(parts[1:]))
        if len(parts) == 1:
            raise self._error(f"{what} is 'steps'", "Name the step: steps.name.")
        self._check_read(what, parts[1], anywhere=anywhere)
        many = self.specs[parts[1]].get("each") is not None
        return Ref(text, "steps", tuple(parts[2:]), parts[1], many)

    def _check_read(self, what: str, name: str, *, anywhere: bool) -> None:
        if name not in self.specs:
            problem = f"{what} reads {name!r}, which is not a step of this definition"
            raise self._error(problem, did_you_mean(name, self.specs))
        above = self.above.get(self.step, set())
        off_path = self.step in self.beside or above & self.beside
        if not (anywhere or off_path or name in above):
            problem = f"{what} reads the step {name!r} without waiting for it"
            raise self._error(problem, f"Add {name!r} to its after.")

    def _length(self, what: str, value: Any) -> timedelta | int:
        """The same, but a number stays one: a system check tells it from a string with a unit."""
        length = self._duration(what, value)
        return length if isinstance(value, str) else to_milliseconds(length)

    def _duration(self, what: str, value: Any) -> timedelta:
        if (length := parse_duration(value)) is not None:
            return length
        hint = 'Use milliseconds, or a string such as "15 min", "3 days" or "PT1H30M".'
        raise self._error(f"{what} is {value!r}", hint)

    def _meta(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        options = mapping.get("options") or {}
        self._mapping(options, "options")
        self._check_keys(options, ("atomic",))
        meta = self._dramatiq_options(options, ())
        names = ("handoff", "redact", "verbose_name", "aliases", "defaults", "cancel")
        meta |= {name: mapping[name] for name in names if mapping.get(name) is not None}
        for name in (*RETENTIONS, "deadline"):
            if name in mapping:
                length = mapping[name]
                meta[name] = None if length is None else self._duration(name, length)
        return meta | self._schedules(mapping)

    def _schedules(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        if mapping.get("schedule") is not None:
            meta["schedule"] = self._timetable("schedule", mapping["schedule"])
        if mapping.get("schedules") is not None:
            self._mapping(mapping["schedules"], "schedules")
            meta["schedules"] = {
                name: self._timetable(f"schedule {name!r}", spec)
                for name, spec in mapping["schedules"].items()
            }
        return meta

    def _timetable(self, what: str, spec: Any) -> Timetable:
        self._mapping(spec, what)
        if ("cron" in spec) == ("every" in spec):
            keys_set = "both cron and" if "cron" in spec else "neither cron nor"
            raise self._error(f"{what} has {keys_set} every", "Set exactly one of them.")
        keys = ("cron", "timezone") if "cron" in spec else ("every",)
        self._check_names(spec, (*keys, *SCHEDULE_KEYS), f"key of {what}")
        options = {name: spec[name] for name in ("data", "overlap", "missed") if name in spec}
        for name in ("catch_up", "jitter"):
            if name in spec:
                options[name] = self._duration(name, spec[name])
        if not isinstance(options.get("data", {}), Mapping):
            raise self._error(f"data of {what} is {options['data']!r:.60}", "Use a mapping.")
        try:
            if "cron" in spec:
                return cron(spec["cron"], timezone=spec.get("timezone"), **options)
            return every(self._duration("every", spec["every"]), **options)
        except InvalidDefinition as error:
            raise self._error(f"{what}: {error.problem}", error.hint) from None

    # errors

    def _check_names(self, mapping: Mapping[str, Any], names: Iterable[str], what: str) -> None:
        for key in mapping:
            if key not in set(names):
                raise self._error(f"{key!r} is not a valid {what}", did_you_mean(key, names))

    def _check_keys(self, spec: Mapping[str, Any], ours: tuple[str, ...]) -> None:
        """Reject keys that are not options of Dramatiq, unless they were when the run started.

        Middleware may add options of its own, which are known only once there is a broker.
        """
        names = {*_DRAMATIQ, *ours}
        for key in spec if self.strict else ():
            if key in names or not (apps.ready or get_close_matches(key, names, n=1)):
                continue
            if apps.ready and key in dramatiq.get_broker().actor_options:
                continue
            problem = f"{key!r} is not a valid key of a step, nor a Dramatiq option"
            choices = sorted(name for name in names if not (refusal(name) or name in NOT_DATA))
            raise self._error(problem, did_you_mean(key, choices))

    def _mapping(self, value: Any, what: str) -> None:
        if not isinstance(value, Mapping):
            raise self._error(f"{what} is {value!r:.60}", "Use a mapping.")

    def _error(self, problem: str, hint: str) -> InvalidDefinition:
        where = f"{self.where}: step {self.step!r}" if self.step else self.where
        return InvalidDefinition(where=where, problem=problem, hint=hint)


_DRAMATIQ = {"queue_name", "priority", "on_success", "on_failure", "broker", "actor_name"}.union(
    *(middleware().actor_options for middleware in dramatiq.middleware.default_middleware)
)
