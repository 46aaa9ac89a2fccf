"""The tables: plans, runs, step runs, failed attempts, operations, schedules, limits and workers.

Any code may read them; only `sequences.transitions` writes state.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar, overload
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import models
from django.db.models import Q
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from . import conf, links
from .definitions import registry
from .definitions.plan import FORMAT, Plan
from .definitions.schedules import Timetable, timetable_of
from .definitions.subjects import (
    MAX_KEY,
    MAX_MODEL,
    MAX_PK,
    SubjectKey,
    check_subject,
    load_all,
)
from .exceptions import UnknownStep, did_you_mean
from .port import get_engine
from .utils.uuid7 import uuid7

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

    from .definitions.definition import Definition
    from .definitions.steps import Step

    Named: TypeAlias = Step[Any] | str

#: The item index of step runs that are not items. Not NULL, so that the unique constraint works on
#: every database.
NO_ITEM = -1
#: Means that there is no payload, because None can be delivered.
_NOTHING = object()


M = TypeVar("M", bound=models.Model, covariant=True)


class JSONEncoder(json.JSONEncoder):
    """`SEQUENCES["ENCODER"]`, looked up on use so that migrations need not name it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> json.JSONEncoder:  # type: ignore[misc]
        return conf.settings.encoder(*args, **kwargs)


class ExactCharField(models.CharField):  # type: ignore[type-arg]
    """A string that equals only itself, even where a database would ignore case or spaces."""

    def db_parameters(self, connection: Any) -> dict[str, Any]:
        parameters = super().db_parameters(connection)
        collation = get_engine().database(connection.alias).exact_collation(connection)
        return {**parameters, "collation": collation} if collation else parameters


class _Manager(models.Manager[M]):
    """Reads related rows from the database that holds the row, whatever a router says.

    A replica lags, and may not have the run of a step that is running right now.
    """

    _alias: str | None = None

    @property
    def _db(self) -> str | None:
        return self._alias or self._database_of_row()

    @_db.setter
    def _db(self, alias: str | None) -> None:
        self._alias = alias

    def _database_of_row(self) -> str | None:
        # Django uses one manager for rows that refer to this row, and the other for rows that this
        # row refers to and for its deferred fields.
        row = getattr(self, "instance", None) or getattr(self, "_hints", {}).get("instance")
        return row._state.db if isinstance(row, _Row) else None


class _Row(models.Model):
    """The base of all tables."""

    objects = _Manager()

    class Meta:
        abstract = True
        base_manager_name = "objects"


class RunStatus(models.TextChoices):
    """The statuses of a run."""

    RUNNING = "running", pgettext_lazy("run", "running")
    PAUSED = "paused", pgettext_lazy("run", "paused")
    UNDOING = "undoing", pgettext_lazy("run", "undoing")
    SUCCEEDED = "succeeded", pgettext_lazy("run", "succeeded")
    FAILED = "failed", pgettext_lazy("run", "failed")
    CANCELLED = "cancelled", pgettext_lazy("run", "cancelled")


class StepStatus(models.TextChoices):
    """The statuses of a step run."""

    WAITING = "waiting", _("waiting")
    QUEUED = "queued", _("queued")
    RUNNING = "running", _("running")
    RETRYING = "retrying", _("retrying")
    SUCCEEDED = "succeeded", _("succeeded")
    FAILED = "failed", _("failed")
    SKIPPED = "skipped", _("skipped")
    CANCELLED = "cancelled", _("cancelled")


class Wait(models.TextChoices):
    """What a step run waits for, other than a worker."""

    TIME = "time", _("its time")
    EVENT = "event", _("an event")
    ITEMS = "items", _("its items")
    CHILDREN = "children", _("its child runs")
    PLACE = "place", _("its turn among the items")
    UNDO = "undo", _("the rollback")
    LIMIT = "limit", _("a limit")


UNFINISHED_RUN = (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.UNDOING)
UNFINISHED_STEP = (
    StepStatus.WAITING,
    StepStatus.QUEUED,
    StepStatus.RUNNING,
    StepStatus.RETRYING,
)


class StoredPlan(_Row):
    """A version of a sequence's graph that runs started with, or that a worker had in its code."""

    id = models.BigAutoField(primary_key=True)
    sequence = ExactCharField(_("sequence"), max_length=200)
    fingerprint = models.CharField(_("fingerprint"), max_length=64)
    graph = models.JSONField(_("graph"))
    created_at = models.DateTimeField(pgettext_lazy("time", "created"))

    if TYPE_CHECKING:  # added by Django
        runs: RelatedManager[SequenceRun]

    class Meta:
        verbose_name = _("plan")
        verbose_name_plural = _("plans")
        constraints = [
            models.UniqueConstraint(
                fields=["sequence", "fingerprint"], name="job_sequences_plan_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.sequence} {self.fingerprint[:8]}"

    @cached_property
    def plan(self) -> Plan:
        """The graph as a value."""
        return Plan.from_json(self.sequence, self.graph)


class SequenceRunQuerySet(models.QuerySet["SequenceRun"]):
    """Read-only queries on runs."""

    #: The label of the sequence, if these are runs of one class.
    _label = ""

    def _of_class(self, definition: Definition) -> SequenceRunQuerySet:
        """Runs of this sequence, including those under its earlier names."""
        runs = self.filter(sequence__in=[definition.label, *definition.aliases])
        runs._label = definition.label
        return runs

    def _clone(self) -> Self:
        clone: Self = super()._clone()  # type: ignore[misc]
        clone._label = self._label
        return clone

    def __or__(self, other: Any) -> Self:
        return self._with(other, super().__or__(other))

    def __xor__(self, other: Any) -> Self:
        return self._with(other, super().__xor__(other))

    def _with(self, other: Any, both: Self) -> Self:
        if getattr(other, "_label", "") == self._label:
            return both
        both = both._clone()  # if one of the two is empty, `both` is the other one
        both._label = ""
        return both

    def unfinished(self) -> SequenceRunQuerySet:
        """Runs that are running, paused, or being rolled back."""
        return self.filter(status__in=UNFINISHED_RUN)

    def finished(self) -> SequenceRunQuerySet:
        """Runs that have succeeded, failed or been cancelled."""
        return self.exclude(status__in=UNFINISHED_RUN)

    def struggling(self) -> SequenceRunQuerySet:
        """Unfinished runs with a step that has failed at least STRUGGLING_AFTER times in a row."""
        limit = conf.settings.struggling_after
        if limit is None:
            return self.none()
        rows = StepRun.objects.using(self.db).filter(
            status__in=UNFINISHED_STEP, attempts__gte=limit
        )
        return self.unfinished().filter(pk__in=rows.values("run"))

    def waiting_for(self, step: Step[Any] | str) -> SequenceRunQuerySet:
        """Unfinished runs in which this step is waiting: for a time, an event, or other runs or
        items. If you pass the step itself and not its name, its earlier names count, too.

        Raises `UnknownStep` for the runs of a class which never had such a step.
        """
        names = [step] if isinstance(step, str) else [step.name, *step.aliases]
        if self._label:
            _refuse_unknown_step(self._label, names, self.db)
        rows = StepRun.objects.using(self.db).filter(step__in=names, status=StepStatus.WAITING)
        return self.unfinished().filter(pk__in=rows.values("run"))

    def about(self, *subjects: models.Model) -> SequenceRunQuerySet:
        """Runs started with this object, or one of these objects, as their subject."""
        pks: dict[str, list[str]] = {}
        for subject in subjects:
            key = check_subject(subject, "about")
            pks.setdefault(key.model, []).append(key.pk)
        is_about = Q()
        for model, of_model in pks.items():
            is_about |= Q(subject_row__model=model, subject_row__object_id__in=of_model)
        return self.filter(is_about) if is_about else self.none()

    def whose_id_begins(self, digits: str) -> SequenceRunQuerySet:
        """Runs whose id begins with these lower-case hexadecimal digits, at most 32."""
        first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
        if get_engine().database(self.db).orders_ids:
            return self.filter(pk__range=(first, last))
        dashes = sum(len(digits) > before for before in (8, 12, 16, 20))
        return self.filter(pk__startswith=str(first)[: len(digits) + dashes])


def _refuse_unknown_step(label: str, names: list[str], using: str) -> None:
    definition = registry.definition_of(label)
    if definition is None or label == registry.INLINE_LABEL:
        return
    if any(definition.step(name) or name in definition.plan for name in names):
        return
    if asyncio._get_running_loop() is not None or _is_in_a_plan(names, label, using):
        return  # a coroutine cannot read the plans
    hint = did_you_mean(names[0], definition.plan.names)
    raise UnknownStep(sequence=label, step=names[0], hint=hint)


def _is_in_a_plan(names: list[str], label: str, using: str) -> bool:
    """Whether runs of another release may have one of these steps."""
    rows = StoredPlan.objects.using(using).filter(sequence__in=registry.names_of(label))
    return any(
        graph["format"] > FORMAT or not {step["name"] for step in graph["steps"]}.isdisjoint(names)
        for graph in rows.values_list("graph", flat=True)
    )


class SequenceRunManager(_Manager["SequenceRun"]):
    """`SequenceRun.objects`, with the methods of its querysets.

    Not created by ``from_queryset``, whose methods type checkers know only with a plugin.
    """

    if TYPE_CHECKING:
        _hints: dict[str, Any]

        def all(self) -> SequenceRunQuerySet: ...
        def using(self, alias: str | None) -> SequenceRunQuerySet: ...
        def filter(self, *args: Any, **kwargs: Any) -> SequenceRunQuerySet: ...
        def exclude(self, *args: Any, **kwargs: Any) -> SequenceRunQuerySet: ...
        def order_by(self, *names: Any) -> SequenceRunQuerySet: ...
        def select_related(self, *names: Any) -> SequenceRunQuerySet: ...
        def prefetch_related(self, *names: Any) -> SequenceRunQuerySet: ...

    def get_queryset(self) -> SequenceRunQuerySet:
        return SequenceRunQuerySet(self.model, using=self._db, hints=self._hints)

    def unfinished(self) -> SequenceRunQuerySet:
        """See `SequenceRunQuerySet.unfinished`."""
        return self.get_queryset().unfinished()

    def finished(self) -> SequenceRunQuerySet:
        """See `SequenceRunQuerySet.finished`."""
        return self.get_queryset().finished()

    def struggling(self) -> SequenceRunQuerySet:
        """See `SequenceRunQuerySet.struggling`."""
        return self.get_queryset().struggling()

    def waiting_for(self, step: Step[Any] | str) -> SequenceRunQuerySet:
        """See `SequenceRunQuerySet.waiting_for`."""
        return self.get_queryset().waiting_for(step)

    def about(self, *subjects: models.Model) -> SequenceRunQuerySet:
        """See `SequenceRunQuerySet.about`."""
        return self.get_queryset().about(*subjects)

    def whose_id_begins(self, digits: str) -> SequenceRunQuerySet:
        """See `SequenceRunQuerySet.whose_id_begins`."""
        return self.get_queryset().whose_id_begins(digits)


class _Subject:
    """The object that a run is about: loaded on first access, then cached.

    ``prefetch_related("subject")`` loads the objects of many runs with one query per model.
    """

    name = "subject"

    @overload
    def __get__(self, run: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, run: SequenceRun, owner: type[Any]) -> models.Model | None: ...
    def __get__(self, run: SequenceRun | None, owner: type[Any]) -> Self | models.Model | None:
        if run is None:
            return self
        if not self.is_cached(run):
            key = run.subject_key
            self.keep(run, None if key is None else key.load())
        subject: models.Model | None = run._state.fields_cache[self.name]
        return subject

    def __set__(self, run: SequenceRun, value: Any) -> None:
        raise AttributeError("The subject of a run is set when the run starts, and never changes.")

    def is_cached(self, run: SequenceRun) -> bool:
        return self.name in run._state.fields_cache

    def keep(self, run: SequenceRun, subject: models.Model | None) -> None:
        """Cache an object that is already loaded."""
        run._state.fields_cache[self.name] = subject

    def get_prefetch_querysets(
        self, instances: list[SequenceRun], querysets: Any = None
    ) -> tuple[Any, ...]:
        """Django's protocol for prefetch_related."""
        if querysets is not None:
            raise ValueError(
                "Prefetching subjects with a queryset is not supported: they can be of any model."
            )
        read_subject_rows(instances)
        keys = {run.pk: run.subject_key for run in instances}
        objects = load_all(key for key in keys.values() if key is not None)
        return (
            list(objects.values()),
            SubjectKey.of,
            lambda run: keys[run.pk],
            True,
            self.name,
            False,
        )


def read_subject_rows(runs: list[SequenceRun]) -> None:
    """Read the subject rows of many runs with one query, from the runs' database."""
    relation: Any = SequenceRun._meta.get_field("subject_row")
    unread = [run for run in runs if not relation.is_cached(run)]
    if not unread:
        return
    rows = RunSubject._base_manager.using(unread[0]._state.db)
    row_of = {row.run_id: row for row in rows.filter(run__in=[run.pk for run in unread])}
    for run in unread:
        relation.set_cached_value(run, row_of.get(run.pk))


class SequenceRun(_Row):
    """One started sequence. Its steps share `data`.

    Each operation takes ``by`` (who: a user or a string) and ``reason``, leaves an `Operation` row
    if it has an effect, is safe against steps that run at the same time, updates this instance, and
    raises `InvalidTransition` in a state that does not allow it. Messages are sent when the
    caller's transaction commits.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    plan = models.ForeignKey(
        StoredPlan,
        models.PROTECT,
        related_name="runs",
        verbose_name=_("plan"),
        db_constraint=False,
    )
    sequence = ExactCharField(_("sequence"), max_length=200)
    key = ExactCharField(_("key"), max_length=255, null=True, blank=True)
    #: The key, while it prevents other starts with it.
    active_key = ExactCharField(max_length=255, null=True, blank=True, editable=False)
    #: The sequence name that scopes the key: the same in all releases that start such runs.
    key_scope = ExactCharField(
        max_length=200, blank=True, default="", db_default="", editable=False
    )
    releases_key = models.BooleanField(default=False, editable=False)
    status = models.CharField(
        _("status"), max_length=16, choices=RunStatus.choices, default=RunStatus.RUNNING
    )
    #: The status that a run being rolled back will end with.
    final_status = models.CharField(max_length=16, blank=True, editable=False)
    data = models.JSONField(_("data"), default=dict, encoder=JSONEncoder)
    version = models.BigIntegerField(_("version"), default=0)
    inbox = models.JSONField(_("inbox"), default=dict, encoder=JSONEncoder)
    parent = models.ForeignKey(
        "StepRun",
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="children",
        verbose_name=_("parent"),
        db_constraint=False,
        db_index=False,
    )
    created_at = models.DateTimeField(pgettext_lazy("time", "created"))
    updated_at = models.DateTimeField(pgettext_lazy("time", "updated"))
    finished_at = models.DateTimeField(pgettext_lazy("time", "finished"), null=True, blank=True)
    #: The order under limits: the lowest number goes first.
    priority = models.SmallIntegerField(_("priority"), default=0, db_default=0)
    #: The W3C ``traceparent`` of its start, if its spans are recorded.
    traceparent = models.CharField(
        max_length=55, blank=True, default="", db_default="", editable=False
    )

    #: The id of the newest operation that a decision is based on; 0 if there was none. If there is
    #: a newer one, this instance's operations are rejected. None: it does not matter.
    _basis: int | None = None

    objects: ClassVar[SequenceRunManager] = SequenceRunManager()
    #: The object that the run is about. None if it has none, or if it no longer exists.
    subject = _Subject()

    if TYPE_CHECKING:  # added by Django
        plan_id: int
        parent_id: int | None
        subject_row: RunSubject
        steps: RelatedManager[StepRun]
        failures: RelatedManager[StepFailure]
        losses: RelatedManager[StepLoss]
        operations: RelatedManager[Operation]

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        permissions = [
            ("retry_sequencerun", "Can retry runs"),
            ("restart_sequencerun", "Can restart runs from a step"),
            ("skip_sequencerun", "Can skip steps of runs"),
            ("pause_sequencerun", "Can pause and resume runs"),
            ("cancel_sequencerun", "Can cancel runs"),
            ("finish_sequencerun", "Can mark runs as succeeded"),
            ("set_deadline_sequencerun", "Can set the deadlines of runs"),
            ("deliver_sequencerun", "Can deliver events to runs"),
            ("edit_sequencerun", "Can edit the data of runs"),
            ("run_now_sequencerun", "Can run delayed steps now"),
            ("erase_sequencerun", "Can erase the data of runs"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["key_scope", "active_key"], name="job_sequences_run_key_once"
            )
        ]
        # On PostgreSQL, the indexes on key and parent are partial: see the migration.
        indexes = [
            models.Index(fields=["key", "sequence"], name="job_sequences_run_key"),
            models.Index(fields=["parent"], name="job_sequences_run_parent"),
            models.Index(fields=["status", "created_at"], name="job_sequences_run_status"),
            models.Index(fields=["created_at"], name="job_sequences_run_created"),
            # For the list of one sequence's runs: none of its columns ever changes.
            models.Index(fields=["sequence", "created_at"], name="job_sequences_run_sequence"),
        ]

    def __str__(self) -> str:
        return f"{self.sequence} {self.key or self.pk}"

    @property
    def is_finished(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        return self.status not in UNFINISHED_RUN

    @property
    def subject_key(self) -> SubjectKey | None:
        """What identifies the object that the run is about, even if it no longer exists.

        As a string, it is ``"shop.order:17"``; ``model`` and ``pk`` are strings, too.
        """
        row: RunSubject | None = getattr(self, "subject_row", None)
        return None if row is None else row.key

    async def asubject(self) -> models.Model | None:
        """`subject`, for asynchronous code."""
        return await sync_to_async(lambda: self.subject)()

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        """Like Django's, but also reloads the related objects."""
        super().refresh_from_db(*args, **kwargs)
        self._state.fields_cache.pop(_Subject.name, None)

    def status_url(self, *, expires: timedelta = links.DAY) -> str:
        """The path of its status as JSON, readable without a login until it expires.

        The project's URLs must include ``path("sequences/", include("sequences.urls"))``. The
        status contains no data, results or errors.
        """
        return links.signed_url("status", self.pk, expires)

    def pause(self, *, by: Any = "", reason: str = "") -> None:
        """Start no more steps until `resume`. Running steps finish; delays keep counting."""
        get_engine().operate(self, "pause", by=by, reason=reason)

    def resume(self, *, by: Any = "", reason: str = "") -> None:
        """Release the steps on hold. Steps that became due in the meantime are dispatched now."""
        get_engine().operate(self, "resume", by=by, reason=reason)

    def cancel(self, *, undo: bool | None = None, by: Any = "", reason: str = "") -> None:
        """End the run as cancelled. A step that is running can no longer commit.

        With ``undo=True``, the running step finishes first and is not retried. Then the undos of
        the completed steps run, newest first, including those of child runs. With None,
        ``Meta.cancel`` decides. Last, `on_cancel` and `on_end` run, if the class has them.
        """
        get_engine().operate(self, "cancel", undo=undo, by=by, reason=reason)

    def finish(self, *, by: Any = "", reason: str = "") -> None:
        """End the run as succeeded. Unfinished steps are skipped."""
        get_engine().operate(self, "finish", by=by, reason=reason)

    def set_deadline(
        self, deadline: timedelta | datetime | None, *, by: Any = "", reason: str = ""
    ) -> None:
        """Make the run fail if it is not finished by this deadline, which replaces an earlier one.

        Takes a timedelta from now, an aware datetime, or None to remove the deadline.
        """
        get_engine().operate(self, "set_deadline", deadline=deadline, by=by, reason=reason)

    def retry(self, *, by: Any = "", reason: str = "") -> None:
        """Restart failed steps; steps waiting for their next attempt run now.

        In a run that was rolled back, restart the failed undos, `on_failure`, `on_cancel` or
        `on_end` instead.
        """
        get_engine().operate(self, "retry", by=by, reason=reason)

    def skip(self, step: Named, *, reason: str = "", by: Any = "") -> None:
        """Continue without this step: a failed, waiting, queued or retrying one, or a failed undo.

        Raises `UnknownStep` if the run's plan has no such step.
        """
        get_engine().operate(self, "skip", step=step, by=by, reason=reason)

    def restart_from(
        self, step: Named, *, keep_deliveries: bool = False, by: Any = "", reason: str = ""
    ) -> None:
        """Run this step and all later steps again. ``data`` stays as it is.

        Events among these steps wait for a new delivery; with ``keep_deliveries``, earlier
        deliveries still count.
        """
        get_engine().operate(
            self, "restart_from", step=step, keep_deliveries=keep_deliveries, by=by, reason=reason
        )

    def run_now(self, step: Named, *, by: Any = "", reason: str = "") -> None:
        """Run this step now instead of at its scheduled time: after a delay, a repeat or a retry.

        In a fan-out, this ends the wait of every item that is waiting for a time. If the start of
        the run was delayed, the step's own `delay` still follows, counted from now. Raises
        `UnknownStep` if the run's plan has no such step, and `InvalidTransition` if the step is not
        waiting for a time. It does not end a wait for an event, for items or for child runs.
        """
        get_engine().operate(self, "run_now", step=step, by=by, reason=reason)

    def deliver(self, event: Named, payload: Any = None, *, by: Any = "", reason: str = "") -> bool:
        """Deliver an event with this payload. If it is not waiting yet, the delivery is kept.

        Returns whether this delivery counts. Only the first one does, and none does if another step
        of the same `any_of` came first. If it does not count, nothing changes, and no `Operation`
        is stored. Raises `InvalidData` if the payload is not JSON, `UnknownStep` if the
        run's plan has no such event, and `InvalidTransition` if it is too late: the event was
        skipped, or the run has succeeded or was cancelled.
        """
        counted: bool = get_engine().operate(
            self, "deliver", event=event, payload=payload, by=by, reason=reason
        )
        return counted

    def deliver_url(
        self,
        event: Named,
        payload: Any = None,
        *,
        by: Any = "",
        max_age: timedelta = links.WEEK,
    ) -> str:
        """A signed path for an email: its page shows the payload, and a button delivers it.

        Whoever has the link can deliver, once, without a login; ``by`` names that person. If the
        event has a form and no payload is given, the page shows the form. The project must include
        the URLs of `sequences`. Raises `InvalidData` if the payload is not valid, `UnknownStep` if
        the run's plan has no such event, and `SequenceError` if the path would be too long.
        """
        name, checked, caller = get_engine().delivery(self, event, payload, by)
        return links.delivery_url(self.pk, name, checked, caller, max_age)

    def delivered(self, event: Named) -> bool:
        """Whether the event was delivered: true as soon as `deliver` has returned.

        Always reads the database. Raises `UnknownStep` if the run's plan has no such event.
        """
        return get_engine().payload(self, event, _NOTHING) is not _NOTHING

    def payload(self, event: Named, default: Any = None) -> Any:
        """The payload that was delivered for this event, or ``default``. Raises `UnknownStep`."""
        return get_engine().payload(self, event, default)

    def edit(self, data: dict[str, Any], *, by: Any = "", reason: str = "") -> None:
        """Replace the run's data.

        Raises `InvalidTransition` while a step is running, or if the run has changed since this
        instance was read, and `InvalidData` if the data cannot be stored.
        """
        get_engine().operate(self, "edit", data=data, by=by, reason=reason)

    def erase(self, *, keep_key: bool = False, by: Any = "", reason: str = "") -> None:
        """Permanently erase the stored data of a finished run and its child runs.

        This covers data, deliveries, payloads, results, error texts, the reasons of earlier
        operations, and the key, which can then be used again unless ``keep_key`` is set. Raises
        `InvalidTransition` while a child run has not finished.
        """
        get_engine().operate(self, "erase", keep_key=keep_key, by=by, reason=reason)

    async def apause(self, *, by: Any = "", reason: str = "") -> None:
        """`pause`, for asynchronous code."""
        await sync_to_async(self.pause)(by=by, reason=reason)

    async def aresume(self, *, by: Any = "", reason: str = "") -> None:
        """`resume`, for asynchronous code."""
        await sync_to_async(self.resume)(by=by, reason=reason)

    async def acancel(self, *, undo: bool | None = None, by: Any = "", reason: str = "") -> None:
        """`cancel`, for asynchronous code."""
        await sync_to_async(self.cancel)(undo=undo, by=by, reason=reason)

    async def afinish(self, *, by: Any = "", reason: str = "") -> None:
        """`finish`, for asynchronous code."""
        await sync_to_async(self.finish)(by=by, reason=reason)

    async def aset_deadline(
        self, deadline: timedelta | datetime | None, *, by: Any = "", reason: str = ""
    ) -> None:
        """`set_deadline`, for asynchronous code."""
        await sync_to_async(self.set_deadline)(deadline, by=by, reason=reason)

    async def aretry(self, *, by: Any = "", reason: str = "") -> None:
        """`retry`, for asynchronous code."""
        await sync_to_async(self.retry)(by=by, reason=reason)

    async def askip(self, step: Named, *, reason: str = "", by: Any = "") -> None:
        """`skip`, for asynchronous code."""
        await sync_to_async(self.skip)(step, reason=reason, by=by)

    async def arestart_from(
        self, step: Named, *, keep_deliveries: bool = False, by: Any = "", reason: str = ""
    ) -> None:
        """`restart_from`, for asynchronous code."""
        await sync_to_async(self.restart_from)(
            step, keep_deliveries=keep_deliveries, by=by, reason=reason
        )

    async def arun_now(self, step: Named, *, by: Any = "", reason: str = "") -> None:
        """`run_now`, for asynchronous code."""
        await sync_to_async(self.run_now)(step, by=by, reason=reason)

    async def adeliver(
        self, event: Named, payload: Any = None, *, by: Any = "", reason: str = ""
    ) -> bool:
        """`deliver`, for asynchronous code."""
        return await sync_to_async(self.deliver)(event, payload, by=by, reason=reason)

    async def adelivered(self, event: Named) -> bool:
        """`delivered`, for asynchronous code."""
        return await sync_to_async(self.delivered)(event)

    async def apayload(self, event: Named, default: Any = None) -> Any:
        """`payload`, for asynchronous code."""
        return await sync_to_async(self.payload)(event, default)

    async def aedit(self, data: dict[str, Any], *, by: Any = "", reason: str = "") -> None:
        """`edit`, for asynchronous code."""
        await sync_to_async(self.edit)(data, by=by, reason=reason)

    async def aerase(self, *, keep_key: bool = False, by: Any = "", reason: str = "") -> None:
        """`erase`, for asynchronous code."""
        await sync_to_async(self.erase)(keep_key=keep_key, by=by, reason=reason)


class StepRun(_Row):
    """One step of one run, or one item of a fan-out step."""

    id = models.BigAutoField(primary_key=True)
    # No database constraint: its trigger would fire for every inserted step.
    run = models.ForeignKey(
        SequenceRun,
        models.CASCADE,
        related_name="steps",
        verbose_name=_("run"),
        db_constraint=False,
        db_index=False,
    )
    step = ExactCharField(_("step"), max_length=100)
    item = models.IntegerField(_("item"), default=NO_ITEM)
    kind = models.CharField(_("kind"), max_length=16, default="step")
    status = models.CharField(
        _("status"), max_length=16, choices=StepStatus.choices, default=StepStatus.QUEUED
    )
    #: Failed attempts since it became ready, was last repeated, or was last retried by a person.
    attempts = models.IntegerField(_("failed attempts"), default=0)
    #: How many workers in a row have died while running it.
    lost_workers = models.SmallIntegerField(_("lost workers in a row"), default=0)
    #: How many times it committed and asked to run again.
    repeats = models.IntegerField(_("repeats"), default=0)
    #: How many of the sweep's messages for it the broker has accepted since it was last queued.
    dispatches = models.SmallIntegerField(default=0, editable=False)
    #: Whether its own `delay` was already evaluated.
    delay_evaluated = models.BooleanField(default=False, editable=False)
    #: What it is waiting for if its status is "waiting"; otherwise, the last thing that it waited
    #: for. A step that has waited for its items or children is claimed again to collect their
    #: results.
    wait = models.CharField(
        _("waits for"),
        max_length=16,
        choices=Wait.choices,
        blank=True,
        default="",
        db_default="",
    )
    #: When that wait began.
    waiting_since = models.DateTimeField(_("waiting since"), null=True, blank=True)
    #: While waiting for items: the `total` number, the `window` of items that may be in flight, the
    #: `next` one to release, how many earlier ones are `held` because they lost their places, and
    #: whether it is `stopping`. While waiting for children: the `total` number.
    members = models.JSONField(null=True, blank=True, editable=False)
    #: How far the rollback of its children has got: one of `transitions.subsequences.ChildrenUndo`.
    children_undo = models.CharField(
        max_length=8, blank=True, default="", db_default="", editable=False
    )
    #: The fencing token of the claim that runs or last ran it.
    token = models.BigIntegerField(null=True, blank=True, editable=False)
    worker = models.CharField(_("worker"), max_length=100, blank=True)
    progress = models.JSONField(_("progress"), null=True, blank=True, encoder=JSONEncoder)
    #: For an item, the item itself; for the undo of an item, the item and its result.
    payload = models.JSONField(_("payload"), null=True, blank=True, encoder=JSONEncoder)
    result = models.JSONField(_("result"), null=True, blank=True, encoder=JSONEncoder)
    ready_at = models.DateTimeField(pgettext_lazy("time", "ready"))
    queued_at = models.DateTimeField(pgettext_lazy("time", "queued"))
    started_at = models.DateTimeField(pgettext_lazy("time", "started"), null=True, blank=True)
    finished_at = models.DateTimeField(pgettext_lazy("time", "finished"), null=True, blank=True)
    #: When it may run: the end of a delay, or of a retry's backoff.
    due_at = models.DateTimeField(pgettext_lazy("time", "due"), null=True, blank=True)
    #: If nothing has happened by then, the sweep checks it. None: it has finished, or it is on hold
    #: because the run is paused or has failed.
    wake_at = models.DateTimeField(_("wake-up"), null=True, blank=True)

    if TYPE_CHECKING:  # added by Django
        run_id: UUID
        children: RelatedManager[SequenceRun]
        failures: RelatedManager[StepFailure]
        losses: RelatedManager[StepLoss]
        calls: RelatedManager[StepCall]

    class Meta:
        verbose_name = _("step run")
        verbose_name_plural = _("step runs")
        constraints = [
            models.UniqueConstraint(
                fields=["run", "step", "item"], name="job_sequences_step_run_once"
            )
        ]
        # On PostgreSQL, a partial index, without NULLs: see the migration.
        indexes = [models.Index(fields=["wake_at"], name="job_sequences_step_wake")]

    def __str__(self) -> str:
        item = "" if self.item == NO_ITEM else f"[{self.item}]"
        return f"{self.step}{item}"

    @property
    def is_struggling(self) -> bool:
        """Whether it is unfinished and has failed at least STRUGGLING_AFTER times in a row."""
        limit = conf.settings.struggling_after
        return limit is not None and self.attempts >= limit and self.status in UNFINISHED_STEP


class StepFailure(_Row):
    """One failed attempt. Rows are only ever added."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(
        SequenceRun,
        models.CASCADE,
        related_name="failures",
        verbose_name=_("run"),
        db_constraint=False,
    )
    step_run = models.ForeignKey(
        StepRun,
        models.SET_NULL,
        null=True,
        related_name="failures",
        verbose_name=_("step run"),
        db_constraint=False,
    )
    step = ExactCharField(_("step"), max_length=100)
    item = models.IntegerField(_("item"), default=NO_ITEM)
    attempt = models.PositiveIntegerField(_("attempt"))
    error = models.CharField(_("error"), max_length=200)
    message = models.TextField(_("message"), blank=True)
    #: A digest of the message without numbers and quoted parts: failures are grouped by it.
    fingerprint = models.CharField(
        max_length=16, blank=True, default="", db_default="", editable=False
    )
    traceback = models.TextField(_("traceback"), blank=True)
    worker = models.CharField(_("worker"), max_length=100, blank=True)
    failed_at = models.DateTimeField(pgettext_lazy("time", "failed"), db_index=True)

    if TYPE_CHECKING:  # added by Django
        run_id: UUID
        step_run_id: int | None

    class Meta:
        verbose_name = _("failed attempt")
        verbose_name_plural = _("failed attempts")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.step} #{self.attempt}: {self.error}"


class StepLoss(_Row):
    """A worker that died while running a step, and what else it was running. Only ever added."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(
        SequenceRun,
        models.CASCADE,
        related_name="losses",
        verbose_name=_("run"),
        db_constraint=False,
    )
    step_run = models.ForeignKey(
        StepRun,
        models.SET_NULL,
        null=True,
        related_name="losses",
        verbose_name=_("step run"),
        db_constraint=False,
    )
    step = ExactCharField(_("step"), max_length=100)
    item = models.IntegerField(_("item"), default=NO_ITEM)
    worker = models.CharField(_("worker"), max_length=100)
    #: The other step runs of that process, by run, step and item; empty if there were none.
    concurrent_steps = models.JSONField(_("concurrent steps"), default=list)
    lost_at = models.DateTimeField(pgettext_lazy("time", "lost"), db_index=True)

    if TYPE_CHECKING:  # added by Django
        run_id: UUID
        step_run_id: int | None

    class Meta:
        verbose_name = _("lost worker")
        verbose_name_plural = _("lost workers")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.step}: {self.worker}"


class RunDeadline(_Row):
    """The deadline of an unfinished run. Deleted when it has passed."""

    run = models.OneToOneField(
        SequenceRun,
        models.CASCADE,
        primary_key=True,
        related_name="deadline",
        verbose_name=_("run"),
        db_constraint=False,
    )
    due_at = models.DateTimeField(_("deadline"), db_index=True)

    if TYPE_CHECKING:  # added by Django
        run_id: UUID

    class Meta:
        verbose_name = _("deadline")
        verbose_name_plural = _("deadlines")

    def __str__(self) -> str:
        return f"{self.due_at:%Y-%m-%d %H:%M:%S %Z}"


class OutboxMessage(_Row):
    """A message that `dispatch` has written and the broker does not have yet."""

    id = models.BigAutoField(primary_key=True)
    actor = models.CharField(_("actor"), max_length=255)
    queue = models.CharField(_("queue"), max_length=255)
    #: The whole message, as JSON.
    message = models.TextField(_("message"))
    created_at = models.DateTimeField(pgettext_lazy("time", "created"))
    #: When the sweep sends it.
    wake_at = models.DateTimeField(db_index=True)
    #: How many times the broker has failed to accept it.
    failures = models.PositiveIntegerField(_("failures"), default=0)

    class Meta:
        verbose_name = _("outbox message")
        verbose_name_plural = _("outbox messages")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.actor} #{self.pk}"


class RunSubject(_Row):
    """The object that a run is about. A run without one has no row here."""

    run = models.OneToOneField(
        SequenceRun,
        models.CASCADE,
        primary_key=True,
        related_name="subject_row",
        verbose_name=_("run"),
        db_constraint=False,
    )
    #: Its label in lower case, like that of a content type.
    model = ExactCharField(_("model"), max_length=MAX_MODEL)
    object_id = ExactCharField(_("object ID"), max_length=MAX_PK)
    #: When the sweep erases the run's data, because the object was deleted; otherwise None.
    erase_at = models.DateTimeField(null=True, blank=True, db_index=True, editable=False)

    if TYPE_CHECKING:  # added by Django
        run_id: UUID

    class Meta:
        verbose_name = _("subject")
        verbose_name_plural = _("subjects")
        indexes = [models.Index(fields=["model", "object_id"], name="job_sequences_run_subject")]

    def __str__(self) -> str:
        return str(self.key)

    @property
    def key(self) -> SubjectKey:
        """The name of the object."""
        return SubjectKey(self.model, self.object_id)


class StepCall(_Row):
    """What one call of `Sequence.once` returned in a step run. Rows are only ever added."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(
        SequenceRun,
        models.CASCADE,
        related_name="calls",
        verbose_name=_("run"),
        db_constraint=False,
    )
    step_run = models.ForeignKey(
        StepRun,
        models.CASCADE,
        related_name="calls",
        verbose_name=_("step run"),
        db_constraint=False,
        db_index=False,
    )
    name = ExactCharField(_("name"), max_length=100)
    result = models.JSONField(_("result"), null=True, encoder=JSONEncoder)
    called_at = models.DateTimeField(pgettext_lazy("time", "called"))

    if TYPE_CHECKING:  # added by Django
        run_id: UUID
        step_run_id: int

    class Meta:
        verbose_name = _("durable call")
        verbose_name_plural = _("durable calls")
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["step_run", "name"], name="job_sequences_step_call_once"
            )
        ]

    def __str__(self) -> str:
        return str(self.name)


class Operation(_Row):
    """One action of a person or a program on a run. Rows are only ever added."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(
        SequenceRun,
        models.CASCADE,
        related_name="operations",
        verbose_name=_("run"),
        db_constraint=False,
    )
    action = models.CharField(_("action"), max_length=32)
    step = models.CharField(_("step"), max_length=100, blank=True)
    reason = models.TextField(_("reason"), blank=True)
    by = models.CharField(_("by"), max_length=150, blank=True)
    before = models.JSONField(_("before"), null=True, blank=True, encoder=JSONEncoder)
    after = models.JSONField(_("after"), null=True, blank=True, encoder=JSONEncoder)
    done_at = models.DateTimeField(pgettext_lazy("time", "done"))

    if TYPE_CHECKING:  # added by Django
        run_id: UUID

    class Meta:
        verbose_name = _("operation")
        verbose_name_plural = _("operations")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.action} {self.step}".strip()


class ScheduleQuerySet(models.QuerySet["Schedule"]):
    """Read-only queries on schedules."""

    def active(self) -> ScheduleQuerySet:
        """Schedules that start runs: neither paused nor orphaned."""
        return self.filter(paused_at=None, orphaned_at=None)

    def about(self, *subjects: models.Model) -> ScheduleQuerySet:
        """Schedules created for this object, or one of these: their runs are about it."""
        keys = [str(check_subject(subject, "about")) for subject in subjects]
        return self.filter(subject_text__in=keys)


class Schedule(_Row):
    """Starts runs of a sequence at the slots of a timetable.

    The timetable is declared in the code of the sequence, or was created at run time. Each
    operation takes ``by`` (who: a user or a string) and ``reason``, leaves a `ScheduleOperation`
    row, updates this instance, and raises `InvalidSchedule` if it is not possible.
    """

    id = models.BigAutoField(primary_key=True)
    sequence = ExactCharField(_("sequence"), max_length=200)
    #: The name of its sequence in all releases, even if the class was renamed.
    scope = ExactCharField(max_length=200, editable=False)
    name = ExactCharField(_("name"), max_length=100)
    #: The timetable, as `Timetable.to_json` writes it.
    spec = models.JSONField(_("timetable"))
    #: The data of its runs, if it was created at run time; otherwise, the code has it.
    data = models.JSONField(_("data"), null=True, blank=True, encoder=JSONEncoder)
    #: What identifies the object that its runs are about, if it was created at run time.
    subject_text = ExactCharField(
        _("subject"), max_length=MAX_KEY, blank=True, default="", db_default="", db_index=True
    )
    is_declared = models.BooleanField(_("declared in code"), default=False)
    #: The declaration in force and those of earlier releases, in order.
    fingerprint = models.CharField(max_length=64, blank=True, default="", editable=False)
    declarations = models.JSONField(default=list, editable=False)
    #: When a process that sweeps last had this declaration in its code.
    confirmed_at = models.DateTimeField(null=True, blank=True, editable=False)
    #: Since when no code has declared it.
    orphaned_at = models.DateTimeField(pgettext_lazy("time", "orphaned"), null=True, blank=True)
    paused_at = models.DateTimeField(pgettext_lazy("time", "paused"), null=True, blank=True)
    next_slot = models.DateTimeField(_("next slot"), null=True, blank=True)
    #: Whether that slot has come and is waiting until the last run has ended.
    is_waiting = models.BooleanField(default=False, editable=False)
    #: When the sweep handles it next. None: it is paused, orphaned, or has no more slots.
    wake_at = models.DateTimeField(_("wake-up"), null=True, blank=True, db_index=True)
    last_slot = models.DateTimeField(_("last slot"), null=True, blank=True)
    #: The last run that it started; may have been deleted.
    last_run = models.ForeignKey(
        SequenceRun,
        models.DO_NOTHING,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("last run"),
        db_constraint=False,
        db_index=False,
    )
    last_started_at = models.DateTimeField(_("last start"), null=True, blank=True)
    #: The newest slot that started no run, and why: "overlap" or "missed".
    skipped_slot = models.DateTimeField(_("skipped slot"), null=True, blank=True)
    skip_reason = models.CharField(max_length=16, blank=True, default="", editable=False)
    #: Why it could not start the run of its slot, and how many times in a row.
    error = models.TextField(_("error"), blank=True, default="")
    failures = models.PositiveIntegerField(_("failures"), default=0)
    failed_at = models.DateTimeField(pgettext_lazy("time", "failed"), null=True, blank=True)
    #: Changes with each write except a confirmation, so that nobody acts on an outdated row.
    version = models.PositiveBigIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(pgettext_lazy("time", "created"))
    updated_at = models.DateTimeField(pgettext_lazy("time", "updated"))

    #: The same as for a `SequenceRun`.
    _basis: int | None = None

    objects = _Manager.from_queryset(ScheduleQuerySet)()  # type: ignore[misc]

    if TYPE_CHECKING:  # added by Django
        last_run_id: UUID | None
        operations: RelatedManager[ScheduleOperation]

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        permissions = [
            ("pause_schedule", "Can pause and resume schedules"),
            ("run_now_schedule", "Can start runs of schedules now"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["scope", "name"], name="job_sequences_schedule_once")
        ]

    def __str__(self) -> str:
        return f"{self.sequence} {self.name}"

    @property
    def subject_key(self) -> SubjectKey | None:
        """What identifies the object that its runs are about. None if there is none."""
        return SubjectKey.parse(self.subject_text) if self.subject_text else None

    @cached_property
    def timetable(self) -> Timetable:
        """Its slots and options. Raises `SequenceError` if this release cannot read them."""
        return timetable_of(self.spec, self.data)

    def pause(self, *, by: Any = "", reason: str = "") -> None:
        """Start no runs until `resume`. Slots that pass in the meantime are not caught up on."""
        get_engine().operate_schedule(self, "pause", by=by, reason=reason)

    def resume(self, *, by: Any = "", reason: str = "") -> None:
        """Start runs again, from the next slot."""
        get_engine().operate_schedule(self, "resume", by=by, reason=reason)

    def update(
        self,
        timetable: Timetable | None = None,
        *,
        data: Any = None,
        by: Any = "",
        reason: str = "",
    ) -> None:
        """Change the timetable, or the data of future runs, of a schedule created at run time.

        None leaves a value unchanged. Raises `InvalidData` if the data is not valid, and
        `InvalidSchedule` for a schedule that is declared in code.
        """
        get_engine().operate_schedule(
            self, "update", timetable=timetable, data=data, by=by, reason=reason
        )

    def remove(self, *, by: Any = "", reason: str = "") -> None:
        """Remove the schedule; its runs are kept. Raises `InvalidSchedule` if code declares it."""
        get_engine().operate_schedule(self, "remove", by=by, reason=reason)

    def run_now(self, *, by: Any = "", reason: str = "") -> SequenceRun:
        """Start a run now, in addition to the slots of the timetable, and return the run.

        Raises `InvalidSchedule` while its last run is unfinished, unless its runs may overlap.
        """
        run: SequenceRun = get_engine().operate_schedule(self, "run_now", by=by, reason=reason)
        return run

    async def apause(self, *, by: Any = "", reason: str = "") -> None:
        """`pause`, for asynchronous code."""
        await sync_to_async(self.pause)(by=by, reason=reason)

    async def aresume(self, *, by: Any = "", reason: str = "") -> None:
        """`resume`, for asynchronous code."""
        await sync_to_async(self.resume)(by=by, reason=reason)

    async def aupdate(
        self,
        timetable: Timetable | None = None,
        *,
        data: Any = None,
        by: Any = "",
        reason: str = "",
    ) -> None:
        """`update`, for asynchronous code."""
        await sync_to_async(self.update)(timetable, data=data, by=by, reason=reason)

    async def aremove(self, *, by: Any = "", reason: str = "") -> None:
        """`remove`, for asynchronous code."""
        await sync_to_async(self.remove)(by=by, reason=reason)

    async def arun_now(self, *, by: Any = "", reason: str = "") -> SequenceRun:
        """`run_now`, for asynchronous code."""
        return await sync_to_async(self.run_now)(by=by, reason=reason)


class ScheduleOperation(_Row):
    """One action of a person or a program on a schedule. Only ever added; outlives the schedule."""

    id = models.BigAutoField(primary_key=True)
    schedule = models.ForeignKey(
        Schedule,
        models.DO_NOTHING,
        related_name="operations",
        verbose_name=_("schedule"),
        db_constraint=False,
    )
    sequence = ExactCharField(_("sequence"), max_length=200)
    name = ExactCharField(_("name"), max_length=100)
    action = models.CharField(_("action"), max_length=32)
    reason = models.TextField(_("reason"), blank=True)
    by = models.CharField(_("by"), max_length=150, blank=True)
    before = models.JSONField(_("before"), null=True, blank=True, encoder=JSONEncoder)
    after = models.JSONField(_("after"), null=True, blank=True, encoder=JSONEncoder)
    done_at = models.DateTimeField(pgettext_lazy("time", "done"))

    if TYPE_CHECKING:  # added by Django
        schedule_id: int

    class Meta:
        verbose_name = _("schedule operation")
        verbose_name_plural = _("schedule operations")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.action} {self.sequence} {self.name}"


class PermitState(models.TextChoices):
    """The states of a permit."""

    WAITING = "waiting", _("waiting")
    #: Its owner is waiting in the line of another of its limits.
    BLOCKED = "blocked", _("waiting for another limit")
    GRANTED = "granted", _("granted")


class LimitOverride(_Row):
    """Different numbers for a limit until someone ends the override. Rows change only then."""

    id = models.BigAutoField(primary_key=True)
    limit = ExactCharField(_("limit"), max_length=100, db_index=True)
    concurrency = models.PositiveIntegerField(_("concurrency"), null=True, blank=True)
    rate = models.PositiveIntegerField(_("rate"), null=True, blank=True)
    per = models.DurationField(_("period"), null=True, blank=True)
    by = models.CharField(_("by"), max_length=150, blank=True)
    reason = models.TextField(_("reason"), blank=True)
    created_at = models.DateTimeField(pgettext_lazy("time", "created"))
    ended_at = models.DateTimeField(pgettext_lazy("time", "ended"), null=True, blank=True)
    ended_by = models.CharField(_("ended by"), max_length=150, blank=True)

    class Meta:
        verbose_name = _("limit override")
        verbose_name_plural = _("limit overrides")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.limit} #{self.pk}"


class StoredLimit(_Row):
    """A limit by its name, with the numbers that the code declares."""

    id = models.BigAutoField(primary_key=True)
    name = ExactCharField(_("name"), max_length=100, unique=True)
    concurrency = models.PositiveIntegerField(_("concurrency"), null=True, blank=True)
    rate = models.PositiveIntegerField(_("rate"), null=True, blank=True)
    per = models.DurationField(_("period"), null=True, blank=True)
    #: The override in force, in place of these numbers.
    override = models.ForeignKey(
        LimitOverride,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("override"),
        db_constraint=False,
    )

    if TYPE_CHECKING:  # added by Django
        override_id: int | None
        keys: RelatedManager[LimitKey]

    #: The id of the override that a decision is based on; 0 if there was none. If there is
    #: another one now, this instance's operations are rejected. None: it does not matter.
    _basis: int | None = None

    class Meta:
        verbose_name = _("limit")
        verbose_name_plural = _("limits")
        ordering = ["name"]
        permissions = [("override_storedlimit", "Can override limits")]

    def __str__(self) -> str:
        return f"{self.name}"

    @property
    def numbers(self) -> tuple[int | None, int | None, timedelta | None]:
        """The numbers in force: the concurrency, the rate and its period. None: there is no such
        limit."""
        row = self.override or self
        return row.concurrency, row.rate, row.per

    def change(
        self,
        *,
        concurrency: int | None = None,
        rate: int | None = None,
        per: timedelta | None = None,
        by: Any = "",
        reason: str = "",
    ) -> None:
        """Override the numbers until `reset`; what is not passed stays as it is now.

        Leaves a `LimitOverride`. With a concurrency of 0, nothing starts. Raises `SequenceError`
        for an invalid number.
        """
        get_engine().change_limit(
            self, concurrency=concurrency, rate=rate, per=per, by=by, reason=reason
        )

    def reset(self, *, by: Any = "") -> None:
        """End the override: the numbers in the code apply again."""
        get_engine().reset_limit(self, by=by)


class LimitKey(_Row):
    """The line of one key of a limit. Whoever grants or frees a place in it locks this row."""

    id = models.BigAutoField(primary_key=True)
    limit = models.ForeignKey(
        StoredLimit,
        models.CASCADE,
        related_name="keys",
        verbose_name=_("limit"),
        db_constraint=False,
        db_index=False,
    )
    key = ExactCharField(_("key"), max_length=200, blank=True)
    #: The earliest time at which the rate allows another start.
    next_at = models.DateTimeField(null=True, blank=True, editable=False)
    #: When a place in it was last granted.
    granted_at = models.DateTimeField(pgettext_lazy("time", "granted"), null=True, blank=True)
    #: When the sweep checks the line; None: nobody is waiting in it.
    wake_at = models.DateTimeField(null=True, blank=True, db_index=True, editable=False)

    if TYPE_CHECKING:  # added by Django
        limit_id: int
        permits: RelatedManager[Permit]

    class Meta:
        verbose_name = _("limit line")
        verbose_name_plural = _("limit lines")
        constraints = [
            models.UniqueConstraint(fields=["limit", "key"], name="job_sequences_limit_key_once")
        ]

    def __str__(self) -> str:
        return f"{self.key}"


class Permit(_Row):
    """The place that a step run or a run has, or waits for, under one key of a limit.

    A granted place counts only while the row of its owner uses it: when the lease of a killed
    worker's claim ends, its place is free again.
    """

    id = models.BigAutoField(primary_key=True)
    line = models.ForeignKey(
        LimitKey,
        models.CASCADE,
        related_name="permits",
        verbose_name=_("line"),
        db_constraint=False,
        db_index=False,
    )
    run = models.ForeignKey(
        SequenceRun,
        models.CASCADE,
        related_name="permits",
        verbose_name=_("run"),
        db_constraint=False,
    )
    #: None: the place is the run's own.
    step_run = models.ForeignKey(
        StepRun,
        models.CASCADE,
        null=True,
        related_name="permits",
        verbose_name=_("step run"),
        db_constraint=False,
    )
    state = models.CharField(_("state"), max_length=8, choices=PermitState.choices)
    priority = models.SmallIntegerField(_("priority"), default=0)
    #: When its owner became ready: decides the order within a priority.
    ready_at = models.DateTimeField(pgettext_lazy("time", "ready"))
    #: From when it may be used; with a rate, this may be in the future.
    granted_at = models.DateTimeField(pgettext_lazy("time", "granted"), null=True, blank=True)
    #: The fencing token of the claim that uses it.
    token = models.BigIntegerField(null=True, blank=True, editable=False)
    #: Whether it cancels the oldest run that has a place instead of waiting.
    replaces = models.BooleanField(default=False, editable=False)

    if TYPE_CHECKING:  # added by Django
        line_id: int
        run_id: UUID
        step_run_id: int | None

    class Meta:
        verbose_name = _("permit")
        verbose_name_plural = _("permits")
        indexes = [
            models.Index(
                fields=["line", "state", "priority", "ready_at", "id"],
                name="job_sequences_permit_order",
            )
        ]

    def __str__(self) -> str:
        return f"{self.state} #{self.pk}"


class WorkerProcess(_Row):
    """A worker process as last seen: it updates this row every ten seconds, and when it stops."""

    id = models.BigAutoField(primary_key=True)
    name = ExactCharField(_("name"), max_length=100, unique=True)
    queues = models.JSONField(_("queues"), default=list)
    threads = models.PositiveIntegerField(_("threads"), default=0)
    #: How many of these threads have died.
    dead_threads = models.PositiveIntegerField(_("dead threads"), default=0)
    started_at = models.DateTimeField(pgettext_lazy("time", "started"))
    seen_at = models.DateTimeField(_("last seen"), db_index=True)
    #: When its last sweep ended; None: it does not sweep.
    swept_at = models.DateTimeField(_("last sweep"), null=True, blank=True)
    #: When it shut down cleanly; None: it is running, or was killed.
    stopped_at = models.DateTimeField(pgettext_lazy("time", "stopped"), null=True, blank=True)
    #: Tokens of claims that it holds but could not extend, because others had locked their rows.
    unextended_claims = models.JSONField(default=list, editable=False)

    class Meta:
        verbose_name = _("worker process")
        verbose_name_plural = _("worker processes")

    def __str__(self) -> str:
        return f"{self.name}"
