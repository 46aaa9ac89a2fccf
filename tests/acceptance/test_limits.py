"""Limits on real workers, by the effects' own records, whatever dies."""

from itertools import pairwise
from statistics import median

import pytest

from sequences.models import Permit, StepRun

from .app.sequences import Delayed, Metered, Toll
from .test_orchestration import lateness
from .test_workers import ended
from .workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

PLACES = 2


def inside_after(text):
    """Who is inside after each sign, in the order in which they were written.

    ``x`` is a process that was killed, and is in nothing any more.
    """
    inside = []
    for line in text.splitlines():
        sign, pid, *_ = line.split()
        if sign == "+":
            inside = [*inside, int(pid)]
        elif sign == "-":
            inside = list(inside)
            inside.remove(int(pid))
        else:
            inside = [other for other in inside if other != int(pid)]
        yield inside


def most_at_once(text):
    return max(map(len, inside_after(text)))


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book"
    path.touch()
    return path


def test_never_more_at_once_on_real_workers_and_all_come_to_their_turn(hire, book):
    crew = hire()
    crew.start(2, threads=3)
    runs = [Toll(book=str(book), seconds=0.1) for _ in range(12)]
    wait_for(lambda: book.read_text().count("-") >= 3)
    row = wait_for(lambda: StepRun.objects.filter(status="running").first())
    crew.performer(row).kill()
    with book.open("a") as pages:
        pages.write(f"x {row.worker.split(':')[1]} 0\n")
    for run in runs:
        ended(run)
    assert 0 < most_at_once(book.read_text()) <= PLACES
    assert not Permit.objects.exists()


def metered(book):
    """When each of ten had its moment, was claimed, and began: those that waited for a moment."""
    book.write_text("")
    for run in Metered.start_many([{"book": str(book)}] * 10):
        ended(run)
    times = sorted(tuple(map(float, line.split())) for line in book.read_text().splitlines())
    assert len(times) == 10
    return [each for each in times if each[0]]


def test_a_rate_is_kept_as_precisely_as_short_delays_are(crew, book):
    """By the database's clock, beside short delays that the same workers wait for."""
    for _ in range(3):  # the machine may be busy with something else
        delayed = Delayed()
        times = metered(book)
        usual = median(lateness(delayed)).total_seconds()
        moments = [moment for moment, *_ in times]
        assert all(later - earlier > 0.2499 for earlier, later in pairwise(moments))
        assert all(claimed >= moment - 0.0501 for moment, claimed, _ in times)  # EARLY
        assert all(began >= moment - 0.06 for moment, _, began in times)
        late = median(claimed - moment for moment, claimed, _ in times)
        if late < min(usual + 0.05, 0.1):
            break
    assert late < min(usual + 0.05, 0.1), (late, usual)
