"""Real workers in whose steps somebody cancels the run."""

import time

import psutil
import pytest

from sequences.testing import assert_steps

from .app.sequences import Rendering
from .workers import SETTINGS, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


def begun(book):
    """The run, and the subprocess of its step."""
    run = Rendering(book=str(book)).run
    wait_for(lambda: book.exists() and book.read_text().endswith("\n"), "a subprocess")
    return run, psutil.Process(int(book.read_text()))


def ended(run):
    def condition():
        run.refresh_from_db()
        return run.is_finished

    wait_for(condition, f"the end of {run}")
    return run.status


@pytest.mark.parametrize("undo", [False, True])
def test_a_cancelled_subprocess_dies_within_a_heartbeat(crew, tmp_path, undo):
    run, process = begun(tmp_path / "book")
    cancelled_at = time.monotonic()
    run.cancel(undo=undo)
    wait_for(lambda: not process.is_running(), "the death of the subprocess")
    # As much again for a machine that is busy with other things.
    assert time.monotonic() - cancelled_at < 2 * SETTINGS["HEARTBEAT"]
    assert ended(run) == "cancelled"
    undos = [("remove", "succeeded")] if undo else []
    assert_steps(
        run,
        [("render", "cancelled"), *undos, ("tell", "succeeded"), ("close", "succeeded")],
    )
    assert not run.failures.exists()
