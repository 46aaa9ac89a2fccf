"""The suite, on one database after the other: `make test ARGS="[--only NAME] [pytest's own]"`.

PostgreSQL and Valkey are started here unless DATABASE_URL and REDIS_URL name others. MariaDB or
MySQL (MYSQL_URL) and RabbitMQ (AMQP_URL) are used where they answer. `portable` is PostgreSQL with
the statements that every other database gets. What starts no workers runs two at a time, then what
does runs alone. No other begins after one has failed.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pika
import psycopg
import pymysql
import pytest

from testproject import databases, services

MYSQL_URL = "mysql://root@127.0.0.1:3306/mysql"
AMQP_URL = "amqp://guest:guest@127.0.0.1:5672"
#: What neither takes long nor starts workers: two of these at a time.
QUICK = ["-m", "not slow", *(f"--ignore=tests/{one}" for one in ("acceptance", "browser"))]
QUICK += ["--ignore=tests/testproject"]
#: All the rest, alone, for its sake of time: with workers, on PostgreSQL, which several of them can
#: share; the death of one on SQLite too.
REST = ["--rest"]
#: What touches no database says the same beside each: SQLite and PostgreSQL have it.
DATABASE = [*QUICK, "--database-only"]
#: What shows runs to people writes none, and asks the same of PostgreSQL in either way.
SHOWN = ("admin*", "acts", "command", "docs", "drawing*", "pages", "pictures", "quickstart")
SHOWN += ("reference", "secrets", "status", "summary")
ENGINE = [*DATABASE, *(f"--ignore-glob=tests/test_{name}.py" for name in SHOWN)]
#: The longest first.
CHOICES = {
    "mysql": [DATABASE],
    "postgresql": [QUICK, REST],
    "sqlite": [QUICK, REST],
    "portable": [ENGINE],
}
AT_A_TIME = 2


@dataclass(frozen=True)
class Leg:
    """The suite, or a part of it, on one database under one interpreter."""

    vendor: str
    arguments: list[str]
    python: str = sys.executable

    @property
    def is_quick(self) -> bool:
        return self.arguments is not REST

    def __str__(self) -> str:
        part = "" if self.is_quick else ", with workers"
        own = self.python == sys.executable
        return f"{self.vendor}{part}" if own else f"{self.vendor}, {version_of(self.python)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", choices=CHOICES, help="this one only")
    parser.add_argument(
        "--also", metavar="PYTHON", action="append", default=[],
        help="another interpreter with the project: the quick part on SQLite is run there",
    )  # fmt: skip
    parser.add_argument(
        "--also-database", metavar="PYTHON", action="append", default=[],
        help="another one, where the engine is tested on SQLite, too",
    )  # fmt: skip
    options, arguments = parser.parse_known_args()
    vendors = [options.only] if options.only else list(CHOICES)
    absent = {}
    if "mysql" in vendors and (reason := unusable(connect_mysql)):
        vendors.remove("mysql")
        absent["MariaDB"] = reason
    if reason := unusable(connect_rabbitmq):
        absent["RabbitMQ"] = reason
    for service, reason in absent.items():
        print(f"Skipped: what needs {service}: {reason}", flush=True)
    if absent and os.environ.get("CI"):
        print("With CI set, a service that is missing is a failure.")
        return 1
    legs = [Leg(vendor, part) for vendor in vendors for part in CHOICES[vendor]]
    if options.also:  # its quick part runs there
        legs = [leg for leg in legs if leg != Leg("sqlite", QUICK)]
    legs += [Leg("sqlite", QUICK, python) for python in options.also]
    legs += [Leg("sqlite", ENGINE, python) for python in options.also_database]
    return run_all(legs, arguments, amqp="RabbitMQ" not in absent)


def run_all(legs: list[Leg], arguments: list[str], *, amqp: bool) -> int:
    names = ["REDIS_URL"]
    if {"postgresql", "portable"} & {leg.vendor for leg in legs} and not given_postgresql():
        os.environ.pop("DATABASE_URL", None)
        names.append("DATABASE_URL")
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
            suite = Suite(environment, database_urls, Path(directory), arguments, processes)
            quick = [leg for leg in legs if leg.is_quick]
            slow = [leg for leg in legs if not leg.is_quick]
            return suite.run_beside(quick) or suite.run_alone(slow)


@dataclass
class Suite:
    """Runs legs until one has failed."""

    environment: dict[str, str]
    database_urls: dict[str, str]
    directory: Path
    arguments: list[str]
    processes: list["subprocess.Popen[bytes]"]
    failed: int = field(default=0, init=False)

    def run_alone(self, legs: list[Leg]) -> int:
        for leg in legs:
            if not self.failed:
                print(f"\nOn {leg}:", flush=True)
                self._run(leg, None)
        return self.failed

    def run_beside(self, legs: list[Leg]) -> int:
        """Several at a time. What each has to say is held back until it has ended."""
        at_a_time = min(AT_A_TIME, len(os.sched_getaffinity(0)))
        if len(legs) < 2 or at_a_time < 2:
            return self.run_alone(legs)
        print(f"\n{at_a_time} at a time: {'; '.join(map(str, legs))}", flush=True)
        with ThreadPoolExecutor(at_a_time) as pool:
            for text in pool.map(self._run_quietly, legs):
                print(text, end="", flush=True)
        return self.failed

    def _run_quietly(self, leg: Leg) -> str:
        if self.failed:
            return f"\nOn {leg}: not begun.\n"
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            # Two that write the cache of the last failures at once would spoil it.
            self._run(leg, output.fileno(), "-p", "no:cacheprovider")
            output.seek(0)
            return f"\nOn {leg}:\n{output.read()}"

    def _run(self, leg: Leg, output: int | None, *more: str) -> None:
        name = f"test_sequences_{uuid4().hex[:12]}"
        url = self.database_urls[leg.vendor]
        environment = {
            **self.environment,
            "DATABASE_URL": url,
            "TEST_DATABASE_NAME": f"{self.directory}/{name}" if leg.vendor == "sqlite" else name,
            "SEQUENCES_PORTABLE": "1" if leg.vendor == "portable" else "",
        }
        command = [leg.python, "-m", "pytest", *leg.arguments, *more, *self.arguments]
        with dropped_afterwards(url, name):
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            self.processes.append(process)
            # Whatever interrupts us is for pytest to obey: it cleans up.
            status = process.wait()
        nothing_asked_for = self.arguments and status == pytest.ExitCode.NO_TESTS_COLLECTED
        if status and not nothing_asked_for:
            self.failed = self.failed or status


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
