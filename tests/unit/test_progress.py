"""How far the suite is."""

from dataclasses import dataclass
from io import StringIO

import pytest

from tests import run
from tests.progress import Progress, minutes, share_done


@dataclass(frozen=True)
class Leg:
    name: str
    seconds: int

    def __str__(self):
        return self.name


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("tests/unit/test_ids.py ....", 0),
        ("..... [  7%]\n", 0.07),
        ("..... [  7%]\n..... [ 42%]\n...", 0.42),
        ("[ 42%]\n" + "." * 10_000 + " [ 43%]\n", 0.43),
        ("..... [100%]\n\n12 passed in 3s\n", 1),
    ],
)
def test_a_part_is_as_far_as_pytest_says_last(tmp_path, text, share):
    assert share_done(write(tmp_path / "output", text)) == share


def test_the_whole_is_as_far_as_its_parts_by_the_time_they_take(tmp_path):
    long, short, last = Leg("long", 80), Leg("short", 10), Leg("last", 10)
    progress = Progress([long, short, last], expected=50)
    progress.outputs[long] = write(tmp_path / "long", "[ 50%]")
    progress.outputs[short] = write(tmp_path / "short", "[ 20%]")
    progress.ended.add(short)
    assert progress.share() == 0.5
    assert progress.line().startswith(" 50%, less than a minute left: long 50%")


def test_the_rest_takes_as_long_for_its_share_as_what_is_over(tmp_path):
    leg = Leg("only", 60)
    progress = Progress([leg], expected=60)
    assert progress.seconds_left() == 60
    progress.outputs[leg] = write(tmp_path / "only", "[ 25%]")
    progress.started -= 100
    assert progress.seconds_left() == pytest.approx(300, abs=5)


def test_where_there_is_no_terminal_lines_are_lines():
    output = StringIO()
    Progress([Leg("only", 60)], 60, output).say("On SQLite:\n")
    assert output.getvalue() == "On SQLite:\n"


@pytest.mark.parametrize(("seconds", "text"), [(20, "less than a minute"), (130, "about 2 min")])
def test_times_are_as_coarse_as_they_are_sure(seconds, text):
    assert minutes(seconds) == text


def test_quick_starts_no_workers_and_takes_about_three_minutes():
    choices = run.choices_for(None, quick=True).values()
    seconds = [seconds for parts in choices for seconds in parts.values()]
    assert not [part for parts in choices for part in parts if part.starts_workers]
    assert sum(seconds) / 2 <= 180


def test_quick_on_one_database_is_all_that_it_has_without_workers():
    assert set(run.choices_for("postgresql", quick=True)["postgresql"]) == {run.SQL, run.ROWS}
    assert run.choices_for("mysql", quick=True) == {"mysql": run.CHOICES["mysql"]}


def test_what_starts_workers_runs_beside_what_computes_and_one_part_uses_rabbitmq_at_a_time():
    legs = [
        run.Leg(vendor, part, seconds)
        for vendor, parts in run.CHOICES.items()
        for part, seconds in parts.items()
    ]
    computing, *waiting = lanes = run.lanes_of(legs)
    assert not [leg for leg in computing.legs if leg.part.starts_workers]
    assert all(leg.part.starts_workers for lane in waiting for leg in lane.legs)
    assert [lane.at_a_time for lane in waiting] == [1, 1]
    assert sum(any(leg.part.uses_rabbitmq for leg in lane.legs) for lane in waiting) == 1
    assert max(lane.seconds for lane in lanes) < 20 * 60
