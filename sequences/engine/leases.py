"""A step that runs for long keeps its lease by its worker's heartbeat, and shows its progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import DataError

from .. import conf
from ..transitions import claims
from ..transitions.types import Beat, Claim

logger = logging.getLogger("sequences")


@dataclass(slots=True)
class Performance:
    """A claimed step run in the hands of a thread of this process."""

    claim: Claim
    since: float = field(default_factory=time.monotonic)
    progress: str | None = None
    shown: str | None = None


_performing: dict[int, Performance] = {}


@contextmanager
def performing(claim: Claim) -> Iterator[Performance]:
    """While this lasts the claim's lease is extended. Costs a short step nothing."""
    performance = _performing[claim.token] = Performance(claim)
    try:
        yield performance
    finally:
        _performing.pop(claim.token, None)


def forget(token: int) -> None:
    """No lease of this claim is extended any more: an interrupt may have kept it from its end."""
    _performing.pop(token, None)


def is_busy() -> bool:
    """Whether this process performs a step."""
    return bool(_performing)


def beat(using: str) -> set[int]:
    """Extend the leases of the long ones, and store the progress of all that have some.

    Returns the tokens of those that were left out.
    """
    long_ago = time.monotonic() - conf.settings.heartbeat
    beats: dict[int, tuple[Performance, str | None]] = {}
    for performance in list(_performing.values()):
        progress = performance.progress  # which its own thread may change at any time
        if performance.since <= long_ago or progress != performance.shown:
            beats[performance.claim.token] = performance, progress
    extended = _extend([_beat_of(*each) for each in beats.values()], using) if beats else set()
    for token in extended:
        performance, progress = beats[token]
        performance.shown = progress
    return beats.keys() - extended


def _beat_of(performance: Performance, progress: str | None) -> Beat:
    claim = performance.claim
    news = progress if progress != performance.shown else None
    return Beat(claim.step_run_id, claim.token, news)


def _extend(beats: list[Beat], using: str) -> set[int]:
    try:
        return claims.beat(beats, using)
    except DataError:  # of one progress: no lease depends on another's
        logger.exception("The progress of a step could not be stored.")
        leases = [Beat(each.step_run_id, each.token) for each in beats]
        return claims.beat(leases, using)
