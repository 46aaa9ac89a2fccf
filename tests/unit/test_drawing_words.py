"""Plans as text and as Mermaid."""

import re
from dataclasses import replace

import pytest

from sequences.diagrams import Mark, mermaid, text
from sequences.diagrams.outline import outline
from sequences.utils.terminal import cells
from tests.unit.test_drawing import DIAMOND, SAGA, build, chain, fan, node

NESTED = build(
    node("a"),
    node("b", "a"),
    node("c", "a"),
    node("b1", "b"),
    node("b2", "b"),
    node("join", "b1", "b2"),
    node("end", "join", "c"),
)
#: Neither one after the other nor side by side.
KNOT = build(node("a"), node("b"), node("c", "a"), node("d", "a", "b"))
#: The join waits for one of them.
RACE = build(
    node("one"), node("two"), replace(node("join", "one", "two"), any_of=(("one", "two"),))
)
RUN = {
    "reserve": Mark("succeeded", "12 ms"),
    "charge": Mark("failed"),
    "pack": Mark("running", count=3, total=10),
    "tell": Mark("retrying", "attempt 2"),
}


def drawn(plan, marks=None, **options):
    return text(plan, marks, **options).splitlines()


def test_a_chain_is_a_list():
    assert drawn(chain(3)) == ["s0", "s1", "s2"]


def test_branches_have_rails_and_what_joins_them_stands_below():
    assert drawn(DIAMOND) == ["open", "├─ left", "└─ right", "join"]
    assert drawn(NESTED) == [
        "a",
        "├─ b",
        "│  ├─ b1",
        "│  └─ b2",
        "│  join",
        "└─ c",
        "end",
    ]


def test_a_branch_that_begins_with_branches_forks_at_once():
    plan = build(node("a"), node("b"), node("c"), node("join", "a", "b"), node("end", "join", "c"))
    assert drawn(plan) == ["├──┬─ a", "│  └─ b", "│  join", "└─ c", "end"]


def test_what_is_neither_in_order_nor_side_by_side_is_told_in_words():
    assert drawn(KNOT) == ["├─ a", "├─ b", "├─ c  after a", "└─ d  after a, b"]


def test_a_run_has_a_sign_and_a_word_for_each_state():
    assert drawn(SAGA, RUN) == [
        "✓ reserve    succeeded, 12 ms",
        "├─ ✗ charge  failed",
        "└─ ● pack    running, 3 of 10, fan-out",
        "· ship       not started, child run",
        "↻ tell       retrying, attempt 2, if charge fails",
    ]


def test_without_unicode_it_is_ascii():
    lines = drawn(SAGA, RUN, unicode=False)
    assert lines[1:3] == ["|- x charge  failed", "`- * pack    running, 3 of 10, fan-out"]
    assert all(line.isascii() for line in lines)
    assert all(line.isascii() for line in drawn(chain(2), unicode=False, width=2))


@pytest.mark.parametrize("width", [12, 20, 40])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    plan = build(node("發送訂單確認電子郵件給客戶"), node("a_name_that_does_not_fit_anywhere"))
    for line in [*drawn(plan, width=width), *drawn(SAGA, RUN, width=width)]:
        assert cells(line) <= width


def test_what_could_steer_a_terminal_does_not():
    (line,) = drawn(build(node("a")), {"a": Mark("failed", "x\x1b[2J\ny\x9b", label="b\r\n")})
    assert not set(line) & {"\x1b", "\x9b", "\r", "\n"}


def test_nor_does_it_in_the_caption_of_another_step():
    lines = drawn(SAGA, {"reserve": Mark(label="re\x1b[2J\nserve")})
    assert len(lines) == len(SAGA.nodes)
    assert any(line.endswith(r"undo of re\x1b[2J serve") for line in lines)


def test_an_outline_of_hundreds_of_steps_is_quick_and_whole():
    rows = outline(fan(200))
    assert len(rows) == 202
    assert [len(row.rails) for row in rows[:2]] == [0, 1]
    assert len(outline(chain(300))) == 300


def test_an_outline_has_every_step_once():
    for plan in (DIAMOND, SAGA, NESTED, KNOT):
        assert sorted(row.node.name for row in outline(plan)) == sorted(plan.names)


# Mermaid


def test_mermaid_has_a_shape_for_each_kind_a_line_for_each_edge_and_a_class_for_each_state():
    assert mermaid(SAGA, RUN).splitlines() == [
        "flowchart LR",
        '    s0["reserve<br/>succeeded · 12 ms"]',
        '    s1["charge<br/>failed"]',
        '    s2[["pack<br/>running · 3 of 10"]]',
        '    s3["tell<br/>retrying · attempt 2"]',
        '    s4[/"ship<br/>not started"/]',
        "    s0 --> s1",
        "    s0 --> s2",
        "    s1 --> s4",
        "    s2 --> s4",
        "    s1 -.-> s3",
        "    s3 -.-> s4",
        *(line for line in mermaid(SAGA, RUN).splitlines() if "classDef" in line),
        "    class s0 succeeded",
        "    class s1 failed",
        "    class s2 running",
        "    class s3 retrying",
    ]
    defined = re.findall(
        r"classDef (\w+) fill:#\w{6},stroke:#\w{6},color:#\w{6}", mermaid(SAGA, RUN)
    )
    assert defined == ["running", "retrying", "succeeded", "failed"]


def test_several_of_which_the_first_is_enough_are_named():
    assert drawn(RACE) == ["├─ one", "└─ two", "join    first of one, two"]
    assert drawn(RACE, {"one": Mark("waiting")})[-1].endswith("not started, first of one, two")
    lines = mermaid(RACE).splitlines()
    assert '    s0 -->|"first of 2"| s2' in lines
    assert '    s1 -->|"first of 2"| s2' in lines


def test_an_undo_hangs_on_what_it_undoes():
    lines = mermaid(SAGA).splitlines()
    assert '    s6(["release<br/>undo of reserve"])' in lines
    assert "    s0 -.- s6" in lines


def test_names_cannot_leave_their_quotes():
    evil = 'x"] --> y["`<script>`\n#quot; ${a} %%{init}%%'
    picture = mermaid(build(node("end")), {"end": Mark(label=evil)})
    (line,) = [line for line in picture.splitlines() if line.startswith("    s0")]
    assert line.count('"') == 2
    assert not re.search(r"[<>`{}%$]", line)
    assert re.fullmatch(r'    s0\["[^"]*"\]', line)


def test_letters_of_other_scripts_stay():
    assert '"משלוח 發送 é"' in mermaid(build(node("משלוח_發送_é")))
