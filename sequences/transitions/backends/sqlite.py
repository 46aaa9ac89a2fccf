"""SQLite, for development: one writer at a time, and no server."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, OperationalError
from django.utils import timezone

from .base import Backend

#: SQLite has the same number for most errors.
_UNDEFINED = ("no such table", "no such column", "has no column named")


class SQLite(Backend):
    """Uses this process's time; the only lock is on the whole file."""

    vendor = "sqlite"
    has_server = False

    def now(self, connection: Any) -> datetime.datetime:
        """The time of this process: every other process is on the same machine."""
        return timezone.now()

    def now_beside(
        self, rows: str, values: Sequence[Any], connection: Any
    ) -> datetime.datetime | None:
        """The same, if the row is found."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT 1 {rows}", values)
            return None if cursor.fetchone() is None else timezone.now()

    def is_in_transaction(self, connection: Any) -> bool:
        """SQLite itself keeps track of it."""
        raw = connection.connection
        return raw is not None and bool(raw.in_transaction)

    def is_transient(self, error: DatabaseError) -> bool:
        """Whether another connection was writing for too long."""
        return isinstance(error, OperationalError) and "database is locked" in str(error)

    def is_locked(self, error: DatabaseError) -> bool:
        """The same: there is no other lock."""
        return self.is_transient(error)

    def is_undefined(self, error: DatabaseError) -> bool:
        """Whether a table or a column is missing."""
        return any(words in str(error) for words in _UNDEFINED)

    def locks_late(self, options: dict[str, Any]) -> bool:
        """Whether a transaction takes the write lock only with its first write."""
        mode = options.get("transaction_mode") or ""
        return mode.upper() not in {"IMMEDIATE", "EXCLUSIVE"}
