"""Dramatiq's options reach the actor of a step, or are refused with the class."""

import re
from datetime import datetime, timedelta

import dramatiq
import pytest
from django.db import OperationalError
from django.test import TestCase
from dramatiq.middleware import Middleware

from sequences import (
    Sequence,
    chain,
    define,
    event,
    job,
    on_failure,
    start_definition,
    step,
    subsequence,
)
from sequences.definitions import registry
from sequences.definitions.option_types import ActorOptions
from sequences.definitions.steps import STEP_OPTIONS
from sequences.engine import actors, dispatcher
from sequences.exceptions import InvalidDefinition, SequenceError
from sequences.flows import jobs
from sequences.testing import drain, run_sequence
from sequences.transitions import commits
from tests.steps import options_of

pytestmark = pytest.mark.django_db


def retry_always(retries, error):
    return True


OPTIONS = {
    "queue_name": "mail",
    "priority": 5,
    "max_retries": 3,
    "min_backoff": 10,
    "max_backoff": 20,
    "retry_when": retry_always,
    "on_retry_exhausted": "alarm",
    "time_limit": 1000,
    "notify_shutdown": True,
}


@pytest.mark.parametrize(("name", "value"), OPTIONS.items(), ids=OPTIONS)
def test_every_option_of_an_actor_reaches_it_from_the_step_and_from_meta(name, value):
    class Own(Sequence):
        @step(**{name: value})
        def one(self): ...

    class Default(Sequence):
        Meta = type("Meta", (), {name: value})

        @step
        def one(self): ...

    assert options_of("tests.Own.one")[name] == value
    assert options_of("tests.Default.one")[name] == value


def test_dramatiq_asks_no_message_of_a_step_for_its_age():
    class Aged(Sequence):
        @step(max_age=5000)
        def one(self): ...

    assert options_of("tests.Aged.one")["max_age"] is None


TIMES = ["time_limit", "max_age", "min_backoff", "max_backoff"]


@pytest.mark.parametrize("error", ["the server closed the connection", "database is locked"])
def test_a_delay_whose_wait_could_not_be_stored_is_still_waited_for(monkeypatch, error):
    executed, errors = [], [OperationalError(error)]
    commit = commits.commit

    def failing(*args):
        if errors:
            raise errors.pop()
        return commit(*args)

    class Late(Sequence):
        @step(delay=60_000)
        def one(self):
            executed.append(self.attempt)

    run = Late().run
    monkeypatch.setattr(commits, "commit", failing)
    drain()

    row = run.steps.get()
    assert (errors, executed, row.status) == ([], [], "waiting")
    assert row.due_at - row.ready_at == timedelta(minutes=1)


@pytest.mark.parametrize("name", TIMES)
def test_a_time_for_dramatiq_may_be_a_timedelta_wherever_it_stands(name, broker):
    options = {name: timedelta(seconds=90)}

    @dramatiq.actor(**options)
    def clock(): ...

    class Own(Sequence):
        @step(**options)
        def one(self): ...

        @one.undo(**options)
        def back(self): ...

        approval = event(**options)
        child = subsequence("tests.Own", **options)
        tick = step(clock)

        @on_failure(**options)
        def tell(self): ...

    class Default(Sequence):
        Meta = type("Meta", (), options)

        @step
        def one(self): ...

        approval = event()

    define({"name": "tests.Data", "options": {name: "90 s"}, "steps": JOB})
    names = [f"Own.{one}" for one in ("one", "back", "approval", "child", "tick", "tell")]
    for actor in (*names, "Default.one", "Default.approval", "Data.one"):
        definition = registry.get(f"tests.{actor.partition('.')[0]}")._definition
        options = definition.options(definition.step(actor.partition(".")[2]))
        assert options[name] == 90_000, actor
        if name != "max_age":  # of which the row decides, and not Dramatiq
            assert options_of(f"tests.{actor}")[name] == 90_000, actor


@pytest.mark.parametrize("name", sorted({*TIMES} - {"max_age"}))  # of which the row decides
def test_a_time_for_dramatiq_may_be_a_timedelta_in_a_definition_that_is_kept(name):
    definition = chain(jobs.get("options.note").with_(**{name: timedelta(seconds=90)}))
    with dispatcher.capture_dispatches() as caught, TestCase.captureOnCommitCallbacks(execute=True):
        start_definition(definition)
    assert [dispatch.options for dispatch in caught] == [{name: 90_000}]


#: Each was taken, and then switched the limit off, or failed every attempt with a TypeError.
NONSENSE = [timedelta(-1), timedelta.max, -1, 10**30, True, 1.5, "90 s", datetime(2030, 1, 1)]  # noqa: DTZ001


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@pytest.mark.parametrize("name", TIMES)
def test_a_time_for_dramatiq_that_cannot_be_is_refused_with_the_class(name, value):
    def of_step():
        class Wrong(Sequence):
            @step(**{name: value})
            def one(self): ...

    def of_event():
        class Wrong(Sequence):
            one = event(**{name: value})

    def of_meta():
        class Wrong(Sequence):
            Meta = type("Meta", (), {name: value})

            @step
            def one(self): ...

    for declare in (of_step, of_event, of_meta):
        with pytest.raises(InvalidDefinition, match=rf"{name} is .*It must be a timedelta or a"):
            declare()


@pytest.mark.parametrize("value", [-1, "-1 s", True, 10**30, "365001 days", "P-1D", 1.5])
@pytest.mark.parametrize("name", TIMES)
def test_a_time_for_dramatiq_that_cannot_be_is_refused_in_a_definition(name, value):
    for definition in (
        {"steps": {"one": {"job": "options.note", name: value}}},
        {"steps": JOB, "options": {name: value}},
    ):
        with pytest.raises(InvalidDefinition, match=f"{name} is "):
            define({"name": "tests.Data", **definition})


JOB = {"one": {"job": "options.note"}}


@pytest.fixture(autouse=True)
def _job():
    job("options.note")(note)


def note(): ...


def do_nothing(sequence): ...


@pytest.mark.parametrize("name", ["time_limit", "max_age"])
def test_a_limit_of_no_time_is_refused_and_none_is_no_limit(name):
    for value in (0, timedelta(0), timedelta(microseconds=1)):
        with pytest.raises(InvalidDefinition, match=f"{name} is "):

            class Wrong(Sequence):
                @step(**{name: value})
                def one(self): ...

    class Unlimited(Sequence):
        @step(**{name: None})
        def one(self): ...

    assert run_sequence(Unlimited).run.status == "succeeded"
    # Dramatiq adds it to a time: None would be a TypeError there.
    assert options_of("tests.Unlimited.one")[name] != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "max_retries is -1. It must be a non-negative int"),
        ({"max_retries": True}, "max_retries is True. It must be"),
        ({"max_retries": "5"}, "max_retries is '5'. It must be"),
        ({"throws": "ValueError"}, "throws is 'ValueError'. It must be an exception class"),
        ({"throws": [ValueError]}, "throws is [<class 'ValueError'>]. It must be"),
        ({"retry_when": True}, "retry_when is True. It must be a function"),
        ({"min_backoff": None}, "min_backoff is None. It must be a timedelta"),
    ],
)
def test_an_option_that_dramatiq_would_stumble_over_is_refused_with_the_class(options, message):
    with pytest.raises(InvalidDefinition, match=re.escape(message)):

        class Wrong(Sequence):
            @step(**options)
            def one(self): ...


def test_the_options_of_a_step_go_over_those_of_meta_in_its_actor():
    class Mixed(Sequence):
        class Meta:
            max_retries = 1
            queue_name = "all"

        @step(max_retries=2)
        def one(self): ...

        @step(queue_name="own")
        def two(self): ...

    one, two = options_of("tests.Mixed.one"), options_of("tests.Mixed.two")
    assert (one["max_retries"], one["queue_name"]) == (2, "all")
    assert (two["max_retries"], two["queue_name"]) == (1, "own")


def test_the_option_of_a_middleware_of_the_project_reaches_the_actor(broker):
    class Tracing(Middleware):
        @property
        def actor_options(self):
            return {"trace"}

    middleware, actor_options = list(broker.middleware), set(broker.actor_options)
    broker.add_middleware(Tracing())
    try:

        class Traced(Sequence):
            @step(trace="all")
            def one(self): ...

            @step(options={"trace": "some"})
            def two(self): ...

        assert options_of("tests.Traced.one")["trace"] == "all"
        assert options_of("tests.Traced.two")["trace"] == "some"
    finally:
        broker.middleware, broker.actor_options = middleware, actor_options


def test_an_option_that_no_middleware_knows_is_refused():
    with pytest.raises(
        SequenceError, match=r"one: 'max_retris' is not a valid option.*'max_retries'"
    ):

        class Wrong(Sequence):
            @step(max_retris=3)
            def one(self): ...


OWNERS = [("max_retries", "dramatiq.middleware.Retries"),
          ("throws", "dramatiq.middleware.Retries"),
          ("time_limit", "dramatiq.middleware.TimeLimit"),
          ("notify_shutdown", "dramatiq.middleware.ShutdownNotifications"),
          ("store_results", "dramatiq.results.Results")]  # fmt: skip


@pytest.mark.parametrize(("option", "path"), OWNERS)
@pytest.mark.parametrize("place", ["step", "Meta", "DEFAULTS"])
def test_an_option_of_a_middleware_that_the_broker_lacks_names_that_middleware(
    broker, monkeypatch, settings, place, option, path
):
    value = {"throws": ValueError, "store_results": True, "notify_shutdown": True}.get(option, 5000)
    monkeypatch.setattr(broker, "actor_options", set())
    options, meta = ({option: value}, {}) if place == "step" else ({}, {option: value})
    if place == "DEFAULTS":
        settings.SEQUENCES, meta = {"DEFAULTS": meta}, {}
    names = {"__module__": __name__, "__qualname__": "Wrong"}
    body = {**names, "one": step(do_nothing, **options), "Meta": type("Meta", (), meta)}
    with pytest.raises(InvalidDefinition) as caught:
        type(Sequence)("Wrong", (Sequence,), body)
    assert repr(path) in caught.value.hint
    assert "Did you mean" not in caught.value.hint


def test_every_option_of_dramatiq_is_known_to_belong_to_a_middleware():
    names = set(ActorOptions.__annotations__) - {"queue_name", "priority", "options"}
    assert {name for name in names if actors._middleware_with(name) is None} == set()


def options_offered(declare):
    with pytest.raises(InvalidDefinition) as caught:
        declare()
    assert caught.value.hint.startswith("Available: ")
    return caught.value.where, re.findall(r"\w+", caught.value.hint.partition(". If")[0])[1:]


def test_the_options_that_are_offered_are_sorted_and_ours_too_and_not_those_that_are_refused():
    def of_step():
        class Wrong(Sequence):
            @step(xyzzy=3)
            def one(self): ...

    def of_event():
        class Wrong(Sequence):
            one = event(xyzzy=3)

    def of_meta():
        class Wrong(Sequence):
            class Meta:
                xyzzy = 3

            @step
            def one(self): ...

    places = {"one": (of_step, STEP_OPTIONS), "Meta": (of_meta, {"redact", "handoff", "atomic"})}
    for place, (declare, ours) in places.items():
        where, offered = options_offered(declare)
        assert where.endswith(f"Wrong.{place}")
        assert offered == sorted(offered)
        assert {"max_retries", "queue_name"} | ours <= set(offered)
        assert not {"on_success", "on_failure", "pipe_target", "pipe_ignore"} & set(offered)
    _, offered = options_offered(of_event)
    assert {"timeout", "on_timeout", "after"} <= set(offered)
    assert not {"each", "args", "atomic"} & set(offered)


def test_a_class_whose_option_is_refused_leaves_nothing_behind(broker):
    def declare(name, *, aliases, **options):
        meta = type("Meta", (), {"aliases": aliases})
        body = {"__module__": __name__, "__qualname__": name, "Meta": meta}
        return type(Sequence)(name, (Sequence,), {**body, "one": step(do_nothing, **options)})

    taken = declare("Taken", aliases=["tests.Former"])
    actors = dict(broker.actors)
    for name in ("Wrong", "Taken"):  # the second as of a module that is reloaded
        with pytest.raises(InvalidDefinition, match="max_retris"):
            declare(name, aliases=["tests.Other"], max_retris=3)
    assert registry.find("tests.Wrong") is registry.find("tests.Other") is None
    assert registry.find("tests.Taken") is registry.find("tests.Former") is taken
    assert broker.actors == actors
