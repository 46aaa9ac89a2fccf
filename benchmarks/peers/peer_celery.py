"""Celery: a chain of five tasks on Redis; django-celery-results keeps what each has returned."""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"
os.environ["PEERS_APPS"] = "django_celery_results"

import django

django.setup()

from celery import Celery, chain
from common import NAMESPACE, REDIS_URL, STEPS, add_one, new_state, report

app = Celery("peers", broker=REDIS_URL, backend="django-db")
app.conf.update(
    broker_transport_options={"global_keyprefix": NAMESPACE},
    broker_connection_retry_on_startup=True,
)


@app.task(name="perform")
def perform(state):
    add_one(state)
    if state["n"] == STEPS:
        report(state)
    return state


def prepare():
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def start(token):
    chain(perform.s(new_state(token)), *(perform.s() for _ in range(STEPS - 1))).apply_async()


def workers(processes, threads):
    command = [sys.executable, "-m", "celery", "-A", "peer_celery:app", "worker"]
    command += ["--pool", "threads", "--concurrency", str(threads), "--loglevel", "WARNING"]
    return [[*command, "--hostname", f"{number}@peers"] for number in range(processes)]
