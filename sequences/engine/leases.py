"""The worker's heartbeat extends the leases of long steps, and stores their progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from django.db import DataError

from .. import conf
from ..transitions import claims
from ..transitions.types import Beat
from . import current
from .current import CurrentAttempt

logger = logging.getLogger("sequences")


def forget(token: int) -> None:
    """Extend the lease of this claim no longer: an interrupt may have prevented its end."""
    current.attempts.pop(token, None)


def is_busy() -> bool:
    """Whether this process is executing a step."""
    return bool(current.attempts)


def beat(using: str) -> set[int]:
    """Extend the leases of long attempts, and store all new progress.

    Returns the tokens of those that were left out.
    """
    long_ago = time.monotonic() - conf.settings.heartbeat
    beats: dict[int, tuple[CurrentAttempt, str | None]] = {}
    for attempt in list(current.attempts.values()):
        progress = attempt.latest_progress  # its own thread may change it at any time
        is_long = attempt.since <= long_ago or attempt.is_watched
        if is_long or progress != attempt.stored_progress:
            beats[attempt.claim.token] = attempt, progress
    extended = _extend([_beat_of(*each) for each in beats.values()], using) if beats else set()
    for token in extended:
        attempt, progress = beats[token]
        attempt.stored_progress = progress
    unextended = beats.keys() - extended
    _find_ended([each for each, _ in beats.values()], unextended, using)
    return unextended


def _find_ended(attempts: list[CurrentAttempt], unextended: Collection[int], using: str) -> None:
    """Mark attempts that were cancelled. A row that is only locked was left out, not cancelled."""
    asking = {
        each.claim.token: each
        for each in attempts
        if not each.is_over and (each.is_watched or each.claim.token in unextended)
    }
    if asking:
        for token in claims.over([each.claim for each in asking.values()], using):
            asking[token].is_over = True
            if (stop := asking[token].stop) is not None:
                stop()


def is_over(attempt: CurrentAttempt, using: str) -> bool:
    """Whether the attempt was cancelled, as of the last heartbeat.

    Without a heartbeat in this process, as in tests, it queries the database.
    """
    attempt.is_watched = True
    if not attempt.is_over and not _hearts and not _is_in_a_loop():
        attempt.is_over = bool(claims.over([attempt.claim], using))
    return attempt.is_over


def _is_in_a_loop() -> bool:
    """Whether this is called from a coroutine, which cannot query the database."""
    return asyncio._get_running_loop() is not None


#: The number of heartbeats in this process: one per worker.
_hearts: list[object] = []


@contextmanager
def beating() -> Iterator[None]:
    """While this lasts, a heartbeat extends the leases of this process."""
    heart = object()
    _hearts.append(heart)
    try:
        yield
    finally:
        _hearts.remove(heart)


def _beat_of(attempt: CurrentAttempt, progress: str | None) -> Beat:
    claim = attempt.claim
    unstored = progress if progress != attempt.stored_progress else None
    return Beat(claim.step_run_id, claim.token, unstored)


def _extend(beats: list[Beat], using: str) -> set[int]:
    try:
        return claims.beat(beats, using)
    except DataError:  # each progress on its own: no lease may depend on another attempt's progress
        logger.exception("Could not store the progress of a step.")
        leases = [Beat(each.step_run_id, each.token) for each in beats]
        return claims.beat(leases, using)
