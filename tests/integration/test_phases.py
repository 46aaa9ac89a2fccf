"""What each kind of step did when: waits, work, items and children, by one rule everywhere."""

import json
from datetime import timedelta

import pytest
from django.urls import reverse

from sequences import Abort, Sequence, event, step, subsequence
from sequences.inspection import snapshot
from sequences.inspection.run_diagrams import lanes_of, timeline_of
from sequences.models import SequenceRun, StepFailure
from sequences.testing import clock, drain
from tests.console import command
from tests.engine import claim, fail, fresh, perform, take

pytestmark = pytest.mark.django_db

#: Far longer than a test takes: the clock that is moved does not stand still.
MINUTE = timedelta(minutes=1)


@pytest.fixture
def moving():
    with clock() as moving:
        yield moving


def phases(run, name):
    """The kinds of a step's phases, each with its length in whole minutes."""
    run_snapshot = snapshot.of(fresh(run))
    return [
        (phase.kind, round(phase.length(run_snapshot.now) / MINUTE))
        for phase in run_snapshot.step(name).phases
        if phase.length(run_snapshot.now) > MINUTE / 2
    ]


def times(run, name):
    """Its waiting and its running time in whole minutes."""
    run_snapshot = snapshot.of(fresh(run))
    step = run_snapshot.step(name)
    ran = step.ran(run_snapshot.now)
    waited = round(step.waited(run_snapshot.now) / MINUTE)
    return waited, None if ran is None else round(ran / MINUTE)


# Events


def approvals(**options):
    class Approvals(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(**options)

    return Approvals


def deliver(run):
    run.deliver("approval", {"yes": True})
    drain()


ENDS = {
    "delivered": deliver,
    "skipped": lambda run: run.skip("approval", reason="nobody answers"),
    "cancelled": lambda run: run.cancel(),
    "finished": lambda run: run.finish(),
}


@pytest.mark.parametrize("ends", ENDS)
def test_an_event_has_waited_until_it_ended_however_it_ended(ends, moving):
    run = approvals().start().run
    drain()
    moving.move(6 * MINUTE)
    assert times(run, "approval") == (6, None)
    ENDS[ends](fresh(run))
    moving.move(60 * MINUTE)
    assert phases(run, "approval") == [("waited", 6)]
    assert times(run, "approval") == (6, None)
    assert snapshot.of(fresh(run)).step("approval").worker == ""


def test_an_event_that_timed_out_has_waited_too(moving):
    run = approvals(timeout=300 * MINUTE).start().run
    drain()
    moving.move(301 * MINUTE)
    drain()
    assert fresh(run).status == "failed"
    assert times(run, "approval") == (301, None)
    lane = lanes_of(snapshot.of(fresh(run)), StepFailure.objects.all())[0]
    assert [span.kind for span in lane.spans] == ["waited", "failed"]


# Items


def packing():
    class Packing(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="items")
        def pack(self, item): ...

        @step
        def ship(self): ...

    return Packing


@pytest.fixture
def packed(moving):
    """Eight hours of work on two items; nothing has gathered their results yet."""
    run = packing().start({"items": [1, 2]}).run
    moving.move(2 * MINUTE)
    perform(claim(run, "pack"))
    works = [take(item.pk) for item in run.steps.filter(kind="item").order_by("pk")]
    moving.move(480 * MINUTE)
    return fresh(run), works


def test_items_at_work_are_a_bar_of_their_own(packed, moving):
    run, works = packed
    assert phases(run, "pack") == [("waited", 2), ("items", 480)]
    assert times(run, "pack") == (2, 480)
    for work in works:
        perform(work)
    drain()
    moving.move(60 * MINUTE)
    assert phases(run, "pack")[:2] == [("waited", 2), ("items", 480)]
    assert times(run, "pack") == (2, 480)


@pytest.mark.parametrize("ends", ["skip", "cancel"])
def test_items_at_work_end_with_the_step(packed, moving, ends):
    run, _works = packed
    if ends == "skip":
        run.skip("pack", reason="enough")
    else:
        run.cancel()
    moving.move(60 * MINUTE)
    assert phases(run, "pack") == [("waited", 2), ("items", 480)]


def test_a_pause_stops_the_clock_of_items(packed, moving):
    run, _works = packed
    run.pause()
    moving.move(60 * MINUTE)
    assert phases(run, "pack") == [("waited", 2), ("items", 480), ("held", 60)]
    assert times(run, "pack") == (2, 480)


# Children


def family():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def carry(self): ...

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        ship = subsequence(Child, data=lambda self: {})

    return Parent


def test_children_at_work_are_a_bar_of_their_own(moving):
    run = family().start().run
    moving.move(3 * MINUTE)
    perform(claim(run, "ship"))
    moving.move(240 * MINUTE)
    assert phases(run, "ship") == [("waited", 3), ("children", 240)]
    child = SequenceRun.objects.get(parent__run=run.pk)
    perform(claim(child, "carry"))
    drain()
    moving.move(60 * MINUTE)
    assert phases(run, "ship")[:2] == [("waited", 3), ("children", 240)]
    assert times(run, "ship")[1] == 240


# Steps


def plain():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=3)
        def charge(self): ...

    return Plain


def test_a_step_waits_and_runs(moving):
    run = plain().start().run
    moving.move(2 * MINUTE)
    work = claim(run, "charge")
    moving.move(3 * MINUTE)
    assert phases(run, "charge") == [("waited", 2), ("ran", 3)]
    perform(work)
    moving.move(60 * MINUTE)
    assert phases(run, "charge") == [("waited", 2), ("ran", 3)]


def test_a_failed_attempt_is_one_in_the_table_and_in_the_timeline(moving):
    run = plain().start().run
    moving.move(2 * MINUTE)
    work = claim(run, "charge")
    moving.move(3 * MINUTE)
    fail(work, final=False)
    moving.move(4 * MINUTE)
    assert phases(run, "charge")[-2:] == [("failed", 3), ("waited", 4)]
    run.pause()
    moving.move(5 * MINUTE)
    assert phases(run, "charge")[-1] == ("held", 5)


def test_a_step_that_failed_for_good_ran_until_then(moving):
    run = plain().start().run
    work = claim(run, "charge")
    moving.move(3 * MINUTE)
    fail(work, error=Abort("no funds"))
    moving.move(60 * MINUTE)
    assert phases(run, "charge") == [("failed", 3)]
    run = fresh(run)
    run.retry()
    moving.move(7 * MINUTE)
    assert phases(run, "charge") == [("waited", 7)]


# The same everywhere


def test_page_timeline_command_and_json_say_the_same(packed, admin_client):
    run, _works = packed
    url = reverse("admin:job_sequences_sequencerun_change", args=[run.pk])
    page = admin_client.get(url).content.decode()
    row = page[page.index('id="step-pack"') :]
    row = row[: row.index("</tr>")]
    assert '<span class="seq-state seq-running">running</span>' in row
    assert 'data-label="Wait">2 min' in row
    assert 'data-label="Duration">8 h' in row
    picture = timeline_of(snapshot.of(run))
    assert "seq-span-items seq-still" in picture
    assert "items in progress 8 h" in picture
    shown = command("show", run.pk)
    line = next(line for line in shown.splitlines() if line.startswith("pack"))
    assert line.split()[:5] == ["pack", "running", "2", "min", "8"]
    (pack, _ship) = json.loads(command("show", run.pk, "--json"))["steps"]
    assert [phase["kind"] for phase in pack["phases"]] == ["waited", "ran", "items"]
    assert round(pack["waited"] / 60) == 2
    assert round(pack["ran"] / 60) == 480
    assert pack["worker"] == ""
