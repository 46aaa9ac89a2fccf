"""Sends a statement with PostgreSQL's simple query protocol, below Django's cursor.

A cursor costs the worker more than everything else that it does for a step: its wrappers, the
parsing of placeholders, two generators for one answer. Here, libpq itself writes the values into
the statement, and one call into C sends it and waits, without the interpreter's lock. This would
bypass code that watches statements or has a backend of its own, so that is checked first, and gets
a cursor.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper


def call(begin: bytes, values: Sequence[Any], end: bytes, connection: Any) -> list[Any] | None:
    """The rows of a statement around these values. None: this statement needs a cursor."""
    written = literals(values, connection) if is_possible(connection) else None
    return None if written is None else fetch(begin + b",".join(written) + end, connection)


def is_possible(connection: Any) -> bool:
    """Whether nobody would miss the cursor; afterwards, the connection is open and usable."""
    backend: Any = type(connection)
    if not _has_plain_cursors(backend):
        return False
    # As cursor() does first: CONN_HEALTH_CHECKS may replace this connection.
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    if connection.execute_wrappers or connection.queries_logged:
        return False
    connection.validate_thread_sharing()
    connection.validate_no_broken_transaction()
    raw = connection.connection
    if raw.prepare_threshold is not None or raw.pgconn.pipeline_status:
        return False
    # psycopg sends BEGIN with the first statement of its cursor.
    return bool(raw.autocommit) or raw.info.transaction_status.name == "INTRANS"


@lru_cache
def _has_plain_cursors(backend: Hashable) -> bool:
    """Whether this is Django's own backend: another one may, say, set a search_path with its
    cursor."""
    from django.db.backends.postgresql.base import DatabaseWrapper  # only with psycopg

    names = ("_cursor", "cursor", "_prepare_cursor", "make_cursor")
    own = [getattr(backend, name) is getattr(BaseDatabaseWrapper, name) for name in names]
    own.append(getattr(backend, "create_cursor", None) is DatabaseWrapper.create_cursor)
    return all(own)


def literals(values: Iterable[Any], connection: Any) -> list[bytes] | None:
    """The values as they are written in a statement. None: one of them has another type."""
    from psycopg.pq import Escaping

    escape = Escaping(connection.connection.pgconn).escape_literal
    written = [_literal(value, escape) for value in values]
    return None if None in written else written  # type: ignore[return-value]


def _literal(value: Any, escape: Any) -> bytes | None:
    kind = type(value)
    if value is None:
        return b"NULL"
    if kind is str:
        literal: bytes = escape(value.encode())
        return literal
    if kind is bool:
        return b"TRUE" if value else b"FALSE"
    if kind is int:
        return b"%d" % value
    if kind is UUID:
        return b"'%s'" % str(value).encode()
    return escape(str(value).encode()) if issubclass(kind, str) else None


def fetch(statement: bytes, connection: Any) -> list[Any]:
    """The rows of a statement, as from a cursor of Django's. Raises Django's errors."""
    from psycopg import OperationalError
    from psycopg.adapt import Transformer
    from psycopg.errors import error_from_result
    from psycopg.pq import ExecStatus

    raw = connection.connection
    with connection.wrap_database_errors:
        with raw.lock:
            result = raw.pgconn.exec_(statement)
        if result.status != ExecStatus.TUPLES_OK:
            if raw.closed:
                raise OperationalError(raw.pgconn.error_message.decode("utf-8", "replace"))
            raise error_from_result(result)
        transformer = Transformer(raw)
        transformer.set_pgresult(result)
        rows: list[Any] = transformer.load_rows(0, result.ntuples, tuple)
    return rows
