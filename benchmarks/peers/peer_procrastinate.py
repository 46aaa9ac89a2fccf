"""Procrastinate: five jobs on PostgreSQL, each defers the next; asynchronous, its fastest way."""

import sys

from common import STEPS, add_one, conninfo, new_state, report
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

IS_WORKER = "worker" in sys.argv
app = App(
    connector=PsycopgConnector(conninfo=conninfo(), min_size=2, max_size=12)
    if IS_WORKER
    else SyncPsycopgConnector(conninfo=conninfo())
)
_is_open = False


@app.task(name="perform")
async def perform(state):
    add_one(state)
    if state["n"] < STEPS:
        await perform.defer_async(state=state)
    else:
        report(state)


def prepare():
    app.open()
    app.schema_manager.apply_schema()


def start(token):
    global _is_open
    if not _is_open:
        app.open()
        _is_open = True
    perform.defer(state=new_state(token))


def workers(processes, threads):
    command = [sys.executable, "-m", "procrastinate", "--app", "peer_procrastinate.app"]
    command += ["--log-level", "warning", "worker", "--concurrency", str(threads)]
    return [command for _ in range(processes)]
