"""Where the project lets psycopg prepare, the two statements of the hot path are prepared."""

import pytest
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from sequences import Sequence, step
from sequences.models import StepRun
from sequences.testing import assert_steps, isolate_sequences, run_sequence
from sequences.transitions import claims
from sequences.transitions.backends.postgresql import PostgreSQL
from tests.integration.test_connections import kill_connection
from tests.portable import choose

pytestmark = [pytest.mark.django_db, pytest.mark.only_on("postgresql")]


@pytest.fixture(autouse=True)
def _prepares(monkeypatch):
    choose(monkeypatch, PostgreSQL())
    connection.ensure_connection()
    connection.connection.prepare_threshold = 0  # what OPTIONS["prepare_threshold"] sets
    yield
    if connection.connection is not None:
        connection.connection.prepare_threshold = None


@pytest.fixture
def order():
    with isolate_sequences():

        class Order(Sequence):
            class Meta:
                app_label = "shop"

            @step(max_retries=3, min_backoff=10)
            def pay(self):
                if self.attempt == 1:
                    raise ValueError("once")
                self.data["paid"] = ["é", 1.5, None]
                return {"price": 7}

            @step
            def ship(self):
                self.data["price"] = self.result("pay")["price"]

        yield Order


def prepared():
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        return [statement for (statement,) in cursor.fetchall()]


def test_a_sequence_runs_on_prepared_statements(order):
    done = run_sequence(order, name="Joel")
    assert_steps(done, [("pay", "succeeded"), ("ship", "succeeded")])
    assert done.data == {"name": "Joel", "paid": ["é", 1.5, None], "price": 7}
    assert done.run.failures.count() == 1
    for purpose in ("claim", "advance", "succeed"):
        assert any(f"SELECT job_sequences_{purpose}_" in statement for statement in prepared())


def test_without_the_wish_nothing_is_prepared(order):
    connection.connection.prepare_threshold = None
    before = prepared()
    run_sequence(order)
    assert prepared() == before


@pytest.mark.django_db(transaction=True)
def test_health_checks_replace_a_connection_that_has_died(order, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "CONN_HEALTH_CHECKS", True)
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"prepare_threshold": 0})
    connection.close()
    connection.ensure_connection()
    run = order.start({}).run
    row = StepRun.objects.get(run=run.pk)
    connection.close_if_unusable_or_obsolete()  # as before each message
    kill_connection()
    connection.health_check_done = False
    assert connection.connection.prepare_threshold == 0
    assert claims.claim(row.pk, 0, 1, "worker", "default") is not None
    connection.close()


def test_the_statements_are_seen_where_queries_are_logged(order):
    order(name="Joel")
    row = StepRun.objects.get()
    with CaptureQueriesContext(connection) as captured:
        assert claims.claim(row.pk, 0, 1, "worker", "default") is not None
    assert len(captured) == 1


def test_a_broken_transaction_is_refused(order):
    order(name="Joel")
    row = StepRun.objects.get()
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(TransactionManagementError):
            claims.claim(row.pk, 0, 1, "worker", "default")
    row.refresh_from_db()
    assert row.status == "queued"
