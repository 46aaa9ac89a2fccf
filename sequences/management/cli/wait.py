"""Waiting until a run has ended, or until the caller gives up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, connections

from ... import conf
from ...inspection import snapshot
from ...inspection.diagnosis import summary
from ...inspection.snapshot import RunSnapshot
from ...models import RunStatus, SequenceRun
from ...utils.durations import format_duration
from ...utils.terminal import plain
from .argtypes import duration
from .arguments import option
from .base import INTERRUPTED, OUTCOMES, TIMEOUT
from .selectors import runs

#: The time between two checks, at first and at most.
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 1.0
#: How long to wait for a database that is down, perhaps because it is being restarted.
MAX_OUTAGE_SECONDS = 60.0

FOR_HOW_LONG = option("--timeout", "stop waiting after this long", duration, "10m")

Look = Callable[[RunSnapshot], None]


def until_succeeded(run: SequenceRun, look: Look, *, timeout: timedelta | None) -> RunSnapshot:
    """Wait until the run has ended. Raises `CommandError` unless it has succeeded: with the exit
    status of its outcome, or with one of its own if the caller gives up."""
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    pause = MIN_PAUSE_SECONDS
    try:
        for run_snapshot in _looks(run, look):
            if run_snapshot is not None and run_snapshot.run.is_finished:
                return _succeeded(run_snapshot)
            rest = pause if deadline is None else deadline - time.monotonic()
            if rest <= 0:
                raise _given_up(run, f"has not finished within {format_duration(timeout)}", TIMEOUT)
            sleep(min(pause, rest))
            pause = min(pause * 1.5, MAX_PAUSE_SECONDS)
    except KeyboardInterrupt:
        raise _given_up(run, "is still running; stopped waiting", INTERRUPTED) from None
    raise AssertionError("not reached")


def _looks(run: SequenceRun, look: Look) -> Iterator[RunSnapshot | None]:
    """Read it for longer than a connection may last. None: the database is down."""
    away_since: float | None = None
    while True:
        try:
            run_snapshot = snapshot.of(_again(run))
            look(run_snapshot)
        except (OperationalError, InterfaceError) as error:
            _drop_broken_connection()
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if now - away_since > MAX_OUTAGE_SECONDS:
                why = f"can no longer be read: {error}".strip()
                raise _given_up(run, why, TIMEOUT) from error
            yield None
        else:
            away_since = None
            yield run_snapshot


def _drop_broken_connection() -> None:
    connection = connections[conf.using()]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def sleep(seconds: float) -> None:
    """Sleep between two checks."""
    time.sleep(seconds)


def _again(run: SequenceRun) -> SequenceRun:
    again = runs().filter(pk=run.pk).first()
    if again is None:
        raise CommandError(f"Run {run.pk} no longer exists; it was probably pruned.")
    return again


def _given_up(run: SequenceRun, why: str, status: int) -> CommandError:
    return CommandError(
        f"{plain(run)} {why}. It continues in the background; wait for it with `manage.py "
        f"sequences watch {run.pk}`.",
        returncode=status,
    )


def _succeeded(ended: RunSnapshot) -> RunSnapshot:
    run = ended.run
    if status := OUTCOMES[RunStatus(run.status)]:
        raise CommandError(
            f"{plain(run)} did not succeed. {plain(summary(ended))} Details: `manage.py "
            f"sequences show {run.pk} --tracebacks`.",
            returncode=status,
        )
    return ended
