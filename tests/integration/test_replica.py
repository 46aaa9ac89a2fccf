"""A project with a read replica that lags: what hangs on a run is read where the run is."""

import sqlite3

import pytest
from django.db import connections
from django.test import override_settings

from sequences import Sequence, step
from sequences.models import SequenceRun, StepRun
from sequences.testing import drain
from tests.models import Parcel

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])


class Router:
    """Reads from the replica, whatever is read, as many a project's router does."""

    def db_for_read(self, model, **hints):
        return "replica"

    def db_for_write(self, model, **hints):
        return "default"


@pytest.fixture
def _replica(tmp_path):
    """A database of the same kind of rows, and none of them: it lags."""
    path = tmp_path / "replica.sqlite3"
    sqlite3.connect(path).close()
    connections.databases["replica"] = {
        **connections.databases["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {},
    }
    with override_settings(DATABASE_ROUTERS=["tests.integration.test_replica.Router"]):
        yield
    del connections.databases["replica"]


def of_a_run(run):
    return {
        "key": run.key,
        "status": run.status,
        "plan": run.plan.sequence,
        "steps": [row.step for row in run.steps.order_by("pk")],
        "count": run.steps.filter(step="look").count(),
        "failures": list(run.failures.values_list("step", flat=True)),
        "operations": run.operations.exists(),
    }


@pytest.mark.usefixtures("_replica")
def test_the_object_that_a_run_is_about_is_read_where_it_is_written():
    class Looking(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def look(self):
            self.data["name"] = self.subject.name

    parcel = Parcel.objects.create(name="book")
    run = Looking.start(subject=parcel).run
    drain()
    run.refresh_from_db(using="default")
    assert run.data == {"name": "book"}
    assert run.subject == parcel
    assert [row.subject for row in Looking.runs.prefetch_related("subject")] == [parcel]
    assert list(Looking.runs.about(parcel)) == [run]


@pytest.mark.usefixtures("_replica")
def test_a_step_reads_its_run_and_step_run_where_they_are():
    class Looking(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def look(self):
            self.data["run"] = of_a_run(self.run)
            self.data["status"] = self.step_run.status
            self.data["key"] = self.step_run.run.key
            self.data["children"] = self.step_run.children.count()

    run = Looking.start({}, key="k").run
    drain()
    expected = {
        "key": "k",
        "status": "running",
        "plan": "shop.Looking",
        "steps": ["look"],
        "count": 1,
        "failures": [],
        "operations": False,
    }
    stored = SequenceRun.objects.using("default").get(pk=run.pk)
    assert stored.data == {"run": expected, "status": "running", "key": "k", "children": 0}
    assert stored.status == "succeeded"


@pytest.mark.usefixtures("_replica")
def test_whoever_has_a_run_reads_what_hangs_on_it_where_it_is():
    class Looking(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def look(self): ...

    sequence = Looking.start({}, key="k")
    assert of_a_run(sequence.run)["steps"] == ["look"]
    sequence.run.pause(by="ada")
    sequence.run.refresh_from_db()
    assert sequence.run.status == "paused"
    assert sequence.run.operations.get().run.key == "k"
    found = Looking.runs.prefetch_related("steps__run").get()
    assert [row.run.key for row in found.steps.all()] == ["k"]
    (row,) = StepRun.objects.using("default").filter(run=found.pk)
    assert row.run.key == "k"
    assert row.run.plan.sequence == "shop.Looking"
    only = StepRun.objects.using("default").only("pk").get(pk=row.pk)
    assert only.status == "queued"


@pytest.mark.usefixtures("_replica")
def test_a_question_that_hangs_on_no_run_is_the_routers():
    assert SequenceRun.objects.all().db == "replica"
    assert SequenceRun._base_manager.all().db == "replica"
    assert SequenceRun(pk=None).steps.model is StepRun
    read_there = SequenceRun(id=SequenceRun().id)
    read_there._state.db = "replica"
    assert read_there.steps.all().db == "replica"
    assert read_there.steps.using("default").db == "default"
