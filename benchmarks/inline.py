"""Sequences that one thread executes, as a worker's thread does, without a broker.

What it costs is counted as CPU time, of this thread and of its session in PostgreSQL, which other
load of the machine changes less than the clock. Two databases, or two ways, take turns in small
parts: see `alternating`.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

STEPS = 5
#: Microseconds of CPU: of the thread, of PostgreSQL's session.
Costs = tuple[float, float]


def set_up() -> None:
    """Django, and the tables."""
    import django
    from django.conf import settings

    settings.DEBUG = False  # Django would keep every statement
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


@cache
def declare(steps: int = STEPS) -> dict[str, Any]:
    """A sequence of so many steps that add one to a number, by each handoff."""
    from sequences import Sequence, step

    def count(self: Any) -> None:
        self.data["n"] += 1

    classes = {}
    for handoff in ("broker", "direct"):
        meta = type("Meta", (), {"app_label": "inline", "handoff": handoff})
        functions = {f"step_{number}": step(count) for number in range(1, steps + 1)}
        classes[handoff] = type(
            f"{handoff.title()}{steps}", (Sequence,), {"Meta": meta, **functions}
        )
    return classes


class Thread:
    """Takes up the messages that were sent, until there are none."""

    def __init__(self) -> None:
        from sequences.engine import dispatcher

        self._capture = dispatcher.capture_dispatches()
        self._sent = self._capture.__enter__()

    def drain(self) -> None:
        import dramatiq
        from dramatiq.broker import MessageProxy

        from sequences.engine import dispatcher

        broker = dramatiq.get_broker()
        while self._sent:
            message = MessageProxy(dispatcher.message_for(self._sent.pop()))
            broker.emit_before("process_message", message)
            broker.get_actor(message.actor_name)(*message.args)
            broker.emit_after("process_message", message, result=None)

    def costs(self, act: Callable[[], Any]) -> Costs:
        """What this costs, altogether."""
        before = self._used()
        act()
        after = self._used()
        return after[0] - before[0], after[1] - before[1]

    def _used(self) -> Costs:
        from django.db import connection

        connection.ensure_connection()
        return time.thread_time_ns() / 1000, cpu_of(connection.connection.info.backend_pid)


def cpu_of(pid: int) -> float:
    """Microseconds of CPU that a process has used. Linux counts them in nanoseconds."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1000


# Parts that take turns.


def answer(questions: dict[str, Callable[..., Any]]) -> None:
    """Be asked by `Child`: a line of JSON for each question."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(questions[name](*arguments)), flush=True)


class Child:
    """A process of this benchmark that answers."""

    def __init__(self, script: str, environment: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, script, *arguments, "--child"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, text=True, **pipes
        )

    def ask(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A process of the benchmark has died; its own words stand above.")
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def children(*made: Child) -> Iterator[tuple[Child, ...]]:
    try:
        yield made
    finally:
        for child in made:
            child.end()


def alternating(asked: Iterable[Callable[[], Costs]], rounds: int) -> list[tuple[Costs, Costs]]:
    """Ask all of them in turn. Of each the median costs, and the median ratios to the first's."""
    asked = list(asked)
    rows: list[list[Costs]] = []
    for number in range(rounds + 1):
        order = list(range(len(asked)))
        if number % 2:
            order.reverse()
        answers = {index: asked[index]() for index in order}
        rows.append([tuple(answers[index]) for index in range(len(asked))])  # type: ignore[misc]
    rows = rows[1:]  # the first one warms up
    return [
        (_median(row[index] for row in rows), _median(_ratio(row, index) for row in rows))
        for index in range(len(asked))
    ]


def _ratio(row: list[Costs], index: int) -> Costs:
    (thread, server), (first_thread, first_server) = row[index], row[0]
    return thread / first_thread, server / first_server


def _median(costs: Iterable[Costs]) -> Costs:
    threads, servers = zip(*costs, strict=True)
    return statistics.median(threads), statistics.median(servers)
