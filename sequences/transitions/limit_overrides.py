"""Overrides of limits: different numbers, until someone ends the override."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext_noop as _

from ..exceptions import SequenceError, Text
from ..models import LimitOverride, StoredLimit
from . import clock
from .lines import check_soon
from .locking import transact


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a limit that are in force. None: there is no such limit."""

    concurrency: int | None
    rate: int | None
    per: timedelta | None


@dataclass(frozen=True, slots=True)
class OverrideRequest:
    """Who changes the numbers, and why."""

    by: str
    reason: str = ""
    #: The id of the override that the decision is based on, 0 for none. None: it does not matter.
    basis: int | None = None


def override(
    limit_id: int, numbers: Numbers, request: OverrideRequest, using: str
) -> LimitOverride:
    """Apply these numbers from now on, in every line of the limit."""
    return transact(using, lambda: _override(limit_id, numbers, request, using))


def _override(
    limit_id: int, numbers: Numbers, request: OverrideRequest, using: str
) -> LimitOverride:
    limit, now = _lock(limit_id, request, using), clock.now(using)
    _end(limit, request.by, now, using)
    row = LimitOverride._base_manager.using(using).create(
        limit=limit.name,
        concurrency=numbers.concurrency,
        rate=numbers.rate,
        per=numbers.per,
        by=request.by[:150],
        reason=request.reason,
        created_at=now,
    )
    _use(limit, row, now, using)
    return row


def reset(limit_id: int, request: OverrideRequest, using: str) -> None:
    """Return to the numbers in the code."""
    transact(using, lambda: _reset(limit_id, request, using))


def _reset(limit_id: int, request: OverrideRequest, using: str) -> None:
    limit, now = _lock(limit_id, request, using), clock.now(using)
    _end(limit, request.by, now, using)
    _use(limit, None, now, using)


def _lock(limit_id: int, request: OverrideRequest, using: str) -> StoredLimit:
    limit = StoredLimit._base_manager.using(using).select_for_update().get(pk=limit_id)
    if request.basis not in (None, limit.override_id or 0):
        text = _(
            "Limit %(limit)r has changed since you opened the page. Look at it again before you "
            "decide."
        )
        raise SequenceError(Text(text, limit=limit.name))
    return limit


def _end(limit: StoredLimit, by: str, now: datetime, using: str) -> None:
    rows = LimitOverride._base_manager.using(using).filter(limit=limit.name, ended_at=None)
    rows.update(ended_at=now, ended_by=by[:150])


def _use(limit: StoredLimit, row: LimitOverride | None, now: datetime, using: str) -> None:
    limit.override = row
    limit.save(using=using, update_fields=["override"])
    free = check_soon(limit.pk, now, using)
    numbers = row or limit
    if numbers.rate and numbers.per:  # a moment that the old rate had set far ahead
        first = now + numbers.per / numbers.rate
        free.filter(next_at__gt=first).update(next_at=first)
    else:
        free.filter(next_at__isnull=False).update(next_at=None)
