"""What databases do differently, each with a default that works on any."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple, Protocol
from uuid import UUID

from django.db import DatabaseError, Error, InterfaceError, OperationalError
from django.utils import timezone

from ...definitions.plan import Node, Plan
from ..types import Beat, Change, Claim, Offer, Start, StartedStep


@dataclass(frozen=True, slots=True)
class Holder:
    """A session of the database."""

    #: The id that ends it: ``pg_terminate_backend(pid)``, ``KILL pid``.
    pid: int
    user: str
    application: str
    #: What it is doing, such as "idle in transaction".
    state: str
    #: How long its transaction has been open.
    age: timedelta
    #: Whether it is known to hold the lock; otherwise, it is only the most likely session.
    is_certain: bool


class TextColumn(NamedTuple):
    """A text column with a character set and a collation of its own."""

    table: str
    name: str
    character_set: str
    collation: str


class FastStatements(Protocol):
    """The hot path, with one statement for each operation."""

    def start(
        self,
        plan: Plan,
        plan_id: int,
        requests: Sequence[Start],
        scope: str,
        labels: Sequence[str],
        connection: Any,
    ) -> list[StartedStep]:
        """Insert the runs with their first steps; return these steps.

        A run whose key is taken is left out; without the row of their plan, all are.
        """

    def claim(
        self,
        step_run_id: int,
        attempts: int,
        token: int,
        worker: str,
        suspects: bool,
        connection: Any,
    ) -> Claim | None:
        """See `claims.claim`."""

    def commit_in_chain(
        self, claim: Claim, change: Change, following: Node | None, connection: Any
    ) -> int | None:
        """Commit a step of a chain whose successor waits for this step alone.

        Returns the id of the successor's row, or 0 if there is none. None: nothing was changed,
        because the run is paused, `data` was changed, the claim is lost, or the end of a child run
        must be reported to its parent. The slow path finds out which.
        """

    def commit_and_claim(
        self, claim: Claim, change: Change, following: Node, offer: Offer, connection: Any
    ) -> Claim | None:
        """The same, and also claim the successor in the same commit. None: as above."""

    def commit_item(self, claim: Claim, change: Change, connection: Any) -> tuple[Any] | None:
        """Commit an item of a fan-out; return the state of the fan-out. None: the claim is lost."""

    def beat(self, beats: Sequence[Beat], connection: Any) -> set[int]:
        """See `claims.beat`."""

    def delete_runs(self, parts: Sequence[str], ids: Sequence[UUID], connection: Any) -> None:
        """Delete these runs, and from the tables of their parts the rows that belong to them."""


class Backend:
    """A kind of database. It has no state: each method receives the connection to use."""

    #: Django's name for it.
    vendor: ClassVar[str] = ""
    #: The current time as SQL: with a time zone, or in UTC.
    clock: ClassVar[str] = "CURRENT_TIMESTAMP"
    #: Statements of its own for the hot path; without them, the portable ones are used.
    fast: ClassVar[FastStatements | None] = None
    #: Whether it sorts ids in the order of their digits.
    orders_ids: ClassVar[bool] = True
    #: Whether it can also be the broker: `sequences.brokers`.
    can_be_broker: ClassVar[bool] = False
    #: Whether a connection goes to a server, which takes time.
    has_server: ClassVar[bool] = True
    #: Whether a statement that locks rows also briefly locks those that it then skips.
    locks_examined_rows: ClassVar[bool] = False
    #: How to make it store every character.
    character_set_hint: ClassVar[str] = ""

    # Clock

    def now(self, connection: Any) -> datetime.datetime:
        """The database's time at this statement, aware."""
        current = self.now_beside("", (), connection)
        assert current is not None
        return current

    def now_beside(
        self, rows: str, values: Sequence[Any], connection: Any
    ) -> datetime.datetime | None:
        """The same, if ``FROM … WHERE …`` finds a row; None: it finds none. A single statement."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {self.clock} {rows}", values)
            row = cursor.fetchone()
        if row is None:
            return None
        current: datetime.datetime = row[0]
        return current.replace(tzinfo=datetime.UTC) if timezone.is_naive(current) else current

    # Objects besides the tables

    def follow_migration(self, connection: Any) -> None:
        """Create the objects that belong to the tables, or remove them if the tables are gone."""

    def missing_functions(self, connection: Any) -> list[str]:
        """The functions that are missing or that we may not call. Everything works without them."""
        return []

    # Locks and transactions

    def limit_transaction(self, connection: Any) -> None:
        """Let no statement of this transaction wait long for a lock."""

    def limit_session(self, connection: Any) -> AbstractContextManager[None]:
        """Let no statement in this block wait long for a lock."""
        return nullcontext()

    def is_idle(self, connection: Any) -> bool:
        """Whether the block that this connection is in has sent nothing to the database."""
        return False

    def is_in_transaction(self, connection: Any) -> bool:
        """Whether the driver knows of an open transaction, even of one that Django did not begin.
        It sends no statement; False: there is none, or the driver does not say."""
        return False

    def has_failed_transaction(self, connection: Any) -> bool:
        """Whether an error has made the open transaction useless, until a rollback."""
        return False

    def holder(self, run: UUID, step: str, connection: Any) -> Holder | None:
        """The session whose transaction has locked the run or the step. None: not known."""
        return None

    # Errors

    def is_transient(self, error: DatabaseError) -> bool:
        """Whether it gave up the transaction because of another one."""
        return False

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether another transaction holds a row that this one needs."""
        return False

    def is_undefined(self, error: DatabaseError) -> bool:
        """Whether a table or a column is missing."""
        return False

    def is_of_characters(self, error: DatabaseError) -> bool:
        """Whether the character set of the database lacks a character."""
        return False

    def is_of_connection(self, error: OperationalError | InterfaceError) -> bool:
        """Whether the connection is dead."""
        return False

    # Text

    def exact_collation(self, connection: Any) -> str | None:
        """The collation in which a string equals only itself. None: the default one is exact."""
        return None

    def text_columns(self, tables: Iterable[str], connection: Any) -> list[TextColumn]:
        """The text columns of these tables that have a collation of their own."""
        return []

    def not_unicode(self, tables: Iterable[str], connection: Any) -> list[str]:
        """What cannot store every character, and the character set that it has instead."""
        return []

    # Configuration

    def configured_isolation(self, options: dict[str, Any]) -> str:
        """The isolation level that the settings ask for; by default, one that is right."""
        return "read committed"

    def actual_isolation(self, connection: Any) -> str:
        """The isolation level of this connection, where the server decides it."""
        return "read committed"

    def locks_late(self, options: dict[str, Any]) -> bool:
        """Whether conflicting transactions fail at once instead of waiting."""
        return False

    def needed_version(self, connection: Any) -> str:
        """Which servers have SKIP LOCKED, if this one does not."""
        return ""


def state_of(error: Error) -> str | None:
    """The SQLSTATE of an error, if the driver provides it."""
    state: str | None = getattr(error.__cause__, "sqlstate", None)
    return state


def number_of(error: Error) -> Any:
    """The number of an error, if the driver provides it."""
    return error.args[0] if error.args else None


def holder_of(row: tuple[Any, ...] | None) -> Holder | None:
    """A session from a row: id, user, application, state, seconds, and whether it is certain."""
    if row is None:
        return None
    pid, user, application, state, seconds, is_certain = row
    age = timedelta(seconds=float(seconds or 0))
    return Holder(pid, user or "", application or "", state or "", age, bool(is_certain))
