"""The transactional outbox: a message of an actor is sent if, and when, its transaction commits."""

import json
import logging
import threading
import time
from datetime import timedelta

import dramatiq
import pytest
from django.db import connections, transaction

from sequences import Sequence, adispatch, dispatch, step
from sequences.engine import dispatcher
from sequences.engine import outbox as sending
from sequences.exceptions import InvalidData
from sequences.inspection import health
from sequences.models import OutboxMessage
from sequences.testing import clock, run_sequence
from sequences.testing import outbox as outbox_of_tests
from sequences.transitions import outbox
from sequences.worker.sweeper import AssumeLost, sweep
from testproject.contact.models import Message

pytestmark = pytest.mark.django_db(transaction=True)

USING = "default"


@pytest.fixture(autouse=True)
def _trusted(monkeypatch):
    monkeypatch.setattr(dispatcher, "_breaker", dispatcher._Breaker())


@pytest.fixture
def welcome():
    return dramatiq.actor(actor_name="tests.welcome", queue_name="mails")(lambda *_, **__: None)


def sent(queue="mails"):
    """What the broker has, as arguments; and it has it no more."""
    messages = dramatiq.get_broker().queues[queue]
    found = []
    while not messages.empty():
        found.append(dramatiq.Message.decode(messages.get_nowait()))
        messages.task_done()
    return found


def args_of(messages):
    return [message.args for message in messages]


def overdue():
    OutboxMessage.objects.update(wake_at=outbox.clock.now(USING) - timedelta(seconds=1))


class Down(Exception):
    pass


@pytest.fixture
def broken(broker, monkeypatch):
    def refuse(message, **_):
        raise Down

    monkeypatch.setattr(broker, "enqueue", refuse)
    return monkeypatch


# In a transaction


def test_it_is_sent_after_the_commit_and_leaves_nothing(welcome):
    with transaction.atomic():
        dispatch(welcome.message(1, name="Ada"))
        row = OutboxMessage.objects.get()
        assert (row.actor, row.queue) == ("tests.welcome", "mails")
        assert sent() == []

    (message,) = sent()
    assert (message.args, message.kwargs) == ((1,), {"name": "Ada"})
    assert message.message_id == json.loads(row.message)["message_id"]
    assert not OutboxMessage.objects.exists()


def test_of_what_is_rolled_back_nothing_is_sent(welcome):
    with transaction.atomic():
        dispatch(welcome.message(1))
        transaction.set_rollback(True)
    with transaction.atomic():
        with transaction.atomic():
            dispatch(welcome.message(2))
            transaction.set_rollback(True)
        dispatch(welcome.message(3))

    assert args_of(sent()) == [(3,)]
    sweep(AssumeLost(), USING)
    assert sent() == []


def test_without_a_transaction_it_is_sent_at_once(welcome):
    dispatch(welcome.message(1))

    assert args_of(sent()) == [(1,)]
    assert not OutboxMessage.objects.exists()


def test_a_step_sends_once_however_often_it_fails(welcome):
    class Register(Sequence):
        @step(max_retries=2)
        def create(self):
            Message.objects.create(name="Ada", body="")
            dispatch(welcome.message(self.attempt))
            if self.attempt < 3:
                raise ValueError

    sequence = run_sequence(Register)

    assert sequence.run.status == "succeeded"
    assert args_of(sent()) == [(3,)]
    assert Message.objects.count() == 1


def test_an_asynchronous_step_sends_in_its_transaction_too(welcome):
    class Register(Sequence):
        @step(max_retries=1)
        async def create(self):
            await adispatch(welcome.message(self.attempt))
            if self.attempt == 1:
                raise ValueError

    run_sequence(Register)

    assert args_of(sent()) == [(2,)]


# What is repeated


def test_the_sweep_sends_what_was_committed_and_not_sent(welcome, monkeypatch):
    """The process has died between the two."""
    monkeypatch.setattr(sending, "_send_once", lambda *_: None)
    dispatch(welcome.message(1))
    assert sent() == []

    sweep(AssumeLost(), USING)
    assert sent() == []  # its own process may be about to send it
    with clock() as moving:
        moving.move(outbox.clock.grace())
        sweep(AssumeLost(), USING)

    assert args_of(sent()) == [(1,)]
    assert not OutboxMessage.objects.exists()


def test_one_that_was_sent_and_is_there_still_is_sent_again_with_the_same_id(welcome, monkeypatch):
    """The process has died after the broker had it."""
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "remove", lambda *_: None)
        dispatch(welcome.message(1))
    overdue()
    sweep(AssumeLost(), USING)

    first, second = sent()
    assert first.message_id == second.message_id
    assert not OutboxMessage.objects.exists()


def test_while_the_broker_is_down_it_waits_with_growing_pauses(welcome, broken, caplog):
    grace = outbox.clock.grace()
    with caplog.at_level(logging.WARNING):
        dispatch(welcome.message(1))
    assert "did not accept message" in caplog.text
    assert "tests.welcome" in caplog.text
    for failures in (2, 3):
        overdue()
        dispatcher._breaker = dispatcher._Breaker()
        before = outbox.clock.now(USING)
        sweep(AssumeLost(), USING)
        row = OutboxMessage.objects.get()
        assert row.failures == failures
        assert row.wake_at - before >= grace * 2**failures

    broken.undo()
    overdue()
    dispatcher._breaker = dispatcher._Breaker()
    sweep(AssumeLost(), USING)

    assert args_of(sent()) == [(1,)]
    assert not OutboxMessage.objects.exists()


def test_one_that_the_broker_refuses_harms_no_other(welcome, monkeypatch):
    monkeypatch.setattr(sending, "_send_once", lambda *_: None)
    dispatch(welcome.message(1))
    OutboxMessage.objects.update(message="no JSON")
    dispatch(welcome.message(2))
    dispatch(dramatiq.Message("nowhere", "tests.nothing", (), {}, {}))
    dispatch(welcome.message(3))
    overdue()

    sweep(AssumeLost(), USING)

    assert args_of(sent()) == [(2,), (3,)]
    assert list(OutboxMessage.objects.values_list("failures", flat=True)) == [1, 1]
    assert not dispatcher._breaker.is_open()


def test_what_a_sweep_has_taken_no_other_takes_for_a_grace(welcome, monkeypatch):
    """It may die before it sends them, too."""
    monkeypatch.setattr(sending, "_send_once", lambda *_: None)
    dispatch(welcome.message(1))
    overdue()

    assert len(outbox.take(USING)) == 1
    assert outbox.take(USING) == []
    with clock() as moving:
        moving.move(outbox.clock.grace())
        assert len(outbox.take(USING)) == 1


def test_more_than_a_batch_is_sent_by_one_sweep(welcome, monkeypatch):
    monkeypatch.setattr(sending, "_send_once", lambda *_: None)
    monkeypatch.setattr(outbox, "MESSAGES_PER_SWEEP", 2)
    for number in range(5):
        dispatch(welcome.message(number))
    overdue()

    assert sending.send_due(USING) == 5

    assert args_of(sent()) == [(number,) for number in range(5)]


def test_a_long_transaction_and_a_sweep_do_not_both_send_it(welcome, monkeypatch):
    """Its row is due at the moment of the commit: the sweep may come first."""
    taken = []

    def late(row, written_at, using):
        taken.extend(outbox.take(using))
        original(row, written_at - 3600, using)

    original = sending._send_once
    monkeypatch.setattr(sending, "_send_once", late)
    with transaction.atomic():
        dispatch(welcome.message(1))
        overdue()

    assert [row.actor for row in taken] == ["tests.welcome"]
    assert sent() == []


def test_a_long_transaction_sends_it_itself_if_no_sweep_was_there(welcome, monkeypatch):
    original = sending._send_once
    monkeypatch.setattr(
        sending, "_send_once", lambda row, at, using: original(row, at - 3600, using)
    )
    with transaction.atomic():
        dispatch(welcome.message(1))

    assert args_of(sent()) == [(1,)]
    assert not OutboxMessage.objects.exists()


@pytest.mark.only_on("postgresql", "mysql")
def test_two_sweeps_at_once_send_each_message_once(welcome, monkeypatch):
    monkeypatch.setattr(sending, "_send_once", lambda *_: None)
    monkeypatch.setattr(outbox, "MESSAGES_PER_SWEEP", 7)
    for number in range(60):
        dispatch(welcome.message(number))
    overdue()
    barrier = threading.Barrier(3)

    def act():
        barrier.wait()
        while OutboxMessage.objects.exists():
            sending.send_due(USING)
            time.sleep(0.01)
        connections.close_all()

    threads = [threading.Thread(target=act) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(args_of(sent())) == [(number,) for number in range(60)]


# Delays


def test_a_delay_is_stored_and_the_sweep_sends_it_when_it_is_over(welcome):
    dispatch(welcome.message(1), delay=timedelta(days=30))  # longer than Redis takes
    dispatch(welcome.message(2), delay=60_000)

    with clock() as moving:
        sweep(AssumeLost(), USING)
        assert sent() == []
        moving.move(timedelta(minutes=1))
        sweep(AssumeLost(), USING)
        assert args_of(sent()) == [(2,)]
        moving.move(timedelta(days=30))
        sweep(AssumeLost(), USING)
        assert args_of(sent()) == [(1,)]
    assert not OutboxMessage.objects.exists()


# In tests


def test_a_test_that_never_commits_sees_what_would_be_sent(welcome):
    with transaction.atomic():
        dispatch(welcome.message(1, name="Ada"))
        dispatch(welcome.message(2))
        assert [(one.actor_name, one.args, one.kwargs) for one in outbox_of_tests()] == [
            ("tests.welcome", (1,), {"name": "Ada"}),
            ("tests.welcome", (2,), {}),
        ]

    assert outbox_of_tests() == []


# What is refused


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda actor: dispatch(actor), "takes an actor's message. Write dispatch(actor.mess"),
        (lambda actor: dispatch("tests.welcome"), "takes an actor's message"),
        (lambda actor: dispatch(actor.message({1, 2})), "cannot be written as JSON"),
        (lambda actor: dispatch(actor.message(float("nan"))), "cannot be written as JSON"),
        (lambda actor: dispatch(actor.message(), delay=-1), "it must not be negative"),
        (lambda actor: dispatch(actor.message(), delay="1 d"), "it must be a timedelta or a whole"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(welcome, make, text):
    with pytest.raises(InvalidData) as refusal:
        make(welcome)

    assert text in str(refusal.value)
    assert not OutboxMessage.objects.exists()


# What people see


def test_health_tells_of_messages_that_were_not_sent(welcome, monkeypatch):
    monkeypatch.setattr(sending, "_send_once", lambda *_: None)
    dispatch(welcome.message(1))
    dispatch(welcome.message(2), delay=timedelta(days=1))
    assert health.read().unsent == 0

    with clock() as moving:
        moving.move(timedelta(minutes=3))
        (sign,) = [sign for sign in health.read().signs if sign.name == "outbox"]
        assert sign.level == health.Level.WARNING
        assert str(sign) == (
            "1 outbox message not sent. The oldest was written 3 min ago, for actor "
            "tests.welcome. Is the broker accepting messages, and is a worker running the sweep?"
        )
        moving.move(timedelta(minutes=3))
        (sign,) = [sign for sign in health.read().signs if sign.name == "outbox"]
        assert sign.level == health.Level.BAD


def test_health_tells_of_messages_that_the_broker_refuses_between_two_tries(welcome, broken):
    dispatch(welcome.message(1))
    OutboxMessage.objects.update(created_at=outbox.clock.now(USING) - timedelta(minutes=2))

    assert health.read().unsent == 1
