"""What waits for others, on real workers."""

from datetime import timedelta

import pytest
from django.db.models import F

from .app.sequences import Journey
from .test_workers import ended, entries
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


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
        assert run.steps.filter(lost__gt=0).count() == run.failures.count() == 0


def test_a_short_delay_is_waited_for_to_the_point(crew):
    """Not to the second, in which a consumer of the broker looks for delayed messages."""
    late = []
    for one in journeys(3):
        ended(one)
        rows = one.run.steps.filter(step__in=("soon", "end"))
        late += [row.late for row in rows.annotate(late=F("started_at") - F("ready_at"))]
    late = sorted(each - timedelta(milliseconds=300) for each in late)
    assert late[0] >= timedelta(milliseconds=-50)
    assert late[len(late) // 2] < timedelta(milliseconds=250), late
