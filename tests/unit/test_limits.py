"""What a limit is, before anything waits for it."""

from datetime import timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest

from sequences import Limit, Sequence, event, step, subsequence
from sequences.definitions.limits import conflict
from sequences.exceptions import InvalidData, InvalidDefinition

BANK = Limit("bank", concurrency=5, rate=10, per=timedelta(seconds=1))


def test_a_limit_is_a_value():
    assert Limit("bank", concurrency=5, rate=10, per=timedelta(seconds=1)) == BANK
    assert BANK.numbers == (5, 10, timedelta(seconds=1))
    assert Limit("a", rate=3, per=1500).period == timedelta(milliseconds=1500)
    assert Limit("a", concurrency=1).numbers == (1, None, None)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "limits nothing"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": True}, "concurrency is True"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"rate": 1, "per": 0}, "per is 0"),
        ({"rate": 1, "per": "1s"}, "per is '1s'"),
        ({"rate": 1, "per": timedelta(days=400)}, "per is"),
        ({"concurrency": 1, "key": ""}, "key is ''"),
        ({"concurrency": 1, "key": 7}, "key is 7"),
    ],
)
def test_what_is_wrong_with_a_limit_is_found_where_it_is_declared(options, problem):
    with pytest.raises(InvalidDefinition, match=problem):
        Limit("bank", **options)


@pytest.mark.parametrize("name", ["", None, "x" * 101])
def test_a_limit_has_a_name(name):
    with pytest.raises(InvalidDefinition, match="name"):
        Limit(name, concurrency=1)


def test_a_limit_whose_key_is_a_coroutine_function_is_refused():
    async def key(sequence): ...

    with pytest.raises(InvalidDefinition, match="coroutine"):
        Limit("bank", concurrency=1, key=key)


@pytest.mark.parametrize(
    ("key", "data", "item", "text"),
    [
        (None, {}, None, ""),
        ("customer", {"customer": 7}, None, "7"),
        ("customer", {"customer": "seven"}, {"other": 1}, "seven"),
        ("customer", {"customer": 7}, {"customer": 8}, "8"),
        ("customer", {"customer": None}, None, None),
        ("customer", {"customer": str(UUID(int=7))}, None, str(UUID(int=7))),
        (lambda sequence: UUID(int=sequence.n), {}, None, str(UUID(int=1))),
        (lambda sequence, item: item["id"], {}, {"id": 3}, "3"),
        (lambda sequence: None, {}, None, None),
    ],
)
def test_each_key_has_a_line_of_its_own(key, data, item, text):
    limit = Limit("customer", concurrency=1, key=key)
    arguments = () if item is None else (item,)
    assert limit.key_for(SimpleNamespace(n=1), data, *arguments) == text


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, r"data\['customer'\] is missing"),
        ({"customer": {"id": 1}}, "is of type dict"),
        ({"customer": True}, "is of type bool"),
        ({"customer": "x" * 201}, "201 characters"),
    ],
)
def test_what_cannot_be_a_key_is_invalid_data(data, problem):
    with pytest.raises(InvalidData, match=problem):
        Limit("customer", concurrency=1, key="customer").key_for(None, data)


def test_two_limits_of_one_name_must_have_the_same_numbers():
    assert conflict([BANK, Limit("bank", concurrency=5, rate=10)]) is None
    assert conflict([BANK, Limit("bank", concurrency=6)]) == "bank"
    with pytest.raises(InvalidDefinition, match="two limits named 'bank'"):

        class Twice(Sequence):
            @step(limits=[BANK])
            def one(self): ...

            @step(limits=[Limit("bank", concurrency=1)])
            def two(self): ...


def test_a_step_does_not_wait_for_what_its_run_has():
    with pytest.raises(InvalidDefinition, match="also a limit of the whole run"):

        class Waits(Sequence):
            class Meta:
                limits = [BANK]

            @step(limits=[BANK])
            def one(self): ...


@pytest.mark.parametrize("limits", [["bank"], [BANK, BANK], "bank", 5])
def test_limits_are_limits(limits):
    with pytest.raises(InvalidDefinition, match="limits is"):

        class Wrong(Sequence):
            @step(limits=limits)
            def one(self): ...

    with pytest.raises(InvalidDefinition, match="limits is"):

        class WrongToo(Sequence):
            class Meta:
                pass

            Meta.limits = limits

            @step
            def one(self): ...


def test_what_becomes_of_a_run_without_a_place_is_one_of_three():
    with pytest.raises(InvalidDefinition, match="when_full is 'drop'"):

        class Drops(Sequence):
            class Meta:
                limits = [BANK]
                when_full = "drop"

            @step
            def one(self): ...


def test_what_waits_for_others_has_no_limits():
    with pytest.raises(InvalidDefinition, match="because nothing runs while it waits"):

        class Waits(Sequence):
            approval = event(limits=[BANK])

    with pytest.raises(InvalidDefinition, match="waits for other runs"):

        class Starts(Sequence):
            child = subsequence("shop.Child", limits=[BANK])


def test_what_a_sequence_declares_is_known():
    class Billing(Sequence):
        class Meta:
            app_label = "shop"
            limits = Limit("customer", key="customer_id", concurrency=1)
            when_full = "skip"

        @step(limits=BANK)
        def charge(self): ...

        @charge.undo(limits=[BANK])
        def refund(self): ...

    definition = Billing._definition
    assert definition.limits == (Limit("customer", key="customer_id", concurrency=1),)
    assert definition.when_full == "skip"
    assert definition.steps["charge"].limits == definition.steps["refund"].limits == (BANK,)
    assert [limit.name for limit in definition.all_limits] == ["customer", "bank", "bank"]
