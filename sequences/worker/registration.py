"""Each process that runs steps or sweeps registers itself in the database.

That is for people who look at it: nothing that is done to runs depends on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta
from secrets import token_hex

from django.db import connections

from ..engine import current, outages
from ..transitions import processes
from ..transitions.locking import no_wait
from ..transitions.processes import REPORT_INTERVAL_SECONDS, ProcessReport

logger = logging.getLogger("sequences")


def close_all() -> None:
    """Close what this thread has of connections. Never raises: its thread is to go on."""
    with suppress(Exception):  # of one that cannot even be closed
        connections.close_all()


class WorkerRegistration:
    """Of this process. One thread calls `beat` and `end`; any may call `swept`."""

    def __init__(
        self,
        threads: int = 0,
        queues: Callable[[], Collection[str]] = tuple,
        name: str = "",
        dead_threads: Callable[[], int] = int,
    ) -> None:
        self._threads, self._dead_threads = threads, dead_threads
        self._queues = queues
        self._name = name or current.process()
        # Containers that have their host's name have processes of the same numbers, too.
        self._is_known = bool(name)
        self._since = time.monotonic()
        self._swept: float | None = None
        self._reported: float | None = None
        self._unextended_claims: Collection[int] = ()
        self._fails = False

    def swept(self) -> None:
        """A sweep of this process has ended well."""
        if self._swept is None:
            self._reported = None  # the first is news
        self._swept = time.monotonic()

    def leaves_out(self, tokens: Collection[int]) -> None:
        """It is running the steps of these claims, and could not extend their leases."""
        if tokens or self._unextended_claims:
            self._reported = None  # those who sweep are to know it at once
        self._unextended_claims = tokens

    def beat(self, using: str) -> None:
        """Tell that it is there, if that was not told lately. Never raises."""
        if self._reported is None or time.monotonic() - self._reported >= REPORT_INTERVAL_SECONDS:
            self._reported = time.monotonic()
            self._try(self._tell, using)

    def end(self, using: str) -> None:
        """It ends, and nobody need wonder where it is. Never raises."""
        if self._is_known:
            self._try(lambda using: processes.gone(self._name, using), using)

    def _tell(self, using: str) -> None:
        swept = None if self._swept is None else _ago(self._swept)
        queues = tuple(self._queues())
        report = ProcessReport(
            self._name, queues, self._threads, self._dead_threads(), _ago(self._since), swept,
            self._is_known, tuple(self._unextended_claims),
        )  # fmt: skip
        if not processes.register(report, using):
            self._name = f"{current.process()}~{token_hex(2)}"
            self._reported = None
            return
        self._is_known = True
        if swept is not None:
            processes.forget(using)

    def _try(self, act: Callable[[str], None], using: str) -> None:
        try:
            with no_wait():  # leases are extended by the same thread
                act(using)
        except Exception as error:
            # Once, and not every few seconds: the table may not be there yet.
            if not self._fails and not outages.noted(error):
                logger.warning("Could not register this worker process: %s", error)
            self._fails = True
            with suppress(Exception):
                connections[using].close_if_unusable_or_obsolete()
        else:
            outages.over()
            self._fails = False


def _ago(moment: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - moment)
