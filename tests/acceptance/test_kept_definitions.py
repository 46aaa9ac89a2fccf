"""Definitions that are kept with their runs, performed by processes that have never seen them."""

import pytest

from sequences import chain, group, job, start_definition
from sequences.flows import jobs

from .app.sequences import QUEUE, noted
from .test_workers import ended, entries

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]

OPTIONS = {"queue_name": QUEUE, "min_backoff": 20, "max_backoff": 20}


def note(number, **keys):
    return noted.with_({"number": number}, name=f"note{number}", **OPTIONS, **keys)


def test_worker_processes_perform_what_only_the_start_has_seen(crew):
    composed = chain(note(1), group(chain(note(2), note(3, delay=200)), note(4)), note(5))
    sequence = start_definition(composed, {"fails": []}, name="composed")
    ended(sequence)
    assert sorted(entries(sequence)) == ["note1", "note2", "note3", "note4", "note5"]
    assert entries(sequence)[0] == "note1"
    assert entries(sequence)[-1] == "note5"


def test_the_options_of_a_step_reach_the_worker(crew):
    sequence = start_definition(
        chain(note(1, max_retries=2), note(2, max_retries=0)), {"fails": [1, 1, 2]}, name="failing"
    )
    ended(sequence, "failed")
    assert list(sequence.run.failures.values_list("step", flat=True)) == ["note1", "note1", "note2"]
    assert entries(sequence) == ["note1"]


def test_a_job_that_the_workers_do_not_have_is_a_failed_attempt(crew):
    with jobs.isolated():
        job("only_here")(lambda: None)
        definition = {"steps": {"x": {"job": "only_here", "max_retries": 1, **OPTIONS}}}
        sequence = start_definition(definition)
    ended(sequence, "failed")
    failures = sequence.run.failures.all()
    assert [one.error for one in failures] == ["sequences.exceptions.UnknownJob"] * 2
