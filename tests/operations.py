"""Sequences and runs that tests of operations share."""

from datetime import timedelta

from sequences import Sequence, step
from sequences.models import SequenceRun
from sequences.testing import drain
from tests.engine import (
    claim,
    fail,
    fresh,
    perform,
)


def chain():
    class Chain(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("card.*", "secret")

        @step
        def one(self):
            self.data["done"] = [*self.data.get("done", []), "one"]

        @step(aliases=["former_two"])
        def two(self):
            self.data["done"] = [*self.data["done"], "two"]
            return {"paid": 1}

    return Chain


def branches():
    """Three branches side by side, and a join."""

    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self):
            pass

        @step(after=first)
        def left(self):
            self.data["left"] = 1

        @step(after=first)
        def right(self):
            self.data["right"] = 1

        @step(after=first)
        def middle(self):
            self.data["middle"] = 1

        @step
        def join(self):
            self.data["joined"] = sorted(self.data)

    return Branches


def begun(cls=None, **data):
    """A run of branches whose first step has succeeded."""
    run = (cls or branches()).start(data).run
    perform(claim(run, "first"))
    return run


def run_in(status):
    """A run of the chain in this state; its first step has failed if the run has."""
    run = chain().start({"n": 1}).run
    if status == "paused":
        run.pause()
    elif status == "succeeded":
        drain()
    elif status == "failed":
        fail(claim(run, "one"))
    elif status == "cancelled":
        run.cancel()
    elif status == "undoing":
        SequenceRun.objects.filter(pk=run.pk).update(status="undoing")
    run = fresh(run)
    assert run.status == status
    return run


def delayed():
    class Delayed(Sequence):
        class Meta:
            app_label = "shop"

        @step(delay=timedelta(hours=2))
        def later(self):
            self.data["later"] = 1

    return Delayed
