from copy import deepcopy

import pytest

from sequences.redaction import HIDDEN, redact


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
