"""A broker in the runs' own database: that of `dramatiq-postgres`, as a Django site needs it.

Workers consume as that package does. What differs is where connections come from, and that a
message which is sent in a transaction belongs to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
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

#: Connections beside those that consumers hold: worker threads take one to acknowledge.
SPARE_CONNECTIONS = 16
#: What Django's parameters have for its own cursors.
_OF_DJANGO = ("context", "cursor_factory")


class DatabasePool:
    """Connections to one of Django's databases, for the threads that consume.

    It is opened where it is first used: a web server that forks, or a test that has another
    database, finds nothing of before.
    """

    def __init__(self, broker: PostgresBroker) -> None:
        self._broker = broker
        self._by_process: dict[int, ConnectionPool[Any]] = {}

    def getconn(self) -> Any:
        """One that answers; it waits while all are taken."""
        return self._pool().getconn()

    def putconn(self, connection: Any) -> None:
        """Give one back."""
        self._pool().putconn(connection)

    def close(self) -> None:
        """Close all of this process."""
        if pool := self._by_process.pop(os.getpid(), None):
            pool.close()

    def _pool(self) -> ConnectionPool[Any]:
        pool = self._by_process.get(os.getpid()) or self._add()
        pool.open()  # which is done once
        return pool

    def _add(self) -> ConnectionPool[Any]:
        # Of several threads the first one's counts; the others' were never opened.
        return self._by_process.setdefault(os.getpid(), self._new())

    def _new(self) -> ConnectionPool[Any]:
        # A consumer holds a connection for good, and each queue has two, one for what is delayed.
        # With fewer they would wait for each other.
        size = 2 * len(self._broker.get_declared_queues()) + 1 + SPARE_CONNECTIONS
        return ConnectionPool(
            kwargs=_parameters(self._broker.database),
            min_size=0,
            max_size=size,
            open=False,
            check=ConnectionPool.check_connection,
        )


def _parameters(alias: str) -> dict[str, Any]:
    from .transitions.backends import backend_of  # it needs the models, this comes before them

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
    """Messages are rows in the database of the runs: no Redis, no RabbitMQ.

    What is sent in a transaction is delivered if that commits, and only then: the thread's own
    connection of Django sends it. ``migrate`` creates the tables.

    - ``database``: the alias; by default that of the runs.
    - ``options``: those of `dramatiq_postgres.PostgresBroker`: ``listen=False`` behind PgBouncer,
      ``schema``, ``prefix``, ``middleware``.
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
        """Whether what is sent in a transaction on that database belongs to it."""
        return using == self.database

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """By the connection that this thread has, and in its transaction.

        A thread without one, such as a consumer's, takes one of the pool.
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
            # It is broken. What a worker sends after a failed attempt must not be lost with it.
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

    def flush(self, queue_name: str) -> None:
        """Delete the messages of a queue, the delayed ones too."""
        names = [queue_name, dq_name(queue_name)]
        self._execute(f"DELETE FROM {self._table} WHERE queue_name = ANY(%s)", [names])  # noqa: S608

    def flush_all(self) -> None:
        """Delete the messages of all queues."""
        self._execute(f"DELETE FROM {self._table}")  # noqa: S608

    def join(self, queue_name: str, *, interval: int = 100, timeout: int | None = None) -> None:
        """Wait until a queue has no message left.

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
        """Create its schema, type and tables, unless they are there."""
        with transaction.atomic(self.database), connections[self.database].cursor() as cursor:
            tables.init(cursor, self._schema, self._prefix)

    def has_tables(self) -> bool:
        """Whether they are there."""
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
        """Close the connections of its consumers."""
        super().close()
        self.pool.close()

    def _follow_migration(self, sender: Any, using: str, **_: Any) -> None:
        if sender.name == "sequences" and using == self.database:
            self.create_tables()


def _delayed(message: Message[Any], delay: int | None) -> Message[Any]:
    if not delay:
        return message
    message = message.copy(queue_name=dq_name(message.queue_name))
    message.options["eta"] = current_millis() + delay
    return message
