"""The validated declarations of a sequence's class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

from django.utils.datastructures import MultiValueDict
from django.utils.functional import Promise
from django.utils.text import camel_case_to_spaces

from ..exceptions import SequenceError
from .limits import Limit, WhenFull
from .option_types import OnSubjectDelete
from .plan import Node, Plan
from .schedules import Timetable
from .steps import Step


def _kind_in(plan: Plan, node: Node) -> str:
    undone = plan.get(node.undoes)
    if undone is not None and undone.traits.has_items:
        return "an undo of items"  # it takes an item and its result
    return node.traits.noun


@dataclass(frozen=True, eq=False)
class Definition:
    """The validated declarations of a sequence's class; ``steps`` include the defaults of its
    Meta."""

    label: str
    app_label: str
    cls: type[Any]
    steps: dict[str, Step[Any]]
    plan: Plan
    aliases: tuple[str, ...]
    handoff: Literal["broker", "direct"]
    #: How long runs that succeeded or were cancelled, and those that failed, are kept. None: as
    #: the settings say.
    retention: timedelta | None
    retention_failed: timedelta | None
    #: How long after its start a run must be finished; None: it has no deadline.
    deadline: timedelta | None
    redact: tuple[str, ...]
    #: What happens to a run when its subject is deleted. None: as the settings say.
    on_subject_delete: OnSubjectDelete | None
    #: Limits on whole runs, and what happens to a run that finds no place in them.
    limits: tuple[Limit, ...]
    when_full: WhenFull
    defaults: dict[str, Any]
    declared_name: str | Promise | None
    #: The schedules declared in its Meta, by name.
    schedules: dict[str, Timetable]
    #: The options of its Meta, and of the project, that are defaults for all steps.
    step_defaults: dict[str, Any]

    @property
    def verbose_name(self) -> str:
        """The name shown to people."""
        return str(self.declared_name or camel_case_to_spaces(self.cls.__name__))

    def step(self, name: str) -> Step[Any] | None:
        """The step with that name or alias, if there is one."""
        return self.steps.get(name) or self._by_alias.get(name)

    def name_in(self, plan: Plan, step: str) -> str | None:
        """The name of this step in a run's plan, which may be an earlier one; None: not there."""
        declared = self.step(step)
        names = [step] if declared is None else [step, declared.name, *declared.aliases]
        return next((name for name in names if plan.get(name) is not None), None)

    def change_of_kind(self, name: str, plan: Plan) -> tuple[str, str] | None:
        """The step's kind in a plan of another release, and its kind here, if they differ."""
        step, node = self.step(name), plan.get(name)
        if step is None or node is None:
            return None
        before, now = _kind_in(plan, node), _kind_in(self.plan, self.plan.node(step.name))
        return None if before == now else (before, now)

    def admit(self, data: Any) -> dict[str, Any]:
        """Return the data that a run starts with: this data over the defaults, typed data as JSON.

        Raises `InvalidData` if it does not fit the declared type.
        """
        if isinstance(data, MultiValueDict):
            data = data.dict()  # request.POST: the last value of each key
        if self.cls._inputs is not None and isinstance(data, Mapping | None):
            self.cls._inputs.check({**self.defaults, **(data or {})})
        if self.cls._codec is not None:
            admitted: dict[str, Any] = self.cls._codec.admit(data, self.defaults)
            return admitted
        if data is None or isinstance(data, Mapping):
            return {**self.defaults, **(data or {})}
        raise SequenceError(
            f"{self.label}.start: data must be a dict, not {type(data).__name__}: {data!r:.100}"
        )

    @property
    def all_limits(self) -> tuple[Limit, ...]:
        """The limits of its runs and of its steps."""
        return (*self.limits, *(limit for step in self.steps.values() for limit in step.limits))

    def options(self, step: Step[Any]) -> dict[str, Any]:
        """The Dramatiq options of a step: its own, with those of Meta as defaults."""
        return dict(self.steps[step.name].options)

    @property
    def labels(self) -> list[str]:
        """Its label, followed by its aliases."""
        return [self.label, *self.aliases]

    @cached_property
    def _by_alias(self) -> dict[str, Step[Any]]:
        return {alias: step for step in self.steps.values() for alias in step.aliases}


@dataclass(frozen=True)
class Failure:
    """Why a run has failed: ``step`` (and ``item``, if it was one), ``error`` and ``message``.

    ``error`` is the name of the exception's class, with its module.
    """

    step: str
    item: int | None
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one ``item`` of a fan-out ended: its ``status``, and its ``result`` if it succeeded.

    For a subsequence, ``item`` is the id of the child run and ``result`` is its data.
    """

    item: Any
    status: str
    result: Any
