"""The code of steps that are data: they read values, and call registered jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data import serialization
from ..definitions.steps import Finish, Repeat
from ..exceptions import InvalidData
from . import jobs

MISSING = object()


@dataclass(frozen=True)
class Ref:
    """Where a value comes from: ``data.key``, ``steps.name.path``, ``item.path``."""

    text: str
    root: str
    path: tuple[str, ...]
    step: str = ""
    many: bool = False

    def read(self, sequence: Any, item_values: Mapping[str, Any]) -> Any:
        """The value, or MISSING."""
        value = self._root(sequence, item_values)
        for part in self.path:
            value = _part(value, part)
        return value

    def has_root(self, sequence: Any) -> bool:
        """Whether the step that it reads has a result at all."""
        return self._root(sequence, {}) is not MISSING

    def _root(self, sequence: Any, item_values: Mapping[str, Any]) -> Any:
        if self.root == "data":
            return sequence.data
        if self.root == "steps":
            if self.many:
                return list(sequence.results(self.step))
            return sequence.result(self.step, MISSING)
        return item_values.get(self.root, MISSING)


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
        self, sequence: Any, item_values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The values, and what was not there."""
        inputs = {name: ref.read(sequence, item_values) for name, ref in self.inputs.items()}
        values = {name: value for name, value in inputs.items() if value is not MISSING}
        missing = {name: self.inputs[name].text for name in inputs.keys() - values.keys()}
        return {**self.args, **values}, missing


@dataclass(frozen=True)
class Call:
    """The code of a step that runs a job."""

    job: str
    arguments: Arguments
    save: str | None = None

    def __call__(self, sequence: Any, *of_item: Any) -> Any:
        item_values = dict(zip(("item", "result"), of_item, strict=False))
        explicit, missing = self.arguments.read(sequence, item_values)
        job = jobs.get(self.job)
        implied = {name: value for name, value in item_values.items() if name in job.parameters}
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
            problem = f"has no value: {source} does not exist"
            path = f"data[{name!r}] of the subsequence"
            raise InvalidData(path=path, problem=problem, hint="Fix its inputs.")
        return values


@dataclass(frozen=True)
class Items:
    """The items of a fan-out."""

    ref: Ref

    def __call__(self, sequence: Any) -> Any:
        value = self.ref.read(sequence, {})
        if isinstance(value, list):
            return value
        problem = (
            "does not exist" if value is MISSING else f"is a {type(value).__name__}, not a list"
        )
        hint = "Fix each, or put a list there in an earlier step."
        raise InvalidData(path=self.ref.text, problem=problem, hint=hint)


@dataclass(frozen=True)
class Conditions:
    """What ``when`` says: all of it must be so."""

    truths: tuple[tuple[Ref, bool], ...] = ()
    values: tuple[tuple[Ref, Any], ...] = ()

    def __call__(self, sequence: Any) -> bool:
        for ref, truth in self.truths:
            value = ref.read(sequence, {})
            if (value is not MISSING and bool(value)) is not truth:
                return False
        return all(serialization.same(ref.read(sequence, {}), value) for ref, value in self.values)


@dataclass(frozen=True)
class Outputs:
    """The code of the last step: it puts results into `data`."""

    refs: Mapping[str, Ref]

    def __call__(self, sequence: Any) -> None:
        for name, ref in self.refs.items():
            value = ref.read(sequence, {})
            if value is MISSING and (ref.root != "steps" or ref.has_root(sequence)):
                hint = "Fix the outputs, or what the step returns."
                raise InvalidData(path=ref.text, problem="does not exist", hint=hint)
            if value is not MISSING:  # of a step that was skipped there is nothing to put out
                sequence.data[name] = value
