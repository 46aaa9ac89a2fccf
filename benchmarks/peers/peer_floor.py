"""The floor: what one writes by hand, an actor on the Django ORM, without any promise.

It reads its row, changes the JSON, writes it guarded by the number of the step, and sends the
message of the next step. A crash between the two loses the sequence.
"""

import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"
os.environ["PEERS_APPS"] = "django_dramatiq"

import django

django.setup()

import dramatiq
from common import STEPS, add_one, new_state, report
from django.db import connection, models


class FloorRun(models.Model):
    state = models.JSONField()
    step = models.IntegerField(default=0)
    status = models.CharField(max_length=20, default="running")

    class Meta:
        app_label = "floor"

    def __str__(self):
        return str(self.pk)


@dramatiq.actor
def perform(pk, number):
    run = FloorRun.objects.get(pk=pk)
    if run.step != number:
        return
    add_one(run.state)
    is_last = number + 1 == STEPS
    status = "succeeded" if is_last else "running"
    rows = FloorRun.objects.filter(pk=pk, step=number)
    if not rows.update(state=run.state, step=number + 1, status=status):
        return
    if is_last:
        report(run.state)
    else:
        perform.send(pk, number + 1)


def prepare():
    with connection.schema_editor() as editor:
        editor.create_model(FloorRun)


def start(token):
    run = FloorRun.objects.create(state=new_state(token))
    perform.send(run.pk, 0)


def workers(processes, threads):
    command = [sys.executable, "-m", "dramatiq", __name__]
    return [[*command, "--processes", str(processes), "--threads", str(threads)]]
