"""What a start costs, beside a row and a message written by hand: `python benchmarks/starts.py`.

See docs/benchmarks.md for what is measured.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from inline import Child, answer, children, cpu_of
from steps import BROKER, FLOOR, environment_of, temporary_database


class Cost(NamedTuple):
    """Of one sequence, in microseconds: wall clock, and CPU of the thread and of PostgreSQL."""

    clock: float
    thread: float
    server: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ones", type=int, default=200, help="single starts of each round")
    parser.add_argument("--many", type=int, default=10_000, help="sequences started together")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        set_up()
        answer({"one": one, "many": many})
        return 0
    from testproject import services

    with (
        services.running("DATABASE_URL", "REDIS_URL") as urls,
        temporary_database(urls["DATABASE_URL"]) as url,
        children(Child(__file__, environment_of(urls, url))) as (child,),
    ):
        print(
            f"{'µs a sequence':34} {'clock':>7} {'ratio':>6} {'thread':>7} {'PostgreSQL':>11} "
            f"{'a second':>9}"
        )
        for what, count in (("one", options.ones), ("many", options.many)):
            rounds = measured(child, what, count, options.rounds)
            names = NAMES[what]
            for name, way in zip(names, (FLOOR, BROKER), strict=True):
                report(name, [each[way] for each in rounds], [each[FLOOR] for each in rounds])
    return 0


NAMES = {
    "one": ("objects.create() and send()", "start()"),
    "many": ("bulk_create() and send() for each", "start_many()"),
}


def measured(child: Child, what: str, count: int, rounds: int) -> list[dict[str, Cost]]:
    """Of each round the costs of both ways, which take turns in being the first."""
    rows = []
    for number in range(rounds + 1):
        ways = (FLOOR, BROKER) if number % 2 else (BROKER, FLOOR)
        rows.append({way: Cost(*child.ask(what, way, count)) for way in ways})
    return rows[1:]  # the first one warms up


def report(name: str, costs: list[Cost], floor: list[Cost]) -> None:
    clock, thread, server = (statistics.median(part) for part in zip(*costs, strict=True))
    ratio = statistics.median(a.clock / b.clock for a, b in zip(costs, floor, strict=True))
    print(
        f"{name:34} {clock:>7.0f} {ratio:>6.2f} {thread:>7.0f} {server:>11.0f} "
        f"{1e6 / clock:>9,.0f}",
        flush=True,
    )


# The process that starts them; nobody performs them.

CONTENDERS: dict[str, Any] = {}


def set_up() -> None:
    from steps import declare

    CONTENDERS.update(declare())
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(CONTENDERS[FLOOR].runs().model)


def one(way: str, count: int) -> Cost:
    """Each by itself."""
    return costs(CONTENDERS[way].start, count, count)


def many(way: str, count: int) -> Cost:
    """All by one call."""
    return costs(lambda: CONTENDERS[way].start_many(count), 1, count)


def costs(act: Callable[[], Any], times: int, sequences: int) -> Cost:
    import dramatiq

    dramatiq.get_broker().flush_all()
    before = used()
    for _ in range(times):
        act()
    after = used()
    return Cost(*((b - a) / sequences for a, b in zip(before, after, strict=True)))


def used() -> Cost:
    from django.db import connection

    connection.ensure_connection()
    server = cpu_of(connection.connection.info.backend_pid)
    return Cost(time.perf_counter_ns() / 1000, time.thread_time_ns() / 1000, server)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    sys.exit(main())
