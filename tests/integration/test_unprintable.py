"""Errors that Python cannot format: whoever would log one fails with another."""

import logging
import queue
import re
import sys
import time
import traceback
from datetime import timedelta
from functools import partial
from io import StringIO
from types import SimpleNamespace

import dramatiq
import pytest
from django.db import transaction
from dramatiq import Middleware, Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.worker import _WorkerThread

from sequences import Sequence, conf, signals, step
from sequences.inspection import health
from sequences.testing import run_sequence
from sequences.utils.text import Unprintable, name_of, printable
from sequences.worker.middleware import _dead_threads
from sequences.worker.registration import WorkerRegistration
from tests.engine import fresh

pytestmark = pytest.mark.django_db


class TemplateError(SyntaxError):
    """A template engine's, whose source can't be read. (Python 3.14 formats one of bytes.)"""

    @property
    def text(self):
        raise TypeError("a bytes-like object is required")


def broken():
    return TemplateError("bad", ("t.html", 1, 1, b"bytes"))


def caused():
    error = ValueError("no template")
    error.__cause__ = broken()
    return error


def grouped():
    return ExceptionGroup("two", [ValueError("one"), broken()])


class Leaves(Exception):
    def __str__(self):
        raise SystemExit


def is_formattable(error):
    try:
        traceback.format_exception(error)
    except TypeError:
        return False
    return True


def test_python_cannot_format_them():
    assert not any(is_formattable(make()) for make in (broken, caused, grouped))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (broken, "bad (t.html, line 1)"),
        (caused, "no template"),
        (grouped, "two (2 sub-exceptions)"),
        (Leaves, "<SystemExit in __str__>"),
    ],
)
def test_such_an_error_is_a_failed_attempt_like_any_other(make, text):
    class Page(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=2)
        def render(self):
            raise make()

    order = run_sequence(Page).run
    assert order.status == "failed"
    assert order.steps.get().attempts == 3
    last = order.failures.last()
    assert (last.message, last.error.rpartition(".")[2]) == (text, type(make()).__name__)
    assert "in render" in last.traceback


@pytest.mark.parametrize(
    "options", [{"throws": SyntaxError}, {"retry_when": lambda n, error: error.lineno != 1}]
)
def test_options_that_look_at_the_error_see_what_it_was(options):
    class Page(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=2, **options)
        def render(self):
            raise broken()

    order = run_sequence(Page).run
    assert (order.status, order.steps.get().attempts) == ("failed", 1)


def test_only_what_cannot_be_formatted_gets_a_substitute():
    error = ValueError("fine")
    assert printable(error) is error
    substitute = printable(broken())
    assert isinstance(substitute, SyntaxError)
    assert type(substitute) is Unprintable
    assert substitute.filename == "t.html"
    assert is_formattable(substitute)


def process_next():
    """Process the next message by Dramatiq's own code. What it raises would end its thread."""
    broker = dramatiq.get_broker()
    message = dramatiq.Message.decode(broker.queues["default"].get_nowait())
    work = queue.PriorityQueue()
    work.put(None)
    consumers = {"default": SimpleNamespace(post_process_message=lambda message: None)}
    thread = _WorkerThread(broker=broker, consumers=consumers, work_queue=work, worker_timeout=0)
    thread.process_message(dramatiq.MessageProxy(message.copy(queue_name="default")))


@pytest.fixture
def written():
    """What a handler writes that formats each record, as every project has one."""
    stream, root = StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)


def page(make, name="direct", **options):
    class Page(Sequence):
        class Meta:
            app_label = "shop"
            handoff = name

        @step
        def read(self): ...

        @step(**options)
        def render(self):
            raise make()

    return Page


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("make", [broken, caused, grouped])
@pytest.mark.parametrize("handoff", ["broker", "direct"])
def test_the_thread_of_the_worker_lives_and_dramatiq_decides_on_the_retry(make, handoff, written):
    order = page(make, handoff, max_retries=1, min_backoff=600_000, max_backoff=600_000).start().run
    process_next()
    if handoff == "broker":
        process_next()
    render = order.steps.get(step="render")
    assert (render.status, render.attempts) == ("retrying", 1)
    assert render.due_at - render.queued_at > timedelta(minutes=3)
    assert type(make()).__name__ in written.getvalue()
    assert "CRITICAL" not in written.getvalue()


@pytest.mark.django_db(transaction=True)
def test_a_hook_and_a_receiver_that_raise_one_fail_nothing(written):
    class Page(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def render(self):
            transaction.on_commit(raises)
            transaction.on_commit(lambda: raises())

        @step
        def send(self): ...

    def raises(**kwargs):
        raise broken()

    signals.step_succeeded.connect(raises)
    try:
        order = Page.start().run
        process_next()
        process_next()
    finally:
        signals.step_succeeded.disconnect(raises)
    assert fresh(order).status == "succeeded"
    assert not order.failures.exists()
    assert f"{__file__}:" in written.getvalue(), "a lambda is named by its place"


def test_something_without_a_name_is_named_by_its_place():
    assert name_of(fresh) == "fresh"
    nameless = lambda: None  # noqa: E731
    assert re.fullmatch(r".*<lambda> \(.*test_unprintable.py:\d+\)", name_of(nameless))
    assert name_of(partial(fresh)).startswith("functools.partial")


# --- threads that have died all the same


class Leaving(Middleware):
    """One that ends the thread of whatever message comes."""

    def after_process_message(self, broker, message, **kwargs):
        sys.exit()


def died(count):
    """A worker of two threads, of which so many have died."""
    broker = StubBroker(middleware=[Leaving()])
    broker.emit_after("process_boot")

    @dramatiq.actor(broker=broker)
    def anything(): ...

    worker = Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    deadline = time.monotonic() + 20
    for dead in range(1, count + 1):
        anything.send()
        while _dead_threads(worker) < dead and time.monotonic() < deadline:
            time.sleep(0.01)
    return worker


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("count", "level", "says"),
    [
        (0, health.Level.GOOD, "1 worker"),
        (1, health.Level.WARNING, "1 worker, 1 dead thread"),
        (2, health.Level.BAD, "1 worker, 2 dead threads"),
    ],
)
def test_health_sees_threads_that_have_died(count, level, says):
    worker = died(count)
    try:
        WorkerRegistration(2, dead_threads=lambda: _dead_threads(worker)).beat(conf.using())
    finally:
        worker.stop()
    sign = health.read().signs[0]
    assert (sign.level, sign.says) == (level, says)
    assert ("restart the worker" in sign.advice) == bool(count)
