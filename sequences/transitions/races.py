"""The first of several steps counts: what an `any_of` no longer needs is skipped.

In the transaction that decides it. A step that is running meanwhile finds its row changed when it
commits, and rolls back.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from ..definitions.plan import Plan
from ..models import SequenceRun, StepStatus
from . import compensation, starts
from .limits import clear_on_commit
from .runs import steps_of, unfinished
from .types import Dispatch, new_row


def settle(
    run: SequenceRun,
    plan: Plan,
    states: dict[str, str],
    now: datetime,
    using: str,
    *,
    delivered: Collection[str] = (),
) -> tuple[dict[str, str], list[Dispatch]]:
    """Skip the steps that have lost; return the new statuses. The run is locked.

    Also returns what to dispatch for children that are cancelled with them. ``delivered``: the
    event that now has its payload, and is past its own delay and `when`.
    """
    nodes = plan.lost(states, delivered) if plan.races else ()
    if not nodes:
        return states, []
    names = [node.name for node in nodes]
    ended = {"status": StepStatus.SKIPPED, "finished_at": now}
    ready = compensation.cancel_children(steps_of(run, using).filter(step__in=names), now, using)
    rows = unfinished(run, using).filter(step__in=names)
    rows.update(**ended, token=None, wake_at=None, due_at=None)
    missing = [node for node in nodes if node.name not in states]
    starts.insert([new_row(run.pk, node, now, None, **ended) for node in missing], using)
    clear_on_commit(run.pk, using)
    return {**states, **dict.fromkeys(names, StepStatus.SKIPPED.value)}, ready
