"""Definitions that are composed in Python."""

from datetime import timedelta

import pytest

from sequences import chain, define, group, job, start_definition
from sequences.exceptions import InvalidDefinition
from sequences.flows import jobs
from sequences.models import StepRun
from sequences.testing import drain, isolate_sequences, run_sequence
from tests.engine import fresh


@pytest.fixture(autouse=True)
def performed():
    """The numbers that the jobs were called with."""
    done = []
    with isolate_sequences():

        @job("task")
        def task(number: int = 0) -> int:
            done.append(number)
            return number

        @job("a")
        def a(sequence):
            sequence.data["a"] = 1

        job("b.2")(lambda: None)
        yield done


def task(number, **keys):
    return jobs.get("task").with_({"number": number}, name=f"t{number}", **keys)


def after(composition):
    steps = composition.definition()["steps"]
    return {name: step["after"] for name, step in steps.items()}


def test_a_chain_is_one_after_the_other_of_functions_names_and_uses():
    found = chain(jobs.get("a"), "b.2", task(3))
    assert found.definition() == {
        "steps": {
            "a": {"job": "a", "after": []},
            "b_2": {"job": "b.2", "after": ["a"]},
            "t3": {"job": "task", "after": ["b_2"], "args": {"number": 3}},
        }
    }


def test_a_group_is_side_by_side_and_what_follows_waits_for_all_of_it():
    found = chain("a", group("task", "b.2"), "task")
    assert after(found) == {
        "a": [],
        "task": ["a"],
        "b_2": ["a"],
        "task_2": ["task", "b_2"],
    }


def test_they_nest():
    nested = chain(
        task(1),
        group(chain(task(2), task(5)), task(3), chain(task(4), group(task(6), task(7)))),
        task(8),
    )
    assert after(nested) == {
        "t1": [],
        "t2": ["t1"],
        "t5": ["t2"],
        "t3": ["t1"],
        "t4": ["t1"],
        "t6": ["t4"],
        "t7": ["t4"],
        "t8": ["t5", "t3", "t6", "t7"],
    }
    assert after(chain(group(task(1), task(2)), group(task(3), task(4)))) == {
        "t1": [],
        "t2": [],
        "t3": ["t1", "t2"],
        "t4": ["t1", "t2"],
    }


@pytest.mark.parametrize("compose", [chain, group])
def test_what_contains_itself_over_and_over_is_refused_at_once(compose):
    part = task(1)
    for _ in range(60):
        part = compose(part, part)
    with pytest.raises(InvalidDefinition, match="more than 500 steps"):
        part.definition()


def test_a_delay_of_a_group_or_chain_is_one_of_its_first_steps():
    found = chain(
        task(1, delay="1 min"),
        group(task(2), chain(task(3), task(4)), delay=5000),
        chain(task(5), task(6)).with_(delay=timedelta(days=1)),
    )
    steps = found.definition()["steps"]
    delays = {name: step["delay"] for name, step in steps.items() if "delay" in step}
    assert delays == {"t1": "1 min", "t2": 5000, "t3": 5000, "t5": timedelta(days=1)}


@pytest.mark.django_db
def test_a_composition_is_started_and_performed(performed):
    nested = chain(
        task(1), group(chain(task(2), task(5)), task(3), task(4)), task(8, max_retries=2)
    )
    sequence = start_definition(nested, {"x": 1}, key="one", name="numbers")
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert performed[0] == 1
    assert performed[-1] == 8
    assert sorted(performed) == [1, 2, 3, 4, 5, 8]
    assert performed.index(2) < performed.index(5)
    assert start_definition(nested, key="one", name="numbers").run == sequence.run


@pytest.mark.django_db
def test_a_delay_is_waited_for(performed):
    late = group(task(2), task(3), delay=timedelta(days=1))
    sequence = start_definition(chain(task(1), late))
    drain()
    assert performed == [1]
    rows = StepRun.objects.filter(run=sequence.run, status="waiting")
    assert {row.step for row in rows} == {"t2", "t3"}
    for row in rows:
        assert abs(row.due_at - row.ready_at - timedelta(days=1)) < timedelta(seconds=1)


@pytest.mark.django_db
def test_a_composition_can_be_declared(performed):
    cls = define(chain("a", task(1), group(task(2), task(3))), name="shop.Numbers")
    sequence = run_sequence(cls)
    assert sequence.run.status == "succeeded"
    assert sequence.data == {"a": 1}
    assert sorted(performed) == [1, 2, 3]


@pytest.mark.django_db
def test_arguments_may_come_from_earlier_steps(performed):
    end = jobs.get("task").with_(inputs={"number": "steps.t4"}, name="end", when="steps.t4")
    start_definition(chain(task(4), end))
    drain()
    assert performed == [4, 4]


@pytest.mark.parametrize(
    ("composition", "after"),
    [
        (chain("a", chain(), "b"), {"a": [], "b": ["a"]}),
        (chain("a", group(), "b"), {"a": [], "b": ["a"]}),
        (chain("a", group(chain(), group()), "b"), {"a": [], "b": ["a"]}),
        (chain("a", group("b", chain()), "c"), {"a": [], "b": ["a"], "c": ["b", "a"]}),
        (group(chain(), "a"), {"a": []}),
        (chain(), {}),
    ],
)
def test_what_is_empty_adds_no_step_and_breaks_no_order(composition, after):
    steps = composition.definition()["steps"]
    assert {name: step["after"] for name, step in steps.items()} == after


def test_an_empty_part_passes_a_delay_on():
    steps = chain(group(), "a", "b", delay=5).definition()["steps"]
    assert [step.get("delay") for step in steps.values()] == [5, None]


@pytest.mark.parametrize(
    ("compose", "text"),
    [
        (
            lambda: chain("a", group(chain(), delay=3)).definition(),
            "a group: it has a delay, but no jobs. Remove the delay.",
        ),
        (
            lambda: chain("a", 3),
            "chain(…): 3 cannot be a part. Pass jobs, names of jobs, job.with_(…), chains or "
            "groups.",
        ),
        (
            lambda: group(task(1, delay=5), delay=3).definition(),
            "step 't1': it has a delay, and so does the chain or group that begins with it. Remove "
            "one of them.",
        ),
        (
            lambda: group(chain("a", delay=5), delay=3).definition(),
            "a chain: it has a delay, and so does the chain or group that begins with it. Remove "
            "one of them.",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused(compose, text):
    with pytest.raises(InvalidDefinition) as caught:
        compose()
    assert str(caught.value) == text


@pytest.mark.django_db
def test_a_wrong_step_is_named_at_the_start():
    with pytest.raises(InvalidDefinition) as caught:
        start_definition(chain("a", "tsk"), name="mine")
    assert str(caught.value) == (
        "start_definition, 'mine': step 'tsk': no job is registered as 'tsk'. Did you mean "
        "'task'? Jobs are registered when the module with their @job is imported."
    )
