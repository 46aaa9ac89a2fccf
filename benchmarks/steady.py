"""A worker under a steady load, with pruning and autovacuum: `python benchmarks/steady.py`.

See benchmarks/README.md for what is measured.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from inline import STEPS, Child, answer, children, cpu_of, declare, set_up
from steps import environment_of, temporary_database

#: Starts come in groups, so many a second.
GROUPS = 5
#: Finished runs are kept for so long, and pruned so often.
KEPT, PRUNE_SECONDS = timedelta(seconds=60), 20
MIB = 2**20

TABLES = """
SELECT sum(n_dead_tup), sum(pg_table_size(relid)), sum(pg_indexes_size(relid)),
    sum(n_tup_hot_upd), sum(n_tup_upd), sum(autovacuum_count)
FROM pg_stat_user_tables WHERE relname LIKE 'job\\_sequences\\_%'
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=1000, help="steps a second")
    parser.add_argument("--lines", type=int, default=20, help="to print, with as many steps each")
    parser.add_argument(
        "--idle-transaction", action="store_true", help="keep one open, from the third line on"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        set_up()
        functions = (autovacuum, start, prune, work, process, server, rows)
        answer({function.__name__: function for function in functions})
        return 0
    from testproject import services

    with (
        services.running("DATABASE_URL", "REDIS_URL") as urls,
        temporary_database(urls["DATABASE_URL"]) as url,
        ExitStack() as stack,
    ):
        environment = environment_of(urls, url)
        (starter,) = stack.enter_context(children(Child(__file__, environment)))
        if not starter.ask("autovacuum"):
            raise SystemExit("This PostgreSQL has autovacuum = off. Unset DATABASE_URL.")
        (worker,) = stack.enter_context(children(Child(__file__, environment)))
        Load(starter, worker, options.rate).run(options, url)
    return 0


class Load:
    """So many steps a second for one worker, and what they cost."""

    def __init__(self, starter: Child, worker: Child, rate: int) -> None:
        self._starter, self._worker = starter, worker
        self._group = rate // STEPS // GROUPS
        self._pruned_at = time.monotonic()

    def run(self, options: argparse.Namespace, url: str) -> None:
        self._worker.ask("work")
        print(
            f"{'':>10} {'µs of CPU a step':>20} {'dead':>9} {'auto-':>7} {'HOT':>7} {'MiB of':>7} "
            f"{'':>7} {'':>7} {'unfin-':>7}\n{'steps':>10} {'worker':>8} {'PostgreSQL':>11} "
            f"{'rows':>9} {'vacuums':>7} {'updates':>7} {'tables':>7} {'indexes':>7} {'worker':>7} "
            f"{'ished':>7}"
        )
        part = options.steps // options.lines
        with ExitStack() as stack:
            for number in range(1, options.lines + 1):
                if options.idle_transaction and number == 3:
                    stack.enter_context(idle_transaction(url))
                    print("… beside an idle transaction")
                print(f"{part * number:>10,} {self._part(part)}", flush=True)

    def _part(self, steps: int) -> str:
        before = self._used()
        self._feed(steps)
        after = self._used()
        worker, server = ((new - old) / steps for new, old in zip(after, before, strict=True))
        dead, tables, indexes, hot, updates, vacuums, unfinished = self._starter.ask("rows")
        _, memory = self._worker.ask("process")
        return (
            f"{worker:>8.0f} {server:>11.0f} {dead:>9,} {vacuums:>7} {hot / updates:>7.1%} "
            f"{tables / MIB:>7.0f} {indexes / MIB:>7.0f} {memory / MIB:>7.1f} {unfinished:>7,}"
        )

    def _feed(self, steps: int) -> None:
        began, groups = time.monotonic(), steps // STEPS // self._group
        for number in range(groups):
            self._starter.ask("start", self._group)
            if time.monotonic() > self._pruned_at + PRUNE_SECONDS:
                self._pruned_at = time.monotonic()
                self._starter.ask("prune")
            time.sleep(max(began + (number + 1) / GROUPS - time.monotonic(), 0))

    def _used(self) -> tuple[float, float]:
        return self._worker.ask("process")[0], self._starter.ask("server")


@contextmanager
def idle_transaction(url: str) -> Iterator[None]:
    """A session that has written something, and forgotten to commit."""
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("SELECT txid_current()")
        yield
        connection.rollback()


# In the processes that start, prune and work.


def autovacuum() -> bool:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SHOW autovacuum")
        return cursor.fetchone() == ("on",)


def start(count: int) -> None:
    declare()["direct"].start_many({"n": 0} for _ in range(count))


def prune() -> None:
    from sequences.engine import pruning

    pruning.prune(older_than=KEPT)


def work() -> None:
    import dramatiq

    declare()
    dramatiq.Worker(dramatiq.get_broker(), worker_threads=8).start()


def process() -> tuple[float, int]:
    """Microseconds of CPU and bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return time.process_time() * 1e6, pages * os.sysconf("SC_PAGE_SIZE")


def server() -> float:
    """Microseconds of CPU of all of PostgreSQL's processes, with those that have ended."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        parent = int(_stat(cursor.fetchone()[0])[1])
    # Of the parent's own children that it has waited for, in ticks: user and system time.
    ended = sum(int(ticks) for ticks in _stat(parent)[13:15]) / os.sysconf("SC_CLK_TCK") * 1e6
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return ended + sum(cpu_of(pid) for pid in (parent, *map(int, pids)))


def _stat(pid: int) -> list[str]:
    """The fields after the name of the process: its state, its parent …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def rows() -> list[int]:
    """What PostgreSQL counts of the tables, and the runs that have not ended."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(TABLES)
        counts = cursor.fetchone()
    return [*map(int, counts), declare()["direct"].runs.unfinished().count()]


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    sys.exit(main())
