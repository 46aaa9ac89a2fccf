"""The moments that a rate gives count from when they were read, not from when they are sent."""

import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from sequences import Limit
from sequences.engine import dispatcher
from sequences.models import StepRun
from sequences.transitions import clock, lines
from sequences.transitions.types import Dispatch
from sequences.worker.timers import Timers
from tests.limits import billing, come, go

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_time_is_paired_with_this_process_clock():
    before = time.monotonic()
    read = clock.now("default")
    after = time.monotonic()
    time.sleep(0.02)
    assert before <= clock.read_at(read) <= after
    clock.now("default")
    assert clock.read_at(read) >= after + 0.02, "it has read another one since"


def test_each_thread_has_a_time_of_its_own():
    read = clock.now("default")
    at = clock.read_at(read)
    time.sleep(0.02)
    other = []
    thread = threading.Thread(target=lambda: other.append(clock.read_at(read)))
    thread.start()
    thread.join()
    assert other[0] >= at + 0.02


def test_what_waits_for_its_moment_says_since_when():
    cls = billing(Limit("meter", rate=1, per=timedelta(seconds=4)))
    first, second = cls().run, cls().run
    assert come(first)
    before = time.monotonic()
    with dispatcher.capture_dispatches() as sent:
        assert come(second) is None
    (dispatch,) = sent
    assert before <= dispatch.since <= time.monotonic()
    row = StepRun.objects.get(run=second.pk)
    left = (row.due_at - clock.now("default")).total_seconds()
    rest = dispatch.since + dispatch.delay / 1000 - time.monotonic()
    assert abs(rest - left) < 0.1
    assert dispatch.delay <= 4000


def test_who_is_given_a_place_by_another_one_does_so_too():
    limit = Limit("meter", concurrency=1, rate=1, per=timedelta(seconds=4))
    cls = billing(limit)
    first, second = cls().run, cls().run
    inside = come(first)
    assert come(second) is None
    before = time.monotonic()
    (dispatch,) = go(inside)
    assert before <= dispatch.since <= time.monotonic()
    assert dispatch.delay > 3000


def test_the_rest_of_a_transaction_makes_no_moment_late(monkeypatch):
    begun = lines.clock.now("default")
    at = clock.read_at(begun)
    time.sleep(0.05)  # whatever else the transaction does
    row = SimpleNamespace(pk=1, run_id=None, step="charge", attempts=0)
    plan = SimpleNamespace(node=lambda _: SimpleNamespace(actor="a", queue="q", options={}))
    dispatch = lines.dispatch_at(row, plan, begun + timedelta(milliseconds=100), begun)
    assert (dispatch.delay, dispatch.since) == (100, at)


@pytest.mark.parametrize(("since", "expected"), [(None, 0.2), (0.15, 0.05), (0.5, 0.0)])
def test_a_timer_counts_from_there(monkeypatch, since, expected):
    broker = RedisBroker(middleware=[])  # which nothing is sent to
    broker.actors["a"] = object()
    monkeypatch.setattr(dramatiq, "get_broker", lambda: broker)
    timers = Timers(SimpleNamespace(consumers={"q": object()}))
    performed = []
    monkeypatch.setattr(timers, "_perform", lambda _: performed.append(time.monotonic()))
    timers.start()
    begun = time.monotonic()
    dispatch = Dispatch(1, None, "a", "q", delay=200, since=since and begun - since)
    assert timers.take(dispatch)
    while not performed and time.monotonic() < begun + 10:
        time.sleep(0.005)
    timers.stop()
    timers.join()
    timers.finish()
    broker.close()
    assert performed[0] - begun >= expected - 0.001
    if since is not None:
        assert performed[0] - begun < 0.2
