"""The suite, on one database after the other: `make test ARGS="[--only NAME] [pytest's own]"`.

PostgreSQL and Valkey are started here unless DATABASE_URL and REDIS_URL name others. MariaDB or
MySQL (MYSQL_URL) and RabbitMQ (AMQP_URL) are used where they answer. `portable` is PostgreSQL with
the statements that every other database gets. Ends with the first that fails, so that the last line
tells how it went.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pika
import psycopg
import pymysql
import pytest

from testproject import databases, services

MYSQL_URL = "mysql://root@127.0.0.1:3306/mysql"
AMQP_URL = "amqp://guest:guest@127.0.0.1:5672"
#: What each leaves out. Workers are tested on PostgreSQL, which several of them can share, and
#: the death of one on SQLite too. The last is the whole suite.
ENGINE = ["-m", "not slow", "--ignore=tests/acceptance", "--ignore=tests/testproject"]
CHOICES = {"sqlite": [], "mysql": ENGINE, "portable": ENGINE, "postgresql": []}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", choices=CHOICES, help="this one only")
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
    return run_all(vendors, arguments, amqp="RabbitMQ" not in absent)


def run_all(vendors: list[str], arguments: list[str], *, amqp: bool) -> int:
    names = ["REDIS_URL"]
    if {"postgresql", "portable"} & set(vendors) and not given_postgresql():
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
        for vendor in vendors:
            name = f"test_sequences_{uuid4().hex[:12]}"
            url, environment["TEST_DATABASE_NAME"] = database_urls[vendor], name
            if vendor == "sqlite":
                environment["TEST_DATABASE_NAME"] = f"{directory}/{name}"
            environment["SEQUENCES_PORTABLE"] = "1" if vendor == "portable" else ""
            print(f"\nOn {vendor}:", flush=True)
            with dropped_afterwards(url, name):
                status = run_pytest([*CHOICES[vendor], *arguments], environment, url)
            nothing_asked_for = arguments and status == pytest.ExitCode.NO_TESTS_COLLECTED
            if status and not nothing_asked_for:
                return status
    return 0


def run_pytest(arguments: list[str], environment: dict[str, str], database_url: str) -> int:
    """pytest's exit status. Whatever interrupts us is for pytest to obey: it cleans up."""
    command = [sys.executable, "-m", "pytest", *arguments]
    with interrupts_passed_on() as processes:
        process = subprocess.Popen(command, env={**environment, "DATABASE_URL": database_url})
        processes.append(process)
        return process.wait()


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
