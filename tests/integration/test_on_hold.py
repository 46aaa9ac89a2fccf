"""What will not run is not queued: it is on hold, and its clock stands still."""

import json
import re
from datetime import timedelta

import pytest
from django.urls import reverse

from sequences import Abort, Sequence, diagrams, step
from sequences.inspection import actions, snapshot
from sequences.inspection.diagnosis import summary
from sequences.inspection.run_diagrams import lanes_of, marks_of, picture_of
from sequences.testing import clock, drain
from tests.console import command
from tests.engine import claim, fail, fresh, perform

pytestmark = pytest.mark.django_db

SIBLINGS = 50


def many():
    def body(self): ...

    names = [f"beside{number}" for number in range(SIBLINGS)]
    steps = {name: step(after="first")(body) for name in names}
    return type(
        "Many",
        (Sequence,),
        {
            "__module__": __name__,
            "Meta": type("Meta", (), {"app_label": "shop"}),
            "first": step(body),
            "broken": step(after="first")(body),
            **steps,
            "last": step(after=["broken", *names])(body),
        },
    )


@pytest.fixture
def failed():
    """A run with fifty siblings beside the step that failed it, an hour later."""
    with clock() as moving:
        run = many().start().run
        perform(claim(run, "first"))
        moving.move(timedelta(seconds=5))
        fail(claim(run, "broken"), error=Abort("out of stock"))
        moving.move(timedelta(hours=1))
        yield fresh(run)


def held(run_snapshot):
    return [step for step in run_snapshot.steps if step.is_on_hold]


def test_siblings_of_a_failed_step_are_on_hold_and_their_clocks_stand_still(failed):
    run_snapshot = snapshot.of(failed)
    steps = held(run_snapshot)
    assert len(steps) == SIBLINGS
    assert {step.status for step in steps} == {"queued"}, "the row says what it will be again"
    for beside in steps:
        assert timedelta(seconds=5) <= beside.waited(run_snapshot.now) < timedelta(seconds=8)
    assert not run_snapshot.step("last").is_on_hold, "it has not started at all"


def test_the_sentence_counts_what_stands_beside_and_names_what_comes_after(failed):
    assert summary(snapshot.of(failed)).endswith(
        "Abort: out of stock. 50 other steps are on hold, and later steps are blocked."
    )


def test_only_the_failed_step_has_buttons(failed):
    allowed = list(actions.allowed(snapshot.of(failed)))
    assert {step.name for _, step in allowed if step and step.name.startswith("beside")} == set()
    assert ("skip", "broken") in {(action.name, step.name) for action, step in allowed if step}


def test_the_page_shows_them_on_hold(failed, admin_client):
    url = reverse("admin:job_sequences_sequencerun_change", args=[failed.pk])
    page = admin_client.get(url).content.decode()
    table = page[page.index('<table class="seq-steps">') :]
    table = table[: table.index("</table>")]
    badges = re.findall(r'<span class="seq-state seq-(\w+)">([^<]*)</span>', table)
    assert badges.count(("paused", "on hold")) == SIBLINGS
    assert not [badge for badge in badges if "queued" in badge]


def test_text_mermaid_and_svg_say_the_same(failed):
    run_snapshot = snapshot.of(failed)
    for diagram in (diagrams.text, diagrams.mermaid):
        picture = diagram(run_snapshot.plan, marks_of(run_snapshot))
        assert picture.count("on hold") == SIBLINGS
        assert "queued" not in picture
    kinds = {lane.name: [span.kind for span in lane.spans] for lane in lanes_of(run_snapshot)}
    assert kinds["beside0"] == ["waited", "held"]


def test_a_small_picture_says_so_in_its_boxes():
    class Small(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self): ...

        @step
        def second(self): ...

    with clock():
        run = Small.start().run
        run.pause()
        picture = picture_of(snapshot.of(fresh(run)))
    assert "seq-paused" in picture
    assert "on hold" in picture
    assert "queued" not in picture


def test_the_command_line_says_the_same(failed):
    shown = command("show", failed.pk)
    assert shown.count("on hold") == SIBLINGS + 1  # the sentence, too
    assert "queued" not in shown
    steps = {
        step["name"]: step for step in json.loads(command("show", failed.pk, "--json"))["steps"]
    }
    assert steps["beside0"]["on_hold"] is True
    assert steps["beside0"]["waited"] < 8
    assert steps["last"]["on_hold"] is False
    assert command("graph", failed.pk).count("on hold") == SIBLINGS


def test_what_becomes_ready_during_a_pause_is_on_hold_from_then(failed):
    with clock() as moving:
        run = many().start().run
        work = claim(run, "first")
        run.pause()
        moving.move(timedelta(minutes=3))
        perform(work)
        moving.move(timedelta(minutes=3))
        run_snapshot = snapshot.of(fresh(run))
        beside = run_snapshot.step("beside0")
    assert beside.held_since == beside.row.ready_at
    assert beside.waited(run_snapshot.now) == timedelta(0)


def test_nothing_is_on_hold_after_it_was_resumed():
    with clock():
        run = many().start().run
        run.pause()
        fresh(run).resume()
        drain()
        assert held(snapshot.of(fresh(run))) == []
