"""What the sweep finds: step runs whose `wake_at` has come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import connections
from django.db.models import F, QuerySet

from ..exceptions import SequenceError
from ..models import StepRun, StepStatus
from . import plans, times
from .locks import transact
from .values import Dispatch, dispatch_of

logger = logging.getLogger("sequences")

#: Rows of one transaction of the sweep.
BATCH = 500
#: The longest time between two looks at a queued row, and between two dispatches of it.
LONGEST = timedelta(minutes=5)

#: Decides whether the message of a row, dispatched at a time to this queue, is lost by another.
#: None: who asks does not see that queue.
IsLost = Callable[[str, datetime, datetime], bool | None]


@dataclass(slots=True)
class Due:
    """One batch of them."""

    #: Whose lease has run out.
    expired: list[StepRun] = field(default_factory=list)
    #: To be dispatched: for the first time, or again.
    dispatches: list[Dispatch] = field(default_factory=list)
    #: All rows to be dispatched, for what is to be known of them beside their messages.
    rows: list[StepRun] = field(default_factory=list)
    #: Those that wait for their items or children, to be looked after.
    waiting: list[StepRun] = field(default_factory=list)
    #: Whether more may be due.
    more: bool = False


def take(is_lost: IsLost, using: str) -> Due:
    """Move on what is due, so that no other sweep takes it for now."""
    return transact(using, lambda: _take(is_lost, using))


def _take(is_lost: IsLost, using: str) -> Due:
    now = times.now(using)
    rows = list(_locked(now, using))
    due = Due(more=len(rows) == BATCH)
    for row in rows:
        _sort(row, due, is_lost, now, using)
    StepRun._base_manager.using(using).bulk_update(
        [row for row in rows if row.status != StepStatus.RUNNING],
        ["status", "wake_at", "queued_at", "dispatches"],
    )
    return due


def _locked(now: datetime, using: str) -> QuerySet[StepRun]:
    rows = StepRun._base_manager.using(using).filter(wake_at__lte=now)
    rows = rows.select_related("run").order_by("wake_at")
    features = connections[using].features
    of = ("self",) if features.has_select_for_update_of else ()
    skip = features.has_select_for_update_skip_locked
    return rows.select_for_update(skip_locked=skip, of=of)[:BATCH]


def _sort(row: StepRun, due: Due, is_lost: IsLost, now: datetime, using: str) -> None:
    if row.status == StepStatus.RUNNING:
        due.expired.append(row)
        return
    try:
        plan = plans.load(row.run.plan_id, using)
    except SequenceError as error:
        # A later release's plan: that release's workers sweep too.
        logger.warning("Step run %s waits for a worker that reads its plan: %s", row.pk, error)
        row.wake_at = now + times.grace()
        return
    if row.kind in ("each", "subsequence") and row.status == StepStatus.WAITING and row.payload:
        due.waiting.append(row)
        row.wake_at = now + min(max(times.grace(), now - row.queued_at), LONGEST)
        return
    if row.status == StepStatus.WAITING:
        row.status, row.queued_at, row.dispatches = StepStatus.QUEUED, now, 0
        lost: bool | None = True
    else:
        lost = is_lost(plan.node(row.step).queue, _sent_at(row), now)
    if lost:
        row.wake_at = now + min(times.grace() * 2**row.dispatches, LONGEST)
        due.rows.append(row)
        due.dispatches.append(dispatch_of(row, plan))
    elif lost is None:
        # Soon again, until a worker of that queue is the first to look.
        row.wake_at = now + times.grace()
    else:
        # Its message waits in a long queue: look again when it has waited as long once more.
        row.wake_at = now + min(max(times.grace(), now - row.queued_at), LONGEST)


def _sent_at(row: StepRun) -> datetime:
    """When its message could be had: a retry's is, when the retry is due."""
    return max(row.queued_at, row.due_at or row.queued_at)


def accepted(step_run_ids: Iterable[int], using: str) -> None:
    """The broker has taken messages for these: the next dispatch waits twice as long."""
    rows = StepRun._base_manager.using(using).filter(
        pk__in=list(step_run_ids),
        status__in=(StepStatus.QUEUED, StepStatus.RETRYING),
        dispatches__lt=10,
    )
    # Many rows at once: an act on one of their runs may hold them in another order.
    transact(using, lambda: rows.update(dispatches=F("dispatches") + 1))
