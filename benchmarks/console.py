"""How fast the admin answers with many runs: `python benchmarks/console.py --runs 1000000`.

See benchmarks/README.md for what is measured, and for what it does not tell.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from steps import environment_of, temporary_database

APP = "benchmark"
#: Sequences; the last one has not been started for a long time.
SEQUENCES = 20
STEPS = ("receive", "charge", "approval", "pack", "thank")
DAYS = 90


def main() -> int:
    options = parse_arguments()
    if options.measure:
        return measure(options)
    from testproject import services

    with services.running("DATABASE_URL") as urls:
        made = nullcontext(options.into) if options.into else None
        with made or temporary_database(urls["DATABASE_URL"]) as database_url:
            environment = environment_of({"REDIS_URL": "", **urls}, str(database_url))
            command = [sys.executable, __file__, *sys.argv[1:], "--measure"]
            return subprocess.run(command, env=environment).returncode


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5, help="that each page is asked for")
    parser.add_argument("--into", help="fill this empty database, and keep it: admin, admin")
    parser.add_argument("--explain", help="print the plans of the queries of pages of this name")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> int:
    import django
    from django.conf import settings

    settings.DEBUG = False  # Django would keep every statement
    django.setup()
    from django.core.management import call_command

    from sequences.models import SequenceRun

    labels = declare()
    call_command("migrate", verbosity=0)
    if not SequenceRun.objects.exists():
        began = time.perf_counter()
        fill(labels, options.runs)
        print(f"Filled in {time.perf_counter() - began:.0f} s.", flush=True)
    report(options)
    return 0


def declare() -> list[str]:
    """Sequences of one shape; every fourth has secrets in its data."""
    from sequences import Sequence, event, step

    def nothing(self: Any) -> None: ...

    labels = []
    for number in range(SEQUENCES):
        redact = ["card.*"] if number % 4 == 0 else []
        meta = type("Meta", (), {"app_label": APP, "redact": redact})
        steps = {name: step(nothing) if name != "approval" else event() for name in STEPS}
        cls = type(f"Order{number:02}", (Sequence,), {"Meta": meta, **steps})
        labels.append(cls._definition.label)
    return labels


# The database. All of it in a few statements: rows made one by one would take hours.

RUNS = """
INSERT INTO job_sequences_sequencerun (id, plan_id, sequence, key, active_key, key_scope,
    releases_key, status, final_status, data, version, inbox, created_at, updated_at, finished_at,
    traceparent)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
    plan.id, plan.sequence, CASE WHEN n %% 2 = 0 THEN 'order-' || n END,
    CASE WHEN n %% 2 = 0 THEN 'order-' || n END, plan.sequence, false, status, '',
    jsonb_build_object('order', n, 'name', 'Customer ' || n, 'email', 'c' || n || '@example.com',
        'card', jsonb_build_object('number', '4111-' || n), 'note', md5(n::text) || md5('n' || n),
        'items', jsonb_build_array('book', 'lamp', n %% 97)),
    5, '{}', at, at + interval '1 minute',
    CASE WHEN status IN ('succeeded', 'failed', 'cancelled') THEN at + interval '1 minute' END, ''
FROM (
    SELECT n, now() - %(days)s * interval '1 day' * (1 - n::float / %(runs)s) AS at,
        CASE WHEN r %% %(sequences)s = %(sequences)s - 1 AND n > %(runs)s / 10 THEN 0
            ELSE r %% %(sequences)s END AS number,
        CASE WHEN n > %(runs)s * 0.998 THEN 'running' WHEN p < 100 THEN 'failed'
            WHEN p < 150 THEN 'cancelled' WHEN p < 160 THEN 'paused' WHEN p < 161 THEN 'undoing'
            WHEN p < 190 THEN 'running' ELSE 'succeeded' END AS status
    FROM (
        SELECT n, (n::bigint * 2654435761 %% 4294967296) %% 10007 AS p,
            (n::bigint * 40503 %% 65536) %% 1009 AS r
        FROM generate_series(1, %(runs)s) n
    ) numbers
) made JOIN (
    SELECT id, sequence, row_number() OVER (ORDER BY sequence) - 1 AS number
    FROM job_sequences_storedplan WHERE sequence = ANY(%(labels)s)
) plan USING (number)
"""

STEP_RUNS = """
INSERT INTO job_sequences_steprun (run_id, step, item, kind, status, attempts, lost_workers,
    repeats, dispatches, delay_evaluated, worker, ready_at, queued_at, started_at, finished_at,
    due_at, wake_at, payload)
SELECT run.id, (%(steps)s::text[])[k], -1, CASE WHEN k = 3 THEN 'event' ELSE 'step' END, state,
    CASE WHEN state IN ('failed', 'retrying') THEN 3 ELSE 0 END, 0, 0, 0, false, 'box:1:Thread-1',
    at, at, CASE WHEN state NOT IN ('queued', 'waiting') THEN at + interval '1 second' END,
    CASE WHEN state IN ('succeeded', 'failed', 'cancelled') THEN at + interval '3 seconds' END,
    CASE WHEN state = 'retrying' THEN now() + interval '3 minutes' END,
    CASE WHEN run.status = 'paused' THEN NULL
        WHEN state = 'running' THEN now() + interval '1 hour'
        WHEN state IN ('queued', 'retrying') THEN now() + interval '4 minutes' END,
    CASE WHEN state = 'waiting' THEN '{"waiting_since": "2026-01-01T00:00:00+00:00"}'::jsonb END
FROM (
    SELECT id, status, created_at, CASE WHEN status = 'succeeded' THEN 5
        WHEN status IN ('failed', 'cancelled') THEN 2 + abs(hashtext(id::text) %% 4)
        ELSE 1 + abs(hashtext(id::text) %% 5) END AS last
    FROM job_sequences_sequencerun
) run CROSS JOIN LATERAL (
    SELECT k, run.created_at + k * interval '10 seconds' AS at,
        CASE WHEN k < run.last OR run.status = 'succeeded' THEN 'succeeded'
            WHEN run.status IN ('failed', 'cancelled') THEN run.status
            WHEN k = 3 THEN 'waiting' WHEN run.status = 'paused' THEN 'queued'
            ELSE (ARRAY['queued', 'running', 'retrying'])[1 + abs(hashtext(md5(run.id::text)) %% 3)]
        END AS state
    FROM generate_series(1, run.last) k
) step
"""

FAILURES = """
INSERT INTO job_sequences_stepfailure (run_id, step_run_id, step, item, attempt, error, message,
    traceback, worker, failed_at)
SELECT run_id, id, step, -1, attempt,
    (ARRAY['requests.exceptions.ConnectionError', 'shop.payments.CardDeclined', 'builtins.KeyError',
        'sequences.exceptions.StepExpired'])[1 + id %% 4],
    (ARRAY['The payment service does not answer', 'Card 4111 was declined: insufficient funds',
        '''shipping_address''', 'The step is older than its max_age'])[1 + id %% 4]
        || E'\\nSecond line',
    repeat('  File "shop/sequences.py", line 12, in charge' || E'\\n', 8), 'box:1:Thread-1',
    coalesce(started_at, queued_at) + attempt * interval '1 second'
FROM job_sequences_steprun CROSS JOIN generate_series(1, 3) attempt
WHERE status IN ('failed', 'retrying') OR (attempt = 1 AND id %% 300 = 0)
"""


def fill(labels: list[str], runs: int) -> None:
    from django.contrib.auth.models import User
    from django.db import connection

    from sequences.definitions import registry
    from sequences.transitions import plans, processes

    for label in labels:
        plans.store(registry.get(label)._definition.plan, "default")
    values = {
        "runs": runs,
        "days": DAYS,
        "sequences": SEQUENCES,
        "labels": labels,
        "steps": list(STEPS),
    }
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("SET work_mem = '256MB'")
        for statement in (RUNS, STEP_RUNS, FAILURES):
            cursor.execute(statement, values)
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("RESET work_mem")
    for number in range(4):
        processes.seen(processes.ProcessReport(f"box:{number + 1}", ["default"], 8), "default")
    User.objects.create_superuser("admin", "admin@example.com", "admin")


# What is asked for.


def pages() -> Iterator[tuple[str, str]]:
    """The name and the address of each."""
    from django.urls import reverse

    from sequences.models import SequenceRun, StepRun

    runs, steps, failures = (
        reverse(f"admin:job_sequences_{name}")
        for name in ("sequencerun_changelist", "steprun_changelist", "sequencerun_failure_groups")
    )
    middle, deep = (
        place(SequenceRun.objects.order_by("created_at", "id"), part) for part in (2, 10)
    )
    failed = SequenceRun.objects.filter(status="failed").order_by("-created_at").first()
    keyed = SequenceRun.objects.filter(key__isnull=False).order_by("created_at").first()
    step = StepRun.objects.order_by("id")[StepRun.objects.count() // 2]
    assert failed is not None
    assert keyed is not None
    yield "first page", runs
    yield "tab: unfinished", f"{runs}?status=unfinished"
    yield "tab: failed", f"{runs}?status=failed"
    yield "tab: succeeded", f"{runs}?status=succeeded"
    yield "tab: undoing (few)", f"{runs}?status=undoing"
    yield "one sequence", f"{runs}?sequence={APP}.Order03"
    yield "one sequence, failed", f"{runs}?sequence={APP}.Order03&status=failed"
    yield "a sequence with old runs only", f"{runs}?sequence={APP}.Order19"
    yield "at a step", f"{runs}?sequence={APP}.Order03&step=approval"
    yield "at a step, all sequences", f"{runs}?step=charge"
    yield "started in the last hour", f"{runs}?created=hour"
    yield "in the last 30 days, failed", f"{runs}?created=month&status=failed"
    yield "oldest first", f"{runs}?o=4"
    yield "from run 500,000", f"{runs}?before={middle}"
    yield "from run 900,000", f"{runs}?before={deep}"
    yield "from run 900,000, one sequence", f"{runs}?sequence={APP}.Order03&before={deep}"
    yield "from run 900,000, succeeded", f"{runs}?status=succeeded&before={deep}"
    yield "search: id", f"{runs}?q={failed.pk}"
    yield "search: beginning of an id", f"{runs}?q={str(failed.pk)[:13]}"
    yield "search: key", f"{runs}?q={keyed.key}"
    yield "search: text in many runs", f"{runs}?q=example.com"
    yield "search: text in no run", f"{runs}?q=no-such-text"
    yield "search: text, failed", f"{runs}?q=no-such-text&status=failed"
    yield "failures", failures
    error = "shop.payments.CardDeclined"
    yield (
        "runs of a failure",
        f"{runs}?sequence={APP}.Order03&error={error}&failed_step=charge&since=week",
    )
    yield "runs of an error", f"{runs}?error={error}&since=month"
    yield "a run", reverse("admin:job_sequences_sequencerun_change", args=[failed.pk])
    yield "step runs", steps
    yield "step runs, from row 2,500,000", f"{steps}?before={step.pk}"
    yield "step runs: running", f"{steps}?status__exact=running"
    yield "step runs: of a sequence", f"{steps}?sequence={APP}.Order19"
    yield "step runs: of a run", f"{steps}?q={failed.pk}"
    yield "step runs: of a key", f"{steps}?q={keyed.key}"
    yield "a step run", reverse("admin:job_sequences_steprun_change", args=[step.pk])


def place(rows: Any, part: int) -> str:
    """The key of a row this deep in the list."""
    count = rows.count()
    row = rows[count // part if part > 2 else count // 2]
    micros = round(row.created_at.timestamp() * 1_000_000)
    return f"{micros}_{row.pk.hex}"


def report(options: argparse.Namespace) -> None:
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from sequences.models import SequenceRun, StepFailure, StepRun

    for model in (SequenceRun, StepRun, StepFailure):
        print(f"{model.objects.count():>12,} {model._meta.verbose_name_plural}")
    client = Client()
    client.force_login(User.objects.get(username="admin"))
    with connection.cursor() as cursor:
        # So that all that a query costs is in the time of one process.
        cursor.execute("SET max_parallel_workers_per_gather = 0")
    server = server_process()
    print("\n                                             wall-clock time        CPU")
    print(f"{'page':32} queries     median   slowest       web  database")
    for name, address in pages():
        if options.explain and options.explain not in name:
            continue
        with CaptureQueriesContext(connection) as queries:
            get(client, address)
        captured = queries.captured_queries  # gone with the next request
        web, database = time.process_time(), cpu_of(server)
        took = [get(client, address) for _ in range(options.times)]
        web, database = time.process_time() - web, cpu_of(server) - database
        median, slowest = statistics.median(took), max(took)
        spent = [median, slowest, web / options.times, database / options.times]
        times = "".join(f"{seconds * 1000:7.0f} ms" for seconds in spent)
        print(f"{name:32} {len(captured):7} {times}", flush=True)
        if options.explain:
            explain(captured)


def server_process() -> Any:
    """That which serves our connection, if it runs on this machine."""
    import psutil
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), inet_server_addr() = inet_client_addr()")
        pid, is_here = cursor.fetchone()
    return psutil.Process(pid) if is_here in (True, None) and psutil.pid_exists(pid) else None


def cpu_of(process: Any) -> float:
    times = process.cpu_times() if process else None
    return times.user + times.system if times else float("nan")


def get(client: Any, address: str) -> float:
    began = time.perf_counter()
    response = client.get(address)
    took = time.perf_counter() - began
    assert response.status_code == 200, (address, response.status_code, response.headers)
    return took


def explain(queries: list[dict[str, Any]]) -> None:
    from django.db import connection

    for query in queries:
        if float(query["time"]) < 0.02:
            continue
        print(query["time"], query["sql"][:3000])
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {query['sql'].replace('%', '%%')}", ())
            print("\n".join(f"    {row[0]}" for row in cursor.fetchall()))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    sys.exit(main())
