"""How long a step waits for the one before, where nothing else runs: `benchmarks/latency.py`.

Also with a database that is a network away: a proxy in front of PostgreSQL holds each answer back.
See docs/benchmarks.md.
"""

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steps import environment_of, temporary_database

STEPS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 0.5, 2], help="ms")
    parser.add_argument("--role", choices=["runs", "proxy"], help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "runs":
        return report(options.runs)
    if options.role == "proxy":
        return serve(*options.to.rsplit(":", 1), options.delays[0] / 1000)
    from testproject import services

    print(
        f"{'broker':10} {'delay':>7} {'handoff':8} {'median':>8} {'95th':>8}   ms from step to step"
    )
    with (
        services.running("DATABASE_URL", "REDIS_URL") as urls,
        temporary_database(urls["DATABASE_URL"]) as database_url,
    ):
        for broker in ("redis", "rabbitmq"):
            if broker == "rabbitmq" and not os.environ.get("BENCHMARK_AMQP_URL"):
                print("rabbitmq   BENCHMARK_AMQP_URL names no server.")
                continue
            for delay in options.delays if broker == "redis" else [0]:
                measure(broker, delay, urls, database_url, options.runs)
    return 0


def measure(broker: str, delay: float, urls: dict[str, str], database: str, runs: int) -> None:
    with delayed(database, delay) as url:
        environment = environment_of(urls, url)
        if broker == "rabbitmq":
            environment["AMQP_URL"] = os.environ["BENCHMARK_AMQP_URL"]
        command = [sys.executable, __file__, "--role", "runs", "--runs", str(runs)]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    for line in done.stdout.splitlines():
        print(f"{broker:10} {delay:>5} ms {line}", flush=True)


def report(count: int) -> int:
    """One run after the other, by each handoff."""
    classes = declare()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    import dramatiq

    broker = dramatiq.get_broker()
    queues = {f"latency-{name}" for name in classes}
    worker = dramatiq.Worker(broker, queues=queues, worker_threads=8)
    worker.start()
    try:
        for name, cls in classes.items():
            gaps = [gap for number in range(count + 2) for gap in gaps_of(cls) if number >= 2]
            late = statistics.quantiles(gaps, n=20, method="inclusive")[-1]
            print(f"{name:8} {statistics.median(gaps):>8.1f} {late:>8.1f}")
    finally:
        worker.stop()
        for queue in queues:
            broker.flush(queue)
    return 0


def declare() -> dict[str, Any]:
    import django
    from django.conf import settings

    settings.DEBUG = False  # Django would keep every statement
    django.setup()
    from sequences import Sequence, step

    def note(self: Any) -> None:
        self.data["at"].append(time.time() * 1000)

    classes = {}
    for handoff in ("broker", "direct"):
        options = {"app_label": "latency", "handoff": handoff, "queue_name": f"latency-{handoff}"}
        steps = {f"step_{number}": step(note) for number in range(STEPS)}
        meta = type("Meta", (), options)
        classes[handoff] = type(handoff.title(), (Sequence,), {"Meta": meta, **steps})
    return classes


def gaps_of(cls: Any) -> list[float]:
    """Milliseconds between the steps of one run."""
    run = cls.start({"at": []}).run
    until = time.monotonic() + 60
    while not run.is_finished:
        if time.monotonic() > until:
            raise SystemExit(f"Run {run.pk} has not ended.")
        time.sleep(0.02)
        run.refresh_from_db()
    at = run.data["at"]
    return [after - before for before, after in itertools.pairwise(at)]


# The network.


@contextmanager
def delayed(url: str, delay: float) -> Iterator[str]:
    """The database behind a proxy that holds its answers back for so many milliseconds."""
    if not delay:
        yield url
        return
    from testproject.databases import from_url, to_url

    database = from_url(url)
    to = f"{database['HOST']}:{database['PORT'] or 5432}"
    command = [sys.executable, __file__, "--role", "proxy", "--to", to, "--delays", str(delay)]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert proxy.stdout
    try:
        port = int(proxy.stdout.readline())
        yield to_url({**database, "HOST": "127.0.0.1", "PORT": str(port)})
    finally:
        proxy.kill()
        proxy.wait()


def serve(host: str, port: str, delay: float) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            upstream = connected_to(host, port)
            pairs = ((client, upstream, 0.0), (upstream, client, delay))
            for pair in pairs:
                threading.Thread(target=copy, args=pair, daemon=True).start()


def connected_to(host: str, port: str) -> socket.socket:
    """The database by TCP, or by the socket in its directory."""
    if not host.startswith("/"):
        upstream = socket.create_connection((host, int(port)))
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream
    upstream = socket.socket(socket.AF_UNIX)
    upstream.connect(f"{host}/.s.PGSQL.{port}")
    return upstream


def copy(source: socket.socket, target: socket.socket, delay: float) -> None:
    try:
        while data := source.recv(1 << 16):
            time.sleep(delay)
            target.sendall(data)
    except OSError:
        pass  # the other side has ended
    finally:
        for end in (source, target):
            end.close()


if __name__ == "__main__":
    sys.exit(main())
