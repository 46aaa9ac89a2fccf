"""This project, each step by way of the broker."""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"
os.environ["PEERS_APPS"] = "django_dramatiq,sequences"

import django

django.setup()

from common import add_one, new_state, report

from sequences import Sequence, step


class Count(Sequence):
    class Meta:
        app_label = "peers"
        handoff = os.environ.get("PEERS_HANDOFF", "broker")

    @step
    def one(self):
        add_one(self.data)

    @step
    def two(self):
        add_one(self.data)

    @step
    def three(self):
        add_one(self.data)

    @step
    def four(self):
        add_one(self.data)

    @step
    def five(self):
        report(add_one(self.data))


def prepare():
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def start(token):
    Count.start(new_state(token))


def start_many(tokens):
    Count.start_many(new_state(token) for token in tokens)


def workers(processes, threads):
    command = [sys.executable, "-m", "dramatiq", "peer_sequences"]
    return [[*command, "--processes", str(processes), "--threads", str(threads)]]
