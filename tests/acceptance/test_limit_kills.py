"""No place leaks, however many workers are killed: processes that need no time to boot."""

import os
import random
import signal
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import connections
from dramatiq.middleware import SkipMessage

from sequences import conf
from sequences.engine.executor import StepExecution
from sequences.models import Permit, SequenceRun, StepFailure, StepRun
from sequences.transitions import clock
from sequences.worker.sweeper import AssumeLost, sweep

from .app.sequences import Toll
from .test_limits import PLACES, inside_after, most_at_once
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

#: How many workers are killed: `LIMIT_KILLS=200` takes some minutes.
KILLS = int(os.environ.get("LIMIT_KILLS", "8"))


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book"
    path.touch()
    return path


def work(book):
    """Run what is queued, until somebody kills this process."""
    while True:
        rows = StepRun.objects.filter(status="queued", wake_at__isnull=False)
        pks = list(rows.values_list("pk", "attempts"))
        if not pks:
            time.sleep(0.005)
            continue
        pk, attempts = random.choice(pks)
        with suppress(SkipMessage):
            StepExecution(pk, attempts, "default").live()


def fork(book):
    connections["default"].close()  # or the child would share it
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        random.seed(os.getpid())
        work(book)
    finally:
        os._exit(1)


def bury(pid, book):
    """It is dead, and its leases are over."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with book.open("a") as pages:
        pages.write(f"x {pid} 0\n")
    rows = StepRun.objects.filter(status="running", worker__contains=f":{pid}:")
    rows.update(wake_at=clock.now(conf.using()) - timedelta(seconds=1))


def victim_of(crew, book):
    """One that is inside, and somewhere on its way there or out of it a moment later."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        *_, inside = ([], *inside_after(book.read_text()))
        if pids := sorted(set(inside) & set(crew)):
            time.sleep(random.choice([0, 0, 0.01, 0.03]))
            return random.choice(pids)
        time.sleep(0.002)
    return crew[0]


def test_no_place_leaks_however_many_workers_are_killed(transactional_db, settings, book):
    settings.SEQUENCES = {"MAX_LOST_WORKERS": 10_000}
    for _ in range(30):
        Toll(book=str(book), seconds=0.01)
    crew = [fork(book) for _ in range(4)]
    try:
        for _ in range(KILLS):
            victim = victim_of(crew, book)
            crew.remove(victim)
            bury(victim, book)
            crew.append(fork(book))
            sweep(AssumeLost(), "default")
            if SequenceRun.objects.unfinished().count() < 10:
                for _ in range(20):
                    Toll(book=str(book), seconds=0.01)

        def condition():
            StepRun.objects.filter(lost_workers__gt=0, status="queued").update(
                lost_workers=0
            )  # no suspects
            sweep(AssumeLost(), "default")
            return not SequenceRun.objects.unfinished().exists()

        wait_for(condition, "the end of all")
    finally:
        for pid in crew:
            bury(pid, book)
    signs = book.read_text()
    assert 0 < most_at_once(signs) <= PLACES
    assert signs.count("x") == KILLS + 4
    assert not list(StepFailure.objects.values_list("error", "message"))
    assert set(SequenceRun.objects.values_list("status", flat=True)) == {"succeeded"}
    assert not Permit.objects.exists()
