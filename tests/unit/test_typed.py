import datetime as dt
import sys
import types
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NotRequired, TypedDict, TypeVar
from uuid import UUID

import pytest
import typing_extensions
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
)

from sequences import Sequence, step
from sequences.data.serialization import dumps, normalise
from sequences.data.typed import Stored, overlay
from sequences.exceptions import InvalidData, InvalidDefinition

T = TypeVar("T")
UTC = dt.UTC


@pytest.fixture
def without_pydantic(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)


class Colour(Enum):
    RED = "red"


class Product(BaseModel):
    sku: str
    price: Decimal


class Cart(BaseModel):
    id: UUID
    placed: dt.datetime
    wait: dt.timedelta = dt.timedelta(days=1)
    products: list[Product] = []


@dataclass
class Line:
    sku: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


@dataclass
class Order:
    number: int
    lines: list[Line] = field(default_factory=list)
    placed: dt.datetime | None = None
    day: dt.date | None = None
    at: dt.time | None = None
    wait: dt.timedelta | None = None
    token: UUID | None = None
    colour: Colour = Colour.RED
    size: Literal["s", "l"] = "s"
    share: float = 1.0
    pair: tuple[int, str] = (1, "one")
    by_name: dict[str, Line] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self):
        if self.number < 0:
            raise ValueError("an order's number is positive")


class Address(typing_extensions.TypedDict):
    city: str
    lines: typing_extensions.NotRequired[list[str]]


class OldAddress(TypedDict):
    city: str
    lines: NotRequired[list[str]]


TYPED_DICTS = [Address, OldAddress] if sys.version_info >= (3, 12) else [Address]


def codec(declared):
    class Typed(Sequence[declared]):
        class Meta:
            app_label = "shop"

        @step
        def go(self): ...

    return Typed._codec


def loaded(of, value):
    """What is read again of what is stored of the value."""
    stored, text = normalise(of.validated(value))
    assert of.load(text) == of.load(dumps(stored))
    return of.load(text)


def refusal(of, given):
    with pytest.raises(InvalidData) as caught:
        of.admit(given, {})
    return str(caught.value)


ORDER = Order(
    7,
    [Line("book", Decimal("9.90"), {"new", "red"})],
    placed=dt.datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    day=dt.date(2030, 1, 2),
    at=dt.time(3, 4, 5, 6),
    wait=dt.timedelta(days=3, microseconds=5),
    token=UUID(int=7),
    share=0.5,
    pair=(2, "two"),
    by_name={"a": Line("pen", Decimal("1.0"))},
    anything={"a": [1, None]},
)


def test_a_dataclass_comes_back_from_json_as_it_was():
    assert loaded(codec(Order), ORDER) == ORDER


def test_a_model_comes_back_from_json_as_it_was():
    cart = Cart(
        id=UUID(int=1),
        placed=dt.datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        products=[Product(sku="book", price=Decimal("9.90"))],
    )
    assert loaded(codec(Cart), cart) == cart


@pytest.mark.parametrize("declared", TYPED_DICTS)
def test_a_typed_dict_comes_back_from_json_as_it_was(declared):
    assert loaded(codec(declared), {"city": "Berlin"}) == {"city": "Berlin"}
    assert loaded(codec(declared), {"city": "Berlin", "lines": ["a"]})["lines"] == ["a"]


def test_a_model_with_aliases_is_stored_under_the_names_of_its_fields():
    class Named(BaseModel):
        model_config = ConfigDict(extra="forbid")
        first: str = Field(alias="firstName")
        last: str = Field(validation_alias="lastName", serialization_alias="surname")

        @computed_field
        @property
        def whole(self) -> str:
            return f"{self.first} {self.last}"

    of = codec(Named)
    assert of.admit({"firstName": "Ada", "lastName": "L"}, {}) == {"first": "Ada", "last": "L"}
    assert loaded(of, Named(firstName="Ada", lastName="L")).whole == "Ada L"


def test_a_strict_model_reads_what_is_stored_of_it():
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        day: dt.date

    of = codec(Strict)
    assert of.admit({"day": dt.date(2030, 1, 2)}, {}) == {"day": "2030-01-02"}
    assert loaded(of, Strict(day=dt.date(2030, 1, 2))).day == dt.date(2030, 1, 2)
    assert 'data["day"]: Input should be a valid date' in refusal(of, {"day": "2030-01-02"})


def test_a_model_that_its_own_json_does_not_fit_is_refused_at_the_start():
    class Secret(BaseModel):
        name: str
        password: str = Field(exclude=True)

    message = refusal(codec(Secret), Secret(name="Ada", password="1234"))
    assert message == 'The data is not a valid Secret. data["password"]: Field required'


class Card(BaseModel):
    number: SecretStr
    owner: str = ""


class Folder(BaseModel):
    password: SecretStr | None
    folders: list["Folder"] = []


class Menu(BaseModel):
    below: list["Menu"] = []


@dataclass
class Keyring:
    token: SecretStr
    pin: Secret[int] | None = None
    cards: list[Card] = field(default_factory=list)
    by_name: dict[str, Card] = field(default_factory=dict)
    raw: Annotated[SecretBytes, Field(max_length=9)] | None = None
    every: set[SecretStr] = field(default_factory=set)


def test_secrets_are_stored_as_they_are_and_read_again():
    of, card = codec(Keyring), {"number": "4111", "owner": "Joan"}
    data = {
        "token": "tok_1", "pin": 1234, "cards": [card], "by_name": {"own": card}, "raw": "key",
        "every": ["one"],
    }  # fmt: skip
    assert of.admit(data, {}) == data
    keyring = of.load(dumps(data))
    assert keyring.token.get_secret_value() == "tok_1"
    assert of.dump(keyring) == data
    assert "tok_1" not in repr(keyring)


def test_secrets_are_hidden_as_if_redact_named_them():
    assert codec(Keyring).secrets == (
        "token", "pin", "cards.number", "by_name.*.number", "raw", "every",
    )  # fmt: skip
    assert codec(Folder).secrets == ("password", "folders")
    assert codec(Order).secrets == ()

    class Shown(BaseModel):
        menu: Menu
        either: SecretStr | int

    assert codec(Shown).secrets == ("either",)


def test_types_that_only_pydantic_can_resolve_are_no_obstacle():
    class Inner(BaseModel):
        name: str

    @dataclass
    class Middle:
        inner: "Inner"

    class Outer(BaseModel):
        middle: Middle
        token: SecretStr

    assert codec(Outer).secrets == ("token",)


def test_a_serializer_of_the_types_own_decides_how_a_secret_is_stored():
    class Sealed(BaseModel):
        token: SecretStr

        @field_serializer("token", when_used="json")
        def seal(self, token):
            return token.get_secret_value()[::-1]

    assert codec(Sealed).admit({"token": "abc"}, {}) == {"token": "cba"}


def test_the_validator_speaks_for_itself_about_all_that_is_wrong():
    class Person(BaseModel):
        name: str
        age: int

        @field_validator("name")
        @classmethod
        def has_two_words(cls, value):
            if " " not in value:
                raise ValueError("a name has two words")
            return value

    with pytest.raises(InvalidData) as caught:
        codec(Person).admit({"name": "Ada", "age": "secret"}, {})
    error = caught.value
    assert str(error) == (
        'The data is not a valid Person. data["name"]: Value error, a name has two words; '
        'data["age"]: Input should be a valid integer, unable to parse string as an integer'
    )
    assert error.path == 'data["name"]'
    assert [path for path, _ in error.errors] == ['data["name"]', 'data["age"]']
    assert error.__cause__ is error.__context__ is None  # which would show the values


def test_what_a_model_cannot_turn_into_json_is_named_by_its_path():
    class Loose(BaseModel):
        parts: list[Any] = []

    with pytest.raises(InvalidData, match=r'^data\["parts"\]\[1\] is of type object, which JSON'):
        codec(Loose).admit({"parts": [1, object()]}, {})


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, 'data["number"]'),
        ({"number": "seven"}, 'data["number"]'),
        ({"number": 1, "lines": [{"sku": "a"}]}, 'data["lines"][0]["price"]'),
        ({"number": 1, "lines": [{"sku": "a", "price": "x"}]}, 'data["lines"][0]["price"]'),
        ({"number": 1, "lines": {"sku": "a"}}, 'data["lines"]'),
        ({"number": 1, "day": "yesterday"}, 'data["day"]'),
        ({"number": 1, "colour": "blue"}, 'data["colour"]'),
        ({"number": 1, "size": "m"}, 'data["size"]'),
        ({"number": 1, "by_name": {"a": {"sku": 1, "price": 1}}}, 'data["by_name"]["a"]["sku"]'),
        ({"number": -1}, "data"),
        ({"number": 1, "numbr": 2}, "data"),
    ],
)
def test_a_dataclass_refuses_what_does_not_fit_and_says_where(given, path):
    with pytest.raises(InvalidData) as caught:
        codec(Order).admit(given, {})
    assert caught.value.path == path


@pytest.mark.parametrize("declared", TYPED_DICTS)
@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, 'data["city"]'),
        ({"city": 1}, 'data["city"]'),
        ({"city": "Berlin", "lines": [1]}, 'data["lines"][0]'),
        ({"city": "Berlin", "town": "Berlin"}, "data"),
    ],
)
def test_a_typed_dict_refuses_what_does_not_fit_and_says_where(declared, given, path):
    with pytest.raises(InvalidData) as caught:
        codec(declared).admit(given, {})
    assert caught.value.path == path


@pytest.mark.parametrize("given", [[1], 1, "text", Line("a", Decimal(1))])
def test_only_an_instance_or_a_mapping_is_data(given):
    message = refusal(codec(Order), given)
    assert "must be of type Order. Pass an instance of Order." in message


def test_an_instance_that_was_made_with_bad_values_is_refused():
    assert 'data["number"]' in refusal(codec(Order), Order(number=1.5))


def test_defaults_are_there_before_it_is_validated_and_stay_as_they_were():
    defaults = {"number": 3, "anything": {"a": 1}}
    admitted = codec(Order).admit({"number": 4}, defaults)
    assert (admitted["number"], admitted["anything"]) == (4, {"a": 1})
    admitted["anything"]["a"] = 2
    assert defaults == {"number": 3, "anything": {"a": 1}}


def test_an_instance_may_stand_inside_of_a_mapping():
    admitted = codec(Order).admit({"number": 1, "lines": [Line("a", Decimal(2))]}, {})
    assert admitted["lines"] == [{"sku": "a", "price": "2", "tags": []}]


# What a step leaves


@dataclass
class Basket:
    items: list[str] = field(default_factory=list)
    note: str = ""
    sizes: dict[str, int] = field(default_factory=dict)


def test_what_only_was_read_changes_nothing_not_even_by_defaults_and_unknown_keys():
    stored = Stored(codec(Basket), '{"items":["a"],"newer":1}')
    assert stored.after(stored.read()) == {"items": ["a"], "newer": 1}


def test_a_change_leaves_the_keys_that_the_type_does_not_know():
    stored = Stored(codec(Basket), '{"items":["a"],"newer":1}')
    basket = stored.read()
    basket.note = "gift"
    assert stored.after(basket) == {"items": ["a"], "newer": 1, "note": "gift"}


def test_another_instance_may_be_put_in_the_place_of_the_first():
    stored = Stored(codec(Basket), '{"items":["a"],"note":"gift","sizes":{"a":1}}')
    assert stored.after(Basket(["b"])) == {"items": ["b"], "note": "", "sizes": {}}


@pytest.mark.parametrize("left", [{"items": []}, None, Line("a", Decimal(1))])
def test_something_else_may_not(left):
    with pytest.raises(InvalidData, match="must be of type Basket"):
        Stored(codec(Basket), "{}").after(left)


def test_a_step_that_leaves_bad_values_is_told_so():
    stored = Stored(codec(Basket), "{}")
    basket = stored.read()
    basket.items = ["a", None]
    with pytest.raises(InvalidData) as caught:
        stored.after(basket)
    assert caught.value.path == 'data["items"][1]'


def test_a_key_that_is_not_required_can_be_deleted():
    stored = Stored(codec(Address), '{"city":"Berlin","lines":["a"]}')
    address = stored.read()
    del address["lines"]
    assert stored.after(address) == {"city": "Berlin"}
    del address["city"]
    with pytest.raises(InvalidData, match=r'data\["city"\]'):
        stored.after(address)


def test_a_key_that_a_typed_dict_lacks_is_told():
    stored = Stored(codec(Address), '{"city":"Berlin"}')
    address = stored.read()
    address["linse"] = []
    with pytest.raises(InvalidData, match=r"has no field 'linse'. Did you mean 'lines'\?"):
        stored.after(address)


@pytest.mark.parametrize("text", ["{}", '{"city":7}'])
def test_what_is_stored_and_does_not_fit_any_more_is_told_when_it_is_read(text):
    with pytest.raises(InvalidData, match=r'The data is not a valid Address. data\["city"\]'):
        Stored(codec(Address), text).read()


def test_a_change_is_laid_over_what_is_stored_key_by_key():
    stored = {"a": {"x": 1, "unknown": 2}, "gone": 1, "b": [1], "kept": 1}
    baseline = {"a": {"x": 1, "default": 0}, "gone": 1, "b": [1], "kept": 1, "d": 0}
    after = {"a": {"x": 5, "default": 0}, "b": [2], "kept": 1, "d": 0, "new": {}}
    assert overlay(stored, baseline, after) == {
        "a": {"x": 5, "unknown": 2},
        "b": [2],
        "kept": 1,
        "new": {},
    }


# Where the type comes from


def abstract(*bases):
    """A class with these bases, which need no steps."""
    body = {"Meta": type("Meta", (), {"abstract": True})}
    return types.new_class("Typed", bases, exec_body=lambda namespace: namespace.update(body))


def of(*bases):
    """The codec of such a class."""
    return abstract(*bases)._codec


def test_a_subclass_has_the_type_of_its_parent():
    base = abstract(Sequence[Order])
    plain = abstract(Sequence)
    assert of(base).cls is Order
    assert of(abstract(base)).cls is Order
    assert of(plain, base).cls is Order
    assert of(base, Sequence[Order]).cls is Order


def test_a_generic_base_hands_its_argument_on():
    base = abstract(Sequence[T])
    assert base._codec is None
    assert of(base[Order]).cls is Order
    assert of(abstract(base[T], Generic[T])[Order]).cls is Order


@pytest.mark.parametrize(
    "base", [Sequence, Sequence[Any], Sequence[dict], Sequence[dict[str, Any]], Sequence[T]]
)
def test_without_a_type_data_is_a_dict(base):
    assert of(base) is None


class Root(RootModel[list[int]]):
    pass


@pytest.mark.parametrize("declared", [int, list[str], str, Order | None, Root, object, "Order"])
def test_what_cannot_be_the_type_of_data_is_told(declared):
    with pytest.raises(
        InvalidDefinition, match="Use a pydantic model class, a dataclass or a Typed"
    ):
        of(Sequence[declared])


def test_two_types_are_told():
    base = abstract(Sequence[Order])
    with pytest.raises(InvalidDefinition, match="different data types: Order and Line"):
        of(base, Sequence[Line])


class Odd:
    pass


@dataclass
class WithOdd:
    odd: list[Odd]


@dataclass
class WithLater:
    later: "Later"  # noqa: F821


@pytest.mark.parametrize(
    ("declared", "problem"),
    [(WithOdd, "WithOdd cannot be used: .*Odd"), (WithLater, "WithLater cannot be used")],
)
def test_a_field_that_nobody_can_read_is_told_when_the_class_is_created(declared, problem):
    with pytest.raises(InvalidDefinition, match=problem):
        codec(declared)


@dataclass
class Tree:
    name: str
    children: list["Tree"] = field(default_factory=list)


def test_a_type_may_contain_itself():
    tree = Tree("a", [Tree("b", [Tree("c")])])
    assert loaded(codec(Tree), tree) == tree
    assert 'data["children"][0]["name"]' in refusal(codec(Tree), {"name": "", "children": [{}]})


def test_a_model_where_there_is_no_typed_data_is_refused_with_the_mend():
    with pytest.raises(InvalidData) as caught:
        normalise({"product": Product(sku="book", price=Decimal(1))})
    assert caught.value.path == 'data["product"]'
    assert caught.value.hint == 'Store a dict: model_dump(mode="json").'


def test_a_validator_that_takes_its_input_apart_leaves_the_defaults_alone():
    class Taking(BaseModel):
        point: dict[str, int]

        @field_validator("point", mode="before")
        @classmethod
        def take(cls, value):
            return {"x": value.pop("x")}

    of, defaults = codec(Taking), {"point": {"x": 1}}
    assert of.admit({}, defaults) == of.admit({}, defaults) == {"point": {"x": 1}}


@pytest.mark.parametrize("declared", [Order, Cart, Address])
def test_without_pydantic_typed_data_is_refused_with_the_hint(without_pydantic, declared):
    with pytest.raises(InvalidDefinition, match=r"needs pydantic\. Install pydantic 2\.11"):
        codec(declared)


@dataclass
class Anything:
    value: Any = None
    parts: list[Any] = field(default_factory=list)


def test_what_stands_in_too_many_places_is_refused_at_once():
    bomb = ["x"]
    for _ in range(24):
        bomb = [bomb, bomb]
    of = codec(Anything)
    for given in ({"value": bomb}, {"parts": [Anything(bomb)]}, Anything(bomb),
                  Anything(parts=[Anything(bomb)])):  # fmt: skip
        with pytest.raises(InvalidData, match="is written once for each"):
            of.admit(given, {})


def test_an_old_pydantic_is_as_none(monkeypatch):
    monkeypatch.setattr("pydantic.VERSION", "2.10.6")
    with pytest.raises(InvalidDefinition, match=r"Install pydantic 2\.11 or newer"):
        codec(Cart)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic reads it there")
def test_a_typed_dict_that_pydantic_cannot_read_is_refused_with_the_hint():
    with pytest.raises(InvalidDefinition, match=r"Use typing_extensions\.TypedDict\."):
        codec(OldAddress)
