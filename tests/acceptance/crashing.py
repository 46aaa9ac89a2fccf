"""A worker that dies at every boundary in turn, and a fresh one that goes on: a program.

`python -m tests.acceptance.crashing app.Sequence` performs the sequence once, counting the
boundaries that it passes: before and after each SQL statement, commit and rollback, each publish,
each acknowledgement. For each of them it performs the sequence anew, in a process of its own that
dies right there. At last a fresh worker with a sweep ends what they have left.

It prints the boundaries as JSON. The run that died at number k has `data["k"] == k`.
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import django
import dramatiq
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from dramatiq import Middleware, Worker
from dramatiq.brokers.stub import StubBroker

if __name__ == "__main__":
    django.setup()

from sequences import conf, registry, traffic  # (Django is ready now)
from sequences.models import SequenceRun
from tests.acceptance.app.sequences import start_kept

DIED = 9
#: Seconds for anything that is waited for.
LIMIT = 60


class Boundaries(Middleware):
    """Counts the boundaries that this process passes, and dies at number `last`."""

    def __init__(self) -> None:
        self.last: int | None = None
        # The heartbeat comes when it comes: all else happens in the same order every time.
        self.ignored = "sequences-"
        self.passed: list[str] = []
        self._lock = threading.Lock()

    def install(self) -> None:
        connection_created.connect(self._wrap, weak=False)
        for name in ("_commit", "_rollback"):
            setattr(BaseDatabaseWrapper, name, self._both_sides(getattr(BaseDatabaseWrapper, name)))
        dramatiq.get_broker().add_middleware(self)

    def passes(self, name: str) -> None:
        if threading.current_thread().name.startswith(self.ignored):
            return
        with self._lock:
            self.passed.append(name)
            if len(self.passed) == self.last:
                os._exit(DIED)

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


boundaries = Boundaries()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sequence")
    parser.add_argument("--every", type=int, default=1, help="of the SQL boundaries, this many-th")
    parser.add_argument("--deaths", type=int, default=0, help="of fresh workers, one by one")
    options = parser.parse_args()
    connections.close_all()
    boundaries.install()
    # The first run writes the plan, too.
    names = [Forked(perform, options.sequence, 0).end() for _ in range(2)][1]
    died = chosen(names, options.every)
    for k in died:
        Forked(perform, options.sequence, k).end()
    deaths = sum(not Forked(recover, 0, 10 * 2**n).end() for n in range(options.deaths))
    # A broker in memory has died with each of them; in Redis each has left its own messages.
    in_memory = isinstance(dramatiq.get_broker(), StubBroker)
    fresh = [Forked(recover, k) for k in ([0] if in_memory else died)]
    for worker in fresh:
        worker.end()
    json.dump({"boundaries": names, "died": died, "deaths": deaths}, sys.stdout)
    return 0


def chosen(names: list[str], every: int) -> list[int]:
    return [
        number
        for number, name in enumerate(names, start=1)
        if number % every == 0 or "publish" in name or "acknowledge" in name
    ]


class Forked:
    """A process of its own that does this, and ends."""

    def __init__(self, play: Callable[..., list[str]], *arguments: Any) -> None:
        self._pipe, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            status = 1
            try:
                os.write(writing, json.dumps(play(*arguments)).encode())
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)

    def end(self) -> list[str]:
        """What it returned; nothing if it died at its boundary."""
        with os.fdopen(self._pipe) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        if status not in (0, DIED):
            raise SystemExit(f"A process ended with status {status}.")
        return json.loads(text) if text else []


def perform(label: str, k: int) -> list[str]:
    """Start the sequence, and perform it until its end, or its death at boundary `k`."""
    conf.settings.sweep_interval = None
    broker = broker_of(k)
    boundaries.last = k or None
    start = start_kept if label == "kept" else registry.get(label).start
    start({"k": k, "log": []})
    boundaries.passes("started")
    worker = Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    broker.join("default", timeout=LIMIT * 1000)
    worker.stop()
    if k:
        raise SystemExit(f"It passed {len(boundaries.passed)} boundaries, and not {k}.")
    return boundaries.passed


def recover(k: int, last: int | None = None) -> list[str]:
    """Be a fresh worker until every run has ended, or until death at boundary `last`."""
    broker = broker_of(k)
    boundaries.last, boundaries.ignored = last, threading.main_thread().name
    traffic.DRAINED = 0.3 if isinstance(broker, StubBroker) else 1.5
    worker = Worker(broker, worker_threads=1, worker_timeout=20)
    worker.start()
    until = time.monotonic() + LIMIT
    while SequenceRun.objects.unfinished().exists() and time.monotonic() < until:
        time.sleep(0.05)
    worker.stop()
    return ["alive"]


def broker_of(k: int) -> dramatiq.Broker:
    """The broker of this process. A Redis broker: with messages of its own, as if it were one."""
    broker: Any = dramatiq.get_broker()
    if not isinstance(broker, StubBroker):
        broker.namespace, broker.broker_id = f"{broker.namespace}-{k}", str(uuid4())
    return broker


if __name__ == "__main__":
    sys.exit(main())
