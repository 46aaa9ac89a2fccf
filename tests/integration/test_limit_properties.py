"""Whatever happens to runs with limits, in turns and on threads: never more inside than there are
places, no place idle while somebody waits for it, and the first who can is the next.
"""

import json
import random
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
from django.db import connections
from django.test import TestCase
from dramatiq.middleware import SkipMessage
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sequences import Limit, Sequence, step
from sequences.engine.executor import StepExecution
from sequences.exceptions import InvalidTransition
from sequences.models import Permit, StepRun
from sequences.testing import isolate_sequences
from sequences.transitions import claims, failures
from sequences.transitions.types import ClaimLost
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import fresh, overdue
from tests.limits import USING, come, falter, go, row_of
from tests.threads import Crew

PLACES = 2
KEYS = "ab"


def limited(*limits):
    class Limited(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 100

        @step(limits=list(limits))
        def charge(self): ...

    return Limited


class House:
    """Runs of one sequence with a limit for each key, who is inside, and what happens to them."""

    def __init__(self):
        limit = Limit("bank", key="key", concurrency=PLACES)
        self.sequence = limited(limit)
        self.runs = []
        self.inside = {}

    def start(self, index):
        key = KEYS[index % len(KEYS)]
        self.runs.append(self.sequence.start({"key": key}, priority=index % 3).run)

    def come(self, index):
        if (run := self.one(index)) and (claim := come(run)):
            self.inside[run.pk] = claim

    def go(self, index):
        self.leave(index, go)

    def falter(self, index):
        self.leave(index, falter)

    def release(self, index):
        self.leave(index, lambda claim: claims.release(claim, USING))

    def leave(self, index, how):
        if not self.inside:
            return
        pk = sorted(self.inside)[index % len(self.inside)]
        claim = self.inside.pop(pk)
        before = self.first_in_line(claim.data)
        with suppress(ClaimLost, SkipMessage, AssertionError):
            how(claim)
            if before is not None and before.run_id != pk:
                assert row_of(before.run).status != "waiting", "the first was passed over"

    def kill(self, index):
        if self.inside:
            pk = sorted(self.inside)[index % len(self.inside)]
            del self.inside[pk]
            run = next(run for run in self.runs if run.pk == pk)
            if row_of(run).status == "running":
                overdue(run, "charge")
                failures.reap(row_of(run), USING)

    def pause(self, index):
        self.operate(index, "pause")

    def resume(self, index):
        self.operate(index, "resume")

    def cancel(self, index):
        if run := self.operate(index, "cancel"):
            self.inside.pop(run.pk, None)

    def retry(self, index):
        self.operate(index, "retry")

    def sweep(self, index):
        sweep(AssumeLost(), USING)

    def operate(self, index, what):
        run = self.one(index)
        if run is None:
            return None
        with suppress(InvalidTransition):
            getattr(run, what)()
            return run
        return None

    def one(self, index):
        return self.runs[index % len(self.runs)] if self.runs else None

    def first_in_line(self, data):
        waiting = [
            row
            for row in StepRun.objects.filter(
                status="waiting", wait="limit", wake_at__isnull=False
            ).select_related("run")
            if row.run.data == json.loads(data)
        ]
        order = {
            permit.step_run_id: (permit.priority, permit.ready_at, permit.pk)
            for permit in Permit.objects.filter(step_run__in=[row.pk for row in waiting])
        }
        return min(waiting, key=lambda row: order[row.pk], default=None)

    def check(self):
        rows = list(StepRun.objects.select_related("run"))
        inside = Counter(
            row.run.data["key"]
            for row in rows
            if row.status == "running" and row.run_id in self.inside
        )
        assert all(count <= PLACES for count in inside.values()), "too many are inside"
        for key in KEYS:
            of_key = [row for row in rows if row.run.data["key"] == key]
            waiting = [
                row for row in of_key if row.wait == "limit" and row.status == "waiting"
                and row.wake_at
            ]  # fmt: skip
            places = [
                row
                for row in of_key
                if row.status == "running" or (row.status == "queued" and row.wait == "limit")
            ]
            assert not waiting or len(places) >= PLACES, "a place is idle while somebody waits"


ACTS = [
    *("start", "come", "come", "come", "go", "go", "falter", "release", "kill", "pause"),
    *("resume", "cancel", "retry", "sweep"),
]


@pytest.mark.django_db
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 8)), max_size=60))
@settings(
    max_examples=40,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
def test_in_turns(acts):
    StepRun.objects.all().delete()
    Permit.objects.all().delete()
    with isolate_sequences():
        house = House()
        for index in range(5):
            house.start(index)
        for what, index in acts:
            with TestCase.captureOnCommitCallbacks(execute=True):
                getattr(house, what)(index)
            house.check()


ROUNDS = 12


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("limits", ["one", "two"])
def test_on_threads(limits):
    """Workers that take whatever is queued, and nobody but them: no sweep helps."""
    inside, most, lock, done = Counter(), Counter(), threading.Lock(), []

    class Busy(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 100

        @step(
            limits=[Limit("bank", concurrency=PLACES)]
            + ([Limit("customer", key="key", concurrency=1)] if limits == "two" else [])
        )
        def charge(self):
            key = self.data["key"]
            with lock:
                for name in ("bank", key):
                    inside[name] += 1
                    most[name] = max(most[name], inside[name])
            time.sleep(random.uniform(0, 0.003))
            with lock:
                for name in ("bank", key):
                    inside[name] -= 1
                done.append(self.run.pk)
            if random.random() < 0.1:
                raise ValueError("Again.")

    runs = [Busy.start({"key": KEYS[n % 2] if n % 3 else f"k{n}"}).run for n in range(24)]
    crew = Crew()
    until = time.monotonic() + 60

    def work():
        while time.monotonic() < until:
            rows = StepRun.objects.filter(
                status__in=("queued", "retrying"), wake_at__isnull=False
            ).values_list("pk", "attempts")
            rows = list(rows)
            if not rows:
                if not StepRun.objects.filter(status__in=("waiting", "running")).exists():
                    return
                time.sleep(0.002)
                continue
            pk, attempts = random.choice(rows)
            with suppress(SkipMessage, ValueError):
                StepExecution(pk, attempts, USING).live()

    try:
        outcomes = crew.together(*[work] * 6)
    finally:
        crew.dismiss()
    assert outcomes == [None] * 6
    assert most["bank"] <= PLACES
    if limits == "two":
        assert all(most[key] == 1 for key in most if key != "bank")
    assert {fresh(run).status for run in runs} == {"succeeded"}
    assert not Permit.objects.exists()
    connections.close_all()
