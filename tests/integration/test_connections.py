"""Connections that die while they are idle, and steps that close their own."""

import pytest
from django.db import OperationalError, close_old_connections, connection, connections, transaction
from dramatiq.errors import Retry
from dramatiq.middleware import Shutdown

from sequences import Sequence, step
from sequences.engine.executor import StepBlock, StepExecution
from sequences.models import StepRun
from sequences.testing import drain
from sequences.transitions import claims, plans
from tests.engine import fresh, ledger, row, take
from tests.integration.test_unprintable import process_next
from tests.portable import Portable, choose

pytestmark = pytest.mark.django_db(transaction=True)
on_servers = pytest.mark.only_on("postgresql", "mysql")


def kill_connection(alias="default"):
    """The server ends this thread's connection, as a restart or a timeout of its does."""
    killed = connections[alias]
    killed.ensure_connection()
    with killed.cursor() as cursor:
        on_mysql = killed.vendor == "mysql"
        cursor.execute("SELECT CONNECTION_ID()" if on_mysql else "SELECT pg_backend_pid()")
        (number,) = cursor.fetchone()
    other = killed.copy()
    with other.cursor() as cursor:
        if on_mysql:
            cursor.execute(f"KILL CONNECTION {number}")
        else:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [number])
    other.close()


@pytest.fixture
def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self):
            self.data["paid"] = True

    return Order


def life(run):
    return StepExecution(row(run, "pay").pk, 0, "default")


# --- claims


@on_servers
@pytest.mark.parametrize("portable", [False, True])
def test_a_claim_on_a_connection_that_has_died_is_made_on_a_new_one(order, monkeypatch, portable):
    if portable:
        choose(monkeypatch, Portable())
    run = order.start().run
    one = life(run)
    kill_connection()
    assert one.live() == []
    assert (fresh(run).status, fresh(run).data) == ("succeeded", {"paid": True})
    assert not run.failures.exists()


def test_an_interrupt_that_an_error_of_the_database_hides_comes_out(order, monkeypatch):
    execution = life(order.start().run)

    def load(*_):
        try:
            raise Shutdown
        except Shutdown:
            raise OperationalError("the connection is in an unknown state")  # noqa: B904

    monkeypatch.setattr(plans, "load_of", load)
    with pytest.raises(Shutdown):
        execution.live()


@pytest.mark.only_on("postgresql")
def test_where_all_connections_of_a_pool_have_died_a_claim_gets_a_living_one(order, monkeypatch):
    pytest.importorskip("psycopg_pool")
    usual, settings = connections["default"], connection.settings_dict
    run = order.start().run
    one = life(run)
    connection.close()
    monkeypatch.setitem(settings, "CONN_MAX_AGE", 0)
    monkeypatch.setitem(settings, "OPTIONS", {"pool": {"min_size": 3, "max_size": 3}})
    pool = connections["default"].pool
    try:
        pool.open()
        pool.wait(30)
        connection.ensure_connection()
        kill_all_connections()
        assert one.live() == []
        assert fresh(run).status == "succeeded"
    finally:
        connections["default"].close()
        connections["default"].close_pool()
        connections["default"] = usual  # the new one has a copy of the settings


def kill_all_connections():
    import psycopg

    settings = connection.settings_dict
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST"}
    known = {name: settings[key] for name, key in names.items() if settings[key]}
    with psycopg.connect(**known, port=settings["PORT"] or None) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@on_servers
def test_a_claim_that_came_through_before_its_connection_broke_is_kept(order, monkeypatch):
    run = order.start().run
    one = life(run)
    claim = claims.claim
    calls = []

    def breaking(*arguments, **options):
        made = claim(*arguments, **options)
        calls.append(made)
        if len(calls) == 1:
            kill_connection()
            with connection.cursor() as cursor:  # the error of which the answer has died
                cursor.execute("SELECT 1")
        return made

    monkeypatch.setattr(claims, "claim", breaking)
    assert one.live() == []
    assert calls[0].token == one.token
    assert calls[1] is None
    assert fresh(run).status == "succeeded"


@on_servers
def test_a_claim_in_a_transaction_of_the_caller_is_not_made_outside_of_it(order):
    run = order.start().run
    one = life(run)

    def live_in_a_transaction():
        with transaction.atomic():
            kill_connection()
            one.live()

    with pytest.raises(Retry) as raised:
        live_in_a_transaction()
    assert isinstance(raised.value.__cause__, OperationalError)
    connection.close()
    assert row(run, "pay").status == "queued"


@on_servers
def test_a_database_that_is_away_is_not_asked_twice(order, monkeypatch):
    run = order.start().run
    one = life(run)
    connection.close()
    asked = []

    def refuse(self):
        asked.append(1)
        raise OperationalError("the server is away")

    monkeypatch.setattr(type(connections["default"]), "connect", refuse)
    with pytest.raises(Retry) as raised:
        one.live()
    assert isinstance(raised.value.__cause__, OperationalError)
    assert str(raised.value.__cause__) == "the server is away"
    assert len(asked) == 1
    monkeypatch.undo()
    assert row(run, "pay").status == "queued"


# --- steps that close their connection


def old_habit():
    close_old_connections()


def by_hand():
    connection.close()


def all_of_them():
    connections.close_all()


def closing(close, *, then, atomic=True):
    class Closing(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 20

        @step(atomic=atomic)
        def one(self):
            StepRun.objects.filter(run=self.run.pk).count()
            self.data["begun"] = True
            close()
            then()

    return Closing


def query():
    StepRun.objects.count()


def query_and_hide_the_error():
    try:
        StepRun.objects.count()
    except Exception as error:
        raise ValueError("something went wrong") from error


def nothing(): ...


@pytest.mark.parametrize("then", [query, query_and_hide_the_error, nothing])
@pytest.mark.parametrize("close", [old_habit, by_hand, all_of_them])
def test_a_step_that_closes_the_connection_of_its_transaction_fails_at_once_and_says_why(
    close, then
):
    run = closing(close, then=then).start().run
    drain()
    assert fresh(run).status == "failed"
    assert fresh(run).data == {}
    failure = run.failures.get()
    assert failure.error == "sequences.exceptions.Abort"
    assert "'one' closed the database connection inside its own transaction" in failure.message
    assert "close_old_connections()" in failure.message
    assert "atomic=False" in failure.message


def test_a_step_without_a_transaction_may_close_its_connection():
    run = closing(old_habit, then=query, atomic=False).start().run
    drain()
    assert (fresh(run).status, fresh(run).data) == ("succeeded", {"begun": True})
    run = closing(by_hand, then=query, atomic=False).start().run
    drain()
    assert fresh(run).status == "succeeded"


@pytest.mark.parametrize("kind", ["when", "delay", "undo"])
def test_whatever_closes_it_in_the_transaction_of_a_step_fails_at_once(kind):
    def close(self):
        query()
        connection.close()
        query()

    class Kinds(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 20

        @step(**({kind: close} if kind != "undo" else {}))
        def one(self): ...

        if kind == "undo":
            refund = one.undo(close)

            @step(max_retries=0)
            def two(self):
                raise ValueError("broken")

    run = Kinds.start().run
    drain()
    assert fresh(run).status == "failed"
    last = run.failures.last()
    assert "closed the database connection inside its own transaction" in last.message
    assert run.failures.filter(step=last.step).count() == 1


def test_the_thread_goes_on_with_a_new_connection(order):
    closing(old_habit, then=query).start()
    drain()
    run = order.start().run
    assert take(row(run, "pay").pk) is not None


# --- steps that leave a transaction open


def autocommit_off():
    transaction.set_autocommit(False)


def block():
    transaction.atomic().__enter__()


def blocks():
    block()
    block()


def begin():
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")


def leaving_open(leave, *, atomic, **options):
    class Leaving(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 20

        @step(atomic=atomic, **options)
        def one(self):
            self.data["begun"] = True
            leave()
            StepRun.objects.count()

        @step
        def two(self): ...

    return Leaving


#: The drivers of MySQL and MariaDB do not tell of it.
BEGIN = pytest.param(begin, marks=pytest.mark.only_on("postgresql", "sqlite"))
OPEN = [
    (autocommit_off, False),
    (block, False),
    (blocks, False),
    pytest.param(begin, False, marks=BEGIN.marks),
    (block, True),
    (blocks, True),
]


@pytest.mark.parametrize(("leave", "atomic"), OPEN)
def test_a_step_that_leaves_a_transaction_open_fails_at_once_and_says_why(leave, atomic):
    run = leaving_open(leave, atomic=atomic).start().run
    process_next()
    assert connection.get_autocommit()
    connections["default"].close()  # nothing of it waits there for a commit
    assert ledger(run) == {"one": "failed"}
    assert (fresh(run).status, fresh(run).data) == ("failed", {})
    failure = run.failures.get()
    assert failure.error == "sequences.exceptions.Abort"
    assert "'one' left a database transaction open" in failure.message
    assert "with transaction.atomic()" in failure.message


@pytest.mark.parametrize(("leave", "atomic"), OPEN)
def test_a_failed_attempt_that_leaves_a_transaction_open_is_recorded_outside_of_it(leave, atomic):
    def leave_and_fail():
        leave()
        raise ValueError("broken")

    run = leaving_open(leave_and_fail, atomic=atomic).start().run
    process_next()
    connections["default"].close()
    assert ledger(run)["one"] == "retrying"
    assert run.failures.get().message == "broken"


@pytest.mark.parametrize("leave", [autocommit_off, block, BEGIN])
def test_the_next_message_of_a_thread_is_in_no_transaction_that_somebody_left(
    order, leave, monkeypatch
):
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    run = order.start().run
    leave()
    process_next()
    connections["default"].close()
    assert fresh(run).status == "succeeded"


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize("atomic", [True, False])
def test_in_a_transaction_of_a_test_only_the_open_blocks_of_the_step_end(atomic):
    depth = len(connection.atomic_blocks)
    run = leaving_open(blocks, atomic=atomic).start().run
    drain()
    assert len(connection.atomic_blocks) == depth
    assert fresh(run).status == "failed"
    assert "left a database transaction open" in run.failures.get().message


def test_a_step_that_ends_its_own_transactions_succeeds():
    def end():
        transaction.set_autocommit(False)
        StepRun.objects.count()
        transaction.commit()
        transaction.set_autocommit(True)
        with transaction.atomic(), transaction.atomic():
            StepRun.objects.count()

    run = leaving_open(end, atomic=False).start().run
    drain()
    assert (fresh(run).status, fresh(run).data) == ("succeeded", {"begun": True})


# --- blocks of steps that send nothing


@pytest.mark.django_db(transaction=True)
def test_an_untouched_block_leaves_a_connection_without_autocommit_as_it_was():
    connection.ensure_connection()
    connection.set_autocommit(False)
    try:
        with StepBlock("default") as block:
            block.is_untouched()
        assert not connection.get_autocommit()
    finally:
        connection.rollback()
        connection.set_autocommit(True)


@pytest.mark.django_db(transaction=True)
def test_an_untouched_block_inside_of_another_leaves_that_open():
    with transaction.atomic():
        with StepBlock("default") as block:
            block.is_untouched()
        assert connection.in_atomic_block
        transaction.set_rollback(True)
    assert not connection.in_atomic_block
    assert connection.get_autocommit()
