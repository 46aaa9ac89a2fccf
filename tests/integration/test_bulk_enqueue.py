"""Many messages at once, on a real Redis: they arrive as one by one, and in one round trip."""

import uuid
from dataclasses import replace
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, MiddlewareError

from sequences.engine import dispatcher
from sequences.engine.bulk_enqueue import enqueue_many_of
from sequences.testing import isolate_sequences
from sequences.transitions.types import Dispatch

QUEUE = "bulk"


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    monkeypatch.setattr(dispatcher, "_breaker", dispatcher._Breaker())
    with isolate_sequences():
        yield


class Recorder(Middleware):
    """What the hooks are told, and what Redis has at that moment."""

    def __init__(self):
        self.before, self.after = [], []
        self.refused = set()

    def before_enqueue(self, broker, message, delay):
        if message.args[1] in self.refused:
            raise MiddlewareError("not this one")
        message.options["seen"] = True
        self.before.append((broker, message.args[1], delay, lengths(broker)))

    def after_enqueue(self, broker, message, delay):
        self.after.append((broker, message.args[1], delay, lengths(broker)))


def lengths(broker, queue=QUEUE):
    return broker.client.llen(f"{broker.namespace}:{queue}")


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def make(redis_url):
    """Make a broker that this process uses, on keys of its own."""
    usual, made = dramatiq.get_broker(), []

    def broker(cls=RedisBroker, middleware=()):
        broker = cls(url=redis_url, namespace=f"bulk-{uuid4().hex}", middleware=list(middleware))
        broker.declare_queue(QUEUE)
        dramatiq.set_broker(broker)
        made.append(broker)
        return broker

    yield broker
    dramatiq.set_broker(usual)
    with redis.Redis.from_url(redis_url) as server:
        for broker in made:
            # The client does not close a pool that it was given.
            broker.client.connection_pool.disconnect()
            for key in server.scan_iter(f"{broker.namespace}:*"):
                server.delete(key)


@pytest.fixture
def round_trips(monkeypatch):
    """What was written to Redis, one item for each time that somebody then waits."""
    written = []
    send = redis.Connection.send_packed_command

    def counted(connection, *arguments, **options):
        written.append(connection)
        return send(connection, *arguments, **options)

    monkeypatch.setattr(redis.Connection, "send_packed_command", counted)
    return written


def dispatches(count, **values):
    return [Dispatch(number, uuid.UUID(int=1), "a.B.c", QUEUE, **values) for number in range(count)]


def numbers(broker, queue=QUEUE):
    """The step runs of the messages that a worker would get, in that order."""
    return [message.args[1] for message in received(broker, queue)]


def received(broker, queue=QUEUE):
    consumer = broker.consume(queue, prefetch=10_000, timeout=10)
    messages = []
    while (message := next(consumer)) is not None:
        messages.append(message)
        consumer.ack(message)
    return messages


def test_many_arrive_in_their_order_with_few_round_trips(make, round_trips):
    broker = make()
    broker.enqueue(dispatcher.message_for(dispatches(1)[0]))  # it connects, and asks Redis' limits
    broker.flush(QUEUE)
    del round_trips[:]
    many = dispatches(2500)
    assert dispatcher.send(many) == many
    assert len(round_trips) <= 6  # three batches, and whether Redis has the script
    assert numbers(broker) == list(range(2500))


def test_a_message_is_the_same_as_one_that_is_sent_alone(make):
    broker = make()
    values = {"attempts": 3, "options": {"max_retries": 5}}
    dispatcher.send(dispatches(1, **values))
    dispatcher.send(dispatches(2, **values))
    alone, first, second = received(broker)
    assert alone.options | {"redis_message_id": ""} == first.options | {"redis_message_id": ""}
    assert (alone.queue_name, alone.actor_name, alone.args) == (QUEUE, "a.B.c", first.args)
    assert len({each.options["redis_message_id"] for each in (alone, first, second)}) == 3
    assert first.options["retries"] == 3


def test_hooks_are_called_for_each_before_it_is_sent_and_after(make, recorder):
    broker = make(middleware=[recorder])
    dispatcher.send(dispatches(3))
    assert recorder.before == [(broker, number, None, 0) for number in range(3)]
    assert recorder.after == [(broker, number, None, 3) for number in range(3)]
    assert all(message.options["seen"] for message in received(broker))


def test_delays_wait_in_the_queue_of_the_delayed(make, recorder):
    broker = make(middleware=[recorder])
    soon, late = dispatches(1)[0], replace(dispatches(2)[1], delay=60_000)
    assert dispatcher.send([late, soon]) == [late, soon]
    assert numbers(broker) == [0]
    (message,) = received(broker, f"{QUEUE}.DQ")
    assert message.queue_name == f"{QUEUE}.DQ"
    assert message.options["eta"] - message.message_timestamp >= 60_000
    assert [delay for *_, delay, _ in recorder.after] == [60_000, None]


def test_what_a_middleware_refuses_keeps_none_of_the_others(make, recorder, caplog):
    broker = make(middleware=[recorder])
    recorder.refused = {1}
    assert [one.step_run_id for one in dispatcher.send(dispatches(3))] == [0, 2]
    assert numbers(broker) == [0, 2]
    assert [number for _, number, *_ in recorder.after] == [0, 2]
    assert "did not accept 1 of 3 messages" in caplog.text
    assert "step run 1 " in caplog.text
    assert "not this one" in caplog.text


def test_what_redis_refuses_counts_as_refused_and_no_more(make, recorder, caplog):
    broker = make(middleware=[recorder])
    broker.client.set(f"{broker.namespace}:full", "this is no list")
    first, second, third = dispatches(3)
    other = Dispatch(7, uuid.UUID(int=1), "a.B.c", "full")
    assert dispatcher.send([first, other, second, third]) == [first, second, third]
    assert numbers(broker) == [0, 1, 2]
    assert [number for _, number, *_ in recorder.after] == [0, 1, 2]
    assert "step run 7 " in caplog.text
    assert "ResponseError" in caplog.text


def test_a_server_that_has_forgotten_the_script_is_told_it_again(make):
    broker = make()
    dispatcher.send(dispatches(2))
    broker.client.script_flush()
    assert len(dispatcher.send(dispatches(2))) == 2
    assert numbers(broker) == [0, 1, 0, 1]


def test_a_server_that_is_away_is_logged_once_and_not_asked_again_at_once(
    make, monkeypatch, caplog
):
    broker = make()
    broker.client.connection_pool.disconnect()
    broker.client = redis.Redis(port=1, retry=None)
    for name, script in broker.scripts.items():
        broker.scripts[name] = broker.client.register_script(script.script)
    assert dispatcher.send(dispatches(2500)) == []
    assert dispatcher.send(dispatches(2)) == []
    assert caplog.text.count("did not accept") == 1
    assert "did not accept 1000 of 1000 messages" in caplog.text


def test_a_broker_that_does_something_else_is_given_each_by_itself(make):
    class Own(RedisBroker):
        asked = 0

        def enqueue(self, message, *, delay=None):
            self.asked += 1
            return super().enqueue(message, delay=delay)

    broker = make(Own)
    assert len(dispatcher.send(dispatches(3))) == 3
    assert broker.asked == 3
    assert numbers(broker) == [0, 1, 2]


def test_a_cluster_gets_each_by_itself_for_it_runs_no_scripts_in_a_pipeline(make, monkeypatch):
    broker = make()
    assert enqueue_many_of(broker) is not None
    monkeypatch.setattr(broker, "client", object.__new__(redis.RedisCluster))
    assert enqueue_many_of(broker) is None
    monkeypatch.undo()


def test_a_broker_may_take_many_in_its_own_way(monkeypatch, broker):
    asked = []

    def enqueue_many(messages):
        asked.append(messages)
        return [None, OSError("no room"), None]

    monkeypatch.setattr(broker, "enqueue_many", enqueue_many, raising=False)
    assert [one.step_run_id for one in dispatcher.send(dispatches(3))] == [0, 2]
    ((first, *_),) = asked
    assert isinstance(first[0], Message)
    assert first[1] is None


def test_whatever_it_raises_it_is_the_sweeps_to_mend(monkeypatch, broker, caplog):
    def enqueue_many(messages):
        raise ZeroDivisionError

    monkeypatch.setattr(broker, "enqueue_many", enqueue_many, raising=False)
    assert dispatcher.send(dispatches(3)) == []
    assert "did not accept 3 of 3 messages" in caplog.text


@pytest.mark.parametrize("returned", [None, [None], [None] * 4])
def test_an_answer_that_is_not_one_for_each_message_is_none(monkeypatch, broker, caplog, returned):
    monkeypatch.setattr(broker, "enqueue_many", lambda messages: returned, raising=False)
    assert dispatcher.send(dispatches(3)) == []
    assert "did not accept 3 of 3 messages" in caplog.text


def test_whoever_overrides_enqueue_gets_each_by_itself(broker):
    sent = []

    class Many(type(broker)):
        def enqueue_many(self, messages):
            raise AssertionError("enqueue() does more than this")

    class Own(Many):
        def enqueue(self, message, *, delay=None):
            sent.append(message)
            return message

    dramatiq.set_broker(Own(middleware=[]))
    try:
        assert len(dispatcher.send(dispatches(3))) == 3
    finally:
        dramatiq.set_broker(broker)
    assert len(sent) == 3
