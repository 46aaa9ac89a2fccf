"""Steps that know nothing of sequences: Dramatiq's actors, and Django's tasks."""

import importlib
from datetime import UTC, datetime
from importlib.util import find_spec

import dramatiq
import pytest

from sequences import Abort, Sequence, step
from sequences.exceptions import InvalidDefinition
from sequences.testing import assert_steps, run_sequence
from testproject.contact.models import Message
from tests.steps import only_failure, options_of

pytestmark = pytest.mark.django_db

#: Django's own, since 6.0, and the package of the same interface for earlier ones.
LIBRARIES = [name for name in ("django.tasks", "django_tasks") if find_spec(name)]


def add(a, b=0, *, c=0):
    return a + b + c


async def add_later(a, b=0):
    await Message.objects.acreate(name=str(a), body="")
    return a + b


def write(name):
    Message.objects.create(name=name, body="")
    raise ValueError("no")


def refuse(name):
    raise Abort("no")


def with_context(context, a):
    return a


@pytest.fixture(params=LIBRARIES)
def task(request):
    return importlib.import_module(request.param).task


def results_of(sequence, name):
    rows = sequence.run.steps.filter(step=name, item__gte=0).order_by("item")
    return list(rows.values_list("result", flat=True))


# For each item


def test_an_actor_is_called_for_each_item_with_what_args_and_kwargs_make_of_it():
    actor = dramatiq.actor(actor_name="tests.add")(add)

    class Each(Sequence):
        plain = step(actor, each="numbers")
        args = step(actor, each="numbers", args=lambda self, item: [item, self.data["n"]])
        kwargs = step(actor, each="numbers", kwargs=lambda self, item: {"a": item, "c": 100})
        both = step(
            actor,
            each="numbers",
            args=lambda self, items: [sum(items)],
            kwargs=lambda self, items: {"c": len(items)},
            batch=2,
            concurrency=1,
        )

    sequence = run_sequence(Each, numbers=[1, 2, 3], n=10)

    assert sequence.run.status == "succeeded"
    assert results_of(sequence, "plain") == [1, 2, 3]
    assert results_of(sequence, "args") == [11, 12, 13]
    assert results_of(sequence, "kwargs") == [101, 102, 103]
    assert results_of(sequence, "both") == [5, 4]


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.django_db(transaction=True)
def test_an_asynchronous_actor_is_awaited_for_each_item(atomic):
    actor = dramatiq.actor(actor_name="tests.add_later")(add_later)

    class Each(Sequence):
        added = step(
            actor, each="numbers", args=lambda self, item: [item, 10], atomic=atomic, concurrency=2
        )

    sequence = run_sequence(Each, numbers=[1, 2, 3])

    assert sequence.run.status == "succeeded"
    assert results_of(sequence, "added") == [11, 12, 13]
    assert sorted(Message.objects.values_list("name", flat=True)) == ["1", "2", "3"]


def test_an_items_actor_has_attempts_of_its_own_and_its_writes_go_with_them():
    actor = dramatiq.actor(actor_name="tests.write", max_retries=1)(write)

    class Each(Sequence):
        written = step(actor, each="names", allow_failed=True)

    sequence = run_sequence(Each, names=["a", "b"])

    assert sequence.run.status == "succeeded"
    assert sequence.run.failures.count() == 4
    assert not Message.objects.exists()


def test_what_args_raise_for_one_item_is_a_failed_attempt_of_that_item():
    actor = dramatiq.actor(actor_name="tests.add", max_retries=0)(add)

    class Each(Sequence):
        added = step(actor, each="numbers", args=lambda self, item: [1 // item], allow_failed=1)

    sequence = run_sequence(Each, numbers=[1, 0])

    assert sequence.run.status == "succeeded"
    assert only_failure(sequence).error == "ZeroDivisionError"


def test_an_actor_that_cannot_be_called_with_an_item_is_refused():
    @dramatiq.actor(actor_name="tests.two")
    def two(a, b): ...

    with pytest.raises(InvalidDefinition) as refusal:

        class Each(Sequence):
            called = step(two, each="numbers")

    assert "its actor cannot be called with an item alone" in str(refusal.value)
    assert "functions of the sequence and the item" in str(refusal.value)


# Django's tasks


def test_a_task_is_a_step_with_arguments_and_for_each_item(task):
    decorated = task(add)

    class Tasks(Sequence):
        added = step(decorated, args=lambda self: [1, 2], kwargs=lambda self: {"c": 3})
        each = step(decorated, each="numbers", args=lambda self, item: [item, 10])

        @step
        def last(self):
            return self.result(Tasks.added) + sum(self.results(Tasks.each))

    sequence = run_sequence(Tasks, numbers=[1, 2])

    assert sequence.run.status == "succeeded"
    assert sequence.run.steps.get(step="last").result == 6 + 23
    assert decorated.call(1) == 1  # it is what it was


@pytest.mark.django_db(transaction=True)
def test_an_asynchronous_task_is_awaited_in_the_steps_transaction(task):
    class Tasks(Sequence):
        added = step(task(add_later), args=lambda self: [1, 2])

        @step(max_retries=0)
        def fail(self):
            raise Abort("no")

    sequence = run_sequence(Tasks)

    assert_steps(sequence, [("added", "succeeded"), ("fail", "failed")])
    assert sequence.run.steps.get(step="added").result == 3
    assert Message.objects.get().name == "1"


def test_what_a_task_writes_is_rolled_back_with_its_attempt(task):
    class Tasks(Sequence):
        written = step(task(write), args=lambda self: ["a"], max_retries=2)

    sequence = run_sequence(Tasks)

    assert sequence.run.status == "failed"
    assert sequence.run.failures.count() == 3
    assert not Message.objects.exists()


def test_a_tasks_queue_and_priority_are_those_of_its_step(task, settings):
    """The greater number comes first there, the smaller one in Dramatiq."""
    name = f"{task.__module__.removesuffix('.base')}.backends.immediate.ImmediateBackend"
    queues = {"QUEUES": ["default", "mails"]}
    settings.TASKS = {"default": {"BACKEND": name, **queues}}
    decorated = task(queue_name="mails", priority=0)(add)

    class Tasks(Sequence):
        class Meta:
            queue_name = "slow"

        theirs = step(decorated, args=lambda self: [1])
        ours = step(decorated, args=lambda self: [1], queue_name="fast", priority=3)
        default = step(task(add), args=lambda self: [1])

    assert options_of("tests.Tasks.theirs")["queue_name"] == "mails"
    assert (options_of("tests.Tasks.ours")["queue_name"]) == "fast"
    assert options_of("tests.Tasks.ours")["priority"] == 3
    assert options_of("tests.Tasks.default")["queue_name"] == "slow"


def test_the_order_of_tasks_priorities_is_kept(task, monkeypatch):
    from sequences.definitions.steps import own_options_of

    decorated = task(add)
    object.__setattr__(decorated, "priority", 7)  # the immediate backend takes no priorities

    assert own_options_of(decorated) == {"priority": -7}


@pytest.mark.parametrize("options", [{}, {"each": "numbers"}])
def test_a_task_that_wants_a_context_is_refused(task, options):
    decorated = task(takes_context=True)(with_context)

    with pytest.raises(InvalidDefinition) as refusal:

        class Tasks(Sequence):
            called = step(decorated, args=lambda self: [1], **options)

    assert "takes a context" in str(refusal.value)


def test_a_task_with_a_time_of_its_own_is_refused(task):
    decorated = task(add)
    object.__setattr__(decorated, "run_after", datetime(2030, 1, 1, tzinfo=UTC))

    with pytest.raises(InvalidDefinition, match=r"run_after.*give the step a delay"):

        class Tasks(Sequence):
            called = step(decorated, args=lambda self: [1])


def test_a_task_without_its_arguments_is_refused(task):
    with pytest.raises(InvalidDefinition, match="its task requires arguments"):

        class Tasks(Sequence):
            called = step(task(add))


def test_a_task_in_the_body_of_a_class_is_refused_unless_it_is_a_step(task):
    decorated = task(add)

    with pytest.raises(InvalidDefinition, match="is not a step"):

        class Tasks(Sequence):
            called = decorated


def test_the_type_is_found_in_whichever_library_there_is(task):
    from sequences.definitions.steps import is_task

    assert is_task(task(add))
    assert not is_task(add)
    assert not is_task(task)
