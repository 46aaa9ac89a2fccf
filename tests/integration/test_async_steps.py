"""`async def` steps: awaited in their own claim and transaction, and stopped where they wait."""

import asyncio
import threading
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import dramatiq
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection
from dramatiq.broker import MessageProxy
from dramatiq.middleware import AsyncIO, Shutdown, SkipMessage, TimeLimitExceeded

from sequences import Abort, Sequence, job, on_end, on_failure, repeat, step
from sequences.engine import coroutines, current, dispatcher, leases, recovery
from sequences.engine.executor import StepExecution
from sequences.exceptions import InvalidDefinition
from sequences.flows.builder import define
from sequences.models import StepFailure
from sequences.testing import adrain, arun_sequence, assert_steps, build, run_sequence
from sequences.transitions import plans
from sequences.transitions.types import dispatch_of
from testproject.contact.models import Message
from tests.engine import fresh, ledger, messages, row

pytestmark = pytest.mark.django_db


def declare(**body):
    """A sequence with these steps."""
    meta = type("Meta", (), {"app_label": "shop", "max_retries": 0, **body.pop("meta", {})})
    return type("Crawl", (Sequence,), {"Meta": meta, **body})


def live(run, name):
    return StepExecution(row(run, name).pk, 0, "default").live()


def test_a_step_is_awaited_and_later_steps_read_what_it_returned():
    class Crawl(Sequence):
        class Meta:
            app_label = "shop"

        @step
        async def fetch(self):
            await asyncio.sleep(0)
            self.data["seen"] = True
            return {"pages": 2}

        @step
        def count(self):
            self.data["pages"] = self.result("fetch")["pages"]

        @step(each=lambda self: [1, 2])
        async def visit(self, item):
            await asyncio.sleep(0)
            return item * 10

        @step
        async def end(self):
            return repeat() if len(self.data.setdefault("tries", [])) < 0 else None

        @on_end
        async def close(self):
            self.data["closed"] = self.attempt

    sequence = run_sequence(Crawl)
    assert sequence.run.status == "succeeded"
    assert (sequence.data["seen"], sequence.data["pages"], sequence.data["closed"]) == (True, 2, 1)


def test_the_asynchronous_orm_has_the_connection_of_the_step_and_is_rolled_back_with_it():
    async def write(self):
        await Message.objects.acreate(name="Joel")
        self.data["thread"] = await sync_to_async(threading.get_ident)()
        self.data["is_atomic"] = await sync_to_async(lambda: connection.in_atomic_block)()
        if self.data["fails"]:
            raise Abort("after the write")

    cls = declare(write=step(write))
    sequence = run_sequence(cls, fails=False)
    assert sequence.data["thread"] == threading.get_ident()
    assert sequence.data["is_atomic"] is True
    assert Message.objects.count() == 1
    assert run_sequence(cls, fails=True).run.status == "failed"
    assert Message.objects.count() == 1


def test_nothing_of_a_step_is_stored_if_its_claim_is_lost_while_it_waits():
    async def write(self):
        await Message.objects.acreate(name="Joel")
        await sync_to_async(lambda: fresh(self.run).cancel())()

    run = declare(write=step(write))().run
    with pytest.raises(Abort, match="cancelled, finished or restarted its own run"):
        live(run, "write")
    assert Message.objects.count() == 0


def test_an_error_of_a_coroutine_is_recorded_with_its_traceback():
    async def fetch(self):
        await asyncio.sleep(0)
        raise ConnectionError("no route")

    run = run_sequence(declare(fetch=step(fetch))).run
    failure = StepFailure.objects.get(run=run)
    assert (failure.error, failure.message) == ("ConnectionError", "no route")
    assert 'raise ConnectionError("no route")' in failure.traceback


def test_what_a_context_knows_a_coroutine_knows_too():
    tag = ContextVar("tag", default="")
    tag.set("mine")

    async def fetch(self):
        own = current.current_attempt()
        return [tag.get(), own.claim.step]

    sequence = run_sequence(declare(fetch=step(fetch)))
    assert sequence.run.steps.get().result == ["mine", "fetch"]


# What stops it


class Waits:
    """A step that waits for ever, and cleans up."""

    def __init__(self):
        self.waits, self.cleaned, self.thread = threading.Event(), [], None

    def step(self, **options):
        async def wait(sequence):
            self.waits.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                await sync_to_async(lambda: None)()
                self.cleaned.append("cleaned")
                raise

        return step(wait, **options)

    def when_it_waits(self, act):
        """Do this from another thread as soon as it waits."""

        def run():
            if self.waits.wait(20):
                act()

        self.thread = threading.Thread(target=run)
        self.thread.start()


@pytest.fixture
def waits():
    waits = Waits()
    yield waits
    if waits.thread:
        waits.thread.join()


def process(run, name):
    """As a worker's thread does, with a message."""
    broker, plan = dramatiq.get_broker(), plans.load(run.plan_id, "default")
    message = MessageProxy(dispatcher.message_for(dispatch_of(row(run, name), plan)))
    broker.emit_before("process_message", message)
    try:
        return broker.actors[message.actor_name](*message.args)
    finally:
        broker.emit_after("process_message", message)


@pytest.mark.django_db(transaction=True)
def test_a_time_limit_cancels_a_coroutine_that_waits(waits):
    run = declare(fetch=waits.step(time_limit=100)).start().run
    with pytest.raises(TimeLimitExceeded):
        process(run, "fetch")
    assert waits.cleaned == ["cleaned"]
    failure = StepFailure.objects.get(run=run)
    assert failure.error.endswith("TimeLimitExceeded")
    assert failure.message == "The attempt exceeded its time limit of 100 ms."


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("options", "of"), [({"time_limit": 30_000}, " of 30 s"), ({}, " of 10 min"),
                        ({"time_limit": None}, "")],
)  # fmt: skip
def test_the_failure_of_a_time_limit_names_the_limit(options, of):
    def late(self):
        raise TimeLimitExceeded  # as Dramatiq does, at any point

    run = declare(late=step(late, **options)).start().run
    with pytest.raises(TimeLimitExceeded):
        process(run, "late")
    failure = StepFailure.objects.get(run=run)
    assert failure.message == f"The attempt exceeded its time limit{of}."
    assert failure.traceback.rstrip().endswith(failure.message)


@contextmanager
def in_message_of(run):
    """This thread is processing the message of a step of this run."""
    found = row(run, "late")
    (message,) = [MessageProxy(each) for each in messages() if each.args[1] == found.pk]
    current.push_delivery(message)
    yield
    current.pop_delivery(message)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("inside", [lambda other: nullcontext(), in_message_of])
def test_only_the_limit_of_its_own_message_is_named(inside):
    def late(self):
        raise TimeLimitExceeded

    cls = declare(late=step(late, time_limit=30_000))
    run, other = cls.start().run, cls.start().run
    execution = StepExecution(row(run, "late").pk, 0, "default")
    with inside(other):
        with pytest.raises(TimeLimitExceeded) as caught:
            execution.live()
        with pytest.raises(TimeLimitExceeded):
            recovery.recover(execution, caught.value)
    assert StepFailure.objects.get(run=run).message == "The attempt exceeded its time limit."


@pytest.mark.django_db(transaction=True)
def test_a_shutdown_cancels_one_that_wants_to_know_and_its_step_is_given_back(waits):
    run = declare(fetch=waits.step(notify_shutdown=True)).start().run
    waits.when_it_waits(coroutines.shut_down)
    process(run, "fetch")
    assert waits.cleaned == ["cleaned"]
    found = row(run, "fetch")
    assert (found.status, found.attempts) == ("queued", 0)


def test_a_shutdown_lets_others_finish():
    order = []

    async def fetch(self):
        coroutines.shut_down()
        await asyncio.sleep(0.01)
        order.append("finished")

    assert run_sequence(declare(fetch=step(fetch))).run.status == "succeeded"
    assert order == ["finished"]


def test_a_cancelled_run_cancels_a_coroutine_that_waits_uncounted(waits):
    run = declare(fetch=waits.step(atomic=False)).start().run
    execution = StepExecution(row(run, "fetch").pk, 0, "default")

    def notice():
        attempt = current.attempts[execution.token]
        attempt.is_over = True
        attempt.stop()

    waits.when_it_waits(notice)
    with pytest.raises(SkipMessage, match="was cancelled"):
        execution.live()
    assert waits.cleaned == ["cleaned"]
    assert not StepFailure.objects.exists()


def test_the_heartbeat_is_what_notices():
    async def fetch(sequence):
        await sync_to_async(lambda: fresh(sequence.run).cancel())()
        assert sequence.cancelled is False  # no heart has beaten since
        await sync_to_async(leases.beat)("default")
        await asyncio.sleep(60)

    run = declare(fetch=step(fetch, atomic=False)).start().run
    with pytest.raises(SkipMessage, match="was cancelled"):
        live(run, "fetch")


@pytest.mark.django_db(transaction=True)
def test_one_that_returns_although_it_was_cancelled_has_succeeded():
    async def fetch(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "in time"

    run = declare(fetch=step(fetch, time_limit=100)).start().run
    process(run, "fetch")
    assert row(run, "fetch").result == "in time"


def test_one_that_cancels_itself_fails():
    async def fetch(self):
        raise asyncio.CancelledError

    run = declare(fetch=step(fetch)).start().run
    with pytest.raises(asyncio.CancelledError):
        live(run, "fetch")
    assert StepFailure.objects.get(run=run).error.endswith("CancelledError")


@pytest.mark.django_db(transaction=True)
def test_what_comes_after_a_shutdown_has_begun_is_cancelled_at_once(waits, monkeypatch):
    stopping = threading.Event()
    stopping.set()
    monkeypatch.setattr(current, "stopping", stopping)
    run = declare(fetch=waits.step(notify_shutdown=True)).start().run
    process(run, "fetch")
    assert ledger(run) == {"fetch": "queued"}


def test_an_interrupt_that_was_on_its_way_ends_the_coroutine_too(waits, monkeypatch):
    run = declare(fetch=waits.step(atomic=False)).start().run
    real = coroutines.async_to_sync

    def struck(function):
        def call():
            waits.when_it_waits(lambda: None)
            thread = threading.Thread(target=real(function))
            thread.start()
            assert waits.waits.wait(20)
            raise Shutdown

        return call

    monkeypatch.setattr(coroutines, "async_to_sync", struck)
    with pytest.raises(Shutdown):
        live(run, "fetch")


# Other things that are awaited


def test_a_class_and_an_actor_and_a_job_may_be_asynchronous():
    class Pay:
        async def perform(self, sequence):
            await asyncio.sleep(0)
            return "paid"

    broker = dramatiq.get_broker()
    broker.add_middleware(AsyncIO())

    @dramatiq.actor
    async def mail(to):
        await asyncio.sleep(0)
        return f"to {to}"

    @job("slow")
    async def slow(name):
        await asyncio.sleep(0)
        return name.upper()

    sequence = run_sequence(
        declare(pay=step(Pay), mail=step(mail, kwargs=lambda self: {"to": "joel"}))
    )
    assert [each.result for each in sequence.run.steps.order_by("pk")] == ["paid", "to joel"]
    flow = (
        define({"a": {"job": "slow", "save": "loud"}} | {}, name="shop.Flow")
        if False
        else (define({"name": "shop.Flow", "steps": {"a": {"job": "slow", "save": "loud"}}}))
    )
    assert run_sequence(flow, name="joel").data["loud"] == "JOEL"


def test_an_undo_and_on_failure_may_be_asynchronous():
    class Crawl(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def reserve(self):
            pass

        @reserve.undo
        async def release(self):
            self.data["released"] = True

        @step
        async def fail(self):
            raise ValueError

        @on_failure
        async def tell(self):
            self.data["told"] = True

    sequence = run_sequence(Crawl)
    assert sequence.data == {"released": True, "told": True}
    assert_steps(
        sequence,
        [
            ("reserve", "succeeded"),
            ("fail", "failed"),
            ("release", "succeeded"),
            ("tell", "succeeded"),
        ],
    )


@pytest.mark.parametrize("option", ["when", "delay", "each"])
def test_functions_of_the_sequence_stay_synchronous(option):
    async def function(self): ...

    async def fetch(self, *item): ...

    with pytest.raises(InvalidDefinition, match=f"{option} is <function"):
        declare(fetch=step(fetch, **{option: function}))


def test_an_asynchronous_generator_is_no_step():
    async def fetch(self):
        yield 1

    with pytest.raises(InvalidDefinition, match="it is a generator function"):
        declare(fetch=step(fetch))


# What it asks


def test_it_asks_for_what_others_returned_and_makes_durable_calls():
    calls = []

    async def charge(amount):
        calls.append(amount)
        return {"paid": amount}

    class Crawl(Sequence):
        class Meta:
            app_label = "shop"
            min_backoff = max_backoff = 0

        @step
        def fetch(self):
            return 7

        @step(each=lambda self: [1, 2])
        async def visit(self, item):
            return item * await self.aresult("fetch")

        @step(atomic=False)
        async def end(self):
            receipt = await self.aonce("charge", charge, 5)
            if self.attempt == 1:
                raise ConnectionError
            outcomes = [each.status async for each in self.aoutcomes("visit")]
            return [receipt, outcomes, [each async for each in self.aresults("visit")]]

    sequence = run_sequence(Crawl)
    expected = [{"paid": 5}, ["succeeded", "succeeded"], [7, 14]]
    assert sequence.run.steps.get(step="end").result == expected
    assert calls == [5]


@pytest.mark.django_db(transaction=True)
def test_asynchronous_tests_have_helpers_of_their_own():
    async def fetch(self):
        await Message.objects.acreate(name=self.data["name"])
        await asyncio.sleep(0)
        return 1

    cls = declare(fetch=step(fetch))

    async def test():
        sequence = await arun_sequence(cls, name="Joel")
        assert sequence.run.status == "succeeded"
        await cls.astart({"name": "Jo"})
        assert await adrain() == 1
        assert await Message.objects.acount() == 2

    async_to_sync(test)()


def test_a_single_step_is_awaited_in_a_test():
    async def fetch(self):
        return await self.aonce("a", lambda: asyncio.sleep(0, "b"))

    sequence = build(declare(fetch=step(fetch)))
    assert asyncio.run(sequence.fetch()) == "b"


def test_several_jobs_at_the_end_may_be_asynchronous():
    calls = []

    @job("note")
    def note(what):
        calls.append(what)

    @job("anote")
    async def anote(what):
        await asyncio.sleep(0)
        calls.append(f"async {what}")

    ends = [
        {"job": name, "args": {"what": index}}
        for index, name in enumerate(["note", "anote", "note", "anote"])
    ]
    definition = {"name": "shop.Flow", "steps": {"a": {"job": "note", "args": {"what": "a"}}}}
    run_sequence(define(definition | {"on_end": ends}))
    assert calls == ["a", 0, "async 1", 2, "async 3"]
