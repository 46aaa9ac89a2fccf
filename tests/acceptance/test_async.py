"""Real workers whose steps wait in coroutines."""

from pathlib import Path

import pytest

from .app.sequences import Awaiting, AwaitingLonger
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


@pytest.fixture
def crew(hire):
    return hire()


def ended(run):
    def condition():
        run.refresh_from_db()
        return run.is_finished

    wait_for(condition, f"the end of {run}")
    return run.status


def begun(cls, book):
    run = cls(book=str(book)).run
    wait_for(lambda: book.exists() and book.read_text().endswith("\n"), "a coroutine that waits")
    return run, Path(f"{book}-cleaned")


def test_a_time_limit_stops_a_coroutine_that_waits(crew, tmp_path):
    crew.start(1)
    run, cleaned = begun(Awaiting, tmp_path / "book")
    assert ended(run) == "failed"
    assert run.failures.get().error.endswith("TimeLimitExceeded")
    assert cleaned.exists()


def test_a_shutdown_stops_a_coroutine_that_waits_and_another_worker_takes_its_step(crew, tmp_path):
    (worker,) = crew.start(1)
    run, cleaned = begun(AwaitingLonger, tmp_path / "book")
    worker.terminate()
    wait_for(lambda: not worker.is_alive(), "the end of the worker")
    assert cleaned.exists()
    own = run.steps.get()
    assert (own.status, own.attempts) == ("queued", 0)
    run.cancel()
