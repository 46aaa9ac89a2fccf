"""What each database does in its own way stands in one place, and is chosen once."""

import re
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, OperationalError, ProgrammingError, connection

from sequences.transitions import backends
from sequences.transitions.backends import Backend, backend_of, is_error, of_vendor
from sequences.transitions.backends.mysql import MySQL
from sequences.transitions.backends.postgresql import PostgreSQL
from sequences.transitions.backends.sqlite import SQLite
from tests.portable import Portable, is_portable
from tests.unit.test_structure import MODULES, ROOT, name_of


class DriversError(Exception):
    """As psycopg's."""

    def __init__(self, sqlstate):
        self.sqlstate = sqlstate


def sqlstate(state):
    error = OperationalError("as the server words it")
    error.__cause__ = DriversError(state)
    return error


@pytest.mark.django_db  # so that it is part of every run on a database
def test_the_backend_of_an_alias_is_that_of_its_kind():
    kind = {"postgresql": PostgreSQL, "mysql": MySQL, "sqlite": SQLite}[connection.vendor]
    assert isinstance(backend_of("default"), kind)
    assert (backend_of("default").fast is not None) == (kind is PostgreSQL and not is_portable())
    assert isinstance(backend_of("default"), Portable) == (
        is_portable() and connection.vendor == "postgresql"
    )


def test_it_is_chosen_once(monkeypatch):
    asked = []

    class Connections:
        def __getitem__(self, using):
            asked.append(using)
            return SimpleNamespace(vendor="mysql")

    monkeypatch.setattr(backends, "connections", Connections())
    assert backend_of("other") is backend_of("other") is of_vendor("mysql")
    assert asked == ["other"]


def test_an_unknown_kind_has_what_holds_on_any():
    oracle = of_vendor("oracle")
    assert type(oracle) is Backend
    assert (oracle.vendor, oracle.fast, oracle.exact_collation(None)) == ("", None, None)


@pytest.mark.parametrize("vendor", backends.BACKENDS)
def test_each_stands_under_its_own_name(vendor):
    assert backends.BACKENDS[vendor].vendor == vendor


@pytest.mark.parametrize(
    ("judge", "error"),
    [
        ("is_transient", sqlstate("40001")),
        ("is_transient", sqlstate("55P03")),
        ("is_transient", OperationalError(1213, "Deadlock found")),
        ("is_transient", OperationalError(1205, "Lock wait timeout exceeded")),
        ("is_transient", OperationalError("database is locked")),
        ("is_locked", sqlstate("55P03")),
        ("is_locked", OperationalError(3572, "NOWAIT is set")),
        ("is_locked", OperationalError("database is locked")),
        ("is_undefined", sqlstate("42P01")),
        ("is_undefined", ProgrammingError(1146, "Table doesn't exist")),
        ("is_undefined", OperationalError("no such table: job_sequences_steprun")),
        ("is_of_characters", sqlstate("22P05")),
        ("is_of_characters", OperationalError(1366, "Incorrect string value")),
    ],
)
def test_an_error_is_known_whichever_alias_it_is_of(judge, error):
    assert is_error(error, lambda backend, error: getattr(backend, judge)(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("database is locked"),
        DatabaseError(),
        sqlstate("23505"),
        OperationalError(2006, "gone away"),
        ProgrammingError(1213, "not of the class that the driver raises for it"),
    ],
)
@pytest.mark.parametrize("judge", ["is_transient", "is_locked", "is_undefined", "is_of_characters"])
def test_another_error_is_none_of_these(judge, error):
    assert not is_error(error, lambda backend, error: getattr(backend, judge)(error))


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if not name_of(p).startswith(("transitions.backends", "migrations"))],
    ids=name_of,
)
def test_nothing_else_asks_which_database_it_is(path):
    compared = r"vendor\s*(?:[!=]=|in\b|not in\b)|mysql_is_mariadb"
    assert not re.search(compared, (ROOT / path).read_text())
