"""What a step can be and do, on the engine itself, without a worker."""

import logging
import re
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import dramatiq
import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import F
from django.test import TestCase
from django.utils import timezone
from dramatiq.broker import MessageProxy
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import Middleware

from sequences import (
    Abort,
    Sequence,
    chain,
    define,
    event,
    finish,
    job,
    on_failure,
    repeat,
    start_definition,
    step,
    subsequence,
)
from sequences.definitions import registry
from sequences.definitions.steps import STEP_OPTIONS
from sequences.engine import current, dispatcher
from sequences.engine import handoff as handoff_module
from sequences.exceptions import InvalidDefinition, SequenceError
from sequences.flows import jobs
from sequences.models import SequenceRun, StepRun
from sequences.testing import assert_steps, clock, drain, run_sequence
from sequences.transitions import commits
from testproject.contact.models import Message, Team

pytestmark = pytest.mark.django_db


def failures(sequence):
    """Every failed attempt: its step, its number, its error and what it says."""
    rows = sequence.run.failures.all()
    return [(row.step, row.attempt, row.error, row.message) for row in rows]


def only_failure(sequence):
    (row,) = sequence.run.failures.all()
    return row


def options_of(name):
    actor = dramatiq.get_broker().actors[name]
    return {"queue_name": actor.queue_name, "priority": actor.priority, **actor.options}


# What a step can be


def count(sequence):
    sequence.data["n"] += 1
    return sequence.data["n"]


class Count:
    def perform(self, sequence):
        return count(sequence)


def test_a_step_is_a_method_a_function_a_class_or_an_actor():
    @dramatiq.actor
    def add(a, b, *, c):
        return a + b + c

    class Forms(Sequence):
        @step
        def method(self):
            return count(self)

        function = step(count)
        cls = step(Count)
        actor = step(add, args=lambda self: (self.data["n"], 10), kwargs=lambda self: {"c": 100})

    forms = run_sequence(Forms, n=0)

    assert_steps(forms, [(name, "succeeded") for name in ("method", "function", "cls", "actor")])
    assert forms.data == {"n": 3}
    results = forms.run.steps.order_by("pk").values_list("result", flat=True)
    assert list(results) == [1, 2, 3, 113]


def test_an_existing_actor_keeps_working_by_itself_and_gives_its_options():
    @dramatiq.actor(max_retries=7, queue_name="slow", priority=3)
    def work():
        return "done"

    class Work(Sequence):
        one = step(work)

    assert work() == "done"
    options = options_of("tests.Work.one")
    assert (options["max_retries"], options["queue_name"], options["priority"]) == (7, "slow", 3)
    assert run_sequence(Work).run.steps.get().result == "done"


def test_what_the_arguments_of_an_actor_raise_is_a_failed_attempt_of_its_step():
    @dramatiq.actor(max_retries=0)
    def add(a):
        return a

    class Add(Sequence):
        @step
        def before(self): ...

        added = step(add, args=lambda self: (self.data["missing"],))

    sequence = run_sequence(Add)

    assert_steps(sequence, [("before", "succeeded"), ("added", "failed")])
    assert only_failure(sequence).error == "KeyError"


# Dramatiq's options


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
        with pytest.raises(InvalidDefinition, match=rf"{name} is .*It must be a timedelta or an"):
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


# Transactions


def test_what_a_failed_attempt_has_written_is_rolled_back():
    class Writes(Sequence):
        @step(max_retries=1)
        def one(self):
            Team.objects.create(topic="press", name=f"attempt {self.attempt}")
            self.data["attempts"] = [*self.data.get("attempts", []), self.attempt]
            if self.attempt == 1:
                raise ValueError("not yet")

    sequence = run_sequence(Writes)

    assert sequence.run.status == "succeeded"
    assert [team.name for team in Team.objects.all()] == ["attempt 2"]
    assert sequence.data == {"attempts": [2]}


def test_without_atomic_what_a_failed_attempt_has_written_stays_and_its_data_does_not():
    class Writes(Sequence):
        @step(atomic=False, max_retries=1)
        def one(self):
            Message.objects.create(name=f"attempt {self.attempt}")
            self.data["attempts"] = [*self.data.get("attempts", []), self.attempt]
            if self.attempt == 1:
                raise ValueError("not yet")

    sequence = run_sequence(Writes)

    assert sequence.run.status == "succeeded"
    names = Message.objects.order_by("pk").values_list("name", flat=True)
    assert list(names) == ["attempt 1", "attempt 2"]
    assert sequence.data == {"attempts": [2]}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [True, False])
def test_a_step_runs_in_a_transaction_unless_it_is_declared_otherwise(atomic):
    seen = []

    class ProcessReport(Sequence):
        @step(atomic=atomic)
        def one(self):
            seen.append(connection.in_atomic_block)

    run_sequence(ProcessReport)
    assert seen == [atomic]


def test_atomic_may_be_a_default_of_the_class():
    class Loose(Sequence):
        class Meta:
            atomic = False

        @step(max_retries=0)
        def one(self):
            Message.objects.create(name="stays")
            raise ValueError

    run_sequence(Loose)
    assert Message.objects.get().name == "stays"


@pytest.mark.django_db(transaction=True)
def test_a_step_that_swallows_an_error_of_a_broken_transaction_fails_and_stores_nothing():
    class Swallows(Sequence):
        @step(max_retries=0)
        def one(self):
            self.data["n"] = 1
            Team.objects.create(topic="press", name="first")
            with suppress(IntegrityError):
                Team.objects.create(topic="press", name="second")

        @step
        def two(self): ...

    sequence = run_sequence(Swallows)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.data == {}
    assert not Team.objects.exists()
    assert run_sequence(Swallows).run.status == "failed"  # and the connection still works


@pytest.mark.django_db(transaction=True)
def test_a_step_may_catch_an_error_of_the_database_in_a_savepoint():
    class Catches(Sequence):
        @step
        def one(self):
            Team.objects.create(topic="press", name="first")
            try:
                with transaction.atomic():
                    Team.objects.create(topic="press", name="second")
            except IntegrityError:
                self.data["caught"] = True

    assert run_sequence(Catches).data == {"caught": True}
    assert Team.objects.get().name == "first"


@pytest.mark.django_db(transaction=True)
def test_a_step_that_marks_its_transaction_for_rollback_does_not_succeed():
    class Marks(Sequence):
        @step(max_retries=0)
        def one(self):
            transaction.set_rollback(True)

    assert run_sequence(Marks).run.status == "failed"


def test_what_the_database_gives_up_for_anothers_sake_is_no_failed_attempt():
    performed = []

    class Deadlocks(Sequence):
        @step
        def one(self):
            performed.append((self.attempt, self.idempotency_key))
            Message.objects.create(name="once")
            self.data["n"] += 1
            if len(performed) < 3:
                raise OperationalError("database is locked")

    sequence = run_sequence(Deadlocks, n=0)

    assert (sequence.run.status, sequence.data) == ("succeeded", {"n": 1})
    assert Message.objects.count() == 1
    assert not sequence.run.failures.exists()
    assert len(performed) == 3
    assert len(set(performed)) == 1


def test_a_database_that_gives_up_again_and_again_fails_the_attempt(monkeypatch):
    monkeypatch.setattr("sequences.engine.executor.back_off", lambda replay: None)
    performed = []

    class Deadlocks(Sequence):
        @step(max_retries=1)
        def one(self):
            performed.append(self.attempt)
            raise OperationalError("database is locked")

    sequence = run_sequence(Deadlocks)

    assert_steps(sequence, [("one", "failed")])
    assert [failure[1:] for failure in failures(sequence)] == [
        (attempt, "django.db.utils.OperationalError", "database is locked") for attempt in (1, 2)
    ]
    assert 2 < performed.count(1) == performed.count(2) < 20


def test_a_step_without_a_transaction_is_not_performed_again_before_its_retry():
    class Deadlocks(Sequence):
        @step(atomic=False, max_retries=1)
        def one(self):
            Message.objects.create(name=f"attempt {self.attempt}")
            if self.attempt == 1:
                raise OperationalError("database is locked")

    sequence = run_sequence(Deadlocks)

    assert sequence.run.status == "succeeded"
    names = Message.objects.order_by("pk").values_list("name", flat=True)
    assert list(names) == ["attempt 1", "attempt 2"]
    assert sequence.run.failures.count() == 1


# on_commit


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_named", [True, False])
def test_hooks_run_after_the_commit_and_one_that_raises_fails_nothing(caplog, is_named):
    seen = []

    def broken():
        raise RuntimeError("the hook is broken")

    hook = broken if is_named else partial(broken)

    class Hooks(Sequence):
        @step
        def one(self):
            row = StepRun.objects.get(pk=self.step_run.pk)
            transaction.on_commit(hook)
            transaction.on_commit(lambda: seen.append(StepRun.objects.get(pk=row.pk).status))

        @step
        def two(self): ...

    sequence = run_sequence(Hooks)

    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert seen == ["succeeded"]
    assert not sequence.run.failures.exists()
    assert "the hook is broken" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_hooks_of_a_step_that_writes_nothing_run_too():
    seen = []

    class Hooks(Sequence):
        @step
        def one(self):
            transaction.on_commit(lambda: seen.append(connection.in_atomic_block))

    assert run_sequence(Hooks).run.status == "succeeded"
    assert seen == [False]


@pytest.mark.django_db(transaction=True)
def test_hooks_of_a_failed_attempt_do_not_run():
    seen = []

    class Hooks(Sequence):
        @step(max_retries=1)
        def one(self):
            attempt = self.attempt
            transaction.on_commit(lambda: seen.append(attempt))
            if attempt == 1:
                raise ValueError

    run_sequence(Hooks)
    assert seen == [2]


# delay


@pytest.mark.parametrize("delay", [timedelta(days=3), 3 * 24 * 60 * 60 * 1000])
def test_a_delay_is_waited_for_from_the_moment_that_the_step_is_ready(delay):
    class Waits(Sequence):
        @step
        def one(self): ...

        @step(delay=delay)
        def two(self):
            self.data["done"] = True

    sequence = Waits()
    drain()

    two = sequence.run.steps.get(step="two")
    assert (two.status, two.attempts) == ("waiting", 0)
    assert timedelta(0) <= two.due_at - two.ready_at - timedelta(days=3) < timedelta(seconds=1)
    with clock() as moving:
        moving.move(timedelta(days=2, hours=23))
        assert drain() == 0
        moving.move(timedelta(hours=1))
        assert drain() == 1
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


def test_a_delay_is_computed_of_the_data_by_the_step_itself():
    in_a_week = timezone.now() + timedelta(days=7)

    class Waits(Sequence):
        @step
        def one(self):
            self.data["days"] = 2

        @step(delay=lambda self: timedelta(days=self.data["days"]))
        def for_a_time(self): ...

        @step(delay=lambda self: in_a_week)
        def until(self): ...

    sequence = Waits()
    drain()
    row = sequence.run.steps.get(step="for_a_time")
    assert timedelta(0) <= row.due_at - row.ready_at - timedelta(days=2) < timedelta(seconds=1)
    with clock() as moving:
        moving.move(timedelta(days=2, minutes=1))
        drain()
        row = sequence.run.steps.get(step="until")
        assert (row.status, row.due_at) == ("waiting", in_a_week)


@pytest.mark.parametrize("delay", [lambda self: datetime(2000, 1, 1, tzinfo=UTC), 0])
def test_a_delay_that_is_over_does_not_wait(delay):
    class Waits(Sequence):
        @step(delay=delay)
        def one(self): ...

    sequence = Waits()
    assert drain() == 1
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime(2030, 1, 1), "datetime.datetime(2030, 1, 1, 0, 0)"),  # noqa: DTZ001
        ("tomorrow", "'tomorrow'"),
        (True, "True"),
        (1.5, "1.5"),
        (None, "None"),
    ],
)
def test_a_delay_that_is_none_fails_its_own_step(value, shown):
    class Waits(Sequence):
        @step
        def one(self): ...

        @step(delay=lambda self: value, max_retries=0)
        def two(self): ...

    sequence = run_sequence(Waits)

    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    assert only_failure(sequence).message == (
        f"The delay of step 'two' is {shown}: it must be a timedelta, an int of milliseconds, or "
        "an aware datetime."
    )


def test_a_delay_beyond_the_calendar_fails_its_own_step_at_once():
    for value in (timedelta.max, 10**30, datetime.max.replace(tzinfo=BEHIND)):

        class Waits(Sequence):
            @step(delay=lambda self, value=value: value)
            def one(self): ...

        sequence = run_sequence(Waits)
        assert sequence.run.status == "failed"
        failure = only_failure(sequence)
        assert failure.message == (
            f"The delay of step 'one' is {value!r}: it goes beyond the calendar."
        )
        forget(Waits)


#: Whose year 9999 ends after that of UTC.
BEHIND = timezone.get_fixed_timezone(-720)


@pytest.mark.parametrize("after", [timedelta.max, -1, "1 s"])
def test_a_repeat_that_cannot_be_fails_its_step_at_once(after):
    class Poll(Sequence):
        @step
        def one(self):
            return repeat(after=after)

    sequence = run_sequence(Poll)
    assert failures(sequence)[0][:3] == ("one", 1, "sequences.exceptions.InvalidData")
    assert len(failures(sequence)) == 1


def test_an_error_in_a_delay_is_a_failed_attempt_of_its_own_step_and_it_is_asked_again():
    asked = []

    def delay(self):
        asked.append(self.attempt)
        if self.attempt == 1:
            raise ValueError("not yet")
        return timedelta(days=1)

    class Waits(Sequence):
        @step
        def one(self): ...

        @step(delay=delay, max_retries=3)
        def two(self): ...

    sequence = run_sequence(Waits)

    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert failures(sequence) == [("two", 1, "ValueError", "not yet")]
    assert asked == [1, 2]


def test_a_delay_is_asked_once_however_often_the_step_is_tried():
    asked = []

    def delay(self):
        asked.append(self.attempt)
        return timedelta(days=1)

    class Waits(Sequence):
        @step(delay=delay, max_retries=3)
        def one(self):
            if self.attempt < 3:
                raise ValueError

    assert run_sequence(Waits).run.status == "succeeded"
    assert asked == [1]


def test_a_delay_that_is_over_is_asked_once_too():
    asked = []

    def delay(self):
        asked.append(self.attempt)
        return 0

    class Waits(Sequence):
        @step(delay=delay, max_retries=3)
        def one(self):
            if self.attempt < 3:
                raise ValueError

    assert run_sequence(Waits).run.status == "succeeded"
    assert asked == [1]


def test_parallel_steps_wait_each_for_its_own_delay():
    performed = []

    class Waits(Sequence):
        @step(after=[], delay=timedelta(days=2))
        def late(self):
            performed.append("late")

        @step(after=[], delay=timedelta(days=1))
        def early(self):
            performed.append("early")

        @step
        def join(self):
            performed.append("join")

    run_sequence(Waits)
    assert performed == ["early", "late", "join"]


# when


def test_a_step_whose_condition_is_false_is_skipped_and_what_comes_after_goes_on():
    class Conditions(Sequence):
        @step
        def one(self):
            self.data["wanted"] = False

        @step(when=lambda self: self.data["wanted"])
        def two(self):
            raise AssertionError

        @step(when=lambda self: not self.data["wanted"])
        def three(self):
            return self.result("two", "nothing")

    sequence = run_sequence(Conditions)

    assert_steps(sequence, [("one", "succeeded"), ("two", "skipped"), ("three", "succeeded")])
    assert sequence.run.status == "succeeded"
    assert sequence.run.steps.get(step="three").result == "nothing"


def test_a_run_whose_last_step_is_skipped_succeeds():
    class Conditions(Sequence):
        @step(when=lambda self: False)
        def one(self): ...

    assert run_sequence(Conditions).run.status == "succeeded"


def test_an_error_in_a_condition_is_a_failed_attempt_of_its_own_step():
    class Conditions(Sequence):
        @step
        def one(self): ...

        @step(when=lambda self: self.data["missing"], max_retries=1)
        def two(self): ...

    sequence = run_sequence(Conditions)

    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    assert [failure[:3] for failure in failures(sequence)] == [
        ("two", 1, "KeyError"),
        ("two", 2, "KeyError"),
    ]


def test_a_condition_is_asked_after_the_delay_and_at_every_attempt():
    asked = []

    def when(self):
        asked.append((self.attempt, self.data["delayed"]))
        return self.attempt < 2

    def delay(self):
        assert not asked
        return timedelta(days=1)

    class Conditions(Sequence):
        @step(delay=delay, when=when, max_retries=3)
        def one(self):
            raise ValueError

    sequence = Conditions(delayed=False)
    drain()
    sequence.run.refresh_from_db()
    sequence.run.edit({"delayed": True})
    with clock() as moving:
        moving.move(timedelta(days=1, minutes=1))
        drain()

    assert asked == [(1, True), (2, True)]
    assert_steps(sequence, [("one", "skipped")])


# repeat, finish, Abort


def test_repeat_commits_and_runs_again_with_a_new_key_and_no_failed_attempts():
    seen = []

    class Polls(Sequence):
        @step(max_retries=1)
        def poll(self):
            seen.append((self.data["n"], self.attempt, self.idempotency_key))
            if self.attempt == 1:
                raise ValueError
            self.data["n"] += 1
            Message.objects.create(name=str(self.data["n"]))
            return repeat() if self.data["n"] < 3 else self.data["n"]

        @step
        def after(self):
            return self.result("poll")

    sequence = run_sequence(Polls, n=0)

    assert_steps(sequence, [("poll", "succeeded"), ("after", "succeeded")])
    assert [(n, attempt) for n, attempt, _ in seen] == [
        (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)
    ]  # fmt: skip
    keys = [key for _, _, key in seen]
    assert keys[0::2] == keys[1::2]  # stable over attempts
    assert len(set(keys)) == 3
    assert Message.objects.count() == 3
    assert sequence.run.failures.count() == 3
    assert sequence.run.steps.get(step="after").result == 3


@pytest.mark.parametrize("after", [timedelta(hours=1), 60 * 60 * 1000])
def test_repeat_after_a_time_waits_from_the_commit_on(after):
    class Polls(Sequence):
        @step(delay=timedelta(days=1))
        def poll(self):
            self.data["n"] += 1
            return repeat(after=after) if self.data["n"] < 2 else None

    sequence = Polls(n=0)
    with clock() as moving:
        drain()
        moving.move(timedelta(days=1, minutes=1))
        drain()
        row = sequence.run.steps.get()
        sequence.run.refresh_from_db()
        assert (row.status, row.repeats, sequence.run.data) == ("waiting", 1, {"n": 1})
        assert timedelta(0) <= row.due_at - row.queued_at - timedelta(hours=1) < timedelta(1)
        moving.move(timedelta(minutes=59))
        assert drain() == 0
        moving.move(timedelta(minutes=1))
        assert drain() == 1  # and its own delay is not waited for again
    sequence.run.refresh_from_db()
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {"n": 2})


def test_finish_succeeds_the_run_and_skips_what_waits():
    class Finishes(Sequence):
        @step(after=[], delay=timedelta(days=1))
        def waiting(self):
            raise AssertionError

        @step(after=[])
        def finishing(self):
            self.data["finished"] = True
            return finish()

        @step
        def last(self):
            raise AssertionError

    sequence = run_sequence(Finishes)

    assert_steps(sequence, [("waiting", "skipped"), ("finishing", "succeeded")])
    assert (sequence.run.status, sequence.data) == ("succeeded", {"finished": True})
    assert sequence.run.finished_at is not None


def test_finish_takes_the_commit_of_a_step_that_runs_beside_it():
    class Finishes(Sequence):
        @step(after=[], atomic=False)
        def running(self):
            drain()  # while it runs, the other one finishes the run
            self.data["running"] = True

        @step(after=[])
        def finishing(self):
            return finish()

    sequence = Finishes()
    drain()

    sequence.run.refresh_from_db()
    assert_steps(sequence, [("running", "skipped"), ("finishing", "succeeded")])
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {})
    assert not sequence.run.failures.exists()


def test_abort_fails_the_step_at_once_and_rolls_back():
    class Aborts(Sequence):
        @step(max_retries=10)
        def one(self):
            Message.objects.create(name="gone")
            raise Abort("there is no such customer")

        @step
        def two(self): ...

    sequence = run_sequence(Aborts)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.run.status == "failed"
    assert failures(sequence) == [
        ("one", 1, "sequences.exceptions.Abort", "there is no such customer")
    ]
    assert not Message.objects.exists()


def test_a_step_that_skips_its_own_message_fails_and_is_not_left_running():
    class Skips(Sequence):
        @step(max_retries=10)
        def one(self):
            raise dramatiq.middleware.SkipMessage

    sequence = run_sequence(Skips)

    assert_steps(sequence, [("one", "failed")])
    assert only_failure(sequence).message == (
        "Step 'one' raised SkipMessage. Return, or raise Abort."
    )


def test_a_step_that_exits_is_a_failed_attempt():
    class Exits(Sequence):
        @step(max_retries=1)
        def one(self):
            raise SystemExit(1)

    sequence = run_sequence(Exits)
    assert_steps(sequence, [("one", "failed")])
    assert [failure[2] for failure in failures(sequence)] == ["SystemExit"] * 2


# results, and what else a step can ask


def test_results_of_earlier_steps_are_read_by_step_or_name():
    class Results(Sequence):
        @step
        def one(self):
            return {"list": [1, 2.5, None], "when": datetime(2030, 1, 1, tzinfo=UTC)}

        @step
        def nothing(self): ...

        @step(when=lambda self: False)
        def skipped(self): ...

        @step(each=lambda self: [None, 1])
        def each(self, item): ...

        @step
        def zero(self):
            return 0

        @step
        def ask(self):
            assert self.result(Results.one) == self.result("one")
            assert self.result("one")["list"] == [1, 2.5, None]
            assert self.result("one")["when"].startswith("2030-01-01")
            assert self.result("nothing") is None
            assert self.result("nothing", 5) is None
            assert self.result("skipped", 5) == 5
            assert self.result("each", 5) == 5
            assert list(self.results("each")) == [None, None]
            assert self.result("zero", 5) == 0
            assert self.result("ask", "not yet") == "not yet"
            assert list(self.results("zero")) == [0]
            self.data["asked"] = True

    assert run_sequence(Results).data == {"asked": True}


def test_the_result_of_a_step_that_is_not_there_is_an_error_that_knows_the_names():
    class Results(Sequence):
        @step
        def charge(self): ...

        @step
        def ask(self):
            self.result("chrage")

    sequence = run_sequence(Results)
    assert only_failure(sequence).message == (
        "tests.Results has no step 'chrage'. Did you mean 'charge'?"
    )
    assert sequence.run.steps.get(step="ask").attempts == 1  # no retry mends that


def test_a_step_knows_its_attempt_its_run_and_its_row():
    seen = []

    class Asks(Sequence):
        @step(max_retries=2)
        def one(self):
            seen.append((self.attempt, self.run.pk, self.step_run.step, self.step_run.worker != ""))
            assert self.run.status == "running"
            if self.attempt < 3:
                raise ValueError

    sequence = run_sequence(Asks)
    assert seen == [(attempt, sequence.run.pk, "one", True) for attempt in (1, 2, 3)]


def test_each_step_of_each_run_has_an_idempotency_key_of_its_own():
    keys = []

    class Keys(Sequence):
        @step
        def one(self):
            keys.append(self.idempotency_key)

        @step
        def two(self):
            keys.append(self.idempotency_key)

    run_sequence(Keys)
    run_sequence(Keys)
    assert len(set(keys)) == 4
    assert all(isinstance(key, str) and 0 < len(key) <= 64 for key in keys)


def test_a_step_that_is_restarted_by_a_person_has_a_new_idempotency_key():
    keys = []

    class Keys(Sequence):
        @step
        def one(self):
            keys.append(self.idempotency_key)

    sequence = run_sequence(Keys)
    sequence.run.restart_from(Keys.one)
    drain()
    assert len(set(keys)) == 2


def test_progress_is_stored_with_the_commit():
    class Progress(Sequence):
        @step
        def one(self):
            self.progress(1, 10, "begun")
            self.progress(done=10, total=10, text="all")

        @step
        def two(self): ...

    sequence = run_sequence(Progress)
    one, two = sequence.run.steps.order_by("pk")
    assert one.progress == {"done": 10, "total": 10, "text": "all"}
    assert two.progress is None


@pytest.mark.parametrize(
    ("progress", "message"),
    [
        ({"done": float("nan")}, 'progress["done"] is nan. Use None or a string.'),
        ({"text": "a\0"}, 'progress["text"] contains U+0000. Remove or replace it.'),
        (
            {"total": {1}},
            'progress["total"] is of type set, which JSON cannot represent. Use a list.',
        ),
    ],
)
def test_progress_that_cannot_be_stored_fails_the_step_that_tells_it(progress, message):
    class Progress(Sequence):
        @step(max_retries=10)
        def one(self):
            self.progress(**progress)

    assert only_failure(run_sequence(Progress)).message == message


@pytest.mark.parametrize("act", ["cancel", "finish", "restart_from"])
def test_a_step_that_ends_or_restarts_its_own_run_fails_and_says_what_to_do_instead(act):
    class Ends(Sequence):
        @step(max_retries=10)
        def one(self):
            Message.objects.create(name="gone")
            getattr(self.run, act)(*(["one"] if act == "restart_from" else []))

        @step
        def two(self): ...

    sequence = run_sequence(Ends)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.run.status == "failed"
    assert only_failure(sequence).message == (
        "Step 'one' has cancelled, finished or restarted its own run, and with it its own commit. "
        "Return finish(), or raise Abort."
    )
    assert not sequence.run.operations.exists()
    assert not Message.objects.exists()


def test_a_step_may_pause_its_own_run_and_is_committed():
    class Pauses(Sequence):
        @step
        def one(self):
            self.data["n"] = 1
            self.run.pause(by="the step", reason="somebody must look")

        @step
        def two(self): ...

    sequence = run_sequence(Pauses)

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert (sequence.run.status, sequence.data) == ("paused", {"n": 1})
    sequence.run.resume()
    drain()
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


def test_a_step_without_a_transaction_that_cancels_its_own_run_has_cancelled_it():
    class Ends(Sequence):
        @step(atomic=False)
        def one(self):
            self.run.cancel()

    sequence = run_sequence(Ends)

    assert_steps(sequence, [("one", "cancelled")])
    assert sequence.run.status == "cancelled"
    assert not sequence.run.failures.exists()


# Parallel steps


def test_parallel_steps_share_data_and_the_next_one_joins_them():
    class Parallel(Sequence):
        @step
        def begin(self):
            self.data["sums"] = {}

        @step(after=begin)
        def left(self):
            self.data["sums"]["left"] = 1

        @step(after=begin)
        def right(self):
            self.data["sums"]["right"] = 2

        @step
        def join(self):
            self.data["total"] = sum(self.data["sums"].values())

    sequence = run_sequence(Parallel)

    names = ["begin", "left", "right", "join"]
    assert_steps(sequence, [(name, "succeeded") for name in names])
    assert sequence.data == {"sums": {"left": 1, "right": 2}, "total": 3}


def test_a_join_does_not_begin_before_all_that_it_waits_for_has_ended():
    class Parallel(Sequence):
        @step(after=[])
        def quick(self): ...

        @step(after=[], delay=timedelta(days=1))
        def slow(self): ...

        @step(after=[quick, slow])
        def join(self): ...

        @step(after=quick)
        def at_once(self): ...

    sequence = Parallel()
    drain()
    assert_steps(sequence, [("quick", "succeeded"), ("slow", "waiting"), ("at_once", "succeeded")])
    with clock() as moving:
        moving.move(timedelta(days=1, minutes=1))
        drain()
    assert sequence.run.steps.get(step="join").status == "succeeded"


def test_what_others_committed_meanwhile_is_merged():
    class Merges(Sequence):
        @step(after=[], atomic=False)
        def outer(self):
            self.data["shared"]["outer"] = 1
            drain()  # the other one commits while this one runs
            assert "inner" not in self.data["shared"]

        @step(after=[])
        def inner(self):
            self.data["shared"]["inner"] = 2
            del self.data["old"]

    sequence = Merges(shared={"base": 0}, old=1)
    drain()

    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"
    assert sequence.run.data == {"shared": {"base": 0, "outer": 1, "inner": 2}}
    assert not sequence.run.failures.exists()


def test_an_edit_that_did_not_yet_see_the_claim_is_not_lost():
    class Edited(Sequence):
        @step(atomic=False)
        def one(self):
            self.data["mine"] = 1
            self.data["tags"].append(self.data["theirs"])
            if self.data["theirs"] == 0:
                rows = SequenceRun.objects.filter(pk=self.run.pk)
                rows.update(data={"theirs": 5, "tags": ["new"]}, version=F("version") + 1)

    sequence = run_sequence(Edited, theirs=0, tags=[])

    assert sequence.run.status == "succeeded"
    assert sequence.data == {"theirs": 5, "mine": 1, "tags": ["new", 5]}


def test_two_different_changes_of_one_key_have_the_later_step_performed_again():
    keys = []

    class Conflicts(Sequence):
        @step(after=[], atomic=False)
        def outer(self):
            keys.append((self.attempt, self.idempotency_key))
            self.data["n"] += 1
            drain()

        @step(after=[])
        def inner(self):
            self.data["n"] += 10

    sequence = Conflicts(n=0)
    drain()

    sequence.run.refresh_from_db()
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {"n": 11})
    assert not sequence.run.failures.exists()
    assert len(keys) == 2
    assert len(set(keys)) == 1  # the same attempt, and the same idempotency key


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.django_db(transaction=True)
def test_a_step_in_a_transaction_that_is_performed_again_leaves_its_rows_once():
    class Conflicts(Sequence):
        @step(after=[])
        def outer(self):
            Message.objects.create(name="outer")
            self.data["n"] += 1
            in_a_thread(drain)

        @step(after=[])
        def inner(self):
            Message.objects.create(name="inner")
            self.data["n"] += 10

    sequence = Conflicts(n=0)
    drain()

    sequence.run.refresh_from_db()
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {"n": 11})
    names = Message.objects.order_by("name").values_list("name", flat=True)
    assert list(names) == ["inner", "outer"]


def in_a_thread(function):
    """Call it there, with a connection of its own, and raise what it raises."""
    raised = []

    def target():
        try:
            function()
        except BaseException as error:
            raised.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_a_step_that_conflicts_again_and_again_fails_and_names_the_key_and_the_other(monkeypatch):
    monkeypatch.setattr("sequences.engine.executor.back_off", lambda replay: None)
    performed = []

    class Conflicts(Sequence):
        @step(after=[], atomic=False, max_retries=5)
        def outer(self):
            performed.append(self.attempt)
            self.data["user"]["n"] = -len(performed)
            moving.move(timedelta(hours=2))
            drain()

        @step(after=[])
        def inner(self):
            self.data["user"]["n"] += 1
            return repeat(after=timedelta(hours=1))

    with clock() as moving:
        sequence = Conflicts(user={"n": 0})
        drain()

    sequence.run.refresh_from_db()
    assert sequence.run.steps.get(step="outer").status == "failed"
    failure = only_failure(sequence)
    assert failure.error == "sequences.exceptions.DataConflict"
    assert 'data["user"]["n"]' in failure.message
    assert "'outer'" in failure.message
    assert str(sequence.run.pk) in failure.message
    assert set(performed) == {1}


# Retries


def test_every_failed_attempt_is_recorded_with_its_traceback():
    def look_up(customer):
        raise LookupError(f"no customer {customer}")

    class Retries(Sequence):
        @step
        def one(self): ...

        @step(max_retries=2)
        def two(self):
            look_up(self.attempt)

        @step
        def three(self): ...

    sequence = run_sequence(Retries)

    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    assert sequence.run.status == "failed"
    assert failures(sequence) == [
        ("two", attempt, "LookupError", f"no customer {attempt}") for attempt in (1, 2, 3)
    ]
    for row in sequence.run.failures.all():
        assert "in look_up" in row.traceback
        assert row.traceback.rstrip().endswith(f"LookupError: no customer {row.attempt}")
        assert row.worker
        assert row.step_run.step == "two"


def test_a_failed_attempt_waits_for_the_backoff_that_dramatiq_has_chosen():
    class Backoff(Sequence):
        @step(min_backoff=60_000, max_backoff=60_000)
        def one(self):
            raise ValueError

    sequence = Backoff()
    drain_once(sequence)

    row = sequence.run.steps.get()
    assert (row.status, row.attempts) == ("retrying", 1)
    wait = row.due_at - sequence.run.failures.get().failed_at
    assert timedelta(seconds=25) < wait < timedelta(seconds=65)
    assert row.wake_at > row.due_at


def drain_once(sequence):
    """Perform the run's next step, without its retries."""
    with pytest.raises(AssertionError, match="is still due"):
        drain(limit=1)


def test_after_the_first_success_no_attempt_is_made():
    class Retries(Sequence):
        @step(max_retries=5)
        def one(self):
            if self.attempt < 3:
                raise ValueError

    sequence = run_sequence(Retries)
    assert sequence.run.status == "succeeded"
    assert [failure[1] for failure in failures(sequence)] == [1, 2]
    assert sequence.run.steps.get().attempts == 2


@pytest.mark.parametrize("throws", [LookupError, (ValueError, LookupError)])
def test_an_error_that_the_step_throws_is_not_retried(throws):
    class Throws(Sequence):
        @step(throws=throws)
        def one(self):
            raise KeyError("gone")

    sequence = run_sequence(Throws)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.run.status == "failed"
    assert failures(sequence) == [("one", 1, "KeyError", "'gone'")]


def test_what_all_steps_throw_may_be_a_default_of_the_class():
    class Throws(Sequence):
        class Meta:
            throws = LookupError

        @step
        def one(self):
            raise KeyError("gone")

    assert run_sequence(Throws).run.failures.count() == 1


def test_an_error_that_the_step_throws_after_a_retry_is_not_retried():
    class Throws(Sequence):
        @step(throws=KeyError)
        def one(self):
            raise KeyError("gone") if self.attempt == 2 else ValueError("try again")

    sequence = run_sequence(Throws)

    assert_steps(sequence, [("one", "failed")])
    assert [failure[2] for failure in failures(sequence)] == ["ValueError", "KeyError"]


def test_retry_when_decides():
    class Decides(Sequence):
        @step(retry_when=lambda retries, error: retries < 2 and isinstance(error, ValueError))
        def one(self):
            raise ValueError(self.attempt)

    sequence = run_sequence(Decides)

    assert_steps(sequence, [("one", "failed")])
    assert [failure[1] for failure in failures(sequence)] == [1, 2, 3]


def test_a_retry_when_that_raises_loses_nothing(caplog):
    def retry_when(retries, error):
        if retries == 0:
            raise RuntimeError("the predicate is broken")
        return True

    class Decides(Sequence):
        @step(retry_when=retry_when)
        def one(self):
            if self.attempt == 1:
                raise ValueError

    sequence = run_sequence(Decides)
    assert sequence.run.status == "succeeded"
    assert [failure[2] for failure in failures(sequence)] == ["ValueError"]


@pytest.mark.parametrize("delay", [3_600_000, timedelta(hours=1)])
def test_dramatiqs_own_retry_says_when(delay):
    class Asks(Sequence):
        @step
        def one(self):
            raise dramatiq.errors.Retry("busy", delay=delay)

    sequence = Asks()
    drain_once(sequence)

    row = sequence.run.steps.get()
    wait = row.due_at - sequence.run.failures.get().failed_at
    assert timedelta(minutes=59) < wait < timedelta(minutes=61)


def test_a_step_beside_one_that_has_failed_ends_and_nothing_new_begins():
    class Fails(Sequence):
        @step(after=[], atomic=False)
        def running(self):
            drain()  # while it runs, the other one fails
            self.data["running"] = "kept"

        @step(after=[])
        def failing(self):
            raise Abort("no")

        @step(after=running)
        def held(self): ...

    sequence = Fails()
    drain()

    sequence.run.refresh_from_db()
    assert_steps(sequence, [("running", "succeeded"), ("failing", "failed"), ("held", "queued")])
    assert (sequence.run.status, sequence.run.data) == ("failed", {"running": "kept"})
    assert sequence.run.steps.get(step="held").wake_at is None


def test_an_error_that_cannot_be_shown_or_stored_as_it_is_is_recorded_all_the_same():
    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError

    class Fails(Sequence):
        @step(max_retries=1)
        def one(self):
            if self.attempt == 1:
                raise Nasty
            raise ValueError("a\0b \ud800 " + "x" * 10_000)

    sequence = run_sequence(Fails)

    (_, _, first, shown), (_, _, _, message) = failures(sequence)
    assert first.endswith("Nasty")
    assert shown == "<RuntimeError in __str__>"
    assert message.startswith("a\\0b \\ud800 xxx")


# max_age


def test_a_step_that_waited_in_its_queue_for_longer_than_its_max_age_fails_unperformed():
    class Ages(Sequence):
        @step(max_age=60_000)
        def one(self):
            raise AssertionError

    sequence = Ages()
    with clock() as moving:
        moving.move(timedelta(seconds=61))
        drain()

    assert_steps(sequence, [("one", "failed")])
    failure = only_failure(sequence)
    assert failure.error == "sequences.exceptions.StepExpired"
    assert failure.message == (
        f"Step 'one' of run {sequence.run.pk} expired: it was first queued longer ago than its "
        "max_age of 0:01:00. Retry the run or skip the step."
    )


def test_the_time_of_a_delay_is_no_age():
    class Ages(Sequence):
        @step(max_age=60_000, delay=timedelta(days=1))
        def one(self): ...

    assert run_sequence(Ages).run.status == "succeeded"


@pytest.mark.parametrize("delay", [None, timedelta(days=1)])
def test_max_age_counts_over_all_attempts(delay):
    class Ages(Sequence):
        @step(max_age=60_000, delay=delay)
        def one(self):
            moving.move(timedelta(seconds=25))
            raise ValueError

    with clock() as moving:
        sequence = Ages()
        drain()
        moving.move(delay or timedelta(0))
        drain()

    assert_steps(sequence, [("one", "failed")])
    assert [failure[2].rpartition(".")[2] for failure in failures(sequence)] == [
        "ValueError", "ValueError", "ValueError", "StepExpired"
    ]  # fmt: skip


def test_max_age_begins_anew_with_every_repeat():
    class Ages(Sequence):
        @step(max_age=60_000)
        def one(self):
            self.data["n"] += 1
            return repeat(after=timedelta(minutes=5)) if self.data["n"] < 3 else None

    assert run_sequence(Ages, n=0).run.status == "succeeded"


# Bad data


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1}, 'data["user"]["value"] is of type set, which JSON cannot represent. Use a list.'),
        (float("nan"), 'data["user"]["value"] is nan. Use None or a string.'),
        (float("inf"), 'data["user"]["value"] is inf. Use None or a string.'),
        ("a\0b", 'data["user"]["value"] contains U+0000. Remove or replace it.'),
        (
            "\ud800",
            'data["user"]["value"] contains the lone surrogate U+D800. Remove or replace it.',
        ),
        ({1: 2}, 'data["user"]["value"] has the key 1 of type int. Keys must be strings.'),
        (
            Team(pk=1),
            'data["user"]["value"] is of type testproject.contact.models.Team, which JSON '
            "cannot represent. Store its pk.",
        ),
        (
            "x" * 2_000_000,
            "data takes 2,000,027 bytes as JSON; the limit is 1,048,576; the largest "
            'part is data["user"]["value"] with 2,000,002. Store it elsewhere '
            "and keep a reference, or raise MAX_DATA_BYTES.",
        ),
    ],
    ids=["set", "NaN", "infinity", "U+0000", "surrogate", "key", "model", "large"],
)
def test_data_that_cannot_be_stored_fails_the_step_at_once_with_its_path_and_the_mend(
    value, message
):
    class Bad(Sequence):
        @step(max_retries=10)
        def one(self):
            Message.objects.create(name="gone")
            self.data["user"] = {"value": value}

        @step
        def two(self): ...

    sequence = run_sequence(Bad, n=1)

    assert_steps(sequence, [("one", "failed")])
    assert (sequence.run.status, sequence.data) == ("failed", {"n": 1})
    assert failures(sequence) == [("one", 1, "sequences.exceptions.InvalidData", message)]
    assert not Message.objects.exists()


def test_a_result_that_cannot_be_stored_fails_the_step_at_once():
    class Bad(Sequence):
        @step(max_retries=10)
        def one(self):
            return {"found": {1, 2}}

    sequence = run_sequence(Bad)
    assert failures(sequence) == [
        (
            "one",
            1,
            "sequences.exceptions.InvalidData",
            'result["found"] is of type set, which JSON cannot represent. Use a list.',
        )
    ]


@pytest.mark.parametrize(("value", "type_name"), [([1], "list"), (None, "NoneType")])
def test_something_else_in_the_place_of_data_fails_the_step_at_once(value, type_name):
    class Bad(Sequence):
        @step(max_retries=10)
        def one(self):
            self.data = value

    sequence = run_sequence(Bad, n=1)
    assert (sequence.run.status, sequence.data) == ("failed", {"n": 1})
    assert only_failure(sequence).message == (
        f"data is a {type_name}, not a dict. Put values into self.data; do not put another object "
        "in its place."
    )


def test_another_dict_in_the_place_of_data_is_stored():
    class Replaces(Sequence):
        @step
        def one(self):
            self.data = {"new": True}

    assert run_sequence(Replaces, old=True).data == {"new": True}


def test_what_the_encoder_knows_is_stored_as_it_says():
    class Encoded(Sequence):
        @step
        def one(self):
            self.data["when"] = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

        @step
        def two(self):
            assert self.data["when"] == "2030-01-02T03:04:05Z"

    assert run_sequence(Encoded).run.status == "succeeded"


def test_data_is_read_as_it_went_through_json():
    class Shapes(Sequence):
        @step
        def one(self):
            self.data["tuple"] = (1, 2)
            self.data["text"] = "ü\u2028😀\\"
            self.data["numbers"] = [2**60, 0.1, -1]

        @step
        def two(self):
            assert self.data == {
                "tuple": [1, 2],
                "text": "ü\u2028😀\\",
                "numbers": [2**60, 0.1, -1],
            }

    assert run_sequence(Shapes).run.status == "succeeded"


# Inheritance and aliases


def test_a_subclass_performs_its_parents_steps_in_its_own_way():
    class Order(Sequence):
        class Meta:
            abstract = True
            max_retries = 0

        @step
        def charge(self):
            return "charged"

        @step
        def thank(self):
            return "thanks"

        @step
        def ship(self):
            return "shipped"

    class GiftOrder(Order):
        thank = None

        @step
        def charge(self):
            return "gift " + super().charge()

        @step
        def wrap(self):
            return "wrapped"

    sequence = run_sequence(GiftOrder)

    rows = sequence.run.steps.order_by("pk").values_list("step", "result")
    assert list(rows) == [("charge", "gift charged"), ("ship", "shipped"), ("wrap", "wrapped")]
    assert options_of("tests.GiftOrder.charge")["max_retries"] == 0


def test_a_run_goes_on_after_its_sequence_and_its_steps_were_renamed():
    class Before(Sequence):
        @step
        def one(self): ...

        @step(delay=timedelta(days=1))
        def two(self): ...

    sequence = Before(n=1)
    drain()
    forget(Before)

    class After(Sequence):
        class Meta:
            aliases = ["tests.Before"]

        @step
        def one(self): ...

        @step(aliases=["two"])
        def second(self):
            self.data["n"] += self.result("one") or 1

    with clock() as moving:
        moving.move(timedelta(days=1, minutes=1))
        drain()

    sequence.run.refresh_from_db()
    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert sequence.run.data == {"n": 2}
    assert list(After.runs) == [sequence.run]


def forget(cls):
    """As if the code had it no more."""
    from sequences.definitions import registry

    registry._by_label.pop(cls._definition.label)


# Handing over directly


@pytest.fixture
def worker_thread(broker):
    """This thread as a worker's: it processes a message, with the hooks of the broker."""

    def process(message):
        proxy = MessageProxy(message)
        broker.emit_before("process_message", proxy)
        broker.get_actor(message.actor_name)(*message.args)
        broker.emit_after("process_message", proxy, result=None)

    yield process
    assert current.delivery() is None


def first_message(sequence):
    row = sequence.run.steps.get()
    actor = f"{sequence.run.sequence}.{row.step}"
    queue = dramatiq.get_broker().actors[actor].queue_name
    return dispatcher.message_for(
        dispatcher.Dispatch(row.pk, row.run_id, actor, queue, row.attempts)
    )


@pytest.mark.django_db(transaction=True)
def test_direct_steps_are_performed_in_one_go_each_with_a_message_of_its_own(worker_thread):
    seen = []

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            seen.append(current.delivery().message.message_id)

        @step
        def two(self):
            seen.append(current.delivery().message.message_id)

        @step
        def three(self):
            seen.append(current.delivery().message.message_id)

    with dispatcher.capture_dispatches() as sent:
        sequence = Direct()
        del sent[:]
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded"), ("three", "succeeded")])
    assert len(set(seen)) == 3
    assert sent == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "options", [{"queue_name": "other"}, {"delay": timedelta(days=1)}], ids=["queue", "delay"]
)
def test_a_step_of_another_queue_or_with_a_delay_is_not_performed_in_the_same_go(
    worker_thread, options
):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(**options)
        def two(self):
            raise AssertionError

    sequence = Direct()
    with dispatcher.capture_dispatches():
        worker_thread(first_message(sequence))

    status = "waiting" if "delay" in options else "queued"
    assert_steps(sequence, [("one", "succeeded"), ("two", status)])


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_shuts_down_hands_over_by_the_broker(worker_thread, monkeypatch):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self):
            current.stopping.set()

        @step
        def two(self):
            raise AssertionError

    sequence = Direct()
    try:
        with dispatcher.capture_dispatches() as sent:
            worker_thread(first_message(sequence))
    finally:
        current.stopping.clear()

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Direct.two"]


@pytest.mark.django_db(transaction=True)
def test_a_thread_gives_others_their_turn_after_a_while(worker_thread, monkeypatch):
    monkeypatch.setattr(handoff_module, "DIRECTLY", -1.0)

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step
        def two(self): ...

    sequence = Direct()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Direct.two"]


@pytest.mark.django_db(transaction=True)
def test_of_parallel_steps_one_goes_on_directly_and_the_others_are_dispatched(worker_thread):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(after=one)
        def left(self): ...

        @step(after=one)
        def right(self): ...

        @step
        def join(self): ...

    sequence = Direct()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("left", "succeeded"), ("right", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Direct.right"]


@pytest.mark.django_db(transaction=True)
def test_a_direct_step_that_fails_is_retried_by_a_message_and_does_not_fail_its_predecessor(
    worker_thread, broker, caplog
):
    caplog.set_level(logging.ERROR)

    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(max_retries=3, min_backoff=1000)
        def two(self):
            raise ValueError("not yet")

    with dispatcher.capture_dispatches():
        sequence = Direct()
    worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "retrying")])
    assert failures(sequence) == [("two", 1, "ValueError", "not yet")]
    retry = broker.queues["default.DQ"].get_nowait()
    assert b"tests.Direct.two" in retry


@pytest.mark.django_db(transaction=True)
def test_without_direct_handoff_the_next_step_goes_through_the_broker(worker_thread):
    class Plain(Sequence):
        @step
        def one(self): ...

        @step
        def two(self): ...

    sequence = Plain()
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert [dispatch.actor for dispatch in sent] == ["tests.Plain.two"]


# Routers


class NoReads:
    """A router that sends reads to a replica, which is not there."""

    def db_for_read(self, model, **hints):
        raise AssertionError(f"{model} is read by the router's choice")


@pytest.mark.parametrize("atomic", [False, True])
def test_nothing_is_read_from_where_the_router_sends_reads(settings, atomic):
    class Reads(Sequence):
        Meta = type("Meta", (), {"atomic": atomic})

        @step(delay=timedelta(days=1))
        def one(self):
            self.data["n"] += 1
            return repeat() if self.data["n"] < 2 else "one"

        @step(after=one, max_retries=1)
        def left(self):
            self.data["left"] = self.result("one")
            if self.attempt == 1:
                raise ValueError

        @step(after=one)
        def right(self):
            self.data["right"] = list(self.results("one"))

        @step
        def join(self):
            if self.data["n"] < 3:
                raise Abort("mend me")

    settings.DATABASE_ROUTERS = [NoReads()]
    sequence = run_sequence(Reads, n=0)
    row = sequence.run
    assert (row.status, row.data["n"]) == ("failed", 2)
    row.edit({**row.data, "n": 3})
    row.retry()
    drain()
    again = Reads.start({"n": 0}, key="a")
    assert Reads.start({"n": 0}, key="a").run.pk == again.run.pk
    (many,) = Reads.start_many([({"n": 0}, {"key": "a"})])
    assert not many.created
    again.run.cancel()

    settings.DATABASE_ROUTERS = []
    row.refresh_from_db()
    assert row.status == "succeeded"
    assert row.data == {"n": 3, "left": "one", "right": ["one"]}


class Expected(Exception):
    pass


def _after_another(error, **options):
    class Direct(Sequence):
        class Meta:
            handoff = "direct"

        @step
        def one(self): ...

        @step(max_retries=1, min_backoff=1, max_backoff=1, **options)
        def two(self):
            raise error

    return Direct


def _directly(sequence, worker_thread):
    worker_thread(first_message(sequence))


def _by_a_timer(sequence, worker_thread):
    with dispatcher.capture_dispatches() as sent:
        worker_thread(first_message(sequence))
    sequence.run.steps.filter(step="two").update(due_at=timezone.now())
    handoff_module.perform_here(dispatcher.delayed(sent[-1], None), "tests.Direct", "default")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("handed_over", [_directly, _by_a_timer])
@pytest.mark.parametrize(
    ("error", "options", "level"),
    [
        (Expected(), {"throws": Expected}, "INFO"),
        (Expected(), {"throws": (KeyError, Expected)}, "INFO"),
        (Abort("no"), {}, "INFO"),
        (Retry("later", delay=1), {}, "DEBUG"),
        (RateLimitExceeded("full"), {}, "DEBUG"),
        (Expected(), {}, "ERROR"),
    ],
    ids=["throws", "one of throws", "abort", "retry", "rate limit", "unexpected"],
)
def test_what_is_expected_is_logged_as_dramatiqs_worker_does(
    worker_thread, caplog, handed_over, error, options, level
):
    caplog.set_level(logging.DEBUG)
    delay = {"delay": 60_000} if handed_over is _by_a_timer else {}
    handed_over(_after_another(error, **options, **delay)(), worker_thread)
    told = [one for one in caplog.records if one.name == "sequences" and "Step run" in one.msg]
    assert [one.levelname for one in told] == [level]
    assert bool(told[0].exc_info) == (level == "ERROR")


@pytest.mark.django_db(transaction=True)
def test_a_step_that_is_not_to_be_had_any_more_is_logged_at_most_as_debug(worker_thread, caplog):
    caplog.set_level(logging.DEBUG)
    sequence = _after_another(Expected())()
    gone = dispatcher.Dispatch(10**9, sequence.run.pk, "tests.Direct.two", "default")
    handoff_module.perform_here(gone, "tests.Direct", "default")
    assert {one.levelname for one in caplog.records if one.name == "sequences"} == {"DEBUG"}
