"""Each process has one place for a step whose last worker was lost.

The row says which step is a suspect, and the process knows what it is executing. If an interrupt
prevents a step from giving up the place, `recovery.recover` does so.
"""

from __future__ import annotations

import logging
import threading

from django.db import Error

from ..transitions import losses
from . import dispatcher, leases

logger = logging.getLogger("sequences")

_lock = threading.Lock()
#: The token of the claim that has the place.
_holder: int | None = None


def enter(token: int, *, alone: bool) -> bool:
    """Take the place. False: another suspect has it, or this one must run alone and would not."""
    global _holder
    with _lock:
        if _holder is not None or (alone and leases.is_busy()):
            return False
        _holder = token
        return True


def leave(token: int) -> bool:
    """Give up the place. False: this claim did not have it."""
    global _holder
    with _lock:
        if _holder != token:
            return False
        _holder = None
        return True


def call_next(using: str) -> None:
    """There is room again: dispatch a waiting suspect, sooner than the sweep would."""
    try:
        suspect = losses.next_suspect(using)
    except Error as error:  # the sweep dispatches it, too
        logger.debug("Could not check which step run kills workers: %r", error)
        return
    if suspect is not None:
        dispatcher.send([suspect])
