"""The quickstart's last words: the worker is killed, as the command there does it."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from django.db import connection

from testproject.databases import to_url

from .workers import ROOT, wait_for

pytestmark = pytest.mark.django_db(transaction=True)
COMMAND = re.compile(r'^pkill -9 -f "\$\(pwd -P\)/\.venv(/\S+)"$', re.MULTILINE)
#: The virtual environment: in the quickstart, it is in the directory of the project.
ENVIRONMENT = os.path.dirname(os.path.dirname(sys.executable))


def test_the_kill_command_finds_every_process_of_the_worker(redis_url, tmp_path):
    (path,) = COMMAND.findall((ROOT / "docs" / "quickstart.md").read_text())
    pattern = f"{ENVIRONMENT}{path}"
    command = [sys.executable, "manage.py", "rundramatiq", "--processes", "1", "--threads", "4"]
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.worker_settings",
        "DATABASE_URL": to_url(connection.settings_dict),
        "REDIS_URL": redis_url,
        "AMQP_URL": "",
        "REDIS_NAMESPACE": f"quickstart-{os.getpid()}",
        # It looks for the command beside the interpreter of an activated environment.
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: "Worker process is ready for action." in log.read_text(), "the worker")
        main = psutil.Process(worker.pid)
        processes = [main, *main.children(recursive=True)]
        # As pkill does it; but pkill itself would end the workers of others on this machine.
        found = [one for one in processes if re.search(pattern, " ".join(one.cmdline()))]
        assert any(one is main for one in found)
        for process in found:
            process.kill()
        worker.wait(60)
        wait_for(lambda: not any(map(is_alive, processes)), "the end of all of its processes")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
