"""Fan-outs of many items, each by its own message, on a real broker and worker."""

import os
import subprocess
import sys
from uuid import uuid4

import pytest
from django.db import connection

from testproject.databases import to_url

from .workers import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only_on("postgresql"),
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(300),
]


def fan_out(items, redis_url):
    """A worker process, from its start to the end of one run: its CPU in ms for each, and MiB.

    It ends well only if the step after the fan-out has seen every item's result.
    """
    command = [sys.executable, "benchmarks/fan_out.py", "--role=worker", f"--items={items}"]
    environment = {
        **os.environ,
        "AMQP_URL": "",
        "REDIS_URL": redis_url,
        "DATABASE_URL": to_url(connection.settings_dict),
        "REDIS_NAMESPACE": f"scale-{uuid4().hex[:12]}",
        "DJANGO_SETTINGS_MODULE": "testproject.settings",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    _, cpu, memory = map(float, done.stdout.splitlines()[-1].split())
    return cpu / items * 1000, memory


def test_an_item_costs_the_same_in_time_and_memory_however_many_there_are(redis_url):
    cost, memory = fan_out(1_000, redis_url)
    more_cost, more_memory = fan_out(10_000, redis_url)
    # CPU time, for other processes take turns with this one. The small one bears its own start.
    assert more_cost < 1.5 * cost
    assert more_memory < memory + 40
