"""Whether a fan-out's time per item and memory are flat: `python benchmarks/fan_out.py`.

Beside it: as many plain messages, each of which updates one row. See docs/benchmarks.md.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from steps import THREADS, environment_of, temporary_database

ROOT = Path(__file__).resolve().parent.parent
QUEUE = "fan_out"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--threads", type=int, default=THREADS, help="of the worker process")
    parser.add_argument("--role", choices=["driver", "worker", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "worker":
        return work(options.items[0], options.threads)
    if options.role == "plain":
        return work_plainly(options.items[0], options.threads)
    if options.role == "driver":
        return drive(options.items, options.threads)
    from testproject import services

    with (
        services.running("DATABASE_URL", "REDIS_URL") as urls,
        temporary_database(urls["DATABASE_URL"]) as database_url,
    ):
        command = [sys.executable, __file__, *sys.argv[1:], "--role", "driver"]
        return subprocess.run(command, env=environment_of(urls, database_url)).returncode


def declare():
    """Set Django up, and declare the sequence."""
    import django
    from django.conf import settings

    settings.DEBUG = False  # Django would keep every statement
    django.setup()
    from sequences import Sequence, step

    class FanOut(Sequence):
        class Meta:
            app_label = "benchmark"
            queue_name = QUEUE

        @step(each=lambda self: range(self.data["items"]))
        def work(self, item):
            return item

        @step
        def gather(self):
            self.data["sum"] = sum(self.results("work"))

    return FanOut


def drive(sizes: list[int], threads: int) -> int:
    declare()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    print(f"{'items':>10} {'':8} {'ms each':>9} {'worker CPU ms each':>19} {'ratio':>7} {'MiB':>6}")
    for size in sizes:
        plain = measured("plain", size, threads)
        for name, (seconds, cpu, memory) in {
            "plain": plain,
            "fan-out": measured("worker", size, threads),
        }.items():
            print(
                f"{size:>10,} {name:8} {seconds / size * 1000:>9.2f} {cpu / size * 1000:>19.2f} "
                f"{cpu / plain[1]:>7.2f} {memory:>6.0f}",
                flush=True,
            )
    return 0


def measured(role: str, size: int, threads: int) -> tuple[float, float, float]:
    """Of a worker process: seconds, CPU seconds, peak MiB."""
    command = [sys.executable, __file__, "--role", role, "--items", str(size)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    seconds, cpu, memory = map(float, done.stdout.splitlines()[-1].split())
    return seconds, cpu, memory


def work(size: int, threads: int) -> int:
    """Be a worker until the one sequence has ended; print seconds, CPU seconds and peak MiB."""
    import resource

    fan_out = declare()
    import dramatiq
    from dramatiq import Worker

    run = fan_out(items=size).run
    worker = Worker(dramatiq.get_broker(), worker_threads=threads, queues={QUEUE})
    began, cpu = time.monotonic(), time.process_time()
    worker.start()
    while not run.is_finished:
        time.sleep(0.05)
        run.refresh_from_db(fields=["status"])
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    worker.stop()
    run.refresh_from_db()
    if run.data.get("sum") != size * (size - 1) // 2:
        raise SystemExit(f"It is {run.status}, with {run.data}: {list(run.failures.all()[:3])}")
    print(seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return 0


def work_plainly(size: int, threads: int) -> int:
    """The same number of messages; each counts one up in a row of its own."""
    import resource

    import django
    from django.conf import settings

    settings.DEBUG = False  # Django would keep every statement
    django.setup()
    import dramatiq
    from django.db import connection, models
    from dramatiq import Worker

    class Item(models.Model):
        count = models.IntegerField(default=0)

        class Meta:
            app_label = "benchmark"

        def __str__(self) -> str:
            return str(self.pk)

    @dramatiq.actor(queue_name=QUEUE, actor_name="count")
    def count(pk: int) -> None:
        Item.objects.filter(pk=pk).update(count=models.F("count") + 1)

    with connection.schema_editor() as editor:
        editor.create_model(Item)
    worker = Worker(dramatiq.get_broker(), worker_threads=threads, queues={QUEUE})
    began, cpu = time.monotonic(), time.process_time()
    worker.start()
    for item in Item.objects.bulk_create((Item() for _ in range(size)), batch_size=1000):
        count.send(item.pk)
    while Item.objects.filter(count=0).exists():
        time.sleep(0.05)
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    worker.stop()
    with connection.schema_editor() as editor:
        editor.delete_model(Item)
    print(seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
