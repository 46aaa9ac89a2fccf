"""The code of steps defined by data: it reads values and calls registered jobs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from asgiref.sync import sync_to_async

from ..data import serialization
from ..definitions.steps import Finish, Repeat
from ..exceptions import InvalidData
from . import jobs

MISSING = object()


@dataclass(frozen=True)
class Ref:
    """The source of a value: ``data.key``, ``steps.name.path``, ``item.path``."""

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

    @property
    def refs(self) -> tuple[Ref, ...]:
        """All references in it."""
        return (self,)

    def fill(self, read: Callable[[Ref], Any]) -> Any:
        """Return the value, using this function to read references."""
        return read(self)

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


@dataclass(frozen=True)
class Text:
    """A string with placeholders for values."""

    parts: tuple[str | Ref, ...]

    @property
    def refs(self) -> tuple[Ref, ...]:
        """All references in it."""
        return tuple(part for part in self.parts if isinstance(part, Ref))

    def fill(self, read: Callable[[Ref], Any]) -> str:
        """Return the string. Strings are inserted as they are, other values as JSON."""
        return "".join(
            part if isinstance(part, str) else _as_text(read(part)) for part in self.parts
        )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else serialization.dumps(value)


@dataclass(frozen=True)
class Template:
    """A list or a mapping with references anywhere in it."""

    #: JSON, which may contain more templates.
    content: Any

    @property
    def refs(self) -> tuple[Ref, ...]:
        """All references in it."""
        return tuple(_refs_in(self.content))

    def fill(self, read: Callable[[Ref], Any]) -> Any:
        """Return the list or mapping, with the values."""
        return _filled(self.content, read)


Source = Ref | Text | Template


def _refs_in(content: Any) -> Iterator[Ref]:
    if isinstance(content, Source):
        yield from content.refs
    elif isinstance(content, list | dict):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _refs_in(value)


def _filled(content: Any, read: Callable[[Ref], Any]) -> Any:
    if isinstance(content, Source):
        return content.fill(read)
    if isinstance(content, dict):
        return {name: _filled(value, read) for name, value in content.items()}
    return [_filled(value, read) for value in content] if isinstance(content, list) else content


class Absent(Exception):
    """The value that a reference points to does not exist."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(ref.text)
        self.ref = ref


def read_from(sequence: Any, item_values: Mapping[str, Any]) -> Callable[[Ref], Any]:
    """A function that reads a reference, and raises `Absent` if there is no value."""

    def read(ref: Ref) -> Any:
        value = ref.read(sequence, item_values)
        if value is MISSING:
            raise Absent(ref)
        return value

    return read


def _part(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, MISSING)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return MISSING


@dataclass(frozen=True)
class Arguments:
    """The arguments that a definition gives a step: literals and references."""

    inputs: Mapping[str, Source]
    args: Mapping[str, Any]

    def reads(self, root: str) -> bool:
        """Whether a value comes from this source, such as the item."""
        return any(ref.root == root for source in self.inputs.values() for ref in source.refs)

    def read(
        self, sequence: Any, item_values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the values, and the names without a value."""
        read = read_from(sequence, item_values)
        values, missing = dict(self.args), {}
        for name, source in self.inputs.items():
            try:
                values[name] = source.fill(read)
            except Absent as absent:
                missing[name] = absent.ref.text
        return values, missing


@dataclass(frozen=True)
class Call:
    """The code of a step that runs a job."""

    job: str
    arguments: Arguments
    save: str | None = None

    def __call__(self, sequence: Any, *of_item: Any) -> Any:
        item_values = dict(zip(("item", "result"), of_item, strict=False))
        place = {"index": sequence.step_run.item} if self.arguments.reads("index") else {}
        explicit, missing = self.arguments.read(sequence, item_values | place)
        job = jobs.get(self.job)
        implied = {name: value for name, value in item_values.items() if name in job.parameters}
        result = job.perform(sequence, implied | explicit, missing)
        if isinstance(result, Coroutine):
            return self._awaited(sequence, result)
        return self._saved(sequence, result)

    async def _awaited(self, sequence: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._saved(sequence, await coroutine)

    def _saved(self, sequence: Any, result: Any) -> Any:
        if self.save is not None and not isinstance(result, Repeat | Finish):
            sequence.data[self.save] = result
        return result


@dataclass(frozen=True)
class Calls:
    """The code of a step that runs several jobs, one after the other."""

    calls: tuple[Call, ...]

    def __call__(self, sequence: Any) -> Any:
        for index, call in enumerate(self.calls):
            result = call(sequence)
            if isinstance(result, Coroutine):
                return self._awaited(sequence, result, self.calls[index + 1 :])
            if isinstance(result, Repeat | Finish):
                return result
        return None

    async def _awaited(
        self, sequence: Any, coroutine: Coroutine[Any, Any, Any], rest: tuple[Call, ...]
    ) -> Any:
        """Await the first job, then run the others in a thread: they may use the database."""
        result = await coroutine
        for call in rest:
            if isinstance(result, Repeat | Finish):
                return result
            result = await sync_to_async(call)(sequence)
            if isinstance(result, Coroutine):
                result = await result
        return result if isinstance(result, Repeat | Finish) else None


@dataclass(frozen=True)
class ChildData:
    """The data of a subsequence's child run."""

    arguments: Arguments

    #: With `each`, it is called with the index of the item, too.
    takes_index: ClassVar[bool] = True

    def __call__(self, sequence: Any, *item: Any) -> dict[str, Any]:
        item_values = dict(zip(("item", "index"), item, strict=False))
        values, missing = self.arguments.read(sequence, item_values)
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
            "does not exist"
            if value is MISSING
            else f"is of type {type(value).__name__}, not a list"
        )
        hint = "Fix each, or put a list there in an earlier step."
        raise InvalidData(path=self.ref.text, problem=problem, hint=hint)


@dataclass(frozen=True)
class Conditions:
    """The conditions in ``when``, all of which must hold."""

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
    """The code of the last step, which stores results in `data`."""

    sources: Mapping[str, Source]

    def __call__(self, sequence: Any) -> None:
        read = read_from(sequence, {})
        for name, source in self.sources.items():
            try:
                sequence.data[name] = source.fill(read)
            except Absent as absent:
                # A step that was skipped has no output.
                if absent.ref.root != "steps" or absent.ref.has_root(sequence):
                    hint = "Fix the outputs, or what the step returns."
                    raise InvalidData(
                        path=absent.ref.text, problem="does not exist", hint=hint
                    ) from None
