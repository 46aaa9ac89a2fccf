"""Whether runs are traced, checked at each start and attempt. If so, `telemetry` does the work.

OpenTelemetry is an extra, so it is imported only if ``SEQUENCES["TELEMETRY"]`` is true.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from .. import conf
from ..definitions.plan import Plan
from ..transitions.types import Start
from .current import CurrentAttempt

logger = logging.getLogger("sequences")

_NOTHING = nullcontext()


def starting(plan: Plan, requests: Sequence[Start]) -> AbstractContextManager[None]:
    """Around the INSERT of these runs, which it may give a `traceparent`."""
    telemetry = _load() if conf.settings.telemetry else None
    return telemetry.starting(plan, requests) if telemetry else _NOTHING


def attempt(current_attempt: CurrentAttempt) -> AbstractContextManager[None]:
    """Around an attempt of a step, from its claim to its commit."""
    telemetry = _load() if conf.settings.telemetry else None
    return telemetry.attempt(current_attempt) if telemetry else _NOTHING


@cache
def _load() -> Any:
    try:
        from . import telemetry
    except Exception as error:  # whatever is wrong with it, runs must continue
        logger.error("SEQUENCES['TELEMETRY'] is True, but nothing is traced: %s", error)
        return None
    return telemetry
