"""A worker that dies at every boundary in turn, and a fresh one that goes on: a program.

`python -m tests.acceptance.crashing app.Sequence` performs the sequence again and again, each time
in a process of its own, which dies at the first boundary that none before it has passed: before or
after an SQL statement, a commit or rollback, a publish, an acknowledgement. The path varies (a
delay may be over before its step is claimed, branches commit in any order), so a boundary has no
fixed number: it is named by its step, by what is done there, and by how often that was done
before. The walk ends when several processes have met no new one, and live. At last a fresh worker
with a sweep ends what the dead have left.

It prints what it did as JSON. The run of process k has `data["k"] == k`.
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import django
import dramatiq
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import Count, Sum
from dramatiq import Middleware, Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq_postgres.broker import QUERIES

if __name__ == "__main__":
    django.setup()

from sequences import conf
from sequences.brokers import PostgresBroker
from sequences.definitions import registry
from sequences.engine import current
from sequences.models import OutboxMessage, SequenceRun
from sequences.worker import queue_monitor  # (Django is ready now)
from tests.acceptance.app.sequences import start_kept

DIED = 9
#: So many processes, one after the other, must live: each may have taken another path.
ALIVE = 3
#: Seconds for anything that is waited for.
LIMIT = 60


#: The step, what is done, and how often it was done before.
Boundary = tuple[str, str, int]


class Boundaries(Middleware):
    """The boundaries that this process passes, and the one at which it dies."""

    def __init__(self) -> None:
        # The heartbeat comes when it comes: its boundaries belong to no step.
        self.ignored = "sequences-"
        self.passed: list[Boundary] = []
        self.is_last: Callable[[Boundary], bool] = lambda boundary: False
        self.die: Callable[[], None] = lambda: os._exit(DIED)
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def install(self) -> None:
        connection_created.connect(self._wrap, weak=False)
        for name in ("_commit", "_rollback"):
            setattr(BaseDatabaseWrapper, name, self._both_sides(getattr(BaseDatabaseWrapper, name)))
        dramatiq.get_broker().add_middleware(self)

    def forget(self) -> None:
        """What was passed before this belongs to the scene."""
        self.passed.clear()
        self._times.clear()

    def passes(self, name: str) -> None:
        if threading.current_thread().name.startswith(self.ignored):
            return
        attempt = current.current_attempt()
        step = attempt.claim.step if attempt else ""
        with self._lock:
            boundary = (step, name, self._times[step, name])
            self._times[step, name] += 1
            self.passed.append(boundary)
            if self.is_last(boundary):
                self.die()

    def _wrap(self, connection, **kwargs) -> None:
        if self._statement not in connection.execute_wrappers:
            connection.execute_wrappers.append(self._statement)

    def _statement(self, execute, sql, params, many, context):
        words = " ".join(sql.split())[:60]
        self.passes(f"before {words}")
        result = execute(sql, params, many, context)
        self.passes(f"after {words}")
        return result

    def _both_sides(self, method: Callable) -> Callable:
        def wrapped(connection):
            self.passes(f"before {method.__name__}")
            method(connection)
            self.passes(f"after {method.__name__}")

        return wrapped

    def before_enqueue(self, broker, message, delay):
        self.passes(f"before publish to {message.queue_name}")

    def after_enqueue(self, broker, message, delay):
        self.passes(f"after publish to {message.queue_name}")

    def before_ack(self, broker, message):
        self.passes(f"before acknowledge of {message.queue_name}")

    def after_ack(self, broker, message):
        self.passes(f"after acknowledge of {message.queue_name}")


class Walk:
    """Processes that die at one boundary after the other, until some meet no new one and live."""

    def __init__(self, sequence: str, kind: Callable[[str], bool], every: int) -> None:
        self._sequence, self._kind, self._every = sequence, kind, every
        self._known: set[Boundary] = set()
        self._new = 0

    def go(self, numbers: Iterator[int]) -> Iterator[dict[str, Any]]:
        alive = 0
        while alive < ALIVE:
            k = next(numbers)
            process = Forked(perform, self._sequence, k, self._is_last)
            passed = process.end()
            self._known.update(passed)
            yield {"k": k, "died": process.died, "passed": passed}
            alive = 0 if process.died else alive + 1

    def _is_last(self, boundary: Boundary) -> bool:
        """Asked in the process, whose copy of this counts what is new to all before it."""
        if boundary in self._known or not self._kind(boundary[1]):
            return False
        self._new += 1
        return self._new == self._every


def is_message(name: str) -> bool:
    return "publish" in name or "acknowledge" in name


def is_statement(name: str) -> bool:
    return not is_message(name)


boundaries = Boundaries()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sequence")
    parser.add_argument("--every", type=int, default=1, help="of the SQL boundaries, this many-th")
    parser.add_argument("--deaths", type=int, default=0, help="of fresh workers, one by one")
    options = parser.parse_args()
    connections.close_all()
    boundaries.install()
    Forked(perform, options.sequence, 0, boundaries.is_last).end()  # it writes the plan, too
    numbers = count(1)
    walks = [Walk(options.sequence, is_message, 1)]
    walks += [Walk(options.sequence, is_statement, options.every)]
    processes = [process for walk in walks for process in walk.go(numbers)]
    deaths = sum(Forked(recover, 0, 10 * 2**n).has_died() for n in range(options.deaths))
    # A broker in memory has died with each of them; in a server each has left its messages.
    broker = dramatiq.get_broker()
    # Those that lived may have, too: a retry that is acknowledged late takes its row along there.
    numbers_of_all = [process["k"] for process in processes]
    if isinstance(broker, PostgresBroker):
        gather(numbers_of_all, broker._schema)
    elif not isinstance(broker, StubBroker):
        redeliver(numbers_of_all, broker)
    Forked(recover, 0).end()
    json.dump({"processes": processes, "deaths": deaths}, sys.stdout)
    return 0


def gather(numbers: list[int], schema: str) -> None:
    """Give what the dead have left in their tables to one worker."""
    with connections["default"].cursor() as cursor:
        for k in numbers:
            # As `consumed` by a worker that nobody knows: the broker has to give it out again.
            cursor.execute(
                f'INSERT INTO "{schema}"."0_queue" (message_id, queue_name, state, message, '
                "available_at, worker_id) SELECT message_id, queue_name, state::text::"
                f'"{schema}"."0_state", message, available_at, worker_id '
                f'FROM "{schema}"."{k}_queue"'
            )
    connections.close_all()


def redeliver(numbers: list[int], broker: Any) -> None:
    """What they had in hand waits again, as Redis's broker does after a minute; for one worker."""
    for k in numbers:
        for queue in ("default", "default.DQ"):
            messages = broker.client.hgetall(f"{broker.namespace}-{k}:{queue}.msgs")
            for name, message in messages.items():
                broker.client.hset(f"{broker.namespace}-0:{queue}.msgs", name, message)
                broker.client.rpush(f"{broker.namespace}-0:{queue}", name)
    broker.client.connection_pool.disconnect()


class Forked:
    """A process of its own that does this, and ends."""

    def __init__(self, play: Callable[..., None], *arguments: Any) -> None:
        self.died = False
        self._pipe, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            status = 1
            try:
                boundaries.die = lambda: exit_with(DIED, writing)
                play(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                exit_with(status, writing)
        os.close(writing)

    def end(self) -> list[Boundary]:
        """The boundaries that it has passed."""
        with os.fdopen(self._pipe) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        if status not in (0, DIED):
            raise SystemExit(f"A process ended with status {status}.")
        self.died = status == DIED
        return [(step, name, times) for step, name, times in json.loads(text)]

    def has_died(self) -> bool:
        self.end()
        return self.died


def exit_with(status: int, pipe: int) -> None:
    os.write(pipe, json.dumps(boundaries.passed).encode())
    os._exit(status)


def perform(label: str, k: int, is_last: Callable[[Boundary], bool]) -> None:
    """Start the sequence, and perform it until its end, or its death at its last boundary."""
    conf.settings.sweep_interval = None
    broker = broker_of(k)
    boundaries.is_last = is_last
    start = start_kept if label == "kept" else registry.get(label).start
    start({"k": k, "log": []})
    boundaries.passes("started")
    worker = Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    broker.join("default", timeout=LIMIT * 1000)
    worker.stop()


def recover(k: int, last: int | None = None) -> None:
    """Be a fresh worker until every run has ended, or until its death at the `last` boundary."""
    broker = broker_of(k)
    if isinstance(broker, PostgresBroker):  # in seconds, not in a minute
        broker.heartbeat_interval, broker.heartbeat_ttl, broker.maintenance_interval = 1, 3, 0.5
    boundaries.ignored = threading.main_thread().name
    boundaries.is_last = lambda boundary: len(boundaries.passed) == last
    queue_monitor.DRAINED_AFTER_SECONDS = 0.3 if isinstance(broker, StubBroker) else 1.5
    worker = Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    before, until = None, 0.0
    while (left := what_is_left())["runs"] and (left != before or time.monotonic() < until):
        if left != before:  # however slow the machine is: they come to an end
            before, until = left, time.monotonic() + LIMIT
        time.sleep(0.05)
    wait_until_empty(broker)
    worker.stop()


def what_is_left() -> dict[str, int]:
    left = SequenceRun.objects.unfinished().aggregate(runs=Count("pk"), commits=Sum("version"))
    return {**left, "runs": left["runs"] + OutboxMessage.objects.count()}


def wait_until_empty(broker: Any) -> None:
    """Messages of plain actors are no rows: they end with their queue."""
    if isinstance(broker, StubBroker):
        return
    until = time.monotonic() + LIMIT
    while size_of(broker) and time.monotonic() < until:
        time.sleep(0.05)


def size_of(broker: Any) -> int:
    """How many messages wait or are in hand, the delayed ones too."""
    if isinstance(broker, PostgresBroker):
        return broker._size("default")
    names = [f"{broker.namespace}:default.msgs", f"{broker.namespace}:default.DQ.msgs"]
    return sum(broker.client.hlen(name) for name in names)


def broker_of(k: int) -> dramatiq.Broker:
    """The broker of this process. On a server: with messages of its own, as if it were one."""
    broker: Any = dramatiq.get_broker()
    if isinstance(broker, PostgresBroker):
        broker.worker_id, broker._prefix = str(uuid4()), f"{k}_"
        QUERIES.build_queries(broker._schema, broker._prefix)
        broker.create_tables()
        boundaries.forget()
    elif not isinstance(broker, StubBroker):
        broker.namespace, broker.broker_id = f"{broker.namespace}-{k}", str(uuid4())
    return broker


if __name__ == "__main__":
    sys.exit(main())
