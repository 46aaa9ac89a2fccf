"""What a database does in its own way, each with an answer that holds on any."""

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

    #: What ends it: ``pg_terminate_backend(pid)``, ``KILL pid``.
    pid: int
    user: str
    application: str
    #: What it does, such as "idle in transaction".
    state: str
    #: How long its transaction has been open.
    age: timedelta
    #: Whether it is known to hold the row, and not only the likeliest.
    is_certain: bool


class TextColumn(NamedTuple):
    """A column whose texts have a character set and a collation of their own."""

    table: str
    name: str
    character_set: str
    collation: str


class FastStatements(Protocol):
    """The hot path in one statement each."""

    def start(
        self,
        plan: Plan,
        plan_id: int,
        requests: Sequence[Start],
        scope: str,
        labels: Sequence[str],
        connection: Any,
    ) -> list[StartedStep]:
        """Insert the runs with their first steps; returns these steps.

        A run whose key is held is left out. Without the row of their plan all are.
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
        """Commit a step of a chain, whose successor waits for this step alone.

        Returns the id of the successor's row, 0 without one. None: nothing was changed; the run is
        paused, or `data` was changed, or the claim is lost, or it is the end of a child, which its
        parent is to hear of. The slow path finds out which.
        """

    def commit_and_claim(
        self, claim: Claim, change: Change, following: Node, offer: Offer, connection: Any
    ) -> Claim | None:
        """The same, and its successor is claimed in the same commit. None: as above."""

    def commit_item(self, claim: Claim, change: Change, connection: Any) -> tuple[Any] | None:
        """Commit an item of a fan-out; returns the state of that. None: it is not ours any more."""

    def beat(self, beats: Sequence[Beat], connection: Any) -> set[int]:
        """See `claims.beat`."""


class Backend:
    """A kind of database. It holds nothing: each method is given the connection that it asks."""

    #: As Django names it.
    vendor: ClassVar[str] = ""
    #: The time at a statement, as SQL: with a time zone, or in UTC.
    clock: ClassVar[str] = "CURRENT_TIMESTAMP"
    #: Statements of its own for the hot path; without them the portable ones do.
    fast: ClassVar[FastStatements | None] = None
    #: Whether it orders ids as their digits are ordered.
    orders_ids: ClassVar[bool] = True
    #: Whether it can be the broker, too: `sequences.brokers`.
    can_be_broker: ClassVar[bool] = False
    #: Whether a connection goes to a server, which takes time.
    has_server: ClassVar[bool] = True
    #: Whether a statement that locks rows also locks, for a moment, those that it decides to leave.
    locks_examined_rows: ClassVar[bool] = False
    #: How it comes to store every character.
    character_set_hint: ClassVar[str] = ""

    # Its clock

    def now(self, connection: Any) -> datetime.datetime:
        """The time of the database at this statement, aware."""
        current = self.now_beside("", (), connection)
        assert current is not None
        return current

    def now_beside(
        self, rows: str, values: Sequence[Any], connection: Any
    ) -> datetime.datetime | None:
        """The same, where ``FROM … WHERE …`` finds a row; None: it finds none. One statement."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {self.clock} {rows}", values)
            row = cursor.fetchone()
        if row is None:
            return None
        current: datetime.datetime = row[0]
        return current.replace(tzinfo=datetime.UTC) if timezone.is_naive(current) else current

    # What it has beside the tables

    def follow_migration(self, connection: Any) -> None:
        """Make what belongs to the tables, where they are; remove it where they are gone."""

    def missing_functions(self, connection: Any) -> list[str]:
        """The functions that it lacks, or does not let us call. It works without them."""
        return []

    # Its locks and transactions

    def limit_transaction(self, connection: Any) -> None:
        """Let no statement of this transaction wait long for a lock."""

    def limit_session(self, connection: Any) -> AbstractContextManager[None]:
        """Let no statement in this block wait long for a lock."""
        return nullcontext()

    def is_idle(self, connection: Any) -> bool:
        """Whether the block that this connection is in has sent nothing to the database."""
        return False

    def holder(self, run: UUID, step: str, connection: Any) -> Holder | None:
        """Whose transaction has locked the run or the step. None: that is not known."""
        return None

    # Its errors

    def is_transient(self, error: DatabaseError) -> bool:
        """Whether it gave the transaction up for another's sake."""
        return False

    def is_locked(self, error: DatabaseError) -> bool:
        """Whether another transaction holds a row that this one needs."""
        return False

    def is_undefined(self, error: DatabaseError) -> bool:
        """Whether it lacks a table or a column."""
        return False

    def is_of_characters(self, error: DatabaseError) -> bool:
        """Whether its character set lacks a character."""
        return False

    def is_of_connection(self, error: OperationalError | InterfaceError) -> bool:
        """Whether the connection is dead."""
        return False

    # Its texts

    def exact_collation(self, connection: Any) -> str | None:
        """The collation in which a text equals only itself. None: every collation is one."""
        return None

    def text_columns(self, tables: Iterable[str], connection: Any) -> list[TextColumn]:
        """The columns of these tables whose texts have a collation of their own."""
        return []

    def not_unicode(self, tables: Iterable[str], connection: Any) -> list[str]:
        """What cannot store every character, and what it has instead."""
        return []

    # Its configuration

    def configured_isolation(self, options: dict[str, Any]) -> str:
        """The isolation level that the settings ask for; a level that is good for all others."""
        return "read committed"

    def actual_isolation(self, connection: Any) -> str:
        """The isolation level of this connection, where the server has a say in it."""
        return "read committed"

    def locks_late(self, options: dict[str, Any]) -> bool:
        """Whether transactions that meet fail at once, instead of waiting."""
        return False

    def needed_version(self, connection: Any) -> str:
        """Which servers have SKIP LOCKED, if this one has not."""
        return ""


def state_of(error: Error) -> str | None:
    """The SQLSTATE of an error, where the driver tells."""
    state: str | None = getattr(error.__cause__, "sqlstate", None)
    return state


def number_of(error: Error) -> Any:
    """The number of an error, where the driver tells."""
    return error.args[0] if error.args else None


def holder_of(row: tuple[Any, ...] | None) -> Holder | None:
    """What a row tells: id, user, application, state, seconds, and whether it is certain."""
    if row is None:
        return None
    pid, user, application, state, seconds, is_certain = row
    age = timedelta(seconds=float(seconds or 0))
    return Holder(pid, user or "", application or "", state or "", age, bool(is_certain))
