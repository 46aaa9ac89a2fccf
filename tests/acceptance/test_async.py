"""Real workers whose steps wait in coroutines."""

import asyncio
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from .app.sequences import Awaiting, AwaitingLonger, Crawler
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

PAGES = 500


class Pages:
    """A server that answers each page when it has been asked for many, or after a second."""

    def __init__(self):
        self.busy = self.most = 0
        self.asked = []

    async def answer(self, reader, writer):
        page = int(await reader.readline())
        self.asked.append(page)
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(1 if page < 100 else 0.05)
        self.busy -= 1
        writer.write(f"{page}\n".encode())
        await writer.drain()
        writer.close()

    @contextmanager
    def served(self):
        """Its port."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self.answer, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            loop.close()


@pytest.fixture
def crew(hire):
    return hire("redis")


def ended(run):
    def condition():
        run.refresh_from_db()
        return run.is_finished

    wait_for(condition, f"the end of {run}")
    return run.status


def test_a_crawler_awaits_500_pages_in_one_worker_process(crew):
    (worker,) = crew.start(1, threads=2)
    pages = Pages()
    with pages.served() as port:
        run = Crawler(port=port, pages=PAGES).run
        wait_for(lambda: pages.busy >= 30, "many pages at once")
        processes = psutil.Process(worker.process.pid).children(recursive=True)
        assert max(process.num_threads() for process in processes) < 30
        assert ended(run) == "succeeded"
    assert sorted(pages.asked) == list(range(PAGES))  # each once
    assert run.data["sum"] == sum(range(PAGES))


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
