"""What a step can be, and what it can ask, on the engine itself, without a worker."""

from datetime import UTC, datetime, timedelta

import dramatiq
import pytest

from sequences import Sequence, event, step
from sequences.testing import assert_steps, clock, drain, isolate_sequences, run_sequence
from testproject.contact.models import Message
from tests.steps import forget, only_failure, options_of

pytestmark = pytest.mark.django_db


# What a step can be


def count(sequence):
    sequence.data["n"] += 1
    return sequence.data["n"]


class Count:
    def perform(self, sequence):
        return count(sequence)


def test_a_step_is_a_method_a_function_a_class_or_an_actor():
    @dramatiq.actor
    def add(a, b, *, c):
        return a + b + c

    class Forms(Sequence):
        @step
        def method(self):
            return count(self)

        function = step(count)
        cls = step(Count)
        actor = step(add, args=lambda self: (self.data["n"], 10), kwargs=lambda self: {"c": 100})

    forms = run_sequence(Forms, n=0)

    assert_steps(forms, [(name, "succeeded") for name in ("method", "function", "cls", "actor")])
    assert forms.data == {"n": 3}
    results = forms.run.steps.order_by("pk").values_list("result", flat=True)
    assert list(results) == [1, 2, 3, 113]


def test_an_existing_actor_keeps_working_by_itself_and_gives_its_options():
    @dramatiq.actor(max_retries=7, queue_name="slow", priority=3)
    def work():
        return "done"

    class Work(Sequence):
        one = step(work)

    assert work() == "done"
    options = options_of("tests.Work.one")
    assert (options["max_retries"], options["queue_name"], options["priority"]) == (7, "slow", 3)
    assert run_sequence(Work).run.steps.get().result == "done"


def test_what_the_arguments_of_an_actor_raise_is_a_failed_attempt_of_its_step():
    @dramatiq.actor(max_retries=0)
    def add(a):
        return a

    class Add(Sequence):
        @step
        def before(self): ...

        added = step(add, args=lambda self: (self.data["missing"],))

    sequence = run_sequence(Add)

    assert_steps(sequence, [("before", "succeeded"), ("added", "failed")])
    assert only_failure(sequence).error == "KeyError"


# results, and what else a step can ask


def test_results_of_earlier_steps_are_read_by_step_or_name():
    class Results(Sequence):
        @step
        def one(self):
            return {"list": [1, 2.5, None], "when": datetime(2030, 1, 1, tzinfo=UTC)}

        @step
        def nothing(self): ...

        @step(when=lambda self: False)
        def skipped(self): ...

        @step(each=lambda self: [None, 1])
        def each(self, item): ...

        @step
        def zero(self):
            return 0

        @step
        def ask(self):
            assert self.result(Results.one) == self.result("one")
            assert self.result("one")["list"] == [1, 2.5, None]
            assert self.result("one")["when"].startswith("2030-01-01")
            assert self.result("nothing") is None
            assert self.result("nothing", 5) is None
            assert self.result("skipped", 5) == 5
            assert self.result("each", 5) == 5
            assert list(self.results("each")) == [None, None]
            assert self.result("zero", 5) == 0
            assert self.result("ask", "not yet") == "not yet"
            assert list(self.results("zero")) == [0]
            self.data["asked"] = True

    assert run_sequence(Results).data == {"asked": True}


def test_the_result_of_a_step_that_is_not_there_is_an_error_that_knows_the_names():
    class Results(Sequence):
        @step
        def charge(self): ...

        @step
        def ask(self):
            self.result("chrage")

    sequence = run_sequence(Results)
    assert only_failure(sequence).message == (
        "tests.Results has no step 'chrage'. Did you mean 'charge'?"
    )
    assert sequence.run.steps.get(step="ask").attempts == 1  # no retry mends that


def test_a_step_knows_its_attempt_its_run_and_its_row():
    seen = []

    class Asks(Sequence):
        @step(max_retries=2)
        def one(self):
            seen.append((self.attempt, self.run.pk, self.step_run.step, self.step_run.worker != ""))
            assert self.run.status == "running"
            if self.attempt < 3:
                raise ValueError

    sequence = run_sequence(Asks)
    assert seen == [(attempt, sequence.run.pk, "one", True) for attempt in (1, 2, 3)]


def test_each_step_of_each_run_has_an_idempotency_key_of_its_own():
    keys = []

    class Keys(Sequence):
        @step
        def one(self):
            keys.append(self.idempotency_key)

        @step
        def two(self):
            keys.append(self.idempotency_key)

    run_sequence(Keys)
    run_sequence(Keys)
    assert len(set(keys)) == 4
    assert all(isinstance(key, str) and 0 < len(key) <= 64 for key in keys)


def test_a_step_that_is_restarted_by_a_person_has_a_new_idempotency_key():
    keys = []

    class Keys(Sequence):
        @step
        def one(self):
            keys.append(self.idempotency_key)

    sequence = run_sequence(Keys)
    sequence.run.restart_from(Keys.one)
    drain()
    assert len(set(keys)) == 2


def test_progress_is_stored_with_the_commit():
    class Progress(Sequence):
        @step
        def one(self):
            self.progress(1, 10, "begun")
            self.progress(done=10, total=10, text="all")

        @step
        def two(self): ...

    sequence = run_sequence(Progress)
    one, two = sequence.run.steps.order_by("pk")
    assert one.progress == {"done": 10, "total": 10, "text": "all"}
    assert two.progress is None


@pytest.mark.parametrize(
    ("progress", "message"),
    [
        ({"done": float("nan")}, 'progress["done"] is nan. Use None or a string.'),
        ({"text": "a\0"}, 'progress["text"] contains U+0000. Remove or replace it.'),
        (
            {"total": {1}},
            'progress["total"] is of type set, which JSON cannot represent. Use a list.',
        ),
    ],
)
def test_progress_that_cannot_be_stored_fails_the_step_that_tells_it(progress, message):
    class Progress(Sequence):
        @step(max_retries=10)
        def one(self):
            self.progress(**progress)

    assert only_failure(run_sequence(Progress)).message == message


@pytest.mark.parametrize("act", ["cancel", "finish", "restart_from"])
def test_a_step_that_ends_or_restarts_its_own_run_fails_and_says_what_to_do_instead(act):
    class Ends(Sequence):
        @step(max_retries=10)
        def one(self):
            Message.objects.create(name="gone")
            getattr(self.run, act)(*(["one"] if act == "restart_from" else []))

        @step
        def two(self): ...

    sequence = run_sequence(Ends)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.run.status == "failed"
    assert only_failure(sequence).message == (
        "Step 'one' cancelled, finished or restarted its own run, so its own commit was rejected. "
        "Return finish() or raise Abort instead."
    )
    assert not sequence.run.operations.exists()
    assert not Message.objects.exists()


def test_a_step_may_pause_its_own_run_and_is_committed():
    class Pauses(Sequence):
        @step
        def one(self):
            self.data["n"] = 1
            self.run.pause(by="the step", reason="somebody must look")

        @step
        def two(self): ...

    sequence = run_sequence(Pauses)

    assert_steps(sequence, [("one", "succeeded"), ("two", "queued")])
    assert (sequence.run.status, sequence.data) == ("paused", {"n": 1})
    sequence.run.resume()
    drain()
    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"


def test_a_step_without_a_transaction_that_cancels_its_own_run_has_cancelled_it():
    class Ends(Sequence):
        @step(atomic=False)
        def one(self):
            self.run.cancel()

    sequence = run_sequence(Ends)

    assert_steps(sequence, [("one", "cancelled")])
    assert sequence.run.status == "cancelled"
    assert not sequence.run.failures.exists()


# Inheritance and aliases


def test_a_subclass_performs_its_parents_steps_in_its_own_way():
    class Order(Sequence):
        class Meta:
            abstract = True
            max_retries = 0

        @step
        def charge(self):
            return "charged"

        @step
        def thank(self):
            return "thanks"

        @step
        def ship(self):
            return "shipped"

    class GiftOrder(Order):
        thank = None

        @step
        def charge(self):
            return "gift " + super().charge()

        @step
        def wrap(self):
            return "wrapped"

    sequence = run_sequence(GiftOrder)

    rows = sequence.run.steps.order_by("pk").values_list("step", "result")
    assert list(rows) == [("charge", "gift charged"), ("ship", "shipped"), ("wrap", "wrapped")]
    assert options_of("tests.GiftOrder.charge")["max_retries"] == 0


def test_a_run_goes_on_after_its_sequence_and_its_steps_were_renamed():
    class Before(Sequence):
        @step
        def one(self): ...

        @step(delay=timedelta(days=1))
        def two(self): ...

    sequence = Before(n=1)
    drain()
    forget(Before)

    class After(Sequence):
        class Meta:
            aliases = ["tests.Before"]

        @step
        def one(self): ...

        @step(aliases=["two"])
        def second(self):
            self.data["n"] += self.result("one") or 1

    with clock() as moving:
        moving.move(timedelta(days=1, minutes=1))
        drain()

    sequence.run.refresh_from_db()
    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert sequence.run.data == {"n": 2}
    assert list(After.runs) == [sequence.run]


def test_a_renamed_step_is_found_in_runs_that_know_it_by_its_earlier_name():
    with isolate_sequences():

        class Order(Sequence):
            class Meta:
                app_label = "shop"

            @step
            def charge(self):
                return 7

            @step(each=lambda self: [1, 2])
            def pack(self, item):
                return item

            approval = event()

            @step
            def ship(self): ...

        old = Order().run
        drain()

    with isolate_sequences():

        class Order(Sequence):
            class Meta:
                app_label = "shop"

            @step(aliases=["charge"])
            def pay(self):
                return 8

            @step(each=lambda self: [1, 2], aliases="pack")
            def wrap(self, item):
                return item

            accept = event(aliases=["approval"])

            @step
            def ship(self):
                self.data["results"] = [
                    self.result(Order.pay),
                    self.result("charge"),
                    self.result("pay"),
                    list(self.results(Order.wrap)),
                    [outcome.item for outcome in self.outcomes("pack")],
                    self.result(Order.accept),
                ]

        new = Order().run
        drain()
        assert set(Order.runs.waiting_for(Order.accept)) == {old, new}
        assert list(Order.runs.waiting_for("approval")) == [old]
        for run, charged in ((old, 7), (new, 8)):
            assert run.deliver(Order.accept, "yes") is True
            drain()
            run.refresh_from_db()
            assert run.data["results"] == [charged] * 3 + [[1, 2], [1, 2], "yes"]
