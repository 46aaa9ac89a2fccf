"""Statements that are sent below Django's cursor: nobody who would miss it is passed over."""

import threading
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from sequences.models import RunStatus
from sequences.transitions.backends import functions
from tests.integration.test_connections import kill_connection

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]

VALUES = [
    None, True, False, 0, -5, 2**63 - 1, uuid4(), "", "it's", '"', "\\", "\\'; --", "%s {}",
    "é\n€😀", RunStatus.RUNNING,
]  # fmt: skip
TYPES = {bool: "boolean", int: "bigint", UUID: "uuid"}


def own():
    """The connection of this thread, and not Django's proxy of it."""
    return connections["default"]


def is_possible():
    return functions.needs_no_cursor(own())


def fetch(statement):
    assert is_possible()
    return functions.send(statement.encode(), own())


def with_cursor(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def test_rows_are_those_of_a_cursor():
    statement = (
        "SELECT 1::bigint, 2::smallint, 'é'::text, NULL::text, true, '{\"a\": [1]}'::jsonb, "
        f"'{uuid4()}'::uuid, TIMESTAMPTZ '2026-11-29 22:10:05.25+01', 'x'::varchar "
        "FROM generate_series(1, 2)"
    )
    assert fetch(statement) == with_cursor(statement)
    assert [type(value) for value in fetch(statement)[0]] == [
        type(value) for value in with_cursor(statement)[0]
    ]


def test_values_are_written_as_they_are():
    connection.ensure_connection()
    written = functions.literals(VALUES, own())
    types = [TYPES.get(type(value), "text") for value in VALUES]
    columns = (f"{value.decode()}::{kind}" for value, kind in zip(written, types, strict=True))
    assert fetch(f"SELECT {', '.join(columns)}") == [tuple(VALUES)]


def test_what_it_cannot_write_is_left_to_the_cursor():
    connection.ensure_connection()
    for value in (["a"], 1.5, timedelta(1), b"x"):
        assert functions.literals([1, value], own()) is None


def test_errors_are_those_of_a_cursor():
    for statement in ("SELECT nonsense", "SELECT 1 / 0", "SELECT 'x'::jsonb", "SELEC"):
        with pytest.raises(DatabaseError) as ours:
            fetch(statement)
        with pytest.raises(DatabaseError) as theirs:
            with_cursor(statement)
        assert type(ours.value) is type(theirs.value)
        assert ours.value.__cause__.sqlstate == theirs.value.__cause__.sqlstate
    assert fetch("SELECT 1") == [(1,)]


def test_a_connection_that_dies_is_an_error_of_the_connection():
    connection.ensure_connection()
    kill_connection()
    with pytest.raises((OperationalError, InterfaceError)):
        fetch("SELECT 1")
    assert not connection.is_usable()
    connection.close()


def test_others_run_while_it_waits():
    ticks = []
    connection.ensure_connection()
    raw = own().connection.pgconn
    waiting = threading.Thread(target=lambda: raw.exec_(b"SELECT pg_sleep(0.3)"))
    waiting.start()
    while waiting.is_alive():
        ticks.append(1)
        waiting.join(0.01)
    assert len(ticks) > 3


def test_a_transaction_begins_with_a_cursor():
    with transaction.atomic():
        assert not is_possible()
        with_cursor("SELECT 1")
        assert is_possible()


def test_a_broken_transaction_is_refused():
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(TransactionManagementError):
            is_possible()


def test_who_watches_statements_has_them_by_a_cursor():
    with CaptureQueriesContext(connection):
        assert not is_possible()
    with connection.execute_wrapper(lambda execute, *arguments: execute(*arguments)):
        assert not is_possible()
    assert is_possible()


def test_a_backend_with_a_cursor_of_its_own_keeps_it():
    class Tenant(type(own())):
        def _cursor(self, name=None):
            return super()._cursor(name)

    assert not functions.needs_no_cursor(Tenant(own().settings_dict, "default"))


def test_health_checks_replace_a_connection_that_has_died(monkeypatch):
    monkeypatch.setitem(own().settings_dict, "CONN_HEALTH_CHECKS", True)
    connection.close()
    connection.ensure_connection()
    connection.close_if_unusable_or_obsolete()  # as before each message
    kill_connection()
    own().health_check_done = False
    assert fetch("SELECT 1") == [(1,)]
    connection.close()
