import json
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequences.redaction import (
    HIDDEN,
    NoSecret,
    changed_secrets,
    hide,
    redact,
    restore,
    secrets_of,
)


@pytest.mark.parametrize(
    ("patterns", "value", "expected"),
    [
        (["password"], {"password": "x", "name": "y"}, {"password": HIDDEN, "name": "y"}),
        (["card.*"], {"card": {"a": 1, "b": 2}}, {"card": {"a": HIDDEN, "b": HIDDEN}}),
        (["card.number"], {"card": {"number": 1, "b": 2}}, {"card": {"number": HIDDEN, "b": 2}}),
        (["card"], {"card": {"number": 1}}, {"card": HIDDEN}),
        (["*_token"], {"a_token": 1, "token": 2}, {"a_token": HIDDEN, "token": 2}),
        (["*"], {"a": 1, "b": {"c": 2}}, {"a": HIDDEN, "b": HIDDEN}),
        (["*.pin"], {"a": {"pin": 1}, "pin": 2}, {"a": {"pin": HIDDEN}, "pin": 2}),
        (["cards.pin"], {"cards": [{"pin": 1}, [{"pin": 2}]]},
         {"cards": [{"pin": HIDDEN}, [{"pin": HIDDEN}]]}),
        (["a.b.c", "a.d"], {"a": {"b": {"c": 1}, "d": 2}},
         {"a": {"b": {"c": HIDDEN}, "d": HIDDEN}}),
        (["a", "a.b"], {"a": {"b": 1, "c": 2}}, {"a": HIDDEN}),
        (["a.b"], {"a": "text", "b": 1}, {"a": "text", "b": 1}),
        (["Name"], {"name": 1}, {"name": 1}),
        (["empty"], {"empty": None}, {"empty": HIDDEN}),
        ([], {"a": 1}, {"a": 1}),
        (["a"], "text", "text"),
        (["a"], [{"a": 1}], [{"a": HIDDEN}]),
        (["a"], None, None),
    ],
)  # fmt: skip
def test_what_a_pattern_names_is_hidden_and_nothing_else(patterns, value, expected):
    assert redact(value, patterns) == expected


def test_the_value_itself_is_not_changed():
    value = {"card": {"number": 1, "list": [{"pin": 2}]}}
    before = deepcopy(value)
    redact(value, ["card.number", "card.list.pin"])
    assert value == before


def test_patterns_may_come_from_any_iterable():
    assert redact({"a": 1, "b": 2}, iter(("a", "b"))) == {"a": HIDDEN, "b": HIDDEN}


STORED = {
    "name": "Joel",
    "token": "tok-1",
    "card": {"number": "4111", "holder": "J"},
    "people": [{"name": "a", "pin": "1111"}, {"name": "b", "pin": "2222"}, {"name": "c", "pin": 3}],
    "stars": "***",
    "tags": ["x", "***"],
}
PATTERNS = ("token", "card.number", "people.pin", "keys")


def edited(**changes):
    return {**redact(STORED, PATTERNS), **changes}


def test_what_is_left_as_stars_comes_back_as_it_is_stored():
    assert restore(redact(STORED, PATTERNS), STORED, PATTERNS) == STORED
    changed = restore(edited(name="Ann", card={"number": "***", "holder": "A"}), STORED, PATTERNS)
    assert changed == {**STORED, "name": "Ann", "card": {"number": "4111", "holder": "A"}}


def test_a_hidden_value_can_be_replaced_or_removed():
    assert restore(edited(token="tok-2"), STORED, PATTERNS)["token"] == "tok-2"
    assert restore(edited(card="none"), STORED, PATTERNS)["card"] == "none"
    without = {key: value for key, value in edited().items() if key != "token"}
    assert "token" not in restore(without, STORED, PATTERNS)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"note": "***"}, "note"),
        ({"name": "***"}, "name"),
        ({"card": "***"}, "card"),
        ({"keys": "***"}, "keys"),
        ({"token": {"a": "***"}}, "token.a"),
        ({"token": ["***"]}, "token[0]"),
        ({"card": {"number": "***", "pin": "***"}}, "card.pin"),
        ({"tags": ["***", "x"]}, None),
        ({"tags": ["***", "***"]}, "tags[1]"),
    ],
)
def test_stars_where_no_secret_is_stored_are_refused(changes, path):
    if path is None:  # three stars that are no secret are a text like any other
        assert restore(edited(**changes), STORED, PATTERNS)["tags"] == changes["tags"]
        return
    with pytest.raises(NoSecret) as caught:
        restore(edited(**changes), STORED, PATTERNS)
    assert caught.value.path == path


def person(name, pin="***"):
    return {"name": name, "pin": pin}


@pytest.mark.parametrize(
    ("people", "pins"),
    [
        ([person("a"), person("b"), person("z")], ["1111", "2222", 3]),
        ([person("b"), person("c")], ["2222", 3]),
        ([person("a"), person("c")], ["1111", 3]),
        ([person("new", "9"), person("a"), person("b"), person("c")], ["9", "1111", "2222", 3]),
        ([person("a"), person("b", "7"), person("c", "8")], ["1111", "7", "8"]),
        ([], []),
    ],
)
def test_the_items_of_a_list_keep_their_own_secrets(people, pins):
    restored = restore(edited(people=people), STORED, PATTERNS)["people"]
    assert [one["pin"] for one in restored] == pins


@pytest.mark.parametrize(
    "people",
    [
        [person("b"), person("a"), person("c")],
        [person("b"), person("b"), person("c")],
        [person("a"), person("x"), person("y")],
        [person("a"), person("a"), person("b"), person("c")],
        [person("x"), person("b")],
    ],
)
def test_items_of_which_nobody_can_tell_whose_secret_they_have_are_refused(people):
    with pytest.raises(NoSecret, match=r"people\[\d\]"):
        restore(edited(people=people), STORED, PATTERNS)


def test_of_two_items_that_look_alike_neither_gets_the_secret_of_the_other():
    stored = {"people": [person("a", "1"), person("a", "2"), person("b", "3")]}
    shown = redact(stored, PATTERNS)
    assert restore(shown, stored, PATTERNS) == stored
    with pytest.raises(NoSecret):
        restore({"people": shown["people"][:1]}, stored, PATTERNS)
    with pytest.raises(NoSecret):
        restore({"people": shown["people"][1:]}, stored, PATTERNS)


def test_numbers_and_truth_are_not_mistaken_for_each_other():
    stored = {"n": 1, "flag": True}
    assert json.dumps(restore({"n": True, "flag": 1.0}, stored, ())) == '{"n": true, "flag": 1.0}'


json_values = st.recursive(
    st.sampled_from([1, "x", "***", None, True, "other"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "token"]), below, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(["a", "b", "token"]), json_values, max_size=3)


@given(objects, objects)
def test_no_edit_brings_a_secret_to_where_it_is_shown(stored, typed):
    marked = mark(stored)
    try:
        restored = restore(typed, marked, ("token",))
    except NoSecret:
        return
    assert "secret" not in json.dumps(redact(restored, ("token",)))


@given(objects)
def test_what_nobody_touches_stays_as_it_is(stored):
    marked = mark(stored)
    assert restore(redact(marked, ("token",)), marked, ("token",)) == marked


def mark(value, hidden=False):
    """The same with secrets that can be found again."""
    if isinstance(value, dict):
        return {key: mark(one, hidden or key == "token") for key, one in value.items()}
    if isinstance(value, list):
        return [mark(one, hidden) for one in value]
    return f"secret {value}" if hidden else value


def test_changed_secrets_are_named_and_not_shown():
    after = {**STORED, "token": "tok-2", "card": {"holder": "J"}, "name": "Ann"}
    assert changed_secrets(STORED, after, PATTERNS) == ["token", "card.number"]
    assert changed_secrets(STORED, {**STORED, "name": "Ann"}, PATTERNS) == []


@pytest.mark.parametrize(
    ("patterns", "value", "expected"),
    [
        (["token"], {"token": "abcd", "name": "Joel"}, {"abcd"}),
        (["card.*"], {"card": {"number": 4111, "holders": ["Joel", "Ada K."]}},
         {"4111", "Joel", "Ada K."}),
        (["card"], {"card": {"numbers": [{"full": 4111}]}}, {"4111"}),
        (["cards.pin"], {"cards": [{"pin": "1234", "name": "Joel"}, [{"pin": "5678"}]]},
         {"1234", "5678"}),
        (["pin"], {"pin": "123"}, set()),
        (["gone"], {"gone": None}, set()),
        (["yes"], {"yes": True}, set()),
        (["a.b"], {"a": "text"}, set()),
        (["token"], "text", set()),
        ([], {"token": "abcd"}, set()),
    ],
)  # fmt: skip
def test_the_secrets_are_the_texts_that_are_hidden(patterns, value, expected):
    assert secrets_of(value, patterns) == expected


def test_a_secret_is_found_as_it_is_quoted_too():
    secret = 'Zoë said "hi"\n'
    secrets = secrets_of({"token": secret}, ["token"])
    for text in (secret, repr({"token": secret}), json.dumps([secret])):
        assert "Zo" not in hide(text, secrets)
        assert HIDDEN in hide(text, secrets)


def test_of_many_secrets_each_is_hidden(monkeypatch):
    secrets = {f"secret-{number}" for number in range(1_000)} | {"abc", "ö" * 4}
    text = "secret-7, secret-77 secret-77x abc öööö secret-"
    hidden = "***, *** ***x *** *** secret-"
    assert hide(text, secrets) == hidden
    monkeypatch.setattr("sequences.redaction.MANY", 10_000)
    assert hide(text, secrets) == hidden
