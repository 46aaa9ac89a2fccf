"""DBOS: a workflow of five steps on PostgreSQL, by way of one of its queues."""

import sys
import time

from common import NAMESPACE, STEPS, add_one, new_state, report, sqlalchemy_url
from dbos import DBOS, DBOSClient

#: Seconds between two looks at the queue: DBOS's own default is 1.
POLL = 0.1
_client = None


def launch(threads, number):
    DBOS(
        config={
            "name": "peers",
            "system_database_url": sqlalchemy_url(),
            "max_executor_threads": threads,
            "executor_id": f"{NAMESPACE}-{number}",
            "application_version": "1",
            "log_level": "WARNING",
        }
    )

    @DBOS.step()
    def perform(state):
        return add_one(state)

    @DBOS.workflow(name="count")
    def count(state):
        for _ in range(STEPS):
            state = perform(state)
        report(state)
        return state

    DBOS.launch()
    DBOS.register_queue("peers", polling_interval_sec=POLL)


def prepare():
    launch(2, "prepare")
    DBOS.destroy()


def start(token):
    global _client
    if _client is None:
        _client = DBOSClient(system_database_url=sqlalchemy_url())
    _client.enqueue({"workflow_name": "count", "queue_name": "peers"}, new_state(token))


def workers(processes, threads):
    return [
        [sys.executable, "peer_dbos.py", str(threads), str(number)] for number in range(processes)
    ]


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2])
    while True:
        time.sleep(3600)
