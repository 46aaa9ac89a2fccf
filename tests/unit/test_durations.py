from datetime import timedelta

import pytest

from sequences.utils.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (-5, "0 ms"),
        (0.0004, "0 ms"),
        (0.25, "250 ms"),
        (0.4, "400 ms"),
        (0.9999, "999 ms"),
        (1, "1 s"),
        (1.25, "1.2 s"),
        (9.99, "9.9 s"),
        (10.5, "10 s"),
        (59.999, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7500, "2 h 5 min"),
        (3 * 3600 + 59 * 60, "3 h 59 min"),
        (2 * 86400 + 4 * 3600 + 59 * 60, "2 d 4 h"),
        (400 * 86400, "400 d"),
    ],
)
def test_a_length_of_time_is_told_in_its_two_largest_units(seconds, text):
    assert format_duration(timedelta(seconds=seconds)) == text


def test_of_none_it_says_what_it_is_told_to():
    assert format_duration(None) == ""
    assert format_duration(None, "not yet") == "not yet"


@pytest.mark.parametrize(
    "text", ["0 ms", "250 ms", "1.2 s", "59 s", "3 min 5 s", "3 h 59 min", "2 d 4 h", "400 d"]
)
def test_what_is_shown_may_be_typed(text):
    assert format_duration(parse_duration(text)) == text


def test_a_long_text_that_is_no_duration_is_refused_at_once():
    assert parse_duration("1" * 200_000) is None
    assert parse_duration("1 s " * 50_000 + "later") is None
