"""Limits by hand: who comes to the door, is inside, and leaves, one at a time."""

from datetime import timedelta

from sequences import Limit, Sequence, step
from sequences.engine import limits as doors
from sequences.engine.executor import StepExecution
from sequences.engine.recovery import Parked
from sequences.models import LimitKey, Permit, StepRun
from sequences.transitions import clock, limits
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import fail, perform, take

USING = "default"
NO_RETRY = {"max_retries": 3}


def billing(*of_step, each=None, **meta):
    """A sequence whose one step, `charge`, has these limits; its Meta has the rest."""

    class Billing(Sequence):
        class Meta:
            app_label = "shop"

        for name, value in meta.items():
            setattr(Meta, name, value)

        if each is None:

            @step(limits=of_step)
            def charge(self):
                pass

        else:

            @step(each=each, limits=of_step)
            def charge(self, customer):
                pass

    return Billing


def row_of(run, item=-1, name="charge"):
    return StepRun.objects.get(run=run.pk, step=name, item=item)


def come(run, item=-1, name="charge"):
    """A worker claims the step. Its claim, once it is inside; None: it waits, or is not queued."""
    row = row_of(run, item, name)
    return come_again(row)


def come_again(row):
    claim = take(row.pk, row.attempts)
    if claim is None:
        return None
    execution = StepExecution.of(claim, USING)
    execution._claim()
    try:
        doors.enter(execution.context, execution._find_step(), USING)
    except Parked:
        return None
    return claim


def go(claim):
    """The step succeeds, and its place is passed on."""
    return perform(claim)


def falter(claim):
    """The attempt fails, to be tried again."""
    assert fail(claim, final=False)


def waits(run, item=-1, name="charge"):
    """Whether it waits in a line: it has no worker, and no message can have it claimed."""
    row = row_of(run, item, name)
    return (row.status, row.wait, row.token) == ("waiting", "limit", None)


def in_use(name="bank", key=""):
    line = LimitKey.objects.get(limit__name=name, key=key)
    return limits.lines.in_use(Permit.objects.filter(line=line), USING).count()


def waiting(name="bank", key=""):
    return Permit.objects.filter(line__limit__name=name, line__key=key, state="waiting").count()


def look():
    """The sweep comes by, however late."""
    LimitKey.objects.filter(wake_at__isnull=False).update(wake_at=clock.now(USING))
    return sweep(AssumeLost(), USING)


def bank(**options):
    return Limit("bank", **({"concurrency": 1} | options))


def seconds(number):
    return timedelta(seconds=number)


def sync(**meta):
    """A sequence with two steps; its runs have these limits."""

    class Sync(Sequence):
        class Meta:
            app_label = "shop"

        for name, value in meta.items():
            setattr(Meta, name, value)

        @step
        def fetch(self):
            pass

        @step
        def store(self):
            pass

    return Sync
