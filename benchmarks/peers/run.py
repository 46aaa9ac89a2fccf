"""Compare this project with its peers: `python benchmarks/peers/run.py`.

See benchmarks/README.md.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from uuid import uuid4

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / "build" / "peers"
FLOOR = "floor"
PEERS = [
    FLOOR,
    "sequences",
    "sequences_direct",
    "celery",
    "dbos",
    "procrastinate",
    "django_q2",
    "duratiq",
]
SHAPES = {"1x8": (1, 8), "2x4": (2, 4)}
#: Seconds that one measurement may take, all in all.
LIMIT = 240

COLUMNS = {
    "per_second": ("sequences/s", "{:.0f}"),
    "ratio": ("x the floor", "{:.2f}"),
    "worker_us": ("worker CPU µs a step", "{:.0f}"),
    "postgresql_us": ("PostgreSQL CPU µs a step", "{:.0f}"),
    "log_bytes": ("bytes of WAL a step", "{:.0f}"),
    "start_ms": ("ms a start, under load", "{:.1f}"),
    "alone_ms": ("ms alone", "{:.0f}"),
}


def main():
    options = parse_arguments()
    python = options.python or install()
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from testproject import services

    results = []
    with services.running("DATABASE_URL", "REDIS_URL") as urls:
        for number in range(options.rounds):
            for shape in options.shapes:
                turn = number % len(options.peers)
                for peer in options.peers[turn:] + options.peers[:turn]:
                    result = measured(peer, shape, python, urls, options)
                    if result is not None:
                        results.append({"peer": peer, "shape": shape, "round": number, **result})
    report(results, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="that each is measured for")
    parser.add_argument("--alone", type=int, default=15, help="sequences that run alone")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--shared-server",
        action="store_true",
        help="others use PostgreSQL, too",
    )
    parser.add_argument("--python", help="of an environment that has the requirements")
    return parser.parse_args()


def install():
    """The interpreter of an environment with all peers, made once."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"Setting up {ENVIRONMENT.relative_to(ROOT)}, once", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--editable", ROOT]
        subprocess.run([*command, "--requirement", HERE / "requirements.txt"], check=True)
    return str(python)


def measured(peer, shape, python, urls, options):
    """One peer, on a database of its own. None: it could not be measured."""
    from steps import temporary_database

    namespace = f"peers-{uuid4().hex[:12]}"
    with temporary_database(urls["DATABASE_URL"]) as database_url:
        environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": urls["REDIS_URL"],
            "PEERS_NAMESPACE": namespace,
            "PEERS_PORT": str(free_port()),
            "PEERS_SHARED_SERVER": "1" if options.shared_server else "",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        }
        command = [python, str(HERE / "measure.py"), f"peer_{peer}"]
        settings = [*map(str, SHAPES[shape]), str(options.seconds), str(options.alone)]
        process = {"env": environment, "cwd": HERE, "timeout": LIMIT, "text": True}
        try:
            subprocess.run([*command, "prepare"], check=True, capture_output=True, **process)
            done = subprocess.run([*command, *settings], check=True, capture_output=True, **process)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{peer} {shape}: {error}\n{str(error.stderr)[-2000:]}", file=sys.stderr)
            return None
        finally:
            forget(namespace, urls["REDIS_URL"])
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{peer} {shape}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return result


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        return receiver.getsockname()[1]


def forget(namespace, url):
    """What a measurement has left in Redis."""
    import redis

    with redis.Redis.from_url(url) as client:
        if keys := list(client.scan_iter(f"*{namespace}*", count=1000)):
            client.delete(*keys)


def report(results, options):
    floors = {
        (result["shape"], result["round"]): result["per_second"]
        for result in results
        if result["peer"] == FLOOR
    }
    for result in results:
        floor = floors.get((result["shape"], result["round"]))
        result["ratio"] = result["per_second"] / floor if floor else None
    for shape in options.shapes:
        processes, threads = SHAPES[shape]
        print(f"\n{processes} worker process(es) of {threads} threads, {options.rounds} rounds\n")
        print("| peer |", " | ".join(title for title, _ in COLUMNS.values()), "| lost, twice |")
        print("| --- |" + " --- |" * (len(COLUMNS) + 1))
        for peer in options.peers:
            rows = [each for each in results if (each["peer"], each["shape"]) == (peer, shape)]
            print(f"| {peer} |", " | ".join(cells(rows)), "|")


def cells(rows):
    for name, (_, form) in COLUMNS.items():
        values = [row[name] for row in rows if row[name] is not None]
        yield spread(values, form) if values else "-"
    yield f"{sum(row['lost'] for row in rows)}, {sum(row['twice'] for row in rows)}"


def spread(values, form):
    """The median; of ratios with the lowest and the highest."""
    middle = form.format(statistics.median(values))
    if form != COLUMNS["ratio"][1] or len(values) < 2:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


if __name__ == "__main__":
    main()
