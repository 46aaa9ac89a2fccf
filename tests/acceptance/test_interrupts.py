"""A time limit or a shutdown may strike at any call: nothing is lost or doubled, and the thread
goes on working."""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, PriorityQueue

import django.db
import dramatiq
import psycopg
import pytest
from django.db import connections
from django.utils import timezone
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Shutdown, TimeLimitExceeded
from dramatiq.worker import WorkerThread

import sequences
from sequences.definitions import registry
from sequences.engine import handoff, interrupts
from sequences.models import StepRun
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import is_postgresql

from .app.models import Entry

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(300),
    # Hundreds of runs: elsewhere each commit waits for the disk.
    pytest.mark.only_on("postgresql", "sqlite"),
    # Python ignores whatever is raised while it closes a generator: our interrupts as well.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

OURS = (os.path.dirname(sequences.__file__),)
THEIRS = tuple(os.path.dirname(module.__file__) for module in (django.db, psycopg))
CALLS, ALL = {"call"}, {"call", "return", "c_return"}
KINDS = (Shutdown, TimeLimitExceeded)
HANDOFFS = ["acceptance.Booking", "acceptance.DirectBooking"]


class Striker:
    """Raises one interrupt after the other inside the actor, each after so many events."""

    def __init__(self, files, events, strikes=()):
        self.files, self.events, self.strikes = files, events, list(strikes)
        self.passed, self.places = 0, []

    @contextmanager
    def around_the_actor(self):
        perform, disarm = handoff.perform, interrupts.disable_interrupts

        def watched(*arguments):
            sys.setprofile(self._watch)
            try:
                perform(*arguments)
            finally:
                sys.setprofile(None)

        def disarmed():
            # What is raised by a profile function ends the profile: the recovery begins here.
            disarm()
            if self.places:
                sys.setprofile(self._watch)

        handoff.perform, interrupts.disable_interrupts = watched, disarmed
        try:
            yield
        finally:
            handoff.perform, interrupts.disable_interrupts = perform, disarm

    def _watch(self, frame, event, argument):
        code = frame.f_code
        if event not in self.events or not code.co_filename.startswith(self.files):
            return
        self.passed += 1
        if self.strikes and self.strikes[0][0] == self.passed:
            _, kind = self.strikes.pop(0)
            self.places.append(f"{kind.__name__} at {event} of {code.co_qualname}")
            self.passed = 0
            raise kind


class Consumer:
    """What Dramatiq's thread acknowledges its messages to."""

    def post_process_message(self, message):
        pass


class Player:
    """Dramatiq's own worker thread, on this thread, and a sweep when there is no message left."""

    def __init__(self):
        self.broker = dramatiq.get_broker()
        self.work = PriorityQueue()
        self.thread = WorkerThread(
            broker=self.broker,
            consumers={"default": Consumer()},
            work_queue=self.work,
            worker_timeout=10,
        )

    def play(self, run):
        """Perform all of it; how many sweeps it took."""
        sweeps = 0
        while not self._has_ended(run) and sweeps < 20:
            sweeps += 1
            long_ago = timezone.now() - timedelta(hours=1)
            StepRun.objects.filter(run=run.pk, wake_at__isnull=False).update(wake_at=long_ago)
            sweep(AssumeLost(), "default")
        return sweeps

    def _has_ended(self, run):
        self._process_all()
        run.refresh_from_db()
        return run.status != "running"

    def _process_all(self):
        while (message := self._next()) is not None:
            self.work.put(message.message_id)
            self.thread.process_message(message)
            connection = connections["default"]
            assert not connection.in_atomic_block
            assert connection.connection is None or connection.get_autocommit()

    def _next(self):
        for name in ("default", "default.DQ"):
            queue = self.broker.queues[name]
            try:
                message = dramatiq.Message.decode(queue.get_nowait())
            except Empty:
                continue
            queue.task_done()
            return MessageProxy(message.copy(queue_name="default"))
        return None


def play(label, striker):
    """Start this sequence and perform it to its end; the run, and how many sweeps it took."""
    with striker.around_the_actor():
        run = registry.get(label).start({"log": []}).run
        return run, Player().play(run)


def what_is_wrong(run, striker):
    """What differs from the one right end of a run; None is right."""
    failures = list(run.failures.order_by("pk").values_list("step", "error"))
    errors = [error.rpartition(".")[2] for _, error in failures]
    found = {
        "status": run.status,
        "data": run.data,
        "commits": run.version,
        "steps": list(run.steps.order_by("pk").values_list("step", "status", "attempts")),
        "entries": list(Entry.objects.filter(run=run.pk).order_by("pk").values_list("note")),
    }
    steps = ["quote", "reserve", "confirm"]
    failed = [step for step, _ in failures]
    wanted = {
        "status": "succeeded",
        "data": {"log": steps, "price": 7},
        "commits": 3,
        "steps": [(step, "succeeded", failed.count(step)) for step in steps],
        "entries": [("seat",), ("meal",)],
    }
    # The second step's first attempt fails by itself, unless a time limit ends it before.
    # A shutdown is no failed attempt.
    possible = [["Rejected"], ["TimeLimitExceeded"], ["Rejected", "TimeLimitExceeded"]]
    if found == wanted and sorted(errors) in possible:
        return None
    return striker.places, found, errors


def in_a_thread(function, *arguments):
    """In a thread of its own, with its own connections, as a worker's."""

    def call():
        logging.disable(logging.CRITICAL)
        try:
            return function(*arguments)
        finally:
            logging.disable(logging.NOTSET)
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def strike_everywhere(label, files, events, samples):
    """Play it once for each event, or for so many of them; where the sweep had to help."""
    play(label, Striker(files, events))  # what is kept by the process, like plans, is kept now
    counter = Striker(files, events)
    play(label, counter)
    assert counter.passed > 100
    every = max(counter.passed // samples, 1)
    swept = []
    for number, at in enumerate(range(1, counter.passed + 1, every)):
        striker = Striker(files, events, [(at, KINDS[number % 2])])
        run, sweeps = play(label, striker)
        assert what_is_wrong(run, striker) is None, at
        assert striker.places
        if sweeps:
            swept += striker.places
    return swept


@pytest.mark.parametrize("label", HANDOFFS)
def test_an_interrupt_may_strike_at_every_call_of_ours(label):
    # The direct handoff shares most of its calls with the other, and so do the databases.
    every = 10_000 if is_postgresql() else 250
    samples = every if label == "acceptance.Booking" else 120
    swept = in_a_thread(strike_everywhere, label, OURS, CALLS, samples)
    if label == "acceptance.Booking":
        # At its very first calls the actor has no hold of the interrupt yet.
        first = {"perform", "raises_printable.<locals>.wrapped"}
        assert {place.rpartition(" ")[2] for place in swept} <= first


@pytest.mark.parametrize("label", HANDOFFS)
def test_an_interrupt_may_strike_anywhere_below_us(label):
    in_a_thread(strike_everywhere, label, OURS + THEIRS, ALL, 90)


def strike_twice(label, samples):
    files = OURS + THEIRS
    counter = Striker(files, ALL)
    play(label, counter)
    struck = swept = 0
    for number in range(samples):
        first = 1 + number * counter.passed // samples
        # From the very beginning of the recovery from the first one on.
        second = 1 + number * 211 % 9000
        kinds = KINDS if number % 2 else KINDS[::-1]
        striker = Striker(files, ALL, zip((first, second), kinds, strict=True))
        run, sweeps = play(label, striker)
        assert what_is_wrong(run, striker) is None, (first, second)
        struck += len(striker.places) == 2
        swept += bool(sweeps)
    assert struck > samples / 4
    # The recovery begins again, and leaves nothing to the sweep.
    assert swept <= samples / 10


@pytest.mark.parametrize("label", HANDOFFS)
def test_a_second_interrupt_may_strike_during_the_recovery_from_the_first(label):
    in_a_thread(strike_twice, label, 40)
