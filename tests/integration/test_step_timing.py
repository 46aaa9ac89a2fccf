"""When a step runs, if it does, and if it runs again."""

from datetime import UTC, datetime, timedelta

import dramatiq
import pytest
from django.utils import timezone

from sequences import (
    Abort,
    Sequence,
    finish,
    repeat,
    step,
)
from sequences.testing import assert_steps, clock, drain, run_sequence
from testproject.contact.models import Message
from tests.steps import failures, forget, only_failure

pytestmark = pytest.mark.django_db


# delay


@pytest.mark.parametrize("delay", [timedelta(days=3), 3 * 24 * 60 * 60 * 1000])
def test_a_delay_is_waited_for_from_the_moment_that_the_step_is_ready(delay):
    class Waits(Sequence):
        @step
        def one(self): ...

        @step(delay=delay)
        def two(self):
            self.data["done"] = True

    sequence = Waits()
    drain()

    two = sequence.run.steps.get(step="two")
    assert (two.status, two.attempts) == ("waiting", 0)
    assert timedelta(0) <= two.due_at - two.ready_at - timedelta(days=3) < timedelta(seconds=1)
    with clock() as moving:
        moving.move(timedelta(days=2, hours=23))
        assert drain() == 0
        moving.move(timedelta(hours=1))
        assert drain() == 1
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


def test_a_delay_is_computed_of_the_data_by_the_step_itself():
    in_a_week = timezone.now() + timedelta(days=7)

    class Waits(Sequence):
        @step
        def one(self):
            self.data["days"] = 2

        @step(delay=lambda self: timedelta(days=self.data["days"]))
        def for_a_time(self): ...

        @step(delay=lambda self: in_a_week)
        def until(self): ...

    sequence = Waits()
    drain()
    row = sequence.run.steps.get(step="for_a_time")
    assert timedelta(0) <= row.due_at - row.ready_at - timedelta(days=2) < timedelta(seconds=1)
    with clock() as moving:
        moving.move(timedelta(days=2, minutes=1))
        drain()
        row = sequence.run.steps.get(step="until")
        assert (row.status, row.due_at) == ("waiting", in_a_week)


@pytest.mark.parametrize("delay", [lambda self: datetime(2000, 1, 1, tzinfo=UTC), 0])
def test_a_delay_that_is_over_does_not_wait(delay):
    class Waits(Sequence):
        @step(delay=delay)
        def one(self): ...

    sequence = Waits()
    assert drain() == 1
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime(2030, 1, 1), "datetime.datetime(2030, 1, 1, 0, 0)"),  # noqa: DTZ001
        ("tomorrow", "'tomorrow'"),
        (True, "True"),
        (1.5, "1.5"),
        (None, "None"),
    ],
)
def test_a_delay_that_is_none_fails_its_own_step(value, shown):
    class Waits(Sequence):
        @step
        def one(self): ...

        @step(delay=lambda self: value, max_retries=0)
        def two(self): ...

    sequence = run_sequence(Waits)

    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    assert only_failure(sequence).message == (
        f"The delay of step 'two' is {shown}: it must be a timedelta, a whole number of "
        "milliseconds, or an aware datetime."
    )


def test_a_delay_beyond_the_calendar_fails_its_own_step_at_once():
    for value in (timedelta.max, 10**30, *(datetime.max.replace(tzinfo=z) for z in (BEHIND, UTC))):

        class Waits(Sequence):
            @step(delay=lambda self, value=value: value)
            def one(self): ...

        sequence = run_sequence(Waits)
        assert sequence.run.status == "failed"
        failure = only_failure(sequence)
        assert failure.message == (
            f"The delay of step 'one' is {value!r}: the date is out of range."
        )
        forget(Waits)


#: Whose year 9999 ends after that of UTC.
BEHIND = timezone.get_fixed_timezone(-720)


@pytest.mark.parametrize("after", [timedelta.max, -1, "1 s"])
def test_a_repeat_that_cannot_be_fails_its_step_at_once(after):
    class Poll(Sequence):
        @step
        def one(self):
            return repeat(after=after)

    sequence = run_sequence(Poll)
    assert failures(sequence)[0][:3] == ("one", 1, "sequences.exceptions.InvalidData")
    assert len(failures(sequence)) == 1


def test_an_error_in_a_delay_is_a_failed_attempt_of_its_own_step_and_it_is_asked_again():
    asked = []

    def delay(self):
        asked.append(self.attempt)
        if self.attempt == 1:
            raise ValueError("not yet")
        return timedelta(days=1)

    class Waits(Sequence):
        @step
        def one(self): ...

        @step(delay=delay, max_retries=3)
        def two(self): ...

    sequence = run_sequence(Waits)

    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert failures(sequence) == [("two", 1, "ValueError", "not yet")]
    assert asked == [1, 2]


def test_a_delay_is_asked_once_however_often_the_step_is_tried():
    asked = []

    def delay(self):
        asked.append(self.attempt)
        return timedelta(days=1)

    class Waits(Sequence):
        @step(delay=delay, max_retries=3)
        def one(self):
            if self.attempt < 3:
                raise ValueError

    assert run_sequence(Waits).run.status == "succeeded"
    assert asked == [1]


def test_a_delay_that_is_over_is_asked_once_too():
    asked = []

    def delay(self):
        asked.append(self.attempt)
        return 0

    class Waits(Sequence):
        @step(delay=delay, max_retries=3)
        def one(self):
            if self.attempt < 3:
                raise ValueError

    assert run_sequence(Waits).run.status == "succeeded"
    assert asked == [1]


def test_parallel_steps_wait_each_for_its_own_delay():
    performed = []

    class Waits(Sequence):
        @step(after=[], delay=timedelta(days=2))
        def late(self):
            performed.append("late")

        @step(after=[], delay=timedelta(days=1))
        def early(self):
            performed.append("early")

        @step
        def join(self):
            performed.append("join")

    run_sequence(Waits)
    assert performed == ["early", "late", "join"]


# when


def test_a_step_whose_condition_is_false_is_skipped_and_what_comes_after_goes_on():
    class Conditions(Sequence):
        @step
        def one(self):
            self.data["wanted"] = False

        @step(when=lambda self: self.data["wanted"])
        def two(self):
            raise AssertionError

        @step(when=lambda self: not self.data["wanted"])
        def three(self):
            return self.result("two", "nothing")

    sequence = run_sequence(Conditions)

    assert_steps(sequence, [("one", "succeeded"), ("two", "skipped"), ("three", "succeeded")])
    assert sequence.run.status == "succeeded"
    assert sequence.run.steps.get(step="three").result == "nothing"


def test_a_run_whose_last_step_is_skipped_succeeds():
    class Conditions(Sequence):
        @step(when=lambda self: False)
        def one(self): ...

    assert run_sequence(Conditions).run.status == "succeeded"


def test_an_error_in_a_condition_is_a_failed_attempt_of_its_own_step():
    class Conditions(Sequence):
        @step
        def one(self): ...

        @step(when=lambda self: self.data["missing"], max_retries=1)
        def two(self): ...

    sequence = run_sequence(Conditions)

    assert_steps(sequence, [("one", "succeeded"), ("two", "failed")])
    assert [failure[:3] for failure in failures(sequence)] == [
        ("two", 1, "KeyError"),
        ("two", 2, "KeyError"),
    ]


def test_a_condition_is_asked_after_the_delay_and_at_every_attempt():
    asked = []

    def when(self):
        asked.append((self.attempt, self.data["delayed"]))
        return self.attempt < 2

    def delay(self):
        assert not asked
        return timedelta(days=1)

    class Conditions(Sequence):
        @step(delay=delay, when=when, max_retries=3)
        def one(self):
            raise ValueError

    sequence = Conditions(delayed=False)
    drain()
    sequence.run.refresh_from_db()
    sequence.run.edit({"delayed": True})
    with clock() as moving:
        moving.move(timedelta(days=1, minutes=1))
        drain()

    assert asked == [(1, True), (2, True)]
    assert_steps(sequence, [("one", "skipped")])


# repeat, finish, Abort


def test_repeat_commits_and_runs_again_with_a_new_key_and_no_failed_attempts():
    seen = []

    class Polls(Sequence):
        @step(max_retries=1)
        def poll(self):
            seen.append((self.data["n"], self.attempt, self.idempotency_key))
            if self.attempt == 1:
                raise ValueError
            self.data["n"] += 1
            Message.objects.create(name=str(self.data["n"]))
            return repeat() if self.data["n"] < 3 else self.data["n"]

        @step
        def after(self):
            return self.result("poll")

    sequence = run_sequence(Polls, n=0)

    assert_steps(sequence, [("poll", "succeeded"), ("after", "succeeded")])
    assert [(n, attempt) for n, attempt, _ in seen] == [
        (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)
    ]  # fmt: skip
    keys = [key for _, _, key in seen]
    assert keys[0::2] == keys[1::2]  # stable over attempts
    assert len(set(keys)) == 3
    assert Message.objects.count() == 3
    assert sequence.run.failures.count() == 3
    assert sequence.run.steps.get(step="after").result == 3


@pytest.mark.parametrize("after", [timedelta(hours=1), 60 * 60 * 1000])
def test_repeat_after_a_time_waits_from_the_commit_on(after):
    class Polls(Sequence):
        @step(delay=timedelta(days=1))
        def poll(self):
            self.data["n"] += 1
            return repeat(after=after) if self.data["n"] < 2 else None

    sequence = Polls(n=0)
    with clock() as moving:
        drain()
        moving.move(timedelta(days=1, minutes=1))
        drain()
        row = sequence.run.steps.get()
        sequence.run.refresh_from_db()
        assert (row.status, row.repeats, sequence.run.data) == ("waiting", 1, {"n": 1})
        assert timedelta(0) <= row.due_at - row.queued_at - timedelta(hours=1) < timedelta(1)
        moving.move(timedelta(minutes=59))
        assert drain() == 0
        moving.move(timedelta(minutes=1))
        assert drain() == 1  # and its own delay is not waited for again
    sequence.run.refresh_from_db()
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {"n": 2})


def test_finish_succeeds_the_run_and_skips_what_waits():
    class Finishes(Sequence):
        @step(after=[], delay=timedelta(days=1))
        def waiting(self):
            raise AssertionError

        @step(after=[])
        def finishing(self):
            self.data["finished"] = True
            return finish()

        @step
        def last(self):
            raise AssertionError

    sequence = run_sequence(Finishes)

    assert_steps(sequence, [("waiting", "skipped"), ("finishing", "succeeded")])
    assert (sequence.run.status, sequence.data) == ("succeeded", {"finished": True})
    assert sequence.run.finished_at is not None


def test_finish_takes_the_commit_of_a_step_that_runs_beside_it():
    class Finishes(Sequence):
        @step(after=[], atomic=False)
        def running(self):
            drain()  # while it runs, the other one finishes the run
            self.data["running"] = True

        @step(after=[])
        def finishing(self):
            return finish()

    sequence = Finishes()
    drain()

    sequence.run.refresh_from_db()
    assert_steps(sequence, [("running", "skipped"), ("finishing", "succeeded")])
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {})
    assert not sequence.run.failures.exists()


def test_abort_fails_the_step_at_once_and_rolls_back():
    class Aborts(Sequence):
        @step(max_retries=10)
        def one(self):
            Message.objects.create(name="gone")
            raise Abort("there is no such customer")

        @step
        def two(self): ...

    sequence = run_sequence(Aborts)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.run.status == "failed"
    assert failures(sequence) == [
        ("one", 1, "sequences.exceptions.Abort", "there is no such customer")
    ]
    assert not Message.objects.exists()


def test_a_step_that_skips_its_own_message_fails_and_is_not_left_running():
    class Skips(Sequence):
        @step(max_retries=10)
        def one(self):
            raise dramatiq.middleware.SkipMessage

    sequence = run_sequence(Skips)

    assert_steps(sequence, [("one", "failed")])
    assert only_failure(sequence).message == (
        "Step 'one' raised SkipMessage. Return early, or raise Abort."
    )


def test_a_step_that_exits_is_a_failed_attempt():
    class Exits(Sequence):
        @step(max_retries=1)
        def one(self):
            raise SystemExit(1)

    sequence = run_sequence(Exits)
    assert_steps(sequence, [("one", "failed")])
    assert [failure[2] for failure in failures(sequence)] == ["SystemExit"] * 2
