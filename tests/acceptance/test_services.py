import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from testproject import services

ROOT = Path(services.__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_servers_given(monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


def test_the_servers_answer_and_are_gone_afterwards():
    with services.running("DATABASE_URL", "REDIS_URL") as urls:
        servers = psutil.Process().children(recursive=True)
        with psycopg.connect(urls["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert urls["REDIS_URL"].startswith("redis://127.0.0.1:")

    assert len(servers) > 2
    assert not [server for server in servers if server.is_running()]


def test_a_server_that_the_environment_names_is_used_as_it_is(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://example.com")

    with services.running("REDIS_URL") as urls:
        assert urls == {"REDIS_URL": "redis://example.com"}


def test_the_servers_end_with_their_user_whatever_kills_it():
    program = (
        "import time; from testproject import services\n"
        "with services.running('DATABASE_URL', 'REDIS_URL'):\n"
        "    print(flush=True); time.sleep(60)"
    )
    user = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert user.stdout.readline()
    servers = psutil.Process(user.pid).children(recursive=True)

    os.kill(user.pid, signal.SIGKILL)
    user.communicate()
    _, alive = psutil.wait_procs(servers, timeout=20)

    assert servers
    assert [server for server in alive if server.status() != psutil.STATUS_ZOMBIE] == []
