import os
import subprocess
import sys
import threading
import time
import uuid
from unittest import mock

import pytest

from sequences.utils import uuid7 as uuid7_module
from sequences.utils.uuid7 import uuid7


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, and of which nobody has read the time."""
    monkeypatch.setattr(uuid7_module, "_make", uuid7_module.Uuid7Counter())
    with mock.patch.object(
        uuid7_module.time, "time_ns", return_value=1_700_000_000_000_000_000
    ) as now:
        yield now


def test_pythons_own_is_used_where_it_has_them():
    own = getattr(uuid, "uuid7", None)
    is_counter = isinstance(uuid7_module._make, uuid7_module.Uuid7Counter)
    assert uuid7_module._make is own if own else is_counter


@pytest.fixture(params=["Python's", "ours"])
def every_uuid7(request, monkeypatch):
    """What makes them in this Python, and what does in one that has none."""
    if request.param == "ours":
        monkeypatch.setattr(uuid7_module, "_make", uuid7_module.Uuid7Counter())
    return uuid7


def milliseconds(value):
    return value.int >> 80


def test_is_a_uuid_of_version_7_that_tells_the_time():
    before = time.time_ns() // 1_000_000
    value = uuid7()
    assert value.version == 7
    assert value.variant == "specified in RFC 4122"
    assert before <= milliseconds(value) <= time.time_ns() // 1_000_000 + 1


def test_each_is_greater_than_the_one_before(every_uuid7):
    made = [every_uuid7() for _ in range(5000)]
    assert made == sorted(set(made))


def test_within_one_millisecond_each_is_greater(clock):
    made = [uuid7() for _ in range(500)]
    assert made == sorted(set(made))
    assert {milliseconds(value) for value in made} == {1_700_000_000_000}


def test_a_clock_set_back_changes_nothing(clock):
    first = uuid7()
    clock.return_value -= 3_600_000_000_000
    assert uuid7() > first


def test_a_full_counter_borrows_from_the_next_millisecond(clock):
    uuid7()
    uuid7_module._make.counter = (1 << uuid7_module.COUNTER_BITS) - 2
    last, borrowed = uuid7(), uuid7()
    assert borrowed > last
    assert milliseconds(borrowed) == milliseconds(last) + 1


def test_threads_never_get_the_same_one_nor_go_backwards(every_uuid7):
    made = [[] for _ in range(4)]

    def make(mine):
        mine.extend(every_uuid7() for _ in range(2000))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({value for mine in made for value in mine}) == 8000
    assert all(mine == sorted(mine) for mine in made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_a_counter_and_a_lock_of_its_own():
    script = """
import os
from sequences.utils import uuid7
first = uuid7.uuid7()
uuid7._lock.acquire()
child = os.fork()
if not child:
    assert uuid7.uuid7() != first
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
