"""Definitions as data: what they can say, and what each error says."""

import json
import re
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from asgiref.sync import async_to_sync
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import sequences
from sequences import Abort, Sequence, astart_definition, chain, define, job, load, start_definition
from sequences.checks import check_unfinished_runs
from sequences.engine import dispatcher
from sequences.exceptions import InvalidData, InvalidDefinition
from sequences.flows import jobs, parser
from sequences.inspection import snapshot
from sequences.models import SequenceRun, StepFailure, StepRun, StoredPlan
from sequences.testing import assert_steps, drain, isolate_sequences, run_sequence
from sequences.transitions import plans
from sequences.utils.durations import parse_duration
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import fresh, ledger, sent

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def calls():
    """What the jobs were called with."""
    called = []
    with isolate_sequences():
        declare_jobs(called)
        yield called


def declare_jobs(called):
    @job("fetch")
    def fetch(url: str, times: int = 1):
        called.append(("fetch", url, times))
        return {"pages": [f"{url}/{number}" for number in range(times)], "url": url}

    @job("count")
    def count(pages: list[str]) -> int:
        called.append(("count", pages))
        return len(pages)

    @job("visit")
    def visit(item):
        called.append(("visit", item))
        return len(item)

    @job("shout")
    def shout(text, sequence):
        called.append(("shout", text))
        sequence.data["shouted"] = text.upper()

    @job("fail")
    def fail():
        raise Abort("broken")

    @job("note")
    def note(**anything):
        called.append(("note", anything))


def declare(steps, **keys):
    definition = {"name": "shop.Flow", "steps": steps, **keys}
    assert fits(definition), "the schema refuses what we take"
    return define(definition)


SCHEMA = json.loads(
    Path(sequences.__file__).with_name("flows").joinpath("definition.schema.json").read_text()
)


def fits(definition):
    """Whether the schema that we ship takes it."""
    return Draft202012Validator(SCHEMA).is_valid(definition)


def refused(steps, **keys):
    with pytest.raises(InvalidDefinition) as caught:
        define({"name": "shop.Flow", "steps": steps, **keys})
    return str(caught.value)


def test_a_mapping_becomes_a_sequence_whose_steps_run_jobs(calls):
    cls = define(
        {
            "steps": {
                "fetch": {"job": "fetch", "args": {"times": 2}},
                "count": {"job": "count", "inputs": {"pages": "steps.fetch.pages"}},
            },
            "outputs": {"total": "steps.count", "first": "steps.fetch.pages.0"},
        },
        name="shop.Import",
    )
    assert sequences.get("shop.Import") is cls
    assert issubclass(cls, Sequence)
    sequence = run_sequence(cls, url="a")
    assert sequence.run.status == "succeeded"
    assert sequence.data == {"url": "a", "total": 2, "first": "a/0"}
    assert calls == [("fetch", "a", 2), ("count", ["a/0", "a/1"])]


def test_a_class_that_is_inherited_gives_its_options():
    class Base(Sequence):
        class Meta:
            abstract = True
            max_retries = 3

    cls = define({"steps": {"fetch": {"job": "fetch"}}}, name="shop.Import", base=Base)
    assert cls._definition.options(cls.fetch) == {"max_retries": 3}


def test_steps_without_after_run_in_their_order_and_others_may_stand_in_any():
    cls = declare(
        {
            "last": {"job": "note", "after": ["left", "right"]},
            "left": {"job": "note", "after": "first"},
            "right": {"job": "note", "after": "first"},
            "first": {"job": "note", "after": []},
            "end": {"job": "note"},
        }
    )
    plan = cls._definition.plan
    assert plan.names == ("first", "left", "right", "last", "end")
    assert [node.after for node in plan.nodes] == [
        (), ("first",), ("first",), ("left", "right"), ("last",),
    ]  # fmt: skip


def test_each_item_of_a_result_is_one_call(calls):
    cls = declare(
        {
            "fetch": {"job": "fetch", "args": {"times": 3}},
            "visit": {"job": "visit", "each": "steps.fetch.pages", "concurrency": 2},
            "count": {"job": "count", "inputs": {"pages": "steps.fetch.pages"}},
        },
        outputs={"sizes": "steps.visit"},
    )
    assert run_sequence(cls, url="a").data["sizes"] == [3, 3, 3]
    assert [call for call in calls if call[0] == "visit"] == [
        ("visit", "a/0"), ("visit", "a/1"), ("visit", "a/2"),
    ]  # fmt: skip


def test_each_reads_a_key_of_data_and_an_input_reads_a_part_of_the_item(calls):
    steps = {"fetch": {"job": "fetch", "each": "sites", "inputs": {"url": "item.url"}}}
    sequence = run_sequence(declare(steps), sites=[{"url": "a"}, {"url": "b"}])
    assert sequence.run.status == "succeeded"
    assert calls == [("fetch", "a", 1), ("fetch", "b", 1)]


def test_batches_are_lists(calls):
    steps = {"count": {"job": "count", "each": "urls", "batch": 2, "inputs": {"pages": "item"}}}
    run_sequence(declare(steps), urls=["a", "b", "c"])
    assert calls == [("count", ["a", "b"]), ("count", ["c"])]


@pytest.mark.parametrize(
    ("when", "data", "status"),
    [
        ("paid", {"paid": True}, "succeeded"),
        ("paid", {"paid": 0}, "skipped"),
        ("paid", {}, "skipped"),
        ("data.order.paid", {"order": {"paid": 1}}, "succeeded"),
        ("not paid", {}, "succeeded"),
        ("not paid", {"paid": True}, "skipped"),
        ({"kind": "gift"}, {"kind": "gift"}, "succeeded"),
        ({"kind": "gift"}, {"kind": "sale"}, "skipped"),
        ({"count": 1}, {"count": True}, "skipped"),
        ({"kind": "gift", "data.paid": True}, {"kind": "gift"}, "skipped"),
    ],
)
def test_when_decides_by_data(when, data, status):
    sequence = run_sequence(declare({"note": {"job": "note", "when": when}}), **data)
    assert_steps(sequence, [("note", status)])


def test_when_decides_by_a_result():
    steps = {
        "count": {"job": "count"},
        "note": {"job": "note", "when": {"steps.count": 2}},
        "never": {"job": "note", "when": {"steps.count": 3}},
    }
    sequence = run_sequence(declare(steps), pages=["a", "b"])
    assert_steps(sequence, [("count", "succeeded"), ("note", "succeeded"), ("never", "skipped")])


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (1500, 1.5),
        ("3 days", 259200),
        ("15 min", 900),
        ("1 h 30 min", 5400),
        ("1 hour, 30 minutes and 5 s", 5405),
        ("1.5 hours", 5400),
        ("2w", 1209600),
        ("250 ms", 0.25),
        ("PT1H30M", 5400),
        ("P3D", 259200),
        ("P3DT12H", 302400),
    ],
)
def test_a_duration_is_milliseconds_or_a_text(written, seconds):
    assert parse_duration(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "written",
    [True, -1, 1.5, None, "", "15", "3 dayz", "soon", "-3 days", "-P1D", "P", "9" * 30 + " days"],
)
def test_what_is_no_duration_is_refused(written):
    assert parse_duration(written) is None


def test_a_delay_waits_and_options_may_be_written_as_durations():
    cls = declare(
        {"note": {"job": "note", "delay": "3 days", "time_limit": "5 min", "max_retries": 2}},
        options={"max_age": "1 day", "queue_name": "slow"},
    )
    node = cls._definition.plan.node("note")
    assert node.queue == "slow"
    options = {"max_age": 86_400_000, "queue_name": "slow", "time_limit": 300_000, "max_retries": 2}
    assert cls._definition.options(cls.note) == options
    started = cls()
    drain()
    row = StepRun.objects.get(run=started.run.pk)
    assert row.status == "waiting"
    assert abs(row.due_at - row.ready_at - timedelta(days=3)) < timedelta(seconds=1)


def test_an_event_waits_and_its_payload_can_be_read(calls):
    steps = {
        "approval": {"event": {"timeout": "3 days", "on_timeout": "continue"}},
        "shout": {"job": "shout", "inputs": {"text": "steps.approval.by"}},
    }
    started = declare(steps)()
    drain()
    assert ledger(started.run) == {"approval": "waiting"}
    started.run.deliver("approval", {"by": "joel"})
    drain()
    assert fresh(started.run).data["shouted"] == "JOEL"
    assert declare({"approval": {"event": {}}}, name="shop.Other")._definition.plan.names


ANSWERS = {"Approve": {"yes": True}, "Refuse": {"yes": False, "why": None}}


@pytest.mark.parametrize("is_inline", [False, True])
def test_an_event_offers_choices_to_people(admin_client, is_inline):
    steps = {"approval": {"event": {"choices": ANSWERS, "timeout": "3 days"}}}
    started = start_definition({"steps": steps}) if is_inline else declare(steps)()
    drain()
    shown = snapshot.of(fresh(started.run))
    assert [step.choices for step in shown.steps if step.name == "approval"] == [ANSWERS]
    page = admin_client.get(f"/admin/job_sequences/sequencerun/{started.run.pk}/change/")
    text = page.content.decode()
    assert "Approve" in text
    assert "Refuse" in text
    assert "choice=Approve" in text


def test_an_undo_and_on_failure_run_jobs(calls):
    steps = {
        "fetch": {
            "job": "fetch",
            "undo": {"job": "note", "inputs": {"url": "steps.fetch.url"}, "max_retries": 2},
        },
        "fail": {"job": "fail"},
    }
    cls = declare(steps, on_failure={"job": "note", "args": {"mail": "ops"}})
    sequence = run_sequence(cls, url="a")
    expected = [
        ("fetch", "succeeded"),
        ("fail", "failed"),
        ("undo_fetch", "succeeded"),
        ("on_failure", "succeeded"),
    ]
    assert_steps(sequence, expected)
    assert calls == [("fetch", "a", 1), ("note", {"url": "a"}), ("note", {"mail": "ops"})]


def test_the_undo_of_a_subsequence_takes_the_place_of_its_childrens(calls):
    declare(
        {"fetch": {"job": "fetch", "undo": {"job": "note", "args": {"of": "child"}}}},
        name="shop.Below",
    )
    undo = {"job": "note", "args": {"of": "parent"}}
    below = {"subsequence": "shop.Below", "each": "data.of", "inputs": {"url": "item"}}
    fails = {"fail": {"job": "fail"}}
    sequence = run_sequence(declare({"below": {**below, "undo": undo}, **fails}), of=["a", "b"])
    assert ledger(sequence.run)["undo_below"] == "succeeded"
    assert [call for call in calls if call[0] == "note"] == [("note", {"of": "parent"})]
    run_sequence(declare({"below": below, **fails}, name="shop.Other"), of=["a", "b"])
    assert [call for call in calls if call[0] == "note"][1:] == [("note", {"of": "child"})] * 2


def test_the_undo_of_a_fan_out_gets_the_item_and_its_result(calls):
    steps = {
        "visit": {
            "job": "visit",
            "each": "urls",
            "undo": {"job": "note", "inputs": {"url": "item", "size": "result"}},
        },
        "fail": {"job": "fail"},
    }
    run_sequence(declare(steps), urls=["a", "bb"])
    undone = [call[1] for call in calls if call[0] == "note"]
    assert undone == [{"url": "bb", "size": 2}, {"url": "a", "size": 1}]


def test_on_error_goes_on_with_another_step(calls):
    steps = {
        "mend": {"job": "note"},
        "fail": {"job": "fail", "on_error": "mend"},
        "end": {"job": "note", "after": "fail"},
    }
    sequence = run_sequence(declare(steps))
    assert sequence.run.status == "succeeded"
    assert ledger(sequence.run) == {"fail": "failed", "mend": "succeeded", "end": "skipped"}


def test_outputs_are_left_out_with_what_comes_after_a_failed_step():
    steps = {"mend": {"job": "note"}, "fail": {"job": "fail", "on_error": "mend"}}
    sequence = run_sequence(declare(steps, outputs={"a": "steps.mend"}))
    assert sequence.run.status == "succeeded"
    assert ledger(sequence.run)["outputs"] == "skipped"


def test_a_subsequence_gets_its_inputs_and_gives_its_data(calls):
    define({"steps": {"shout": {"job": "shout"}}}, name="shop.Child")
    steps = {
        "child": {
            "subsequence": "shop.Child",
            "inputs": {"text": "data.word"},
            "args": {"loud": True},
        }
    }
    cls = declare(steps, outputs={"answer": "steps.child.shouted"})
    sequence = run_sequence(cls, word="hello")
    assert sequence.data["answer"] == "HELLO"
    child = SequenceRun.objects.get(sequence="shop.Child")
    assert child.data == {"text": "hello", "loud": True, "shouted": "HELLO"}


def test_a_subsequence_for_each_item(calls):
    define({"steps": {"shout": {"job": "shout"}}}, name="shop.Child")
    child = {"subsequence": "shop.Child", "each": "words", "inputs": {"text": "item"}}
    sequence = run_sequence(
        declare({"child": child}, outputs={"all": "steps.child"}), words=["a", "b"]
    )
    assert [one["shouted"] for one in sequence.data["all"]] == ["A", "B"]


def test_save_keeps_a_result_in_data_for_the_jobs_that_come(calls):
    steps = {
        "fetch": {"job": "fetch", "save": "fetched"},
        "count": {"job": "count", "inputs": {"pages": "data.fetched.pages"}},
    }
    assert run_sequence(declare(steps), url="a").data["fetched"]["url"] == "a"
    assert calls[-1] == ("count", ["a/0"])


def test_defaults_and_the_options_of_a_class(calls):
    cls = declare(
        {"fetch": {"job": "fetch"}},
        defaults={"url": "b", "times": 2},
        handoff="direct",
        retention="90 days",
        retention_failed="365 days",
        redact=["url"],
        verbose_name="Import of pages",
        aliases=["shop.Old"],
    )
    definition = cls._definition
    assert definition.handoff == "direct"
    assert definition.retention == timedelta(days=90)
    assert definition.retention_failed == timedelta(days=365)
    assert definition.redact == ("url",)
    assert definition.verbose_name == "Import of pages"
    assert sequences.get("shop.Old") is cls
    run_sequence(cls, times=3)
    assert calls == [("fetch", "b", 3)]


def test_an_output_of_a_skipped_step_is_left_out_and_one_that_is_not_there_fails():
    steps = {"fetch": {"job": "fetch", "when": "wanted"}}
    cls = declare(steps, outputs={"pages": "steps.fetch.pages"})
    assert run_sequence(cls).data == {}
    cls = declare(steps, outputs={"pages": "steps.fetch.sites"})
    sequence = run_sequence(cls, wanted=True, url="a")
    failure = StepFailure.objects.get(run=sequence.run)
    text = "steps.fetch.sites does not exist. Fix the outputs, or what the step returns."
    assert failure.message == text


def test_a_result_of_none_is_told_from_none_at_all(calls):
    @job("find")
    def find() -> None: ...

    @job("take")
    def take(found: str | None = "nothing"):
        calls.append(found)

    steps = {
        "find": {"job": "find", "when": "wanted"},
        "take": {"job": "take", "inputs": {"found": "steps.find"}},
    }
    cls = declare(steps, outputs={"found": "steps.find"})
    assert run_sequence(cls, wanted=True).data == {"wanted": True, "found": None}
    assert run_sequence(cls).data == {}
    assert calls == [None, "nothing"]


def test_a_null_in_a_definition_is_none_and_not_nothing():
    steps = {"fetch": {"job": "fetch", "max_retries": None}}
    definition = declare(steps, retention=None)._definition
    assert definition.retention == timedelta.max  # for ever, whatever the settings say
    assert definition.options(definition.steps["fetch"])["max_retries"] is None
    composed = chain(jobs.get("fetch").with_(max_retries=None)).definition()
    assert composed["steps"]["fetch"]["max_retries"] is None


# Errors


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (
            {"job": "fetsh"},
            "no job is registered as 'fetsh'. Did you mean 'fetch'? Jobs are registered when "
            "the module with their @job is imported.",
        ),
        (
            {},
            "it has no job, event or subsequence. Use exactly one of job, event and subsequence.",
        ),
        (
            {"job": "fetch", "event": {}},
            "it has job and event. Use exactly one of job, event and subsequence.",
        ),
        (
            {"job": "fetch", "afer": []},
            "'afer' is not a valid key of a step, nor a Dramatiq option. Did you mean 'after'?",
        ),
        (
            {"job": "fetch", "after": "firts"},
            "after names 'firts', which is not a step of this definition. Did you mean 'first'?",
        ),
        (
            {"job": "fetch", "after": 3},
            'after is 3. Use the name of a step, {"any_of": [name, …]}, or a list of these.',
        ),
        (
            {"job": "fetch", "after": "two"},
            "after is circular: two → two. Remove one of these dependencies.",
        ),
        (
            {"job": "fetch", "inputs": {"ulr": "data.url"}},
            "job 'fetch' has no parameter 'ulr'. Did you mean 'url'?",
        ),
        (
            {"job": "fetch", "inputs": {"url": "http://a"}},
            "inputs.url is 'http://a'. Use data.key or steps.name, or pass a literal value with "
            "args.",
        ),
        (
            {"job": "fetch", "inputs": {"url": "steps.firts"}},
            "inputs.url reads 'firts', which is not a step of this definition. Did you mean "
            "'first'?",
        ),
        (
            {"job": "fetch", "after": [], "inputs": {"url": "steps.first"}},
            "inputs.url reads the step 'first' without waiting for it. Add 'first' to its after.",
        ),
        (
            {"job": "fetch", "inputs": {"url": "data.url"}, "args": {"url": "a"}},
            "'url' is in both inputs and args. Remove one of them.",
        ),
        (
            {"job": "fetch", "delay": "soon"},
            'delay is \'soon\'. Use milliseconds, or a string such as "15 min", "3 days" or '
            '"PT1H30M".',
        ),
        (
            {"job": "fetch", "when": []},
            'when is []. Use a key of data, "not key", or a mapping of keys to the values '
            "they must have.",
        ),
        (
            {"job": "fetch", "each": "urls"},
            "job 'fetch' does not receive the item. Add inputs, such as url: item.",
        ),
        (
            {"job": "visit", "each": "urls", "save": "sizes"},
            "save is not allowed with each, because items cannot change data. Use a key of "
            "data, and only on a step without each.",
        ),
        (
            {"job": "fetch", "throws": "ValueError"},
            "the option throws is not supported: it is a class, but definitions are plain data. "
            "Leave it out, or declare the sequence as a class.",
        ),
        (
            {"job": "fetch", "on_success": "other"},
            "the option on_success is not supported: Dramatiq loses the callback's message if "
            "the broker is down when the step ends. Declare a step after this one instead.",
        ),
        (
            {"job": "fetch", "undo": "note", "after": "undo_two"},
            "its undo would be named 'undo_two', but a step already has that name. Rename the "
            "step 'undo_two'.",
        ),
        ({"event": {}, "args": {}}, "args cannot be combined with event. Leave it out."),
        ({"event": {}, "each": "urls"}, "each cannot be combined with event. Leave it out."),
        (
            {"subsequence": "shop.Child", "concurrency": 2},
            "concurrency cannot be combined with subsequence. Leave it out.",
        ),
        (
            {"event": {"choices": ["yes", "no"]}},
            "choices is ['yes', 'no']. It must be a dict of payloads, such as "
            '{"Approve": {"approved": True}}.',
        ),
        (
            {"event": {"form": "shop.forms.Approval"}},
            "form is a class, but definitions are plain data. Offer choices, or declare the event "
            "in a class.",
        ),
        (
            {"event": {"timout": 3}},
            "'timout' is not a valid key of an event. Did you mean 'timeout'?",
        ),
        (
            {"event": {"on_timeout": "stop"}},
            'on_timeout is \'stop\'. It must be "fail" or "continue".',
        ),
        (
            {"subsequence": "Child"},
            "subsequence is 'Child'. Use the label of a sequence, such as \"shop.ShipOrder\".",
        ),
        (
            {"job": "fetch", "undo": {"job": "fetsh"}},
            "no job is registered as 'fetsh'. Did you mean 'fetch'? Jobs are registered when "
            "the module with their @job is imported.",
        ),
        (
            {"job": "fetch", "on_error": "nowhere"},
            "its on_error is 'nowhere', which is not a step of this sequence. Available: "
            "first, two.",
        ),
        ({"job": "fetch", "atomic": "no"}, "atomic is 'no'. It must be True or False."),
        ("fetch", "the step is 'fetch'. Use a mapping, such as {job: fetch_data}."),
    ],
)
def test_an_error_of_a_step_names_it_and_the_mend(step, text):
    steps = {"first": {"job": "note"}, "two": step}
    if "undo_two" in str(step):
        steps["undo_two"] = {"job": "note", "after": []}
    found = refused(steps)
    assert found == f"tests.integration.test_flows.Flow: step 'two': {text}"


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        ({"name": "shop.A"}, "shop.A: it has no steps. Add steps: a mapping of names to steps."),
        ({"name": "shop.A", "steps": {}}, "shop.A: it has no steps. Add a step."),
        (
            {"name": "shop.A", "steps": {"x": {"job": "note"}}, "output": {}},
            "shop.A: 'output' is not a valid key of a definition. Did you mean 'outputs'?",
        ),
        (
            {"name": "shop.A", "steps": {"x y": {"job": "note"}}},
            "shop.A: step 'x y': its name is not valid. Use letters, digits, underscores and "
            "hyphens, and start with a letter.",
        ),
        (
            {"name": "shop.A", "steps": {"data": {"job": "note"}}},
            "shop.A: step 'data': this name is reserved: every sequence has an attribute with this "
            "name. Rename it.",
        ),
        (
            {"name": "shop.A", "steps": {"outputs": {"job": "note"}}},
            "shop.A: step 'outputs': this name is already taken. Rename the step.",
        ),
        (
            {"name": "shop.A", "steps": {"x": {"job": "note"}}, "handoff": "fast"},
            "shop.A: handoff is 'fast'. It must be \"broker\" or \"direct\".",
        ),
        (
            {"name": "shop.A", "steps": {"x": {"job": "note"}}, "on_failure": {"job": "x"}},
            "shop.A: step 'on_failure': no job is registered as 'x'.",
        ),
        (
            {"name": "shop.A", "steps": {"x": {"job": "note"}}, "outputs": {"a": "steps.y"}},
            "shop.A: step 'outputs': a reads 'y', which is not a step of this definition. "
            "Available: x.",
        ),
        (
            {"steps": {"x": {"job": "note"}}},
            ": it has no name. Add name: with an app label and a name, such as \"shop.Import\".",
        ),
        (
            {"name": "a.b.c", "steps": {}},
            ": its name is 'a.b.c'. Add name: with an app label and a name, such as "
            '"shop.Import".',
        ),
        (
            {"name": "shop.A", "steps": {"x": {"job": "note", "args": {"x": {1, 2}}}}},
            'shop.A: definition["steps"]["x"]["args"]["x"] is of type set, which JSON cannot '
            "represent. Use a list.",
        ),
    ],
)  # fmt: skip
def test_an_error_of_a_definition_names_it_and_the_mend(definition, text):
    with pytest.raises(InvalidDefinition) as caught:
        define(definition)
    expected = "tests.integration.test_flows" + text.removeprefix("shop")
    assert str(caught.value).startswith(expected)


def test_a_circle_is_shown_as_it_goes():
    steps = {
        "a": {"job": "note", "after": "c"},
        "b": {"job": "note", "after": "a"},
        "c": {"job": "note", "after": "b"},
    }
    text = "step 'a': after is circular: a → b → c → a. Remove one of these dependencies."
    assert refused(steps).endswith(text)


def test_a_definition_is_bounded():
    steps = {f"s{number}": {"job": "note"} for number in range(501)}
    assert refused(steps).endswith("it has 501 steps; the limit is 500. Use each or subsequences.")
    steps.popitem()
    assert len(declare(dict(reversed(steps.items())))._definition.plan.nodes) == 500


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
STEP_JUNK = st.dictionaries(
    st.sampled_from([*parser.STEP_KEYS, "max_retries", "queue_name", "priority", "time_limit"]),
    JUNK | st.sampled_from(["steps.a", "data.a", "item", "note", "a", {"job": "note"}, ["a"]]),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(
    step=STEP_JUNK,
    job=st.booleans(),
    top=st.dictionaries(
        st.sampled_from([key for key in parser.KEYS if key != "steps"]), JUNK, max_size=2
    ),
)
def test_whatever_is_wrong_is_an_invalid_definition(step, job, top):
    with isolate_sequences(), suppress(InvalidDefinition):
        steps = {"a": {"job": "note"}, "b": {"job": "note", **step} if job else step}
        define({**top, "steps": steps}, name="shop.Junk")


@settings(max_examples=100, deadline=None)
@given(JUNK)
def test_what_is_no_definition_at_all_is_an_invalid_definition(junk):
    for definition in (junk, {"steps": junk}, {"steps": {"a": junk}}, {"steps": [junk]}):
        with pytest.raises(InvalidDefinition):
            define(definition, name="shop.Junk")


# Files


YAML = """
name: shop.Import
steps:
  fetch: {job: fetch, args: {url: "2026-01-02"}}
  count:
    job: count
    inputs: {pages: steps.fetch.pages}
outputs: {total: steps.count}
"""
HERE = Path(__file__).parent


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file; `load` finds it below the module's folder, which is this one."""
    monkeypatch.setitem(globals(), "__file__", str(tmp_path / "sequences.py"))
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / "flows" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


def load_error(pattern="flows/*"):
    with pytest.raises(InvalidDefinition) as caught:
        load(pattern)
    return str(caught.value)


def test_yaml_and_json_files_beside_the_module_become_sequences(write):
    write("b.yaml", YAML)
    write("a.json", json.dumps({"name": "shop.Count", "steps": {"count": {"job": "count"}}}))
    count, import_ = load("flows/*")
    assert sequences.get("shop.Count") is count
    assert run_sequence(import_).data == {"total": 1}
    assert run_sequence(count, pages=[]).run.status == "succeeded"


def test_a_file_that_is_loaded_again_replaces_and_another_with_its_name_is_refused(write):
    write("a.yaml", YAML)
    first = load("flows/a.yaml")
    second = load("flows/a.yaml")
    assert first != second
    assert sequences.get("shop.Import") is second[0]
    write("b.yaml", YAML)
    assert load_error("flows/b.yaml") == (
        "flows/b.yaml: 'shop.Import' is already the label or an alias of flows/a.yaml. "
        "Rename one of the classes, or set a different app_label in its Meta."
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.yaml",
            "name: shop.A\nsteps:\n  x: {job: ftch}",
            "flows/a.yaml: step 'x': no job is registered as 'ftch'. Did you mean 'fetch'? Jobs "
            "are registered when the module with their @job is imported.",
        ),
        (
            "a.yaml",
            "name: shop.A\nsteps:\n  x: {job: note, max_retries: 1}\n  x: {job: note}",
            "flows/a.yaml: it is not valid YAML: line 4: the key 'x' appears twice in a "
            "mapping. Correct the file.",
        ),
        (
            "a.json",
            '{"name": "shop.A", "name": "shop.B"}',
            "flows/a.json: the key 'name' appears twice in a mapping. Rename one of them.",
        ),
        (
            "a.json",
            "{",
            "flows/a.json: it is not valid JSON: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1). Correct the file.",
        ),
        ("a.yaml", "- x", "flows/a.yaml: it does not contain a mapping. Start with name: and "
                          "steps:."),
        (
            "a.yaml",
            "steps: {x: {job: note}}",
            'flows/a.yaml: it has no name. Add name: with an app label and a name, such as '
            '"shop.Import".',
        ),
        (
            "a.yaml",
            "name: shop.A\nsteps:\n  x: {job: note, atomic: 3}",
            "flows/a.yaml: step 'x': atomic is 3. It must be True or False.",
        ),
        (
            "a.yaml",
            "name: shop.A\nhandoff: 3\nsteps:\n  x: {job: note}",
            'flows/a.yaml: handoff is 3. It must be "broker" or "direct".',
        ),
        (
            "a.yaml",
            "name: shop.A\nsteps: {x: {job: note}}\ndefaults: {1: 2}",
            'flows/a.yaml: definition["defaults"] has the key 1 of type int. Keys must be strings.',
        ),
        (
            "a.txt",
            "",
            "flows/a.txt: its suffix is '.txt'. Use one of .json, .yaml, .yml.",
        ),
        ("a.yaml", "a: !!python/object:os.system {}", "flows/a.yaml: it is not valid YAML: line "
                                                      "1: "),
    ],
)  # fmt: skip
def test_an_error_in_a_file_names_it(write, name, text, expected):
    write(name, text)
    assert load_error().startswith(expected)


def aliases(first, then, count=40):
    """Each line twice what the one above it is."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {then.replace('*', f'*a{n - 1}')}" for n in range(1, count)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        aliases("[x, x]", "[*, *]"),
        aliases("{k: v}", "{a: *, b: *}"),
        aliases("{k: v}", "{<<: [*, *], x: y}"),
        aliases("[x, x]", "[*, *]") + "\n? *a39\n: x",
        "a: &a [*a, *a]",
    ],
    ids=["lists", "mappings", "merges", "a key", "itself"],
)
def test_aliases_that_stand_for_more_than_any_memory_holds_are_refused(write, text):
    write("a.yaml", f"name: shop.A\nsteps: {{x: {{job: note}}}}\n{text}")
    assert "values once its aliases are expanded" in load_error()


def test_aliases_as_people_use_them_are_read(write):
    write("a.yaml", "name: shop.A\nsteps:\n  x: &x {job: note, max_retries: 1}\n  y: {<<: *x}")
    (cls,) = load("flows/*")
    assert cls._definition.steps["y"].options["max_retries"] == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "a: " + "[" * 3_000 + "]" * 3_000),
        ("a.yaml", "\n".join(" " * n + "a:" for n in range(1_500))),
        ("a.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ],
)
def test_a_file_that_is_nested_too_deeply_is_named(write, name, text):
    write(name, text)
    assert load_error() == f"flows/{name}: it is nested too deeply. Flatten it."


def test_shared_values_of_a_definition_and_of_data_are_refused_at_once():
    bomb = ["x"]
    for _ in range(24):
        bomb = [bomb, bomb]
    with pytest.raises(InvalidDefinition, match="is written once for each"):
        start_definition({"steps": {"x": {"job": "note", "args": {"a": bomb}}}})
    with pytest.raises(InvalidData, match="is written once for each"):
        start_definition({"steps": {"x": {"job": "note"}}}, {"a": bomb})


def test_a_pattern_that_finds_nothing_is_an_error(write):
    assert load_error("flows/*.yml") == (
        "load('flows/*.yml'): matches no file. Fix the pattern. It is relative to the module "
        "that calls load()."
    )


def test_an_option_that_only_the_broker_knows_is_named_with_its_file(write):
    write("a.yaml", "name: shop.A\nsteps:\n  x: {job: note, quite_unknown: 3}")
    assert load_error().startswith(
        "flows/a.yaml: step 'x': 'quite_unknown' is not a valid key of a step"
    )


# Kept with the run


STEPS = {
    "fetch": {"job": "fetch", "args": {"times": 2}, "max_retries": 1, "time_limit": "1 min"},
    "visit": {"job": "visit", "each": "steps.fetch.pages"},
    "approval": {"event": {}, "after": []},
    "end": {"job": "note", "when": {"steps.approval": "yes"}},
}


def test_a_definition_is_kept_with_its_run(calls):
    sequence = start_definition({"steps": STEPS, "outputs": {"sizes": "steps.visit"}}, {"url": "a"})
    assert sequence.run.sequence == "job_sequences.Flow:flow"
    drain()
    sequence.run.deliver("approval", "yes")
    forget_flows()
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert fresh(sequence.run).data["sizes"] == [3, 3]
    assert calls[-1] == ("note", {})
    assert (
        sequences.definitions.registry.find("job_sequences.Flow:flow")
        is sequences.flows.builder.Flow
    )


@pytest.mark.django_db(transaction=True)
def test_a_definition_is_started_by_asynchronous_code(calls):
    start = async_to_sync(astart_definition)
    sequence = start({"steps": STEPS}, {"url": "a"}, key="one", name="mine")
    assert sequence.run.sequence == "job_sequences.Flow:mine"
    assert sequence.run.key == "one"
    assert start({"steps": STEPS}, {"url": "b"}, key="one", name="mine").created is False


def forget_flows():
    """As in another process, which reads what is stored."""
    plans.forget()


def test_its_messages_carry_the_options_of_their_steps(calls):
    first, *_ = sent(lambda: start_definition({"steps": STEPS}, {"url": "a"}))
    message = dispatcher.message_for(first)
    assert message.actor_name == "job_sequences.Flow.job"
    assert message.options["max_retries"] == 1
    assert message.options["time_limit"] == 60_000


def test_its_steps_are_retried_as_their_options_say():
    @job("break")
    def broken():
        raise ValueError("broken")

    sequence = start_definition({"steps": {"x": {"job": "break", "max_retries": 2}}})
    drain()
    assert fresh(sequence.run).status == "failed"
    assert StepFailure.objects.filter(run=sequence.run).count() == 3


def test_an_undo_and_on_failure_are_kept_too(calls):
    steps = {
        "fetch": {"job": "fetch", "undo": {"job": "note", "args": {"undone": True}}},
        "fail": {"job": "fail"},
    }
    sequence = start_definition({"steps": steps, "on_failure": "note"}, {"url": "a"})
    forget_flows()
    drain()
    assert ledger(sequence.run) == {
        "fetch": "succeeded",
        "fail": "failed",
        "undo_fetch": "succeeded",
        "on_failure": "succeeded",
    }


def test_a_key_is_unique_for_the_name(calls):
    definition = {"steps": {"x": {"job": "note"}}}
    first = start_definition(definition, key="1", name="a")
    again = start_definition(definition, key="1", name="a")
    other = start_definition(definition, key="1", name="b")
    assert (first.created, again.created, other.created) == (True, False, True)
    assert first.run == again.run != other.run


def test_a_name_that_a_database_refuses_is_refused():
    with pytest.raises(InvalidData):
        start_definition({"steps": {"x": {"job": "note"}}}, name="a\x00b")


def test_a_definition_that_is_the_same_is_stored_once():
    definition = {"steps": {"x": {"job": "note"}}}
    for number in range(3):
        start_definition(definition, {"number": number})
    assert StoredPlan.objects.filter(sequence="job_sequences.Flow:flow").count() == 1
    start_definition({"steps": {"x": {"job": "note", "args": {"y": 1}}}})
    assert StoredPlan.objects.filter(sequence="job_sequences.Flow:flow").count() == 2


def test_a_job_that_a_worker_does_not_know_is_tried_again(calls):
    sequence = start_definition({"steps": {"x": {"job": "note", "max_retries": 0}}})
    forget_flows()
    with jobs.isolated():
        jobs._by_name.clear()
        drain()
    failure = StepFailure.objects.get(run=sequence.run)
    assert failure.message == "No job is registered as 'note'. None exist."
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).status == "succeeded"


def test_a_run_that_keeps_its_definition_can_be_steered_swept_and_checked(calls):
    sequence = start_definition({"steps": {"fail": {"job": "fail"}, "end": {"job": "note"}}})
    assert not list(check_unfinished_runs(None))
    StepRun.objects.update(wake_at="2000-01-01T00:00Z")
    sweep(AssumeLost(), "default")
    assert ledger(sequence.run) == {"fail": "queued"}
    drain()
    assert fresh(sequence.run).status == "failed"
    sequence.run.skip("fail")
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert ledger(sequence.run) == {"fail": "skipped", "end": "succeeded"}


@pytest.mark.parametrize(
    ("definition", "options", "text"),
    [
        (
            {"steps": {"x": {"job": "ntoe"}}},
            {"name": "mine"},
            "start_definition, 'mine': step 'x': no job is registered as 'ntoe'. Did you mean "
            "'note'? Jobs are registered when the module with their @job is imported.",
        ),
        (
            {"steps": {"x": {"job": "note"}}, "handoff": "direct"},
            {},
            "start_definition, 'flow': it has handoff, which only declared definitions can have. "
            "Leave it out, or declare the definition with sequences.define.",
        ),
        (
            {"steps": {"x": {"job": "note", "queue_name": "defualt"}}},
            {},
            "start_definition, 'flow': step 'x': no worker of this project consumes the queue "
            "'defualt'. Did you mean 'default'?",
        ),
        (
            {"steps": {"x": {"job": "note", "priority": 3}}},
            {},
            "start_definition, 'flow': step 'x': it has a priority, but Dramatiq sets priorities "
            "per actor, not per message. Leave it out, or give the step a queue_name.",
        ),
        (
            {"steps": {"x": {"subsequence": "shop.Chlid"}}},
            {},
            "start_definition, 'flow': step 'x': no sequence is registered as 'shop.Chlid'. Did "
            "you mean 'shop.Child'?",
        ),
        (
            {"steps": {"x": {"job": "note", "on_retry_exhausted": "any"}}},
            {},
            "start_definition, 'flow': step 'x': it has on_retry_exhausted, which could name any "
            "actor. Add on_failure with a job to the definition instead.",
        ),
        (
            {"steps": {"x": {"job": "note", "max_retries": "3"}}},
            {},
            "start_definition, 'flow': step 'x': max_retries is '3'. Use a non-negative "
            "integer, or null for no limit.",
        ),
        (
            {"steps": {"x": {"job": "note", "atomic": 0}}},
            {},
            "start_definition, 'flow': step 'x': atomic is 0. It must be True or False.",
        ),
        (
            3,
            {},
            "start_definition, 'flow': a definition must be a mapping; this is of type int. Pass a "
            "mapping, or the result of chain() or group().",
        ),
        ({}, {"name": ""}, "start_definition: name is ''. Use a string of 1 to 150 characters."),
    ],
)
def test_a_wrong_definition_is_refused_at_the_start(definition, options, text):
    declare({"x": {"job": "note"}}, name="shop.Child")
    with pytest.raises(InvalidDefinition) as caught:
        start_definition(definition, **options)
    assert str(caught.value) == text
    assert not SequenceRun.objects.exists()


# The schema


def test_the_schema_is_one_and_has_every_key():
    Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(parser.KEYS)
    assert set(SCHEMA["$defs"]["step"]["properties"]) == set(parser.STEP_KEYS)
    assert set(SCHEMA["$defs"]["call"]["properties"]) == {*parser.CALL_KEYS, "aliases", "label"}
    assert set(SCHEMA["$defs"]["event"]["oneOf"][1]["properties"]) == set(parser.EVENT_KEYS)
    assert set(parser.DURATION_OPTIONS) < set(SCHEMA["$defs"]["dramatiq"]["properties"])


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"job": ""},
        {"job": "a", "event": {}},
        {"job": "a", "name": "b"},
        {"job": "a", "after": 3},
        {"job": "a", "inputs": {"url": "http://a"}},
        {"job": "a", "inputs": {"url": "steps"}},
        {"job": "a", "inputs": {"url": 3}},
        {"job": "a", "after": {"any_of": ["b"]}},
        {"job": "a", "after": {"all_of": ["b", "c"]}},
        {"job": "a", "delay": "soon"},
        {"job": "a", "delay": -1},
        {"job": "a", "when": []},
        {"job": "a", "concurrency": 0},
        {"job": "a", "throws": "ValueError"},
        {"job": "a", "undo": {"inputs": {}}},
        {"event": {}, "args": {}},
        {"event": {"timout": 3}},
        {"event": {"on_timeout": "stop"}},
        {"event": {"choices": ["yes"]}},
        {"event": {"choices": {"": 1}}},
        {"event": {"form": "shop.Form"}},
        {"subsequence": "Child"},
        {"subsequence": "shop.Child", "save": "x"},
        "a",
    ],
)
def test_the_schema_refuses_a_wrong_step(step):
    assert not fits({"steps": {"x": step}})


@pytest.mark.parametrize(
    "definition",
    [
        {},
        {"steps": {}},
        {"steps": []},
        {"steps": {"a b": {"job": "a"}}},
        {"steps": {"outputs": {"job": "a"}}},
        {"steps": [{"job": "a"}]},
        {"steps": {"a": {"job": "a"}}, "output": {}},
        {"steps": {"a": {"job": "a"}}, "outputs": {"a": "b"}},
        {"steps": {"a": {"job": "a"}}, "handoff": "fast"},
        {"steps": {"a": {"job": "a"}}, "on_failure": []},
        {"steps": {"a": {"job": "a"}}, "on_failure": [{"job": "a", "max_retries": 3}]},
        {"steps": {"a": {"job": "a"}}, "inputs": {"a": {"type": "text"}}},
        {"steps": {"a": {"job": "a"}}, "inputs": {"a": {"required": True, "default": 1}}},
        {"steps": {"a": {"job": "a"}}, "name": "a.b.c"},
        {"steps": {"a": {"job": "a"}}, "on_failure": {}},
        {"steps": {"a": {"job": "a"}}, "options": {"retry_when": "x"}},
    ],
)
def test_the_schema_refuses_a_wrong_definition(definition):
    assert not fits(definition)


def test_the_schema_takes_steps_in_a_list_and_the_examples_of_the_docs():
    assert fits({"steps": [{"name": "a", "job": "a"}, {"name": "b", "event": True}]})
    assert fits({"steps": {"a": {"event": {"choices": {"Yes": True, "No": {"why": [1]}}}}}})
    text = Path(__file__).parents[2].joinpath("docs", "flows.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    assert all(fits(yaml.safe_load(block)) for block in blocks)


# Schedules


FETCH = {"fetch": {"job": "fetch"}}


def test_a_definition_has_a_schedule(calls):
    cls = declare(
        FETCH,
        schedule={
            "cron": "0 3 * * *",
            "timezone": "Europe/Berlin",
            "data": {"url": "a"},
            "overlap": "wait",
            "catch_up": "6 hours",
            "missed": "all",
            "jitter": "5 min",
        },
    )
    assert cls._definition.schedules == {
        "default": sequences.cron(
            "0 3 * * *",
            timezone="Europe/Berlin",
            data={"url": "a"},
            overlap="wait",
            catch_up=timedelta(hours=6),
            missed="all",
            jitter=timedelta(minutes=5),
        )
    }


def test_a_definition_has_several_schedules(calls):
    cls = declare(FETCH, schedules={"often": {"every": "5 min"}, "daily": {"cron": "0 3 * * *"}})
    assert cls._definition.schedules == {
        "often": sequences.every(timedelta(minutes=5)),
        "daily": sequences.cron("0 3 * * *"),
    }


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("0 3 * * *", "schedule is '0 3"),
        ({}, "neither cron nor every"),
        ({"cron": "0 3 * * *", "every": "5 min"}, "both cron and every"),
        ({"every": "5 min", "timezone": "UTC"}, "'timezone' is not a valid key of schedule"),
        ({"every": "soon"}, "every is 'soon'"),
        ({"cron": "0 25 * * *"}, "schedule: '0 25"),
        ({"cron": "0 3 * * *", "overlap": "queue"}, "schedule: overlap is 'queue'"),
        ({"cron": "0 3 * * *", "data": "now"}, "data of schedule is 'now'"),
        ({"cron": "0 3 * * *", "catch_up": "long"}, "catch_up is 'long'"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said(calls, schedule, problem):
    definition = {"name": "shop.Flow", "steps": FETCH, "schedule": schedule}
    assert fits(definition) == (schedule == {"cron": "0 25 * * *"})  # only cronsim knows that
    with pytest.raises(InvalidDefinition, match=problem):
        define(definition)


def test_a_definition_that_is_kept_with_its_run_has_no_schedule(calls):
    with pytest.raises(InvalidDefinition, match="it has schedule, which only declared definitions"):
        start_definition({"steps": FETCH, "schedule": {"every": "5 min"}})
