"""What the sweep finds: step runs whose `wake_at` has passed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import DatabaseError, connections
from django.db.models import F, Q, QuerySet

from ..exceptions import SequenceError
from ..models import UNFINISHED_STEP, StepRun, StepStatus, Wait
from . import clock, plans
from .locking import lock_free, transact
from .periods import MAX_LOOK_INTERVAL
from .types import Dispatch, dispatch_of

logger = logging.getLogger("sequences")

#: Rows per transaction of the sweep.
ROWS_PER_TRANSACTION = 500

#: Decides whether a message is lost, given its queue, when it was dispatched, and the current time.
#: None: the caller does not see that queue.
IsLost = Callable[[str, datetime, datetime], bool | None]
#: Whether that decision is based on evidence, for the steps of this actor.
Knows = Callable[[str], bool]
#: Where a batch ended, in order of time: its last time and id.
Place = tuple[datetime, int]


def guesses(actor: str) -> bool:
    """Never: there is no evidence about any actor."""
    return False


@dataclass(slots=True)
class Due:
    """One batch of due step runs."""

    #: Rows whose leases have expired.
    expired: list[StepRun] = field(default_factory=list)
    #: Steps to dispatch: for the first time, or again.
    dispatches: list[Dispatch] = field(default_factory=list)
    #: All rows to dispatch, for the information that their messages lack.
    rows: list[StepRun] = field(default_factory=list)
    #: Rows that wait for their items or children, to be checked.
    waiting: list[StepRun] = field(default_factory=list)
    #: When these rows, by their ids, were due to be checked.
    times: dict[int, datetime] = field(default_factory=dict)
    #: Where this batch ended, if more may be due.
    more: Place | None = None


def take(
    is_message_lost: IsLost, using: str, *, knows: Knows = guesses, after: Place | None = None
) -> Due:
    """Postpone what is due, so that no other sweep takes it for now.

    A row that another transaction has locked keeps its time, for the next sweep. ``after``: only
    rows after this place, so that a sweep does not meet again what it has left unchanged.
    """
    return transact(using, lambda: _take(is_message_lost, knows, after, using))


def _take(is_message_lost: IsLost, knows: Knows, after: Place | None, using: str) -> Due:
    now = clock.now(using)
    rows = list(_locked(now, after, using))
    due = Due(times={row.pk: row.wake_at for row in rows if row.wake_at})
    if len(rows) == ROWS_PER_TRANSACTION:
        due.more = due.times[rows[-1].pk], rows[-1].pk
    for row in rows:
        _sort(row, due, is_message_lost, knows, now, using)
    StepRun._base_manager.using(using).bulk_update(
        [row for row in rows if row.status != StepStatus.RUNNING],
        ["status", "wake_at", "queued_at", "dispatches"],
    )
    return due


def _locked(now: datetime, after: Place | None, using: str) -> QuerySet[StepRun]:
    rows = StepRun._base_manager.using(using).filter(wake_at__lte=now)
    if after is not None:
        moment, pk = after
        rows = rows.filter(wake_at__gte=moment).filter(Q(wake_at__gt=moment) | Q(pk__gt=pk))
    rows = rows.select_related("run").order_by("wake_at", "pk")
    features = connections[using].features
    of = ("self",) if features.has_select_for_update_of else ()
    skip = features.has_select_for_update_skip_locked
    return rows.select_for_update(skip_locked=skip, of=of)[:ROWS_PER_TRANSACTION]


def _sort(
    row: StepRun, due: Due, is_message_lost: IsLost, knows: Knows, now: datetime, using: str
) -> None:
    if row.status == StepStatus.RUNNING:
        due.expired.append(row)
        return
    try:
        plan = plans.load_of(row.run.sequence, row.run.plan_id, using)
        node = plan.node(row.step)
    except SequenceError as error:
        # A later release's plan; that release's workers sweep, too.
        logger.warning(
            "Step %s of run %s is waiting for a worker that can read its plan: %s",
            row.step, row.run_id, error,
        )  # fmt: skip
        row.wake_at = now + clock.grace()
        return
    except DatabaseError:
        raise
    except Exception:  # of a plan that someone has written by hand, or removed
        logger.exception("The plan of step %s of run %s cannot be read.", row.step, row.run_id)
        row.wake_at = now + clock.grace()
        return
    if _waits_for_others(row):
        due.waiting.append(row)
        row.wake_at = now + min(max(clock.grace(), now - row.queued_at), MAX_LOOK_INTERVAL)
        return
    if row.status == StepStatus.WAITING:
        row.status, row.queued_at, row.dispatches = StepStatus.QUEUED, now, 0
        lost: bool | None = True
    else:
        lost = is_message_lost(node.queue, _sent_at(row), now)
    if lost:
        row.wake_at = now + (clock.grace() if knows(node.actor) else _pause(row))
        due.rows.append(row)
        due.dispatches.append(dispatch_of(row, plan))
    elif lost is None:
        # Soon again, until a worker of that queue gets to check it first.
        row.wake_at = now + clock.grace()
    else:
        # Its message waits in a long queue: check again when it has waited as long once more.
        row.wake_at = now + min(max(clock.grace(), now - row.queued_at), MAX_LOOK_INTERVAL)


def _pause(row: StepRun) -> timedelta:
    """The pause until the next dispatch, if nobody sees what happened to the last one."""
    return min(clock.grace() * (1 << row.dispatches), MAX_LOOK_INTERVAL)


def _waits_for_others(row: StepRun) -> bool:
    """Whether it waits for its items or children; if it has ended, for their rollback."""
    is_open = row.status in UNFINISHED_STEP and row.status != StepStatus.WAITING
    return row.wait in (Wait.ITEMS, Wait.CHILDREN) and not is_open


def _sent_at(row: StepRun) -> datetime:
    """Since when its message could be received: for a retry, since the retry was due.

    If the sweep has sent it again, that was a grace before `wake_at` at the latest: evidence that
    the first message was lost proves nothing about the second.
    """
    sent_at = max(row.queued_at, row.due_at or row.queued_at)
    if not row.dispatches or row.wake_at is None:
        return sent_at
    return max(sent_at, row.wake_at - clock.grace())


def put_off(row: StepRun, using: str) -> None:
    """Check this row later: it could not be handled now, for a reason that may last."""
    later = clock.now(using) + clock.grace()
    transact(using, lambda: _move(row, later, using))


def put_back(row: StepRun, wake_at: datetime, using: str) -> None:
    """Leave this row to the next sweep, with its old time: another transaction has locked its
    run."""
    transact(using, lambda: _move(row, wake_at, using))


def _move(row: StepRun, wake_at: datetime, using: str) -> None:
    rows = StepRun._base_manager.using(using)
    rows = rows.filter(pk=row.pk, status=row.status, token=row.token, wake_at=row.wake_at)
    rows.filter(pk__in=lock_free(rows, using)).update(wake_at=wake_at)


def accepted(step_run_ids: Iterable[int], using: str) -> None:
    """The broker has accepted messages for these rows: the next dispatch waits twice as long."""
    rows = StepRun._base_manager.using(using).filter(
        pk__in=list(step_run_ids),
        status__in=(StepStatus.QUEUED, StepStatus.RETRYING),
        dispatches__lt=10,
    )
    # A locked row keeps its count.
    transact(using, lambda: _count(rows, using))


def _count(rows: QuerySet[StepRun], using: str) -> None:
    rows.filter(pk__in=lock_free(rows, using)).update(dispatches=F("dispatches") + 1)
