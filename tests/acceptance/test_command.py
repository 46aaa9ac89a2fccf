"""`manage.py sequences start --wait` as cron calls it: a process, and a worker that is another."""

import json
import os
import subprocess
import sys

import pytest

from .app.sequences import QUEUE
from .workers import LIMIT, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


@pytest.fixture
def start(crew):
    """Call it with the crew's servers, and kill it if the test does not end it."""
    called = []

    def call(*arguments):
        settings = {"DJANGO_SETTINGS_MODULE": "tests.worker_settings"}
        process = subprocess.Popen(
            [sys.executable, "manage.py", "sequences", "start", *map(str, arguments), "--wait"],
            cwd=ROOT,
            env={**os.environ, **crew.environment, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        called.append(process)
        return process

    yield call
    for process in called:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def test_a_start_that_waits_ends_as_its_run_does(start, tmp_path):
    flow = tmp_path / "nightly.json"
    options = {"queue_name": QUEUE, "max_retries": 1, "min_backoff": 20, "max_backoff": 20}
    note = {"job": "noted", "args": {"number": 1}, **options}
    flow.write_text(json.dumps({"steps": {"note": note}}))
    # At once: each spends most of its time on its own start.
    good = start("--file", flow, "--data", '{"fails": []}')
    bad = start("--file", flow, "--data", '{"fails": [1, 1]}', "--json")

    status, out, err = ended(good)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("Succeeded after ")
    status, out, err = ended(bad)
    run = json.loads(out)
    assert (status, run["status"], run["error"]["attempt"]) == (1, "failed", 2)
    assert "“note” failed" in err
    assert "Traceback" not in err
