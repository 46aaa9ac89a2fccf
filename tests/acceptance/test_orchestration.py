"""What waits for others, on real workers."""

import time
from datetime import timedelta

import pytest
from django.db.models import F

from sequences.models import SequenceRun

from .app.gates import Gate
from .app.sequences import ChargedBelow, Delayed, Journey, Polls
from .test_workers import ended, entries
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def journeys(count):
    started = [Journey() for _ in range(count)]
    for one in started:
        wait_for(lambda: one.run.steps.filter(step="approval", status="waiting").exists())  # noqa: B023
        assert one.run.deliver("approval", "yes") is True
    return started


def test_fan_outs_events_children_and_delays_come_to_their_end_side_by_side(crew):
    for one in journeys(3):
        run = ended(one)
        assert run.data["sum"] == sum(guest * guest for guest in range(20))
        assert run.data["approval"] == "yes"
        assert entries(one) == ["begin", "soon", "end"]
        (child,) = run.steps.get(step="leg").children.all()
        assert child.status == "succeeded"
        assert run.steps.filter(lost_workers__gt=0).count() == run.failures.count() == 0


def lateness(delayed):
    """By how much short delays were exceeded; the shortest first."""
    rows = ended(delayed).steps.annotate(late=F("started_at") - F("ready_at"))
    return sorted(row.late - timedelta(milliseconds=200) for row in rows)


def test_a_short_delay_is_waited_for_to_the_point(crew):
    """Not to the second, in which a consumer of the broker looks for delayed messages."""
    for _ in range(3):  # the machine may be busy with something else
        late = lateness(Delayed())
        assert len(late) == 7
        assert late[0] >= timedelta(milliseconds=-50)
        if late[len(late) // 2] < timedelta(milliseconds=100):
            break
    assert late[len(late) // 2] < timedelta(milliseconds=100), late


@pytest.mark.parametrize("dies", [False, True])
def test_what_executes_in_a_cancelled_tree_ends_before_it_is_undone(hire, gate, dies):
    crew = hire()
    crew.start(2)
    one = ChargedBelow(gate=str(gate))
    wait_for(gate.visitors)
    one.run.cancel(undo=True)
    time.sleep(1)  # several sweeps
    assert entries(one) == ["reserve"]
    if dies:
        (child,) = SequenceRun.objects.filter(parent__run=one.run.pk)
        crew.performer(child.steps.get(step="charge")).kill()
    else:
        gate.open()
    run = ended(one, "cancelled")
    # What a dead worker did in its last moment nobody knows: it may have charged.
    charged = [] if dies else ["charge"]
    assert entries(one) == ["reserve", *charged, "refund", "release"]
    assert not SequenceRun.objects.unfinished().exists()
    assert run.steps.get(step="charging").wake_at is None


def test_items_that_come_back_are_never_more_at_once_than_may_be(crew, tmp_path):
    book = tmp_path / "book"
    sequence = Polls(book=str(book))
    assert ended(sequence).data["numbers"] == list(range(8))
    signs = book.read_text()
    at_once = [signs[:end].count("+") - signs[:end].count("-") for end in range(len(signs) + 1)]
    assert signs.count("+") >= 3 * 8
    assert max(at_once) == 2
