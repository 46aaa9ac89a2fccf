"""Measure one peer in one shape: `measure.py PEER prepare` makes its tables, then
`measure.py PEER PROCESSES THREADS SECONDS ALONE` prints what it came to, as JSON.

This process starts sequences all the while, and keeps so many of them unfinished that the workers
never run out of work. Before and after the measured seconds the workers run under the same load.
"""

import importlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import psycopg
from common import DATABASE_URL, PORT, STEPS

#: Sequences that are unfinished at a time, beside those that a peer ends in a second. A queue that
#: is first in, first out, ends a long backlog in waves; one that is polled needs a long one.
BACKLOG = 32
#: Seconds under load before it is measured, and that anything may take.
WARM_UP, LIMIT = 3.0, 60.0


class Reports(threading.Thread):
    """The sequences that have reported their end, with the time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended, self.twice = {}, 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(("127.0.0.1", PORT))
        self.start()

    def run(self):
        while True:
            token = self._socket.recv(200).decode()
            self.twice += token in self.ended
            self.ended.setdefault(token, time.perf_counter())


class Load:
    """Starts sequences, and remembers how long each start took."""

    def __init__(self, peer, reports):
        self.peer, self.reports = peer, reports
        self.started, self.starts = 0, []

    def start_one(self):
        self.started += 1
        token = f"t{self.started}"
        began = time.perf_counter()
        self.peer.start(token)
        self.starts.append(time.perf_counter() - began)
        return token

    def run(self, seconds):
        began = last = time.perf_counter()
        ended, most = len(self.reports.ended), BACKLOG
        while (now := time.perf_counter()) < began + seconds:
            if now >= last + 1:
                most = BACKLOG + len(self.reports.ended) - ended
                last, ended = now, len(self.reports.ended)
            if self.started - len(self.reports.ended) < most:
                self.start_one()
            else:
                time.sleep(0.002)

    def drain(self):
        until = time.perf_counter() + LIMIT
        while len(self.reports.ended) < self.started and time.perf_counter() < until:
            time.sleep(0.01)
        return self.started - len(self.reports.ended)


class Costs:
    """The CPU of the workers and of PostgreSQL so far, in seconds, and the position in its log."""

    def __init__(self, workers, connection):
        self.at = time.perf_counter()
        self.workers = sum(map(cpu_of, trees(workers)))
        self.postgresql = sum(map(cpu_of, postgresql(connection)))
        (position,) = connection.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        self.log = float(position)


def postgresql(connection):
    """Its processes: all of them, also those that have ended; on a server that others use, the
    sessions of this database."""
    if not os.environ.get("PEERS_SHARED_SERVER"):
        yield from trees([psutil.Process(connection.info.backend_pid).ppid()])
        return
    rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    for (pid,) in rows.fetchall():
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def trees(pids):
    for pid in pids:
        try:
            process = psutil.Process(pid)
            yield from [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            pass


def cpu_of(process):
    """Its own, and that of its children that have ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def measure(peer, processes, threads, seconds, alone):
    reports = Reports()
    load = Load(peer, reports)
    options = {"stdout": sys.stderr, "start_new_session": True}
    workers = [subprocess.Popen(each, **options) for each in peer.workers(processes, threads)]
    pids = [worker.pid for worker in workers]
    try:
        with psycopg.connect(DATABASE_URL, autocommit=True) as connection:
            return under_load(load, pids, seconds, connection) | {
                "alone_ms": latency(load, alone),
                "twice": reports.twice,
            }
    finally:
        end(workers)


def under_load(load, pids, seconds, connection):
    load.start_one()
    if load.drain():
        raise SystemExit("The worker did nothing.")
    load.run(WARM_UP)
    load.starts.clear()
    before = Costs(pids, connection)
    load.run(seconds)
    after = Costs(pids, connection)
    starts = load.starts[:]
    ended = sum(before.at <= at < after.at for at in load.reports.ended.values())
    steps = max(ended, 1) * STEPS
    return {
        "per_second": ended / (after.at - before.at),
        "worker_us": (after.workers - before.workers) / steps * 1e6,
        "postgresql_us": (after.postgresql - before.postgresql) / steps * 1e6,
        "log_bytes": (after.log - before.log) / steps,
        "start_ms": statistics.median(starts) * 1e3 if starts else None,
        "lost": load.drain(),
    }


def latency(load, count):
    """Milliseconds of a sequence that runs alone, from before its start: the median."""
    times = []
    for _ in range(count):
        time.sleep(0.05)
        began = time.perf_counter()
        token = load.start_one()
        if load.drain():
            return None
        times.append(load.reports.ended[token] - began)
    return statistics.median(times) * 1e3 if times else None


def end(workers):
    processes = list(trees([worker.pid for worker in workers]))
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=8)
    for process in alive:
        process.kill()
    for worker in workers:
        worker.wait()


def main():
    peer = importlib.import_module(sys.argv[1])
    if sys.argv[2] == "prepare":
        peer.prepare()
    else:
        processes, threads = int(sys.argv[2]), int(sys.argv[3])
        result = measure(peer, processes, threads, float(sys.argv[4]), int(sys.argv[5]))
        print(json.dumps(result), flush=True)
    os._exit(0)  # some peers have threads that would not end


if __name__ == "__main__":
    main()
