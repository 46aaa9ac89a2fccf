"""A year is as good as a second: whatever waits, waits in the database, by any clock's measure."""

from datetime import timedelta

import pytest
from django.utils import timezone

from sequences import Sequence, event, repeat, step
from sequences.testing import clock, drain
from tests.engine import claim, fresh, messages, now, perform, row, sent

pytestmark = pytest.mark.django_db

YEAR = timedelta(days=365)
#: What a database server may be behind or ahead of this process, and what a test takes.
ABOUT = timedelta(seconds=30)


def waiting(**options):
    class Waiting(Sequence):
        class Meta:
            app_label = "shop"

        @step(**options)
        def late(self):
            self.data["done"] = True

    return Waiting


def repeating():
    class Repeating(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def late(self):
            if self.data.pop("first", False):
                return repeat(after=YEAR)
            self.data["done"] = True

    return Repeating


def with_event(**options):
    class Approval(Sequence):
        class Meta:
            app_label = "shop"

        late = event(timeout=YEAR, **options)

        @step
        def after(self):
            self.data["done"] = True

    return Approval


KINDS = {
    "a step's delay": lambda: waiting(delay=YEAR)(),
    "a delay in milliseconds": lambda: waiting(delay=int(YEAR.total_seconds() * 1000))(),
    "a date that a function returns": lambda: waiting(
        delay=lambda self: timezone.localtime(now(), timezone.get_fixed_timezone(330)) + YEAR
    )(),
    "the start's delay": lambda: waiting().start({}, delay=YEAR),
    "a repetition": lambda: repeating()(first=True),
    "an event's timeout": lambda: with_event(on_timeout="continue")(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_for_a_year_is_performed_after_a_year_and_not_before(kind):
    with clock() as moving:
        run = KINDS[kind]().run
        drain()
        assert row(run, "late").status == "waiting"
        assert abs(row(run, "late").due_at - now() - YEAR) < ABOUT
        moving.move(YEAR - timedelta(hours=1))
        drain()
        assert row(run, "late").status == "waiting"
        assert fresh(run).data.get("done") is None
        moving.move(timedelta(hours=2))
        drain()
        assert fresh(run).status == "succeeded"
        assert fresh(run).data["done"] is True


def test_an_event_that_nobody_delivers_for_a_year_fails():
    with clock() as moving:
        run = with_event()().run
        drain()
        moving.move(YEAR + timedelta(hours=1))
        drain()
    assert fresh(run).status == "failed"
    assert fresh(run).failures.get().error == "sequences.exceptions.EventTimeout"


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_waits_for_a_year(kind):
    """A broker need not keep what the database keeps, and Dramatiq's delays end at days."""
    runs = []
    dispatched = sent(lambda: runs.append(KINDS[kind]().run))
    if kind == "the start's delay":
        assert dispatched == []
        return
    assert perform(claim(runs[0], "late")) == []
    assert row(runs[0], "late").status == "waiting"
    assert messages() == []
