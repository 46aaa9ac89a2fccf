"""Steps that kill their worker processes, and those that were only in hand beside them."""

import threading
import time
from contextlib import contextmanager

import pytest

from sequences.inspection import health
from sequences.models import SequenceRun, StepRun

from .app.gates import Gate
from .app.sequences import Deadly, KillsLater, KillsOnce, Long, Tiny
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

QUICK = {"GRACE": 2, "LEASE": 2, "HEARTBEAT": 0.6}


@contextmanager
def kept_running(crew, threads):
    """One worker at a time, and another in its place as soon as it has died."""
    ends = threading.Event()

    def keep():
        while not ends.wait(0.1):
            if not crew.workers[-1].is_alive():
                crew.start(1, threads=threads)

    crew.start(1, threads=threads)
    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield
    finally:
        ends.set()
        keeper.join()


def step_runs(sequences):
    return StepRun.objects.filter(run__in=[one.run.pk for one in sequences])


def have_ended(sequences):
    runs = SequenceRun.objects.filter(pk__in=[one.run.pk for one in sequences])
    return lambda: not runs.unfinished().exists()


def deaths(sequences):
    return [list(one.run.losses.values_list("concurrent_steps", flat=True)) for one in sequences]


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


@pytest.mark.parametrize(
    ("kind", "count"), [("redis", 4), ("amqp", 4), ("postgres", 4), ("redis", 10)]
)
def test_steps_that_kill_their_worker_once_all_succeed_in_the_end(hire, gate, kind, count):
    crew = hire(kind, **QUICK)
    sequences = [KillsOnce(gate=str(gate)) for _ in range(count)]
    with kept_running(crew, threads=4):
        wait_for(lambda: len(gate.visitors()) == 4)
        gate.open()
        wait_for(have_ended(sequences), limit=180)
    assert set(step_runs(sequences).values_list("status", "lost_workers")) == {("succeeded", 0)}
    first = [beside for one in deaths(sequences) for beside in one if len(beside) == 3]
    assert len(first) >= 4, "four died together, and each has the other three"


def test_only_the_step_that_kills_its_workers_by_itself_fails(hire, gate, tmp_path):
    crew = hire(**QUICK)
    deadly_gate = Gate(tmp_path / "deadly")
    innocent = [Long(gate=str(gate)) for _ in range(7)]
    poison = KillsLater(gate=str(deadly_gate))
    everybody = [*innocent, poison]
    with kept_running(crew, threads=8):
        wait_for(lambda: len(gate.visitors()) == 7 and deadly_gate.visitors())
        deadly_gate.open()
        wait_for(lambda: not crew.workers[0].is_alive())
        gate.open()
        wait_for(have_ended(everybody), limit=180)
    assert set(step_runs(innocent).values_list("status", flat=True)) == {"succeeded"}
    row = step_runs([poison]).get()
    assert (row.status, row.lost_workers) == ("failed", 3)
    assert poison.run.failures.get().error == "sequences.exceptions.WorkerLost"
    first, *others = deaths([poison])[0]
    assert {one["run"] for one in first} == {str(one.run.pk) for one in innocent}
    assert others == [[], []], "and then it died alone"


def test_steps_that_were_never_lost_are_not_held_up_and_people_see_whom_to_suspect(hire, gate):
    crew = hire(**QUICK)
    suspects = [Long(gate=str(gate)) for _ in range(3)]
    crew.start(1, threads=4)
    wait_for(lambda: len(gate.visitors()) == 3)
    crew.workers[-1].kill()
    crew.start(1, threads=4)
    rows = step_runs(suspects)
    wait_for(lambda: rows.filter(lost_workers=1).count() == 3)
    wait_for(lambda: rows.filter(status="running").count() == 1)
    others = [Tiny() for _ in range(20)]
    wait_for(have_ended(others), limit=10)
    # Two are offered again and again meanwhile, and the process has no room for them.
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        assert rows.filter(status="running").count() == 1
        time.sleep(0.1)
    (sign,) = [sign for sign in health.read().signs if sign.name == "suspects"]
    assert sign.says == "3 steps have lost their workers"
    for one in suspects:
        said = f"“goes_on” of run {one.run.pk}: Lost 1 worker, which was also running “goes_on”"
        assert said in sign.advice
    gate.open()
    wait_for(have_ended(suspects), limit=20)
    assert len(gate.visitors()) == 6
    assert [sign.name for sign in health.read().signs if sign.name == "suspects"] == []


def test_a_step_that_always_dies_alone_fails_at_the_third_death(hire):
    crew = hire(**QUICK)
    poison = Deadly()
    with kept_running(crew, threads=2):
        wait_for(have_ended([poison]))
    assert deaths([poison]) == [[[], [], []]]
    assert poison.run.failures.get().message.startswith("Step 'kills' of run")
