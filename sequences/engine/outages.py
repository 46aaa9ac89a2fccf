"""While the database is away: one line when it goes, one when it is back, and none between.

Every message, sweep and heartbeat meets it meanwhile. What they do not get done is in the rows.
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
#: Since when it is away, by the monotonic clock; None: it is there.
_since: float | None = None


def noted(error: BaseException) -> bool:
    """Whether this error is that the database is away, and was said. False: it is another one."""
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
    """Whether it is the whole database that fails, and not what one row asked of it."""
    connection = connections[using]
    return isinstance(error, Error) and (
        connection.connection is None or not connection.is_usable()
    )


def over() -> None:
    """The database has just done what it was asked for."""
    global _since
    if _since is None:
        return
    with _lock:
        since, _since = _since, None
    if since is not None:
        span = format_duration(timedelta(seconds=time.monotonic() - since))
        logger.warning("The database is available again, after %s.", span)
