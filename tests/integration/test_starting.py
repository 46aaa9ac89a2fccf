"""Starting sequences: rows and messages, keys, transactions, views."""

import json
import logging
import threading
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, connections, transaction
from django.http import JsonResponse, QueryDict
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import path

import sequences
from sequences import Sequence, step
from sequences.engine import dispatcher
from sequences.engine.executor import StepExecution
from sequences.engine.start import RUNS_PER_INSERT
from sequences.exceptions import InvalidData, SequenceError
from sequences.models import SequenceRun, StepRun, StoredPlan
from sequences.testing import clock, drain
from sequences.transitions import clock as database_clock
from sequences.transitions import starts
from sequences.transitions.types import new_row
from testproject.contact.models import Message, Team

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _broker_answers(monkeypatch):
    monkeypatch.setattr(dispatcher, "_breaker", dispatcher._Breaker())


@pytest.fixture
def contact():
    """A sequence that most tests start."""

    class Contact(Sequence):
        @step
        def one(self):
            self.data["done"] = True

        @step
        def two(self): ...

    return Contact


def sent(broker, queue="default"):
    """The messages that wait in the broker, as actor and arguments."""
    messages = [json.loads(message) for message in list(broker.queues[queue].queue)]
    return [(message["actor_name"], *message["args"]) for message in messages]


# The call


def test_a_call_of_the_class_writes_a_run_and_its_first_step(contact):
    sequence = contact(name="Joel", github="joelmoss")

    run = SequenceRun.objects.get()
    assert sequence.run == run
    assert (run.sequence, run.status, run.key) == ("tests.Contact", "running", None)
    assert sequence.data == run.data == {"name": "Joel", "github": "joelmoss"}
    assert sequence.created is True
    (first,) = run.steps.all()
    assert (first.step, first.status, first.attempts) == ("one", "queued", 0)


def test_every_keyword_of_a_call_is_data(contact):
    data = {"key": "k", "unique": "u", "delay": 5, "data": {}, "self": "s", "cls": "c"}
    sequence = contact(**data)
    assert SequenceRun.objects.get().data == data
    assert sequence.run.key is None


def test_start_takes_the_data_as_a_dict(contact):
    assert contact.start({"not an identifier": 1}).data == {"not an identifier": 1}
    assert contact.start().data == {}


def test_what_was_posted_is_data_with_one_value_for_each_key(contact):
    posted = QueryDict("name=Ada&name=Joel&city=")
    (many,) = contact.start_many([posted])
    for sequence in (contact.start(posted), many):
        assert sequence.run.data == {"name": "Joel", "city": ""}


def test_data_in_hand_is_as_it_will_be_read(contact):
    given = {"pair": (1, 2)}
    sequence = contact.start(given)
    assert sequence.data == {"pair": [1, 2]}
    assert given == {"pair": (1, 2)}


def test_a_sequence_begins_with_every_step_that_waits_for_none():
    class Wide(Sequence):
        @step(after=[])
        def left(self): ...

        @step(after=[])
        def right(self): ...

        @step
        def join(self): ...

    sequence = Wide()
    assert set(sequence.run.steps.values_list("step", flat=True)) == {"left", "right"}


def test_defaults_lie_under_the_data_of_each_run():
    class Defaults(Sequence):
        class Meta:
            defaults = {"tags": [], "n": 1}

        @step
        def one(self):
            self.data["tags"].append(self.data["n"])

    first, second = Defaults(), Defaults(n=2)
    (third,) = Defaults.start_many([{"tags": ["own"]}])
    drain()
    data = [SequenceRun.objects.get(pk=one.run.pk).data for one in (first, second, third)]
    assert data == [{"tags": [1], "n": 1}, {"tags": [2], "n": 2}, {"tags": ["own", 1], "n": 1}]


@pytest.mark.parametrize("delay", [timedelta(days=1), 24 * 60 * 60 * 1000])
def test_a_delayed_start_waits_in_the_database(contact, delay, broker):
    sequence = contact.start({}, delay=delay)

    (first,) = sequence.run.steps.all()
    assert first.status == "waiting"
    assert first.due_at - sequence.run.created_at == timedelta(days=1)
    with clock() as moving:
        assert drain() == 0
        moving.move(timedelta(days=1, seconds=1))
        assert drain() == 2
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


def test_a_delayed_start_comes_before_the_delay_of_its_first_step():
    class Waits(Sequence):
        @step(delay=timedelta(days=1))
        def one(self): ...

    sequence = Waits.start({}, delay=timedelta(days=2))
    with clock() as moving:
        moving.move(timedelta(days=2, minutes=1))
        drain()
        (row,) = sequence.run.steps.all()
        assert row.status == "waiting"
        moving.move(timedelta(days=1))
        drain()
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


# Keys


def test_a_key_starts_once_for_ever(contact):
    first = contact.start({"n": 1}, key="order-1")
    again = contact.start({"n": 2}, key="order-1")
    drain()
    later = contact.start({"n": 3}, key="order-1")

    assert [one.created for one in (first, again, later)] == [True, False, False]
    assert first.run == again.run == later.run
    assert again.data == {"n": 1}
    assert (later.run.status, later.data) == ("succeeded", {"n": 1, "done": True})
    assert SequenceRun.objects.count() == 1


def test_an_unfinished_key_is_free_again_when_its_run_has_ended(contact):
    first = contact.start({"n": 1}, key="sync", unique="unfinished")
    again = contact.start({"n": 2}, key="sync", unique="unfinished")
    assert (again.created, again.run) == (False, first.run)

    drain()
    second = contact.start({"n": 3}, key="sync", unique="unfinished")
    assert second.created
    second.run.cancel()
    third = contact.start({"n": 4}, key="sync", unique="unfinished")
    assert third.created
    assert contact.runs.filter(key="sync").count() == 3


def test_a_run_that_was_started_for_ever_keeps_its_key(contact):
    contact.start({}, key="order-1")
    drain()
    assert not contact.start({}, key="order-1", unique="unfinished").created


def test_a_start_for_ever_finds_a_run_that_has_freed_its_key(contact):
    ended = contact.start({}, key="sync", unique="unfinished")
    drain()
    assert contact.start({}, key="sync").run == ended.run
    running = contact.start({}, key="sync", unique="unfinished")
    assert contact.start({}, key="sync").run == running.run


def test_a_run_that_holds_a_key_again_goes_before_one_that_has_freed_it(contact):
    first = contact.start({}, key="sync", unique="unfinished")
    drain()
    second = contact.start({}, key="sync", unique="unfinished")
    drain()
    assert second.created
    first.run.restart_from("two")

    assert contact.start({}, key="sync").run == first.run
    assert contact.start({}, key="sync", unique="unfinished").run == first.run


def test_each_sequence_has_keys_of_its_own(contact):
    class Other(Sequence):
        @step
        def one(self): ...

    assert contact.start({}, key="a").created
    assert Other.start({}, key="a").created


def test_runs_of_an_earlier_name_hold_their_keys(contact):
    before = contact.start({}, key="a")

    class Renamed(Sequence):
        class Meta:
            aliases = ["tests.Earlier"]

        @step
        def one(self): ...

    SequenceRun.objects.update(sequence="tests.Earlier")
    assert Renamed.start({}, key="a").run == before.run
    assert not Renamed.start_many([({}, {"key": "a"})])[0].created


DIFFERENT = [
    "a",
    "A",
    "a ",
    " a",
    "ä",
    "a\u0308",
    "\uff41",
    "a\t",
    "ß",
    "ss",
    "1",
    "01",
    "😀",
    "😁",
]


def test_keys_that_differ_in_case_or_spaces_are_different_everywhere(contact):
    started = [contact.start({}, key=key) for key in DIFFERENT]
    assert all(one.created for one in started)
    again = [contact.start({}, key=key) for key in DIFFERENT]
    assert [one.run for one in again] == [one.run for one in started]
    assert [contact.runs.get(key=key) for key in DIFFERENT] == [one.run for one in started]


def test_keys_that_differ_in_case_or_spaces_are_different_in_bulk(contact):
    items = [({}, {"key": key}) for key in DIFFERENT]
    started = contact.start_many(items)
    assert all(one.created for one in started)
    assert [one.run for one in contact.start_many(items)] == [one.run for one in started]
    assert [one.run.key for one in started] == DIFFERENT


def test_a_key_as_long_as_its_column_fits(contact):
    key = "😀" * 255
    assert contact.start({}, key=key).created
    assert contact.runs.get(key=key)


def test_a_conflict_on_the_key_leaves_the_callers_transaction_usable(contact, monkeypatch):
    holder = contact.start({}, key="a").run
    overlook_once(monkeypatch)

    with transaction.atomic():
        Message.objects.create(name="before")
        found = contact.start({}, key="a")
        Message.objects.create(name="after")

    assert (found.run, found.created) == (holder, False)
    assert Message.objects.count() == 2
    assert StepRun.objects.count() == 1


def overlook_once(monkeypatch):
    """As if the run that holds the key were committed between the look and the insert."""
    look, calls = starts._holders, []

    def overlook(*arguments):
        calls.append(arguments)
        return {} if len(calls) == 1 else look(*arguments)

    monkeypatch.setattr(starts, "_holders", overlook)


def test_a_conflict_in_bulk_leaves_the_callers_transaction_usable(contact, monkeypatch):
    holder = contact.start({}, key="b").run
    overlook_once(monkeypatch)

    with transaction.atomic():
        found = contact.start_many([({}, {"key": key}) for key in "abc"])
        Message.objects.create(name="after")

    assert [one.created for one in found] == [True, False, True]
    assert found[1].run == holder
    assert StepRun.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_of_many_threads_that_start_with_one_key_one_does(contact):
    contact()  # the plan is stored
    barrier = threading.Barrier(6)
    started, errors = [], []

    def start():
        try:
            barrier.wait(timeout=60)
            with transaction.atomic():
                started.append(contact.start({}, key="a"))
                Message.objects.create(name="in the same transaction")
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert not errors
    assert sorted(one.created for one in started) == [False] * 5 + [True]
    assert len({one.run.pk for one in started}) == 1
    assert Message.objects.count() == 6
    assert contact.runs.filter(key="a").count() == 1


# In bulk


def test_many_are_started_in_their_order_with_data_or_data_and_options(contact):
    started = contact.start_many(
        iter(
            [
                {"n": 0},
                ({"n": 1}, {"key": "a"}),
                ({"n": 2}, {"key": "a"}),
                ({"n": 3}, {"delay": timedelta(days=1)}),
                ({"n": 4}, {"key": "b", "unique": "unfinished"}),
                None,
            ]
        )
    )

    assert [one.created for one in started] == [True, True, False, True, True, True]
    assert [one.data.get("n") for one in started] == [0, 1, 1, 3, 4, None]
    assert started[1].run == started[2].run
    assert SequenceRun.objects.count() == 5
    statuses = [one.run.steps.get().status for one in started]
    assert statuses == ["queued", "queued", "queued", "waiting", "queued", "queued"]
    drain()
    assert contact.runs.filter(status="succeeded").count() == 4


def test_none_are_started_of_nothing(contact):
    assert contact.start_many([]) == []


def test_runs_of_one_batch_are_found_by_the_keys_of_a_batch_before(contact):
    items = [
        ({"n": n}, {"key": str(n % (RUNS_PER_INSERT + 10))}) for n in range(RUNS_PER_INSERT + 20)
    ]
    started = contact.start_many(items)

    assert sum(one.created for one in started) == RUNS_PER_INSERT + 10
    assert started[RUNS_PER_INSERT + 12].run == started[2].run
    assert SequenceRun.objects.count() == StepRun.objects.count() == RUNS_PER_INSERT + 10


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.django_db(transaction=True)  # a plan that is not committed is looked up again
@pytest.mark.parametrize("keyed", [False, True])
def test_the_number_of_queries_does_not_grow_with_the_number_of_runs(contact, keyed):
    def queries(count, prefix):
        items = [({"n": n}, {"key": f"{prefix}-{n}"} if keyed else {}) for n in range(count)]
        with CaptureQueriesContext(connection) as captured:
            contact.start_many(items)
        return len(captured)

    queries(1, "plan")
    queries(1, "functions")
    few = queries(2, "few")
    assert queries(RUNS_PER_INSERT, "many") == few
    assert queries(2 * RUNS_PER_INSERT, "twice") == 2 * few
    assert few <= 8  # BEGIN and COMMIT among them


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.only_on("postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_hundred_thousand_are_started_with_keys_of_which_some_are_repeated(contact):
    count = 100_000
    items = (({"n": n}, {"key": f"order-{n % 90_000}"}) for n in range(count))
    with dispatcher.capture_dispatches() as dispatched:
        started = contact.start_many(items)

    assert len(started) == count
    assert sum(one.created for one in started) == 90_000
    assert [one.run.pk for one in started[90_000:]] == [one.run.pk for one in started[:10_000]]
    assert [one.run.key for one in started[:3]] == ["order-0", "order-1", "order-2"]
    assert SequenceRun.objects.count() == StepRun.objects.count() == 90_000
    assert len(dispatched) == 90_000


# Bad input


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Team(pk=1), 'data["user"] is of type testproject.contact.models.Team, which JSON '
                     "cannot represent. Store its pk."),
        ({1, 2}, 'data["user"] is of type set, which JSON cannot represent. Use a list.'),
        (float("nan"), 'data["user"] is nan. Use None or a string.'),
        ("a\0", 'data["user"] contains U+0000. Remove or replace it.'),
        ("\ud800", 'data["user"] contains the lone surrogate U+D800. Remove or replace it.'),
        ([{1: 2}], 'data["user"][0] has the key 1 of type int. Keys must be strings.'),
        ("x" * 2_000_000, "data takes 2,000,011 bytes as JSON; the limit is 1,048,576; the "
         'largest part is data["user"] with 2,000,002. Store it elsewhere and '
         "keep a reference, or increase MAX_DATA_BYTES."),
    ],
    ids=["model", "set", "NaN", "U+0000", "surrogate", "key", "large"],
)  # fmt: skip
@pytest.mark.parametrize("start", ["call", "start", "start_many"])
def test_data_that_cannot_be_stored_is_refused_in_the_caller_and_nothing_is_written(
    contact, value, message, start
):
    calls = {
        "call": lambda: contact(user=value),
        "start": lambda: contact.start({"user": value}, key="a"),
        "start_many": lambda: contact.start_many([{}, {"user": value}]),
    }
    with pytest.raises(InvalidData) as caught:
        calls[start]()
    assert str(caught.value) == message
    assert not SequenceRun.objects.exists()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda cls: cls.start([1]), "tests.Contact.start: data must be a dict, not list: [1]"),
        (lambda cls: cls.start("text"), "tests.Contact.start: data must be a dict, not str: "
                                        "'text'"),
        (
            lambda cls: cls.start({}, key=""),
            "tests.Contact.start: key is ''; it must be a non-empty string or None.",
        ),
        (
            lambda cls: cls.start({}, key=5),
            "tests.Contact.start: key is 5; it must be a non-empty string or None.",
        ),
        (
            lambda cls: cls.start({}, key="k" * 256),
            f"tests.Contact.start: the key that begins with '{'k' * 40}' has 256 characters; the "
            "limit is 255. Use a hash of long keys.",
        ),
        (lambda cls: cls.start({}, key="a\0b"), "key contains U+0000. Remove or replace it."),
        (
            lambda cls: cls.start({}, key="a", unique="never"),
            "tests.Contact.start: unique is 'never'; it must be \"ever\" or \"unfinished\".",
        ),
        (
            lambda cls: cls.start({}, delay="1 day"),
            "tests.Contact.start: delay is '1 day'; it must be a timedelta or a whole "
            "number of milliseconds.",
        ),
        (
            lambda cls: cls.start({}, delay=True),
            "tests.Contact.start: delay is True; it must be a timedelta or a whole number of "
            "milliseconds.",
        ),
        (
            lambda cls: cls.start({}, delay=timedelta.max),
            "tests.Contact.start: delay is datetime.timedelta(days=999999999, seconds=86399, "
            "microseconds=999999); it must not be longer than 1,000 years.",
        ),
        (
            lambda cls: cls.start({}, delay=10**30),
            f"tests.Contact.start: delay is {10**30}; it must not be longer than 1,000 years.",
        ),
        (
            lambda cls: cls.start({}, delay=timedelta(days=-1)),
            "tests.Contact.start: delay is datetime.timedelta(days=-1); it must not be negative.",
        ),
        (
            lambda cls: cls.start_many([({}, {"delay": -1})]),
            "tests.Contact.start: delay is -1; it must not be negative.",
        ),
        (
            lambda cls: cls.start_many([{}, ({}, {"keys": "a"})]),
            "tests.Contact.start_many: ({}, {'keys': 'a'}) must be data, or a pair of data and "
            'a dict of options ("key", "unique", "delay", "priority", "deadline", "subject").',
        ),
        (
            lambda cls: cls.start_many([{}, ({}, "a")]),
            "tests.Contact.start_many: ({}, 'a') must be data, or a pair of data and a dict of "
            'options ("key", "unique", "delay", "priority", "deadline", "subject").',
        ),
        (lambda cls: cls.start_many([{}, 5]), "tests.Contact.start: data must be a dict, not "
                                              "int: 5"),
    ],
)  # fmt: skip
def test_a_call_that_is_wrong_says_what_is_and_writes_nothing(contact, start, message):
    with pytest.raises(SequenceError) as caught:
        start(contact)
    assert str(caught.value) == message
    assert not SequenceRun.objects.exists()


def test_bad_data_leaves_the_callers_transaction_usable(contact):
    with transaction.atomic():
        with pytest.raises(InvalidData):
            contact(user={1})
        Message.objects.create(name="after")
    assert Message.objects.exists()


# Transactions and messages


@pytest.mark.django_db(transaction=True)
def test_a_start_outside_of_a_transaction_is_dispatched_at_once(contact, broker):
    sequence = contact()
    first = sequence.run.steps.get()
    assert sent(broker) == [("tests.Contact.one", str(sequence.run.pk), first.pk)]


@pytest.mark.django_db(transaction=True)
def test_a_start_in_a_transaction_is_dispatched_when_that_commits(contact, broker):
    with transaction.atomic():
        with transaction.atomic():
            contact()
            contact.start_many([{}, {}])
        assert sent(broker) == []
    assert len(sent(broker)) == 3


@pytest.mark.django_db(transaction=True)
def test_a_start_is_rolled_back_with_the_transaction_around_it(contact, broker):
    def start_and_fail():
        Team.objects.create(topic="press", name="one")
        contact()
        contact.start({}, key="a")
        contact.start_many([{}])
        Team.objects.create(topic="press", name="two")

    with pytest.raises(IntegrityError), transaction.atomic():
        start_and_fail()

    assert sent(broker) == []
    assert not SequenceRun.objects.exists()
    assert not StepRun.objects.exists()
    assert contact.start({}, key="a").created
    assert len(sent(broker)) == 1


@pytest.mark.django_db(transaction=True)
def test_a_start_that_found_its_key_taken_dispatches_nothing(contact, broker):
    contact.start({}, key="a")
    contact.start({}, key="a")
    assert len(sent(broker)) == 1


@pytest.mark.django_db(transaction=True)
def test_a_delayed_start_sends_nothing_before_it_is_due(contact, broker):
    contact.start({}, delay=timedelta(days=1))
    assert sent(broker) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_start_never_fails_for_the_broker(
    contact, broker, monkeypatch, caplog, in_transaction
):  # fmt: skip
    def refuse(*_, **__):
        raise ConnectionRefusedError("the broker is down")

    monkeypatch.setattr(broker, "enqueue", refuse)
    with transaction.atomic() if in_transaction else caplog.at_level(logging.WARNING):
        sequence = contact()
        contact.start({}, key="a")
        contact.start_many([{}])

    assert SequenceRun.objects.filter(status="running").count() == 3
    assert "the broker is down" in caplog.text
    row = sequence.run.steps.get()
    assert row.status == "queued"
    assert row.wake_at is not None  # the sweep will find it


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_down_is_not_asked_again_and_again(contact, broker, monkeypatch):
    asked = []

    def refuse(*_, **__):
        asked.append(1)
        raise ConnectionRefusedError

    monkeypatch.setattr(broker, "enqueue", refuse)
    contact.start_many([{}] * 50)
    assert len(asked) == 1


def test_in_a_test_case_the_hooks_of_a_start_can_be_captured(
    contact, broker, django_capture_on_commit_callbacks
):
    contact()
    assert sent(broker) == []
    with django_capture_on_commit_callbacks(execute=True):
        contact()
    assert len(sent(broker)) == 1


# Views


def start_view(request):
    sequence = sequences.get("tests.Contact")(name=request.POST["name"])
    if "fail" in request.POST:
        raise RuntimeError("the view has failed")
    return JsonResponse({"run": str(sequence.run.pk), "in_block": connection.in_atomic_block})


@transaction.non_atomic_requests
async def start_view_async(request):
    cls = sequences.get("tests.Contact")
    one = await cls.astart({"name": request.POST["name"]}, key="async")
    two = await cls.astart({}, key="async")
    many = await cls.astart_many([{"n": 1}, {"n": 2}])
    return JsonResponse({"created": [one.created, two.created], "many": len(many)})


urlpatterns = [path("start/", start_view), path("start-async/", start_view_async)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic_requests", [False, True])
def test_a_view_starts_a_sequence(contact, broker, settings, monkeypatch, atomic_requests):
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests)

    response = Client().post("/start/", {"name": "Joel"})

    assert response.json()["in_block"] is atomic_requests
    run = SequenceRun.objects.get(pk=response.json()["run"])
    assert run.data == {"name": "Joel"}
    assert [args[1] for args in sent(broker)] == [str(run.pk)]


@pytest.mark.django_db(transaction=True)
def test_under_atomic_requests_a_view_that_fails_has_started_nothing(
    contact, broker, settings, monkeypatch
):
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    client = Client(raise_request_exception=False)

    assert client.post("/start/", {"name": "Joel", "fail": "1"}).status_code == 500

    assert sent(broker) == []
    assert not SequenceRun.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_asynchronous_view_starts_sequences(contact, broker, settings):
    settings.ROOT_URLCONF = __name__

    response = async_to_sync(AsyncClient().post)("/start-async/", {"name": "Joel"})

    assert response.json() == {"created": [True, False], "many": 2}
    assert contact.runs.get(key="async").data == {"name": "Joel"}
    assert len(sent(broker)) == 3


# Reading


def test_the_runs_of_a_class_are_a_queryset(contact):
    class Other(Sequence):
        @step
        def one(self): ...

    class Waits(contact):
        @step(delay=timedelta(days=1))
        def three(self): ...

    Other()
    finished = contact.start({}, key="finished")
    waits = Waits()
    drain()
    unfinished = contact.start({}, key="unfinished")
    cancelled = contact.start({}, key="cancelled")
    cancelled.run.cancel()

    assert contact.runs.count() == 3
    assert contact.runs.get(key="finished") == finished.run
    assert list(contact.runs.unfinished()) == [unfinished.run]
    assert set(contact.runs.finished()) == {finished.run, cancelled.run}
    assert list(Waits.runs.waiting_for(Waits.three)) == [waits.run]
    assert list(Waits.runs.unfinished().waiting_for("three")) == [waits.run]
    assert not contact.runs.waiting_for("two").exists()


def test_the_runs_of_earlier_names_are_its_runs_too(contact):
    class Renamed(Sequence):
        class Meta:
            aliases = ["tests.Earlier"]

        @step
        def one(self): ...

    run = Renamed().run
    SequenceRun.objects.update(sequence="tests.Earlier")
    assert list(Renamed.runs) == [run]


def test_a_class_is_found_by_its_name(contact):
    assert sequences.get("tests.Contact") is contact


def test_each_of_a_batch_looks_for_its_key_in_its_own_way(contact):
    former = contact.start({}, key="a", unique="unfinished").run
    former.cancel()
    ever, unfinished = contact.start_many(
        [({}, {"key": "a", "unique": "ever"}), ({}, {"key": "a", "unique": "unfinished"})]
    )
    assert (ever.run, ever.created) == (former, False)
    assert unfinished.created


# Tables that were emptied under this process


def empty_the_tables():
    """As a test case does that inhibits Django's signal, or a person with TRUNCATE."""
    with connection.cursor() as cursor:
        for model in (StepRun, SequenceRun, StoredPlan):
            cursor.execute(f"DELETE FROM {model._meta.db_table}")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["start", "start_many", "key"])
def test_a_start_after_the_tables_were_emptied_stores_its_plan_again(contact, how):
    contact.start()
    empty_the_tables()

    if how == "start_many":
        run = contact.start_many([{}, {}])[0].run
    else:
        run = contact.start({}, key="a" if how == "key" else None).run

    assert StoredPlan.objects.get().pk == SequenceRun.objects.get(pk=run.pk).plan_id
    drain()
    assert contact.runs.get(pk=run.pk).status == "succeeded"


@pytest.mark.django_db(transaction=True)
def test_a_start_does_not_take_the_plan_of_another_that_has_got_its_id(contact):
    class Other(Sequence):
        @step
        def another(self): ...

    contact.start()
    before = StoredPlan.objects.get()
    empty_the_tables()
    now = database_clock.now("default")
    other = StoredPlan.objects.create(
        pk=before.pk,
        sequence=Other._definition.label,
        fingerprint=Other._definition.plan.fingerprint,
        graph=Other._definition.plan.to_json(),
        created_at=now,
    )

    run = contact.start().run

    assert run.plan_id != other.pk
    started = Other.start().run
    assert started.plan_id == other.pk
    drain()
    assert contact.runs.get().status == Other.runs.get().status == "succeeded"


@pytest.mark.django_db(transaction=True)
def test_a_worker_reads_a_plan_again_whose_id_another_sequence_had(contact):
    class Other(Sequence):
        @step
        def another(self): ...

    old = contact.start().run
    plan_id = old.plan_id
    drain()  # this process, as a worker, knows the plan
    empty_the_tables()
    definition = Other._definition
    # What another process starts on the emptied tables.
    StoredPlan.objects.create(
        pk=plan_id,
        sequence=definition.label,
        fingerprint=definition.plan.fingerprint,
        graph=definition.plan.to_json(),
        created_at=database_clock.now("default"),
    )
    run = SequenceRun.objects.create(
        plan_id=plan_id, sequence=definition.label,
        created_at=database_clock.now("default"), updated_at=database_clock.now("default"),
    )  # fmt: skip
    row = new_row(
        run.pk, definition.plan.node("another"), database_clock.now("default"), run.created_at
    )
    row.save()
    ready = StepExecution(row.pk, 0, "default").live()
    assert ready == []
    run.refresh_from_db()
    assert run.status == "succeeded"


# A database that lacks a migration


@pytest.fixture(params=["table", "column"])
def unmigrated(request, transactional_db):
    """The tables as before a migration."""
    table, old = SequenceRun._meta.db_table, "old_name"
    there, back = {
        "table": (f"{table} RENAME TO {old}", f"{old} RENAME TO {table}"),
        "column": (
            f"{table} RENAME COLUMN sequence TO {old}",
            f"{table} RENAME COLUMN {old} TO sequence",
        ),
    }[request.param]
    alter(there)
    yield
    alter(back)


def alter(change):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {change}")


@pytest.mark.parametrize("how", ["call", "start", "start_many", "key"])
def test_a_start_on_an_unmigrated_database_says_what_to_do(contact, unmigrated, how):
    calls = {
        "call": contact,
        "start": lambda: contact.start({}),
        "start_many": lambda: contact.start_many([{}]),
        "key": lambda: contact.start({}, key="a"),
    }
    with pytest.raises(SequenceError, match=r"Run manage\.py migrate\.") as caught:
        calls[how]()
    assert "'default'" in str(caught.value)


def test_the_command_on_an_unmigrated_database_says_what_to_do(contact, unmigrated):
    for arguments in (["list"], ["start", "tests.Contact"]):
        with pytest.raises(CommandError, match=r"Run manage\.py migrate\."):
            call_command("sequences", *arguments)
