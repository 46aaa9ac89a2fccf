"""The test suite, on several databases.

    make test ARGS="[--quick] [--only NAME] [options of pytest]"

Starts PostgreSQL and Valkey, unless DATABASE_URL and REDIS_URL name other servers. Uses MariaDB or
MySQL (MYSQL_URL) and RabbitMQ (AMQP_URL) if they are running. `portable` is PostgreSQL with the
statements that all other databases get. Parts that start no workers run two at a time; at the same
time, those that do run two at a time, because they mostly wait. After a failure, no other part
starts. `--quick` is for use while you work on a change: no workers, SQLite, and locks, races and
statements on PostgreSQL.

Two parts, locks, races and statements on PostgreSQL and the quick one on SQLite, measure which
lines and branches of the package the tests reach. The whole suite fails if that is less than
`fail_under` in pyproject.toml.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from uuid import uuid4

import pika
import psycopg
import pymysql
import pytest

from testproject import databases, services
from tests.progress import Progress, minutes

MYSQL_URL = "mysql://root@127.0.0.1:3306/mysql"
AMQP_URL = "amqp://guest:guest@127.0.0.1:5672"


@dataclass(frozen=True)
class Part:
    """Some of the tests, by the arguments that pytest takes for them."""

    arguments: tuple[str, ...]
    starts_workers: bool = False
    #: All tests there share one queue, so one such part at a time.
    uses_rabbitmq: bool = False


def ignored(*names: str) -> tuple[str, ...]:
    return tuple(f"--ignore-glob=tests/{name}" for name in names)


def only(*names: str) -> tuple[str, ...]:
    """Leave out all other files. Paths would add to those that a person asks for."""
    files = sorted(Path(__file__).parent.glob("*/test_*.py"))
    others = [
        file for file in files if not any(fnmatch(file.name, f"test_{name}.py") for name in names)
    ]
    return ignored(*(f"{file.parent.name}/{file.name}" for file in others))


#: What neither takes long nor starts workers: two of these at a time.
QUICK = Part(("-m", "not slow", *ignored("acceptance", "browser")))
#: All the rest, which starts workers: on PostgreSQL, which several of them can share; the death of
#: one on SQLite too.
REST = Part(("--rest",), starts_workers=True, uses_rabbitmq=True)
#: Its two halves: workers that die, on RabbitMQ and Redis; and the others, which need no RabbitMQ.
DEATHS = ("databases", "deploys", "suspects", "workers")
KILLS = Part((*REST.arguments, *only(*DEATHS)), starts_workers=True, uses_rabbitmq=True)
LIVES = Part(
    (*REST.arguments, *ignored(*(f"*/test_{name}.py" for name in DEATHS))), starts_workers=True
)
#: What touches no database says the same beside each: only SQLite's part has it.
DATABASE = Part((*QUICK.arguments, "--database-only"))
#: What shows runs to people writes none, and asks the same of each database.
SHOWN = ("actions", "admin*", "command", "diagnosis", "docs", "drawing*", "pages", "quickstart")
SHOWN += ("event_forms", "family", "languages", "limit_console", "on_hold", "phases", "reference")
SHOWN += ("run_diagrams", "secrets", "snapshot", "status")
ENGINE = Part((*DATABASE.arguments, *ignored(*(f"*/test_{name}.py" for name in SHOWN))))
#: What asks hardly anything of PostgreSQL that SQLite does not answer alike.
ALIKE = ("characters", "compose", "durations", "events", "exceptions", "fan_out", "flows", "health")
ALIKE += ("jobs", "kinds", "logs", "operations", "outages", "properties", "pruning", "rules")
ALIKE += ("signals", "steps", "subsequences", "telemetry", "testing", "typed", "typed_data")
ALIKE += ("undo", "undo_trees", "user_cases", "any_of", "async_steps", "cancellation", "causes")
ALIKE += ("crowds", "deadlines", "ends", "flow_sources", "limits", "limit_properties", "once")
ALIKE += ("operations_*", "retries", "run_limits", "schedules", "step_data", "step_options")
ALIKE += ("step_retries", "step_timing", "step_transactions", "waits")
#: Locks, races, connections and statements.
SQL = Part((*ENGINE.arguments, *ignored(*(f"*/test_{name}.py" for name in ALIKE))))
#: What people do, limits, schedules and deadlines lock rows, too, each database in its own way.
LOCKING = {"deadlines", "limits", "limit_properties", "operations_*", "run_limits", "schedules"}
LOCKS = Part(
    (*ENGINE.arguments, *ignored(*(f"*/test_{name}.py" for name in ALIKE if name not in LOCKING)))
)
#: Pages that take long, and say the same of the same rows. How they find these is asked of both.
PAGES = ("actions", "command", "diagnosis", "docs", "drawing*", "event_forms", "languages")
PAGES += ("limit_console", "on_hold", "pages", "phases", "quickstart", "reference", "run_diagrams")
ROWS = Part((*DATABASE.arguments, *only(*ALIKE, *(name for name in SHOWN if name not in PAGES))))
#: Without what opens many pages, which takes most of the time.
BRIEF = Part(
    (*QUICK.arguments, *ignored("*/test_languages.py", "*/test_admin*", "*/test_actions.py"))
)
#: With the seconds that each takes on two cores that do nothing else, beside another part or alone.
CHOICES = {
    "mysql": {LOCKS: 150},
    "postgresql": {SQL: 110, ROWS: 220, KILLS: 400, LIVES: 400},
    "sqlite": {QUICK: 400, REST: 120},
    # Every statement of other databases is tested on MariaDB and SQLite, too.
    "portable": {SQL: 60},
}
#: What a change needs while it is made; with `--only`, all that this database has without workers.
QUICK_CHOICES = {"postgresql": {SQL: 60}, "sqlite": {BRIEF: 180}}
ALSO = {QUICK: 400, SQL: 40}
#: The parts that measure: the fast statements are in one of them, the pages in the other.
MEASURED = {("postgresql", SQL), ("sqlite", QUICK)}
AT_A_TIME = 2


@dataclass(frozen=True)
class Leg:
    """The suite, or a part of it, on one database under one interpreter."""

    vendor: str
    part: Part
    seconds: int
    python: str = sys.executable

    @property
    def is_measured(self) -> bool:
        return (self.vendor, self.part) in MEASURED

    def __str__(self) -> str:
        part = ", with workers" if self.part.starts_workers else ""
        part += " that die" if self.part is KILLS else ""
        own = self.python == sys.executable
        return f"{self.vendor}{part}" if own else f"{self.vendor}, {version_of(self.python)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", choices=CHOICES, help="only this database")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="about three minutes: no workers, SQLite and PostgreSQL",
    )
    parser.add_argument(
        "--also", metavar="PYTHON", action="append", default=[],
        help="also run the quick part on SQLite with this interpreter of another environment",
    )  # fmt: skip
    parser.add_argument(
        "--also-database", metavar="PYTHON", action="append", default=[],
        help="also test locks, races and statements on SQLite with this interpreter",
    )  # fmt: skip
    options, arguments = parser.parse_known_args()
    choices = choices_for(options.only, quick=options.quick)
    vendors = list(choices)
    absent = absent_services(vendors, workers=not options.quick)
    for service, reason in absent.items():
        print(f"Skipping the tests that need {service}: {reason}", flush=True)
    if absent and os.environ.get("CI"):
        print("A missing service is a failure, because CI is set.")
        return 1
    if "MariaDB" in absent:
        vendors.remove("mysql")
    legs = [
        Leg(vendor, part, seconds)
        for vendor in vendors
        for part, seconds in choices[vendor].items()
        if (vendor, part) != ("sqlite", QUICK) or not options.also  # it is run there
    ]
    legs += [Leg("sqlite", QUICK, ALSO[QUICK], python) for python in options.also]
    legs += [Leg("sqlite", SQL, ALSO[SQL], python) for python in options.also_database]
    return run_all(legs, arguments, amqp="RabbitMQ" not in absent)


def choices_for(only: str | None, *, quick: bool) -> dict[str, dict[Part, int]]:
    if only is None:
        return QUICK_CHOICES if quick else CHOICES
    parts = CHOICES[only].items()
    return {
        only: {part: seconds for part, seconds in parts if not quick or not part.starts_workers}
    }


def absent_services(vendors: list[str], *, workers: bool) -> dict[str, str]:
    """The services that are needed and do not answer, and why."""
    needs = {"MariaDB": connect_mysql} if "mysql" in vendors else {}
    needs |= {"RabbitMQ": connect_rabbitmq} if workers else {}
    reasons = {service: unusable(connect) for service, connect in needs.items()}
    return {service: reason for service, reason in reasons.items() if reason}


def run_all(legs: list[Leg], arguments: list[str], *, amqp: bool) -> int:
    names = ["REDIS_URL"]
    if {"postgresql", "portable"} & {leg.vendor for leg in legs} and not given_postgresql():
        os.environ.pop("DATABASE_URL", None)
        names.append("DATABASE_URL")
    lanes = lanes_of(legs)
    if not arguments:
        print(f"On two idle cores, this takes {minutes(max(lane.seconds for lane in lanes))}.")
    with services.running(*names) as urls, tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "TEST_REDIS_URL": urls["REDIS_URL"]}
        if amqp:
            environment["TEST_AMQP_URL"] = amqp_url()
        postgresql = urls.get("DATABASE_URL") or given_postgresql()
        database_urls = {
            "sqlite": f"sqlite:///{directory}/main.sqlite3",
            "mysql": mysql_url(),
            "portable": postgresql,
            "postgresql": postgresql,
        }
        with interrupts_passed_on() as processes:
            # Only of the whole suite: a part of it, or a few tests, reach little.
            measures = not arguments and sum(leg.is_measured for leg in legs) == len(MEASURED)
            suite = Suite(
                environment, database_urls, Path(directory), arguments, processes, measures
            )
            return suite.run(lanes) or suite.check_coverage()


@dataclass(frozen=True)
class Lane:
    """Parts of which so many run at a time; beside other lanes."""

    legs: list[Leg]
    at_a_time: int

    @property
    def seconds(self) -> float:
        return sum(leg.seconds for leg in self.legs) / self.at_a_time


def lanes_of(legs: list[Leg]) -> list[Lane]:
    """Two at a time of what computes. Beside them, two that wait for workers, one on RabbitMQ."""
    computing = [leg for leg in legs if not leg.part.starts_workers]
    queueing = [leg for leg in legs if leg.part.uses_rabbitmq]
    waiting = [leg for leg in legs if leg.part.starts_workers and not leg.part.uses_rabbitmq]
    lanes = [Lane(computing, at_a_time()), Lane(queueing, 1), Lane(waiting, 1)]
    return [lane for lane in lanes if lane.legs]


def at_a_time() -> int:
    return min(AT_A_TIME, len(os.sched_getaffinity(0)))


@dataclass
class Suite:
    """Runs legs until one has failed."""

    environment: dict[str, str]
    database_urls: dict[str, str]
    directory: Path
    arguments: list[str]
    processes: list["subprocess.Popen[bytes]"]
    measures: bool
    failed: int = field(default=0, init=False)

    def run(self, lanes: list[Lane]) -> int:
        """All lanes beside each other. What a part has to say is held back until it has ended."""
        legs = [leg for lane in lanes for leg in lane.legs]
        coverage("erase")
        if len(legs) == 1:
            self._run(legs[0], None)
            return self.failed
        progress = Progress(legs, max(lane.seconds for lane in lanes))
        print(f"\nIn this order, several at a time: {'; '.join(map(str, legs))}", flush=True)
        with ExitStack() as pools, progress.shown():
            outputs = []
            for lane in lanes:
                pool = pools.enter_context(ThreadPoolExecutor(lane.at_a_time))
                outputs += [pool.submit(self._run_quietly, leg, progress) for leg in lane.legs]
            for output in as_completed(outputs):
                progress.say(output.result())
        return self.failed

    def _run_quietly(self, leg: Leg, progress: Progress) -> str:
        if self.failed:
            return f"\nOn {leg}: not started.\n"
        output = progress.outputs[leg] = self.directory / f"{uuid4().hex}.txt"
        with output.open("w") as file:
            # Two that write the cache of the last failures at once would spoil it.
            self._run(leg, file.fileno(), "-p", "no:cacheprovider")
        progress.ended.add(leg)
        return f"\nOn {leg}:\n{output.read_text(errors='replace')}"

    def _run(self, leg: Leg, output: int | None, *more: str) -> None:
        name = f"test_sequences_{uuid4().hex[:12]}"
        url = self.database_urls[leg.vendor]
        environment = {
            **self.environment,
            "DATABASE_URL": url,
            "TEST_DATABASE_NAME": f"{self.directory}/{name}" if leg.vendor == "sqlite" else name,
            "SEQUENCES_PORTABLE": "1" if leg.vendor == "portable" else "",
        }
        modules = ["-m", "pytest"]
        if self.measures and leg.is_measured:
            modules = ["-m", "coverage", "run", "--parallel-mode", *modules]
        command = [leg.python, *modules, *leg.part.arguments, *more, *self.arguments]
        with dropped_afterwards(url, name):
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            self.processes.append(process)
            # Whatever interrupts us is for pytest to obey: it cleans up.
            status = process.wait()
        nothing_asked_for = self.arguments and status == pytest.ExitCode.NO_TESTS_COLLECTED
        if status and not nothing_asked_for:
            self.failed = self.failed or status

    def check_coverage(self) -> int:
        """Fail where the tests reach less than they should."""
        if not self.measures:
            return 0
        print("\nBranch coverage (`.venv/bin/coverage html` shows which lines):", flush=True)
        coverage("combine", "--quiet")
        return coverage("report", "--format=total")


def coverage(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *arguments]).returncode


@cache
def version_of(python: str) -> str:
    program = (
        "import django, sys;"
        "print('Python {}.{}'.format(*sys.version_info), 'with Django', django.__version__)"
    )
    return subprocess.run(
        [python, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


@contextmanager
def interrupts_passed_on() -> Iterator[list["subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []

    def interrupt(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGINT)

    # The terminal sends its own to all of us; ignoring it instead would have pytest inherit that.
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def dropped_afterwards(url: str, name: str) -> Iterator[None]:
    """Drop the test database where pytest had no chance to."""
    try:
        yield
    finally:
        if url.startswith("postgres"):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        elif url.startswith("mysql"):
            with connect_mysql() as connection, connection.cursor() as cursor:
                cursor.execute("SET sql_notes = 0")
                cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


def given_postgresql() -> str:
    url = os.environ.get("DATABASE_URL", "")
    return url if url.startswith("postgres") else ""


def mysql_url() -> str:
    url = os.environ.get("DATABASE_URL", "")
    return os.environ.get("MYSQL_URL") or (url if url.startswith("mysql") else MYSQL_URL)


def amqp_url() -> str:
    return os.environ.get("AMQP_URL") or AMQP_URL


def unusable(connect: Callable[[], object]) -> str:
    """Why this server can't be used; empty if it can."""
    try:
        connect()
    except Exception as error:
        return f"{type(error).__name__} {error}".strip()
    return ""


def connect_mysql() -> "pymysql.Connection":
    settings = databases.from_url(mysql_url())
    return pymysql.connect(
        host=settings["HOST"],
        port=int(settings["PORT"] or 3306),
        user=settings["USER"],
        password=settings["PASSWORD"],
        connect_timeout=3,
    )


def connect_rabbitmq() -> None:
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    pika.BlockingConnection(pika.URLParameters(amqp_url())).close()


if __name__ == "__main__":
    sys.exit(main())
