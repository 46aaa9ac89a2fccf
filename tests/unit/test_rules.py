"""The table of what may be done when: it is complete, and the docs show the same."""

import re
from itertools import product
from pathlib import Path

import pytest

from sequences import Sequence, event, on_cancel, on_end, on_failure, step, subsequence
from sequences.definitions import rules
from sequences.definitions.kinds import ALL_KINDS
from sequences.definitions.plan import Node, Plan
from sequences.definitions.rules import RULES
from sequences.engine.operations import _OPERATIONS
from sequences.inspection.actions import ACTIONS
from sequences.models import RunStatus, StepStatus

DOCS = Path(__file__).parents[2] / "docs" / "lifecycle.md"
#: Rules of one method in a case of its own.
VARIANTS = {
    "cancel_and_undo": '`cancel(undo=True)`, or `cancel()` with `Meta.cancel = "undo"`',
    "retry_compensation": "`retry()` after an undo has begun, or of a run that failed only because "
    "of its `on_cancel` or `on_end`",
    "skip_compensation": "`skip(step)` of an undo, `on_failure`, `on_cancel` or `on_end`",
}


def documented():
    """The rows of the docs' table, by their first cell."""
    section = DOCS.read_text().split("\n## Operations\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows[2:]]
    return {operation: (run, step) for operation, run, step, _besides in cells}


def shown(states, every, suffix=""):
    """A cell of the docs' table."""
    if states == every:
        return f"any{suffix}"
    return ", ".join(f"`{state}`" if state else "not started" for state in states)


def test_the_docs_have_the_same_table():
    rows = documented()
    signatures = {re.match(r"`(\w+)\(", cell)[1]: cell for cell in reversed(list(rows))}
    expected = {
        VARIANTS.get(name) or signatures[name]: (
            shown(rule.run_states, rules.RUN_STATES),
            shown(rule.step_states, rules.STEP_STATES, ", once started"),
        )
        for name, rule in RULES.items()
    }
    assert rows == expected


def test_every_operation_has_a_rule_and_every_action_an_operation():
    assert RULES.keys() - VARIANTS.keys() == _OPERATIONS.keys() == ACTIONS.keys()


def everything():
    """A sequence with a step of every kind."""

    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def carry(self): ...

    class Everything(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        @step(each="items")
        def pack(self, item): ...

        approval = event()
        ship = subsequence(Child)

        @on_failure
        def tell(self): ...

        @on_cancel
        def apologise(self): ...

        @on_end
        def close(self): ...

    return Everything


def test_the_rules_know_every_state_and_every_kind():
    assert list(rules.RUN_STATES) == RunStatus.values
    assert list(rules.STEP_STATES) == StepStatus.values
    kinds = {node.kind for node in everything()._definition.plan.nodes}
    assert kinds | {"item"} == ALL_KINDS


@pytest.mark.parametrize("name", RULES)
def test_a_rule_offers_nothing_that_it_does_not_allow(name):
    rule = RULES[name]
    assert set(rule.targets) <= set(rule.run_states)
    assert set(rule.offered_steps) <= set(rule.step_states)
    for state, kind in product(["", *rules.STEP_STATES], ALL_KINDS):
        assert kind in rule.kinds or not rule.offers_step(state, kind)


def plan(*nodes):
    return Plan.build("shop.Order", nodes)


def node(name, *after, **options):
    return Node(name, after, actor=name, queue="default", **options)


def test_a_failed_step_in_whose_place_another_goes_on_has_a_handler():
    order = plan(node("charge", on_error="call"), node("call", off_path=True))
    assert not rules.has_handler(order, {"charge": "failed"}, "charge")
    assert rules.has_handler(order, {"charge": "failed", "call": "queued"}, "charge")
    assert not rules.has_handler(order, {"charge": "retrying", "call": "queued"}, "charge")


def test_a_restart_leaves_undone_what_comes_before_it_or_beside_it():
    order = plan(node("reserve"), node("charge", "reserve"), node("pack", "reserve"))
    undone = frozenset({"reserve", "pack"})
    assert rules.left_undone(order, undone, "reserve") == frozenset()
    assert rules.left_undone(order, undone, "charge") == undone


def test_a_restart_is_refused_for_a_failure_elsewhere_and_not_for_one_that_runs_again():
    order = plan(node("reserve"), node("charge", "reserve"), node("pack", "reserve"))
    states = {"reserve": "succeeded", "charge": "failed", "pack": "succeeded"}
    assert rules.fails_elsewhere(order, states, "pack")
    assert not rules.fails_elsewhere(order, states, "charge")
    assert not rules.fails_elsewhere(order, states, "reserve")
