"""The statements of the hot path, and how they reach PostgreSQL: as calls of functions.

PostgreSQL plans a statement each time it is sent, which costs more than executing it. The body of a
function is planned once per session, behind every pooler. Each function contains one statement; if
the function is missing, the statement itself is sent instead.

Its name ends with a digest of its text. So two releases have separate functions, side by side, and
`migrate` never replaces one that a worker of another release calls.

A call is sent with the simple query protocol, below Django's cursor. A cursor costs the worker more
than everything else that it does for a step: its wrappers, the parsing of placeholders, two
generators for one answer. Here, libpq itself writes the values into the statement, and one call
into C sends it and waits, without the interpreter's lock. This would bypass code that watches
statements or has a backend of its own, so that is checked first, and gets a cursor.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any
from uuid import UUID

from django.db import DatabaseError, ProgrammingError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ... import conf
from .. import periods
from .base import state_of

logger = logging.getLogger("sequences")

PREFIX = "job_sequences"
#: Seconds until a process looks again for functions that it has not found.
RECHECK_SECONDS = 60.0
CLOCK = "STATEMENT_TIMESTAMP()"

# Undefined function, insufficient privilege.
_UNCALLABLE = {"42883", "42501"}

#: The types of all values that a statement can be given.
TYPES = {
    "attempts": "integer",
    "data": "jsonb",
    "fingerprint": "text",
    "id": "bigint",
    "kind": "text",
    "labels": "text[]",
    "next": "text",
    "next_token": "bigint",
    "plan": "bigint",
    "progress": "jsonb",
    "result": "jsonb",
    "run": "uuid",
    "runs": "jsonb",
    "sequence": "text",
    "status": "text",
    "step": "text",
    "steps": "jsonb",
    "suspects": "boolean",
    "token": "bigint",
    "version": "bigint",
    "worker": "text",
}
#: The placeholder for a value that JSON does not have.
_READERS: dict[str, Callable[[str], Any]] = {"uuid": UUID, "timestamptz": datetime.fromisoformat}
_VALUE, _PERIOD = re.compile(r"%\((\w+)\)s"), re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Function:
    """A statement, and the function that has it as its body.

    The statement has values as ``%(name)s``, and periods as ``{name}``; ``{now}`` is the database's
    time, moved by the period ``moved``.
    """

    purpose: str
    statement: str
    #: The types of its columns.
    columns: tuple[str, ...]
    #: Whether it may return many rows. A single row is returned as text, which costs both sides
    #: less.
    has_many: bool = False

    @cached_property
    def name(self) -> str:
        """Its name in the database."""
        digest = sha256(self._definition("").encode()).hexdigest()
        return f"{PREFIX}_{self.purpose}_{digest[:12]}"

    @cached_property
    def definition(self) -> str:
        """The statement that creates it."""
        return self._definition(self.name)

    def plain(self) -> str:
        """The statement as it can be sent without the function."""
        return _plain(self, *_lengths())

    def call(self, periods: Mapping[str, str]) -> tuple[str, str]:
        """The statement that calls the function: the text before its values, and after them."""
        rest = "".join(f", {periods[name]}" for name in self._periods)
        return f"SELECT {'* FROM ' if self.has_many else ''}{self.name}(", f"{rest})"

    def rows(self, rows: list[Any]) -> list[Any]:
        """The result of a call, as the rows that the statement would return."""
        if self.has_many:
            return rows
        ((text,),) = rows
        return [] if text is None else [tuple(self._row(json.loads(text)))]

    def _row(self, values: list[Any]) -> list[Any]:
        for index, read in self._readers:
            if values[index] is not None:
                values[index] = read(values[index])
        return values

    @cached_property
    def _readers(self) -> list[tuple[int, Callable[[str], Any]]]:
        return [(at, _READERS[type_]) for at, type_ in enumerate(self.columns) if type_ in _READERS]

    @cached_property
    def values(self) -> list[str]:
        """The names of its values, in order."""
        return list(dict.fromkeys(_VALUE.findall(self.statement)))

    @cached_property
    def _periods(self) -> list[str]:
        names = dict.fromkeys(_PERIOD.findall(self.statement))
        return ["moved" if name == "now" else name for name in names]

    def _definition(self, name: str) -> str:
        types = [TYPES[value] for value in self.values] + ["interval"] * len(self._periods)
        # A plan made while a table was empty would read the whole table forever.
        return f"""CREATE OR REPLACE FUNCTION {name}({", ".join(types)})
RETURNS {self._returns} LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $sequences$
#variable_conflict use_column
{self._block}
$sequences$"""

    @cached_property
    def _returns(self) -> str:
        return f"TABLE ({self._typed(', ')})" if self.has_many else "text"

    @cached_property
    def _block(self) -> str:
        if self.has_many:
            return f"BEGIN RETURN QUERY {self._body}; END"
        names = [f"c{number}" for number in range(len(self.columns))]
        written = [
            f"{name}::text" if type_ == "jsonb" else name
            for name, type_ in zip(names, self.columns, strict=True)
        ]
        return f"""DECLARE {self._typed("; ")};
BEGIN {self._body} INTO {", ".join(names)};
IF FOUND THEN RETURN json_build_array({", ".join(written)}); END IF; RETURN NULL; END"""

    def _typed(self, separator: str) -> str:
        return separator.join(f"c{number} {type_}" for number, type_ in enumerate(self.columns))

    @cached_property
    def _body(self) -> str:
        names = [*self.values, *self._periods]
        numbers = {name: f"${number}" for number, name in enumerate(names, 1)}
        now = f"({CLOCK} + {numbers.get('moved')})"
        return self.statement.strip().format_map({**numbers, "now": now}) % numbers


class Installed:
    """The functions, and the databases that have them, as far as this process knows."""

    def __init__(self, functions: Iterable[Function]) -> None:
        self._functions = tuple(functions)
        #: By alias: until when to assume that there are none, by the monotonic clock; 0: they
        #: exist.
        self._missing_until: dict[str, float] = {}

    def fetch_one(
        self, function: Function, values: dict[str, Any], connection: Any
    ) -> tuple[Any, ...] | None:
        """The first row of a statement; None if there is none."""
        rows = self.fetch(function, values, connection)
        return rows[0] if rows else None

    def fetch(self, function: Function, values: dict[str, Any], connection: Any) -> list[Any]:
        """The rows of a statement: from its function, if the database has that."""
        if self.on(connection):
            try:
                return _called(function, values, connection)
            except ProgrammingError as error:
                if state_of(error) not in _UNCALLABLE:
                    raise
                # Somebody has dropped the function under this process. An open transaction is
                # broken now.
                self.forget(connection.alias)
                if connection.in_atomic_block:
                    raise
        return _by_cursor(function.plain(), values, connection)

    def forget(self, alias: str) -> None:
        """Check again at the next statement."""
        self._missing_until.pop(alias, None)

    def on(self, connection: Any) -> bool:
        """Whether this database has all of them, and lets us call them."""
        until = self._missing_until.get(connection.alias)
        if until is None or 0 < until < time.monotonic():
            missing = self.missing(connection)
            until = time.monotonic() + RECHECK_SECONDS if missing else 0.0
            self._missing_until[connection.alias] = until
        return not until

    def missing(self, connection: Any) -> list[str]:
        """The names of those that are missing or that we may not call."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT COALESCE("
                "has_function_privilege(to_regproc(name), 'EXECUTE'), false)",
                [[function.name for function in self._functions]],
            )
            return [name for (name,) in cursor.fetchall()]

    def create(self, connection: Any) -> None:
        """Create those that are missing. Without the right to do so, everything works without
        them."""
        self.forget(connection.alias)
        missing = set(self.missing(connection))
        if not missing:
            return
        try:
            with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
                for function in self._functions:
                    if function.name in missing:
                        cursor.execute(function.definition)
        except DatabaseError as error:
            logger.warning(
                "Could not create the PostgreSQL functions in database %r; workers will send "
                "plain statements instead, which need more CPU time: %s",
                connection.alias,
                error,
            )

    def drop(self, connection: Any) -> None:
        """Drop the functions of all releases from the current schema."""
        self.forget(connection.alias)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE %s "
                "AND pronamespace = current_schema()::regnamespace",
                [PREFIX.replace("_", r"\_") + r"\_%"],
            )
            for (signature,) in cursor.fetchall():
                cursor.execute(f"DROP FUNCTION {signature}")


# How a statement is sent


def _called(function: Function, values: dict[str, Any], connection: Any) -> list[Any]:
    begin, end, statement = _call(function, *_lengths())
    rows = _below_cursor(begin, [values[name] for name in function.values], end, connection)
    return function.rows(_by_cursor(statement, values, connection) if rows is None else rows)


def _lengths() -> tuple[timedelta, float, float, float]:
    """Rarely changing values are not parameters: a parameter costs more than looking up the
    text."""
    settings = conf.settings
    return periods.moved, settings.heartbeat, settings.lease, settings.grace


@lru_cache
def _call(function: Function, *lengths: Any) -> tuple[bytes, bytes, str]:
    """A call up to its values, and after them; and as a whole, with placeholders."""
    begin, end = function.call(_periods())
    placeholders = ", ".join(f"%({name})s" for name in function.values)
    return begin.encode(), end.encode(), f"{begin}{placeholders}{end}"


@lru_cache
def _plain(function: Function, *lengths: Any) -> str:
    return function.statement.format_map(_periods())


def _periods() -> dict[str, str]:
    """All periods that a statement can name, as SQL."""
    moved = _interval(periods.moved)
    return {
        "moved": moved,
        "now": f"({CLOCK} + {moved})" if periods.moved else CLOCK,
        "shortest": _interval(periods.shortest_lease()),
        "longest": _interval(periods.longest_lease()),
        "lease": _interval(periods.lease()),
        "grace": _interval(periods.grace()),
        "early": _interval(periods.EARLY),
    }


def _interval(duration: timedelta) -> str:
    return f"INTERVAL '{duration.total_seconds():.6f} seconds'"


def _by_cursor(statement: str, values: dict[str, Any], connection: Any) -> list[Any]:
    with _cursor(connection) as cursor:
        cursor.execute(statement, values)
        rows: list[Any] = cursor.fetchall()
    return rows


def _cursor(connection: Any) -> Any:
    """A cursor of Django's, which rejects a transaction that is already broken, and logs.

    If the project sets ``prepare_threshold``, it uses one of psycopg's that binds on the server,
    because only those prepare. Planning costs these statements more than everything else.
    """
    # As cursor() does first: CONN_HEALTH_CHECKS may replace this connection.
    connection.close_if_health_check_failed()
    connection.ensure_connection()
    raw = connection.connection
    if raw.prepare_threshold is None:
        return connection.cursor()
    import psycopg  # only with PostgreSQL

    return connection._prepare_cursor(psycopg.Cursor(raw))


# Below the cursor


def _below_cursor(
    begin: bytes, values: Sequence[Any], end: bytes, connection: Any
) -> list[Any] | None:
    """The rows of a statement around these values. None: this statement needs a cursor."""
    written = literals(values, connection) if needs_no_cursor(connection) else None
    return None if written is None else send(begin + b",".join(written) + end, connection)


def needs_no_cursor(connection: Any) -> bool:
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


def send(statement: bytes, connection: Any) -> list[Any]:
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
