import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequences.definitions.plan import FORMAT, Node, Plan
from sequences.exceptions import InvalidDefinition, SequenceError, UnknownStep


def node(name, *after, queue="default"):
    return Node(name=name, after=after, actor=f"shop.Order.{name}", queue=queue)


def build(*nodes):
    return Plan.build("shop.Order", nodes)


def names(nodes):
    return [found.name for found in nodes]


def refused(*nodes, where=None):
    with pytest.raises(InvalidDefinition) as caught:
        Plan.build("shop.Order", nodes, where=where)
    return str(caught.value)


CHAIN = build(node("reserve"), node("pay", "reserve"), node("ship", "pay"))
DIAMOND = build(
    node("open"), node("left", "open"), node("right", "open"), node("join", "left", "right")
)


def test_a_chain_is_one_and_a_diamond_is_not():
    _, pay, ship = CHAIN.nodes
    assert CHAIN.chain == {"reserve": pay, "pay": ship, "ship": None}
    assert build(node("only")).chain == {"only": None}
    assert DIAMOND.chain is None
    assert build(node("one"), node("two")).chain is None
    assert build(node("a"), node("b", "a"), node("c", "a", "b")).chain is None


def test_a_plan_knows_its_steps_by_name():
    assert CHAIN.names == ("reserve", "pay", "ship")
    assert CHAIN.node("pay") is CHAIN.get("pay") is CHAIN.nodes[1]
    assert "pay" in CHAIN
    assert "bill" not in CHAIN
    assert CHAIN.get("bill") is None


@pytest.mark.parametrize("method", [CHAIN.node, CHAIN.successors, CHAIN.descendants])
def test_a_name_that_is_no_step_is_an_error_with_a_mend(method):
    with pytest.raises(UnknownStep) as caught:
        method("shipp")
    assert str(caught.value) == "shop.Order has no step 'shipp'. Did you mean 'ship'?"


def test_roots_wait_for_nothing():
    assert names(DIAMOND.roots) == ["open"]
    assert names(build(node("a"), node("b"), node("c", "a", "b")).roots) == ["a", "b"]


def test_successors_are_direct_and_descendants_are_all():
    assert names(DIAMOND.successors("open")) == ["left", "right"]
    assert names(DIAMOND.successors("join")) == []
    assert DIAMOND.descendants("open") == {"left", "right", "join"}
    assert DIAMOND.descendants("left") == {"join"}
    assert DIAMOND.descendants("join") == frozenset()


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        ({}, ["open"]),
        ({"open": "queued"}, []),
        ({"open": "succeeded"}, ["left", "right"]),
        ({"open": "skipped"}, ["left", "right"]),
        ({"open": "succeeded", "left": "succeeded"}, ["right"]),
        ({"open": "succeeded", "left": "succeeded", "right": "running"}, []),
        ({"open": "succeeded", "left": "succeeded", "right": "failed"}, []),
        ({"open": "succeeded", "left": "succeeded", "right": "skipped"}, ["join"]),
        (dict.fromkeys(DIAMOND.names, "succeeded"), []),
    ],
)
def test_a_step_is_ready_when_all_that_it_waits_for_is_done(states, ready):
    assert names(DIAMOND.ready(states)) == ready


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        ({}, None),
        ({"open": "succeeded"}, None),
        (dict.fromkeys(DIAMOND.names, "succeeded"), "succeeded"),
        (dict.fromkeys(DIAMOND.names, "skipped"), "succeeded"),
        ({"open": "succeeded", "left": "failed", "right": "running"}, None),
        ({"open": "succeeded", "left": "failed", "right": "retrying"}, None),
        ({"open": "succeeded", "left": "failed", "right": "queued"}, "failed"),
        ({"open": "succeeded", "left": "failed", "right": "waiting"}, "failed"),
        ({"open": "succeeded", "left": "failed", "right": "succeeded"}, "failed"),
        ({"open": "cancelled"}, None),
    ],
)
def test_a_run_has_ended_when_nothing_executes_and_nothing_is_left_or_one_has_failed(
    states, outcome
):
    assert DIAMOND.outcome(states) == outcome


def test_a_plan_survives_json():
    text = json.dumps(DIAMOND.to_json())
    assert Plan.from_json("shop.Order", json.loads(text)) == DIAMOND


def test_the_graph_says_its_format():
    assert CHAIN.to_json()["format"] == FORMAT == 1
    assert CHAIN.to_json()["steps"][1] == {
        "name": "pay",
        "after": ["reserve"],
        "actor": "shop.Order.pay",
        "queue": "default",
        "kind": "step",
    }


def test_what_a_later_release_added_to_this_format_is_ignored():
    graph = CHAIN.to_json()
    graph["colour"] = "red"
    graph["steps"][0]["mood"] = "good"
    assert Plan.from_json("shop.Order", graph) == CHAIN


def test_a_newer_format_is_an_error_that_says_so():
    with pytest.raises(SequenceError) as caught:
        Plan.from_json("shop.Order", {"format": 2, "shape": "unheard of"})
    assert str(caught.value) == (
        "The plan of shop.Order has format 2; this release reads formats up to 1."
        " Upgrade this process to the release that wrote the plan."
    )


def test_the_fingerprint_is_of_the_shape_only():
    same = Plan.from_json("shop.Other", CHAIN.to_json())
    assert same.fingerprint == CHAIN.fingerprint
    assert len(CHAIN.fingerprint) == 64
    # Stored in every database that ever ran this shape: a change here is a new format.
    assert CHAIN.fingerprint == "ccd9570b5ae4548bddd9fccc49c99fc34351681cc2f9bb0516b15bd3434a8a6b"


def test_each_part_of_the_shape_changes_the_fingerprint():
    plans = [
        build(node("a"), node("b", "a")),
        build(node("a"), node("b")),
        build(node("a"), node("c", "a")),
        build(node("a"), node("b", "a", queue="slow")),
        build(node("b"), node("a", "b")),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)


def test_the_order_in_which_after_is_written_does_not_matter():
    other = build(
        node("open"),
        node("left", "open"),
        node("right", "open"),
        node("join", "right", "left", "left"),
    )
    assert other == DIAMOND
    assert other.fingerprint == DIAMOND.fingerprint


RACE = build(
    node("open"),
    node("first", "open"),
    node("second", "first"),
    node("refuse", "open"),
    node("thank", "second"),
    node("regret", "refuse"),
    replace(node("decide", "open", "refuse", "second"), any_of=(("refuse", "second"),)),
    node("end", "thank", "regret", "decide"),
)


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        ({"first": "succeeded", "second": "queued", "refuse": "waiting"}, []),
        ({"refuse": "succeeded", "first": "waiting"}, ["regret", "decide"]),
        ({"refuse": "skipped", "first": "waiting"}, ["regret"]),
        # None of them can be the first any more.
        (
            {"refuse": "skipped", "first": "skipped", "second": "skipped"},
            ["thank", "regret", "decide"],
        ),
    ],
)
def test_of_several_one_that_has_succeeded_is_enough(states, ready):
    assert names(RACE.ready({"open": "succeeded", **states})) == ready


@pytest.mark.parametrize(
    ("states", "lost"),
    [
        ({"first": "succeeded", "refuse": "waiting"}, []),
        ({"first": "succeeded", "second": "skipped", "refuse": "waiting"}, []),
        ({"first": "waiting", "refuse": "succeeded"}, ["first", "second", "thank"]),
        ({"first": "succeeded", "refuse": "succeeded"}, ["second", "thank"]),
        ({"first": "succeeded", "second": "succeeded", "refuse": "running"}, ["refuse", "regret"]),
        ({"first": "skipped", "second": "skipped", "refuse": "succeeded"}, []),
        ({"first": "succeeded", "second": "failed", "refuse": "succeeded"}, []),
    ],
)
def test_the_others_are_lost_with_what_comes_after_them_alone_or_leads_only_to_them(states, lost):
    assert names(RACE.lost({"open": "succeeded", **states})) == lost


def test_a_delivered_event_is_as_good_as_succeeded_once_it_has_begun():
    states = {"open": "succeeded", "first": "waiting", "refuse": "queued"}
    assert names(RACE.lost(states, ["refuse"])) == ["first", "second", "thank"]
    assert names(RACE.lost(states, ["second"])) == []
    assert RACE.has_lost("first", {**states, "first": "skipped"}, ["refuse"])
    assert not RACE.has_lost("refuse", states, ["second"])


def test_a_restart_from_one_of_several_begins_all_of_them_anew():
    later = {"decide", "thank", "regret", "end"}
    assert RACE.again("decide") == {"decide", "end"}
    assert RACE.again("refuse") == {"refuse", "second", *later}
    skipped = {"first": "skipped", "second": "skipped", "refuse": "succeeded"}
    assert RACE.again("refuse", skipped) == {"refuse", "first", "second", *later}
    assert RACE.again("second", skipped) == {"refuse", "second", *later}


@st.composite
def races(draw):
    """A plan with joins of all, and of the first of several, at random."""
    nodes = []
    for index in range(draw(st.integers(2, 9))):
        above = [one.name for one in nodes]
        names = draw(st.lists(st.sampled_from(above), unique=True)) if above else []
        count = draw(st.integers(0, len(names)))
        groups = [tuple(names[:count])] if count > 1 else []
        if len(names) - count > 1 and draw(st.booleans()):
            groups.append(tuple(names[count:]))
        nodes.append(replace(node(f"s{index}", *names), any_of=tuple(groups)))
    return build(*nodes)


@given(plan=races(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_first_every_run_ends_and_one_of_each_group_counts(plan, data):
    states = {}
    while plan.outcome(states) is None:
        states |= dict.fromkeys((one.name for one in plan.ready(states)), "queued")
        queued = sorted(name for name, state in states.items() if state == "queued")
        assert queued, states
        ended = data.draw(st.sampled_from(queued))
        states[ended] = data.draw(st.sampled_from(["succeeded", "succeeded", "skipped"]))
        lost = names(plan.lost(states))
        assert ended not in lost
        states |= dict.fromkeys(lost, "skipped")
        assert not plan.lost(states)
    for group in plan.races:
        assert len([name for name in group if states[name] == "succeeded"]) <= 1


def test_several_of_which_one_is_enough_are_part_of_the_shape():
    assert Plan.from_json("shop.Order", json.loads(json.dumps(RACE.to_json()))) == RACE
    assert RACE.fingerprint != replace_any_of(RACE, ()).fingerprint
    twice = replace_any_of(RACE, (("second", "refuse", "second"), ("refuse", "second")))
    assert twice.fingerprint == RACE.fingerprint
    assert RACE.chain is None


def replace_any_of(plan, groups):
    return build(
        *(replace(one, any_of=groups) if one.name == "decide" else one for one in plan.nodes)
    )


def test_a_plan_without_steps_is_refused():
    assert refused() == (
        "shop.Order: it has no steps. Declare one with @step, or set abstract = True in its Meta."
    )


def test_two_steps_of_one_name_are_refused():
    assert refused(node("pay"), node("pay")) == (
        "shop.Order.pay: two steps have this name. Rename one of them."
    )


def test_an_after_that_is_no_step_is_refused_with_the_nearest_name():
    assert refused(node("reserve"), node("pay", "reserv")) == (
        "shop.Order.pay: after names 'reserv', which is not a step of this sequence. Did you "
        "mean 'reserve'?"
    )


@pytest.mark.parametrize("after", ["pay", "ship"])
def test_an_after_that_goes_up_or_round_is_refused(after):
    assert refused(node("reserve"), node("pay", after), node("ship")) == (
        f"shop.Order.pay: after names '{after}', which is circular or declared further down."
        " A step can only wait for steps declared above it. Move this step down."
    )


def test_an_error_names_the_class_as_it_is_told_to():
    assert refused(where="shop.sequences.Order").startswith("shop.sequences.Order: ")
