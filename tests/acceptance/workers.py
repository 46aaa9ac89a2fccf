"""Real worker processes on a real broker, and what tests do to them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import dramatiq
import pika
import psutil
from django.db import connection
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from sequences.brokers import PostgresBroker
from testproject import databases

from .app.sequences import QUEUE

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds for anything that is waited for

#: Short enough to wait for, long enough for a machine that is busy with other things.
SETTINGS = {"GRACE": 3, "LEASE": 5, "HEARTBEAT": 1.2, "SWEEP_INTERVAL": 0.3}


def wait_for(condition, what="", limit=LIMIT):
    """Return what the condition gives as soon as that is true."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited for {limit} seconds: {what or condition}"
        time.sleep(0.05)
    return value


class Worker:
    """One worker process under Dramatiq's own command, in a process group of its own."""

    def __init__(self, environment, log, threads, queues):
        self.log_path = log
        command = [sys.executable, "-m", "dramatiq", "--processes=1", f"--threads={threads}"]
        command += ["django_dramatiq.setup", "sequences.tasks", "--queues", *queues]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.worker_settings",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def is_ready(self):
        if "Worker process is ready for action." in self.log:
            return True  # and its first step may have killed it since
        assert self.process.poll() is None, f"a worker did not start:\n{self.log}"
        return False

    def is_alive(self):
        return self.process.poll() is None

    def has(self, pid):
        """Whether this process is one of this worker's."""
        processes = psutil.Process(self.process.pid)
        return pid in {child.pid for child in processes.children(recursive=True)}

    def terminate(self):
        """Ask it to end, as a deploy does."""
        self.process.terminate()

    def kill(self):
        """End it at once, with its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def freeze(self):
        """Stop its processes where they are."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self):
        """Let them go on."""
        os.killpg(self.process.pid, signal.SIGCONT)


class Crew:
    """The workers of one test, on a broker that nobody else uses."""

    def __init__(self, kind, url, directory, **settings):
        self.kind, self.directory, self.server_url = kind, directory, url
        self.settings = {**SETTINGS, **settings}
        self.namespace = f"acceptance-{uuid4().hex[:12]}"
        self.workers, self.hired = [], 0
        self.connect_to(url)

    def connect_to(self, url):
        """Let workers that start from now on, and this process, use the server there."""
        self.url = url
        if self.kind == "amqp":
            self.broker = RabbitmqBroker(url=url, confirm_delivery=True, middleware=[])
        elif self.kind == "postgres":
            self.broker = PostgresBroker(schema=self.namespace, middleware=[])
            self.broker.create_tables()
        else:
            self.broker = RedisBroker(url=url, namespace=self.namespace, middleware=[])

    @property
    def environment(self):
        return {
            "BROKER": self.kind,
            "BROKER_SCHEMA": self.namespace,
            "AMQP_URL": self.url if self.kind == "amqp" else "",
            "REDIS_URL": self.url if self.kind == "redis" else "",
            "REDIS_NAMESPACE": self.namespace,
            "DATABASE_URL": databases.to_url(connection.settings_dict),
            "TEST_SEQUENCES": json.dumps(self.settings),
        }

    def start(self, count=1, *, threads=2, release="1", queues=(QUEUE,)):
        """Start workers, and return them when they are ready."""
        environment = {**self.environment, "RELEASE": release}
        started = [self._start(environment, threads, queues) for _ in range(count)]
        for worker in started:
            wait_for(worker.is_ready, "a worker that is ready")
        return started

    def _start(self, environment, threads, queues):
        self.hired += 1
        log = self.directory / f"worker-{self.hired}.log"
        self.workers.append(Worker(environment, log, threads, queues))
        return self.workers[-1]

    def start_run(self, label, release, **data):
        """Start a sequence as a web process of that release does; returns the run's id."""
        program = (
            "import django, json, sys; django.setup(); from sequences.definitions import registry; "
            "print(registry.get(sys.argv[1]).start(json.loads(sys.argv[2])).run.pk)"
        )
        settings = {"DJANGO_SETTINGS_MODULE": "tests.worker_settings", "RELEASE": release}
        return subprocess.run(
            [sys.executable, "-c", program, label, json.dumps(data)],
            cwd=ROOT,
            env={**os.environ, **self.environment, **settings},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()

    def performer(self, step_run):
        """The worker that has claimed it."""
        pid = int(step_run.worker.split(":")[1])
        return next(worker for worker in self.workers if worker.is_alive() and worker.has(pid))

    def skipped(self):
        """How many messages had nothing to claim, or lost their claim."""
        return sum(worker.log.count("was skipped") for worker in self.workers)

    def lose_messages(self):
        """Empty the broker, as a restart without a disk does."""
        self.broker.declare_queue(QUEUE)
        self.broker.flush(QUEUE)

    def dead_letters(self):
        """How many messages nobody could process."""
        if self.kind == "postgres":
            with connection.cursor() as cursor:
                cursor.execute(
                    f'SELECT count(*) FROM "{self.namespace}".queue '
                    "WHERE queue_name = %s AND state = 'rejected'",
                    [QUEUE],
                )
                return cursor.fetchone()[0]
        assert self.kind == "redis"
        return self.broker.client.zcard(f"{self.namespace}:{QUEUE}.XQ")

    def __enter__(self):
        """This process dispatches to the crew's broker."""
        self._usual = dramatiq.get_broker()
        dramatiq.set_broker(self.broker)
        return self

    def __exit__(self, *_):
        dramatiq.set_broker(self._usual)

    def dismiss(self):
        """Kill them all, and leave nothing on the server."""
        for worker in self.workers:
            worker.kill()
        self.workers = []
        self._clean()

    @contextmanager
    def aside(self):
        """This process has its own broker again, as long as this lasts."""
        dramatiq.set_broker(self._usual)
        yield
        dramatiq.set_broker(self.broker)

    def disconnect(self):
        """Close what this process holds of its broker."""
        if self.kind in ("amqp", "postgres"):
            self.broker.close()
        else:
            self.broker.client.connection_pool.disconnect()

    def _clean(self):
        self.disconnect()
        if self.kind == "postgres":
            with connection.cursor() as cursor:
                cursor.execute(f'DROP SCHEMA "{self.namespace}" CASCADE')
            return
        self.connect_to(self.server_url)
        if self.kind == "amqp":
            for name in (QUEUE, f"{QUEUE}.DQ", f"{QUEUE}.XQ"):
                with suppress(pika.exceptions.AMQPError):
                    self.broker.channel.queue_delete(name)
        else:
            keys = list(self.broker.client.scan_iter(f"{self.namespace}:*", count=1000))
            if keys:
                self.broker.client.delete(*keys)
        self.disconnect()

    def show(self):
        """Print what the workers have logged."""
        for worker in self.workers:
            print(f"--- {worker.log_path.name} ---\n{worker.log[-20_000:]}")


class Gateway:
    """A port in front of a server, that can be closed and opened again."""

    def __init__(self, url):
        self._parts = urlsplit(url)
        usual = 5672 if self._parts.scheme == "amqp" else 6379
        self._server = (self._parts.hostname, self._parts.port or usual)
        self._listener, self._sockets, self._threads = None, [], []
        self._lock = threading.Lock()
        #: How many bytes still reach the server; None: all.
        self.left = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    @property
    def url(self):
        login, at, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(netloc=f"{login}{at}127.0.0.1:{self._port}").geturl()

    def open(self):
        """From now on connections are taken."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._run(self._accept, self._listener)

    def close(self):
        """Cut all connections, and refuse new ones."""
        with self._lock:
            open_now = [one for one in (self._listener, *self._sockets) if one]
            self._listener, self._sockets = None, []
        for one in open_now:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in open_now:
            one.close()
        self._threads = []

    def _run(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
                with self._lock:
                    if self._listener is not listener:
                        client.close()
                        server.close()
                        return
                    self._sockets += [client, server]
                self._run(self._copy, client, self._rationed(server))
                self._run(self._copy, server, client)

    def _rationed(self, server):
        gateway = self

        class Rationed:
            """The server, which is cut off once too many bytes have reached it."""

            shutdown = server.shutdown

            def sendall(self, piece):
                if gateway.left is not None:
                    piece, whole = piece[: gateway.left], len(piece)
                    gateway.left -= len(piece)
                    server.sendall(piece)
                    if len(piece) < whole:
                        raise ConnectionError
                else:
                    server.sendall(piece)

        return Rationed()

    def _copy(self, source, target):
        with suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *_):
        self.close()
