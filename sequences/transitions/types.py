"""What goes into transitions and what comes out of them: plain values."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from ..definitions.plan import COMPENSATION_KINDS, Node, Plan
from ..models import NO_ITEM, StepRun, StepStatus, Wait
from ..utils.uuid7 import uuid7


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A message to be sent: this step run may be claimed."""

    step_run_id: int
    run_id: UUID
    actor: str
    queue: str
    attempts: int = 0
    delay: int | None = None  # milliseconds
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(slots=True)
class Claim:
    """A step run that this worker holds, as long as its token stands in the row."""

    step_run_id: int
    run_id: UUID
    sequence: str
    plan_id: int
    step: str
    item: int
    kind: str
    token: int
    attempts: int
    repeats: int
    delayed: bool
    ready_at: datetime.datetime
    due_at: datetime.datetime | None
    now: datetime.datetime  # of the database, when it was claimed
    data: str  # as JSON
    version: int
    wait: str = ""  # what it waited for last, one of `Wait`
    payload: Any = None  # of an item: the item; of the undo of one: it, and its result
    worker: str = ""
    trace: str = ""  # of the run, as W3C's traceparent
    lost: int = 0  # workers that died in it, one after the other

    @property
    def is_item(self) -> bool:
        """Whether it is one item of a fan-out."""
        return self.kind == "item"

    @property
    def is_compensation(self) -> bool:
        """Whether only a failure begins it: an undo, or `on_failure`."""
        return self.kind in COMPENSATION_KINDS

    @property
    def first_due(self) -> datetime.datetime:
        """When its first attempt was due: after a delay. Later ones have a time of their own."""
        return self.ready_at if self.attempts or self.due_at is None else self.due_at


@dataclass(slots=True)
class Start:
    """A run that somebody wants: its data is checked already."""

    data: dict[str, Any]
    text: str  # the same, as JSON
    key: str | None = None
    unique: str = "ever"
    delay: datetime.timedelta | None = None
    parent: int | None = None
    trace: str = ""
    id: UUID = field(default_factory=uuid7)
    #: The run that holds its key, and that it gets in place of one of its own.
    found: UUID | None = None

    @property
    def name(self) -> tuple[str, str]:
        """What it must share with another run to find that one. Empty without a key."""
        return (self.key or "", self.unique)


class StartedStep(NamedTuple):
    """A first step of a run that was inserted just now."""

    run_id: UUID
    step_run_id: int
    step: str
    now: datetime.datetime


@dataclass(frozen=True, slots=True)
class Beat:
    """A claim whose lease is to be extended, and its progress as JSON if that is new."""

    step_run_id: int
    token: int
    progress: str | None = None


@dataclass(frozen=True, slots=True)
class FanOut:
    """How many items there are, and how many may be in flight."""

    total: int
    window: int


@dataclass(slots=True)
class Change:
    """What a performed step asks to be committed."""

    status: str = "succeeded"
    #: The whole of `data` as JSON, or None if the step left it as it was.
    data: str | None = None
    #: `data` as the step found it and as it left it, for the merge with what others did.
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    result: str | None = None
    progress: str | None = None
    #: Succeed the whole run now.
    finish: bool = False
    #: Run again, at this time or so long after the commit.
    again: datetime.datetime | datetime.timedelta | None = None
    #: Whether that is a new beginning, and not the wait before the first.
    repeat: bool = False
    #: The event's time is over. A delivery that comes before the commit counts all the same.
    timed_out: bool = False
    #: Wait for the event of this step, until `again` if that is a time.
    receive: bool = False
    #: Wait for so many children, whose first messages are these.
    children: int | None = None
    dispatches: list[Dispatch] = field(default_factory=list)
    #: Wait for the items of a fan-out.
    items: FanOut | None = None


class ClaimLost(Exception):
    """The token is not ours any more, or the run has ended: nothing may be stored."""


def wait_for(wait: Wait, now: datetime.datetime) -> dict[str, Any]:
    """The values of a row that begins to wait."""
    return {"status": StepStatus.WAITING, "wait": wait, "waiting_since": now}


def dispatch_of(row: StepRun, plan: Plan, delay: int | None = None) -> Dispatch:
    """The message for this row."""
    node = plan.node(row.step)
    return Dispatch(row.pk, row.run_id, node.actor, node.queue, row.attempts, delay, node.options)


def new_row(
    run_id: UUID,
    node: Node,
    now: datetime.datetime,
    wake_at: datetime.datetime | None,
    **values: Any,
) -> StepRun:
    """A step run that has just become ready."""
    return StepRun(
        run_id=run_id,
        step=node.name,
        item=NO_ITEM,
        kind=node.kind,
        ready_at=now,
        queued_at=now,
        wake_at=wake_at,
        **values,
    )
