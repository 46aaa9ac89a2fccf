"""The timeline is to scale, but where it is long and idle: there the axis is broken."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequences.diagrams import Lane, Span, timeline
from sequences.diagrams.time_axis import BREAK, Scale

SVG = "{http://www.w3.org/2000/svg}"
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DAY = 86_400


def at(seconds):
    return START + timedelta(seconds=seconds)


def span(kind, begins, ends=None, title=""):
    return Span(kind, at(begins), None if ends is None else at(ends), title)


def drawn(*lanes, until, **options):
    picture = timeline(lanes, START, None, at(until), **options)
    return ElementTree.fromstring(picture)


def texts_of(root, class_):
    return [one.text for one in root.iter(f"{SVG}text") if one.get("class") == class_]


def bars_of(root):
    """Of each span: its kind, and where its bar begins and ends."""
    found = []
    for row in (one for one in root.iter() if one.get("role") == "listitem"):
        for one in row.iter(f"{SVG}g"):
            kinds = one.get("class", "").split()
            if "seq-span" in kinds:
                rect = one.find(f"{SVG}rect")
                x, width = float(rect.get("x")), float(rect.get("width"))
                found.append((kinds[1].removeprefix("seq-span-"), x, x + width))
    return found


def test_a_lost_worker_is_a_moment_with_a_mark_of_its_own_and_takes_no_time():
    lost, failed = span("lost", 20, 20, "Lost worker box:7"), span("failed", 30, 30)
    root = drawn(Lane("a", "a", spans=(span("waited", 0, 40), lost, failed)), until=40)
    assert [kind for kind, _, _ in bars_of(root)] == ["waited", "lost", "failed"]
    titles = [one.text for one in root.iter(f"{SVG}title")]
    assert "lost worker\nLost worker box:7" in titles
    marks = [one.get("d") for one in root.iter(f"{SVG}path") if one.get("class") == "seq-cross"]
    assert len(marks) == 4, "each in its lane and in the legend"
    assert len({mark.partition(" ")[2] for mark in marks}) == 2
    (row,) = (one for one in root.iter() if one.get("role") == "listitem")
    assert "1 × failed attempt, 1 × lost worker" in "".join(  # noqa: RUF001
        [row.get("aria-label") or "", *row.itertext()]
    )
    root = drawn(Lane("a", "a", spans=(span("waited", 0, 40), lost)), until=40)
    assert texts_of(root, "seq-length") == ["–"]  # noqa: RUF001


def test_the_legend_has_the_colours_of_the_bars():
    def legend(*spans):
        root = drawn(Lane("a", "a", spans=spans), until=40)
        (found,) = (one for one in root.iter() if one.get("class") == "seq-legend")
        return [one.get("class") for one in found.iter(f"{SVG}g") if one is not found]

    assert legend(span("ran", 0, 9), span("items", 9)) == [
        "seq-span seq-span-ran", "seq-span seq-span-items seq-still",
    ]  # fmt: skip
    assert legend(span("ran", 0, 9), span("ran", 9)) == ["seq-span seq-span-ran"]


def test_bars_are_to_scale_and_never_too_short_to_be_seen():
    root = drawn(
        Lane("a", "a", spans=[span("waited", 0, 10), span("ran", 10, 30)]),
        Lane("b", "b", spans=[span("ran", 30, 30), span("ran", 30, 40)]),
        until=40,
    )
    (_, left, until_a), (_, _, end_a), (_, b, short), (_, _, right) = bars_of(root)
    assert (end_a - until_a) / (until_a - left) == pytest.approx(2, abs=0.02)
    assert right - left == pytest.approx(4 * (until_a - left), abs=1)
    assert short - b == 3


def test_a_wait_of_days_leaves_room_for_the_rest_and_the_axis_says_that_it_is_broken():
    root = drawn(
        Lane("charge", "charge", spans=[span("ran", 0, 2)]),
        Lane("approval", "approval", spans=[span("waited", 2, 3 * DAY)]),
        Lane("ship", "ship", spans=[span("ran", 3 * DAY, 3 * DAY + 4)]),
        until=3 * DAY + 4,
    )
    (_, left, charged), _, (_, shipping, right) = bars_of(root)
    assert charged - left > 100
    assert (right - shipping) / (charged - left) == pytest.approx(2, abs=0.05)
    assert texts_of(root, "seq-left-out") == ["3 d"]
    assert len([one for one in root.iter() if one.get("class") == "seq-break"]) == 2


def test_what_still_waits_is_left_out_too():
    root = drawn(
        Lane("a", "a", spans=[span("ran", 0, 2)]),
        Lane("b", "b", spans=[span("waited", 2)]),
        until=2 * DAY,
    )
    assert texts_of(root, "seq-left-out") == ["2 d"]
    still = [one for one in root.iter() if "seq-still" in one.get("class", "")]
    assert len(still) == 2, "its bar, and that of the legend"
    assert still[0].find(f"{SVG}path").get("class") == "seq-tip"


@pytest.mark.parametrize(
    ("spans", "until"),
    [
        ([span("ran", 0, 100), span("waited", 100, 400), span("ran", 400, 500)], 500),
        ([span("waited", 0, 3 * DAY)], 3 * DAY),
        ([span("ran", 0, 0.001), span("waited", 0.001, 1.9)], 1.9),
        ([span("ran", 0, 3 * DAY)], 3 * DAY),
        ([], 3 * DAY),
    ],
    ids=["usual", "only a wait", "short", "only work", "nothing"],
)
def test_an_axis_is_not_broken_without_need(spans, until):
    root = drawn(Lane("a", "a", spans=spans), until=until)
    assert texts_of(root, "seq-left-out") == []


def test_a_step_that_polls_every_hour_is_broken_between_its_attempts():
    spans = [span("failed", hour * 3600, hour * 3600 + 1) for hour in range(6)]
    root = drawn(Lane("poll", "poll", spans=spans), until=5 * 3600 + 1)
    assert texts_of(root, "seq-left-out") == ["1 h"] * 5
    bars = bars_of(root)
    assert all(before[2] < after[1] for before, after in pairwise(bars))


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0.01, ["0", "2 ms", "4 ms"]),
        (3.1, ["0", "500 ms", "1 s"]),
        (40, ["0", "5 s", "10 s"]),
        (400, ["0", "1 min", "2 min"]),
        (3 * 3600, ["0", "30 min", "1 h"]),
        (9 * DAY, ["0", "1 d", "2 d"]),
    ],
)
def test_ticks_are_round(total, expected):
    scale = Scale(total, [(0, total)], 0, 700)
    ticks = list(scale.ticks())
    assert [tick.text for tick in ticks[:3]] == expected
    gaps = [after.x - before.x for before, after in pairwise(ticks)]
    assert min(gaps) >= 60


def test_a_tick_that_stands_just_behind_the_end_stands_at_it():
    ticks = list(Scale(0.99999, [], 100, 600).ticks())
    assert (ticks[-1].x, ticks[-1].text) == (700, "1 s")


def test_behind_a_break_ticks_count_from_its_end():
    scale = Scale(DAY, [(0, 10), (DAY - 10, DAY)], 0, 800)
    texts = [tick.text for tick in scale.ticks()]
    assert texts[:2] == ["0", "5 s"]
    assert texts[-1].startswith("+")


seconds = st.floats(0, 10 * DAY, allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(seconds, seconds), max_size=12), seconds, st.lists(seconds, min_size=2))
def test_what_is_later_stands_further_right_and_nothing_leaves_the_axis(busy, total, moments):
    scale = Scale(total, [(min(pair), max(pair)) for pair in busy], 100, 600)
    places = [scale.x(moment) for moment in sorted(moments)]
    assert all(one <= other + 1e-6 for one, other in pairwise(places))
    assert all(99.999 <= place <= 700.001 for place in places)
    assert all(99.999 <= tick.x <= 700.001 for tick in scale.ticks())
    assert all(piece.width <= BREAK + 1e-6 for piece in scale.breaks)


def test_a_lane_tells_a_screen_reader_what_it_shows():
    lane = Lane(
        "ask",
        "ask them",
        "/steps/1/",
        [span("waited", 0, 2), span("failed", 2, 3), span("failed", 4, 5), span("ran", 6, 9)],
    )
    root = drawn(lane, until=9, label="When they ran")
    (link,) = root.iter(f"{SVG}a")
    assert link.get("aria-label") == "ask them: waited 2 s, ran 3 s, 2 × failed attempt"  # noqa: RUF001
    assert link.get("href") == "/steps/1/"
    assert root.get("aria-label") == "When they ran"
    assert texts_of(root, "seq-length") == ["5 s"]
    assert texts_of(root, "seq-word") == ["waited", "ran", "failed attempt"]


def test_texts_are_escaped_and_cut():
    evil = "<script>alert('&')</script>"
    spans = [span("failed", 0, 1, evil)]
    lanes = [Lane("a", evil * 3, f"/{evil}", spans)]
    picture = timeline(lanes, START, None, at(2), label=evil)
    assert "<script" not in picture
    root = ElementTree.fromstring(picture)
    assert texts_of(root, "seq-name")[0].endswith("…")
    assert f"failed attempt 1 s\n{evil}" in [one.text for one in root.iter(f"{SVG}title")]


def test_no_steps_and_no_time_are_a_picture_still():
    assert drawn(until=0).get("class") == "seq-picture seq-timeline"
