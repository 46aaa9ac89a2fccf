"""Which operations a run allows, and when: one table for the engine, the admin and the CLI.

A rule covers what the status of a run and of a step can decide. The functions below it decide the
rest, from the plan and the statuses of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from .kinds import ALL_KINDS, COMPENSATION_KINDS, EVENT_KINDS, MAIN_KINDS, traits_of
from .plan import Plan

RunState = Literal["running", "paused", "undoing", "succeeded", "failed", "cancelled"]
StepState = Literal[
    "waiting", "queued", "running", "retrying", "succeeded", "failed", "skipped", "cancelled"
]
RUN_STATES: tuple[RunState, ...] = get_args(RunState)
STEP_STATES: tuple[StepState, ...] = get_args(StepState)
#: The status of a step that has no row yet.
NOT_STARTED: Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """The statuses in which an operation is allowed, in the order in which errors list them."""

    run_states: tuple[RunState, ...]
    #: For an operation on one step: the statuses that allow it. Empty: it concerns the whole run.
    step_states: tuple[StepState | Literal[""], ...] = ()
    kinds: frozenset[str] = ALL_KINDS
    #: The runs that it selects by default, by status, the most likely first.
    usual_runs: tuple[RunState, ...] = ()
    #: The statuses in which people are offered it, if code may use it in more.
    offered_steps: tuple[StepState, ...] = ()

    @property
    def is_on_step(self) -> bool:
        return bool(self.step_states)

    def allows(self, run_state: str) -> bool:
        """Whether a run with this status may accept it."""
        return run_state in self.run_states

    def offers_step(self, step_state: str, kind: str) -> bool:
        """Whether people are offered it for a step with this status."""
        return step_state in (self.offered_steps or self.step_states) and kind in self.kinds

    @property
    def targets(self) -> tuple[RunState, ...]:
        """The statuses of the runs that it selects by default, the most likely first."""
        return self.usual_runs or self.run_states


#: By the name of the method, with its variants below it.
RULES: dict[str, Rule] = {
    "pause": Rule(("running",)),
    "resume": Rule(("paused",)),
    "cancel": Rule(("running", "paused", "undoing")),
    "cancel_and_undo": Rule(("running", "paused")),
    "finish": Rule(("running", "paused")),
    "set_deadline": Rule(("running", "paused")),
    "retry": Rule(("running", "paused", "failed"), usual_runs=("failed",)),
    "retry_compensation": Rule(("failed",)),
    "skip": Rule(
        ("running", "paused", "failed"),
        step_states=("failed", "waiting", "queued", "retrying"),
        kinds=MAIN_KINDS,
        usual_runs=("failed", "running", "paused"),
    ),
    "skip_compensation": Rule(("failed",), step_states=("failed",), kinds=COMPENSATION_KINDS),
    "run_now": Rule(("running", "undoing"), step_states=("waiting", "retrying")),
    "restart_from": Rule(
        ("running", "paused", "succeeded", "failed", "cancelled"),
        step_states=STEP_STATES,
        kinds=MAIN_KINDS,
        usual_runs=("failed", "running", "paused", "cancelled"),
    ),
    "deliver": Rule(
        ("running", "paused", "failed"),
        # An early delivery is stored until the run reaches its event.
        step_states=(NOT_STARTED, "waiting", "queued", "running", "retrying", "failed"),
        kinds=EVENT_KINDS,
        usual_runs=("failed", "running", "paused"),
        offered_steps=("waiting", "failed"),
    ),
    "edit": Rule(RUN_STATES),
    "erase": Rule(("succeeded", "failed", "cancelled")),
}


def skip_rule(kind: str) -> Rule:
    """A compensation can be skipped only after it and its run have failed."""
    return RULES["skip_compensation" if traits_of(kind).is_compensation else "skip"]


# Conditions that depend on more than the status


def has_handler(plan: Plan, states: Mapping[str, str], step: str) -> bool:
    """Whether this step has failed and a handler has taken over: then it cannot be skipped."""
    return states.get(step) == "failed" and step not in plan.failed(states)


def is_past(plan: Plan, states: Mapping[str, str], event: str) -> bool:
    """Whether the run will never use a delivery for this event.

    Its `on_error` has taken over, or it is the `on_error` of steps that have not failed.
    """
    return has_handler(plan, states, event) or plan.is_spared(event, states)


def left_undone(plan: Plan, undone: frozenset[str], step: str) -> frozenset[str]:
    """The undone steps that a restart from this one needs but would not run again."""
    return undone - plan.again(step)


def fails_elsewhere(plan: Plan, states: Mapping[str, str], step: str) -> bool:
    """Whether a step has failed that a restart from this one would not run again."""
    again = plan.again(step, states)
    return plan.is_failing({name: state for name, state in states.items() if name not in again})
