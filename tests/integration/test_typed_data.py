import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

import pytest
import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from sequences import Abort, Sequence, define, event, job, step, subsequence
from sequences.exceptions import InvalidData, InvalidDefinition
from sequences.models import SequenceRun, StepFailure
from sequences.testing import assert_steps, build, drain, run_sequence
from tests.console import command
from tests.engine import fresh, perform, row, take

pytestmark = pytest.mark.django_db


class Order(BaseModel):
    id: UUID
    total: Decimal = Field(gt=0)
    placed: dt.datetime
    notes: dict[str, int] = {}
    paid: bool = False


@dataclass
class Parcel:
    weight: Decimal
    sent: dt.datetime | None = None
    stops: list[str] = field(default_factory=list)


class Address(typing_extensions.TypedDict):
    city: str
    zip: typing_extensions.NotRequired[str]


PLACED = dt.datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
ORDER = {"id": UUID(int=7), "total": Decimal("9.90"), "placed": PLACED}


def typed(declared, *bodies, defaults=None, each=None, **members):
    """A sequence with data of this type, and a step for each body."""

    class Typed(Sequence[declared]):
        class Meta:
            app_label = "shop"
            abstract = True

    steps = {f"step_{index}": step(body) for index, body in enumerate(bodies)}
    meta = type("Meta", (), {"defaults": defaults or {}})
    return type(Typed)("Checkout", (Typed,), {"Meta": meta, **members, **steps})


def nothing(self): ...


def failure(sequence):
    assert fresh(sequence.run).status == "failed"
    return StepFailure.objects.get(run=sequence.run)


def test_a_step_sees_an_instance_and_what_it_changes_is_stored_as_json():
    seen = []

    def pay(self):
        seen.append(self.data)
        self.data.paid = True
        self.data.total *= 2

    def look(self):
        seen.append(self.data)

    sequence = run_sequence(typed(Order, pay, look), **ORDER)
    assert_steps(sequence, [("step_0", "succeeded"), ("step_1", "succeeded")])
    assert seen[1] == Order(id=UUID(int=7), total=Decimal("19.80"), placed=PLACED, paid=True)
    assert sequence.data == seen[1]
    assert sequence.run.data == {
        "id": str(UUID(int=7)),
        "total": "19.80",
        "placed": "2030-01-02T03:04:05.678901Z",
        "notes": {},
        "paid": True,
    }


def test_a_dataclass_is_what_a_step_sees():
    def send(self):
        assert self.data == Parcel(Decimal("1.5"))
        self.data.sent = PLACED
        self.data.stops.append("Berlin")

    sequence = run_sequence(typed(Parcel, send), weight=Decimal("1.5"))
    assert sequence.data == Parcel(Decimal("1.5"), PLACED, ["Berlin"])


def test_a_typed_dict_is_a_dict_in_a_step():
    def complete(self):
        self.data["zip"] = "10115"

    sequence = run_sequence(typed(Address, complete), city="Berlin")
    assert sequence.data == {"city": "Berlin", "zip": "10115"}


@pytest.mark.parametrize("frozen", [True, False])
def test_another_instance_can_be_put_in_the_place_of_the_first(frozen):
    class Frozen(BaseModel):
        model_config = ConfigDict(frozen=frozen)
        count: int

    def increment(self):
        self.data = self.data.model_copy(update={"count": self.data.count + 1})

    assert run_sequence(typed(Frozen, increment, increment), count=1).data == Frozen(count=3)


# The start


def test_each_way_to_start_takes_data_or_an_instance():
    cls = typed(Order, nothing)
    order = Order(**ORDER)
    started = [cls(**ORDER), cls.start(ORDER), cls.start(order)]
    started += cls.start_many([ORDER, order, (ORDER, {"key": "a"}), (order, {"key": "b"})])
    assert [sequence.data for sequence in started] == [order] * 7
    assert [row.data for row in SequenceRun.objects.all()] == [started[0].run.data] * 7


def starts(cls, bad):
    yield lambda: cls(**bad)
    yield lambda: cls.start(bad)
    yield lambda: cls.start(bad, key="a")
    yield lambda: cls.start_many([ORDER, bad])
    yield lambda: cls.start_many([(bad, {"key": "a"})])
    yield lambda: cls.start(Order.model_construct(**bad))
    yield lambda: run_sequence(cls, **bad)
    yield lambda: build(cls, **bad)


@pytest.mark.parametrize("way", range(8))
def test_bad_data_is_refused_at_the_start_and_nothing_is_written(way):
    cls = typed(Order, nothing)
    start = list(starts(cls, {**ORDER, "total": -1}))[way]
    with pytest.raises(InvalidData) as caught:
        start()
    message = 'The data is not a valid Order. data["total"]: Input should be greater than 0'
    assert str(caught.value) == message
    assert not SequenceRun.objects.exists()


def test_bad_data_of_a_dataclass_is_refused_at_the_start():
    cls = typed(Parcel, nothing)
    for bad in ({}, {"weight": "heavy"}, {"weight": 1, "wieght": 2}, {"weight": 1, "stops": [3]}):
        with pytest.raises(InvalidData, match=r"^The data is not a valid Parcel\. data"):
            cls(**bad)
    assert not SequenceRun.objects.exists()


def test_defaults_of_meta_come_before_the_validator():
    cls = typed(Order, nothing, defaults={"total": 5, "notes": {"a": 1}})
    assert cls(id=UUID(int=1), placed=PLACED).data.total == 5
    assert cls(**ORDER).data == Order(**ORDER, notes={"a": 1})


def test_a_key_that_is_taken_gives_the_data_of_its_run():
    cls = typed(Order, nothing)
    cls.start(ORDER, key="a")
    again = cls.start({**ORDER, "total": 1}, key="a")
    assert not again.created
    assert again.data == Order(**ORDER)


def test_what_json_cannot_hold_is_refused_of_a_model_too():
    class Note(BaseModel):
        text: str

    with pytest.raises(InvalidData, match=r'data\["text"\] contains U\+0000'):
        typed(Note, nothing)(text="\0")


def test_build_gives_an_instance_for_one_step():
    def pay(self):
        self.data.paid = True

    sequence = build(typed(Order, pay, defaults={"total": 3}), id=UUID(int=1), placed=PLACED)
    sequence.step_0()
    assert (sequence.data.paid, sequence.data.total) == (True, 3)


# What a step leaves


def test_a_step_that_leaves_bad_data_fails_at_once_with_the_validators_message():
    def spoil(self):
        self.data.total = Decimal(-1)

    sequence = run_sequence(typed(Order, spoil, nothing), **ORDER)
    assert_steps(sequence, [("step_0", "failed")])
    found = failure(sequence)
    assert found.attempt == 1
    assert found.error == "sequences.exceptions.InvalidData"
    message = 'The data is not a valid Order. data["total"]: Input should be greater than 0'
    assert found.message == message
    assert sequence.data == Order(**ORDER)


def test_a_step_that_leaves_bad_data_in_a_dataclass_fails_at_once():
    def spoil(self):
        self.data.weight = "heavy"

    found = failure(run_sequence(typed(Parcel, spoil), weight=1))
    assert found.attempt == 1
    assert found.message.startswith('The data is not a valid Parcel. data["weight"]: ')


def test_a_model_instance_is_no_data_whatever_holds_it():
    class Loose(BaseModel):
        anything: object = None

    def spoil(self):
        self.data.anything = SequenceRun()

    assert (
        "SequenceRun, which JSON cannot represent. Store its pk."
        in failure(run_sequence(typed(Loose, spoil))).message
    )


def test_the_values_of_bad_data_are_in_no_failure():
    def spoil(self):
        self.data.total = "4111-1111"

    found = failure(run_sequence(typed(Order, spoil), **ORDER))
    assert "4111-1111" not in found.message + found.traceback


class Card(BaseModel):
    token: SecretStr
    charged: bool = False


def test_a_secret_reaches_the_step_and_is_hidden_from_people():
    seen = []

    def pay(self):
        seen.append(self.data.token.get_secret_value())
        self.data.charged = True

    def fail(self):
        raise Abort(f"402 for {self.data.token.get_secret_value()}")

    sequence = run_sequence(typed(Card, pay, fail), token="tok_1234")
    assert (seen, fresh(sequence.run).data) == (
        ["tok_1234"],
        {"token": "tok_1234", "charged": True},
    )
    assert failure(sequence).message == "402 for ***"
    shown = command("show", str(sequence.run.pk))
    assert ("tok_1234" in shown, '"token": "***"' in shown) == (False, True)


def test_a_step_that_does_not_ask_for_data_never_reads_it():
    cls = typed(Order, nothing, lambda self: self.data)
    sequence = cls(**ORDER)
    SequenceRun.objects.filter(pk=sequence.run.pk).update(data={"older": "shape"})
    drain()
    assert_steps(sequence, [("step_0", "succeeded"), ("step_1", "failed")])
    assert failure(sequence).message.startswith('The data is not a valid Order. data["id"]: Field')
    assert fresh(sequence.run).data == {"older": "shape"}


def test_reading_is_no_change_even_where_the_type_has_new_fields():
    cls = typed(Order, lambda self: self.data)
    sequence = cls(**ORDER)
    stored = {**sequence.run.data, "newer": 1}
    del stored["notes"]
    SequenceRun.objects.filter(pk=sequence.run.pk).update(data=stored)
    drain()
    assert fresh(sequence.run).data == stored


def test_parallel_steps_that_change_different_fields_lose_nothing():
    class Both(Sequence[Order]):
        class Meta:
            app_label = "shop"

        @step
        def first(self): ...

        @step(after=first)
        def left(self):
            self.data.notes["left"] = 1

        @step(after=first)
        def right(self):
            self.data.notes["right"] = 2
            self.data.paid = True

    sequence = Both(**ORDER)
    perform(take(row(sequence.run, "first").pk))
    left, right = (take(row(sequence.run, name).pk) for name in ("left", "right"))
    perform(left)
    perform(right)
    assert fresh(sequence.run).data["notes"] == {"left": 1, "right": 2}
    assert fresh(sequence.run).data["paid"] is True


def test_an_edit_must_fit_the_type():
    sequence = typed(Order, nothing)(**ORDER)
    with pytest.raises(InvalidData, match=r'data\["total"\]: Input should be greater than 0'):
        sequence.run.edit({**sequence.run.data, "total": "-1"})
    sequence.run.edit({**sequence.run.data, "total": "5"})
    drain()
    assert fresh(sequence.run).data["total"] == "5"


# With the rest


class Line(BaseModel):
    sku: str


class Cart(BaseModel):
    lines: list[Line] = []
    gift: bool = False


def fan_out(body, each="lines"):
    class FanOut(Sequence[Cart]):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each=each, when=lambda self: not self.data.gift)
        def pack(self, line):
            return body(self, line)

    return FanOut


def test_items_come_from_a_field_as_json_and_see_typed_data():
    seen = []
    run_sequence(
        fan_out(lambda self, line: seen.append((line, self.data.gift))), lines=[{"sku": "a"}]
    )
    assert seen == [({"sku": "a"}, False)]


def test_items_come_from_a_function_of_typed_data():
    seen = []

    def each(self):
        return (line.sku for line in self.data.lines)

    run_sequence(
        fan_out(lambda self, line: seen.append(line), each), lines=[Line(sku="a"), Line(sku="b")]
    )
    assert seen == ["a", "b"]


def test_an_item_cannot_change_typed_data():
    def body(self, line):
        self.data.gift = True

    sequence = run_sequence(fan_out(body), lines=[{"sku": "a"}])
    message = StepFailure.objects.filter(run=sequence.run).order_by("pk")[0].message
    assert message.startswith("An item of step 'pack' changed data['gift'], but items must not")


def test_when_sees_typed_data():
    sequence = run_sequence(fan_out(nothing), lines=[{"sku": "a"}], gift=True)
    assert_steps(sequence, [("pack", "skipped")])


def test_a_payload_is_a_result_and_stays_out_of_typed_data():
    class Approved(Sequence[Cart]):
        class Meta:
            app_label = "shop"

        approval = event()

        @step
        def go_on(self):
            assert self.result("approval") == {"by": "Ada"}
            self.data.gift = True

    sequence = Approved()
    sequence.run.deliver("approval", {"by": "Ada"})
    drain()
    assert fresh(sequence.run).data == {"lines": [], "gift": True}
    assert fresh(sequence.run).status == "succeeded"


def test_a_child_may_be_typed_as_its_parent_or_not_at_all():
    class Typed(Sequence[Cart]):
        class Meta:
            app_label = "shop"

        @step
        def wrap(self):
            self.data.gift = True

    class Untyped(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def count(self):
            self.data["count"] = len(self.data["lines"])

    class Parent(Sequence[Cart]):
        class Meta:
            app_label = "shop"

        typed = subsequence(Typed, data=lambda self: self.data)
        untyped = subsequence(Untyped)

        @step
        def look(self):
            assert self.result("typed")["gift"] is True
            assert self.result("untyped")["count"] == 1

    sequence = run_sequence(Parent, lines=[Line(sku="a")])
    assert sequence.run.status == "succeeded"
    assert sequence.data == Cart(lines=[Line(sku="a")])


def test_a_definition_may_have_a_typed_dict_as_data_and_nothing_else():
    @job("shout")
    def shout(city: str) -> str:
        return city.upper()

    def base(declared):
        class Base(Sequence[declared]):
            class Meta:
                app_label = "shop"
                abstract = True

        return Base

    flow = {"steps": {"shout": {"job": "shout"}}}
    cls = define(flow, name="shop.Shout", base=base(Address))
    assert run_sequence(cls, city="Berlin").run.steps.get().result == "BERLIN"
    with pytest.raises(InvalidData, match=r'data\["city"\]'):
        cls(city=1)
    with pytest.raises(InvalidDefinition, match="data of the type Order, but jobs read a dict"):
        define(flow, name="shop.Other", base=base(Order))
