"""The graph of a sequence's steps: its nodes, which are ready next, and how a run ends."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from ..exceptions import InvalidDefinition, SequenceError, UnknownStep, did_you_mean
from .kinds import Traits, traits_of

FORMAT = 1

DONE = frozenset({"succeeded", "skipped"})
EXECUTING = frozenset({"running", "retrying"})
ENDED = DONE | {"failed", "cancelled"}


#: Fields that most nodes lack; a stored plan leaves them out.
_RARE = ("any_of", "undoes", "attempted", "on_error", "off_path", "options")


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a plan: its name, the steps that it waits for, and where it is dispatched."""

    name: str
    #: All steps that it waits for, including those in `any_of`.
    after: tuple[str, ...]
    actor: str
    queue: str
    kind: str = "step"
    #: Groups of which one step is enough.
    any_of: tuple[tuple[str, ...], ...] = ()
    #: For an undo: the step that it undoes, and whether it also runs after a failed attempt.
    undoes: str = ""
    attempted: bool = False
    #: The step that takes over when this one has failed permanently.
    on_error: str = ""
    #: Whether it is off the main path: it starts only after a failure, or when the run ends.
    off_path: bool = False
    #: For a step whose actor has no options of its own: the options of its messages.
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def traits(self) -> Traits:
        """The traits of its kind."""
        return traits_of(self.kind)

    @property
    def is_handler(self) -> bool:
        """Whether it is an ordinary step that runs only if another step fails."""
        return self.off_path and not self.traits.is_compensation

    @property
    def required(self) -> tuple[str, ...]:
        """The steps that it waits for in any case."""
        if not self.any_of:
            return self.after
        return tuple(name for name in self.after if not any(name in group for group in self.any_of))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "after": list(self.after),
            "actor": self.actor,
            "queue": self.queue,
            "kind": self.kind,
            **{name: value for name in _RARE if (value := getattr(self, name))},
        }

    @classmethod
    def from_json(cls, step: Mapping[str, Any]) -> Node:
        return cls(
            name=step["name"],
            after=tuple(step["after"]),
            actor=step["actor"],
            queue=step["queue"],
            kind=step.get("kind", "step"),
            any_of=tuple(map(tuple, step.get("any_of", ()))),
            **{name: step[name] for name in _RARE if name in step and name != "any_of"},
        )


@dataclass(frozen=True)
class Plan:
    """The immutable graph of a sequence; ``nodes`` are in declared, topological order."""

    sequence: str
    nodes: tuple[Node, ...]
    #: What its steps do, if the plan and not a class defines it.
    definition: Mapping[str, Any] | None = field(default=None, hash=False)
    #: What a cancellation does first, unless its caller decides: "undo", or nothing.
    cancel: str = ""

    @classmethod
    def build(
        cls, sequence: str, nodes: Iterable[Node], *, where: str | None = None, cancel: str = ""
    ) -> Plan:
        """Return a validated plan of ``nodes``, or raise `InvalidDefinition`.

        ``where`` is how an error names the class; by default, ``sequence``.
        """
        plan = cls(sequence, _validated(where or sequence, tuple(nodes)), cancel=cancel)
        plan._check_handlers(where or sequence)
        return plan

    def _check_handlers(self, where: str) -> None:
        """A handler on the main path must come after the step whose failure it handles."""
        for node in self.nodes:
            handler = self.get(node.on_error) if node.on_error else None
            if handler is None or handler.off_path or handler.name in self.descendants(node.name):
                continue
            raise InvalidDefinition(
                where=f"{where}.{node.name}",
                problem=f"its on_error is {handler.name!r}, which does not wait for this step and "
                "might run before it fails",
                hint=f"Remove the after of {handler.name!r}, so that it runs only after an error, "
                f"or make it come after {node.name!r}.",
            )

    @classmethod
    def from_json(cls, sequence: str, graph: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote, possibly in another release."""
        if graph["format"] > FORMAT:
            raise SequenceError(
                f"The plan of {sequence} has format {graph['format']}; this release reads "
                f"formats up to {FORMAT}. Upgrade this process to the release that wrote "
                "the plan."
            )
        nodes = tuple(map(Node.from_json, graph["steps"]))
        return cls(sequence, nodes, graph.get("definition"), graph.get("cancel", ""))

    def to_json(self) -> dict[str, Any]:
        rare: dict[str, Any] = {}
        if self.definition is not None:
            rare["definition"] = dict(self.definition)
        if self.cancel:
            rare["cancel"] = self.cancel
        return {"format": FORMAT, "steps": [node.to_json() for node in self.nodes], **rare}

    @cached_property
    def memo(self) -> dict[str, Any]:
        """A cache for values derived from this plan, which live as long as the plan."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the graph, in hex: equal graphs have equal fingerprints."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return sha256(canonical.encode()).hexdigest()

    @cached_property
    def chain(self) -> dict[str, Node | None] | None:
        """What follows each step, if each waits for exactly the step above it; otherwise, None."""
        above = ((), *((node.name,) for node in self.main))
        if any(node.after != name for node, name in zip(self.main, above, strict=False)):
            return None
        return {node.name: next(iter(self.successors(node.name)), None) for node in self.nodes}

    @cached_property
    def main(self) -> tuple[Node, ...]:
        """The steps on the path of a run without failures."""
        return tuple(node for node in self.nodes if not node.off_path)

    @cached_property
    def undos(self) -> tuple[Node, ...]:
        """The steps that undo other steps."""
        return tuple(node for node in self.nodes if node.traits.is_undo)

    @cached_property
    def subsequences(self) -> tuple[Node, ...]:
        """The steps that start other runs."""
        return tuple(node for node in self.nodes if node.traits.has_children)

    @cached_property
    def races(self) -> tuple[tuple[str, ...], ...]:
        """The groups of steps of which only the first counts."""
        return tuple(dict.fromkeys(group for node in self.main for group in node.any_of))

    @cached_property
    def on_failure(self) -> Node | None:
        """The step that runs once when a run has failed."""
        return self._of_kind("on_failure")

    @cached_property
    def on_cancel(self) -> Node | None:
        """The step that runs once when a run is cancelled."""
        return self._of_kind("on_cancel")

    @cached_property
    def on_end(self) -> Node | None:
        """The step that runs once, however a run ends."""
        return self._of_kind("on_end")

    def _of_kind(self, kind: str) -> Node | None:
        return next((node for node in self.nodes if node.kind == kind), None)

    def closing(self, status: str) -> tuple[Node, ...]:
        """The last steps of a run that ends with this status, in order."""
        first = {"failed": self.on_failure, "cancelled": self.on_cancel}.get(status)
        return tuple(node for node in (first, self.on_end) if node is not None)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The steps that wait for no other step."""
        return tuple(node for node in self.main if not node.after)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def get(self, name: str) -> Node | None:
        return self._by_name.get(name)

    def node(self, name: str) -> Node:
        """Return the step with that name. Raises `UnknownStep`."""
        if node := self.get(name):
            return node
        hint = did_you_mean(name, self.names)
        raise UnknownStep(sequence=self.sequence, step=name, hint=hint)

    def successors(self, name: str) -> tuple[Node, ...]:
        """The steps that wait directly for this one."""
        self.node(name)
        return self._successors.get(name, ())

    def descendants(self, name: str) -> frozenset[str]:
        """The names of all steps after this one, without itself."""
        names = {self.node(name).name}
        for node in self.nodes:  # topological order: one pass finds all
            if not names.isdisjoint(node.after):
                names.add(node.name)
        return frozenset(names - {name})

    def again(self, name: str, states: Mapping[str, str] | None = None) -> frozenset[str]:
        """The steps that a restart from this one runs again: itself, all later steps, the handlers
        that took over from one of these, and the other steps of an `any_of`, with whatever was
        skipped on the way to them."""
        again = self._with_rivals(self.descendants(name) | {name})
        handlers = {self.node(step).on_error for step in again} - {"", *again}
        again = again.union(*(self.again(handler, states) for handler in handlers))
        return again | self._skipped_before(again, name, states or {})

    def _skipped_before(
        self, names: frozenset[str], name: str, states: Mapping[str, str]
    ) -> set[str]:
        """What was skipped on the way to these steps, except on the way to this one."""
        leading = self._leading_to(names) if self.races else set()
        skipped = {step for step in leading if states.get(step) == "skipped"}
        return {step for step in skipped if name not in self.descendants(step)}

    def _with_rivals(self, names: frozenset[str]) -> frozenset[str]:
        rivals = {rival for group in self.races if names & set(group) for rival in group} - names
        if not rivals:
            return names
        return self._with_rivals(names.union(rivals, *map(self.descendants, rivals)))

    def ready(self, states: Mapping[str, str]) -> tuple[Node, ...]:
        """The steps without a status whose dependencies are all done."""
        return tuple(
            node for node in self.main if node.name not in states and self._may_begin(node, states)
        )

    def _may_begin(self, node: Node, states: Mapping[str, str]) -> bool:
        """If all steps of a group were skipped, none is first, and nothing waits for them."""
        return all(self._is_done(name, states) for name in node.required) and all(
            any(states.get(name) == "succeeded" for name in group)
            or all(self._is_done(name, states) for name in group)
            for group in node.any_of
        )

    def lost(self, states: Mapping[str, str], delivered: Collection[str] = ()) -> tuple[Node, ...]:
        """The steps that are no longer needed because another step of their `any_of` was first.

        This includes the steps that come only after them or lead only to them. ``delivered``:
        events that have their payload, which count as succeeded once they have started.
        """
        losers: set[str] = set()
        reached: set[str] = set()
        for group in self.races:
            first = _first(group, states, delivered)
            if first is not None:
                losers.update(name for name in group if name != first)
                reached |= {first, *self.descendants(first)}
        losers = {name for name in losers if states.get(name) not in ENDED}
        gone = losers | (self._cut_off(losers) - reached)
        gone |= self._leading_to(gone)
        return tuple(
            node for node in self.main if node.name in gone and states.get(node.name) not in ENDED
        )

    def has_lost(self, name: str, states: Mapping[str, str], delivered: Collection[str]) -> bool:
        """Whether another step was first, so that this one was skipped, or will be."""
        if not self.races:
            return False
        states = {step: state for step, state in states.items() if state != "skipped"}
        return name in {node.name for node in self.lost(states, delivered)}

    def _cut_off(self, names: set[str], ended: Collection[str] = ()) -> set[str]:
        """These steps, and those that cannot come without them; ``ended`` steps count as
        impossible."""
        gone = set(names)
        for node in self.main:  # topological order: one pass finds all
            groups = (group for group in node.any_of if gone.intersection(group))
            if not gone.isdisjoint(node.required) or any(
                gone.union(ended).issuperset(group) for group in groups
            ):
                gone.add(node.name)
        return gone

    def _leading_to(self, names: Collection[str]) -> set[str]:
        """The steps that lead to these steps and to nothing else."""
        leading: set[str] = set()
        for node in reversed(self.main):
            following = {other.name for other in self.successors(node.name)}
            if node.name not in names and following and following <= leading.union(names):
                leading.add(node.name)
        return leading

    def _is_done(self, name: str, states: Mapping[str, str]) -> bool:
        """Whether steps that wait for it may start: a handler whose error never came counts as
        done."""
        if self.is_spared(name, states):
            return True
        return states.get(name) in DONE or self._is_handled(name, states)

    def is_spared(self, name: str, states: Mapping[str, str]) -> bool:
        """Whether it is a handler of errors that can no longer occur."""
        if name in states or not self.node(name).off_path:
            return False
        of = [node.name for node in self.nodes if node.on_error == name]
        return all(states.get(other) in DONE for other in of)

    def outcome(self, states: Mapping[str, str]) -> Literal["succeeded", "failed"] | None:
        """How a run whose steps have these statuses ended; None: it has not ended."""
        if self.is_failing(states):
            return None if EXECUTING & set(states.values()) else "failed"
        handlers = {node.on_error for node in self.nodes if states.get(node.name) == "failed"}
        names = {node.name for node in self.main} | handlers
        done = all(states.get(name) in DONE or self._is_handled(name, states) for name in names)
        return "succeeded" if done else None

    def is_failing(self, states: Mapping[str, str]) -> bool:
        """Whether a step has failed permanently and no handler has taken over."""
        return bool(self.failed(states))

    def failed(self, states: Mapping[str, str]) -> tuple[str, ...]:
        """The steps that have failed permanently and have no handler that took over."""
        return tuple(
            node.name
            for node in self.nodes
            if states.get(node.name) == "failed"
            and not node.traits.is_compensation
            and not self._is_handled(node.name, states)
        )

    def _is_handled(self, name: str, states: Mapping[str, str]) -> bool:
        """Whether its handler has taken over. A handler that was already skipped, because another
        step of an `any_of` came first, has not: then no step was left out for it either."""
        handler = self.node(name).on_error
        if states.get(name) != "failed" or handler not in states:
            return False
        return not self.has_lost(handler, states, ()) or self._replaced(name) <= states.keys()

    def _replaced(self, name: str, failed: Collection[str] = ()) -> set[str]:
        """The steps that a run no longer reaches once the handler of this one has taken over."""
        handler = self.node(name).on_error
        return self._cut_off({name}, failed) - self.descendants(handler) - {name, handler}

    def left_out(self, states: Mapping[str, str]) -> tuple[Node, ...]:
        """The steps that a run no longer reaches because handlers have taken over.

        Not the handlers that may still take over from an unfinished step, nor what follows them.
        """
        failed = {step for step, state in states.items() if state == "failed"}
        gone: set[str] = set()
        for name in failed:
            if self._is_handled(name, states):
                gone |= self._replaced(name, failed)
        for node in self.nodes if gone else ():
            if node.on_error and states.get(node.name) not in ENDED:
                gone -= {node.on_error, *self.descendants(node.on_error)}
        return tuple(node for node in self.main if node.name in gone and node.name not in states)

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _successors(self) -> dict[str, tuple[Node, ...]]:
        successors: dict[str, tuple[Node, ...]] = {}
        for node in self.nodes:
            for name in node.after:
                successors[name] = (*successors.get(name, ()), node)
        return successors


def _first(
    group: Iterable[str], states: Mapping[str, str], delivered: Collection[str]
) -> str | None:
    """The step that has succeeded, or certainly will."""
    succeeded = (name for name in group if states.get(name) == "succeeded")
    started = (name for name in group if name in delivered and name in states)
    received = (name for name in started if states[name] not in ENDED)
    return next(succeeded, None) or next(received, None)


def _validated(where: str, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    if not nodes:
        raise InvalidDefinition(
            where=where,
            problem="it has no steps",
            hint="Declare one with @step, or set abstract = True in its Meta.",
        )
    names = [node.name for node in nodes]
    for index, node in enumerate(nodes):
        _check_unique(where, node, names[:index])
        _check_after(where, node, names[:index], names)
    return tuple(_in_declared_order(node, names) for node in nodes)


def _check_unique(where: str, node: Node, above: list[str]) -> None:
    if node.name in above:
        raise InvalidDefinition(
            where=f"{where}.{node.name}",
            problem="two steps have this name",
            hint="Rename one of them.",
        )


def _check_after(where: str, node: Node, above: list[str], names: list[str]) -> None:
    for name in node.after:
        if name in above:
            continue
        problem, hint = _after_problem(name, names)
        raise InvalidDefinition(where=f"{where}.{node.name}", problem=problem, hint=hint)


def _after_problem(name: str, names: list[str]) -> tuple[str, str]:
    if name in names:
        problem = f"after names {name!r}, which is circular or declared further down"
        return problem, "A step can only wait for steps declared above it. Move this step down."
    return f"after names {name!r}, which is not a step of this sequence", did_you_mean(name, names)


def _in_declared_order(node: Node, names: list[str]) -> Node:
    # Equal graphs have equal fingerprints, whatever the order in `after`.
    groups = {tuple(sorted(set(group), key=names.index)) for group in node.any_of}
    any_of = tuple(sorted(groups, key=lambda group: [names.index(name) for name in group]))
    return replace(node, after=tuple(sorted(set(node.after), key=names.index)), any_of=any_of)
