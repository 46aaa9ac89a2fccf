"""A step commits with its run, or not at all; hooks run after the commit."""

from contextlib import nullcontext, suppress
from functools import partial

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from sequences import (
    Sequence,
    step,
)
from sequences.models import StepRun, StoredPlan
from sequences.testing import assert_steps, run_sequence
from sequences.transitions import plans
from testproject.contact.models import Message, Team
from tests.steps import failures

pytestmark = pytest.mark.django_db


# Transactions


def test_what_a_failed_attempt_has_written_is_rolled_back():
    class Writes(Sequence):
        @step(max_retries=1)
        def one(self):
            Team.objects.create(topic="press", name=f"attempt {self.attempt}")
            self.data["attempts"] = [*self.data.get("attempts", []), self.attempt]
            if self.attempt == 1:
                raise ValueError("not yet")

    sequence = run_sequence(Writes)

    assert sequence.run.status == "succeeded"
    assert [team.name for team in Team.objects.all()] == ["attempt 2"]
    assert sequence.data == {"attempts": [2]}


def test_without_atomic_what_a_failed_attempt_has_written_stays_and_its_data_does_not():
    class Writes(Sequence):
        @step(atomic=False, max_retries=1)
        def one(self):
            Message.objects.create(name=f"attempt {self.attempt}")
            self.data["attempts"] = [*self.data.get("attempts", []), self.attempt]
            if self.attempt == 1:
                raise ValueError("not yet")

    sequence = run_sequence(Writes)

    assert sequence.run.status == "succeeded"
    names = Message.objects.order_by("pk").values_list("name", flat=True)
    assert list(names) == ["attempt 1", "attempt 2"]
    assert sequence.data == {"attempts": [2]}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [True, False])
def test_a_step_runs_in_a_transaction_unless_it_is_declared_otherwise(atomic):
    seen = []

    class ProcessReport(Sequence):
        @step(atomic=atomic)
        def one(self):
            seen.append(connection.in_atomic_block)

    run_sequence(ProcessReport)
    assert seen == [atomic]


def test_atomic_may_be_a_default_of_the_class():
    class Loose(Sequence):
        class Meta:
            atomic = False

        @step(max_retries=0)
        def one(self):
            Message.objects.create(name="stays")
            raise ValueError

    run_sequence(Loose)
    assert Message.objects.get().name == "stays"


@pytest.mark.django_db(transaction=True)
def test_a_step_that_swallows_an_error_of_a_broken_transaction_fails_and_stores_nothing():
    class Swallows(Sequence):
        @step(max_retries=0)
        def one(self):
            self.data["n"] = 1
            Team.objects.create(topic="press", name="first")
            with suppress(IntegrityError):
                Team.objects.create(topic="press", name="second")

        @step
        def two(self): ...

    sequence = run_sequence(Swallows)

    assert_steps(sequence, [("one", "failed")])
    assert sequence.data == {}
    assert not Team.objects.exists()
    assert run_sequence(Swallows).run.status == "failed"  # and the connection still works


@pytest.mark.django_db(transaction=True)
def test_a_step_may_catch_an_error_of_the_database_in_a_savepoint():
    class Catches(Sequence):
        @step
        def one(self):
            Team.objects.create(topic="press", name="first")
            try:
                with transaction.atomic():
                    Team.objects.create(topic="press", name="second")
            except IntegrityError:
                self.data["caught"] = True

    assert run_sequence(Catches).data == {"caught": True}
    assert Team.objects.get().name == "first"


@pytest.mark.django_db(transaction=True)
def test_a_step_that_marks_its_transaction_for_rollback_does_not_succeed():
    class Marks(Sequence):
        @step(max_retries=0)
        def one(self):
            transaction.set_rollback(True)

    assert run_sequence(Marks).run.status == "failed"


def test_what_the_database_gives_up_for_anothers_sake_is_no_failed_attempt():
    performed = []

    class Deadlocks(Sequence):
        @step
        def one(self):
            performed.append((self.attempt, self.idempotency_key))
            Message.objects.create(name="once")
            self.data["n"] += 1
            if len(performed) < 3:
                raise OperationalError("database is locked")

    sequence = run_sequence(Deadlocks, n=0)

    assert (sequence.run.status, sequence.data) == ("succeeded", {"n": 1})
    assert Message.objects.count() == 1
    assert not sequence.run.failures.exists()
    assert len(performed) == 3
    assert len(set(performed)) == 1


def test_a_database_that_gives_up_again_and_again_fails_the_attempt(monkeypatch):
    monkeypatch.setattr("sequences.engine.executor.back_off", lambda replay: None)
    performed = []

    class Deadlocks(Sequence):
        @step(max_retries=1)
        def one(self):
            performed.append(self.attempt)
            raise OperationalError("database is locked")

    sequence = run_sequence(Deadlocks)

    assert_steps(sequence, [("one", "failed")])
    assert [failure[1:] for failure in failures(sequence)] == [
        (attempt, "django.db.utils.OperationalError", "database is locked") for attempt in (1, 2)
    ]
    assert 2 < performed.count(1) == performed.count(2) < 20


def test_a_step_without_a_transaction_is_not_performed_again_before_its_retry():
    class Deadlocks(Sequence):
        @step(atomic=False, max_retries=1)
        def one(self):
            Message.objects.create(name=f"attempt {self.attempt}")
            if self.attempt == 1:
                raise OperationalError("database is locked")

    sequence = run_sequence(Deadlocks)

    assert sequence.run.status == "succeeded"
    names = Message.objects.order_by("pk").values_list("name", flat=True)
    assert list(names) == ["attempt 1", "attempt 2"]
    assert sequence.run.failures.count() == 1


@pytest.mark.parametrize("is_caught", [True, False])
def test_a_database_error_in_such_a_step_leaves_the_transaction_of_a_test_usable(is_caught):
    class Imports(Sequence):
        @step(atomic=False, max_retries=1)
        def one(self):
            if self.attempt == 1:
                with suppress(DatabaseError) if is_caught else nullcontext():
                    connection.cursor().execute("SELECT * FROM no_such_table")
            self.data["attempts"] = self.attempt

    sequence = run_sequence(Imports)

    assert (sequence.run.status, sequence.data["attempts"]) == ("succeeded", 2 - is_caught)
    assert Message.objects.count() == 0


# on_commit


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_named", [True, False])
def test_hooks_run_after_the_commit_and_one_that_raises_fails_nothing(caplog, is_named):
    seen = []

    def broken():
        raise RuntimeError("the hook is broken")

    hook = broken if is_named else partial(broken)

    class Hooks(Sequence):
        @step
        def one(self):
            row = StepRun.objects.get(pk=self.step_run.pk)
            transaction.on_commit(hook)
            transaction.on_commit(lambda: seen.append(StepRun.objects.get(pk=row.pk).status))

        @step
        def two(self): ...

    sequence = run_sequence(Hooks)

    assert_steps(sequence, [("one", "succeeded"), ("two", "succeeded")])
    assert seen == ["succeeded"]
    assert not sequence.run.failures.exists()
    assert "the hook is broken" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_hooks_of_a_step_that_writes_nothing_run_too():
    seen = []

    class Hooks(Sequence):
        @step
        def one(self):
            transaction.on_commit(lambda: seen.append(connection.in_atomic_block))

    assert run_sequence(Hooks).run.status == "succeeded"
    assert seen == [False]


@pytest.mark.django_db(transaction=True)
def test_hooks_of_a_failed_attempt_do_not_run():
    seen = []

    class Hooks(Sequence):
        @step(max_retries=1)
        def one(self):
            attempt = self.attempt
            transaction.on_commit(lambda: seen.append(attempt))
            if attempt == 1:
                raise ValueError

    run_sequence(Hooks)
    assert seen == [2]


def test_a_test_costs_the_same_per_step_however_many_hooks_it_has_kept(monkeypatch):
    looked_at = []

    class Hooks(list):
        def __iter__(self):
            looked_at.append(len(self))
            return super().__iter__()

        def __getitem__(self, key):
            found = super().__getitem__(key)
            looked_at.append(len(found) if isinstance(key, slice) else 1)
            return found

    class Posts(Sequence):
        @step(each="letters")
        def post(self, letter):
            transaction.on_commit(partial(print, letter))

    hooks = Hooks()
    monkeypatch.setattr(connection, "run_on_commit", hooks)
    sequence = run_sequence(Posts, letters=list(range(60)))

    assert sequence.run.status == "succeeded"
    assert connection.run_on_commit is hooks
    assert 60 <= len(hooks) < 60 + 10
    assert sum(looked_at) < 6 * len(hooks)


def test_a_transaction_reads_a_plan_once_and_forgets_it_with_the_savepoint_it_was_stored_in():
    class One(Sequence):
        @step(each="letters")
        def post(self, letter): ...

    with suppress(ZeroDivisionError), transaction.atomic():
        with CaptureQueriesContext(connection) as queries:
            plan_id = run_sequence(One, letters=[1, 2, 3, 4, 5, 6]).run.plan_id
        raise ZeroDivisionError

    reads = [each["sql"] for each in queries if each["sql"].startswith("SELECT")]
    assert len([sql for sql in reads if StoredPlan._meta.db_table in sql]) <= 2
    with pytest.raises(StoredPlan.DoesNotExist):
        plans.load(plan_id, connection.alias)
