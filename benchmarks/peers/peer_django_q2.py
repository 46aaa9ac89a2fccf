"""django-q2: a chain of five tasks on Redis; its results are kept in PostgreSQL."""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"
os.environ["PEERS_APPS"] = "django_q"

import django

django.setup()

from common import STEPS, report


def perform(token, number):
    """Its chains hand nothing on: each task knows its number."""
    if number == STEPS:
        report({"token": token, "n": number})
    return number


def prepare():
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def start(token):
    from django_q.tasks import async_chain

    async_chain([("peer_django_q2.perform", (token, number + 1)) for number in range(STEPS)])


def workers(processes, threads):
    # It has no threads: one process for each of them, or as many as there are processes.
    os.environ["PEERS_WORKERS"] = str(threads if processes == 1 else processes)
    return [[sys.executable, "-m", "django", "qcluster"]]
