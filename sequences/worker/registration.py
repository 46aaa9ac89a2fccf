"""Each process that runs steps or sweeps registers itself in the database.

This is for the health display only: the engine does not depend on it.
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
    """Close this thread's connections. Never raises, because the thread must continue."""
    with suppress(Exception):  # a connection that cannot even be closed
        connections.close_all()


class WorkerRegistration:
    """The registration of this process. One thread calls `beat` and `end`; any may call `swept`."""

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
        # Containers that use their host's name can have the same process ids, too.
        self._is_known = bool(name)
        self._since = time.monotonic()
        self._swept: float | None = None
        self._reported: float | None = None
        self._unextended_claims: Collection[int] = ()
        self._fails = False

    def swept(self) -> None:
        """A sweep of this process has finished successfully."""
        if self._swept is None:
            self._reported = None  # the first one is news
        self._swept = time.monotonic()

    def leaves_out(self, tokens: Collection[int]) -> None:
        """This process runs the steps of these claims, but could not extend their leases."""
        if tokens or self._unextended_claims:
            self._reported = None  # sweeps of other processes must know it at once
        self._unextended_claims = tokens

    def beat(self, using: str) -> None:
        """Update the row, unless that was done recently. Never raises."""
        if self._reported is None or time.monotonic() - self._reported >= REPORT_INTERVAL_SECONDS:
            self._reported = time.monotonic()
            self._try(self._tell, using)

    def end(self, using: str) -> None:
        """Write that the process has stopped. Never raises."""
        if self._is_known:
            self._try(lambda using: processes.stopped(self._name, self._last_sweep, using), using)

    @property
    def _last_sweep(self) -> timedelta | None:
        return None if self._swept is None else _ago(self._swept)

    def _tell(self, using: str) -> None:
        swept = self._last_sweep
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
            with no_wait():  # the same thread extends leases
                act(using)
        except Exception as error:
            # Once, not every few seconds: the table may not exist yet.
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
