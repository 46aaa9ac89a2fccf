"""The field's own examples, brought over, on a real worker."""

import pytest

import sequences
from sequences import chain, group, start_definition
from sequences.flows import jobs
from sequences.models import SequenceRun, StepRun
from sequences.transitions import plans

from .app.field_examples import (
    KIQCHESTRA,
    Chord,
    FieldContactForm,
    Group,
    Pipeline,
    Search,
)
from .app.gates import Gate
from .app.models import Entry
from .workers import SETTINGS, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


@pytest.fixture
def crew(standing_crew, transactional_db, settings):
    """One worker process for all of them, which consumes what an ordinary one does."""
    settings.SEQUENCES = SETTINGS
    plans.forget()
    if not standing_crew.workers:
        standing_crew.start(1, threads=4, queues=["default"])
    with standing_crew:
        yield standing_crew
    standing_crew.show()


pytestmark.append(pytest.mark.usefixtures("crew"))


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def notes(sequence, step=None):
    """What the steps have written down, in the order of their commits."""
    rows = Entry.objects.filter(run=sequence.run.pk).order_by("pk")
    rows = rows.filter(step=step) if step else rows
    return list(rows.values_list("step", "note"))


def ended(sequence, status="succeeded"):
    """Wait until the run has ended so; returns its data."""

    def condition():
        sequence.run.refresh_from_db()
        return sequence.run.is_finished

    wait_for(condition, f"the end of {sequence.run}")
    failures = [f"{one}: {one.message}" for one in sequence.run.failures.all()]
    assert sequence.run.status == status, failures
    return sequence.run.data


def row(sequence, step):
    return StepRun.objects.get(run=sequence.run.pk, step=step, item=-1)


def began_after(sequence, later, *earlier):
    """Whether a step was queued only when all of the others had ended."""
    begin = row(sequence, later).queued_at
    return all(row(sequence, one).finished_at <= begin for one in earlier)


def test_sidekiq_sequence():
    sequence = FieldContactForm(name="Joel", github="joelmoss")
    data = ended(sequence)
    assert data == {
        "name": "Joel",
        "github": "joelmoss",
        "message": "Joel (joelmoss)",
        "team": "those who know Joel (joelmoss)",
    }
    assert notes(sequence) == [
        ("create_message", ""),
        ("assign_message", ""),
        ("send_message", "to those who know Joel (joelmoss)"),
    ]
    assert sequence.run.failures.get().message == "the mail server is down"


def test_kiqchestra():
    flow = start_definition(KIQCHESTRA, name="kiqchestra")
    ended(flow)
    assert sorted(notes(flow)) == [
        ("a_job", "6"),
        ("b_job", "9"),
        ("c_job", "6"),
        ("d_job", "13"),
    ]
    assert began_after(flow, "b_job", "a_job")
    assert began_after(flow, "c_job", "a_job")
    assert began_after(flow, "d_job", "b_job", "c_job")
    progress = {one.step: one.progress for one in flow.run.steps.all()}
    assert progress["a_job"] == {"done": 3, "total": 3, "text": "added 3"}
    assert {name: (one["done"], one["total"]) for name, one in progress.items()} == {
        "a_job": (3, 3),
        "b_job": (2, 2),
        "c_job": (1, 1),
        "d_job": (2, 2),
    }


def task(number, **keys):
    return jobs.get("workflow_task").with_({"number": number}, name=f"task_{number}", **keys)


def test_sidekiq_workflow_and_dramatiq_workflow():
    flow = start_definition(
        chain(
            task(1),
            group(
                chain(task(2), task(5)),
                task(3, delay=200),
                chain(task(4), group(task(6), task(7), delay=300)),
            ),
            task(8),
        )
    )
    ended(flow)
    assert sorted(note for _, note in notes(flow)) == list("12345678")
    for later, earlier in [
        (2, [1]), (3, [1]), (4, [1]), (5, [2]), (6, [4]), (7, [4]), (8, [5, 3, 6, 7]),
    ]:  # fmt: skip
        names = [f"task_{number}" for number in earlier]
        assert began_after(flow, f"task_{later}", *names)
    for number, wait in [(3, 0.2), (6, 0.3), (7, 0.3)]:
        waited = row(flow, f"task_{number}")
        before = row(flow, "task_1" if number == 3 else "task_4")
        assert (waited.started_at - before.finished_at).total_seconds() >= wait


def test_typed_input_and_output_and_a_memory_that_fills_the_arguments():
    load, halve, show = (jobs.get(f"workflow_{name}") for name in ("load", "halve", "show"))
    flow = start_definition(
        chain(
            load.with_(save="picture"),
            halve.with_({"times": 2}, save="picture"),
            show.with_(save="shown"),
        ),
        {"name": "a cat"},
    )
    data = ended(flow)
    assert data["picture"] == {"name": "a cat", "width": 200}
    assert data["shown"] == "a cat: 200"


def test_a_template_with_defaults_and_one_value_of_its_own():
    flow = sequences.get("acceptance.Digest").start({"address": "joel@example.com"})
    data = ended(flow)
    assert data["language"] == "en"
    assert data["digest"] == "To joel@example.com: en-0, en-1"


def test_orchis():
    flow = sequences.get("acceptance.ReadSite")(site="example.com")
    data = ended(flow)
    assert data["report"] == "example.com: One, Two, Three; 9 words"
    assert data["first"] == "example.com/one"
    children = SequenceRun.objects.filter(parent__run=flow.run.pk)
    assert [child.sequence for child in children] == ["acceptance.ReadPage"] * 3
    assert began_after(flow, "report", "titles", "pages")


def test_distribot():
    sequence = Search(terms=["cats", "dogs"])
    ended(sequence)
    pages = [f"{term}/{number}" for term in ("cats", "dogs") for number in (1, 2)]
    assert sorted(note for _, note in notes(sequence, "search")) == ["cats", "dogs"]
    for handler in ("fetch_pages", "fetch_pictures"):
        assert sorted(note for _, note in notes(sequence, handler)) == pages
        assert began_after(sequence, handler, "search")
    assert notes(sequence)[-1] == ("finished", "")
    assert not sequence.run.failures.exists()


def test_distribot_goes_into_a_phase_for_errors_that_mails():
    sequence = Search(terms=["cats", "nothing"])
    ended(sequence)
    assert [name for name, _ in notes(sequence)] == ["pending", "search", "error"]
    assert notes(sequence)[-1] == ("error", "mail: search")
    assert row(sequence, "fetch_pages").status == "skipped"


def test_distribot_pauses_and_resumes(gate):
    sequence = Search(terms=["cats", "dogs"], gate=str(gate))
    wait_for(lambda: len(gate.visitors()) == 2, "both tasks of the handler")
    sequence.run.pause(by="ann")
    gate.open()
    # What is under way commits, and nothing new begins, though the worker has time for others.
    wait_for(lambda: row_count(sequence, "search", "succeeded") == 2)
    ended(Search(terms=["birds"]))
    begun = sequence.run.steps.filter(started_at__isnull=False)
    assert set(begun.values_list("step", flat=True)) == {"pending", "search"}
    sequence.run.resume(by="ann")
    ended(sequence)
    assert notes(sequence)[-1] == ("finished", "")


def test_distribot_cancels(gate):
    sequence = Search(terms=["cats", "dogs"], gate=str(gate))
    wait_for(lambda: len(gate.visitors()) == 2, "both tasks of the handler")
    sequence.run.cancel(by="ann", reason="nobody waits for it")
    gate.open()
    ended(sequence, "cancelled")
    after = Search(terms=["birds"])
    ended(after)
    assert notes(sequence) == [("pending", "")]
    assert sequence.run.operations.get().action == "cancel"


def row_count(sequence, step, status):
    return StepRun.objects.filter(
        run=sequence.run.pk, step=step, item__gte=0, status=status
    ).count()


def test_dramatiq_pipelines_and_groups_and_a_celery_chain():
    pipeline, side_by_side = Pipeline(x=1, y=2), Group()
    assert ended(pipeline)["result"] == 12
    assert ended(side_by_side)["results"] == [3, 10]
    assert began_after(side_by_side, "completed", "first", "second")


def test_a_celery_chord():
    assert ended(Chord(pairs=[[number, number] for number in range(20)]))["total"] == 380
