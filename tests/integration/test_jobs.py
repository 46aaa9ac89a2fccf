"""Jobs: a name, the parameters that are filled from data, and what their annotations say."""

import enum
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import typing_extensions
from pydantic import BaseModel, SecretStr

from sequences import define, job, repeat
from sequences.exceptions import InvalidData, InvalidDefinition, UnknownJob
from sequences.flows import jobs
from sequences.models import StepFailure
from sequences.testing import isolate_sequences, run_sequence


class Bound:
    """What a job needs of a sequence."""

    def __init__(self, **data):
        self.data = data


def perform(found, explicit=None, **data):
    return found.perform(Bound(**data), explicit or {})


def refused(found, explicit=None, **data):
    with pytest.raises(InvalidData) as caught:
        perform(found, explicit, **data)
    return str(caught.value)


def test_a_job_is_a_function_that_is_known_by_a_name():
    @job("add")
    def add(a: int, b: int = 1) -> int:
        """Add them."""
        return a + b

    assert jobs.get("add") is add
    assert add(1, b=2) == 3
    assert add.name == "add"


def test_a_name_that_is_unknown_is_an_error_with_the_nearest():
    job("fetch_data")(lambda: 1)
    with pytest.raises(UnknownJob) as caught:
        jobs.get("fetch_date")
    assert str(caught.value) == "No job is registered as 'fetch_date'. Did you mean 'fetch_data'?"
    assert isinstance(caught.value, LookupError)
    assert jobs.find("fetch_date") is None


def test_two_functions_of_one_name_are_refused_and_a_reloaded_one_is_not():
    def declare():
        @job("fetch")
        def fetch():
            pass

        return fetch

    first = declare()
    assert declare() is not first

    def other():
        pass

    with pytest.raises(InvalidDefinition) as caught:
        job("fetch")(other)
    test = "test_two_functions_of_one_name_are_refused_and_a_reloaded_one_is_not"
    start = f"{__name__}.{test}"
    assert str(caught.value) == (
        f"job 'fetch': {start}.<locals>.other and {start}.<locals>.declare.<locals>.fetch have the "
        "same name. Rename one of them."
    )


def generator():
    yield


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (generator, "job 'x': it is a generator function. Return a list instead of yielding."),
        (
            lambda a, /: 1,
            "job 'x': its parameter a cannot be passed by name. Make it a keyword parameter.",
        ),
        (
            lambda *a: 1,
            "job 'x': its parameter *a cannot be passed by name. Make it a keyword parameter.",
        ),
        (dict, "job 'x': <class 'dict'> is not a function. Decorate a function."),
    ],
)
def test_what_cannot_be_a_job_is_refused(function, text):
    with pytest.raises(InvalidDefinition) as caught:
        job("x")(function)
    assert str(caught.value) == text


def test_a_job_without_a_name_is_refused():
    with pytest.raises(InvalidDefinition) as caught:
        job(generator)
    expected = "job tests.integration.test_jobs.generator: it has no name. "
    assert str(caught.value) == expected + 'Write @job("fetch_data") with a name of your choice.'


def test_annotations_that_cannot_be_read_are_an_error_of_the_job():
    def x(a):
        pass

    x.__annotations__ = {"a": "Nowhere"}
    with pytest.raises(InvalidDefinition) as caught:
        perform(job("x")(x), a=1)
    assert str(caught.value) == (
        "job 'x': its annotations cannot be resolved: name 'Nowhere' is not defined. Use only "
        "names that its module defines at run time."
    )


def test_what_is_registered_in_a_test_is_forgotten():
    with isolate_sequences():
        job("inside")(lambda: 1)
    assert jobs.find("inside") is None


def test_parameters_are_filled_from_data_by_their_names():
    @job("x")
    def x(a: int, b: str = "b", c=3):
        return [a, b, c]

    assert perform(x, a=1, c=None, other=5) == [1, "b", None]


def test_what_is_given_explicitly_wins():
    @job("x")
    def x(a, b):
        return [a, b]

    assert perform(x, {"a": 3}, a=1, b=2) == [3, 2]


def test_a_default_counts_where_a_source_has_nothing():
    found = job("x")(lambda a=7: a)
    assert found.perform(Bound(a=1), {}, {"a": "steps.fetch"}) == 7
    with pytest.raises(InvalidData) as caught:
        job("y")(lambda a: a).perform(Bound(a=1), {}, {"a": "steps.fetch"})
    assert str(caught.value) == (
        "Parameter 'a' of job 'y' has no value: steps.fetch does not exist. Fix its inputs "
        "or the step that they read, or give the parameter a default."
    )


def test_a_parameter_without_a_value_is_named():
    found = job("fetch")(lambda url: url)
    assert refused(found, uri="a") == (
        "Parameter 'url' of job 'fetch' has no value and no default. Put 'url' into data, or pass "
        "it with args or inputs."
    )


def test_a_job_may_take_the_sequence_and_anything_else():
    bound = Bound(a=1)
    found = job("x")(lambda sequence, a: [sequence, a])
    assert found.perform(bound, {}) == [bound, 1]
    assert perform(job("y")(lambda **rest: rest), {"b": 2}, a=1) == {"b": 2}


class Colour(enum.Enum):
    RED = "red"


class Point(typing_extensions.TypedDict):
    x: int


@pytest.mark.parametrize(
    ("hint", "fitting", "wrong"),
    [
        (int, 3, "three"),
        (float, 3, "three"),
        (str, "a", 3),
        (bool, True, "maybe"),
        (list, [1], {"a": 1}),
        (list[int], [1, 2], [1, "x"]),
        (dict[str, int], {"a": 1}, {"a": "x"}),
        (int | None, None, "x"),
        (None, None, 1),
        (Literal["a", "b"], "b", "c"),
        (Annotated[int, "metres"], 1, "x"),
        (list[dict[str, list[int]]], [{"a": [1]}], [{"a": ["x"]}]),
        (Point, {"x": 1}, []),
    ],
)
def test_values_are_validated_by_their_annotations(hint, fitting, wrong):
    def x(a):
        return a

    x.__annotations__ = {"a": hint}
    found = job("x")(x)
    assert perform(found, a=fitting) == fitting
    assert refused(found, a=wrong).startswith("Parameter 'a' of job 'x' ")


def test_what_pydantic_says_is_told_and_the_value_is_not():
    @job("x")
    def x(numbers: list[int]):
        pass

    assert refused(x, numbers=[1, "secret"]) == (
        "Parameter 'numbers' of job 'x' is not a valid list[int]: 1: Input should be a valid "
        "integer, unable to parse string as an integer. Fix data['numbers'], or the value "
        "passed by args or inputs."
    )


def test_without_pydantic_an_annotated_job_is_refused_with_the_hint(monkeypatch):
    monkeypatch.setattr(jobs, "find_spec", lambda name: None)
    job("plain")(lambda sequence, count: count)
    with pytest.raises(InvalidDefinition, match=r"is not installed\. Install .*\[pydantic\]"):

        @job("x")
        def x(count: int): ...


def test_pydantic_makes_what_the_annotation_names():
    class Order(BaseModel):
        pk: int

    @dataclass
    class Line:
        price: float

    def x(order, line, colour):
        return [order.pk, line.price, colour]

    x.__annotations__ = {"order": Order, "line": Line, "colour": Colour}
    found = job("x")(x)
    assert perform(found, order={"pk": "7"}, line={"price": 1}, colour="red") == [7, 1, Colour.RED]


def test_a_result_is_validated_and_made_json():
    class Order(BaseModel):
        pk: int

    def x(pk):
        return Order(pk=pk)

    x.__annotations__ = {"return": Order}
    assert perform(job("x")(x), pk=7) == {"pk": 7}


def test_a_result_that_does_not_fit_is_refused():
    @job("x")
    def x() -> int:
        return "many"

    assert refused(x).startswith("The result of job 'x' ")
    assert refused(x).endswith("Fix the function or its annotation.")


def test_a_result_of_a_secret_type_is_refused_before_the_job_does_anything():
    called = []

    @job("login")
    def login(password: SecretStr) -> SecretStr:
        called.append(password.get_secret_value())
        return password

    assert refused(login, password="1234").startswith("The result of job 'login' has a secret type")
    assert called == []


def test_repeat_may_be_returned_whatever_the_annotation_says():
    @job("x")
    def x() -> int:
        return repeat()

    assert perform(x) == repeat()


def test_what_the_validator_does_not_know_is_let_through():
    class Strange:
        pass

    def x(a):
        return a

    x.__annotations__ = {"a": Strange}
    strange = Strange()
    assert perform(job("x")(x), a=strange) is strange
    assert "instance of" in refused(job("x")(x), a=1)


@pytest.mark.django_db
def test_a_step_with_wrong_data_fails_at_once_and_says_why():
    @job("count")
    def count(pages: list):
        pass

    definition = {"name": "shop.A", "steps": {"x": {"job": "count", "max_retries": 5}}}
    sequence = run_sequence(define(definition), pages=3)
    assert sequence.run.status == "failed"
    failure = StepFailure.objects.get(run=sequence.run)
    assert failure.step == "x"
    assert failure.message.startswith("Parameter 'pages' of job 'count' is not a valid list")
