"""A step that runs for long keeps its lease by its worker's heartbeat, and shows its progress."""

from __future__ import annotations

import logging
import time

from django.db import DataError

from .. import conf
from ..transitions import claims
from ..transitions.types import Beat
from . import current
from .current import CurrentAttempt

logger = logging.getLogger("sequences")


def forget(token: int) -> None:
    """No lease of this claim is extended any more: an interrupt may have kept it from its end."""
    current.attempts.pop(token, None)


def is_busy() -> bool:
    """Whether this process executes a step."""
    return bool(current.attempts)


def beat(using: str) -> set[int]:
    """Extend the leases of the long ones, and store the progress of all that have some.

    Returns the tokens of those that were left out.
    """
    long_ago = time.monotonic() - conf.settings.heartbeat
    beats: dict[int, tuple[CurrentAttempt, str | None]] = {}
    for attempt in list(current.attempts.values()):
        progress = attempt.latest_progress  # which its own thread may change at any time
        if attempt.since <= long_ago or progress != attempt.stored_progress:
            beats[attempt.claim.token] = attempt, progress
    extended = _extend([_beat_of(*each) for each in beats.values()], using) if beats else set()
    for token in extended:
        attempt, progress = beats[token]
        attempt.stored_progress = progress
    return beats.keys() - extended


def _beat_of(attempt: CurrentAttempt, progress: str | None) -> Beat:
    claim = attempt.claim
    unstored = progress if progress != attempt.stored_progress else None
    return Beat(claim.step_run_id, claim.token, unstored)


def _extend(beats: list[Beat], using: str) -> set[int]:
    try:
        return claims.beat(beats, using)
    except DataError:  # of one progress: no lease depends on another's
        logger.exception("Could not store the progress of a step.")
        leases = [Beat(each.step_run_id, each.token) for each in beats]
        return claims.beat(leases, using)
