"""While the database is away the log has one line of it, and one when it is back."""

import logging
from contextlib import ExitStack, contextmanager

import dramatiq
import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created
from dramatiq.errors import Retry

from sequences import Sequence, step
from sequences.engine import current, outages
from sequences.testing import clock
from sequences.transitions import due
from sequences.worker.heartbeat import HeartbeatThread
from sequences.worker.registration import WorkerRegistration
from sequences.worker.sweeper import AssumeLost, Sweeper, sweep
from tests.engine import fresh, messages, overdue, row
from tests.integration.test_middleware import deliver
from tests.integration.test_unprintable import process_next

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _there():
    outages.over()
    yield
    outages.over()


def refuse(*_):
    raise OperationalError("server closed the connection unexpectedly")


@contextmanager
def away():
    """No statement reaches the database, on new connections neither."""

    def cut(connection, **kwargs):
        connection.execute_wrappers.append(refuse)

    connection_created.connect(cut)
    cut(connections["default"])
    try:
        yield
    finally:
        connection_created.disconnect(cut)
        connections["default"].execute_wrappers.clear()


def order(steps=1, fails=lambda: None, **options):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step(**options)
        def pay(self):
            fails()

    return [Order.start().run for _ in range(steps)]


def lines(caplog, level=logging.INFO):
    return [record for record in caplog.records if record.levelno >= level and record.name != "x"]


def loud(caplog):
    """What has a traceback, or wakes somebody."""
    return [one for one in lines(caplog) if one.exc_info or one.levelno >= logging.ERROR]


def test_messages_sweeps_and_heartbeats_of_an_outage_leave_one_line_and_one_at_its_end(caplog):
    runs = order(5)
    presence = WorkerRegistration()
    sweeper, heart = Sweeper(AssumeLost(), 1, presence), HeartbeatThread(presence)
    sweeper._stored = True
    caplog.set_level(logging.INFO)
    with away():
        for _ in runs:
            process_next()
        for _ in range(5):
            assert not sweeper._succeeds(sweeper._sweep)
            presence._reported = None
            heart._try(presence.beat)
    (line,) = loud(caplog)
    assert line.getMessage() == (
        "The database is unavailable; retrying until it is back: "
        "server closed the connection unexpectedly"
    )
    assert line.exc_info is None
    caplog.clear()
    for _ in range(3):
        assert sweeper._succeeds(sweeper._sweep)
    (line,) = lines(caplog, logging.WARNING)
    assert line.getMessage().startswith("The database is available again, after ")
    assert {fresh(run).steps.get().status for run in runs} == {"queued"}


def test_a_hook_that_misses_the_database_is_quiet_and_the_row_is_retried_without_it(caplog):
    errors = [ValueError("once")]
    (run,) = order(fails=lambda: errors and throw(errors.pop()), max_retries=3)
    broker = dramatiq.get_broker()
    message = dramatiq.MessageProxy(
        dramatiq.Message.decode(broker.queues["default"].get_nowait()).copy(queue_name="default")
    )
    broker.emit_before("process_message", message)
    with pytest.raises(ValueError, match="once") as caught:
        broker.get_actor(message.actor_name)(*message.args)
    with away():
        broker.emit_after("process_message", message, exception=caught.value)
    assert [one for one in caplog.records if one.levelno >= logging.CRITICAL] == []
    assert (run.steps.get().status, run.steps.get().attempts) == ("retrying", 1)
    overdue(run, "pay")
    broker.flush_all()
    assert sweep(AssumeLost(), "default") == 1
    process_next()
    assert fresh(run).status == "succeeded"


# --- the messages that come back


def come_back():
    """What waits for its retry is delivered, whether or not it is due."""
    (message,) = messages("default.DQ")
    dramatiq.get_broker().flush_all()
    return deliver(message.copy(queue_name="default"))


def test_a_message_that_comes_back_from_an_outage_takes_its_step():
    (run,) = order(max_retries=3)
    with away():
        process_next()
        come_back()
    (message,) = messages("default.DQ")
    assert message.options["retries"] == 2, "Dramatiq's backoff grows"
    come_back()
    assert fresh(run).status == "succeeded"


def test_an_outage_costs_a_step_none_of_its_attempts():
    (run,) = order(fails=lambda: throw(ValueError("broken")), max_retries=1)
    with away():
        process_next()
    come_back()
    (message,) = messages("default.DQ")
    assert message.options["retries"] == row(run, "pay").attempts == 1
    with away():
        assert come_back().failed, "Dramatiq gives it up"
    assert row(run, "pay").status == "retrying"
    deliver(message.copy(queue_name="default"))
    assert (fresh(run).status, run.failures.count()) == ("failed", 2)


def test_a_message_that_dramatiq_gives_up_in_an_outage_is_sent_by_the_sweep():
    (run,) = order(max_retries=0)
    with away():
        process_next()
    assert messages("default.DQ") == []
    overdue(run, "pay")
    assert sweep(AssumeLost(), "default") == 1
    process_next()
    assert fresh(run).status == "succeeded"


def test_a_message_from_an_outage_does_not_take_a_later_retry_at_once():
    (run,) = order(fails=lambda: throw(Retry("busy", delay=3_600_000)), max_retries=5)
    with away():
        process_next()
    (message,) = messages("default.DQ")
    dramatiq.get_broker().flush_all()
    overdue(run, "pay")
    assert sweep(AssumeLost(), "default") == 1
    process_next()
    assert (row(run, "pay").attempts, row(run, "pay").status) == (1, "retrying")
    deliver(message.copy(queue_name="default"))
    assert row(run, "pay").attempts == 1


def test_the_message_of_a_failure_that_could_not_be_recorded_has_the_number_of_the_row():
    with ExitStack() as outage:

        def go_away_and_fail():
            outage.enter_context(away())
            raise ValueError("broken")

        (run,) = order(fails=go_away_and_fail, max_retries=3)
        process_next()
    assert (row(run, "pay").status, row(run, "pay").attempts) == ("running", 0)
    (message,) = messages("default.DQ")
    assert message.options[current.ATTEMPTS_OPTION] == 0


def throw(error):
    raise error


def test_an_error_of_another_kind_is_logged_with_its_traceback(caplog, monkeypatch):
    sweeper = Sweeper(AssumeLost(), 1)
    monkeypatch.setattr(due, "take", lambda *_, **__: throw(LookupError("a bug")))
    assert not sweeper._succeeds(sweeper._sweep)
    (line,) = loud(caplog)
    assert line.exc_info[0] is LookupError


def test_our_hooks_have_names(monkeypatch):
    order()
    with clock(), transaction.atomic():
        order()
        names = [hook.__qualname__ for _, hook, *_ in connection.run_on_commit]
    assert names
    assert not [name for name in names if "lambda" in name]
