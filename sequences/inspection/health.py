"""Whether steps run as they should: for people, and for monitoring.

Seven or eight queries on indexes, however many runs there are; two more if steps wait for a worker
and workers are running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import Count, Min, Q, QuerySet
from django.utils.functional import cached_property
from django.utils.translation import gettext, ngettext

from .. import conf
from ..definitions import registry
from ..models import (
    LimitKey,
    OutboxMessage,
    SequenceRun,
    StepLoss,
    StepRun,
    StepStatus,
    StoredPlan,
    WorkerProcess,
)
from ..transitions import clock, holders, plans
from ..transitions.backends import Holder
from ..transitions.holders import Locked
from ..transitions.periods import MAX_LOOK_INTERVAL
from ..transitions.processes import STALE_AFTER
from . import limits, schedules, struggling
from .losses import deaths_sentence, newest_losses
from .schedules import ScheduleSnapshot
from .wording import format_duration, format_number

#: The maximum number of step runs that are checked, most overdue first.
MAX_STEP_RUNS = 10_000
#: The maximum number of worker processes that are read.
MAX_PROCESSES = 1_000
#: The number of suspects that are named.
MAX_NAMED_SUSPECTS = 3
#: The maximum number of queues that are named.
MAX_NAMED_QUEUES = 5
#: The maximum number of late or failing schedules that are checked.
MAX_SCHEDULES = 100
#: How long steps wait for a free worker before this is a warning, and before it is critical.
WARN_AFTER, ALARM_AFTER = timedelta(minutes=1), timedelta(minutes=5)
#: A new worker reports within this time which queues it consumes.
NOTICED_AFTER = timedelta(seconds=20)
#: The maximum number of dead workers whose steps are looked for, last seen first.
MAX_DEAD = 20


class Level(IntEnum):
    """How bad a sign is."""

    GOOD = 0
    WARNING = 1
    BAD = 2


@dataclass(frozen=True, slots=True)
class Sign:
    """One of the things that were checked."""

    name: str
    level: Level
    #: A few words, such as "3 workers".
    says: str
    #: What to do, in a sentence; empty if all is well.
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.says}. {self.advice}" if self.advice else self.says


@dataclass(frozen=True, slots=True)
class Suspect:
    """A step run that may have killed its workers."""

    row: StepRun
    #: The latest of these deaths.
    loss: StepLoss | None

    def __str__(self) -> str:
        name = gettext("“%(step)s” of run %(run)s") % {"step": self.row, "run": self.row.run_id}
        return f"{name}: {deaths_sentence(self.row, self.loss)}"


@dataclass(frozen=True)
class Health:
    """What was seen of step runs and worker processes. The sentences are translated."""

    #: The database's time when it was read.
    now: datetime
    #: Step runs that wait for a worker, and since when the oldest has waited.
    queued: int
    queued_since: datetime | None
    #: Step runs whose lease has expired, and since when the oldest.
    expired: int
    expired_since: datetime | None
    #: Failed attempts whose retry is overdue, and since when the oldest.
    overdue: int
    overdue_since: datetime | None
    #: Step runs whose last worker was lost; and some of them, those with the most losses first.
    suspected: int
    suspects: tuple[Suspect, ...]
    #: Step runs that the sweep cannot handle, because another transaction has locked them for more
    #: than a minute; and the session that holds the lock, if the database tells.
    locked: Locked | None
    holder: Holder | None
    #: Whether there are more step runs than were checked.
    capped: bool
    #: Worker processes, including those that only sweep or have stopped, last seen first.
    processes: tuple[WorkerProcess, ...]
    #: Schedules that are late or cannot start their runs, most overdue first.
    schedules: tuple[ScheduleSnapshot, ...] = ()
    #: Lines of limits in which something waits, and which no sweep checks.
    neglected: tuple[LimitKey, ...] = ()
    #: Messages of the outbox that are overdue, and the first of them.
    unsent: int = 0
    first_unsent: OutboxMessage | None = None
    #: Step runs that a worker is running, with signs of life.
    running: int = 0
    #: Step runs that keep failing, and are still retried.
    struggling: int = 0
    #: The number of step runs whose class this code does not have.
    classless: Mapping[str, int] = field(default_factory=dict)
    #: Queues in which steps wait, and which no worker consumes.
    unserved: tuple[str, ...] = ()
    #: Step runs that are still in the hands of workers that have disappeared.
    orphans: int = 0

    @cached_property
    def workers(self) -> tuple[WorkerProcess, ...]:
        """The processes that run steps and were seen recently."""
        return tuple(_alive(self.processes, self.now))

    @cached_property
    def stale(self) -> tuple[WorkerProcess, ...]:
        """Worker processes that have disappeared without a clean shutdown."""
        return tuple(_stale(self.processes, self.now))

    @cached_property
    def missed(self) -> tuple[WorkerProcess, ...]:
        """Those of them that no other worker has replaced: steps are still in their hands, or
        nobody consumes their queues."""
        queues = _queues_of(self.workers)
        return tuple(
            process
            for process in self.stale
            if self.orphans or not process.queues or not queues.issuperset(process.queues)
        )

    @cached_property
    def stalled(self) -> tuple[WorkerProcess, ...]:
        """Processes that are still seen, although their sweep has not ended for long: they are
        stuck."""
        return tuple(process for process in self.workers if self._sweeps_late(process))

    @cached_property
    def sweepers(self) -> tuple[WorkerProcess, ...]:
        """The processes that sweep and were seen recently."""
        sweeping = (process for process in self.processes if process.swept_at is not None)
        return tuple(process for process in sweeping if self._is_alive(process))

    @cached_property
    def swept_at(self) -> datetime | None:
        """When the last sweep ended."""
        times = (process.swept_at for process in self.processes)
        return max(filter(None, times), default=None)

    @cached_property
    def signs(self) -> tuple[Sign, ...]:
        """All signs, causes before effects."""
        rare = (
            (_locked, self.locked),
            (_suspects, self.suspected),
            (_struggling, self.struggling),
            (_schedules, self.schedules),
            (_limits, self.neglected),
            (_outbox, self.unsent),
            (_classless, self.classless),
        )
        signs = (*_SIGNS, *(sign for sign, is_there in rare if is_there))
        return tuple(sign(self) for sign in signs)

    @property
    def level(self) -> Level:
        """The level of the worst sign."""
        return max(sign.level for sign in self.signs)

    def problems(self) -> list[str]:
        """A sentence or two for each sign that is not good; empty if all is well."""
        return [str(sign) for sign in self.signs if sign.level > Level.GOOD]

    @property
    def _performing(self) -> list[WorkerProcess]:
        return [process for process in self.processes if process.threads]

    def _is_alive(self, process: WorkerProcess) -> bool:
        return _is_alive(process, self.now)

    def _sweeps_late(self, process: WorkerProcess) -> bool:
        return process.swept_at is not None and self.now - process.swept_at > WARN_AFTER

    def _count(self, number: int) -> str:
        text = format_number(number)
        return f"{text}+" if self.capped else text

    def _since(self, moment: datetime) -> str:
        return format_duration(self.now - moment)

    def _level(self, moment: datetime | None) -> Level:
        waited = self.now - moment if moment else timedelta(0)
        return Level((waited > WARN_AFTER) + (waited > ALARM_AFTER))


def _is_alive(process: WorkerProcess, now: datetime) -> bool:
    return process.stopped_at is None and now - process.seen_at < STALE_AFTER


def _alive(processes: Sequence[WorkerProcess], now: datetime) -> list[WorkerProcess]:
    return [process for process in processes if process.threads and _is_alive(process, now)]


def _stale(processes: Sequence[WorkerProcess], now: datetime) -> list[WorkerProcess]:
    return [
        process
        for process in processes
        if process.threads and process.stopped_at is None and not _is_alive(process, now)
    ]


def _queues_of(workers: Sequence[WorkerProcess]) -> set[str]:
    return {queue for worker in workers for queue in worker.queues}


def read(using: str | None = None, runs: QuerySet[SequenceRun] | None = None) -> Health:
    """Read the current health; if ``runs`` are given, only of these."""
    using = using or conf.using()
    now = clock.now(using)
    processes = tuple(WorkerProcess.objects.using(using).order_by("-seen_at")[:MAX_PROCESSES])
    # Schedules are not runs: people who may see only some runs are not shown them.
    troubled = () if runs is not None else tuple(schedules.troubled(using, now, MAX_SCHEDULES))
    return Health(
        now=now,
        processes=processes,
        schedules=troubled,
        neglected=tuple(limits.neglected(now, WARN_AFTER, using)) if runs is None else (),
        struggling=struggling.count(using, runs),
        **(_outbox_of(now, using) if runs is None else {}),
        **_steps(now, using, runs, processes),
    )


def _outbox_of(now: datetime, using: str) -> dict[str, Any]:
    # The sweep retries each within this time if the broker does not accept it.
    rows = OutboxMessage.objects.using(using).filter(wake_at__lte=now + MAX_LOOK_INTERVAL)
    late = Q(failures__gt=0) | Q(wake_at__lt=now - WARN_AFTER)
    rows = rows.filter(late, created_at__lt=now - WARN_AFTER).order_by("created_at")
    unsent = len(rows.values_list("pk")[: MAX_STEP_RUNS + 1])
    return {"unsent": unsent, "first_unsent": rows.first() if unsent else None}


def _steps(
    now: datetime,
    using: str,
    runs: QuerySet[SequenceRun] | None,
    processes: Sequence[WorkerProcess],
) -> dict[str, Any]:
    # The sweep checks whatever waits for a worker within this time. So everything of interest is at
    # the beginning of the one index that a claim leaves unchanged.
    rows = StepRun.objects.using(using).filter(wake_at__lte=now + MAX_LOOK_INTERVAL)
    if runs is not None:
        rows = rows.filter(run__in=runs.order_by().values("pk"))
    late = now - clock.grace()
    queued = Q(status=StepStatus.QUEUED)
    expired = Q(status=StepStatus.RUNNING, wake_at__lt=now)
    running = Q(status=StepStatus.RUNNING, wake_at__gte=now)
    overdue = Q(status=StepStatus.RETRYING, due_at__lt=late)
    counts = rows.order_by("wake_at")[: MAX_STEP_RUNS + 1].aggregate(
        looked_at=Count("pk"),
        queued=Count("pk", filter=queued),
        queued_since=Min("queued_at", filter=queued),
        expired=Count("pk", filter=expired),
        expired_since=Min("wake_at", filter=expired),
        overdue=Count("pk", filter=overdue),
        overdue_since=Min("due_at", filter=overdue),
        running=Count("pk", filter=running),
        suspected=Count("pk", filter=Q(lost_workers__gt=0)),
        unseen=Count("pk", filter=Q(wake_at__lt=now - WARN_AFTER)),
        **_orphans_of(_stale(processes, now)[:MAX_DEAD]),
    )
    capped = counts.pop("looked_at") > MAX_STEP_RUNS
    suspects = _suspects_of(rows, using) if counts["suspected"] else ()
    # A sweep handles what is due within seconds: if not, it is locked, or nobody sweeps.
    unseen = rows.filter(wake_at__lt=now - WARN_AFTER) if counts.pop("unseen") else None
    classless = _classless_of(rows, using)
    unserved: tuple[str, ...] = ()
    if counts["queued_since"] and now - counts["queued_since"] > NOTICED_AFTER:
        unserved = _unserved_in(rows, now, using, _alive(processes, now))
    context = {**counts, "capped": capped, "suspects": suspects, "classless": classless}
    context["unserved"] = unserved
    return {**context, **_locked_of(unseen, using)}


def _orphans_of(dead: Sequence[WorkerProcess]) -> dict[str, Count]:
    if not dead:
        return {}
    # A worker's name begins with that of its process, which may have a mark of its own at the end.
    names = {process.name.partition("~")[0] for process in dead}
    theirs = reduce(or_, (Q(worker__startswith=f"{name}:") for name in names))
    return {"orphans": Count("pk", filter=theirs & Q(status=StepStatus.RUNNING))}


def _unserved_in(
    rows: QuerySet[StepRun], now: datetime, using: str, workers: Sequence[WorkerProcess]
) -> tuple[str, ...]:
    """The queues of step runs that have been queued for longer than a worker needs to report."""
    if not workers or not all(worker.queues for worker in workers):
        return ()  # there is none, or one has not reported its queues
    queued = rows.filter(status=StepStatus.QUEUED).order_by("wake_at")[:MAX_STEP_RUNS]
    steps = {
        (plan, step)
        for plan, step, since in queued.values_list("run__plan", "step", "queued_at")
        if now - since > NOTICED_AFTER
    }
    graphs = plans.load_many({plan for plan, _ in steps}, using)
    nodes = (graphs[plan].get(step) for plan, step in steps if plan in graphs)
    queues = {node.queue for node in nodes if node is not None}
    return tuple(sorted(queues - _queues_of(workers)))


def _classless_of(rows: QuerySet[StepRun], using: str) -> dict[str, int]:
    """The number of step runs whose class this code lacks: no worker with this code runs them."""
    labels = StoredPlan.objects.using(using).order_by().values_list("sequence", flat=True)
    missing = [label for label in labels.distinct() if registry.find(label) is None]
    if not missing:
        return {}
    rows = rows.filter(run__sequence__in=missing).order_by("wake_at")[:MAX_STEP_RUNS]
    return dict(Counter(rows.values_list("run__sequence", flat=True)))


def _locked_of(unseen: QuerySet[StepRun] | None, using: str) -> dict[str, Any]:
    locked = None if unseen is None else holders.locked(unseen, using)
    return {"locked": locked, "holder": locked and holders.holder(locked, using)}


def _suspects_of(rows: QuerySet[StepRun], using: str) -> tuple[Suspect, ...]:
    suspects = list(
        rows.filter(lost_workers__gt=0).order_by("-lost_workers", "pk")[:MAX_NAMED_SUSPECTS]
    )
    losses = newest_losses([row.pk for row in suspects], using)
    return tuple(Suspect(row, losses.get(row.pk)) for row in suspects)


# Signs


def _workers(health: Health) -> Sign:
    count = len(health.workers)
    if not count:
        return Sign("workers", Level.BAD, gettext("No workers"), _no_worker(health))
    says = ngettext("%(count)d worker", "%(count)d workers", count) % {"count": count}
    if dead := [process for process in health.workers if process.dead_threads]:
        return _dead_threads(says, dead)
    if health.stalled:
        return _stalled(health, says)
    if not health.missed:
        return Sign("workers", Level.GOOD, says)
    gone = len(health.missed)
    message = ngettext("%(workers)s, %(count)d dead", "%(workers)s, %(count)d dead", gone)
    advice = gettext(
        "%(name)s was last seen %(time)s ago and did not shut down cleanly: was it killed? Other "
        "workers take over its steps."
    ) % {"name": health.missed[0].name, "time": health._since(health.missed[0].seen_at)}
    says = message % {"workers": says, "count": gone}
    return Sign("workers", Level.WARNING, says, advice)


def _stalled(health: Health, says: str) -> Sign:
    """A process that still reports, but is stuck."""
    count, process = len(health.stalled), health.stalled[0]
    assert process.swept_at is not None
    message = ngettext("%(workers)s, %(count)d stalled", "%(workers)s, %(count)d stalled", count)
    advice = gettext(
        "%(name)s is alive, but its last sweep ended %(time)s ago: it is waiting for the "
        "database, or is stuck. It still holds its running steps. Check its threads and "
        "restart it."
    ) % {"name": process.name, "time": health._since(process.swept_at)}
    says = message % {"workers": says, "count": count}
    return Sign("workers", Level.WARNING, says, advice)


def _dead_threads(says: str, dead: list[WorkerProcess]) -> Sign:
    count = sum(process.dead_threads for process in dead)
    message = ngettext(
        "%(workers)s, %(count)d dead thread", "%(workers)s, %(count)d dead threads", count
    )
    advice = gettext(
        "%(dead)d of the %(threads)d threads of %(name)s died from an uncaught error and cannot "
        "run steps. Look for the error in the log and restart the worker."
    ) % {"dead": dead[0].dead_threads, "threads": dead[0].threads, "name": dead[0].name}
    is_useless = any(process.dead_threads >= process.threads for process in dead)
    says = message % {"workers": says, "count": count}
    return Sign("workers", Level.BAD if is_useless else Level.WARNING, says, advice)


def _no_worker(health: Health) -> str:
    if not health._performing:
        return gettext("No worker has been seen for an hour. Is `rundramatiq` running?")
    last = health._performing[0]
    # One that was killed may have lived for a while after it was last seen.
    was_killed = any(last.seen_at - process.seen_at < STALE_AFTER for process in health.stale)
    message = (
        gettext("No worker has been seen for %(time)s. Is `rundramatiq` running?")
        if was_killed
        else gettext(
            "The last worker, %(name)s, was shut down %(time)s ago. Is `rundramatiq` running?"
        )
    )
    return message % {"name": last.name, "time": health._since(last.seen_at)}


def _sweep(health: Health) -> Sign:
    level = health._level(health.swept_at)
    if health.swept_at is None:
        return Sign("sweep", Level.BAD, gettext("No sweep"), _no_sweep())
    values = {"time": health._since(health.swept_at)}
    if level == Level.GOOD:
        return Sign("sweep", level, gettext("Last sweep %(time)s ago") % values)
    if not health.sweepers:
        says = gettext("No sweep: the last one ended %(time)s ago") % values
        return Sign("sweep", Level.BAD, says, _no_sweep())
    advice = gettext(
        "%(name)s has started a sweep but not finished it. Delays, retries and lost steps are "
        "handled late. Is the database slow, or is a lock blocking it?"
    ) % {"name": health.sweepers[0].name}
    says = gettext("Sweep late: the last one ended %(time)s ago") % values
    return Sign("sweep", level, says, advice)


def _no_sweep() -> str:
    return gettext(
        "No process is running the sweep: delays, retries and lost steps are not handled. Workers "
        "run it unless SWEEP_INTERVAL is None; so does `manage.py sequences sweep --loop`."
    )


def _queued(health: Health) -> Sign:
    if not health.queued or health.queued_since is None:
        return Sign("queued", Level.GOOD, gettext("Nothing queued"))
    says = gettext("%(count)s queued, the oldest for %(time)s") % {
        "count": health._count(health.queued),
        "time": health._since(health.queued_since),
    }
    level = health._level(health.queued_since)
    if health.unserved:
        level = max(Level.WARNING, level)
    return Sign("queued", level, says, _why_queued(health) if level else "")


def _why_queued(health: Health) -> str:
    if health.unserved:
        return ngettext(
            "No worker consumes the queue %(names)s. Start a worker that does, or restart those "
            "with older code.",
            "No worker consumes the queues %(names)s. Start workers that do, or restart those "
            "with older code.",
            len(health.unserved),
        ) % {"names": ", ".join(health.unserved[:MAX_NAMED_QUEUES])}
    if health.workers and not health.running:
        return gettext(
            "Steps are waiting, but no worker is running any: the workers consume other queues, "
            "have older code or are stuck, or the broker has lost the messages. The sweep sends "
            "lost messages again."
        )
    return gettext(
        "Steps are waiting for a free worker: start more workers, or check what keeps them busy."
    )


def _expired(health: Health) -> Sign:
    if not health.expired or health.expired_since is None:
        return Sign("expired", Level.GOOD, gettext("No expired leases"))
    says = ngettext("%(count)s expired lease", "%(count)s expired leases", health.expired) % {
        "count": health._count(health.expired)
    }
    advice = gettext(
        "A lease expires when its worker dies or gets stuck; the sweep then requeues the step."
    )
    return Sign("expired", max(Level.WARNING, health._level(health.expired_since)), says, advice)


def _overdue(health: Health) -> Sign:
    if not health.overdue or health.overdue_since is None:
        return Sign("overdue", Level.GOOD, gettext("No overdue retries"))
    says = ngettext("%(count)s overdue retry", "%(count)s overdue retries", health.overdue) % {
        "count": health._count(health.overdue)
    }
    advice = gettext(
        "A retry is overdue when its time has come but no worker has picked it up from the queue."
    )
    return Sign("overdue", max(Level.WARNING, health._level(health.overdue_since)), says, advice)


def _locked(health: Health) -> Sign:
    assert health.locked is not None
    values = {"count": health.locked.count, "time": health._since(health.locked.since)}
    says = ngettext(
        "%(count)d due step has been locked for %(time)s",
        "%(count)d due steps have been locked, the first for %(time)s",
        health.locked.count,
    )
    level = max(Level.WARNING, health._level(health.locked.since))
    return Sign("locked", level, says % values, _who_locks(health.locked, health.holder))


def _who_locks(locked: Locked, holder: Holder | None) -> str:
    advice = gettext(
        "Another transaction holds a lock on step “%(step)s” of run %(run)s, or on the run. The "
        "sweep skips the step until that transaction ends."
    ) % {"step": locked.step, "run": locked.run}
    return advice if holder is None else f"{advice} {_session(holder)}"


def _session(holder: Holder) -> str:
    session = gettext("%(pid)d of user %(user)s") % {"pid": holder.pid, "user": holder.user}
    if details := ", ".join(filter(None, (holder.application, holder.state))):
        session = f"{session} ({details})"
    message = (
        gettext(
            "The lock is held by session %(session)s, whose transaction has been open for %(time)s."
        )
        if holder.is_certain
        else gettext(
            "The lock is probably held by session %(session)s, whose transaction has been open "
            "for %(time)s."
        )
    )
    return message % {"session": session, "time": format_duration(holder.age)}


def _suspects(health: Health) -> Sign:
    says = ngettext(
        "%(count)s step has lost its worker",
        "%(count)s steps have lost their workers",
        health.suspected,
    ) % {"count": health._count(health.suspected)}
    advice = gettext(
        "A process runs only one such step at a time, so that a step that kills its workers "
        "does not make the others fail."
    )
    suspects = " ".join(str(suspect) for suspect in health.suspects)
    return Sign("suspects", Level.WARNING, says, f"{suspects} {advice}")


def _struggling(health: Health) -> Sign:
    more = "+" if health.struggling > struggling.MAX_COUNTED else ""
    number = min(health.struggling, struggling.MAX_COUNTED)
    says = ngettext("%(count)s struggling step", "%(count)s struggling steps", number) % {
        "count": f"{format_number(number)}{more}"
    }
    advice = gettext(
        "A struggling step has failed at least %(limit)d times in a row and is still being "
        "retried. Filter the list of runs by “struggling” to see which runs have one."
    ) % {"limit": conf.settings.struggling_after}
    return Sign("struggling", Level.WARNING, says, advice)


def _schedules(health: Health) -> Sign:
    first = health.schedules[0]
    late = [schedule for schedule in health.schedules if not schedule.row.failures]
    count = len(health.schedules)
    says = (
        ngettext("%(count)d schedule is late", "%(count)d schedules are late", count)
        if late
        else ngettext("%(count)d schedule is failing", "%(count)d schedules are failing", count)
    ) % {"count": count}
    level = max(
        Level.WARNING, *(health._level(schedule.row.wake_at) for schedule in health.schedules)
    )
    advice = gettext("“%(name)s” of %(sequence)s: %(sentence)s") % {
        "name": first.row.name,
        "sequence": first.row.sequence,
        "sentence": first.sentence,
    }
    return Sign("schedules", level, says, advice)


def _limits(health: Health) -> Sign:
    first = health.neglected[0]
    count = len(health.neglected)
    says = ngettext("%(count)d stalled waiting line", "%(count)d stalled waiting lines", count) % {
        "count": count
    }
    advice = gettext(
        "Steps are waiting for the limit “%(limit)s”, and no sweep has checked whether any can "
        "start. Is a worker running the sweep?"
    ) % {"limit": first.limit.name}
    return Sign("limits", health._level(first.wake_at), says, advice)


def _outbox(health: Health) -> Sign:
    first = health.first_unsent
    assert first is not None
    says = ngettext(
        "%(count)s outbox message not sent", "%(count)s outbox messages not sent", health.unsent
    ) % {"count": format_number(health.unsent)}
    advice = gettext(
        "The oldest was written %(time)s ago, for actor %(actor)s. Is the broker accepting "
        "messages, and is a worker running the sweep?"
    ) % {"time": health._since(first.created_at), "actor": first.actor}
    level = max(Level.WARNING, health._level(first.created_at))
    return Sign("outbox", level, says, advice)


def _classless(health: Health) -> Sign:
    count = sum(health.classless.values())
    says = ngettext(
        "%(count)s step with a missing class",
        "%(count)s steps with missing classes",
        count,
    ) % {"count": format_number(count)}
    advice = ngettext(
        "No release with the class %(names)s is deployed here: its steps stay queued until one is, "
        "or until someone cancels their runs.",
        "No release with the classes %(names)s is deployed here: their steps stay queued until one "
        "is, or until someone cancels their runs.",
        len(health.classless),
    ) % {"names": ", ".join(sorted(health.classless)[:MAX_NAMED_SUSPECTS])}
    return Sign("classless", Level.WARNING, says, advice)


_SIGNS: tuple[Callable[[Health], Sign], ...] = (
    _workers,
    _sweep,
    _queued,
    _expired,
    _overdue,
)
