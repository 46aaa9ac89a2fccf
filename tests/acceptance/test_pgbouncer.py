"""Behind PgBouncer in transaction mode, where no two transactions need have the same connection."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from django.db import connection

from sequences.models import SequenceRun
from testproject.databases import to_url
from tests.conftest import missing

from .app.models import Entry

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]

LIMIT = 60
NOBODY = 65534

CONFIGURATION = """
[databases]
{name} = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
# Fewer than the worker has threads: they share them, one transaction at a time.
default_pool_size = 2
"""

START = """
import django, dramatiq, os
django.setup()
if os.environ["BROKER"] == "postgres":
    dramatiq.get_broker().create_tables()
from sequences import get
for number in range(6):
    for label in ("acceptance.Booking", "acceptance.DirectBooking"):
        get(label).start({"log": []}, key=f"{number}")
"""


@pytest.fixture
def pgbouncer():
    """The URL of this test's database, through a PgBouncer of its own."""
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH')}:/usr/sbin")
    if not binary:
        missing("pgbouncer is not installed: apt-get install pgbouncer")
    port = free_port()
    settings = connection.settings_dict
    url = to_url(settings | {"HOST": "127.0.0.1", "PORT": str(port)})
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        configuration = Path(directory, "pgbouncer.ini")
        configuration.write_text(configuration_of(settings, port))
        log = Path(directory, "log")
        command = [binary, str(configuration)]
        with stopped_afterwards(command, log, user=user_for(settings)) as process:
            wait_for(lambda: answers(url) or process.poll() is not None, log)
            assert process.poll() is None, log.read_text()
            yield url
            connection.close()


def configuration_of(settings, port):
    values = {
        "host": settings["HOST"] or "127.0.0.1",
        "port": settings["PORT"],
        "dbname": settings["NAME"],
        "user": settings["USER"],
        "password": settings["PASSWORD"],
    }
    server = " ".join(f"{name}='{value}'" for name, value in values.items() if value)
    return CONFIGURATION.format(name=settings["NAME"], server=server, port=port)


def user_for(settings):
    """PgBouncer refuses to be root; and a socket's directory may be open to its owner only."""
    if os.getuid() != 0:
        return None
    host = settings["HOST"]
    return Path(host).stat().st_uid if host.startswith("/") else NOBODY


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def stopped_afterwards(command, log, **options):
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def answers(url):
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def wait_for(condition, log):
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, log.read_text()[-5000:]
        time.sleep(0.05)


@pytest.mark.parametrize("broker", ["redis", "postgres"])
def test_a_worker_performs_sequences_behind_pgbouncer(pgbouncer, redis_url, tmp_path, broker):
    namespace = f"pgbouncer-{uuid4().hex}"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.acceptance.pgbouncer_settings",
        "DATABASE_URL": pgbouncer,
        "REDIS_URL": redis_url,
        "REDIS_NAMESPACE": namespace,
        "AMQP_URL": "",
        "BROKER": broker,
        "BROKER_SCHEMA": namespace,
    }
    subprocess.run([sys.executable, "-c", START], env=environment, check=True, timeout=LIMIT)
    worker = [sys.executable, "manage.py", "rundramatiq", "--processes", "1", "--threads", "4"]
    log = tmp_path / "worker.log"
    with stopped_afterwards(worker, log, env=environment):
        wait_for(lambda: not SequenceRun.objects.unfinished().exists(), log)
    runs = SequenceRun.objects.all()
    assert [run.status for run in runs] == ["succeeded"] * 12
    assert [run.data["log"] for run in runs] == [["quote", "reserve", "confirm"]] * 12
    for run in runs:
        assert list(run.steps.order_by("pk").values_list("step", "status", "attempts")) == [
            ("quote", "succeeded", 0),
            ("reserve", "succeeded", 1),
            ("confirm", "succeeded", 0),
        ]
        notes = Entry.objects.filter(run=run.pk).order_by("pk").values_list("note", flat=True)
        assert list(notes) == ["seat", "meal"]
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA IF EXISTS "{namespace}" CASCADE')
