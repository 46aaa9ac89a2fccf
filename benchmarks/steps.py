"""How fast steps follow each other, against a floor written by hand: `python benchmarks/steps.py`.

See benchmarks/README.md for what is measured, and for what it does not tell.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STEPS = 5
THREADS = 8
#: Seconds for anything that is waited for.
LIMIT = 300


def main() -> int:
    options = parse_arguments()
    if options.role == "worker":
        return work(options)
    if options.role == "driver":
        return drive(options)
    from testproject import services

    given = os.environ.get("DATABASE_URL", "")
    if given and not given.startswith("postgres"):
        raise SystemExit("DATABASE_URL must name a PostgreSQL server: the hot path is its own.")
    with (
        services.running("DATABASE_URL", "REDIS_URL") as urls,
        temporary_database(urls["DATABASE_URL"]) as database_url,
    ):
        environment = environment_of(urls, database_url) | {
            "PREPARE": "1" if options.prepare else "",
        }
        command = [sys.executable, __file__, *sys.argv[1:], "--role", "driver"]
        return subprocess.run(command, env=environment).returncode


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=300, help="of each round and contender")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=int, default=40, help="sequences that run alone")
    parser.add_argument("--threads", type=int, default=THREADS, help="of the worker process")
    parser.add_argument(
        "--prepare", action="store_true", help='with OPTIONS["prepare_threshold"], for all of them'
    )
    parser.add_argument("--only", choices=CONTENDERS, help="this contender")
    parser.add_argument("--role", choices=["driver", "worker"], help=argparse.SUPPRESS)
    parser.add_argument("--queue", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--together", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def environment_of(urls: dict[str, str], database_url: str) -> dict[str, str]:
    """That of the processes which measure: these servers, and a broker that is theirs alone."""
    return {
        **os.environ,
        "AMQP_URL": "",
        "REDIS_URL": urls["REDIS_URL"],
        "DATABASE_URL": database_url,
        "REDIS_NAMESPACE": f"benchmark-{uuid4().hex[:12]}",
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
    }


@contextmanager
def temporary_database(url: str) -> Iterator[str]:
    import psycopg
    from psycopg import sql

    from testproject import databases

    name = f"sequences_benchmark_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield databases.to_url(databases.from_url(url) | {"NAME": name})
        finally:
            statement = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(statement)


# The contenders. Each is a queue, and two ways to start its sequences.


class Contender:
    def __init__(
        self,
        start: Callable[[], Any],
        start_many: Callable[[int], Any],
        runs: Callable[[], Any],
    ) -> None:
        self.start, self.start_many, self.runs = start, start_many, runs

    def ended(self) -> int:
        return self.runs().filter(finished_at__isnull=False).count()


FLOOR, BROKER, DIRECT = CONTENDERS = ("floor", "broker", "direct")


def declare() -> dict[str, Contender]:
    """Set Django up, and declare what is compared."""
    import django
    from django.conf import settings

    settings.DEBUG = False  # Django would keep every statement
    if os.environ.get("PREPARE"):
        settings.DATABASES["default"]["OPTIONS"]["prepare_threshold"] = 5
    django.setup()
    return {FLOOR: declare_floor(), **declare_sequences()}


def declare_floor() -> Contender:
    """What one writes by hand: no guarantee at all."""
    import dramatiq
    from django.db import models
    from django.utils import timezone

    class FloorRun(models.Model):
        data = models.JSONField()
        created_at = models.DateTimeField()
        finished_at = models.DateTimeField(null=True)

        class Meta:
            app_label = "benchmark"

        def __str__(self) -> str:
            return str(self.pk)

    @dramatiq.actor(actor_name="floor", queue_name=FLOOR)
    def perform(pk: int, number: int) -> None:
        run = FloorRun.objects.get(pk=pk)
        run.data[f"step_{number}"] = time.time()
        if number == STEPS:
            run.finished_at = timezone.now()
            run.save(update_fields=["data", "finished_at"])
        else:
            run.save(update_fields=["data"])
            perform.send(pk, number + 1)

    def start() -> None:
        run = FloorRun.objects.create(data={"name": "Joel"}, created_at=timezone.now())
        perform.send(run.pk, 1)

    def start_many(count: int) -> None:
        runs = [FloorRun(data={"name": "Joel"}, created_at=timezone.now()) for _ in range(count)]
        for run in FloorRun.objects.bulk_create(runs):
            perform.send(run.pk, 1)

    return Contender(start, start_many, FloorRun.objects.all)


def declare_sequences() -> dict[str, Contender]:
    from sequences import Sequence, step

    class Broker(Sequence):
        class Meta:
            app_label = "benchmark"
            queue_name = BROKER

        @step
        def step_1(self):
            self.data["step_1"] = time.time()

        @step
        def step_2(self):
            self.data["step_2"] = time.time()

        @step
        def step_3(self):
            self.data["step_3"] = time.time()

        @step
        def step_4(self):
            self.data["step_4"] = time.time()

        @step
        def step_5(self):
            self.data["step_5"] = time.time()

    class Direct(Broker):
        class Meta:
            app_label = "benchmark"
            queue_name = DIRECT
            handoff = "direct"

    return {BROKER: contender_of(Broker), DIRECT: contender_of(Direct)}


def contender_of(cls: Any) -> Contender:
    def start() -> None:
        cls.start({"name": "Joel"})

    def start_many(count: int) -> None:
        cls.start_many({"name": "Joel"} for _ in range(count))

    return Contender(start, start_many, lambda: cls.runs)


# The worker process.


def work(options: argparse.Namespace) -> int:
    """Be a worker of one queue until so many of its sequences have ended; print what it took."""
    contender = declare()[options.queue]
    import dramatiq
    from dramatiq import Worker

    # Without a count: one sequence after the other, whose queries are counted.
    queries = None if options.until else QueryCount()
    worker = Worker(dramatiq.get_broker(), queues={options.queue}, worker_threads=options.threads)
    if options.together:  # with others, once all of them are ready
        print(flush=True)
        sys.stdin.readline()
    began, cpu = time.perf_counter(), time.process_time()
    worker.start()
    if options.until:
        wait_for(lambda: contender.ended() >= options.until)
    else:
        sys.stdin.read()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    worker.stop()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "queries": queries and queries.count}))
    return 0


class QueryCount:
    """Counts the statements of the threads that perform steps."""

    def __init__(self) -> None:
        from django.db.backends.signals import connection_created

        self.count = 0
        self.lock = threading.Lock()
        connection_created.connect(self.watch)

    def watch(self, connection: Any, **kwargs: Any) -> None:
        if connection.execute_wrappers:
            return
        name = threading.current_thread().name
        if name != "MainThread" and not name.startswith("sequences-"):
            connection.execute_wrappers.append(self.execute)

    def execute(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        with self.lock:
            self.count += 1
        return execute(sql, params, many, context)


def wait_for(condition: Callable[[], bool], pause: float = 0.02) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"Not done after {LIMIT} seconds.")
        time.sleep(pause)


def worker_command(queue: str, options: argparse.Namespace, *arguments: str) -> list[str]:
    base = [sys.executable, __file__, "--role", "worker", "--queue", queue]
    return [*base, "--threads", str(options.threads), *arguments]


# What is measured.


class Rate(NamedTuple):
    per_second: float
    #: Milliseconds of the worker process's CPU for each step: hardly changed by other load.
    cpu: float

    @classmethod
    def of(cls, report: dict[str, Any], steps: int) -> "Rate":
        return cls(steps / report["seconds"], report["cpu"] * 1000 / steps)

    def __str__(self) -> str:
        return f"{self.per_second:6.0f} steps/s {self.cpu:6.2f} ms CPU a step"


def drive(options: argparse.Namespace) -> int:
    contenders = declare()
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(contenders[FLOOR].runs().model)
    import dramatiq

    chosen = {options.only: contenders[options.only]} if options.only else contenders
    try:
        report_throughput(throughput(chosen, options), options)
        report_alone({name: alone(name, one, options) for name, one in chosen.items()})
        # Last: nobody performs these.
        report_starts({name: starts(one) for name, one in chosen.items()})
    finally:
        dramatiq.get_broker().flush_all()
    return 0


def throughput(
    contenders: dict[str, Contender], options: argparse.Namespace
) -> "dict[str, list[Rate]]":
    """Of each contender one round after the other, in an order that rotates."""
    rates: dict[str, list[Rate]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(options.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            contenders[name].start_many(options.sequences)
            until = str(contenders[name].ended() + options.sequences)
            command = worker_command(name, options, "--until", until)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rates[name].append(Rate.of(json.loads(done.stdout), options.sequences * STEPS))
            progress(f"round {number + 1}: {name} {rates[name][-1]}")
    return rates


def starts(contender: Contender, count: int = 200) -> tuple[float, float]:
    """Milliseconds to start one; and for each of many."""
    contender.start()
    times = [duration(contender.start) for _ in range(count)]
    many = duration(lambda: contender.start_many(1000)) / 1000
    return statistics.median(times), many


def duration(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def alone(
    name: str, contender: Contender, options: argparse.Namespace
) -> tuple[float, list[tuple[float, float]]]:
    """Queries of a step; and of each sequence the milliseconds to its end, from its start and
    from its first step."""
    import dramatiq

    dramatiq.get_broker().flush_all()
    before = contender.ended()
    command = worker_command(name, options)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as worker:
        for number in range(options.alone + 1):
            contender.start()
            wait_for(lambda count=before + number + 1: contender.ended() >= count)
        output, _ = worker.communicate()
    ended = contender.runs().filter(finished_at__isnull=False).order_by("-pk")
    # Without the first one, which has waited for the worker to start.
    rows = ended.values_list("created_at", "finished_at", "data")[: options.alone]
    times = [
        ((end - start).total_seconds() * 1000, (end.timestamp() - data["step_1"]) * 1000)
        for start, end, data in rows
    ]
    return json.loads(output)["queries"] / (options.alone + 1) / STEPS, times


# What is printed.


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report_throughput(rates: dict[str, list[Rate]], options: argparse.Namespace) -> None:
    print(
        f"\nThroughput: sequences of {STEPS} steps, {options.sequences} in a round, "
        f"{options.rounds} rounds, one process of {options.threads} threads"
        + (", prepared statements" if options.prepare else "")
    )
    for name, values in rates.items():
        typical = Rate(*map(statistics.median, zip(*values, strict=True)))
        print(f"  {name:8}{typical}{ratios(values, rates.get(FLOOR))}")


def ratios(values: list[Rate], floor: list[Rate] | None) -> str:
    """Of each round to the floor's in the same one."""
    if not floor:
        return ""
    speed = [one.per_second / other.per_second for one, other in zip(values, floor, strict=True)]
    cpu = [one.cpu / other.cpu for one, other in zip(values, floor, strict=True)]
    return (
        f"   {statistics.median(speed):5.2f} x the floor's speed "
        f"({min(speed):.2f} to {max(speed):.2f}), {statistics.median(cpu):.2f} x its CPU"
    )


def report_starts(times: dict[str, tuple[float, float]]) -> None:
    print("\nStarting a sequence")
    for name, (one, many) in times.items():
        print(f"  {name:8}{one:8.2f} ms   {many:6.3f} ms each of 1,000 at once")


def report_alone(results: dict[str, tuple[float, list[tuple[float, float]]]]) -> None:
    print("\nOne sequence alone: milliseconds, median and 95th percentile")
    for name, (queries, times) in results.items():
        whole, performing = map(spread, zip(*times, strict=True))
        print(
            f"  {name:8}{whole} from its start   {performing} from its first step   "
            f"{queries:.1f} queries a step"
        )


def spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):7.1f} {percentile(times, 95):7.1f}"


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(main())
