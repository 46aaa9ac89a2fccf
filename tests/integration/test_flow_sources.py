"""Definitions as data that people wrote elsewhere: templates, an index, inputs, joins, endings."""

import pytest

from sequences import job, start_definition
from sequences.exceptions import InvalidData
from sequences.testing import drain, run_sequence
from tests.engine import fresh, ledger
from tests.integration.test_flows import calls, declare, fits, refused

pytestmark = pytest.mark.django_db
__all__ = ["calls"]  # a fixture


@pytest.fixture(autouse=True)
def _more_jobs(calls):
    @job("label")
    def label(text, number=None):
        calls.append((text, number))
        return text

    @job("mail")
    def mail(to="", *, sequence):
        calls.append(("mail", to, sequence.failure.message))


def test_references_stand_in_texts_lists_and_mappings(calls):
    cls = declare(
        {
            "fetch": {"job": "fetch", "args": {"times": 2}},
            "note": {
                "job": "note",
                "inputs": {
                    "text": "A message is ${data.url}: ${steps.fetch.pages}, ${data.count}, $${x}.",
                    "list": ["${steps.fetch.pages.1}", "${data.count}", "data.url", 3, None],
                    "nested": {"a": {"b": ["${data.flag}"]}, "${data.url}": True},
                    "same": "${ data.count }",
                },
            },
        },
        outputs={"summary": "${steps.fetch.url}!", "all": {"pages": "${steps.fetch.pages}"}},
    )
    sequence = run_sequence(cls, url="a", count=5, flag=None)
    assert calls[1] == (
        "note",
        {
            "text": 'A message is a: ["a/0","a/1"], 5, ${x}.',
            "list": ["a/1", 5, "data.url", 3, None],
            "nested": {"a": {"b": [None]}, "${data.url}": True},
            "same": 5,
        },
    )
    assert sequence.data["summary"] == "a!"
    assert sequence.data["all"] == {"pages": ["a/0", "a/1"]}


def test_nothing_in_a_text_is_evaluated(calls):
    cls = declare({"note": {"job": "note", "inputs": {"text": "${data.url} {0.__class__} %s"}}})
    run_sequence(cls, url="${data.secret} $${", secret="x")
    assert calls == [("note", {"text": "${data.secret} $${ {0.__class__} %s"})]


def test_a_value_that_is_not_there_is_named():
    cls = declare({"label": {"job": "label", "inputs": {"text": ["x", {"y": "${data.no.way}"}]}}})
    (failure,) = run_sequence(cls).run.failures.all()
    assert "has no value: data.no.way does not exist" in failure.message


def test_a_default_takes_the_place_of_a_value_that_is_not_there(calls):
    inputs = {"text": "data.url", "number": "No. ${data.number}"}
    run_sequence(declare({"label": {"job": "label", "inputs": inputs}}), url="a")
    assert calls == [("a", None)]


def test_an_output_of_a_step_that_was_skipped_is_left_out():
    steps = {"fetch": {"job": "fetch", "when": "ready"}}
    outputs = {"text": "found ${steps.fetch.url}", "other": "${data.url}"}
    assert run_sequence(declare(steps, outputs=outputs), url="a").data == {"url": "a", "other": "a"}
    (failure,) = run_sequence(declare(steps, outputs={"x": ["${data.no}"]})).run.failures.all()
    assert failure.message.startswith("data.no does not exist")


def test_an_item_knows_its_index(calls):
    steps = {
        "label": {
            "job": "label",
            "each": "names",
            "inputs": {"text": "${index}: ${item}", "number": "index"},
            "undo": {"job": "note", "inputs": {"back": "${index} ${result}"}},
        },
        "fail": {"job": "fail"},
    }
    sequence = run_sequence(declare(steps), names=["ann", "joel"])
    assert calls[:2] == [("0: ann", 0), ("1: joel", 1)]
    assert calls[2:] == [("note", {"back": "1 1: joel"}), ("note", {"back": "0 0: ann"})]
    assert sequence.run.status == "failed"


def test_a_child_run_knows_the_index_of_its_item():
    declare({"note": {"job": "note"}})
    child = {"subsequence": "shop.Flow", "each": "names", "inputs": {"no": "index", "who": "item"}}
    parent = {"steps": {"all": child}, "outputs": {"all": "steps.all"}}
    run = start_definition(parent, {"names": ["ann", "joel"]}).run
    drain()
    assert fresh(run).data["all"] == [{"no": 0, "who": "ann"}, {"no": 1, "who": "joel"}]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"text": "a ${data.x"}, "inputs.text has a ${ without its }: 'a ${data.x'."),
        ({"text": "a ${x}"}, "inputs.text is 'x'. Use data.key or steps.name"),
        ({"text": ["${}"]}, "inputs.text.0 is ''. Use data.key or steps.name"),
        ({"text": {"a": "${steps.late}"}}, "inputs.text.a reads the step 'late' without waiting"),
        ({"text": "${item}"}, "inputs.text is 'item'."),
        ({"text": "index"}, "inputs.text is 'index'."),
    ],
)
def test_a_wrong_reference_in_a_text_is_named(inputs, text):
    steps = {"one": {"job": "label", "inputs": inputs}, "late": {"job": "note", "after": []}}
    assert text in refused(steps)


def test_declared_inputs_are_asked_for_by_what_people_call_them():
    inputs = {
        "site": {"label": "Web site", "required": True},
        "times": {"default": 2},
        "comment": None,
    }
    cls = declare({"fetch": {"job": "fetch", "inputs": {"url": "data.site"}}}, inputs=inputs)
    with pytest.raises(
        InvalidData, match=r"data lacks 'site' \(Web site\). Pass it when you start"
    ):
        cls()
    with pytest.raises(InvalidData, match="Is 'sit' a misspelling of it"):
        cls(sit="a")
    assert not cls.runs.exists()
    sequence = run_sequence(cls, site="a", more=1)
    assert sequence.data == {"site": "a", "times": 2, "more": 1}
    with pytest.raises(InvalidData, match="lacks 'site'"):
        start_definition({"steps": {"x": {"job": "note"}}, "inputs": {"site": {"required": True}}})


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"a": {"lable": "x"}}, "'lable' is not a valid key of input 'a'. Did you mean 'label'?"),
        ({"a": {"required": True, "default": 1}}, "input 'a' is required and has a default."),
        ({"a": {"label": 3}}, "label of input 'a' is 3. Use a string."),
        ({"a": {"required": "yes"}}, "input 'a' has required: 'yes'. Use true or false."),
        ({"b": {"default": 1}}, "'b' has a default in inputs and in defaults. Keep one."),
        ([], "inputs is []. Use a mapping."),
    ],
)
def test_inputs_that_make_no_sense_are_refused(inputs, text):
    assert text in refused({"x": {"job": "note"}}, inputs=inputs, defaults={"b": 2})


@pytest.mark.parametrize("after", [{"any_of": ["yes", "no"]}, ["fetch", {"any_of": ["yes", "no"]}]])
def test_the_first_of_several_is_enough(after, calls):
    steps = {
        "fetch": {"job": "fetch"},
        "yes": {"event": {}, "after": "fetch"},
        "no": {"event": {}, "after": "fetch"},
        "note": {"job": "note", "after": after, "inputs": {"by": "steps.no.by"}},
    }
    run = declare(steps)(url="a").run
    drain()
    assert run.deliver("no", {"by": "ann"})
    drain()
    assert ledger(run)["yes"] == "skipped"
    assert fresh(run).status == "succeeded"
    assert calls[-1] == ("note", {"by": "ann"})


@pytest.mark.parametrize(
    ("after", "text"),
    [
        ({"any_of": ["a"]}, "any_of needs at least two steps"),
        ({"any_of": "a"}, "after is {'any_of': 'a'}."),
        ({"any": ["a", "b"]}, "after is {'any': ['a', 'b']}."),
        ({"any_of": ["a", "c"]}, "after names 'c', which is not a step of this definition"),
        (["a", {"any_of": ["a", "b"]}], "after names 'a' more than once"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(after, text):
    steps = {"a": {"job": "note"}, "b": {"job": "note"}, "x": {"job": "note", "after": after}}
    assert text in refused(steps)


def test_several_jobs_run_on_failure_one_after_the_other(calls):
    on_failure = [
        {"job": "label", "inputs": {"text": "${data.url} failed"}},
        "mail",
        {"job": "mail", "args": {"to": "ann"}},
    ]
    sequence = run_sequence(declare({"fail": {"job": "fail"}}, on_failure=on_failure), url="a")
    assert calls == [("a failed", None), ("mail", "", "broken"), ("mail", "ann", "broken")]
    assert ledger(sequence.run) == {"fail": "failed", "on_failure": "succeeded"}


def test_so_they_do_however_the_run_ends(calls):
    on_end = [{"job": "label", "inputs": {"text": "${data.url} ended"}}, "note"]
    run_sequence(declare({"note": {"job": "note"}}, on_end=on_end), url="a")
    assert calls == [("note", {}), ("a ended", None), ("note", {})]


@pytest.mark.parametrize(
    ("on_failure", "text"),
    [
        ([], "step 'on_failure': it has no jobs. Add one, or leave it out."),
        (["nobody"], "no job is registered as 'nobody'"),
        ([{"job": "note", "max_retries": 1}], "'max_retries' is not a valid key of a job of"),
        ([3], "a job of on_failure is 3."),
    ],
)
def test_jobs_on_failure_that_make_no_sense_are_refused(on_failure, text):
    assert text in refused({"fail": {"job": "fail"}}, on_failure=on_failure)


def test_all_of_it_is_stored_with_a_run(calls):
    definition = {
        "inputs": {"url": {"label": "Address", "required": True}},
        "steps": {
            "yes": {"event": {}, "after": []},
            "no": {"event": {}, "after": []},
            "note": {
                "job": "note",
                "after": {"any_of": ["yes", "no"]},
                "inputs": {"text": ["${data.url}"]},
            },
        },
        "on_failure": ["note", "note"],
    }
    assert fits(definition)
    run = start_definition(definition, {"url": "a"}).run
    drain()
    run.deliver("yes")
    drain()
    assert fresh(run).status == "succeeded"
    assert calls == [("note", {"text": ["a"]})]
