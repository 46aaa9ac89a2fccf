"""PostgreSQL functions that contain the statements of the hot path.

PostgreSQL plans a statement each time it is sent, which costs more than executing it. The body of a
function is planned once per session, behind every pooler. Each function contains one statement; if
the function is missing, the statement itself is sent instead.

Its name ends with a digest of its text. So two releases have separate functions, side by side, and
`migrate` never replaces one that a worker of another release calls.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any
from uuid import UUID

from django.db import DatabaseError, transaction

logger = logging.getLogger("sequences")

PREFIX = "job_sequences"
#: Seconds until a process looks again for functions that it has not found.
RECHECK_SECONDS = 60.0

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

    def plain(self, periods: Mapping[str, str]) -> str:
        """The statement as it can be sent without the function."""
        return self.statement.format_map(periods)

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
        now = f"(STATEMENT_TIMESTAMP() + {numbers.get('moved')})"
        return self.statement.strip().format_map({**numbers, "now": now}) % numbers


class Installed:
    """The databases that have the functions, as far as this process knows."""

    def __init__(self, functions: Iterable[Function]) -> None:
        self._functions = tuple(functions)
        #: By alias: until when to assume that there are none, by the monotonic clock; 0: they
        #: exist.
        self._missing_until: dict[str, float] = {}

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
                "plain statements instead, which cost it more CPU time: %s",
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
