"""Workers of one release beside those of another, with runs in flight."""

from datetime import timedelta

import pytest

from sequences.definitions import registry
from sequences.inspection import old_workers, snapshot
from sequences.inspection.diagnosis import summary
from sequences.models import SequenceRun, StoredPlan, WorkerProcess
from sequences.testing import assert_steps

from .app.gates import Gate
from .app.models import Entry
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


@pytest.fixture
def crew(hire):
    return hire(GRACE=1.5)


def start(gate):
    """As a web process of the first release does: this process is one."""
    return registry.get("acceptance.Order").start({"gate": str(gate)}).run


def start_elsewhere(crew, release, gate):
    """As a web process of another release does."""
    pk = crew.start_run("acceptance.Order", release, gate=str(gate))
    return SequenceRun.objects.get(pk=pk)


def ended(run, status="succeeded"):
    def condition():
        run.refresh_from_db()
        return run.is_finished

    wait_for(condition, f"the end of {run}")
    failures = [f"{one}: {one.message}" for one in run.failures.all()]
    assert run.status == status, failures


def entries(run):
    return list(Entry.objects.filter(run=run.pk).order_by("pk").values_list("step", flat=True))


def test_an_old_worker_that_gets_a_new_step_leaves_it_to_a_new_one(crew, gate, monkeypatch):
    gate.open()
    (old,) = crew.start(1, release="1")
    wait_for(StoredPlan.objects.filter(sequence="acceptance.Order").exists)
    run = start_elsewhere(crew, "2", gate)
    wait_for(lambda: crew.dead_letters() >= 2, "the new step's message, and its repetition")
    assert_steps(run, [("reserve", "succeeded"), ("charge", "succeeded"), ("pack", "queued")])
    for waits in ("PICKUP_TIME", "STORING_TIME"):
        monkeypatch.setattr(old_workers, waits, timedelta(0))
    wait_for(WorkerProcess.objects.filter(swept_at__isnull=False).exists)
    assert "they may be running older code" in summary(snapshot.of(run))
    crew.start(1, release="2")
    old.terminate()
    ended(run)
    assert entries(run) == run.data["log"] == ["reserve", "charge", "pack", "ship"]
    assert not run.failures.exists()
    assert set(run.steps.values_list("attempts", "lost_workers")) == {(0, 0)}


def test_a_run_of_the_old_release_keeps_its_shape_on_new_workers(crew, gate):
    crew.start(1, release="2")
    run = start(gate)
    ended(run)
    assert entries(run) == run.data["log"] == ["reserve", "charge", "ship"]


def test_runs_in_flight_survive_new_names_and_the_loss_of_a_step_is_told(crew, gate):
    (first,) = crew.start(1, release="1")
    runs = [start(gate) for _ in range(2)]
    wait_for(lambda: len(gate.visitors()) == 2)
    # Both stand in `charge`, which is interrupted by the deploy of a release that calls it `pay`.
    (third,) = crew.start(1, release="3")
    first.terminate()
    for run in runs:
        ended(run, "failed")
        assert_steps(run, [("reserve", "succeeded"), ("charge", "succeeded"), ("ship", "failed")])
        failure = run.failures.get()
        assert failure.error == "sequences.exceptions.UnknownStep"
        assert "'ship'" in failure.message
        assert "acceptance.Purchase" in failure.message
    skipped, retried = runs
    skipped.skip("ship", reason="it is gone", by="ops")
    ended(skipped)
    assert entries(skipped) == skipped.data["log"] == ["reserve", "charge"]
    crew.start(1, release="4")
    third.terminate()
    third.process.wait(60)
    retried.retry(by="ops")
    ended(retried)
    assert entries(retried) == retried.data["log"] == ["reserve", "charge", "ship"]
    assert list(retried.operations.values_list("action", "by")) == [("retry", "ops")]
