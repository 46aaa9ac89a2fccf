import copy
import dataclasses
import datetime as dt
import enum
import json
import time
import uuid
from collections import OrderedDict, UserDict
from decimal import Decimal

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from hypothesis import given
from hypothesis import strategies as st

from sequences.data.serialization import (
    MAX_DEPTH,
    MergeConflict,
    dumps,
    merge,
    normalise,
    same,
)
from sequences.exceptions import InvalidData, SequenceError

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
) | text
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)
keys = st.sampled_from("abc")
# Few keys and few values, so that changes meet.
trees = st.recursive(
    st.sampled_from([None, True, 1, 1.0, "x", [], [1]]),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
)
datas = st.dictionaries(keys, trees, max_size=3)


@dataclasses.dataclass
class Point:
    x: int = 0


class Colour(enum.Enum):
    RED = "red"


class Model:
    _meta = object()
    pk = 1


class QuerySet:
    def values_list(self): ...


def trip(value, **options):
    return normalise(value, encoder=DjangoJSONEncoder, **options)[0]


def refused(value, **options):
    with pytest.raises(InvalidData) as caught:
        trip(value, **options)
    return caught.value


def nested(depth):
    value = "core"
    for _ in range(depth):
        value = {"in": value}
    return value


class TestNormalise:
    @given(values)
    def test_keeps_every_json_value_and_its_types(self, value):
        result, text = normalise(value, encoder=DjangoJSONEncoder)
        assert same(result, value)
        assert same(json.loads(text), value)

    @given(values)
    def test_a_second_trip_changes_nothing(self, value):
        once = trip({"tuple": (value,), "when": dt.date(2024, 2, 29)})
        assert same(trip(once), once)

    @given(values)
    def test_leaves_its_argument_alone_and_shares_nothing_with_it(self, value):
        given_, before = {"value": value, "list": []}, copy.deepcopy(value)
        result = trip(given_)
        result["list"].append(1)
        assert given_["list"] == []
        assert same(given_["value"], before)

    @given(st.dictionaries(st.integers() | st.booleans() | st.none(), scalars, min_size=1))
    def test_refuses_every_key_that_is_not_a_string(self, value):
        assert refused(value).path == "data"

    @given(values, st.sampled_from(["\0", "\ud800", "\udfff"]), text)
    def test_finds_bad_text_wherever_it_stands(self, value, bad, rest):
        assert refused({"a": value, "b": [{"c": rest + bad}]}).path == 'data["b"][0]["c"]'
        assert refused({"a": value, "b": {rest + bad: 1}}).path == 'data["b"]'

    def test_lets_the_encoder_turn_what_it_knows_into_text(self):
        number = uuid.uuid4()
        given_ = {
            "id": number,
            "price": Decimal("1.50"),
            "at": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        }
        assert trip(given_) == {"id": str(number), "price": "1.50", "at": "2024-01-02T00:00:00Z"}

    def test_turns_tuples_and_kinds_of_dict_into_plain_ones(self):
        assert same(trip(OrderedDict(a=(1, (2,)))), {"a": [1, [2]]})

    def test_takes_text_that_only_looks_like_an_escape(self):
        assert trip({"a": "\\u0000 \\ud800"}) == {"a": "\\u0000 \\ud800"}

    def test_takes_what_an_encoder_knows_even_if_it_refuses_to_be_compared(self):
        class Array:
            def __eq__(self, other):
                raise ValueError("ambiguous")

            __hash__ = None

        class Encoder(json.JSONEncoder):
            def default(self, o):
                return [1, 2] if isinstance(o, Array) else super().default(o)

        assert normalise({"a": Array()}, encoder=Encoder)[0] == {"a": [1, 2]}

    @pytest.mark.parametrize(
        ("value", "mend"),
        [
            (Model(), "Store its pk."),
            (QuerySet(), "Store a list of its pks."),
            (Point(), "asdict"),
            (Colour.RED, "Store its value."),
            ({1, 2}, "Use a list."),
            ((n for n in [1]), "Use a list."),
            (UserDict(), "Use a dict."),
            (b"x", "base64"),
            (dt.time(tzinfo=dt.UTC), "Store a datetime"),
            (object(), "ENCODER"),
            (float("nan"), "Use None"),
            (float("-inf"), "Use None"),
            pytest.param(10**5000, "hexadecimal", id="digits"),
        ],
    )
    def test_names_the_path_and_the_mend(self, value, mend):
        error = refused({"fine": 1, "user": {"names": ["a", "b", "c", value]}})
        assert error.path == 'data["user"]["names"][3]'
        assert str(error).startswith(error.path)
        assert mend in str(error)

    def test_names_the_type_that_it_met(self):
        assert "tests.unit.test_data.Point" in str(refused({"a": Point()}))
        assert "of type set" in str(refused({"a": set()}))

    def test_names_a_path_of_another_root(self):
        assert refused([set()], path="result").path == "result[0]"

    @pytest.mark.parametrize("key", [1, 1.5, None, True, (1, 2), b"k"])
    def test_shows_a_key_that_is_not_a_string(self, key):
        error = refused({"a": {key: 1}})
        assert error.path == 'data["a"]'
        assert repr(key) in str(error)
        assert "Keys must be strings." in str(error)

    def test_takes_thirty_levels_and_no_more(self):
        assert trip(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
        assert f"deeper than {MAX_DEPTH}" in str(refused(nested(MAX_DEPTH + 1)))
        assert f"deeper than {MAX_DEPTH}" in str(refused(nested(100_000)))

    def test_takes_many_lists_side_by_side(self):
        wide = {"rows": [[number] for number in range(1000)]}
        assert trip(wide) == wide

    def test_refuses_what_contains_itself(self):
        data = {}
        data["me"] = data
        assert f"deeper than {MAX_DEPTH}" in str(refused(data))

    def test_refuses_an_object_that_its_encoder_leaves_as_it_is(self):
        class Encoder(json.JSONEncoder):
            def default(self, o):
                return o

        with pytest.raises(InvalidData, match="Fix the encoder"):
            normalise({"a": object()}, encoder=Encoder)

    def test_measures_bytes_of_utf_8(self):
        data = {"a": "é" * 10}
        size = len('{"a":""}') + 20
        assert trip(data, max_bytes=size) == data
        error = refused(data, max_bytes=size - 1)
        assert f"{size} bytes" in str(error)
        assert f"{size - 1}" in str(error)

    @pytest.mark.parametrize(
        ("data", "part"),
        [
            ({"a": 1, "b": "x" * 500}, 'data["b"] with 502'),
            ({"a": {"pages": ["x", "x" * 500]}}, 'data["a"]["pages"][1] with 502'),
            ({"a": "x" * 200, "b": "x" * 201}, 'data["b"] with 203'),
            ({"a": ["x" * 99] * 9}, 'data["a"] with 919'),
            ({"k" * 1000: 1}, "takes 1"),
            ({"a": "é" * 250}, 'data["a"] with 502'),
        ],
    )
    def test_says_which_part_is_the_large_one(self, data, part):
        text = str(refused(data, max_bytes=100))
        assert f"the limit is 100; the largest part is {part}." in text or part == "takes 1"
        assert len(text) < 250

    def test_of_a_text_no_part_is_the_large_one(self):
        assert "the limit is 100. Store it" in str(refused("x" * 200, max_bytes=100))

    def test_cuts_a_long_key_short(self):
        assert len(refused({"k" * 1000: set()}).path) < 100


class TestMerge:
    @given(datas, datas)
    def test_takes_a_change_that_was_made_alone(self, base, changed):
        assert same(merge(base, changed, base), changed)
        assert same(merge(base, base, changed), changed)

    @pytest.mark.parametrize(
        ("base", "both"),
        [({"n": 5}, {"n": 6}), ({}, {"n": 1}), ({"a": []}, {"a": ["x"]}), ({"a": 1}, {"a": None})],
    )
    def test_refuses_the_same_change_twice_for_it_may_have_been_an_addition(self, base, both):
        with pytest.raises(MergeConflict):
            merge(base, both, copy.deepcopy(both))

    def test_takes_the_same_deletion_twice(self):
        assert merge({"a": 1, "b": {"c": 2}}, {"b": {}}, {"b": {}}) == {"b": {}}

    @given(datas, datas, datas)
    def test_comes_to_the_same_whoever_is_first(self, base, one, other):
        assert same(outcome(base, one, other), outcome(base, other, one))

    @given(datas, datas, datas)
    def test_leaves_its_arguments_alone(self, base, theirs, mine):
        before = copy.deepcopy([base, theirs, mine])
        outcome(base, theirs, mine)
        assert same([base, theirs, mine], before)

    @given(datas, datas, datas)
    def test_loses_no_change_of_a_top_level_key(self, base, theirs, mine):
        merged = outcome(base, theirs, mine)
        for side in (theirs, mine) if merged is not None else ():
            for key in {**base, **side}:
                value = side.get(key, "gone")
                if not same(value, base.get(key, "gone")) and not isinstance(value, dict):
                    assert same(merged.get(key, "gone"), value)

    def test_goes_into_nested_dicts(self):
        base = {"user": {"name": "Ada", "tags": {"a": 1}}, "n": 1}
        theirs = {"user": {"name": "Ada", "tags": {"a": 1, "b": 2}}, "n": 1}
        mine = {"user": {"name": "Eva", "tags": {"a": 1, "c": 3}}}
        assert merge(base, theirs, mine) == {
            "user": {"name": "Eva", "tags": {"a": 1, "b": 2, "c": 3}}
        }

    def test_unites_two_new_dicts_of_one_name(self):
        assert merge({}, {"results": {"a": 1}}, {"results": {"b": 2}}) == {
            "results": {"a": 1, "b": 2}
        }

    @pytest.mark.parametrize(
        ("base", "theirs", "mine", "path"),
        [
            ({"a": 1}, {"a": 2}, {"a": 3}, ("a",)),
            ({}, {"a": 1}, {"a": True}, ("a",)),
            ({}, {"a": 1}, {"a": 1.0}, ("a",)),
            ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 3]}, ("a",)),
            ({"a": 1}, {}, {"a": 2}, ("a",)),
            ({"a": 1}, {"a": 2}, {}, ("a",)),
            ({"a": {"b": 1}}, {"a": {"b": 2}}, {}, ("a",)),
            ({"a": {"b": 1}}, {"a": {"b": 2}}, {"a": 1}, ("a",)),
            ({"a": 1}, {"a": {"b": 2}}, {"a": {"c": 2}}, ("a",)),
            ({"a": {"b": {}}}, {"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ("a", "b", "c")),
        ],
    )
    def test_refuses_two_changes_of_one_key(self, base, theirs, mine, path):
        with pytest.raises(MergeConflict) as caught:
            merge(base, theirs, mine)
        assert caught.value.path == path
        assert caught.value.key == "data" + "".join(f'["{name}"]' for name in path)
        assert isinstance(caught.value, SequenceError)

    def test_sees_a_change_of_type_alone(self):
        assert same(merge({"a": 1}, {"a": 1}, {"a": True}), {"a": True})
        assert same(merge({"a": [1]}, {"a": [1.0]}, {"a": [1]}), {"a": [1.0]})


def outcome(base, theirs, mine):
    try:
        return merge(base, theirs, mine)
    except MergeConflict:
        return None


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, [2.0]], [1, [2.0]], True),
        ([1, [2]], [1, [2.0]], False),
        ({"a": 0}, {"a": False}, False),
        ({"a": None}, {}, False),
        ([1], [1, 1], False),
    ],
)
def test_same_compares_types_too(a, b, equal):
    assert same(a, b) is equal


def test_dumps_writes_compact_text():
    assert dumps({"a": ["é", 1]}) == '{"a":["é",1]}'
    assert json.loads(dumps({"a": ["é", 1]})) == {"a": ["é", 1]}


def test_dumps_writes_nothing_that_json_lacks():
    with pytest.raises(ValueError, match="JSON"):
        dumps(float("nan"))


def doubled(value, times, wrap=lambda value: [value, value]):
    for _ in range(times):
        value = wrap(value)
    return value


class TestExpansion:
    """A value in many places is written once for each: few bytes of memory, many of JSON."""

    @pytest.mark.parametrize("max_bytes", [None, 2_000_000])
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda value: [value, value],
            lambda value: (value, value),
            lambda value: {"a": value, "b": [value]},
            lambda value: [[value], {"a": value}],
        ],
    )
    def test_what_would_be_written_again_and_again_is_refused_at_once(self, wrap, max_bytes):
        began = time.monotonic()
        for value in (doubled("x", 29, wrap), doubled({}, 29, wrap), doubled(object(), 29, wrap)):
            with pytest.raises(InvalidData, match=r"is written once for each|nested deeper"):
                normalise({"a": value}, max_bytes=max_bytes)
        assert time.monotonic() - began < 60

    def test_a_long_text_in_many_places_counts_each_time(self):
        with pytest.raises(InvalidData, match="is written once for each"):
            normalise([["x" * 1_000_000] * 10_000] * 10_000)
        with pytest.raises(InvalidData, match="is written once for each"):
            normalise([{"x" * 1_000_000: 1}] * 10_000)

    @pytest.mark.parametrize("value", ["x" * 20_000, ["x" * 200] * 100])
    def test_the_message_gives_the_limit_and_blames_no_repetition(self, value):
        error = refused({"a": value}, max_bytes=1_000)
        assert error.problem == "takes more than 10,000 bytes as JSON; the limit is 1,000"

    def test_what_contains_itself_is_refused_as_before(self):
        circle = []
        circle.append(circle)
        assert "nested deeper" in str(refused(circle))
        circle *= 3
        with pytest.raises(InvalidData):
            normalise(circle)

    def test_a_key_that_nobody_can_write_out_is_named_in_short(self):
        began = time.monotonic()
        with pytest.raises(InvalidData, match="Keys must be strings"):
            normalise({doubled((), 26, lambda value: (value, value)): 1})
        assert time.monotonic() - began < 5

    def test_what_stands_in_two_places_and_is_small_is_written_twice(self):
        shared = {"a": [1, 2]}
        assert trip([shared, shared]) == [{"a": [1, 2]}, {"a": [1, 2]}]
