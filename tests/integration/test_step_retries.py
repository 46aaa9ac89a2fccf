"""Failed attempts, their retries, and the age of messages."""

from datetime import timedelta

import dramatiq
import pytest

from sequences import (
    Abort,
    Sequence,
    repeat,
    step,
)
from sequences.testing import assert_steps, clock, drain, run_sequence
from tests.steps import failures, only_failure

pytestmark = pytest.mark.django_db


# Retries


def test_every_failed_attempt_is_recorded_with_its_traceback():
    def look_up(customer):
        raise LookupError(f"no customer {customer}")

    class Retries(Sequence):
        @step
        def one(self): ...

        @step(max_retries=2)
        def two(self):
            look_up(self.attempt)

        @step
        def three(self): ...

    sequence = run_sequence(Retries)

    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    assert sequence.run.status == "failed"
    assert failures(sequence) == [
        ("two", attempt, "LookupError", f"no customer {attempt}") for attempt in (1, 2, 3)
    ]
    for row in sequence.run.failures.all():
        assert "in look_up" in row.traceback
        assert row.traceback.rstrip().endswith(f"LookupError: no customer {row.attempt}")
        assert row.worker
        assert row.step_run.step == "two"


def test_a_failed_attempt_waits_for_the_backoff_that_dramatiq_has_chosen():
    class Backoff(Sequence):
        @step(min_backoff=60_000, max_backoff=60_000)
        def one(self):
            raise ValueError

    sequence = Backoff()
    drain_once(sequence)

    row = sequence.run.steps.get()
    assert (row.status, row.attempts) == ("retrying", 1)
    wait = row.due_at - sequence.run.failures.get().failed_at
    assert timedelta(seconds=25) < wait < timedelta(seconds=65)
    assert row.wake_at > row.due_at


def drain_once(sequence):
    """Perform the run's next step, without its retries."""
    with pytest.raises(AssertionError, match="is still due"):
        drain(limit=1)


def test_after_the_first_success_no_attempt_is_made():
    class Retries(Sequence):
        @step(max_retries=5)
        def one(self):
            if self.attempt < 3:
                raise ValueError

    sequence = run_sequence(Retries)
    assert sequence.run.status == "succeeded"
    assert [failure[1] for failure in failures(sequence)] == [1, 2]
    assert sequence.run.steps.get().attempts == 2


@pytest.mark.parametrize("throws", [LookupError, (ValueError, LookupError)])
def test_an_error_that_the_step_throws_is_not_retried(throws):
    class Throws(Sequence):
        @step(throws=throws)
        def one(self):
            raise KeyError("gone")

    sequence = run_sequence(Throws)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.run.status == "failed"
    assert failures(sequence) == [("one", 1, "KeyError", "'gone'")]


def test_what_all_steps_throw_may_be_a_default_of_the_class():
    class Throws(Sequence):
        class Meta:
            throws = LookupError

        @step
        def one(self):
            raise KeyError("gone")

    assert run_sequence(Throws).run.failures.count() == 1


def test_an_error_that_the_step_throws_after_a_retry_is_not_retried():
    class Throws(Sequence):
        @step(throws=KeyError)
        def one(self):
            raise KeyError("gone") if self.attempt == 2 else ValueError("try again")

    sequence = run_sequence(Throws)

    assert_steps(sequence, [("one", "failed")])
    assert [failure[2] for failure in failures(sequence)] == ["ValueError", "KeyError"]


def test_retry_when_decides():
    class Decides(Sequence):
        @step(retry_when=lambda retries, error: retries < 2 and isinstance(error, ValueError))
        def one(self):
            raise ValueError(self.attempt)

    sequence = run_sequence(Decides)

    assert_steps(sequence, [("one", "failed")])
    assert [failure[1] for failure in failures(sequence)] == [1, 2, 3]


def test_a_retry_when_that_raises_loses_nothing(caplog):
    def retry_when(retries, error):
        if retries == 0:
            raise RuntimeError("the predicate is broken")
        return True

    class Decides(Sequence):
        @step(retry_when=retry_when)
        def one(self):
            if self.attempt == 1:
                raise ValueError

    sequence = run_sequence(Decides)
    assert sequence.run.status == "succeeded"
    assert [failure[2] for failure in failures(sequence)] == ["ValueError"]


@pytest.mark.parametrize("delay", [3_600_000, timedelta(hours=1)])
def test_dramatiqs_own_retry_says_when(delay):
    class Asks(Sequence):
        @step
        def one(self):
            raise dramatiq.errors.Retry("busy", delay=delay)

    sequence = Asks()
    drain_once(sequence)

    row = sequence.run.steps.get()
    wait = row.due_at - sequence.run.failures.get().failed_at
    assert timedelta(minutes=59) < wait < timedelta(minutes=61)


def test_a_step_beside_one_that_has_failed_ends_and_nothing_new_begins():
    class Fails(Sequence):
        @step(after=[], atomic=False)
        def running(self):
            drain()  # while it runs, the other one fails
            self.data["running"] = "kept"

        @step(after=[])
        def failing(self):
            raise Abort("no")

        @step(after=running)
        def held(self): ...

    sequence = Fails()
    drain()

    sequence.run.refresh_from_db()
    assert_steps(sequence, [("running", "succeeded"), ("failing", "failed"), ("held", "queued")])
    assert (sequence.run.status, sequence.run.data) == ("failed", {"running": "kept"})
    assert sequence.run.steps.get(step="held").wake_at is None


def test_an_error_that_cannot_be_shown_or_stored_as_it_is_is_recorded_all_the_same():
    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError

    class Fails(Sequence):
        @step(max_retries=1)
        def one(self):
            if self.attempt == 1:
                raise Nasty
            raise ValueError("a\0b \ud800 " + "x" * 10_000)

    sequence = run_sequence(Fails)

    (_, _, first, shown), (_, _, _, message) = failures(sequence)
    assert first.endswith("Nasty")
    assert shown == "<RuntimeError in __str__>"
    assert message.startswith("a\\0b \\ud800 xxx")


# max_age


def test_a_step_that_waited_in_its_queue_for_longer_than_its_max_age_fails_unperformed():
    class Ages(Sequence):
        @step(max_age=60_000)
        def one(self):
            raise AssertionError

    sequence = Ages()
    with clock() as moving:
        moving.move(timedelta(seconds=61))
        drain()

    assert_steps(sequence, [("one", "failed")])
    failure = only_failure(sequence)
    assert failure.error == "sequences.exceptions.StepExpired"
    assert failure.message == (
        f"Step 'one' of run {sequence.run.pk} expired: its max_age of 1 min has passed since it "
        "was first queued."
    )


def test_the_time_of_a_delay_is_no_age():
    class Ages(Sequence):
        @step(max_age=60_000, delay=timedelta(days=1))
        def one(self): ...

    assert run_sequence(Ages).run.status == "succeeded"


@pytest.mark.parametrize("delay", [None, timedelta(days=1)])
def test_max_age_counts_over_all_attempts(delay):
    class Ages(Sequence):
        @step(max_age=60_000, delay=delay)
        def one(self):
            moving.move(timedelta(seconds=25))
            raise ValueError

    with clock() as moving:
        sequence = Ages()
        drain()
        moving.move(delay or timedelta(0))
        drain()

    assert_steps(sequence, [("one", "failed")])
    assert [failure[2].rpartition(".")[2] for failure in failures(sequence)] == [
        "ValueError", "ValueError", "ValueError", "StepExpired"
    ]  # fmt: skip


def test_max_age_begins_anew_with_every_repeat():
    class Ages(Sequence):
        @step(max_age=60_000)
        def one(self):
            self.data["n"] += 1
            return repeat(after=timedelta(minutes=5)) if self.data["n"] < 3 else None

    assert run_sequence(Ages, n=0).run.status == "succeeded"
