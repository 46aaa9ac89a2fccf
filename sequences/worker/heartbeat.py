"""The thread of a worker process that extends its leases."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .. import conf
from ..engine import outages
from ..engine.leases import beat, beating
from .registration import WorkerRegistration, close_all

logger = logging.getLogger("sequences")


class HeartbeatThread(threading.Thread):
    """Beats until it is stopped, which is after the worker has: its last steps are still
    running."""

    def __init__(self, registration: WorkerRegistration) -> None:
        super().__init__(name="sequences-heartbeat", daemon=True)
        self._registration = registration
        self._stopped = threading.Event()

    def run(self) -> None:
        # Twice per HEARTBEAT, so that a step gets its lease extended before it has run for two of
        # them.
        with beating():
            while not self._stopped.wait(conf.settings.heartbeat / 2):
                self._try(self._beat)
                self._try(self._registration.beat)
        self._try(self._registration.end)
        close_all()

    def _beat(self, using: str) -> None:
        self._registration.leaves_out(beat(using))

    def _try(self, part: Callable[[str], None]) -> None:
        # Whatever happens, it must keep beating: otherwise, every long step loses its lease.
        try:
            part(conf.using())
        except Exception as error:
            if not outages.noted(error):
                logger.exception("The heartbeat failed; it will be tried again.")
            close_all()

    def stop(self) -> None:
        """Stop beating, and wait until this process is no longer registered as running."""
        self._stopped.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=5)
