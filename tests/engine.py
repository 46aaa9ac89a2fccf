"""The engine by hand: one claim, one commit at a time, for tests of what is between."""

import secrets
from datetime import timedelta

import dramatiq
from django.db import connection
from django.test import TestCase

from sequences import conf
from sequences.engine import dispatcher
from sequences.engine.executor import StepExecution
from sequences.models import SequenceRun, StepRun
from sequences.transitions import claims, clock, failures
from sequences.transitions.failures import Failure


def fresh(run):
    """The run as it is stored now."""
    return SequenceRun.objects.get(pk=run.pk)


def row(run, step):
    return StepRun.objects.get(run=run.pk, step=step)


def ledger(run):
    return dict(StepRun.objects.filter(run=run.pk).order_by("pk").values_list("step", "status"))


def claim(run, step, worker="worker"):
    """A worker takes the step, and has not performed it yet. None: it is not to be had."""
    found = row(run, step)
    return take(found.pk, found.attempts, worker)


def take(step_run_id, attempts=0, worker="worker"):
    return claims.claim(step_run_id, attempts, secrets.randbits(63), worker, conf.using())


def perform(claim):
    """Perform and commit what was claimed; returns what became ready."""
    return StepExecution.of(claim, conf.using()).live()


def fail(claim, *, final=True, error=None):
    """The claimed step fails: for good, or to be retried."""
    failure = Failure.of(error or ValueError("broken"))
    return failures.record(claim, failure, final=final, using=conf.using()) is not None


def sent(act):
    """What an act dispatches once its transaction commits."""
    with dispatcher.capture_dispatches() as caught, TestCase.captureOnCommitCallbacks(execute=True):
        act()
    return caught


def steps_of(dispatches):
    """The names of the steps that are dispatched."""
    found = StepRun.objects.in_bulk([dispatch.step_run_id for dispatch in dispatches])
    return [found[dispatch.step_run_id].step for dispatch in dispatches]


def change(run, step, **values):
    """Write a row as no transition would: to set a scene."""
    assert StepRun.objects.filter(run=run.pk, step=step).update(**values) == 1


def overdue(run, step, by=timedelta(seconds=1)):
    """The moment by which something must have happened to the step has passed."""
    change(run, step, wake_at=now() - by)


def now():
    return clock.now(conf.using())


def messages(queue="default"):
    """The messages that wait in a queue of the stub broker."""
    broker = dramatiq.get_broker()
    return [dramatiq.Message.decode(data) for data in list(broker.queues[queue].queue)]


def is_postgresql():
    return connection.vendor == "postgresql"
