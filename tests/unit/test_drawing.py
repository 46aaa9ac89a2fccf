"""Pictures are well-formed, escaped, and nothing in them lies on top of something else."""

import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sequences.definitions.plan import Node, Plan
from sequences.diagrams import STATUSES, Mark, is_drawable, svg
from sequences.diagrams.graph import Graph
from sequences.diagrams.marks import Captions
from sequences.diagrams.markup import fitted, width_of
from sequences.diagrams.svg import BOX, STACK, _Painter

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parents[2]
SCRIPT = '<script>alert("&")</script>'


def node(name, *after, kind="step", **rest):
    return Node(name, after, f"shop.Order.{name}", "default", kind, **rest)


def build(*nodes):
    return Plan.build("shop.Order", nodes)


def chain(count):
    return build(node("s0"), *(node(f"s{index}", f"s{index - 1}") for index in range(1, count)))


def fan(count):
    names = [f"part_{index}" for index in range(count)]
    return build(node("open"), *(node(name, "open") for name in names), node("join", *names))


DIAMOND = build(
    node("open"), node("left", "open"), node("right", "open"), node("join", "left", "right")
)
SAGA = build(
    node("reserve"),
    node("release", kind="undo", undoes="reserve", off_path=True),
    node("charge", "reserve", on_error="tell"),
    node("pack", "reserve", kind="each"),
    node("tell", off_path=True),
    node("ship", "charge", "pack", "tell", kind="subsequence"),
    node("inform", kind="on_failure", off_path=True),
)


def parsed(picture):
    return ElementTree.fromstring(picture)


def boxes_of(root):
    """The link or group of each step, in the order of the document."""
    return [one for one in root.iter() if "seq-node" in one.get("class", "").split()]


def names_of(root):
    return [one.get("aria-label") for one in boxes_of(root)]


def texts_of(root):
    return [one.text for one in root.iter(f"{SVG}text")]


# What is drawn


def test_a_plan_alone_shows_every_step_once_with_what_only_an_error_leads_to():
    assert names_of(parsed(svg(SAGA))) == [
        "reserve",
        "release: undo of reserve",
        "charge",
        "pack: fan-out",
        "tell: if charge fails",
        "ship: child run",
        "inform: on failure",
    ]


def test_a_run_without_errors_is_not_cluttered_with_what_they_would_lead_to():
    root = parsed(svg(SAGA, {"reserve": Mark("running", "2nd attempt")}))
    assert names_of(root) == [
        "reserve: running, 2nd attempt",
        "charge: not started",
        "pack: not started",
        "ship: not started",
    ]


def test_what_an_error_has_led_to_is_drawn():
    marks = {"reserve": Mark("succeeded"), "charge": Mark("failed"), "tell": Mark("running")}
    assert "tell: running" in names_of(parsed(svg(SAGA, marks)))


def test_each_step_is_a_link_with_its_state_as_text_and_class():
    marks = {"pack": Mark("running", href="/s/2/?a=1&b=2", count=37, total=100, title="on w1")}
    pack = next(
        one for one in boxes_of(parsed(svg(SAGA, marks))) if "pack" in one.get("aria-label")
    )
    assert pack.tag == f"{SVG}a"
    assert pack.get("href") == "/s/2/?a=1&b=2"
    assert "seq-running" in pack.get("class").split()
    assert pack.find(f"{SVG}title").text == "pack: running, 37 of 100\non w1"
    assert [one.text for one in pack.iter(f"{SVG}text")] == ["pack", "running · 37 of 100"]
    bar = next(one for one in pack.iter() if one.get("class") == "seq-bar")
    track = next(one for one in pack.iter() if one.get("class") == "seq-track")
    assert float(bar.get("width")) / float(track.get("width")) == pytest.approx(0.37, abs=0.01)


def test_a_join_names_the_steps_of_which_the_first_is_enough():
    join = replace(node("join", "one", "two"), any_of=(("one", "two"),))
    root = parsed(svg(build(node("one"), node("two"), join)))
    assert names_of(root) == ["one", "two", "join: first of one, two"]
    assert "first of 2" in texts_of(root)


def test_a_fan_out_is_a_stack():
    root = parsed(svg(SAGA))
    assert [len(list(one.iterfind(f"{SVG}rect"))) for one in boxes_of(root)] == [
        1,
        1,
        1,
        3,
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("status", STATUSES)
def test_every_state_has_a_shape_of_its_own(status):
    def icon(status):
        root = parsed(svg(build(node("only")), {"only": Mark(status)}))
        found = next(one for one in root.iter() if one.get("class") == "seq-icon")
        return [(one.tag, one.get("d"), one.get("class")) for one in found]

    assert [other for other in STATUSES if icon(other) == icon(status)] == [status]


def test_a_state_that_is_unknown_here_is_drawn_as_not_begun_with_its_own_word():
    (box,) = boxes_of(parsed(svg(build(node("only")), {"only": Mark("resting")})))
    assert "seq-pending" in box.get("class")
    assert box.get("aria-label") == "only: resting"


def test_the_words_can_be_translated():
    german = {
        "running": "läuft",
        "fan-out": "für jedes",
        "{count} of {total}": "{count} von {total}",
    }
    marks = {"pack": Mark("running", count=1, total=3)}

    def translate(text):
        return german.get(text, text)

    texts = texts_of(parsed(svg(SAGA, marks, translate=translate)))
    assert texts[4:6] == ["pack", "läuft · 1 von 3"]
    assert "für jedes" in texts_of(parsed(svg(SAGA, translate=translate)))


def test_texts_and_addresses_are_escaped():
    evil = {"only": Mark("failed", SCRIPT, f"/{SCRIPT}", title=SCRIPT, label=SCRIPT)}
    picture = svg(build(node("only")), evil, label=SCRIPT)
    assert "<script" not in picture
    root = parsed(picture)
    assert root.get("aria-label") == SCRIPT
    assert names_of(root) == [f"{SCRIPT}: failed, {SCRIPT}"]


def test_what_xml_cannot_hold_is_replaced():
    picture = svg(build(node("only")), {"only": Mark("failed", "a\x00b\x1b\ud800\nc\uffff")})
    assert texts_of(parsed(picture))[1].startswith("failed · a\ufffdb\ufffd\ufffd c")


def test_standing_alone_it_brings_the_style_sheet():
    root = parsed(svg(DIAMOND, standalone=True))
    assert ".seq-running" in root.find(f"{SVG}style").text
    assert parsed(svg(DIAMOND)).find(f"{SVG}style") is None


def test_beyond_sixty_steps_it_is_no_picture_any_more():
    assert is_drawable(chain(60))
    assert not is_drawable(chain(61))


# Where things stand


def drawing_of(plan, states=None):
    marks = {name: Mark(status) for name, status in (states or {}).items()}
    return _Painter(Captions(plan, marks)).drawing()


def points_of(path):
    """Points along a path: enough of each curve to see where it goes."""
    numbers = [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)]
    letters = re.findall(r"[MLQC]", path)
    at, found = 0, []
    for letter in letters:
        count = {"M": 1, "L": 1, "Q": 2, "C": 3}[letter]
        bends = numbers[at : at + count]
        at += count
        start = found[-1] if found else bends[0]
        found += [bezier([start, *bends], step / 12) for step in range(13)]
    return found


def bezier(points, t):
    while len(points) > 1:
        points = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b in pairwise(points)]
    return points[0]


def inside(box, point, margin=1.0):
    x, y = point
    return (
        box.x + margin < x < box.x + box.width - margin
        and box.y + margin < y < box.y + BOX - margin
    )


def overlap(one, other):
    beside = abs(one.x - other.x) < one.width + STACK
    return beside and abs(one.y - other.y) < BOX + STACK


def assert_tidy(plan, drawing):
    names = [box.node.name for box in drawing.boxes]
    assert len(names) == len(set(names))
    assert not [pair for pair in combinations(drawing.boxes, 2) if overlap(*pair)]
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width + STACK <= drawing.width
        assert box.y + BOX + STACK <= drawing.height
    for line in drawing.lines:
        for point in points_of(line.path):
            assert not [box for box in drawing.boxes if inside(box, point)], (line, point)
            assert 0 <= point[0] <= drawing.width
            assert 0 <= point[1] <= drawing.height


def assert_told(plan, drawing):
    """The lines say of each step what it waits for: no more, no less."""
    told = {
        (source, line_target)
        for line in drawing.lines
        for source in line.sources
        for line_target in line.targets
    }
    graph = Graph.of(plan, {}).grouped()
    assert {(edge.source, edge.target) for edge in graph.edges} <= told


@st.composite
def plans(draw):
    count = draw(st.integers(1, 14))
    names = [f"s{index}" for index in range(count)]
    nodes = []
    for index, name in enumerate(names):
        above = draw(st.sets(st.sampled_from(names[:index]), max_size=4)) if index else set()
        handler = draw(st.sampled_from(["", "", "", *(["rescue"] if index < count else [])]))
        kind = draw(st.sampled_from(["step", "each", "event"]))
        nodes.append(node(name, *sorted(above), kind=kind, on_error=handler))
    if any(one.on_error for one in nodes):
        nodes.append(node("rescue", off_path=True))
        nodes.append(node("after_all", "rescue", names[0]))
    undone = draw(st.sets(st.sampled_from(names), max_size=3))
    nodes += [
        node(f"undo_{name}", kind="undo", undoes=name, off_path=True) for name in sorted(undone)
    ]
    if draw(st.booleans()):
        nodes.append(node("inform", kind="on_failure", off_path=True))
    return build(*nodes)


@settings(max_examples=60, deadline=None)
@given(plans(), st.booleans())
def test_no_box_lies_on_another_and_no_line_runs_through_one(plan, failed):
    states = {"s0": "failed", "rescue": "running", "undo_s0": "queued", "inform": "queued"}
    states = {name: status for name, status in states.items() if failed and name in plan}
    drawing = drawing_of(plan, states)
    assert_tidy(plan, drawing)
    if not failed:
        assert_told(plan, drawing)


@pytest.mark.parametrize("plan", [chain(40), fan(12), fan(50), DIAMOND, SAGA])
def test_large_and_usual_plans_are_tidy(plan):
    drawing = drawing_of(plan)
    assert_tidy(plan, drawing)
    assert_told(plan, drawing)


def test_many_that_are_alike_stand_in_a_frame_that_fits_on_a_page():
    drawing = drawing_of(fan(50))
    (frame,) = drawing.frames
    inner = [box for box in drawing.boxes if box.node.name.startswith("part")]
    assert len(inner) == 50
    for box in inner:
        assert frame.x < box.x < box.x + box.width < frame.x + frame.width
        assert frame.y < box.y < box.y + BOX < frame.y + frame.height
    assert drawing.width < 1080
    assert drawing.height < 1200
    assert not drawing_of(fan(8)).frames


def test_a_frame_is_passed_when_all_in_it_are_done():
    def passed(last):
        marks = {f"part_{index}": Mark("succeeded") for index in range(11)}
        marks |= {"open": Mark("succeeded"), "part_11": Mark(last), "join": Mark("queued")}
        root = parsed(svg(fan(12), marks))
        return sum("seq-edge seq-passed" in one.get("class", "") for one in root.iter())

    assert (passed("running"), passed("succeeded")) == (1, 2)


def test_a_chain_is_level():
    assert len({box.y for box in drawing_of(chain(5)).boxes}) == 1


def test_a_long_chain_is_broken_into_rows_that_are_read_from_left_to_right():
    drawing = drawing_of(chain(40))
    assert drawing.width < 1200
    places = [(box.y, box.x) for box in drawing.boxes]
    assert places == sorted(places)
    assert len({y for y, _ in places}) == 8


def test_the_main_line_stands_still_when_an_error_leads_aside():
    before = drawing_of(SAGA, {"reserve": "succeeded", "pack": "running"})
    after = drawing_of(SAGA, {"reserve": "succeeded", "pack": "failed", "inform": "queued"})
    assert [box for box in after.boxes if box.node.name != "inform"] == list(before.boxes)


def test_what_follows_from_other_lines_is_not_drawn():
    plan = build(node("a"), node("b", "a"), node("c", "a", "b"))
    assert [(edge.source, edge.target) for edge in Graph.of(plan, {}).edges] == [
        ("a", "b"),
        ("b", "c"),
    ]


def test_a_line_past_a_hidden_handler_is_kept():
    plan = build(node("a", on_error="b"), node("b", off_path=True), node("c", "b"))
    assert [(e.source, e.target) for e in Graph.of(plan, {"a": "running"}).edges] == [("a", "c")]


# Texts


def test_a_long_name_is_cut_and_told_in_full_where_the_pointer_rests():
    name = "a_name_that_nobody_would_ever_write_for_a_step"
    root = parsed(svg(build(node(name))))
    (shown,) = texts_of(root)
    assert shown.endswith("…")
    assert next(root.iter(f"{SVG}title")).text == name.replace("_", " ")


@given(st.text(max_size=60), st.integers(20, 300))
def test_a_text_fits(text, room):
    assert width_of(fitted(text, 13, room), 13) <= max(room, width_of("…", 13))


def test_the_picture_in_the_documents_is_what_is_drawn_today():
    marks = {
        "charge": Mark("succeeded", "0.3 s"),
        "pack": Mark("running", count=37, total=100),
        "invoice": Mark("retrying", "in 3 s"),
    }
    plan = build(
        node("charge"),
        node("refund", kind="undo", undoes="charge", off_path=True),
        node("pack", "charge", kind="each"),
        node("invoice", "charge"),
        node("approval", "pack", "invoice", kind="event"),
        node("ship", "approval", kind="subsequence"),
        node("thank", "ship"),
        node("inform", kind="on_failure", off_path=True),
    )
    picture = svg(plan, marks, label="An order that is being packed", standalone=True)
    stored = (ROOT / "docs/images/order.svg").read_text()
    assert without_style(stored) == without_style(picture + "\n")


def without_style(picture):
    return re.sub(r"<style>.*</style>", "", picture, flags=re.S)
