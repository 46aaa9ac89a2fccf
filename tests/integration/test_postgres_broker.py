"""The broker in the runs' own database: what is sent in a transaction belongs to it."""

import json
import os
import threading
import time
from uuid import uuid4

import dramatiq
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import ProgrammingError, connection, connections, transaction
from dramatiq.errors import QueueJoinTimeout
from dramatiq.middleware import Middleware, MiddlewareError

from sequences import Sequence, dispatch, step
from sequences.brokers import PostgresBroker
from sequences.models import OutboxMessage, SequenceRun
from sequences.transitions import backends
from sequences.worker import middleware
from tests.portable import is_portable

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]


@pytest.fixture
def own():
    """A broker with tables of its own, which this process uses."""
    usual, schema = dramatiq.get_broker(), f"broker-{uuid4().hex}"
    broker = PostgresBroker(schema=schema, middleware=[])
    broker.create_tables()
    dramatiq.set_broker(broker)
    yield broker
    dramatiq.set_broker(usual)
    broker.close()
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@pytest.fixture
def welcome(own):
    return dramatiq.actor(actor_name="tests.welcome", queue_name="mails")(lambda *_: None)


def waiting(broker):
    """The messages in its table, as seen by others than this thread's transaction."""
    found = []

    def look():
        with connections["default"].cursor() as cursor:
            cursor.execute(f"SELECT queue_name, message FROM {broker._table} ORDER BY position")
            found.extend(cursor.fetchall())
        connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def test_what_is_sent_in_a_transaction_is_there_when_that_commits(own, welcome):
    with transaction.atomic():
        welcome.send(1)
        assert waiting(own) == []
    with transaction.atomic():
        welcome.send(2)
        transaction.set_rollback(True)

    assert len(waiting(own)) == 1


def test_dispatch_needs_no_row_of_its_own(own, welcome):
    with transaction.atomic():
        dispatch(welcome.message(1))
        dispatch(welcome.message(2), delay=60_000)
        assert not OutboxMessage.objects.exists()
        assert waiting(own) == []

    assert [queue for queue, _ in waiting(own)] == ["mails", "mails.DQ"]


def test_a_start_that_is_rolled_back_leaves_no_message(own):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self): ...

    with transaction.atomic():
        Order()
        transaction.set_rollback(True)
    assert waiting(own) == []
    Order()

    assert len(waiting(own)) == 1
    assert SequenceRun.objects.count() == 1


class Recorder(Middleware):
    def __init__(self):
        self.before, self.after = [], []

    def before_enqueue(self, broker, message, delay):
        if message.args == (1,):
            raise MiddlewareError("not this one")
        self.before.append((message.args, delay))

    def after_enqueue(self, broker, message, delay):
        self.after.append((message.args, message.queue_name, delay))


def test_many_are_one_statement_in_their_order(own, welcome, django_assert_num_queries):
    delays = [None, 60_000, None]
    with django_assert_num_queries(1):
        errors = own.enqueue_many([(welcome.message(n), delays[n % 3]) for n in range(300)])

    assert errors == [None] * 300
    found = [(queue, json.loads(message)) for queue, message in waiting(own)]
    assert [message["args"] for _, message in found] == [[n] for n in range(300)]
    assert [queue for queue, _ in found[:3]] == ["mails", "mails.DQ", "mails"]
    late = found[1][1]
    assert late["options"]["eta"] - late["message_timestamp"] >= 60_000


def test_many_are_delivered_when_they_are_due(own, welcome):
    own.enqueue_many([(welcome.message(1), None), (welcome.message(2), 60_000)])
    consumer = own.consume("mails", timeout=10)
    message = next(consumer)
    assert message.args == (1,)
    assert next(consumer) is None


def test_many_wake_a_consumer_that_waits(own, welcome):
    own.poll_interval = 60
    consumer = own.consume("mails", timeout=60_000)
    wait_until_it_listens(own)
    timer = threading.Timer(0.5, send_two, args=(own, welcome))
    timer.start()
    began = time.monotonic()
    assert next(consumer) is None
    assert time.monotonic() - began < 30
    timer.join()
    assert next(consumer).args == (1,)


def test_many_notify_nobody_where_that_is_off(own, welcome, django_assert_num_queries):
    own.notify = False
    with django_assert_num_queries(1) as queries:
        own.enqueue_many([(welcome.message(n), None) for n in range(3)])

    assert "pg_notify" not in queries[0]["sql"]
    assert len(waiting(own)) == 3


def wait_until_it_listens(broker):
    until = time.monotonic() + 20
    while broker.notifier.conn is None or broker.notifier.dirty.is_set():
        assert time.monotonic() < until
        time.sleep(0.05)


def send_two(broker, welcome):
    connection.ensure_connection()
    broker.enqueue_many([(welcome.message(1), None), (welcome.message(2), None)])
    connections.close_all()


def test_many_pass_the_hooks_and_one_that_is_refused_keeps_no_other(own, welcome):
    recorder = Recorder()
    own.add_middleware(recorder)
    first, refused, last = own.enqueue_many([(welcome.message(n), n * 1000) for n in range(3)])

    assert isinstance(refused, MiddlewareError)
    assert (first, last) == (None, None)
    assert recorder.before == [((0,), 0), ((2,), 2000)]
    assert recorder.after == [((0,), "mails", 0), ((2,), "mails.DQ", 2000)]
    assert len(waiting(own)) == 2


def test_after_an_insert_that_fails_no_hook_says_that_it_is_there(own, welcome):
    recorder = Recorder()
    own.add_middleware(recorder)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {own._table}")
    with pytest.raises(ProgrammingError):
        own.enqueue_many([(welcome.message(n), None) for n in (2, 3)])

    assert [args for args, _ in recorder.before] == [(2,), (3,)]
    assert recorder.after == []


def test_many_belong_to_the_transaction_that_they_are_sent_in(own, welcome):
    with transaction.atomic():
        own.enqueue_many([(welcome.message(n), None) for n in range(3)])
        assert waiting(own) == []
        transaction.set_rollback(True)
    assert waiting(own) == []


def test_many_of_a_thread_without_a_connection_are_sent_too(own, welcome):
    many = [(welcome.message(n), None) for n in range(3)]
    thread = threading.Thread(target=own.enqueue_many, args=(many,))
    thread.start()
    thread.join()

    assert len(waiting(own)) == 3


def test_many_starts_have_a_message_each(own, django_assert_num_queries):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self): ...

    for _ in range(2):  # it stores the plan, and looks for the functions
        Order()
    with django_assert_num_queries(6 if is_portable() else 2):
        Order.start_many([{}] * 50)

    assert len(waiting(own)) == 52


def test_a_thread_without_a_connection_sends_too(own, welcome):
    thread = threading.Thread(target=welcome.send, args=(1,))
    thread.start()
    thread.join()

    assert len(waiting(own)) == 1


def test_a_connection_that_has_died_meanwhile_loses_no_message(own, welcome):
    """A retry is sent by the thread whose attempt has failed, perhaps of just that."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connections["default"].copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    other.close()

    welcome.send(1)

    assert len(waiting(own)) == 1


def test_a_process_that_was_forked_has_connections_of_its_own(own, welcome):
    """As a web server's workers do, of a broker that was used before."""
    own.pool.putconn(own.pool.getconn())
    before = own.pool._pool()
    connections.close_all()
    child = os.fork()
    if not child:
        status = 1
        try:
            welcome.send(1)
            status = 0 if own.pool._pool() is not before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert len(waiting(own)) == 1
    assert own.pool._pool() is before


def test_its_pool_has_room_for_all_of_its_consumers(own):
    """Each queue has two, and each consumer keeps its connection."""
    for number in range(20):
        own.declare_queue(f"queue{number}")
    consumers = [own.consume(name, timeout=1) for name in own.get_declared_queues()]
    consumers += [own.consume(f"{name}.DQ", timeout=1) for name in own.get_declared_queues()]
    own.poll_interval = 0.01
    began = time.monotonic()
    for consumer in consumers:
        next(consumer)
    assert time.monotonic() - began < 20
    for consumer in consumers:
        consumer.close()


def test_it_can_be_flushed_and_joined(own, welcome):
    other = dramatiq.actor(actor_name="tests.other", queue_name="others")(lambda: None)
    welcome.send(1)
    welcome.send_with_options(args=(2,), delay=60_000)
    other.send()

    with pytest.raises(QueueJoinTimeout):
        own.join("mails", timeout=50, interval=10)
    own.flush("mails")
    own.join("mails", timeout=50)
    assert [queue for queue, _ in waiting(own)] == ["others"]
    own.flush_all()
    assert waiting(own) == []


def test_migrate_creates_its_tables(own):
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{own._schema}" CASCADE')
    assert not own.has_tables()

    call_command("migrate", verbosity=0)

    assert own.has_tables()
    call_command("migrate", verbosity=0)


def test_its_worker_has_the_middleware_of_sequences(own):
    middleware.install(own)

    assert any(isinstance(one, middleware.SequencesMiddleware) for one in own.middleware)


@pytest.mark.parametrize("option", ["url", "pool"])
def test_it_takes_no_connections_but_djangos(option):
    with pytest.raises(ImproperlyConfigured, match=f"takes no '{option}'"):
        PostgresBroker(**{option: "postgresql:///other"})


def test_it_needs_postgresql(monkeypatch):
    broker = PostgresBroker(middleware=[])
    monkeypatch.setitem(backends._backends, "default", backends.of_vendor("oracle"))
    monkeypatch.setattr(connections["default"], "display_name", "Oracle")

    with pytest.raises(ImproperlyConfigured, match="is Oracle"):
        broker.pool.getconn()
