"""`chain` and `group`: definitions composed in Python from registered jobs."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..definitions.steps import no_attribute
from ..exceptions import InvalidDefinition
from .jobs import Job, Use
from .parser import MAX_STEPS

Delay = timedelta | int | str
Part = Job[..., Any] | Use | str | Any  # or a chain or a group


@dataclass(frozen=True)
class Composition:
    """The result of `chain` and `group`: parts in order, or in parallel."""

    parts: tuple[Any, ...]
    parallel: bool
    delay: Delay | None = None

    is_step_elsewhere: ClassVar[bool] = True  # in a definition, not in a class

    if not TYPE_CHECKING:  # so that type checkers do not accept every attribute

        def __getattr__(self, name: str) -> NoReturn:
            hint = "Start it with start_definition(…, data)."
            raise no_attribute("A chain or group", name, hint)

    def with_(self, *, delay: Delay | None = None) -> Composition:
        """The same, after a delay."""
        return replace(self, delay=delay)

    def definition(self) -> dict[str, Any]:
        """The mapping that `define` and `start_definition` take."""
        drawing = _Drawing()
        drawing.draw(self, after=[], delay=None)
        return {"steps": drawing.steps}


def chain(*parts: Part, delay: Delay | None = None) -> Composition:
    """Run parts one after the other: ``chain(fetch, group(resize, scan), publish)``.

    A part is a job, its name, ``job.with_(…)``, a chain or a group. ``delay`` (a timedelta,
    milliseconds, or a string such as ``"15 min"``) is a wait before the first part. A chain without
    parts adds no step to the definition that contains it.
    """
    return Composition(_checked("chain", parts), parallel=False, delay=delay)


def group(*parts: Part, delay: Delay | None = None) -> Composition:
    """Run parts in parallel; whatever follows a group waits for all of it. See also `chain`."""
    return Composition(_checked("group", parts), parallel=True, delay=delay)


class _Drawing:
    """The steps so far, by name."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, Any]] = {}

    def draw(self, part: Any, *, after: list[str], delay: Delay | None) -> list[str]:
        """Add a part after these steps; return its open ends."""
        if not isinstance(part, Composition):
            return [self._add(_use(part), after, delay)]
        count = len(self.steps)
        ends = self._draw_parts(part, after, _longer(part, delay))
        if part.delay is not None and len(self.steps) == count:
            what = "group" if part.parallel else "chain"
            problem = "it has a delay, but no jobs"
            raise InvalidDefinition(where=f"a {what}", problem=problem, hint="Remove the delay.")
        return ends

    def _draw_parts(self, part: Composition, after: list[str], delay: Delay | None) -> list[str]:
        if part.parallel:
            ends = (self.draw(branch, after=after, delay=delay) for branch in part.parts)
            # A group without branches: whatever follows it waits for what precedes it.
            return list(dict.fromkeys(end for names in ends for end in names)) or after
        for link in part.parts:
            count = len(self.steps)
            after = self.draw(link, after=after, delay=delay)
            delay = delay if len(self.steps) == count else None  # an empty chain passes it on
        return after

    def _add(self, use: Use, after: list[str], delay: Delay | None) -> str:
        keys = dict(use.keys)
        if len(self.steps) >= MAX_STEPS:
            # A group of the same group, nested again and again, would never end.
            raise InvalidDefinition(
                where="a chain or group",
                problem=f"it has more than {MAX_STEPS} steps",
                hint="Use each or subsequences.",
            )
        name = self._free(str(keys.pop("name", re.sub(r"[^A-Za-z0-9_-]", "_", use.job))))
        if delay is not None:
            if "delay" in keys:
                problem = "it has a delay, and so does the chain or group that begins with it"
                raise InvalidDefinition(
                    where=f"step {name!r}", problem=problem, hint="Remove one of them."
                )
            keys["delay"] = delay
        self.steps[name] = {"job": use.job, "after": after, **keys}
        return name

    def _free(self, name: str) -> str:
        free = name
        for number in count(2):
            if free not in self.steps:
                break
            free = f"{name}_{number}"
        return free


def _longer(part: Composition, delay: Delay | None) -> Delay | None:
    if part.delay is not None and delay is not None:
        what = "group" if part.parallel else "chain"
        problem = "it has a delay, and so does the chain or group that begins with it"
        raise InvalidDefinition(where=f"a {what}", problem=problem, hint="Remove one of them.")
    return delay if part.delay is None else part.delay


def _use(part: Any) -> Use:
    if isinstance(part, Use):
        return part
    return Use(part.name if isinstance(part, Job) else part)


def _checked(what: str, parts: Iterable[Any]) -> tuple[Any, ...]:
    checked = tuple(parts)
    for part in checked:
        if not isinstance(part, Composition | Use | Job | str):
            hint = "Pass jobs, names of jobs, job.with_(…), chains or groups."
            problem = f"{reprlib.repr(part)} cannot be a part"
            raise InvalidDefinition(where=f"{what}(…)", problem=problem, hint=hint)
    return checked
