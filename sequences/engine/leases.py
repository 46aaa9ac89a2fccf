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
class Lease:
    """A claimed step run in the hands of a thread of this process."""

    claim: Claim
    since: float = field(default_factory=time.monotonic)
    progress: str | None = None
    shown: str | None = None


_held: dict[int, Lease] = {}


@contextmanager
def held(claim: Claim) -> Iterator[Lease]:
    """While this lasts the claim's lease is extended. Costs a short step nothing."""
    lease = _held[claim.token] = Lease(claim)
    try:
        yield lease
    finally:
        _held.pop(claim.token, None)


def forget(token: int) -> None:
    """No lease of this claim is extended any more: an interrupt may have kept it from its end."""
    _held.pop(token, None)


def is_busy() -> bool:
    """Whether this process performs a step."""
    return bool(_held)


def beat(using: str) -> set[int]:
    """Extend the leases of the long ones, and store the progress of all that have some.

    Returns the tokens of those that were left out.
    """
    long_ago = time.monotonic() - conf.settings.heartbeat
    beats: dict[int, tuple[Lease, str | None]] = {}
    for lease in list(_held.values()):
        progress = lease.progress  # which its own thread may change at any time
        if lease.since <= long_ago or progress != lease.shown:
            beats[lease.claim.token] = lease, progress
    extended = _extend([_beat_of(*each) for each in beats.values()], using) if beats else set()
    for token in extended:
        lease, progress = beats[token]
        lease.shown = progress
    return beats.keys() - extended


def _beat_of(lease: Lease, progress: str | None) -> Beat:
    claim = lease.claim
    news = progress if progress != lease.shown else None
    return Beat(claim.step_run_id, claim.token, news)


def _extend(beats: list[Beat], using: str) -> set[int]:
    try:
        return claims.beat(beats, using)
    except DataError:  # of one progress: no lease depends on another's
        logger.exception("The progress of a step could not be stored.")
        leases = [Beat(each.step_run_id, each.token) for each in beats]
        return claims.beat(leases, using)
