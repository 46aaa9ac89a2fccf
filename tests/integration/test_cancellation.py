"""What a running step sees of its cancellation."""

import threading

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from dramatiq.middleware import SkipMessage

from sequences import Sequence, on_cancel, step
from sequences.engine import leases
from sequences.engine.executor import StepExecution
from sequences.exceptions import Cancelled, SequenceError
from sequences.models import StepFailure, StepRun
from sequences.testing import build, run_sequence
from sequences.transitions import claims
from sequences.transitions.backends import backend_of
from tests.engine import change, claim, fresh, ledger, row, steps_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def seen():
    return []


@pytest.fixture
def video(seen):
    """A step that does something to its run in the middle of itself, and then looks."""

    class Video(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def prepare(self):
            pass

        @prepare.undo
        def remove(self):
            pass

        @step(atomic=False)
        def render(self):
            seen.append(self.cancelled)
            Video.meanwhile(fresh(self.run))
            seen.append(self.cancelled)
            self.raise_if_cancelled()
            seen.append("went on")

        @on_cancel
        def tell(self):
            seen.append("told")

    Video.meanwhile = staticmethod(lambda run: None)
    return Video


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda run: run.cancel(),
        lambda run: run.cancel(undo=True),
        lambda run: run.finish(),
        lambda run: run.restart_from("render"),
        lambda run: change(run, "render", token=7),
    ],
    ids=["cancel", "undo", "finish", "restart", "lost lease"],
)
def test_a_step_sees_that_nothing_waits_for_it_and_ends_uncounted(video, seen, meanwhile):
    video.meanwhile = staticmethod(meanwhile)
    run = video.start().run
    StepExecution(row(run, "prepare").pk, 0, "default").live()
    with pytest.raises(SkipMessage):
        StepExecution(row(run, "render").pk, 0, "default").live()
    assert seen == [False, True]
    assert not StepFailure.objects.exists()


def test_a_step_that_nobody_cancels_goes_on(video, seen):
    assert run_sequence(video).run.status == "succeeded"
    assert seen == [False, False, "went on"]


def test_a_step_of_a_run_that_is_undone_gives_its_turn_to_the_undo_at_once(video, seen):
    video.meanwhile = staticmethod(lambda run: run.cancel(undo=True))
    sequence = run_sequence(video)
    assert sequence.run.status == "cancelled"
    assert ledger(sequence.run) == {
        "prepare": "succeeded",
        "render": "cancelled",
        "remove": "succeeded",
        "tell": "succeeded",
    }
    assert seen == [False, True, "told"]


def test_a_pause_cancels_nothing(video, seen):
    video.meanwhile = staticmethod(lambda run: run.pause())
    run_sequence(video)
    assert seen == [False, False, "went on"]


def test_a_step_that_raises_it_without_having_been_cancelled_fails():
    class Liar(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            raise Cancelled(step="one", run=self.run.pk)

    assert run_sequence(Liar).run.status == "failed"
    assert "was not cancelled" in StepFailure.objects.get().message


def test_by_itself_a_step_is_not_cancelled_and_outside_of_one_nobody_can_ask(video):
    sequence = build(video)
    assert (sequence.cancelled, sequence.final_status) == (False, "")
    sequence.raise_if_cancelled()
    with pytest.raises(SequenceError, match="only available inside a step"):
        video.start().raise_if_cancelled()


# The heartbeat's part


@pytest.fixture
def attempt(video):
    """A claimed step that asks whether it was cancelled, beside a heart."""
    run = video.start().run
    execution = StepExecution(row(run, "prepare").pk, 0, "default")
    execution._claim()
    with leases.beating(), leases.current.executing(execution.context):
        assert execution.context.cancelled is False
        yield execution.context


def test_the_property_asks_no_database_beside_a_heartbeat(attempt, django_assert_num_queries):
    fresh(attempt.run).cancel()
    with django_assert_num_queries(0):
        assert attempt.cancelled is False
    leases.beat("default")
    with django_assert_num_queries(0):
        assert attempt.cancelled is True
    with pytest.raises(Cancelled, match="'prepare' of run"):
        attempt.raise_if_cancelled()


def test_a_heartbeat_of_a_step_that_never_asked_costs_nothing_more(video):
    run = video.start().run
    execution = StepExecution(row(run, "prepare").pk, 0, "default")
    execution._claim()
    with leases.beating(), leases.current.executing(execution.context):
        execution.context.since -= 60
        with CaptureQueriesContext(connection) as captured:
            assert leases.beat("default") == set()
        assert len(captured) == 1 if backend_of("default").fast else len(captured) <= 6
        assert not any("job_sequences_sequencerun" in each["sql"] for each in captured)


@pytest.mark.django_db(transaction=True)
def test_a_row_that_is_only_locked_was_not_cancelled(attempt):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no locks of rows")
    locked, done = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic():
            list(StepRun.objects.select_for_update().filter(pk=attempt.claim.step_run_id))
            locked.set()
            done.wait(10)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(10)
    try:
        assert leases.beat("default") == {attempt.claim.token}  # it was left out
        assert attempt.cancelled is False
    finally:
        done.set()
        holder.join()
    assert leases.beat("default") == set()


def test_only_claims_that_are_over_are_named(video):
    runs = [video.start().run for _ in range(3)]
    held = [claim(run, "prepare") for run in runs]
    runs[1].cancel()
    assert claims.over(held, "default") == {held[1].token}
    assert claims.release(held[1], "default") == []
    assert steps_of(claims.release(held[0], "default")) == ["prepare"]
