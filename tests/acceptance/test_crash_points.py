"""A worker that dies at any point leaves a run that another one brings to the same end."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from uuid import uuid4

import pytest
import redis
from django.db import connection

from sequences.models import OutboxMessage, SequenceRun
from testproject.databases import to_url
from tests.engine import is_postgresql

from .app.models import Entry

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(900),
    # Hundreds of runs: elsewhere each commit waits for the disk.
    pytest.mark.only_on("postgresql", "sqlite"),
]

HANDOFFS = ["acceptance.Booking", "acceptance.DirectBooking"]


def every(number):
    """Every so-many-th boundary; CRASH_EVERY=1 in the environment walks through all, for hours."""
    return f"--every={os.environ.get('CRASH_EVERY', number)}"


def die_everywhere(sequence, *arguments, **environment):
    """What `crashing` reports when it is run with these arguments."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.acceptance.crash_settings",
        "DATABASE_URL": to_url(connection.settings_dict),
        "REDIS_URL": "",
        "AMQP_URL": "",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.crashing", sequence, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def forget(redis_url, namespace):
    with redis.Redis.from_url(redis_url) as client:
        if keys := list(client.scan_iter(f"{namespace}*", count=1000)):
            client.delete(*keys)


def runs_by_boundary():
    return {run.data["k"]: run for run in SequenceRun.objects.filter(parent=None)}


def what_is_stored(run):
    """All that a step could have done twice, or not at all."""
    return {
        "status": run.status,
        "data": {key: value for key, value in run.data.items() if key != "k"},
        "commits": run.version,
        "steps": list(run.steps.order_by("pk").values_list("step", "status", "attempts", "result")),
        "failures": list(run.failures.values_list("step", "attempt")),
        "entries": list(
            Entry.objects.filter(run=run.pk).order_by("pk").values_list("step", "note")
        ),
    }


WHOLE = {
    "status": "succeeded",
    "data": {"log": ["quote", "reserve", "confirm"], "price": 7},
    "commits": 3,
    "steps": [
        ("quote", "succeeded", 0, {"price": 7}),
        ("reserve", "succeeded", 1, None),
        ("confirm", "succeeded", 0, None),
    ],
    "failures": [("reserve", 1)],
    "entries": [("reserve", "seat"), ("reserve", "meal")],
}


ENTRIES = [
    ("approve", ""),
    ("drive", ""),
    ("invite", "0"),
    ("invite", "1"),
    ("invite", "2"),
    ("pack", ""),
]
UNDONE = [("tell", "it rains"), *(("uninvite", f"{n}: {n * 10}") for n in range(3)), ("unpack", "")]
KEPT = {"begun": True, "approval": "yes"}
TOURS = {
    "acceptance.Tour": {
        "status": "succeeded",
        "data": KEPT | {"packed": True, "sum": 30},
        "entries": sorted([*ENTRIES, ("end", "")]),
    },
    "acceptance.FailedTour": {
        "status": "failed",
        "data": KEPT,
        "entries": sorted([*ENTRIES, *UNDONE]),
    },
}


def what_is_left_of_a_tour(run):
    """Its branches commit in any order, so only what must be the same in all of them."""
    data = {key: value for key, value in run.data.items() if key not in ("k", "log")}
    leg = data.pop("leg", {})
    entries = Entry.objects.filter(run=run.pk).values_list("step", "note")
    stored = {"status": run.status, "data": data, "entries": sorted(entries)}
    whole_leg = leg == {"tour": str(run.pk), "arrived": True}
    return stored if whole_leg else {**stored, "leg": leg}


def assert_nothing_is_lost_or_doubled(report, whole=WHOLE, what_is_left=what_is_stored):
    runs, wrong = runs_by_boundary(), {}
    for process in report["processes"]:
        k, passed = process["k"], process["passed"]
        if k in runs:
            stored = what_is_left(runs[k])
        else:  # a start that did not commit has left nothing at all
            stored = whole if "after _commit" not in names_of(passed) else "the run is lost"
        if stored != whole:
            wrong[k, *passed[-1]] = stored
    assert not wrong


def assert_died_wherever_a_whole_run_passes(report):
    whole = [process for process in report["processes"] if not process["died"]]
    assert whole
    passed = {tuple(boundary) for process in whole for boundary in process["passed"]}
    assert passed <= {tuple(boundary) for boundary in deaths_of(report)}


def deaths_of(report):
    return [process["passed"][-1] for process in report["processes"] if process["died"]]


def names_of(boundaries):
    return {name for _, name, _ in boundaries}


@pytest.mark.parametrize("sequence", HANDOFFS)
def test_a_worker_may_die_at_every_boundary(sequence):
    # The direct handoff shares most of its statements with the other.
    stride = 1 if is_postgresql() or sequence == "acceptance.Booking" else 3
    report = die_everywhere(sequence, every(stride))
    if stride == 1:
        assert_died_wherever_a_whole_run_passes(report)
    assert_nothing_is_lost_or_doubled(report)


def test_a_worker_may_die_at_every_boundary_of_a_step_that_is_awaited():
    report = die_everywhere("acceptance.AsyncBooking", every(5))
    assert {"reserve", "confirm"} <= {step for step, _, _ in deaths_of(report)}
    assert_nothing_is_lost_or_doubled(report)


def test_a_worker_may_die_at_every_boundary_of_every_path():
    report = die_everywhere("acceptance.Fickle")
    assert_died_wherever_a_whole_run_passes(report)
    assert {"long", "short"} <= {step for step, _, _ in deaths_of(report)}
    assert_nothing_is_lost_or_doubled(report, "succeeded", lambda run: run.status)


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("sequence", HANDOFFS)
def test_a_worker_may_die_at_every_boundary_of_the_portable_way(sequence):
    # The direct handoff shares most of its statements with the other.
    stride = every(3 if sequence == "acceptance.Booking" else 5)
    assert_nothing_is_lost_or_doubled(die_everywhere(sequence, stride, SEQUENCES_PORTABLE="1"))


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("sequence", "stride"), [("acceptance.Tour", 97), ("acceptance.FailedTour", 83)]
)
def test_a_worker_may_die_in_a_join_a_fan_out_a_wait_a_child_or_an_undo(sequence, stride):
    report = die_everywhere(sequence, every(stride))
    assert_nothing_is_lost_or_doubled(report, TOURS[sequence], what_is_left_of_a_tour)


UNDONE_HIKES = ["release 2", "release 1"]
OUTINGS = {
    "acceptance.FailedOuting": ("failed", [*UNDONE_HIKES, "unpack"]),
    "acceptance.CancelledOuting": ("cancelled", ["rest", "rise", *UNDONE_HIKES, "unpack"]),
}


def what_is_left_of_an_outing(run):
    """The hikes were under way side by side, and are taken back one after the other."""
    entries = Entry.objects.filter(run=run.pk).order_by("pk").values_list("step", flat=True)
    done, undone = list(entries)[:3], list(entries)[3:]
    hikes = SequenceRun.objects.filter(parent__run=run.pk).values_list("status", flat=True)
    return run.status, sorted(done), undone, list(hikes)


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("sequence", OUTINGS)
def test_a_worker_may_die_while_a_parent_undoes_its_children(sequence):
    status, undone = OUTINGS[sequence]
    done = ["pack", "reserve 1", "reserve 2"]
    whole = (status, done, undone, ["cancelled"] * 2)
    report = die_everywhere(sequence, every(97))
    assert_nothing_is_lost_or_doubled(report, whole, what_is_left_of_an_outing)


DETOUR = {
    "status": "succeeded",
    "data": {"log": ["collect", "collect", "collect", "mend", "end"]},
    "steps": {
        "collect": "succeeded",
        "deliver": "failed",
        "never": "skipped",
        "mend": "succeeded",
        "end": "succeeded",
    },
    "entries": [("collect", "")] * 3 + [("mend", "")],
}
KEPT_RUN = {
    "status": "succeeded",
    "data": {"log": [], "fails": [2]},
    "steps": {f"note{number}": "succeeded" for number in (1, 2, 3, 4)},
    "entries": [(f"note{number}", "") for number in (1, 2, 3, 4)],
}


def what_is_left(run):
    """Its branches commit in any order, and a commit may have been asked for twice."""
    return {
        "status": run.status,
        "data": {key: value for key, value in run.data.items() if key != "k"},
        "steps": dict(run.steps.values_list("step", "status")),
        "entries": sorted(Entry.objects.filter(run=run.pk).values_list("step", "note")),
    }


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(("sequence", "whole"), [("acceptance.Detour", DETOUR), ("kept", KEPT_RUN)])
def test_a_worker_may_die_in_a_repetition_a_detour_or_a_kept_definition(sequence, whole):
    report = die_everywhere(sequence, every(17))
    assert_nothing_is_lost_or_doubled(report, whole, what_is_left)


def test_the_workers_that_go_on_may_die_too_in_the_sweep_or_anywhere():
    report = die_everywhere("acceptance.Booking", every(7), "--deaths=6")
    assert report["deaths"] >= 4
    assert_nothing_is_lost_or_doubled(report)


@contextmanager
def server(kind, redis_url):
    """The environment of a broker that outlives its users."""
    name = f"crash-{uuid4().hex}"
    if kind == "redis":
        yield {"REDIS_URL": redis_url, "REDIS_NAMESPACE": name}
        forget(redis_url, name)
    else:
        yield {"BROKER": "postgres", "BROKER_SCHEMA": name}
        with connection.cursor() as cursor:
            cursor.execute(f'DROP SCHEMA "{name}" CASCADE')


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("kind", ["redis", "postgres"])
@pytest.mark.parametrize("sequence", HANDOFFS)
def test_a_worker_may_die_around_every_publish_and_acknowledge(sequence, kind, redis_url):
    with server(kind, redis_url) as environment:
        report = die_everywhere(sequence, every(40), **environment)
    died_at = names_of(deaths_of(report))
    assert {"before acknowledge of default", "after publish to default"} <= died_at
    assert_nothing_is_lost_or_doubled(report)


REGISTRATION = {
    "status": "succeeded",
    "data": {"log": ["create", "confirm"]},
    "created": 1,
    #: How many messages have come, however often each of them.
    "messages": 1,
}


def what_is_left_of_a_registration(run):
    entries = Entry.objects.filter(run=run.pk)
    return {
        "status": run.status,
        "data": {key: value for key, value in run.data.items() if key != "k"},
        "created": entries.filter(step="create").count(),
        "messages": entries.filter(step="welcome").values("note").distinct().count(),
    }


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_worker_may_die_before_in_and_after_the_commit_of_what_it_sends(kind, redis_url):
    with server(kind, redis_url) as environment:
        report = die_everywhere("acceptance.Registration", every(4), **environment)
    assert_nothing_is_lost_or_doubled(report, REGISTRATION, what_is_left_of_a_registration)
    assert not OutboxMessage.objects.exists()
    died_at = [name for name in names_of(deaths_of(report)) if "outbox" in name]
    # With the messages in the same database there is no outbox to die at.
    assert bool(died_at) is (kind == "redis")
    runs = len(runs_by_boundary())
    assert runs <= Entry.objects.filter(step="welcome").count() < 1.5 * runs
