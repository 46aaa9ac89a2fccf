"""Steps side by side share data; data that cannot be stored fails its step."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import F

from sequences import (
    Sequence,
    repeat,
    step,
)
from sequences.models import SequenceRun
from sequences.testing import assert_steps, clock, drain, run_sequence
from testproject.contact.models import Message, Team
from tests.steps import failures, only_failure

pytestmark = pytest.mark.django_db


# Parallel steps


def test_parallel_steps_share_data_and_the_next_one_joins_them():
    class Parallel(Sequence):
        @step
        def begin(self):
            self.data["sums"] = {}

        @step(after=begin)
        def left(self):
            self.data["sums"]["left"] = 1

        @step(after=begin)
        def right(self):
            self.data["sums"]["right"] = 2

        @step
        def join(self):
            self.data["total"] = sum(self.data["sums"].values())

    sequence = run_sequence(Parallel)

    names = ["begin", "left", "right", "join"]
    assert_steps(sequence, [(name, "succeeded") for name in names])
    assert sequence.data == {"sums": {"left": 1, "right": 2}, "total": 3}


def test_a_join_does_not_begin_before_all_that_it_waits_for_has_ended():
    class Parallel(Sequence):
        @step(after=[])
        def quick(self): ...

        @step(after=[], delay=timedelta(days=1))
        def slow(self): ...

        @step(after=[quick, slow])
        def join(self): ...

        @step(after=quick)
        def at_once(self): ...

    sequence = Parallel()
    drain()
    assert_steps(sequence, [("quick", "succeeded"), ("slow", "waiting"), ("at_once", "succeeded")])
    with clock() as moving:
        moving.move(timedelta(days=1, minutes=1))
        drain()
    assert sequence.run.steps.get(step="join").status == "succeeded"


def test_what_others_committed_meanwhile_is_merged():
    class Merges(Sequence):
        @step(after=[], atomic=False)
        def outer(self):
            self.data["shared"]["outer"] = 1
            drain()  # the other one commits while this one runs
            assert "inner" not in self.data["shared"]

        @step(after=[])
        def inner(self):
            self.data["shared"]["inner"] = 2
            del self.data["old"]

    sequence = Merges(shared={"base": 0}, old=1)
    drain()

    sequence.run.refresh_from_db()
    assert sequence.run.status == "succeeded"
    assert sequence.run.data == {"shared": {"base": 0, "outer": 1, "inner": 2}}
    assert not sequence.run.failures.exists()


def test_an_edit_that_did_not_yet_see_the_claim_is_not_lost():
    class Edited(Sequence):
        @step(atomic=False)
        def one(self):
            self.data["mine"] = 1
            self.data["tags"].append(self.data["theirs"])
            if self.data["theirs"] == 0:
                rows = SequenceRun.objects.filter(pk=self.run.pk)
                rows.update(data={"theirs": 5, "tags": ["new"]}, version=F("version") + 1)

    sequence = run_sequence(Edited, theirs=0, tags=[])

    assert sequence.run.status == "succeeded"
    assert sequence.data == {"theirs": 5, "mine": 1, "tags": ["new", 5]}


def test_two_different_changes_of_one_key_have_the_later_step_performed_again():
    keys = []

    class Conflicts(Sequence):
        @step(after=[], atomic=False)
        def outer(self):
            keys.append((self.attempt, self.idempotency_key))
            self.data["n"] += 1
            drain()

        @step(after=[])
        def inner(self):
            self.data["n"] += 10

    sequence = Conflicts(n=0)
    drain()

    sequence.run.refresh_from_db()
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {"n": 11})
    assert not sequence.run.failures.exists()
    assert len(keys) == 2
    assert len(set(keys)) == 1  # the same attempt, and the same idempotency key


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.django_db(transaction=True)
def test_a_step_in_a_transaction_that_is_performed_again_leaves_its_rows_once():
    class Conflicts(Sequence):
        @step(after=[])
        def outer(self):
            Message.objects.create(name="outer")
            self.data["n"] += 1
            in_a_thread(drain)

        @step(after=[])
        def inner(self):
            Message.objects.create(name="inner")
            self.data["n"] += 10

    sequence = Conflicts(n=0)
    drain()

    sequence.run.refresh_from_db()
    assert (sequence.run.status, sequence.run.data) == ("succeeded", {"n": 11})
    names = Message.objects.order_by("name").values_list("name", flat=True)
    assert list(names) == ["inner", "outer"]


def in_a_thread(function):
    """Call it there, with a connection of its own, and raise what it raises."""
    raised = []

    def target():
        try:
            function()
        except BaseException as error:
            raised.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_a_step_that_conflicts_again_and_again_fails_and_names_the_key_and_the_other(monkeypatch):
    monkeypatch.setattr("sequences.engine.executor.back_off", lambda replay: None)
    performed = []

    class Conflicts(Sequence):
        @step(after=[], atomic=False, max_retries=5)
        def outer(self):
            performed.append(self.attempt)
            self.data["user"]["n"] = -len(performed)
            moving.move(timedelta(hours=2))
            drain()

        @step(after=[])
        def inner(self):
            self.data["user"]["n"] += 1
            return repeat(after=timedelta(hours=1))

    with clock() as moving:
        sequence = Conflicts(user={"n": 0})
        drain()

    sequence.run.refresh_from_db()
    assert sequence.run.steps.get(step="outer").status == "failed"
    failure = only_failure(sequence)
    assert failure.error == "sequences.exceptions.DataConflict"
    assert 'data["user"]["n"]' in failure.message
    assert "'outer'" in failure.message
    assert str(sequence.run.pk) in failure.message
    assert set(performed) == {1}


# Bad data


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1}, 'data["user"]["value"] is of type set, which JSON cannot represent. Use a list.'),
        (float("nan"), 'data["user"]["value"] is nan. Use None or a string.'),
        (float("inf"), 'data["user"]["value"] is inf. Use None or a string.'),
        ("a\0b", 'data["user"]["value"] contains U+0000. Remove or replace it.'),
        (
            "\ud800",
            'data["user"]["value"] contains the lone surrogate U+D800. Remove or replace it.',
        ),
        ({1: 2}, 'data["user"]["value"] has the key 1 of type int. Keys must be strings.'),
        (
            Team(pk=1),
            'data["user"]["value"] is of type testproject.contact.models.Team, which JSON '
            "cannot represent. Store its pk.",
        ),
        (
            "x" * 2_000_000,
            "data takes 2,000,027 bytes as JSON; the limit is 1,048,576; the largest "
            'part is data["user"]["value"] with 2,000,002. Store it elsewhere '
            "and keep a reference, or increase MAX_DATA_BYTES.",
        ),
    ],
    ids=["set", "NaN", "infinity", "U+0000", "surrogate", "key", "model", "large"],
)
def test_data_that_cannot_be_stored_fails_the_step_at_once_with_its_path_and_the_mend(
    value, message
):
    class Bad(Sequence):
        @step(max_retries=10)
        def one(self):
            Message.objects.create(name="gone")
            self.data["user"] = {"value": value}

        @step
        def two(self): ...

    sequence = run_sequence(Bad, n=1)

    assert_steps(sequence, [("one", "failed")])
    assert (sequence.run.status, sequence.data) == ("failed", {"n": 1})
    assert failures(sequence) == [("one", 1, "sequences.exceptions.InvalidData", message)]
    assert not Message.objects.exists()


def test_a_result_that_cannot_be_stored_fails_the_step_at_once():
    class Bad(Sequence):
        @step(max_retries=10)
        def one(self):
            return {"found": {1, 2}}

    sequence = run_sequence(Bad)
    assert failures(sequence) == [
        (
            "one",
            1,
            "sequences.exceptions.InvalidData",
            'result["found"] is of type set, which JSON cannot represent. Use a list.',
        )
    ]


@pytest.mark.parametrize(("value", "type_name"), [([1], "list"), (None, "NoneType")])
def test_something_else_in_the_place_of_data_fails_the_step_at_once(value, type_name):
    class Bad(Sequence):
        @step(max_retries=10)
        def one(self):
            self.data = value

    sequence = run_sequence(Bad, n=1)
    assert (sequence.run.status, sequence.data) == ("failed", {"n": 1})
    assert only_failure(sequence).message == (
        f"data is of type {type_name}, not a dict. Change values in self.data; do not replace "
        "self.data with another object."
    )


def test_another_dict_in_the_place_of_data_is_stored():
    class Replaces(Sequence):
        @step
        def one(self):
            self.data = {"new": True}

    assert run_sequence(Replaces, old=True).data == {"new": True}


def test_what_the_encoder_knows_is_stored_as_it_says():
    class Encoded(Sequence):
        @step
        def one(self):
            self.data["when"] = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

        @step
        def two(self):
            assert self.data["when"] == "2030-01-02T03:04:05Z"

    assert run_sequence(Encoded).run.status == "succeeded"


def test_data_is_read_as_it_went_through_json():
    class Shapes(Sequence):
        @step
        def one(self):
            self.data["tuple"] = (1, 2)
            self.data["text"] = "ü\u2028😀\\"
            self.data["numbers"] = [2**60, 0.1, -1]

        @step
        def two(self):
            assert self.data == {
                "tuple": [1, 2],
                "text": "ü\u2028😀\\",
                "numbers": [2**60, 0.1, -1],
            }

    assert run_sequence(Shapes).run.status == "succeeded"
