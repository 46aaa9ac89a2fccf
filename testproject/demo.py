"""`make demo`: a contact form and a shop, their sequences, and a real worker.

Starts the servers that the environment does not name, the web server and a worker; submits messages
and orders through the forms as a visitor would, and shows what happens to them. It runs until
Ctrl-C, and leaves it to you to approve the large order. With --once, it approves that order as the
staff would, and ends when every sequence has, with exit status 0 only if all ended as expected.
With --broker postgres, there is no Valkey: PostgreSQL is the only server.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import django
from django.core.management import call_command
from django.utils import timezone

from testproject import services
from testproject.visitor import MESSAGES, ORDERS, Visitor

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
STOP_SECONDS = 20
#: How long the large order waits until the demo approves it, with --once.
SEEN_SECONDS = 1


def main() -> int:
    options = parse_arguments()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    # All of them end the same way: everything that was started is stopped.
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
    parser.add_argument("--once", action="store_true", help="end once every sequence has ended")
    parser.add_argument(
        "--timeout", type=float, default=90, help="time limit of --once, in seconds"
    )
    parser.add_argument(
        "--broker", choices=["redis", "postgres"], default="redis", help="the broker for messages"
    )
    parser.add_argument("--port", type=int, default=8000, help="port of the web server, if free")
    return parser.parse_args()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def demonstrate(options: argparse.Namespace, stack: ExitStack) -> int:
    print("Starting the servers …", flush=True)
    if options.broker == "postgres":
        os.environ["BROKER"] = "postgres"
    has_broker = options.broker == "postgres" or os.environ.get("AMQP_URL")
    broker = [] if has_broker else ["REDIS_URL"]
    prepare(stack.enter_context(services.running("DATABASE_URL", *broker)))
    port = free_port(options.port)
    worker = ["rundramatiq", "--processes", "1", "--threads", "4"]
    web = ["runserver", "--noreload", f"127.0.0.1:{port}"]
    processes = [
        stack.enter_context(managed(*worker, log=HOME / "worker.log")),
        stack.enter_context(managed(*web, log=HOME / "web.log")),
    ]
    # A second Ctrl-C must not prevent us from stopping what is running.
    stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
    address = f"http://127.0.0.1:{port}/"
    visitor, staff = Visitor(address), Visitor(address)
    visitor.wait(30)
    approval = APPROVED_BY_DEMO if options.once else APPROVED_BY_YOU
    print(GUIDE.format(address=address, home=HOME, approval=approval), flush=True)
    return Show(visitor, staff, processes).run(options.timeout if options.once else None)


GUIDE = """
  Write to us     {address}contact/
  The shop        {address}orders/
  The admin       {address}admin/   user admin, password admin
  The emails      {home}/mail
  The logs        {home}/worker.log, {home}/web.log

The mail server seems to be down twice for each message: watch send_mail being retried.
{approval}
Hedy's order fails, because it is out of stock.
Press Ctrl-C to end the demo.
"""
APPROVED_BY_YOU = (
    "Alan's order waits until you approve it: in the admin, deliver “approval” to its run."
)
APPROVED_BY_DEMO = "Alan's order waits for an approval, which the demo itself gives after a second."


def prepare(urls: dict[str, str]) -> None:
    """Set up Django in this process, the tables, and a user who can log in to the admin."""
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
    """The requested port, or any other if that one is taken."""
    for port in (wanted, 0):
        with socket.socket() as server, suppress(OSError):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            return server.getsockname()[1]
    raise SystemExit("There is no free port.")


@contextmanager
def managed(*command: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a `manage.py` command during the block, in a session that Ctrl-C does not reach."""
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
    """Shows the submitted messages and orders, and the runs that they start."""

    def __init__(
        self, visitor: Visitor, staff: Visitor, processes: list["subprocess.Popen[bytes]"]
    ) -> None:
        from sequences.utils.uuid7 import uuid7
        from testproject.display import Tables

        self.visitor, self.staff = visitor, staff
        self.processes = processes
        self.display = Tables(sys.stdout)
        self.before = uuid7()  # ids grow with time: every later run has a greater one
        self.written: dict[UUID, Ending] = {}  # by the id of the run
        self.to_approve: dict[UUID, UUID] = {}  # the order, by the id of the run

    def run(self, timeout: float | None) -> int:
        """Run until every sequence has ended; without a time limit, until Ctrl-C."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self.write()
        while deadline is None or time.monotonic() < deadline:
            runs = self.look()
            if timeout is not None:
                self.approve(runs)
                if all(run.finished_at for run in runs):
                    break
            time.sleep(0.1)
        return self.result()

    def write(self) -> None:
        from testproject.orders.sequences import FulfilOrder

        self.staff.log_in("admin", "admin")
        for order, ending in zip(ORDERS, (SHIPPED, APPROVED, COMPENSATED), strict=True):
            order_id = self.visitor.order(order)
            run = FulfilOrder.runs.get(key=str(order_id))
            self.written[run.pk] = ending
            if ending is APPROVED:
                self.to_approve[run.pk] = order_id
            self.look()
        for message in MESSAGES:
            self.written[self.visitor.write(message)] = MAILED
            self.look()

    def approve(self, runs: list[Any]) -> None:
        """Press the button for the staff, once an order has waited long enough to be seen."""
        for run in runs:
            waits = any(step.step == "approval" and has_waited(step) for step in run.steps.all())
            if waits and run.pk in self.to_approve:
                self.staff.approve(self.to_approve.pop(run.pk))

    def look(self) -> list[Any]:
        from sequences.inspection import snapshot
        from sequences.models import SequenceRun

        for process in self.processes:
            if process.poll() is not None:
                raise SystemExit(f"{process.args[2]} ended unexpectedly; its log is in {HOME}.")  # type: ignore[index]
        later = SequenceRun.objects.filter(pk__gt=self.before).order_by("pk")
        runs = list(later.select_related("plan").prefetch_related("steps"))
        self.display.show(snapshot.of_many(runs, items=True))
        return [run for run in runs if run.pk in self.written]

    def result(self) -> int:
        runs = self.look()
        met = [self.written[run.pk] for run in runs if self.written[run.pk].is_met(run)]
        wanted = list(self.written.values())
        print()
        for ending in ENDINGS:
            print(f"{ending.says}: {met.count(ending)} of {wanted.count(ending)}.")
        print(f"{len(met)} of {len(wanted)} sequences ended as expected.")
        return 0 if len(met) == len(wanted) else 1


def has_waited(step: Any) -> bool:
    since = step.started_at or step.queued_at
    return step.status == "waiting" and (timezone.now() - since).total_seconds() > SEEN_SECONDS


@dataclass(frozen=True, eq=False)
class Ending:
    """How runs should end."""

    says: str
    status: str
    steps: dict[str, str]

    def is_met(self, run: Any) -> bool:
        found = {str(step): step.status for step in run.steps.all()}
        return run.status == self.status and self.steps.items() <= found.items()


MAILED = Ending("Contact forms mailed", "succeeded", {"send_mail": "succeeded"})
SHIPPED = Ending("Small orders shipped", "succeeded", {"approval": "skipped", "thank": "succeeded"})
APPROVED = Ending(
    "Large orders approved by the staff and shipped",
    "succeeded",
    {"approval": "succeeded", "thank": "succeeded"},
)
COMPENSATED = Ending(
    "Orders that failed, out of stock, and were refunded",
    "failed",
    {"pack": "failed", "refund": "succeeded", "inform": "succeeded"},
)
ENDINGS = (MAILED, SHIPPED, APPROVED, COMPENSATED)


if __name__ == "__main__":
    sys.exit(main())
