"""Items of an `async def` with ``atomic=False`` wait together in one thread."""

import asyncio
import threading

import dramatiq
import pytest
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware, SkipMessage

from sequences import Sequence, step
from sequences.engine import coroutines, dispatcher, suspects
from sequences.models import StepFailure, StepRun
from sequences.transitions import losses, plans
from sequences.transitions.types import dispatch_of
from tests.engine import fresh, sent, take

pytestmark = pytest.mark.django_db(transaction=True)


def process(pk):
    """As a worker's thread does with the message of this step run."""
    broker, found = dramatiq.get_broker(), StepRun.objects.select_related("run").get(pk=pk)
    plan = plans.load(found.run.plan_id, "default")
    message = MessageProxy(dispatcher.message_for(dispatch_of(found, plan)))
    broker.emit_before("process_message", message)
    try:
        broker.actors[message.actor_name](*message.args)
    except dramatiq.middleware.SkipMessage:
        broker.emit_after("skip_message", message)
    else:
        broker.emit_after("process_message", message)


def crawl(fetch, urls, **options):
    """A started run whose items are queued; returns it, and the ids of its items."""

    class Crawl(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        pages = step(fetch, each=lambda self: list(urls), atomic=False, **options)

        @step
        def count(self):
            self.data["sum"] = sum(self.results("pages"))

    run = Crawl().run
    sent(lambda: process(run.steps.get().pk))
    return run, list(run.steps.filter(item__gte=0).order_by("item").values_list("pk", flat=True))


def states(run):
    return list(run.steps.filter(item__gte=0).order_by("item").values_list("status", flat=True))


def test_many_items_wait_in_one_thread_and_each_commits_by_itself():
    busy, most, threads = 0, 0, set()

    async def fetch(self, item):
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        threads.add(threading.get_ident())
        while most < 20:  # they wait for each other
            await asyncio.sleep(0.01)
        busy -= 1
        return item

    run, items = crawl(fetch, range(30), time_limit=30_000, concurrency=20, allow_failed=True)
    dispatches = sent(lambda: process(items[0]))
    assert most == 20
    assert len(threads) == 1
    assert states(run) == ["succeeded"] * 30
    assert [row.result for row in run.steps.filter(item__gte=0).order_by("item")] == list(range(30))
    assert [each.step_run_id for each in dispatches] == [run.steps.get(step="count").pk]


def test_one_that_fails_fails_alone():
    async def fetch(self, item):
        await asyncio.sleep(0)
        if item == 1:
            raise ConnectionError("no route")
        return item

    run, items = crawl(fetch, range(3), allow_failed=1)
    sent(lambda: process(items[0]))
    assert states(run) == ["succeeded", "failed", "succeeded"]
    failure = StepFailure.objects.get(run=run)
    assert (failure.item, failure.error, failure.attempt) == (1, "ConnectionError", 1)


def test_the_time_limit_is_each_ones_own():
    async def fetch(self, item):
        await asyncio.sleep(60 if item == 1 else 0)
        return item

    run, items = crawl(fetch, range(3), allow_failed=1, time_limit=200)
    sent(lambda: process(items[0]))
    assert states(run) == ["succeeded", "failed", "succeeded"]
    failure = StepFailure.objects.get(run=run)
    assert failure.error.endswith("TimeLimitExceeded")
    assert failure.message == "The attempt exceeded its time limit of 200 ms."


def test_a_shutdown_gives_back_those_that_still_wait():
    async def fetch(self, item):
        if item == 2:
            await asyncio.sleep(0.05)
            coroutines.shut_down()
        await asyncio.sleep(0 if item == 0 else 60)
        return item

    run, items = crawl(fetch, range(3), notify_shutdown=True)
    sent(lambda: process(items[0]))
    assert states(run) == ["succeeded", "queued", "queued"]
    assert not StepFailure.objects.exists()


def test_a_message_of_one_that_another_has_taken_finds_nothing_to_do():
    async def fetch(self, item):
        return item

    run, items = crawl(fetch, range(3))
    sent(lambda: process(items[0]))
    assert states(run) == ["succeeded"] * 3
    sent(lambda: process(items[1]))
    assert fresh(run).status == "running"


def test_an_item_that_changes_data_fails_as_any():
    async def fetch(self, item):
        self.data["seen"] = item

    run, items = crawl(fetch, range(2), allow_failed=True)
    sent(lambda: process(items[0]))
    assert states(run) == ["failed", "failed"]
    assert StepFailure.objects.filter(run=run).first().error.endswith("ReadOnlyData")


@pytest.fixture
def suspect():
    """A queued item whose last worker was lost; returns its run, and its id."""

    async def fetch(self, item):
        return item

    run, (item,) = crawl(fetch, range(1))
    StepRun.objects.filter(pk=item).update(lost_workers=1)
    return run, item


def test_a_suspect_that_another_process_takes_first_leaves_its_place(suspect, monkeypatch):
    run, item = suspect
    suspicion = losses.suspicion

    def slow(*arguments):
        found = suspicion(*arguments)
        assert take(item) is not None
        return found

    monkeypatch.setattr(losses, "suspicion", slow)
    sent(lambda: process(item))
    assert states(run) == ["running"]
    assert_free()


def test_a_suspect_that_a_middleware_skips_leaves_its_place(suspect, broker):
    run, item = suspect

    class Maintenance(Middleware):
        def before_process_message(self, broker, message):
            if states(run) == ["running"]:  # its own message, not the one that arrived
                raise SkipMessage

    broker.add_middleware(Maintenance())
    sent(lambda: process(item))
    assert states(run) == ["queued"]
    assert_free()


def assert_free():
    """This process can run another suspect."""
    assert suspects.enter(1, alone=False)
    assert suspects.leave(1)
