"""Logs one line when the database goes down and one when it is back, and nothing in between.

Every message, sweep and heartbeat fails meanwhile. Their work remains in the rows.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from django.db import Error, InterfaceError, OperationalError, connections

from ..transitions.locking import is_transient
from ..utils.durations import format_duration

logger = logging.getLogger("sequences")

_lock = threading.Lock()
#: Since when it has been down, by the monotonic clock; None: it is up.
_since: float | None = None


def noted(error: BaseException) -> bool:
    """Whether this error means that the database is down, which is then logged. False: another
    error."""
    global _since
    if not isinstance(error, OperationalError | InterfaceError) or is_transient(error):
        return False
    with _lock:
        is_news, _since = _since is None, _since or time.monotonic()
    if is_news:
        logger.error("The database is unavailable; retrying until it is back: %s", error)
    else:
        logger.debug("The database is unavailable: %s", error)
    return True


def is_away(error: BaseException, using: str) -> bool:
    """Whether the whole database failed, and not only a statement about one row."""
    connection = connections[using]
    return isinstance(error, Error) and (
        connection.connection is None or not connection.is_usable()
    )


def over() -> None:
    """Called when the database has just done something."""
    global _since
    if _since is None:
        return
    with _lock:
        since, _since = _since, None
    if since is not None:
        span = format_duration(timedelta(seconds=time.monotonic() - since))
        logger.warning("The database is available again, after %s.", span)
