"""What a million rows in the tables change: `python benchmarks/tables.py finished timers prune`.

See docs/benchmarks.md for what is measured.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from inline import Child, Thread, alternating, answer, children, cpu_of, declare, set_up
from steps import environment_of, temporary_database

#: What one part of the hot path does, and of how many runs.
PART, PARTS = 20, 12
WAYS = ("broker", "direct")

# Rows by one statement for each table: through the API it would take hours.

RUNS = """
INSERT INTO job_sequences_sequencerun (id, plan_id, sequence, key_scope, releases_key, status,
    final_status, data, version, inbox, created_at, updated_at, finished_at, priority, traceparent)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
    %(plan)s, %(sequence)s, '', false, %(status)s, '', jsonb_build_object('n', n), 5, '{}',
    at, at, CASE WHEN %(status)s = 'succeeded' THEN at END, 0, ''
FROM (
    SELECT n, now() - interval '90 days' + n * interval '60 days' / %(runs)s AS at
    FROM generate_series(1, %(runs)s) n
) made ORDER BY n
"""

FINISHED = """
INSERT INTO job_sequences_steprun (run_id, step, item, kind, status, attempts, lost_workers,
    repeats, dispatches, delay_evaluated, worker, ready_at, queued_at, started_at, finished_at)
SELECT run.id, 'step_' || k, -1, 'step', 'succeeded', 0, 0, 0, 0, false, 'box:1:Thread-1',
    created_at, created_at, created_at, created_at
FROM job_sequences_sequencerun run CROSS JOIN generate_series(1, 5) k WHERE run.plan_id = %(plan)s
ORDER BY run.id, k
"""

WAITING = """
INSERT INTO job_sequences_steprun (run_id, step, item, kind, status, wait, waiting_since,
    attempts, lost_workers, repeats, dispatches, delay_evaluated, worker, ready_at, queued_at,
    due_at, wake_at)
SELECT id, 'step_1', -1, 'step', 'waiting', 'time', created_at, 0, 0, 0, 0, false, '',
    created_at, created_at, due, due
FROM (
    SELECT run.id, run.created_at,
        now() + interval '1 day' + random() * interval '30 days' AS due
    FROM job_sequences_sequencerun run WHERE run.plan_id = %(plan)s ORDER BY run.id
) made
"""

#: So many of them fall due one after the other, within as many seconds.
FALL_DUE = """
UPDATE job_sequences_steprun SET due_at = now() + n * %(seconds)s * interval '1 second' / %(count)s,
    wake_at = now() + n * %(seconds)s * interval '1 second' / %(count)s
FROM (
    SELECT id, row_number() OVER () AS n FROM (
        SELECT id FROM job_sequences_steprun WHERE wake_at IS NOT NULL
        ORDER BY wake_at DESC LIMIT %(count)s) latest
) chosen WHERE job_sequences_steprun.id = chosen.id
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=30, help="that a worker idles")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        set_up()
        answer(questions())
        return 0
    from testproject import services

    with services.running("DATABASE_URL", "REDIS_URL") as urls:
        for name in options.what or SUBJECTS:
            SUBJECTS[name](urls, options)
    return 0


def child(urls: dict[str, str], database_url: str) -> Child:
    return Child(__file__, environment_of(urls, database_url))


# The hot path beside finished runs.


def finished(urls: dict[str, str], options: argparse.Namespace) -> None:
    url = urls["DATABASE_URL"]
    with (
        temporary_database(url) as empty,
        temporary_database(url) as full,
        children(child(urls, empty), child(urls, full)) as (one, other),
    ):
        seconds = other.ask("fill", options.rows, "succeeded")
        print(f"\n{options.rows:,} finished runs of five steps, filled in {seconds:.0f} s")
        print(f"{'µs of CPU':24} {'thread':>8} {'ratio':>7} {'PostgreSQL':>11} {'ratio':>7}")
        for what in ("start", *WAYS):
            asked = [lambda at=at: at.ask("part", what) for at in (one, other)]  # noqa: B023
            _, (costs, ratios) = alternating(asked, PARTS)
            print(
                f"{'a ' + what if what == 'start' else 'a step, ' + what:24} {costs[0]:>8.0f} "
                f"{ratios[0]:>7.3f} {costs[1]:>11.0f} {ratios[1]:>7.3f}",
                flush=True,
            )


def fill(rows: int, status: str) -> float:
    """Rows of runs that have ended, or wait; how many seconds it took."""
    from django.db import connection

    from sequences.transitions import plans

    began = time.perf_counter()
    plan = declare()["broker"]._definition.plan
    values = {
        "plan": plans.store(plan, "default"),
        "sequence": plan.sequence,
        "runs": rows,
        "status": status,
    }
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute(RUNS, values)
        cursor.execute(FINISHED if status == "succeeded" else WAITING, values)
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("RESET synchronous_commit")
    return time.perf_counter() - began


@cache
def thread() -> Thread:
    return Thread()


def start(cls: Any) -> None:
    for _ in range(PART):
        cls.start({"n": 0})


def part(what: str) -> tuple[float, float]:
    """One part of the hot path: what each start or each step costs."""
    if what == "start":
        costs, count = thread().costs(lambda: start(declare()["broker"])), PART
        thread().drain()
    else:
        thread()  # which takes the messages from here on
        start(declare()[what])
        costs, count = thread().costs(thread().drain), PART * 5
    return costs[0] / count, costs[1] / count


# The sweep beside timers.


def timers(urls: dict[str, str], options: argparse.Namespace) -> None:
    with (
        temporary_database(urls["DATABASE_URL"]) as database_url,
        children(child(urls, database_url)) as (one,),
    ):
        print("\nA worker that has nothing to do, in % of a core")
        print(f"{'timers':>12} {'worker':>8} {'PostgreSQL':>11}")
        for rows in (0, options.rows):
            if rows:
                one.ask("fill", rows, "running")
            worker, server = one.ask("idle", options.seconds)
            print(f"{rows:>12,} {worker:>8.2f} {server:>11.2f}", flush=True)
        interval, late = one.ask("fall_due", 200, options.seconds)
        print(
            f"200 of them fall due within {options.seconds:.0f} s, with a sweep every {interval:g} "
            f"s: {statistics.median(late):.2f} s late (median), {max(late):.2f} s at the most"
        )


class Worker:
    """A worker of this process, with its sweep."""

    def __enter__(self) -> "Worker":
        import dramatiq

        self._worker = dramatiq.Worker(dramatiq.get_broker(), worker_threads=8)
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()


def idle(seconds: float) -> tuple[float, float]:
    declare()
    with Worker():
        time.sleep(5)
        before = time.process_time(), sessions()
        time.sleep(seconds)
        after = time.process_time(), sessions()
    worker, server = (after[0] - before[0], (after[1] - before[1]) / 1e6)
    return worker / seconds * 100, server / seconds * 100


def sessions() -> float:
    """Microseconds of CPU of all sessions of this database."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        return sum(cpu_of(pid) for (pid,) in cursor.fetchall())


def fall_due(count: int, seconds: float) -> tuple[float, list[float]]:
    """The seconds between two sweeps, and how late each began."""
    from django.db import connection

    from sequences import conf
    from sequences.models import StepRun

    declare()
    with Worker():
        time.sleep(5)  # a worker looks around before it sweeps
        with connection.cursor() as cursor:
            cursor.execute(FALL_DUE, {"count": count, "seconds": seconds})
        chosen = StepRun.objects.filter(wake_at__isnull=False).order_by("wake_at")
        due = dict(chosen.values_list("pk", "due_at")[:count])
        began = StepRun.objects.filter(pk__in=due, started_at__isnull=False)
        until = time.monotonic() + seconds + 60
        while began.count() < count and time.monotonic() < until:
            time.sleep(1)
    late = [(at - due[pk]).total_seconds() for pk, at in began.values_list("pk", "started_at")]
    if len(late) < count:
        raise SystemExit(f"Only {len(late)} of {count} have begun.")
    interval = conf.settings.sweep_interval
    return getattr(interval, "total_seconds", lambda: interval)(), late


# Pruning.


def prune(urls: dict[str, str], options: argparse.Namespace) -> None:
    with (
        temporary_database(urls["DATABASE_URL"]) as database_url,
        children(child(urls, database_url)) as (one,),
    ):
        one.ask("fill", options.rows, "succeeded")
        before = one.ask("size")
        runs, seconds, thread, server, longest, log = one.ask("prune")
        print(
            f"\n{runs:,} of {options.rows:,} runs of five steps pruned in {seconds:.0f} s: "
            f"{runs / seconds:,.0f} runs, {runs * 6 / seconds:,.0f} rows a second\n"
            f"CPU µs a run: {thread / runs:.0f} of the process, {server / runs:.0f} of PostgreSQL. "
            f"{log / runs:,.0f} bytes of WAL a run.\n"
            f"The longest transaction held its locks for {longest:.2f} s.",
            flush=True,
        )
        dead, after = one.ask("dead"), one.ask("size")
        seconds = one.ask("vacuum")
        print(
            f"Left behind: {dead:,} dead rows; autovacuum had removed the others. VACUUM took "
            f"{seconds:.0f} s.\nTables and indexes: {before / MIB:,.0f} MiB before, "
            f"{after / MIB:,.0f} MiB after, {one.ask('size') / MIB:,.0f} MiB after VACUUM, to be "
            f"filled again."
        )


MIB = 2**20


def size() -> int:
    return asked(
        "SELECT pg_total_relation_size('job_sequences_sequencerun') + "
        "pg_total_relation_size('job_sequences_steprun')"
    )


def dead() -> int:
    """Rows that are deleted, and take room still."""
    return asked(
        "SELECT sum(n_dead_tup) FROM pg_stat_user_tables "
        "WHERE relname IN ('job_sequences_sequencerun', 'job_sequences_steprun')"
    )


def vacuum() -> float:
    began = time.perf_counter()
    for table in ("sequencerun", "steprun"):
        execute(f"VACUUM job_sequences_{table}")
    return time.perf_counter() - began


def asked(statement: str) -> int:
    return int(execute(statement).fetchone()[0])


def execute(statement: str) -> Any:
    from django.db import connection

    cursor = connection.cursor()
    cursor.execute(statement)
    return cursor


def prune_all() -> tuple[int, float, float, float, float, int]:
    """Those of the first nine tenths of the days."""
    from datetime import timedelta

    from sequences.engine import pruning
    from sequences.transitions import pruning as transactions

    longest = 0.0
    remove = transactions.remove

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal longest
        began = time.perf_counter()
        try:
            return remove(*arguments, **options)
        finally:
            longest = max(longest, time.perf_counter() - began)

    transactions.remove = timed
    began = time.perf_counter()
    removed = []
    log = asked("SELECT pg_current_wal_lsn() - '0/0'")
    costs = thread().costs(lambda: removed.append(pruning.prune(older_than=timedelta(days=36))))
    seconds, log = time.perf_counter() - began, asked("SELECT pg_current_wal_lsn() - '0/0'") - log
    time.sleep(2)  # so long PostgreSQL's counts may lag behind
    return removed[0].runs.total(), seconds, *costs, longest, log


SUBJECTS: dict[str, Callable[[dict[str, str], argparse.Namespace], None]] = {
    "finished": finished,
    "timers": timers,
    "prune": prune,
}


def questions() -> dict[str, Callable[..., Any]]:
    return {
        "fill": fill,
        "part": part,
        "idle": idle,
        "fall_due": fall_due,
        "size": size,
        "dead": dead,
        "vacuum": vacuum,
        "prune": prune_all,
    }


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    sys.exit(main())
