"""What people are shown of runs: read with a constant number of queries, without secrets.

The admin, the pages of a project and the command line all show this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeGuard
from uuid import UUID

from django.db.models import BooleanField, Count, Max, QuerySet, Value
from django.forms import BaseForm

from .. import conf
from ..data.redaction import HIDDEN, hide, redact, secrets_of
from ..definitions import registry
from ..definitions.kinds import ITEM_KINDS
from ..definitions.plan import DONE, Node, Plan
from ..definitions.rules import RULES
from ..definitions.steps import Step, Undo, name_of
from ..exceptions import SequenceError
from ..models import (
    NO_ITEM,
    UNFINISHED_STEP,
    Operation,
    RunDeadline,
    RunStatus,
    SequenceRun,
    StepFailure,
    StepLoss,
    StepRun,
    StepStatus,
    Wait,
)
from ..transitions import causes, clock, plans
from ..utils.text import label_of
from .limits import LimitWait, waits_of
from .losses import deaths_sentence, newest_losses
from .old_workers import queues_of_old_workers
from .phases import AT_WORK, Phase, phases_of

#: The status of a step that the run has not reached.
NOT_BEGUN = ""
#: How a step is shown that its run keeps from running, whatever its row says.
ON_HOLD = "paused"
#: What a step waits for that is working for it.
_MEMBERS = (Wait.ITEMS, Wait.CHILDREN)
#: The statuses of step runs that their run can put on hold.
HOLDABLE = (StepStatus.WAITING, StepStatus.QUEUED, StepStatus.RETRYING)
#: The statuses of items that ran; an item that was cancelled or skipped did not.
_PERFORMED = (StepStatus.SUCCEEDED, StepStatus.FAILED)
#: The maximum number of items whose own progress is read: rarely are more unfinished.
MAX_REPORTING_ITEMS = 1000
#: Statuses of a run in which a failed attempt is no longer its error.
_OVER_FAILURES = (RunStatus.SUCCEEDED, RunStatus.CANCELLED)
#: Columns that may be large, and that no list shows.
HEAVY = ("data", "inbox")


@dataclass(frozen=True)
class StepSnapshot:
    """One step of a run's plan, and how far it has got."""

    node: Node
    #: Its step run; None: the run has not reached it.
    row: StepRun | None
    #: For a fan-out, and the undo of one: the number of items by status.
    items: Mapping[str, int] = field(default_factory=dict)
    #: The progress reported by the unfinished items of a fan-out, in order.
    item_reports: tuple[Mapping[str, Any], ...] = ()
    #: The label in its declaration.
    declared_label: str = ""
    #: The latest loss of a worker in it, if there was one since its last attempt ended.
    loss: StepLoss | None = None
    #: The secrets that must not appear in the text of its progress.
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    #: Since when it has been on hold, because its run is paused or has failed; None: it is not.
    held_since: datetime | None = None
    #: When its latest attempt failed, if that is the run's latest failure.
    failed_at: datetime | None = None
    #: For an event: the payloads that its declaration offers to people, by label.
    choices: Mapping[str, Any] = field(default_factory=dict)
    #: For an event: the Django form that validates a payload.
    form: type[BaseForm] | None = None

    @property
    def name(self) -> str:
        """Its name in the plan."""
        return self.node.name

    @property
    def label(self) -> str:
        """The name for people: the declared label, or the step's name with spaces."""
        return self.declared_label or label_of(self.name)

    @property
    def status(self) -> str:
        """One of `StepStatus`, or `NOT_BEGUN`."""
        if self.row is not None:
            return self.row.status
        return self._status_of_items()

    @property
    def state(self) -> str:
        """The status that people are shown: its own, unless that would mislead them.

        A step that will not run is shown as `ON_HOLD`, not as queued; and one whose items or
        children are in progress as running, not as waiting.
        """
        if self.is_on_hold:
            return ON_HOLD
        if self.status == StepStatus.WAITING and self.row is not None and self.row.wait in _MEMBERS:
            return StepStatus.RUNNING
        return self.status

    @property
    def is_on_hold(self) -> bool:
        """Whether nothing will run it, because its run is paused or has failed."""
        return self.held_since is not None

    def _status_of_items(self) -> str:
        # The undo of a fan-out has no row of its own.
        order = ("failed", "running", "retrying", "queued", "waiting", "cancelled", "succeeded")
        return next((status for status in order if self.items.get(status)), NOT_BEGUN)

    @property
    def attempts(self) -> int:
        """The number of its failed attempts."""
        return 0 if self.row is None else self.row.attempts

    @property
    def deaths(self) -> str:
        """A sentence: how many workers have died in it since its last attempt ended, if any."""
        if self.row is None or not self.row.lost_workers:
            return ""
        return deaths_sentence(self.row, self.loss)

    @property
    def is_delayed(self) -> bool:
        """Whether it is waiting for a time of its own, or for its next attempt."""
        row = self.row
        if row is None or row.due_at is None:
            return False
        waits_for_time = row.status == StepStatus.WAITING and row.wait == Wait.TIME
        return waits_for_time or row.status == StepStatus.RETRYING

    @property
    def is_awaiting_event(self) -> bool:
        """Whether a delivery would end its wait."""
        return self.node.traits.takes_delivery and self.status == StepStatus.WAITING

    @property
    def children_undo(self) -> str:
        """How far the rollback of its children has got, a `ChildrenUndo`; "" if there is none."""
        return self.row.children_undo if self.row is not None else ""

    @property
    def progress(self) -> tuple[float, float] | None:
        """How much is done, out of how much: of its items, or as reported. None: unknown, or not
        all, although the step has succeeded or was skipped."""
        amount = self._items_done if self._counts_items else _amount_of(self._report)
        return None if _is_outdated(self.status, amount) else amount

    @property
    def fraction(self) -> float | None:
        """The same as a fraction; unfinished items count by what they report."""
        if (amount := self.progress) is None:
            return None
        done, total = amount
        return min((done + sum(map(_part_of, self.item_reports))) / total, 1.0)

    @property
    def progress_text(self) -> str:
        """What the step, or its first unfinished item, reports about its progress; without
        secrets."""
        texts = (report.get("text") for report in (self._report, *self.item_reports))
        return hide(str(next(filter(None, texts), "")), self.secrets)

    @property
    def _counts_items(self) -> bool:
        return self.node.traits.has_items and bool(self.items)

    @property
    def _items_done(self) -> tuple[int, int]:
        done = sum(self.items.get(status, 0) for status in _PERFORMED)
        return done, sum(self.items.values())

    @property
    def _report(self) -> Mapping[str, Any]:
        report = report_of(self.row) if self.row is not None else None
        return report if isinstance(report, dict) else {}

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """What it did when. Empty for the undo of a fan-out: only its items have rows."""
        if self.row is None:
            return ()
        return phases_of(self.row, self.held_since, self.failed_at)

    @property
    def worker(self) -> str:
        """The worker that last ran it. Empty if it is waiting, or an event, which runs no code."""
        row = self.row
        if row is None or self.node.traits.takes_delivery or row.status == StepStatus.WAITING:
            return ""
        return row.worker

    def waited(self, now: datetime) -> timedelta | None:
        """How long it was ready without anything working on it, except while on hold."""
        if self.row is None:
            return None
        waits = (phase.length(now) for phase in self.phases if phase.kind == "waited")
        return sum(waits, timedelta(0))

    def ran(self, now: datetime) -> timedelta | None:
        """How long its last attempt took so far, and its items or children, if it has any."""
        work = [phase.length(now) for phase in self.phases if phase.kind in AT_WORK]
        return sum(work, timedelta(0)) if work else None


@dataclass(frozen=True)
class RunSnapshot:
    """One run as people are shown it."""

    run: SequenceRun
    plan: Plan
    #: In the order of the plan; steps that start only after a failure come last.
    steps: tuple[StepSnapshot, ...]
    #: The latest failed attempt, without secrets.
    newest_failure: StepFailure | None
    #: The database's time when it was read.
    now: datetime
    #: The deepest cause of that failure, with its run and without secrets, if other failures caused
    #: it: those of items, of child runs, and theirs.
    cause: StepFailure | None = None
    #: For a paused run: the operation that paused it.
    pause: Operation | None = None
    #: For a run whose data is blank: the operation that erased it, if any.
    erasure: Operation | None = None
    #: The lines of limits in which its step runs wait, by their ids.
    limit_waits: Mapping[int, LimitWait] = field(default_factory=dict)
    #: Whether a worker has died while running one of its steps. False if no failures were read.
    has_losses: bool = False
    #: The queues in which its steps wait, and all of whose workers started before its plan was
    #: first stored.
    queues_of_old_workers: frozenset[str] = frozenset()

    @cached_property
    def title(self) -> str:
        """The name of the sequence, for people."""
        return title_of(self.run.sequence)

    @cached_property
    def is_known(self) -> bool:
        """Whether this code has its sequence."""
        return registry.definition_of(self.run.sequence) is not None

    @cached_property
    def removed(self) -> tuple[str, ...]:
        """The steps of its plan that its class, which this code has, no longer declares."""
        if not self.is_known:
            return ()
        return tuple(name for name in self.plan.names if name not in self.declared)

    @cached_property
    def declared(self) -> dict[str, Step[Any]]:
        """The steps of its plan that this code declares."""
        return _declared(self.run, self.plan)

    @property
    def is_erased(self) -> bool:
        """Whether its data was erased, and nothing has been stored since."""
        ended = self.run.finished_at
        return self.erasure is not None and ended is not None and ended <= self.erasure.done_at

    @property
    def current_failure(self) -> StepFailure | None:
        """The failed attempt to show as the run's error.

        None for a run that has succeeded or was cancelled: it has got over what failed on the way.
        """
        return None if self.run.status in _OVER_FAILURES else self.newest_failure

    @property
    def root_failure(self) -> StepFailure | None:
        """The failed attempt to name as the problem: the deepest cause that is known."""
        failure = self.current_failure
        return failure if failure is None or self.cause is None else self.cause

    @property
    def is_readable(self) -> bool:
        """Whether this release can read the format of its plan; if not, no steps are shown."""
        return bool(self.plan.nodes)

    def step(self, name: str) -> StepSnapshot | None:
        """The step with that name in its plan."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def listed_steps(self) -> list[StepSnapshot]:
        """The steps on the main path, and those that a failure has started."""
        return [step for step in self.steps if step.status or not step.node.off_path]

    @cached_property
    def states(self) -> dict[str, str]:
        """The status of each step that the run has reached."""
        return {step.name: step.status for step in self.steps if step.row is not None}

    @cached_property
    def is_failing(self) -> bool:
        """Whether a step has failed permanently and no handler has taken over."""
        return self.plan.is_failing(self.states)

    @cached_property
    def at(self) -> tuple[StepSnapshot, ...]:
        """The current steps: those that failed the run, or else those that are unfinished."""
        failed = set(self.plan.failed(self.states))
        if failed and self.run.status in (RunStatus.FAILED, RunStatus.RUNNING, RunStatus.PAUSED):
            return tuple(step for step in self.steps if step.name in failed)
        return tuple(step for step in self.steps if step.status in UNFINISHED_STEP)

    @cached_property
    def done(self) -> int:
        """How many steps of its main path have succeeded, were skipped, or will not run."""
        if self.run.status == RunStatus.SUCCEEDED:
            return self.total
        return sum(step.status in DONE for step in self.steps if not step.node.off_path)

    @cached_property
    def total(self) -> int:
        """The number of steps on its main path."""
        return len(self.plan.main)

    @cached_property
    def fraction(self) -> float:
        """How far it has got, from 0 to 1: running steps count by their own progress."""
        if self.run.status == RunStatus.SUCCEEDED:
            return 1.0
        if not self.is_readable:
            return 0.0
        running = [step for step in self.steps if step.status in UNFINISHED_STEP]
        share = sum(step.fraction or 0.0 for step in running if not step.node.off_path)
        return min((self.done + share) / self.total, 1.0)

    @property
    def is_moving(self) -> bool:
        """Whether it may change without anyone's action."""
        return not self.run.is_finished

    @property
    def age(self) -> timedelta:
        """The time since its start."""
        return self.now - self.run.created_at

    @property
    def duration(self) -> timedelta:
        """The time from its start to its end, or until now."""
        return (self.run.finished_at or self.now) - self.run.created_at


def report_of(row: StepRun) -> Any:
    """What a step run has reported about its progress, and what still applies of it.

    The last report of a step that has succeeded may be from before its end: it applies only if it
    says that all is done.
    """
    report = row.progress
    amount = _amount_of(report) if isinstance(report, dict) else None
    return None if _is_outdated(row.status, amount) else report


def _is_outdated(status: str, amount: tuple[float, float] | None) -> bool:
    return status in DONE and (amount is None or amount[0] < amount[1])


def _amount_of(report: Mapping[str, Any]) -> tuple[float, float] | None:
    done, total = report.get("done"), report.get("total")
    if _is_amount(done) and _is_amount(total) and total > 0:
        return done, total
    return None


def _part_of(report: Mapping[str, Any]) -> float:
    done, total = _amount_of(report) or (0.0, 1.0)
    return min(done / total, 1.0)


def _is_amount(value: Any) -> TypeGuard[float]:
    # A Decimal that a step reported has become a string.
    return isinstance(value, int | float) and value >= 0


def title_of(sequence: str) -> str:
    """The name of the sequence with that label, for people."""
    definition = registry.definition_of(sequence)
    name = definition.verbose_name if definition else sequence.rpartition(".")[-1]
    return name[:1].upper() + name[1:]


def of(run: SequenceRun, *, failures: bool = True) -> RunSnapshot:
    """The snapshot of this run, with the counts of its fan-outs' items.

    Three queries: the time, its steps, its latest failure (which ``failures=False`` leaves out).
    One more for each of these, if needed: the cause of a failure, the items of a fan-out, the
    progress of unfinished ones, who paused or erased it, and a plan that is new to this process.
    Two more for a step that no worker has picked up.
    """
    return of_many([run], items=True, failures=failures)[0]


def of_many(
    runs: Collection[SequenceRun], *, items: bool = False, failures: bool = True
) -> list[RunSnapshot]:
    """The snapshots of these runs, with a constant number of queries; ``items``: with item
    counts."""
    using = conf.using()
    now = clock.now(using)
    plans_by_id = plans.load_many((run.plan_id for run in runs), using)
    rows = _rows([run.pk for run in runs], using)
    fanned = [run.pk for run in runs if items and _fans_out(plans_by_id[run.plan_id])]
    counts, reporting = _counts(fanned, using) if fanned else ({}, set())
    reports = _item_reports(reporting, using) if reporting else {}
    ids = [run.pk for run in runs] if failures else []
    newest, with_losses = _newest_failures(ids, using) if ids else ({}, set())
    losses = _losses(rows, using)
    pauses, erasures = _pauses(runs, using), _erasures(runs, using)
    limit_waits = waits_of(_in_line(rows, {run.pk: run.sequence for run in runs}), using)
    old_workers = queues_of_old_workers(runs, plans_by_id, rows, now, using)
    secrets = _secrets_of(runs, newest.keys() | _reporting(rows) | reports.keys(), using)
    for failure in newest.values():
        _hide(failure, secrets[failure.run_id])
    deepest = _causes(newest.values(), using)
    return [
        RunSnapshot(
            run,
            plan := plans_by_id[run.plan_id],
            _steps(
                run,
                plan,
                rows.get(run.pk, {}),
                counts.get(run.pk, {}),
                reports.get(run.pk, {}),
                losses,
                secrets[run.pk],
                pauses.get(run.pk),
                newest.get(run.pk),
            ),
            newest.get(run.pk),
            now,
            deepest.get(run.pk),
            pauses.get(run.pk),
            erasures.get(run.pk),
            limit_waits,
            run.pk in with_losses,
            old_workers.get(run.pk, frozenset()),
        )
        for run in runs
    ]


def without_hidden_causes(
    snapshots: Iterable[RunSnapshot], runs: QuerySet[SequenceRun]
) -> list[RunSnapshot]:
    """The snapshots, without causes in runs that are not among these: the viewer may not see
    them."""
    snapshots = list(snapshots)
    ids = {run_snapshot.cause.run_id for run_snapshot in snapshots if run_snapshot.cause}
    ids -= {run_snapshot.run.pk for run_snapshot in snapshots}
    visible = set(runs.filter(pk__in=ids).values_list("pk", flat=True)) if ids else set()
    return [
        replace(run_snapshot, cause=None)
        if run_snapshot.cause is not None and run_snapshot.cause.run_id in ids - visible
        else run_snapshot
        for run_snapshot in snapshots
    ]


def _in_line(
    rows: Mapping[UUID, Mapping[str, StepRun]], sequences: Mapping[UUID, str]
) -> Iterator[StepRun]:
    """Step runs that wait in the line of a limit, or whose items may."""
    for row in (row for steps in rows.values() for row in steps.values()):
        of_items = row.wait == Wait.ITEMS and _has_limits(sequences[row.run_id], row.step)
        if row.status == StepStatus.WAITING and (row.wait == Wait.LIMIT or of_items):
            yield row


def _has_limits(sequence: str, step: str) -> bool:
    definition = registry.definition_of(sequence)
    declaration = None if definition is None else definition.step(step)
    return declaration is not None and bool(declaration.limits)


def _fans_out(plan: Plan) -> bool:
    return any(node.traits.has_items for node in plan.nodes)


def _rows(ids: Collection[UUID], using: str) -> dict[UUID, dict[str, StepRun]]:
    rows = StepRun.objects.using(using).filter(run__in=ids, item=NO_ITEM).defer("result")
    by_run: dict[UUID, dict[str, StepRun]] = defaultdict(dict)
    for row in rows:
        by_run[row.run_id][row.step] = row
    return by_run


def _losses(rows: Mapping[UUID, Mapping[str, StepRun]], using: str) -> dict[int, StepLoss]:
    lost = [row.pk for steps in rows.values() for row in steps.values() if row.lost_workers]
    return newest_losses(lost, using) if lost else {}


def _counts(
    ids: Collection[UUID], using: str
) -> tuple[dict[UUID, dict[str, dict[str, int]]], set[UUID]]:
    """The number of items by status, and the runs in which an unfinished item reports progress."""
    rows = StepRun.objects.using(using).filter(run__in=ids, item__gt=NO_ITEM)
    counts: dict[UUID, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    reporting = set()
    grouped = rows.order_by().values_list("run", "step", "status")
    for run_id, step, status, count, reports in grouped.annotate(Count("pk"), Count("progress")):
        counts[run_id][step][status] = count
        if reports and status in UNFINISHED_STEP:
            reporting.add(run_id)
    return counts, reporting


def _item_reports(
    ids: Collection[UUID], using: str
) -> dict[UUID, dict[str, list[Mapping[str, Any]]]]:
    reports: dict[UUID, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    rows = StepRun.objects.using(using).filter(run__in=ids, item__gt=NO_ITEM, kind__in=ITEM_KINDS)
    rows = rows.filter(status__in=UNFINISHED_STEP, progress__isnull=False).order_by("item")
    for run_id, step, report in rows.values_list("run", "step", "progress")[:MAX_REPORTING_ITEMS]:
        if isinstance(report, dict):
            reports[run_id][step].append(report)
    return reports


def _newest_failures(
    ids: Collection[UUID], using: str
) -> tuple[dict[UUID, StepFailure], set[UUID]]:
    """The latest failed attempt of each run, and the runs that have lost workers.

    Both are found by one query, because most runs have neither.
    """
    newest, with_losses = [], set()
    losses = _newest_ids(StepLoss, ids, using)
    both = _newest_ids(StepFailure, ids, using).union(losses, all=True)
    for run_id, pk, is_loss in both.order_by():  # Django 6.1 would order it as its first part
        if is_loss:
            with_losses.add(run_id)
        else:
            newest.append(pk)
    failures = StepFailure.objects.using(using).filter(pk__in=newest).defer("traceback")
    return {failure.run_id: failure for failure in failures}, with_losses


def _newest_ids(
    model: type[StepFailure | StepLoss], ids: Collection[UUID], using: str
) -> QuerySet[Any, tuple[UUID, int, bool]]:
    is_loss = Value(model is StepLoss, output_field=BooleanField())
    rows = model._base_manager.using(using).filter(run__in=ids).order_by().values_list("run")
    return rows.annotate(newest=Max("pk"), is_loss=is_loss)


def _causes(failures: Collection[StepFailure], using: str) -> dict[UUID, StepFailure]:
    """The deepest cause of each failure, by the run that failed with it."""
    deepest = causes.deepest(failures, using)
    hide_secrets(deepest.values(), [cause.run for cause in deepest.values()], using)
    by_run = ((failure.run_id, deepest.get(failure.pk)) for failure in failures)
    return {run_id: cause for run_id, cause in by_run if cause is not None}


def _pauses(runs: Iterable[SequenceRun], using: str) -> dict[UUID, Operation]:
    """Who paused each of the paused runs, and why, whatever was done to it since."""
    ids = [run.pk for run in runs if run.status == RunStatus.PAUSED]
    return _newest_operations(ids, ("pause",), using)


def _erasures(runs: Iterable[SequenceRun], using: str) -> dict[UUID, Operation]:
    """Who erased each run whose data is loaded and blank."""
    blank = [run for run in runs if "data" not in run.get_deferred_fields() and not run.data]
    return _newest_operations([run.pk for run in blank], ("erase", "erase_but_key"), using)


def _newest_operations(
    ids: Collection[UUID], actions: Collection[str], using: str
) -> dict[UUID, Operation]:
    if not ids:
        return {}
    rows = Operation.objects.using(using).filter(run__in=ids, action__in=actions).order_by("pk")
    return {operation.run_id: operation for operation in rows.defer("before", "after")}


def _steps(
    run: SequenceRun,
    plan: Plan,
    rows: Mapping[str, StepRun],
    items: Mapping[str, Mapping[str, int]],
    reports: Mapping[str, Sequence[Mapping[str, Any]]],
    losses: Mapping[int, StepLoss],
    secrets: frozenset[str],
    pause: Operation | None,
    failure: StepFailure | None,
) -> tuple[StepSnapshot, ...]:
    ordered = sorted(plan.nodes, key=lambda node: node.off_path)
    declared = _declared(run, plan)
    stopped_at = _stopped_at(run, plan, rows, pause)
    return tuple(
        StepSnapshot(
            node,
            row := rows.get(node.name),
            items.get(node.name, {}),
            tuple(reports.get(node.name, ())),
            declared[node.name].label if node.name in declared else "",
            losses.get(row.pk) if row is not None else None,
            secrets,
            _held_since(node, row, stopped_at),
            failure.failed_at if failure and _is_of(failure, node) else None,
            getattr(declared.get(node.name), "choices", {}),
            getattr(declared.get(node.name), "form", None),
        )
        for node in ordered
    )


def _is_of(failure: StepFailure, node: Node) -> bool:
    return failure.step == node.name and failure.item == NO_ITEM


def _stopped_at(
    run: SequenceRun, plan: Plan, rows: Mapping[str, StepRun], pause: Operation | None
) -> datetime | None:
    """When a pause or a failure first kept this run from starting steps; None: nothing does."""
    moments = []
    if run.status == RunStatus.PAUSED:
        moments.append(run.updated_at if pause is None else pause.done_at)
    if run.status not in _OVER_FAILURES:
        failed = plan.failed({name: row.status for name, row in rows.items()})
        moments += [moment for name in failed if (moment := rows[name].finished_at) is not None]
    return min(moments, default=None)


def _held_since(node: Node, row: StepRun | None, stopped_at: datetime | None) -> datetime | None:
    if row is None or stopped_at is None or node.traits.is_compensation:
        return None
    is_held = row.wake_at is None and row.status in HOLDABLE
    return max(stopped_at, row.ready_at) if is_held else None


def _reporting(rows: Mapping[UUID, Mapping[str, StepRun]]) -> set[UUID]:
    """The runs with a step that reports its progress."""
    return {run_id for run_id, steps in rows.items() if any(row.progress for row in steps.values())}


def _declared(run: SequenceRun, plan: Plan) -> dict[str, Step[Any]]:
    """The steps of the plan that this code declares."""
    try:
        definition = registry.definition_for(run.sequence, plan)
    except SequenceError:  # stored with the run by a newer release
        return {}
    if definition is None:
        return {}
    steps = ((name, definition.step(name)) for name in plan.names)
    return {name: step for name, step in steps if step is not None}


def deadline_of(run: SequenceRun) -> datetime | None:
    """When it must be finished; None: it has no deadline, or is finished."""
    if not RULES["set_deadline"].allows(run.status):
        return None
    rows = RunDeadline.objects.using(conf.using()).filter(run=run.pk)
    return rows.values_list("due_at", flat=True).first()


# Secrets


def visible(value: Any, sequence: str, step: str = "") -> Any:
    """A stored value without what its sequence redacts.

    A value of a step (``step``) is also redacted as if it were in `data` under the step's name, and
    under the key that its items come from.
    """
    patterns = registry.hidden_by(sequence)
    if patterns == ("*",) and value is not None and not isinstance(value, dict):
        return HIDDEN
    value = redact(value, patterns)
    for key in _keys_of(sequence, step):
        value = redact({key: value}, patterns)[key]
    return value


def visible_payload(row: StepRun) -> Any:
    """The input of a step run. For the undo of an item: that item, and its result."""
    sequence = row.run.sequence
    undone = _undone_by(sequence, row.step)
    if not undone or not isinstance(row.payload, dict):
        return visible(row.payload, sequence, row.step)
    return {name: visible(value, sequence, undone) for name, value in row.payload.items()}


def visible_inbox(run: SequenceRun) -> dict[str, Any]:
    """What was delivered, by the names of the events."""
    return {name: visible(payload, run.sequence, name) for name, payload in run.inbox.items()}


def _keys_of(sequence: str, step: str) -> Iterator[str]:
    if step:
        yield step
    definition = registry.definition_of(sequence)
    declared = definition.step(step) if definition and step else None
    if declared is not None and isinstance(declared.each, str):
        yield declared.each


def _undone_by(sequence: str, step: str) -> str:
    definition = registry.definition_of(sequence)
    declared = definition.step(step) if definition else None
    return name_of(declared.undoes) if isinstance(declared, Undo) else ""


def visible_text(text: str, run: SequenceRun) -> str:
    """The text of an error or of a log, without the secrets in the run's `data`."""
    patterns = registry.hidden_by(run.sequence)
    return hide(text, secrets_of(run.data, patterns)) if patterns else text


def redacted(failure: StepFailure | None, run: SequenceRun) -> StepFailure | None:
    """The failed attempt, with its texts changed in place: it must never be saved."""
    if failure is not None:
        _hide(failure, secrets_of(run.data, registry.hidden_by(run.sequence)))
    return failure


def hide_secrets(
    failures: Collection[StepFailure], runs: Iterable[SequenceRun], using: str
) -> None:
    """The same for failed attempts of many runs; loads the `data` of those that need it at once."""
    secrets = _secrets_of(runs, {failure.run_id for failure in failures}, using)
    for failure in failures:
        _hide(failure, secrets[failure.run_id])


def _secrets_of(
    runs: Iterable[SequenceRun], ids: Collection[UUID], using: str
) -> Mapping[UUID, frozenset[str]]:
    """The secrets in the data of the runs with these ids."""
    runs_by_id = {run.pk: run for run in runs if run.pk in ids}
    guarded = [run for run in runs_by_id.values() if registry.hidden_by(run.sequence)]
    data = _data_of(guarded, using)
    secrets: dict[UUID, frozenset[str]] = defaultdict(frozenset)
    for run in guarded:
        # a run that was just deleted leaves only its texts, which were redacted when stored
        if run.pk in data:
            secrets[run.pk] = secrets_of(data[run.pk], registry.hidden_by(run.sequence))
    return secrets


def _data_of(runs: Collection[SequenceRun], using: str) -> dict[UUID, Any]:
    deferred = [run.pk for run in runs if "data" in run.get_deferred_fields()]
    rows = SequenceRun._base_manager.using(using).filter(pk__in=deferred)
    read = dict(rows.values_list("pk", "data")) if deferred else {}
    return read | {run.pk: run.data for run in runs if run.pk not in deferred}


def _hide(failure: StepFailure, secrets: frozenset[str]) -> None:
    failure.message = hide(failure.message, secrets)
    if "traceback" not in failure.get_deferred_fields():
        failure.traceback = hide(failure.traceback, secrets)
