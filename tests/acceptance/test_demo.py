"""The demo itself, with its own PostgreSQL, its own Valkey and its own worker."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from testproject import demo

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]
SERVERS = ("DATABASE_URL", "REDIS_URL", "AMQP_URL")


@contextmanager
def started(directory: Path, *arguments):
    environment = {name: value for name, value in os.environ.items() if name not in SERVERS}
    environment |= {"EMAIL_DIR": str(directory), "DJANGO_SETTINGS_MODULE": "testproject.settings"}
    process = subprocess.Popen(
        [sys.executable, "-m", "testproject.demo", "--port", "0", *arguments],
        cwd=demo.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


ENDED_WELL = """
Contact forms mailed: 5 of 5.
Small orders shipped: 1 of 1.
Large orders approved by the staff and shipped: 1 of 1.
Orders that failed, out of stock, and were refunded: 1 of 1.
8 of 8 sequences ended as expected.
"""


@pytest.mark.parametrize("broker", ["redis", "postgres"])
def test_every_sequence_ends_as_it_should_and_no_process_is_left(tmp_path, broker):
    with started(tmp_path, "--once", "--broker", broker) as process:
        output = ""
        while "approval waiting" not in output:
            output += process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        names = {child.name() for child in children}
        output += process.communicate()[0]

    assert any("valkey" in name for name in names) is (broker == "redis")
    assert output.endswith(ENDED_WELL)
    assert output.count("send_mail retrying (2 failed)") == 5
    assert "Alan          approval waiting" in output
    assert "Hedy          pack[1] failed (1 failed)" in output
    assert process.returncode == 0
    letters = [path.read_text() for path in tmp_path.iterdir()]
    assert sum(text.count("Message-ID:") for text in letters) == 8
    assert sum(text.count("Your parcel is on its way") for text in letters) == 2
    assert sum(text.count("We have refunded your 100 ") for text in letters) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_that_was_started(tmp_path, number):
    with started(tmp_path) as process:
        for line in process.stdout:
            if "send_mail retrying" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        output, _ = process.communicate()

    assert len(children) > 5
    assert not [child for child in children if child.is_running()]
    assert output.endswith("\nStopped.\n")
    assert process.returncode == 0


def test_too_little_time_is_a_failure(tmp_path):
    with started(tmp_path, "--once", "--timeout", "0") as process:
        output, _ = process.communicate()

    assert output.endswith(" of 8 sequences ended as expected.\n")
    assert process.returncode == 1
