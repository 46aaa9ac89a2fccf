"""`make demo`: a contact form, its sequences, and a real worker that performs them.

Starts the servers that the environment does not name, the web server and a worker; writes messages
through the form as a visitor would; shows what becomes of them. Stays until Ctrl-C; with --once it
ends when every sequence has, with exit status 0 only if all succeeded.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import django
from django.core.management import call_command

from testproject import services
from testproject.visitor import MESSAGES, Visitor

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
STOP_SECONDS = 20


def main() -> int:
    options = parse_arguments()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    # The same way out for all: everything that was started is stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with ExitStack() as stack:
            return demonstrate(options, stack)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130 if options.once else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end when every sequence has")
    parser.add_argument("--timeout", type=float, default=90, help="seconds that --once may take")
    parser.add_argument("--port", type=int, default=8000, help="the web server's, if it is free")
    return parser.parse_args()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def demonstrate(options: argparse.Namespace, stack: ExitStack) -> int:
    print("Starting the servers …", flush=True)
    broker = [] if os.environ.get("AMQP_URL") else ["REDIS_URL"]
    prepare(stack.enter_context(services.running("DATABASE_URL", *broker)))
    port = free_port(options.port)
    worker = ["rundramatiq", "--processes", "1", "--threads", "4"]
    web = ["runserver", "--noreload", f"127.0.0.1:{port}"]
    processes = [
        stack.enter_context(managed(*worker, log=HOME / "worker.log")),
        stack.enter_context(managed(*web, log=HOME / "web.log")),
    ]
    # A second Ctrl-C must not keep us from stopping what runs.
    stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
    address = f"http://127.0.0.1:{port}/"
    visitor = Visitor(address)
    visitor.wait(30)
    print(GUIDE.format(address=address, home=HOME), flush=True)
    return Show(visitor, processes).run(options.timeout if options.once else None)


GUIDE = """
  The form    {address}
  The admin   {address}admin/   user admin, password admin
  The mails   {home}/mail
  The logs    {home}/worker.log, {home}/web.log

The mail server pretends to be down twice for each message: see send_mail being retried.
Ctrl-C ends everything.
"""


def prepare(urls: dict[str, str]) -> None:
    """Django in this process, the tables, and somebody who may use the admin."""
    os.environ |= urls
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    os.environ.setdefault("REDIS_NAMESPACE", "sequences-demo")
    HOME.mkdir(exist_ok=True)
    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    if not User.objects.filter(username="admin").exists():
        User.objects.create_superuser("admin", "admin@example.com", "admin")


def free_port(wanted: int) -> int:
    """The wanted port, or any other if that one is taken."""
    for port in (wanted, 0):
        with socket.socket() as server, suppress(OSError):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            return server.getsockname()[1]
    raise SystemExit("There is no free port.")


@contextmanager
def managed(*command: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A `manage.py` command while the block runs, in a session that Ctrl-C does not reach."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, ROOT / "manage.py", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Show:
    """The messages that are written, and the runs that they start."""

    def __init__(self, visitor: Visitor, processes: list["subprocess.Popen[bytes]"]) -> None:
        from sequences.ids import uuid7
        from testproject.display import Display

        self.visitor = visitor
        self.processes = processes
        self.display = Display()
        self.before = uuid7()  # ids grow with time: every later run's is greater
        self.written: set[UUID] = set()

    def run(self, timeout: float | None) -> int:
        """Until every message's sequence has ended; without a time limit until Ctrl-C."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for message in MESSAGES:
            self.written.add(self.visitor.write(message))
            self.look()
        while deadline is None or time.monotonic() < deadline:
            runs = self.look()
            if timeout is not None and all(run.finished_at for run in runs):
                break
            time.sleep(0.1)
        return self.result()

    def look(self) -> list[Any]:
        from sequences.models import SequenceRun

        for process in self.processes:
            if process.poll() is not None:
                raise SystemExit(f"{process.args[2]} ended by itself; its log is in {HOME}.")  # type: ignore[index]
        later = SequenceRun.objects.filter(pk__gt=self.before).order_by("pk")
        runs = list(later.select_related("plan").prefetch_related("steps"))
        self.display.show(runs)
        return [run for run in runs if run.pk in self.written]

    def result(self) -> int:
        succeeded = sum(run.status == "succeeded" for run in self.look())
        print(f"{succeeded} of {len(self.written)} sequences succeeded.")
        return 0 if succeeded == len(self.written) else 1


if __name__ == "__main__":
    sys.exit(main())
