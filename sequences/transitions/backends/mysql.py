"""MariaDB and MySQL: the portable statements, and what InnoDB does differently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any
from uuid import UUID

from django.db import DatabaseError, InterfaceError, OperationalError

from .base import Backend, Holder, TextColumn, holder_of, number_of

#: In a `no_wait` block, how long a statement that cannot say NOWAIT waits for a lock, in seconds;
#: one is the minimum.
LOCK_TIMEOUT = 1

# Lock wait timeout, MySQL's NOWAIT.
_LOCKED = {1205, 3572}
# Deadlock, record changed since the last read.
_TRANSIENT = {1213, 1020, *_LOCKED}
# Undefined table, undefined column.
_UNDEFINED = {1146, 1054}
# An incorrect string, an illegal mix of collations, an invalid string, two impossible conversions.
_CHARACTERS = {1366, 1267, 1300, 3854, 3988}
# Closed before a statement, or while one was executed.
_LOST = {0, 1053, 1927, 2006, 2013, 2055, 4031}
# This user may not see the transactions of others.
_NOT_ALLOWED = {1227, 1142}

# InnoDB names the tables of a lock only if somebody is waiting for it.
_HOLDER = """
SELECT trx.trx_mysql_thread_id, process.user, '', process.command,
    TIMESTAMPDIFF(SECOND, trx.trx_started, NOW()), FALSE
FROM information_schema.innodb_trx trx
JOIN information_schema.processlist process ON process.id = trx.trx_mysql_thread_id
WHERE process.id <> CONNECTION_ID() AND process.db = DATABASE()
    AND (trx.trx_rows_locked > 0 OR trx.trx_rows_modified > 0)
ORDER BY trx.trx_started
LIMIT 1
"""

_TEXT_COLUMNS = """
SELECT table_name, column_name, character_set_name, collation_name
FROM information_schema.columns
WHERE table_schema = DATABASE() AND character_set_name IS NOT NULL AND table_name IN %s
ORDER BY table_name, ordinal_position
"""


class MySQL(Backend):
    """Django uses this name for both."""

    vendor = "mysql"
    clock = "UTC_TIMESTAMP(6)"
    orders_ids = False  # MariaDB's version string starts with other bytes
    locks_examined_rows = True
    character_set_hint = (
        "ALTER DATABASE … CHARACTER SET utf8mb4 before the first migrate; MODIFY the columns "
        "that exist (CONVERT TO would change their collations); leave 'charset' out of OPTIONS."
    )

    def limit_session(self, connection: Any) -> AbstractContextManager[None]:
        """Set the limit for the session, because a transaction has none; inside the caller's, leave
        it."""
        return nullcontext() if connection.in_atomic_block else _limited(connection)

    def holder(self, run: UUID, step: str, connection: Any) -> Holder | None:
        """The oldest transaction that has locked anything in this database."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(_HOLDER)
                return holder_of(cursor.fetchone())
        except DatabaseError as error:
            if number_of(error) in _NOT_ALLOWED:
                return None
            raise

    def is_transient(self, error: DatabaseError) -> bool:
        """Whether it gave up the transaction because of another one."""
        return isinstance(error, OperationalError) and number_of(error) in _TRANSIENT

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether another transaction holds a row that this one needs."""
        return isinstance(error, OperationalError) and number_of(error) in _LOCKED

    def is_undefined(self, error: DatabaseError) -> bool:
        """Whether a table or a column is missing."""
        return number_of(error) in _UNDEFINED

    def is_of_characters(self, error: DatabaseError) -> bool:
        """Whether a character set lacks a character."""
        return number_of(error) in _CHARACTERS

    def is_of_connection(self, error: OperationalError | InterfaceError) -> bool:
        """Whether the connection is dead."""
        return number_of(error) in _LOST

    def exact_collation(self, connection: Any) -> str | None:
        """The binary collation without padding, which the two databases name differently."""
        return "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"

    def text_columns(self, tables: Iterable[str], connection: Any) -> list[TextColumn]:
        """Every text column has a character set and a collation."""
        with connection.cursor() as cursor:
            cursor.execute(_TEXT_COLUMNS, [list(tables)])
            return [TextColumn(*row) for row in cursor.fetchall()]

    def not_unicode(self, tables: Iterable[str], connection: Any) -> list[str]:
        """Whatever has another character set than utf8mb4."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@character_set_connection, @@character_set_database")
            of_connection, of_database = cursor.fetchone()
        columns = self.text_columns(tables, connection)
        names = [("its connection", of_connection)]
        names += [(f"{each.table}.{each.name}", each.character_set) for each in columns]
        if not columns:  # there are no tables yet; they will use the database's default
            names.append(("by default, it", of_database))
        return [
            f"{name} uses {character_set}"
            for name, character_set in names
            if character_set != "utf8mb4"
        ]

    def configured_isolation(self, options: dict[str, Any]) -> str:
        """Django sets this level on every connection; the server does not decide."""
        level = options.get("isolation_level", "read committed")  # Django's default
        return level.lower() if level else "the server's default"

    def needed_version(self, connection: Any) -> str:
        """Which servers have SKIP LOCKED, if this one does not."""
        has_it = connection.features.has_select_for_update_skip_locked
        return "" if has_it else "Use MySQL 8.0, MariaDB 10.6, or newer."


@contextmanager
def _limited(connection: Any) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@SESSION.innodb_lock_wait_timeout")
        (usual,) = cursor.fetchone()
        cursor.execute("SET SESSION innodb_lock_wait_timeout = %s", [LOCK_TIMEOUT])
    try:
        yield
    finally:
        with suppress(DatabaseError), connection.cursor() as cursor:  # it may be gone by now
            cursor.execute("SET SESSION innodb_lock_wait_timeout = %s", [usual])
