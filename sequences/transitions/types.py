"""The inputs and results of transitions: plain values."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from ..definitions.plan import Node, Plan
from ..definitions.subjects import SubjectKey
from ..models import NO_ITEM, StepRun, StepStatus, Wait
from ..utils.uuid7 import uuid7

#: The number of items in flight if a step sets no `concurrency`.
WINDOW = 1000


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A message to send: this step run may be claimed."""

    step_run_id: int
    run_id: UUID
    actor: str
    queue: str
    attempts: int = 0
    delay: int | None = None  # milliseconds
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    #: Its claim in the commit of the previous step, by the worker that executes it now.
    claim: Claim | None = field(default=None, compare=False)
    #: The `time.monotonic()` of this process from which the delay counts; None: when it is sent.
    since: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Offer:
    """The offer of a worker to execute the next step itself, with how to claim it in this
    commit."""

    token: int
    worker: str
    #: Whether it may and can execute it: asked once, at the commit.
    accepts: Callable[[str, str], bool]


@dataclass(slots=True)
class Claim:
    """A step run that this worker holds, as long as the row has its token."""

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
    delay_evaluated: bool
    ready_at: datetime.datetime
    due_at: datetime.datetime | None
    now: datetime.datetime  # of the database, when it was claimed
    data: str  # as JSON
    version: int
    wait: str = ""  # what it waited for last, one of `Wait`
    payload: Any = None  # for an item, the item; for the undo of an item, the item and its result
    worker: str = ""
    traceparent: str = ""  # of the run, in W3C format
    lost_workers: int = 0  # how many workers in a row died in it
    is_limited: bool = False  # it has permits, which end with it

    @property
    def first_due(self) -> datetime.datetime:
        """When its first attempt was due: after a delay. Later attempts have times of their own."""
        return self.ready_at if self.attempts or self.due_at is None else self.due_at


@dataclass(slots=True)
class Start:
    """A requested run, whose data is already validated."""

    data: dict[str, Any]
    text: str  # the same, as JSON
    key: str | None = None
    unique: str = "ever"
    delay: datetime.timedelta | None = None
    priority: int = 0
    #: How long after its start, or by when, it must be finished.
    deadline: datetime.timedelta | datetime.datetime | None = None
    parent: int | None = None
    #: The object that it is about, and its name.
    subject: Any = None
    subject_key: SubjectKey | None = None
    traceparent: str = ""
    id: UUID = field(default_factory=uuid7)
    #: The run that holds its key, returned instead of a new one.
    existing: UUID | None = None

    @property
    def name(self) -> tuple[str, str]:
        """What it has in common with the run that holds its key. Empty without a key."""
        return (self.key or "", self.unique)


class StartedStep(NamedTuple):
    """A first step of a run that was just inserted."""

    run_id: UUID
    step_run_id: int
    step: str
    now: datetime.datetime


@dataclass(frozen=True, slots=True)
class Beat:
    """A claim whose lease is to be extended, with its progress as JSON if that is new."""

    step_run_id: int
    token: int
    progress: str | None = None


class _Conclusion:
    """The conclusion of an attempt; `commits` decides how it is stored and what is ready next."""

    __slots__ = ()
    #: The resulting status of the step.
    status: ClassVar[str] = "waiting"
    result: ClassVar[str | None] = None


@dataclass(frozen=True, slots=True)
class Completed(_Conclusion):
    """The step is done."""

    status: ClassVar[str] = "succeeded"
    result: str | None = None  # type: ignore[misc]  # as JSON


@dataclass(frozen=True, slots=True)
class Skipped(_Conclusion):
    """There was nothing to do, according to its `when`."""

    status: ClassVar[str] = "skipped"


@dataclass(frozen=True, slots=True)
class FinishRun(_Conclusion):
    """The step is done, and the whole run succeeds with it."""

    status: ClassVar[str] = "succeeded"


@dataclass(frozen=True, slots=True)
class WaitForTime(_Conclusion):
    """Wait for its own delay first."""

    until: datetime.datetime


@dataclass(frozen=True, slots=True)
class Repeat(_Conclusion):
    """Run again, this long after the commit."""

    after: datetime.timedelta


@dataclass(frozen=True, slots=True)
class WaitForEvent(_Conclusion):
    """Wait for a delivery: forever, until a time, or for this long after the commit."""

    until: datetime.datetime | datetime.timedelta | None


@dataclass(frozen=True, slots=True)
class TimedOut(_Conclusion):
    """The event has timed out. A delivery that comes before the commit still counts."""

    status: ClassVar[str] = "skipped"


@dataclass(frozen=True, slots=True)
class WaitForItems(_Conclusion):
    """Wait for the items of a fan-out: how many there are, and how many may be in flight."""

    total: int
    window: int


@dataclass(frozen=True, slots=True)
class WaitForChildren(_Conclusion):
    """Wait for this many child runs, whose first messages these are."""

    total: int
    dispatches: Sequence[Dispatch] = ()


Conclusion = (
    Completed
    | Skipped
    | FinishRun
    | WaitForTime
    | Repeat
    | WaitForEvent
    | TimedOut
    | WaitForItems
    | WaitForChildren
)


@dataclass(slots=True)
class Change:
    """What an executed step wants to commit."""

    conclusion: Conclusion = field(default_factory=Completed)
    #: All of `data` as JSON, or None if the step did not change it.
    data: str | None = None
    #: `data` as the step found it and as it left it, to merge with concurrent changes.
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    progress: str | None = None


class ClaimLost(Exception):
    """The claim is lost, or the run has ended: nothing may be stored."""


def wait_for(wait: Wait, now: datetime.datetime) -> dict[str, Any]:
    """The values of a row that starts to wait."""
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
