"""Until a run has ended, or nobody waits any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from django.core.management.base import CommandError

from .. import portrait
from ..durations import duration
from ..models import RunStatus, SequenceRun
from ..portrait import Portrait
from ..summary import summary
from .finding import runs
from .tasks import INTERRUPTED, OUTCOMES, TIMEOUT

#: Seconds between two looks, at first and at most.
SHORTEST, LONGEST = 0.1, 1.0

Look = Callable[[Portrait], None]


def until_ended(
    run: SequenceRun, look: Look | None, *, timeout: timedelta | None, interval: float | None = None
) -> Portrait:
    """Look at it until it has ended. Raises `CommandError` with another status if nobody waits."""
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    pause = interval or SHORTEST
    try:
        while True:
            found = portrait.of(_again(run))
            if look is not None:
                look(found)
            if found.run.is_finished:
                return found
            left = pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise _left(run, f"has not ended within {duration(timeout)}", TIMEOUT)
            sleep(min(pause, left))
            pause = interval or min(pause * 1.5, LONGEST)
    except KeyboardInterrupt:
        raise _left(run, "is not waited for any more", INTERRUPTED) from None


def sleep(seconds: float) -> None:
    """Between two looks."""
    time.sleep(seconds)


def _again(run: SequenceRun) -> SequenceRun:
    found = runs().filter(pk=run.pk).first()
    if found is None:
        raise CommandError(f"Run {run.pk} is gone: somebody has pruned it.")
    return found


def _left(run: SequenceRun, why: str, status: int) -> CommandError:
    return CommandError(
        f"{run} {why}. It goes on: `manage.py sequences watch {run.pk}` waits for it.",
        returncode=status,
    )


def outcome(ended: Portrait) -> None:
    """Nothing, if it has succeeded; else raises `CommandError` with the status that tells how."""
    run = ended.run
    if status := OUTCOMES[RunStatus(run.status)]:
        raise CommandError(
            f"{run} has not succeeded. {summary(ended)} "
            f"More: `manage.py sequences show {run.pk} --tracebacks`.",
            returncode=status,
        )
