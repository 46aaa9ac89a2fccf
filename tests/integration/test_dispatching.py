import logging
import uuid
from types import SimpleNamespace

import pytest
from django.db import transaction

from sequences.engine import dispatcher
from sequences.testing import isolate_sequences
from sequences.transitions.types import Dispatch
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fresh, ledger, messages, overdue, perform, row
from tests.steps import chain


@pytest.fixture
def passing(monkeypatch):
    """The monotonic clock of the breaker, moved by a test."""
    clock = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.seconds)
    monkeypatch.setattr("sequences.engine.dispatcher.time", fake)
    return clock


@pytest.fixture(autouse=True)
def breaker(monkeypatch, passing):
    breaker = dispatcher._Breaker()
    monkeypatch.setattr(dispatcher, "_breaker", breaker)
    with isolate_sequences():
        yield breaker


@pytest.fixture
def unreliable(broker, monkeypatch):
    """The broker refuses as long as `down` is true, and counts how often it was asked."""
    state = SimpleNamespace(down=True, asked=0)
    enqueue = broker.enqueue

    def maybe(message, *, delay=None):
        state.asked += 1
        if state.down:
            raise ConnectionError("connection refused")
        return enqueue(message, delay=delay)

    monkeypatch.setattr(broker, "enqueue", maybe)
    return state


def dispatch(**values):
    return Dispatch(
        **{
            "step_run_id": 7,
            "run_id": uuid.UUID(int=1),
            "actor": "shop.Chain.one",
            "queue": "default",
            **values,
        }
    )


# --- the message


def test_a_message_carries_ids_and_nothing_of_the_data():
    message = dispatcher.message_for(dispatch())
    assert message.args == ("00000000-0000-0000-0000-000000000001", 7)
    assert message.kwargs == {}
    assert message.options == {"sequences": 1}  # the version of the message's format
    assert (message.actor_name, message.queue_name) == ("shop.Chain.one", "default")


def test_a_message_carries_the_attempts_that_have_failed():
    assert dispatcher.message_for(dispatch(attempts=3)).options["retries"] == 3


def test_what_is_sent_stands_in_its_queue(broker):
    broker.declare_queue("default")
    assert dispatcher.send([dispatch(), dispatch(step_run_id=8)]) == [
        dispatch(),
        dispatch(step_run_id=8),
    ]
    assert [message.args[1] for message in messages()] == [7, 8]


def test_a_delayed_dispatch_waits_in_the_broker(broker):
    broker.declare_queue("default")
    dispatcher.send([dispatch(delay=60_000)])
    assert messages() == []
    (message,) = messages("default.DQ")
    assert message.options["eta"] - message.message_timestamp >= 60_000


def test_a_dispatch_to_a_queue_that_the_broker_does_not_know_is_logged_and_not_raised(caplog):
    assert dispatcher.send([dispatch(queue="nowhere")]) == []
    assert "step run 7" in caplog.text
    assert "shop.Chain.one" in caplog.text


def test_what_is_caught_is_not_sent(broker):
    broker.declare_queue("default")
    with dispatcher.capture_dispatches() as outer:
        dispatcher.send([dispatch()])
        with dispatcher.capture_dispatches() as inner:
            dispatcher.send([dispatch(step_run_id=8)])
        dispatcher.send([dispatch(step_run_id=9)])
    assert [one.step_run_id for one in outer] == [7, 9]
    assert [one.step_run_id for one in inner] == [8]
    assert messages() == []


# --- a broker that is down


def test_a_broker_that_is_down_is_logged_with_what_it_did_not_take(unreliable, caplog):
    caplog.set_level(logging.WARNING, "sequences")
    assert dispatcher.send([dispatch()]) == []
    assert "did not accept the message for step run 7" in caplog.text
    assert "connection refused" in caplog.text


def test_a_broker_that_has_refused_is_left_alone_for_a_moment(unreliable, passing, broker):
    broker.declare_queue("default")
    dispatcher.send([dispatch(), dispatch(), dispatch()])
    assert unreliable.asked == 1
    unreliable.down = False
    passing.seconds += 0.9
    assert dispatcher.send([dispatch()]) == []
    assert unreliable.asked == 1
    passing.seconds += 0.2
    assert dispatcher.send([dispatch()]) == [dispatch()]


def test_the_pauses_grow_up_to_half_a_minute_and_a_success_ends_them(unreliable, passing, broker):
    broker.declare_queue("default")
    pauses = []
    for _ in range(8):
        dispatcher.send([dispatch()])
        asked = unreliable.asked
        pause = 0
        while unreliable.asked == asked:
            passing.seconds += 1
            pause += 1
            dispatcher.send([dispatch()])
        pauses.append(pause)
    assert pauses[0] == 1
    assert sorted(pauses) == pauses
    assert pauses[-1] == 30
    unreliable.down = False
    passing.seconds += 31
    assert dispatcher.send([dispatch()])
    unreliable.down = True
    dispatcher.send([dispatch()])
    asked = unreliable.asked
    passing.seconds += 1.1
    dispatcher.send([dispatch()])
    assert unreliable.asked == asked + 1


@pytest.mark.django_db(transaction=True)
def test_a_start_never_sees_that_the_broker_is_down(unreliable, passing):
    run = chain().start().run
    assert ledger(run) == {"one": "queued"}
    assert messages() == []
    unreliable.down = False
    passing.seconds += 60
    overdue(run, "one")
    assert sweep(AssumeLost(), "default") == 1
    assert len(messages()) == 1


@pytest.mark.django_db
def test_a_steering_call_never_sees_that_the_broker_is_down(
    unreliable, django_capture_on_commit_callbacks
):
    run = chain().start().run
    run.pause()
    with django_capture_on_commit_callbacks(execute=True):
        run.resume()
    assert unreliable.asked == 1
    assert fresh(run).status == "running"
    assert row(run, "one").wake_at is not None


# --- when a message is sent


@pytest.mark.django_db(transaction=True)
def test_a_start_in_a_transaction_is_dispatched_when_that_commits():
    cls = chain()
    with transaction.atomic():
        run = cls.start().run
        assert messages() == []
    assert [message.args for message in messages()] == [(str(run.pk), row(run, "one").pk)]


@pytest.mark.django_db(transaction=True)
def test_a_start_that_is_rolled_back_is_not_dispatched():
    cls = chain()
    with transaction.atomic():
        run = cls.start().run
        transaction.set_rollback(True)
    assert messages() == []
    assert ledger(run) == {}


@pytest.mark.django_db(transaction=True)
def test_a_hook_of_the_caller_that_raises_does_not_keep_the_message_from_the_broker():
    cls = chain()

    def raising():
        raise ZeroDivisionError

    def start():
        with transaction.atomic():
            cls.start()
            transaction.on_commit(raising)

    with pytest.raises(ZeroDivisionError):
        start()
    assert len(messages()) == 1


@pytest.mark.django_db
def test_a_commit_says_what_is_to_be_dispatched_and_sends_nothing_itself():
    run = chain().start().run
    (ready,) = perform(claim(run, "one"))
    assert messages() == []
    assert ready == Dispatch(row(run, "two").pk, run.pk, "shop.Chain.two", "default")
