"""A PostgreSQL broker in the database of the runs: `dramatiq-postgres`, adapted to Django.

Workers consume messages as that package does. The differences are that connections come from
Django's settings, and that a message sent inside a transaction is part of that transaction.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.models.signals import post_migrate
from dramatiq import Message
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import QueueJoinTimeout

from . import conf

try:
    import dramatiq_postgres
    from dramatiq_postgres import broker as statements
    from dramatiq_postgres import schema as tables
    from dramatiq_postgres.utils import quote_ident
    from psycopg.types.json import Json
    from psycopg_pool import ConnectionPool
except ImportError as error:  # pragma: no cover
    raise ImproperlyConfigured(
        f"sequences.brokers needs dramatiq-postgres ({error}). "
        "Install django-dramatiq-sequences[postgres]."
    ) from error

#: Connections in addition to those that consumers hold: worker threads need one to acknowledge.
SPARE_CONNECTIONS = 16
#: Parameters that Django sets for its own cursors.
_OF_DJANGO = ("context", "cursor_factory")

_INSERT_MANY = """
INSERT INTO {table} (queue_name, message_id, state, message, available_at)
SELECT queue_name, message_id, 'queued', message, NOW() + delay * INTERVAL '1 millisecond'
FROM unnest(%s::text[], %s::uuid[], %s::jsonb[], %s::bigint[]) WITH ORDINALITY
    AS new (queue_name, message_id, message, delay, number)
ORDER BY number
RETURNING queue_name
"""
#: One notification per queue: PostgreSQL compares each of them with all others.
_NOTIFY = """
WITH enqueued AS ({insert})
SELECT pg_notify('dramatiq.' || queue_name || '.enqueue', '')
FROM (SELECT DISTINCT queue_name FROM enqueued) queues
"""


class DatabasePool:
    """Connections to one of Django's databases, for the consumer threads.

    The pool opens on first use, so that a web server's forked workers, or a test on another
    database, do not inherit connections.
    """

    def __init__(self, broker: PostgresBroker) -> None:
        self._broker = broker
        self._by_process: dict[int, ConnectionPool[Any]] = {}

    def getconn(self) -> Any:
        """Return a working connection; wait if all are in use."""
        return self._pool().getconn()

    def putconn(self, connection: Any) -> None:
        """Return a connection to the pool."""
        self._pool().putconn(connection)

    def close(self) -> None:
        """Close all connections of this process."""
        if pool := self._by_process.pop(os.getpid(), None):
            pool.close()

    def _pool(self) -> ConnectionPool[Any]:
        pool = self._by_process.get(os.getpid()) or self._add()
        pool.open()  # opens it only once
        return pool

    def _add(self) -> ConnectionPool[Any]:
        # If several threads get here, the first pool wins; the others were never opened.
        return self._by_process.setdefault(os.getpid(), self._new())

    def _new(self) -> ConnectionPool[Any]:
        # Each queue needs two connections for as long as it is consumed: one for its messages, one
        # for its delayed messages. With fewer, consumers would wait for each other.
        size = 2 * len(self._broker.get_declared_queues()) + 1 + SPARE_CONNECTIONS
        return ConnectionPool(
            kwargs=_parameters(self._broker.database),
            min_size=0,
            max_size=size,
            open=False,
            check=ConnectionPool.check_connection,
        )


def _parameters(alias: str) -> dict[str, Any]:
    # imports the models, which are not ready when this module is imported
    from .transitions.backends import backend_of

    connection = connections[alias]
    if not backend_of(alias).can_be_broker:
        raise ImproperlyConfigured(
            f"sequences.brokers.PostgresBroker needs PostgreSQL; the database {alias!r} is "
            f"{connection.display_name}."
        )
    parameters = connection.get_connection_params()
    keepalives = {
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 10_000,
        "application_name": "dramatiq",
    }
    own = {name: value for name, value in parameters.items() if name not in _OF_DJANGO}
    return {**keepalives, **own}


class PostgresBroker(dramatiq_postgres.PostgresBroker):  # type: ignore[misc]
    """A broker that keeps messages as rows in the database of the runs: no Redis, no RabbitMQ.

    A message sent inside a transaction is delivered if and only if the transaction commits, because
    it is written on the thread's own Django connection. ``migrate`` creates the tables.

    - ``database``: the alias; by default, the database of the runs.
    - ``options``: the options of `dramatiq_postgres.PostgresBroker`, such as ``listen=False`` (for
      PgBouncer), ``schema``, ``prefix`` and ``middleware``.
    """

    def __init__(self, *, database: str | None = None, **options: Any) -> None:
        for name in ("pool", "url"):
            if name in options:
                raise ImproperlyConfigured(
                    f"sequences.brokers.PostgresBroker takes no {name!r}: it uses Django's "
                    "DATABASES. For another server use dramatiq_postgres.PostgresBroker."
                )
        self._database = database
        self._schema = options.get("schema") or "dramatiq"
        self._prefix = options.get("prefix") or ""
        super().__init__(pool=DatabasePool(self), **options)
        post_migrate.connect(self._follow_migration)

    @property
    def database(self) -> str:
        """The alias of its database."""
        return self._database or conf.using()

    def shares_transactions(self, using: str) -> bool:
        """Whether messages sent in a transaction on that database are part of it."""
        return using == self.database

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Write the message on this thread's own connection, inside its transaction.

        A thread without a connection, such as a consumer, takes one from the pool.
        """
        connection = connections[self.database]
        if connection.connection is None:
            return super().enqueue(message, delay=delay)  # type: ignore[no-any-return]
        self.emit_before("enqueue", message, delay)
        sent = _delayed(message, delay)
        try:
            self._insert(sent, delay or 0)
        except (InterfaceError, OperationalError):
            if connection.in_atomic_block:
                raise
            # The connection is broken. A worker may be sending a retry, which must not be lost with
            # it.
            connection.close()
            return super().enqueue(message, delay=delay)  # type: ignore[no-any-return]
        self.emit_after("enqueue", sent, delay)
        return sent

    def _insert(self, message: Message[Any], delay: int) -> None:
        queries = statements.QUERIES
        insert = queries.ENQUEUE if self.notify else queries.ENQUEUE_QUIET
        payload: Any = Json(statements.tidy4json(message))
        with connections[self.database].cursor() as cursor:
            cursor.execute(insert, (message.queue_name, message.message_id, payload, delay))

    def enqueue_many(
        self, messages: Sequence[tuple[Message[Any], int | None]]
    ) -> list[Exception | None]:
        """Enqueue messages, each with its delay, in one statement: all of them, or none.

        Returns, for each message, the error with which a middleware rejected it, or None.
        """
        if connections[self.database].connection is None:
            return [_error_of(partial(self.enqueue, each, delay=wait)) for each, wait in messages]
        before = partial(self.emit_before, "enqueue")
        errors = [_error_of(partial(before, each, wait)) for each, wait in messages]
        sent = [
            (_delayed(message, delay), delay)
            for (message, delay), error in zip(messages, errors, strict=True)
            if error is None
        ]
        self._insert_many(sent)
        for message, delay in sent:
            self.emit_after("enqueue", message, delay)
        return errors

    def _insert_many(self, messages: Sequence[tuple[Message[Any], int | None]]) -> None:
        statement = _INSERT_MANY.format(table=self._table)
        if self.notify:
            statement = _NOTIFY.format(insert=statement)
        parameters = [
            [message.queue_name for message, _ in messages],
            [message.message_id for message, _ in messages],
            [message.encode().decode() for message, _ in messages],
            [delay or 0 for _, delay in messages],
        ]
        self._execute(statement, parameters)

    def flush(self, queue_name: str) -> None:
        """Delete the messages of a queue, including delayed ones."""
        names = [queue_name, dq_name(queue_name)]
        self._execute(f"DELETE FROM {self._table} WHERE queue_name = ANY(%s)", [names])  # noqa: S608

    def flush_all(self) -> None:
        """Delete the messages of all queues."""
        self._execute(f"DELETE FROM {self._table}")  # noqa: S608

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Wait until a queue has no messages left.

        Raises `QueueJoinTimeout` after ``timeout`` milliseconds.
        """
        until = None if timeout is None else time.monotonic() + timeout / 1000
        while self._size(queue_name):
            if until is not None and time.monotonic() >= until:
                raise QueueJoinTimeout(queue_name)  # type: ignore[no-untyped-call]
            time.sleep(interval / 1000)

    def _size(self, queue_name: str) -> int:
        names = [queue_name, dq_name(queue_name)]
        ((size,),) = self._execute(
            f"SELECT count(*) FROM {self._table} "  # noqa: S608
            "WHERE queue_name = ANY(%s) AND state <> 'rejected'",
            [names],
        )
        return int(size)

    def create_tables(self) -> None:
        """Create the schema, the type and the tables if they do not exist."""
        with transaction.atomic(self.database), connections[self.database].cursor() as cursor:
            tables.init(cursor, self._schema, self._prefix)

    def has_tables(self) -> bool:
        """Whether the tables exist."""
        with connections[self.database].cursor() as cursor:
            return bool(tables.schema_exists(cursor, self._schema, self._prefix))

    @property
    def _table(self) -> str:
        return f"{quote_ident(self._schema)}.{quote_ident(f'{self._prefix}queue')}"

    def _execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with connections[self.database].cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Close the consumers' connections."""
        super().close()
        self.pool.close()

    def _follow_migration(self, sender: Any, using: str, **_: Any) -> None:
        if sender.name == "sequences" and using == self.database:
            self.create_tables()


def _error_of(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def _delayed(message: Message[Any], delay: int | None) -> Message[Any]:
    if not delay:
        return message
    message = message.copy(queue_name=dq_name(message.queue_name))
    message.options["eta"] = current_millis() + delay
    return message
