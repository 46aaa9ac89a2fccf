"""duratiq: a workflow of five activities, on Dramatiq with Redis, and PostgreSQL."""

import sys

import dramatiq
from common import NAMESPACE, REDIS_URL, STEPS, add_one, new_state, report, sqlalchemy_url
from dramatiq.brokers.redis import RedisBroker
from duratiq import Engine, Registry, SqlStore, activity, workflow
from duratiq.drivers.dramatiq import DramatiqDriver

broker = RedisBroker(url=REDIS_URL, namespace=NAMESPACE)
dramatiq.set_broker(broker)
registry = Registry()


@activity(name="perform", registry=registry)
def perform(state):
    return add_one(state)


@workflow(name="count", registry=registry)
def count(context, state):
    for _ in range(STEPS):
        state = context.activity(perform, state)
    report(state)
    return state


store = SqlStore(sqlalchemy_url())
engine = Engine(registry, store)
driver = DramatiqDriver(engine, broker=broker)


def prepare():
    store.create_all()


def start(token):
    engine.start("count", state=new_state(token))


def workers(processes, threads):
    command = [sys.executable, "-m", "dramatiq", "peer_duratiq"]
    return [[*command, "--processes", str(processes), "--threads", str(threads)]]
