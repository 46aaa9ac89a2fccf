"""A snapshot becomes marks and lanes: what a picture says of a run is what its rows say."""

from datetime import timedelta

import pytest
from django.utils import timezone

from sequences import Abort, Sequence, event, on_failure, step
from sequences.diagrams import mermaid, text
from sequences.inspection import run_diagrams
from sequences.inspection.run_diagrams import lanes_of, marks_of, picture_of, timeline_of
from sequences.inspection.snapshot import ON_HOLD, of
from sequences.models import SequenceRun, StepFailure
from sequences.testing import clock, drain, run_sequence

pytestmark = pytest.mark.django_db


def begun(sequence, **data):
    """Started, and as far as it comes without the clock."""
    started = sequence(**data)
    drain()
    return started


def snapshot_of(started):
    return of(SequenceRun.objects.get(pk=started.run.pk))


def failures_of(started):
    return StepFailure.objects.filter(run=started.run.pk)


def kinds(lanes):
    return {lane.name: [span.kind for span in lane.spans] for lane in lanes}


@pytest.fixture
def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "order"

        @step(label="Take <the> money")
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        @step(after=charge, each="items", throws=Abort)
        def pack(self, item):
            if item == "gone":
                raise Abort("<b>out of stock</b>")

        @step(after=charge, delay=timedelta(hours=3))
        def invoice(self): ...

        approval = event(timeout=timedelta(days=3))

        @on_failure
        def inform(self): ...

    return Order


def test_each_step_has_a_mark_with_its_state_its_name_and_where_it_leads(order):
    with clock():
        snapshot = snapshot_of(begun(order, items=["a", "b"]))
    marks = marks_of(snapshot, lambda step: f"/steps/{step.name}/")
    assert list(marks) == [found.name for found in snapshot.steps]
    assert marks["charge"].status == "succeeded"
    assert marks["charge"].label == "Take <the> money"
    assert marks["charge"].href == "/steps/charge/"
    assert (marks["pack"].status, marks["pack"].count, marks["pack"].total) == ("succeeded", 2, 2)
    assert (marks["approval"].status, marks["approval"].text) == ("", "")


def test_what_waits_says_for_how_long(order):
    with clock() as moving:
        started = begun(order, items=[])
        snapshot = snapshot_of(started)
        assert marks_of(snapshot)["invoice"].text.startswith("in 2 h 59 min")
        assert marks_of(snapshot)["invoice"].delayed
        assert not marks_of(snapshot)["charge"].delayed
        moving.move_to_next(started.run)
        drain()
        snapshot = snapshot_of(started)
        # No hours beside the days: a box has no room for them.
        assert marks_of(snapshot)["approval"].text in ("2 d left", "3 d left")


def test_what_a_pause_holds_is_called_so(order):
    with clock():
        started = order(items=[])
        started.run.pause()
        drain()
        snapshot = snapshot_of(started)
    assert marks_of(snapshot)["charge"].status == ON_HOLD
    lane = lanes_of(snapshot)[0]
    assert [span.kind for span in lane.spans] == ["waited", "held"]
    assert lane.spans[0].ends == lane.spans[1].begins == snapshot.pause.done_at


def test_a_failure_is_told_in_titles_and_leads_to_what_is_beside_the_main_line(order):
    with clock():
        started = begun(order, items=["gone"])
        snapshot = snapshot_of(started)
    marks = marks_of(snapshot)
    assert marks["pack"].status == "failed"
    assert marks["pack"].text == "1 of 1"
    assert marks["pack"].title == (
        "Failed items: 1\nItemsFailed: 1 of 1 items of step 'pack' failed (none allowed). "
        "The first is item 0: Abort: <b>out of stock</b>"
    )
    picture = picture_of(snapshot)
    assert "<b>" not in picture
    assert "Take &lt;the&gt; …" in picture or "Take &lt;the&gt; money" in picture
    for name in ("refund", "inform"):
        assert f'aria-label="{name}: succeeded' in picture


def test_the_timeline_has_a_lane_for_each_step_that_was_come_to():
    class Flaky(Sequence):
        class Meta:
            app_label = "shop"

        @step(min_backoff=1000, max_backoff=1000)
        def ask(self):
            if self.attempt < 3:
                raise ConnectionError("no <i>answer</i>")

        @step
        def tell(self): ...

        approval = event()

    with clock():
        started = begun(Flaky)
        snapshot = snapshot_of(started)
    lanes = lanes_of(snapshot, failures_of(started), lambda step: f"/{step.name}/")
    assert [lane.name for lane in lanes] == ["ask", "tell", "approval"]
    assert kinds(lanes)["ask"] == ["waited", "ran", "failed", "failed"]
    assert kinds(lanes)["approval"] == ["waited"]
    assert lanes[0].spans[2].title == "ConnectionError: no <i>answer</i>"
    assert lanes[2].spans[0].ends is None
    assert lanes[0].href == "/ask/"
    picture = timeline_of(snapshot, failures_of(started))
    assert "no &lt;i&gt;answer&lt;/i&gt;" in picture


@pytest.fixture
def doomed():
    class Doomed(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def ask(self):
            raise Abort("never")

    return run_sequence(Doomed)


def test_the_last_failed_attempt_of_a_failed_step_has_a_length(doomed):
    (lane,) = lanes_of(snapshot_of(doomed), failures_of(doomed))
    span = lane.spans[-1]
    assert (span.kind, span.title) == ("failed", "Abort: never")
    assert span.ends > span.begins


def test_a_step_that_retries_has_failed_and_waits_for_its_next_attempt(doomed):
    due = timezone.now() + timedelta(minutes=5, seconds=30)
    doomed.run.steps.update(status="retrying", finished_at=None, due_at=due)
    SequenceRun.objects.update(status="running")
    snapshot = snapshot_of(doomed)
    (lane,) = lanes_of(snapshot, failures_of(doomed))
    assert [span.kind for span in lane.spans][-2:] == ["failed", "waited"]
    assert lane.spans[-1].ends is None
    mark = marks_of(snapshot)["ask"]
    assert mark.title == "Failed attempts: 1\nAbort: never"
    doomed.run.steps.update(wake_at=due)
    assert marks_of(snapshot_of(doomed))["ask"].text.startswith("in 5 min ")


def test_a_plan_that_is_too_large_for_a_picture_is_a_list():
    steps = {f"step_{index}": step(lambda self: None) for index in range(61)}
    meta = type("Meta", (), {"app_label": "shop"})
    long = type("Long", (Sequence,), {**steps, "Meta": meta, "__module__": __name__})
    snapshot = snapshot_of(long())
    assert picture_of(snapshot) == ""
    assert len(text(snapshot.plan, marks_of(snapshot)).splitlines()) == 61


def test_text_and_mermaid_have_the_same_words(order):
    with clock():
        snapshot = snapshot_of(begun(order, items=["a"]))
    lines = text(snapshot.plan, marks_of(snapshot))
    assert "├─ ✓ pack" in lines
    assert "◷ invoice" in lines
    assert "#60;the#62;" in mermaid(snapshot.plan, marks_of(snapshot))


def test_diagrams_are_in_the_language_of_the_moment(order, monkeypatch):
    monkeypatch.setattr(run_diagrams, "_", lambda text: text if "%" in text else text.upper())
    with clock():
        snapshot = snapshot_of(begun(order, items=["a"]))
    assert "NOT STARTED" in picture_of(snapshot)
    assert "WAITED" in timeline_of(snapshot)
