"""The page of a run with a thousand steps and two thousand items is small, and made in no time."""

import re
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from sequences import Sequence, step
from sequences.engine import dispatcher
from sequences.models import SequenceRun, StepRun
from tests.console import url_of

pytestmark = pytest.mark.django_db

STEPS, ITEMS = 1_000, 2_000
#: It takes a third of these seconds: they leave room for slow machines and measured coverage.
MAX_SECONDS, MAX_BYTES = 0.6, 200_000
FAILED = 700


@pytest.fixture
def big():
    """A sequence of so many steps, the first of which fans out."""

    def work(self): ...

    def item(self, item): ...

    names = {f"step_{number:04}": step(work) for number in range(1, STEPS)}
    members = {"pack": step(item, each="items"), **names}
    return members


@pytest.fixture
def run(big):
    class Meta:
        app_label = "shop"

    cls = type("Big", (Sequence,), {"Meta": Meta, **big})
    with dispatcher.capture_dispatches():
        run = cls.start({"items": []}).run
    now = timezone.now() - timedelta(minutes=90, seconds=20)
    ended = {"started_at": now, "finished_at": now, "ready_at": now, "queued_at": now}
    rows = [
        StepRun(run=run, step="pack", item=n, kind="item", status="succeeded", **ended)
        for n in range(ITEMS)
    ]
    for number in range(1, FAILED + 1):
        status = "failed" if number == FAILED else "succeeded"
        rows.append(StepRun(run=run, step=f"step_{number:04}", status=status, attempts=1, **ended))
    StepRun.objects.filter(run=run.pk, step="pack").update(status="succeeded", kind="each", **ended)
    StepRun.objects.bulk_create(rows)
    SequenceRun.objects.filter(pk=run.pk).update(status="failed", created_at=now, finished_at=now)
    return run


def page_of(client, run, **query):
    return client.get(url_of(run), query)


def seconds_of(function):
    """The processor's time for the quickest of several: others run beside this."""
    durations = []
    for _ in range(3):
        begins = time.process_time()
        function()
        durations.append(time.process_time() - begins)
    return min(durations)


def test_a_page_of_a_thousand_steps_is_small_and_begins_where_the_run_is_stuck(admin_client, run):
    content = page_of(admin_client, run).content
    assert len(content) <= MAX_BYTES
    assert seconds_of(lambda: page_of(admin_client, run)) <= MAX_SECONDS
    page = content.decode()
    assert f'id="step-step_{FAILED:04}"' in page
    assert 'id="step-pack"' not in page
    first = page_of(admin_client, run, steps=1).content.decode()
    assert 'id="step-pack"' in first
    links = re.findall(r'href="\?steps=(\d+)#steps"', page)
    assert links, "to the other steps"


def refresh(client, run, digests):
    path = url_of(run)
    known = ",".join(f"{name}={digest}" for name, digest in digests.items())
    headers = {"X-Requested-With": "sequences-live", "X-Sequences-Regions": known}
    return client.get(path, headers=headers).content.decode()


def digests_in(page):
    return dict(re.findall(r'id="([\w-]+)"[^>]* data-seq-region="(\w+)"', page))


@pytest.fixture
def small():
    """A run that has failed an hour ago: nothing moves on its page."""

    class Small(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self): ...

    with dispatcher.capture_dispatches():
        run = Small.start({"items": list(range(1_000))}).run
    ended(run, StepRun.objects.filter(run=run.pk), "failed")
    return run


def ended(run, rows, status):
    """As if all had happened at one moment, longer ago than a page tells in seconds."""
    moment = timezone.now() - timedelta(minutes=90, seconds=20)
    times = dict.fromkeys(("started_at", "finished_at", "ready_at", "queued_at"), moment)
    rows.update(status=status, **times)
    SequenceRun.objects.filter(pk=run.pk).update(
        status=status, created_at=moment, finished_at=moment
    )


def test_while_live_only_regions_that_have_changed_are_sent(admin_client, small):
    run = small
    digests = digests_in(page_of(admin_client, run).content.decode())
    assert {"head", "steps", "timeline", "data"} <= set(digests)
    # It failed an hour ago: neither a minute nor anything else has passed in between.
    same = refresh(admin_client, run, digests)
    assert digests_in(same) == digests
    assert same.count("data-seq-same") == len(digests)
    assert len(same) < 3_000
    SequenceRun.objects.filter(pk=run.pk).update(data={"other": "data"})
    changed = refresh(admin_client, run, digests)
    assert "other" in changed
    assert changed.count("data-seq-same") == len(digests) - 1
    assert "<nav" not in changed, "nothing around the page"


def test_what_asks_with_nonsense_gets_everything(admin_client, small):
    run = small
    for digests in ({"head": "x" * 5_000}, {"": ""}, {"head": "0"}):
        assert "data-seq-same" not in refresh(admin_client, run, digests)
