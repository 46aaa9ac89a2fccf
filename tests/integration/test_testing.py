"""The helpers for users' tests, in the test cases of Django."""

# ruff: noqa: PT027 (in the way of such test cases)

import re
from datetime import timedelta
from unittest import mock

import dramatiq
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from dramatiq.middleware import CurrentMessage

from sequences import Limit, Sequence, event, repeat, step, subsequence
from sequences.definitions import registry
from sequences.engine import dispatcher
from sequences.exceptions import InvalidData, UnknownSequence
from sequences.models import SequenceRun, StepRun
from sequences.testing import assert_steps, build, clock, drain, isolate_sequences, run_sequence
from sequences.transitions import clock as database_clock
from testproject.contact.models import Message


class SequenceTestCase(TestCase):
    """Declares a sequence as a test would, and forgets it."""

    def setUp(self):
        self.enterContext(isolate_sequences())

        class Contact(Sequence):
            class Meta:
                defaults = {"tags": []}

            @step
            def create(self):
                self.data["message"] = Message.objects.create(name=self.data["name"]).pk

            @step(max_retries=2, min_backoff=60_000)
            def assign(self):
                if self.attempt <= self.data.get("failures", 0):
                    raise ConnectionError("the server is down")

            @step(delay=timedelta(days=3))
            def remind(self):
                return f"reminded {self.data['name']}"

        self.Contact = Contact


ALL = [("create", "succeeded"), ("assign", "succeeded"), ("remind", "succeeded")]


class RunTests(SequenceTestCase):
    def test_a_whole_sequence_is_performed_with_its_delays(self):
        sequence = run_sequence(self.Contact, name="Joel")

        assert_steps(sequence, ALL)
        assert sequence.run.status == "succeeded"
        assert sequence.data == {
            "name": "Joel",
            "tags": [],
            "message": Message.objects.get(name="Joel").pk,
        }
        assert sequence.created

    def test_retries_are_made_at_once(self):
        sequence = run_sequence(self.Contact, name="Joel", failures=2)
        assert_steps(sequence, ALL)
        assert [row.attempt for row in sequence.run.failures.all()] == [1, 2]

    def test_a_sequence_that_fails_is_returned_as_failed(self):
        sequence = run_sequence(self.Contact, name="Joel", failures=3)
        assert_steps(sequence, [("create", "succeeded"), ("assign", "failed")])
        assert sequence.run.status == "failed"

    def test_attempts_that_failed_alike_are_one_line(self):
        class Failing(Sequence):
            class Meta:
                app_label = "tests"

            @step(max_retries=20)
            def fetch(self):
                raise ValueError("first" if self.attempt == 1 else "no answer")

        sequence = run_sequence(Failing)
        with self.assertRaises(AssertionError) as caught:
            assert_steps(sequence, [("fetch", "succeeded")])
        failures = str(caught.exception).partition("Failures:\n")[2]
        assert failures.splitlines() == [
            "  fetch #1: ValueError: first",
            "  fetch #2 to #21: ValueError: no answer",
        ]

    def test_it_performs_no_other_run(self):
        other = self.Contact(name="other")
        run_sequence(self.Contact, name="Joel")
        assert other.run.steps.get().status == "queued"

    def test_the_clock_is_set_back(self):
        before = database_clock.moved()
        run_sequence(self.Contact, name="Joel")
        assert database_clock.moved() == before

    def test_nothing_is_sent_to_the_broker(self):
        with self.captureOnCommitCallbacks(execute=True):
            sequence = self.Contact(name="Joel")
        waiting = dramatiq.get_broker().queues["default"]
        assert waiting.qsize() == 1  # by the start itself
        with dispatcher.capture_dispatches() as sent:
            drain()
        assert sent == []
        assert waiting.qsize() == 1
        assert sequence.run.steps.count() == 3

    def test_a_sequence_that_never_ends_is_an_error(self):
        class Polls(Sequence):
            @step
            def poll(self):
                return repeat(after=timedelta(minutes=1))

        limit = mock.patch("sequences.testing.RUN_LIMIT", 20)
        with limit, self.assertRaisesRegex(AssertionError, "step poll of tests.Polls"):
            run_sequence(Polls)

    def test_bad_data_is_refused_as_at_a_start(self):
        with self.assertRaises(InvalidData):
            run_sequence(self.Contact, name={1})

    def test_what_the_steps_commit_can_be_captured(self):
        sent = []

        class Mails(Sequence):
            @step
            def mail(self):
                transaction.on_commit(lambda: sent.append("mail"))

        with self.captureOnCommitCallbacks(execute=True):
            run_sequence(Mails)
        assert sent == ["mail"]


class DrainTests(SequenceTestCase):
    def test_everything_that_is_due_is_performed_and_no_more(self):
        one, two = self.Contact(name="one"), self.Contact(name="two")

        assert drain() == 4  # two of the three steps are performed, and the third has to wait
        for sequence in (one, two):
            assert_steps(
                sequence, [("create", "succeeded"), ("assign", "succeeded"), ("remind", "waiting")]
            )
        assert drain() == 0

    def test_the_clock_makes_delays_due(self):
        sequence = self.Contact(name="Joel")
        with clock() as moving:
            drain()
            moving.move(timedelta(days=2))
            assert drain() == 0
            moving.move(timedelta(days=1, seconds=1))
            assert drain() == 1
        assert_steps(sequence, ALL)
        remind = sequence.run.steps.get(step="remind")
        assert remind.finished_at > timezone.now() + timedelta(days=3)

    def test_the_clock_moves_to_the_next_time_of_a_run(self):
        sequence = self.Contact(name="Joel")
        with clock() as moving:
            assert not moving.move_to_next(sequence.run)  # it waits for no time
            drain()
            assert moving.move_to_next(sequence.run)
            drain()
        assert_steps(sequence, ALL)

    def test_clocks_may_stand_inside_one_another(self):
        before = database_clock.moved()
        with clock() as outer:
            outer.move(timedelta(days=1))
            with clock() as inner:
                inner.move(timedelta(days=1))
                assert database_clock.moved() == before + timedelta(days=2)
            assert database_clock.moved() == before + timedelta(days=1)
        assert database_clock.moved() == before

    def test_the_clock_is_set_back_after_an_error(self):
        before = database_clock.moved()
        with self.assertRaises(ZeroDivisionError), clock() as moving:
            moving.move(timedelta(days=1 / 0))
        assert database_clock.moved() == before

    def test_what_only_joins_the_line_of_a_limit_is_not_counted(self):
        class Mailing(Sequence):
            @step(limits=[Limit("rate-of-drain", rate=5, per=timedelta(seconds=1))])
            def send(self):
                self.data["sent"] = True

        runs = [Mailing.start().run for _ in range(10)]
        done = Mailing.runs.filter(status="succeeded")
        counts = []
        with clock() as moving:
            for _ in range(20):
                before = done.count()
                counts.append(drain())
                assert counts[-1] == done.count() - before
                moving.move(timedelta(milliseconds=200))
        assert sum(counts) == len(runs)

    def test_what_only_begins_to_wait_is_not_counted_and_each_attempt_is(self):
        class Child(Sequence):
            @step
            def one(self): ...

        class Waits(Sequence):
            approval = event()

            @step(each="items")
            def pack(self, item): ...

            child = subsequence(Child)

            @step(when=lambda self: False)
            def never(self): ...

            @step
            def poll(self):
                self.data["polls"] += 1
                return repeat() if self.data["polls"] < 3 else None

            @step(max_retries=1)
            def fail(self):
                raise ValueError

        sequence = Waits(items=[1, 2, 3], polls=0)
        assert drain() == 0
        sequence.run.deliver("approval")
        approval, pack, child, one, never, poll, fail = 1, 1, 1, 1, 1, 3, 2
        assert drain() == approval + pack + child + one + never + poll + fail

    def test_a_limit_ends_it(self):
        self.Contact(name="Joel")
        with self.assertRaisesRegex(AssertionError, "step assign"):
            drain(limit=1)

    def test_a_run_whose_class_is_gone_fails(self):
        with isolate_sequences():

            class Gone(Sequence):
                @step
                def one(self): ...

            sequence = Gone()
        assert drain() == 1
        assert_steps(sequence, [("one", "failed")])
        assert "No sequence is registered as 'tests.Gone'" in sequence.run.failures.get().message

    def test_what_is_paused_is_not_performed(self):
        sequence = self.Contact(name="Joel")
        sequence.run.pause()
        assert drain() == 0
        sequence.run.resume()
        assert drain() > 0

    def test_sequences_that_a_step_starts_are_performed_too(self):
        contact = self.Contact

        class Starts(Sequence):
            @step
            def begin(self):
                self.data["run"] = str(contact(name="child").run.pk)

        sequence = Starts()
        drain()
        sequence.run.refresh_from_db()
        assert SequenceRun.objects.get(pk=sequence.run.data["run"]).steps.count() == 3


class BuildTests(SimpleTestCase):
    """Without a database, which SimpleTestCase forbids."""

    def setUp(self):
        self.enterContext(isolate_sequences())

        class Order(Sequence):
            class Meta:
                defaults = {"tags": ["new"]}

            @step
            def charge(self):
                self.progress(1, 2)
                self.data["tags"].append(self.idempotency_key)
                return self.result("before", "no result"), list(self.results("before"))

        self.Order = Order

    def test_one_step_is_called_by_itself(self):
        order = build(self.Order, amount=5)
        assert order.charge() == ("no result", [])
        assert order.data == {"amount": 5, "tags": ["new", order.idempotency_key]}
        assert order.attempt == 1

    def test_it_has_a_run_that_is_not_stored(self):
        order = build(self.Order)
        assert order.run.sequence == "tests.Order"
        assert order.run._state.adding
        assert order.step_run._state.adding

    def test_each_has_defaults_of_its_own(self):
        build(self.Order).charge()
        assert build(self.Order).data == {"tags": ["new"]}


class IsolationTests(SimpleTestCase):
    def test_what_is_declared_inside_is_forgotten_with_its_actors(self):
        with isolate_sequences():
            self.declare()
            assert registry.get("tests.Inside")
            assert "tests.Inside.one" in dramatiq.get_broker().actors
        with self.assertRaises(UnknownSequence):
            registry.get("tests.Inside")
        assert "tests.Inside.one" not in dramatiq.get_broker().actors

    def test_what_was_declared_before_is_there_inside_and_afterwards(self):
        before, actors = registry.all(), dict(dramatiq.get_broker().actors)
        with isolate_sequences():
            assert registry.all() == before
            self.declare()
        assert registry.all() == before
        assert dramatiq.get_broker().actors == actors

    def test_it_is_forgotten_after_an_error_too(self):
        with self.assertRaises(ZeroDivisionError), isolate_sequences():
            self.declare()
            _ = 1 / 0
        assert registry.find("tests.Inside") is None

    @isolate_sequences()
    def test_it_decorates_a_test(self):
        self.declare()
        assert registry.get("tests.Inside")

    @isolate_sequences()
    def test_it_decorates_each_test_anew(self):
        assert registry.find("tests.Inside") is None

    def declare(self):
        class Inside(Sequence):
            @step
            def one(self): ...


class LedgerTests(SequenceTestCase):
    def test_it_takes_a_sequence_or_a_run(self):
        sequence = run_sequence(self.Contact, name="Joel")
        assert_steps(sequence, ALL)
        assert_steps(sequence.run, iter(ALL))

    def test_what_differs_is_shown_with_the_failures(self):
        sequence = run_sequence(self.Contact, name="Joel", failures=3)
        with self.assertRaises(AssertionError) as caught:
            assert_steps(sequence, ALL)
        message = str(caught.exception)
        assert str(sequence.run.pk) in message
        assert "('assign', 'failed')" in message
        assert "('assign', 'succeeded')" in message
        assert "assign #1 to #3: ConnectionError: the server is down" in message

    def test_a_missing_step_and_another_order_differ(self):
        sequence = run_sequence(self.Contact, name="Joel")
        for wrong in (ALL[:2], ALL[::-1], []):
            with self.assertRaises(AssertionError):
                assert_steps(sequence, wrong)


class RealTransactionTests(TransactionTestCase):
    """Everything is committed for real, and flushed after each test."""

    def setUp(self):
        self.enterContext(isolate_sequences())

        class Contact(Sequence):
            @step
            def create(self):
                Message.objects.create(name="Joel")

            @step(delay=timedelta(days=1))
            def remind(self): ...

        self.Contact = Contact

    def test_a_sequence_is_performed(self):
        sequence = run_sequence(self.Contact)
        assert_steps(sequence, [("create", "succeeded"), ("remind", "succeeded")])
        assert Message.objects.count() == 1
        self.the_plan_is_there(sequence)

    def test_a_sequence_is_performed_again_after_a_flush(self):
        assert not StepRun.objects.exists()
        self.the_plan_is_there(run_sequence(self.Contact))

    def the_plan_is_there(self, sequence):
        assert sequence.run.plan.plan.names == ("create", "remind")


class CostTests(TestCase):
    def setUp(self):
        self.enterContext(isolate_sequences())

        class Short(Sequence):
            class Meta:
                app_label = "contact"

            @step
            def one(self):
                message = CurrentMessage.get_current_message()
                self.data["actor"] = message.actor_name if message else None

            @step
            def two(self): ...

        self.short = Short

    def looks_for_all(self, count):
        """How often the table is asked for all that is due, and not for one step run."""
        self.short.start_many([{}] * count)
        with CaptureQueriesContext(connection) as queries:
            assert drain() == 2 * count
        asked = [one["sql"] for one in queries if "wake_at" in one["sql"]]
        selects = [sql for sql in asked if sql.startswith("SELECT") and " IS NOT NULL" in sql]
        return len([sql for sql in selects if not re.search(r"steprun.?\..?id.? = ", sql)])

    def test_a_step_costs_the_same_however_many_runs_there_are(self):
        assert self.looks_for_all(30) == self.looks_for_all(3)

    def test_a_step_sees_the_current_message(self):
        broker = dramatiq.get_broker()
        with mock.patch.object(broker, "middleware", [*broker.middleware, CurrentMessage()]):
            sequence = run_sequence(self.short)
        assert sequence.data["actor"] == "contact.Short.one"
        assert CurrentMessage.get_current_message() is None
