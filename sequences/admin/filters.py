"""The filters of the lists. None of them searches the runs for its choices."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..inspection import struggling
from ..inspection.snapshot import title_of
from ..models import (
    NO_ITEM,
    UNFINISHED_RUN,
    UNFINISHED_STEP,
    RunStatus,
    SequenceRun,
    StepFailure,
    StepRun,
    StepStatus,
    StoredPlan,
)
from ..transitions import clock, plans
from ..utils.text import class_name, label_of

#: How many sequences, and versions of one, are offered as choices.
OFFERED = 200
VERSIONS = 20

SPANS = {
    "hour": (timedelta(hours=1), _("last hour")),
    "day": (timedelta(days=1), _("last 24 hours")),
    "week": (timedelta(days=7), _("last 7 days")),
    "month": (timedelta(days=30), _("last 30 days")),
}


def runs_for(model_admin: Any, request: HttpRequest) -> QuerySet[SequenceRun] | None:
    """The runs that this person may see; None: all."""
    rows: QuerySet[SequenceRun] = model_admin.runs_for(request)
    return rows.order_by() if is_narrowed(rows) else None


def is_narrowed(rows: QuerySet[Any]) -> bool:
    """Whether this is only a part of the table."""
    query = rows.query
    joins = len(query.alias_map) > 1
    return bool(query.where or joins or query.is_sliced or query.combinator)


def labels_for(model_admin: Any, request: HttpRequest) -> list[str]:
    """The sequences of these runs, found in the plans, which are few."""
    stored = StoredPlan.objects.using(conf.using()).order_by("sequence")
    runs = runs_for(model_admin, request)
    if runs is not None:
        stored = stored.filter(Exists(runs.filter(sequence=OuterRef("sequence"))))
    return list(stored.values_list("sequence", flat=True).distinct()[:OFFERED])


def since(name: str, using: str) -> Any:
    """When one of the `SPANS` started."""
    span, _label = SPANS.get(name, SPANS["week"])
    return clock.now(using) - span


class SequenceFilter(admin.SimpleListFilter):
    """By sequence."""

    title = _("sequence")
    parameter_name = "sequence"
    field: ClassVar[str] = "sequence"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        labels = labels_for(model_admin, request)
        titles = {label: title_of(label) for label in labels}
        names = list(titles.values())
        # Two of one name: only their labels tell them apart.
        return [
            (label, title if names.count(title) == 1 else label) for label, title in titles.items()
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{self.field: self.value()}) if self.value() else queryset


class SequenceOfRunFilter(SequenceFilter):
    field = "run__sequence"


class StepFilter(admin.SimpleListFilter):
    """Runs that are at this step, or have failed at it. Offered once a sequence is chosen."""

    title = _("current step")
    parameter_name = "step"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = self._names(request, model_admin)
        if step := self.used_parameters.get(self.parameter_name):
            names.setdefault(str(step))
        return [(name, label_of(name)) for name in names]

    def _names(self, request: HttpRequest, model_admin: Any) -> dict[str, None]:
        label = request.GET.get(SequenceFilter.parameter_name)
        if not label or label not in labels_for(model_admin, request):
            return {}
        stored = StoredPlan.objects.using(conf.using()).filter(sequence=label).order_by("-pk")
        loaded = plans.load_many(stored.values_list("pk", flat=True)[:VERSIONS], conf.using())
        return {
            node.name: None
            for pk in sorted(loaded, reverse=True)
            for node in sorted(loaded[pk].nodes, key=lambda node: node.off_path)
        }

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        name = self.value()
        if not name:
            return queryset
        rows = StepRun.objects.using(conf.using()).filter(
            run=OuterRef("pk"), step=name, item=NO_ITEM
        )
        failed = Q(Exists(rows.filter(status=StepStatus.FAILED)))
        unfinished = Q(Exists(rows.filter(status__in=UNFINISHED_STEP)))
        may_go_on = (*UNFINISHED_RUN, RunStatus.FAILED)
        return queryset.filter(status__in=may_go_on).filter(
            failed | Q(status__in=UNFINISHED_RUN) & unfinished
        )


class StrugglingFilter(admin.SimpleListFilter):
    """Runs with a step that keeps failing, but has not failed permanently."""

    title = _("retries")
    parameter_name = "struggling"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [] if conf.settings.struggling_after is None else [("yes", _("struggling"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() != "yes":
            return queryset
        rows = struggling.step_runs(conf.using())
        return queryset.filter(status__in=UNFINISHED_RUN, pk__in=rows.order_by().values("run"))


class CreatedFilter(admin.SimpleListFilter):
    """By start time."""

    title = _("start time")
    parameter_name = "created"
    field: ClassVar[str] = "created_at"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(name, label) for name, (_span, label) in SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in SPANS:
            return queryset
        moment = since(str(self.value()), conf.using())
        return queryset.filter(**{f"{self.field}__gte": moment})


class FailureFilter(admin.ListFilter):
    """Runs with a certain failed attempt, whatever happened then; the failures page links here.

    ``error`` is the path of the exception's class, ``failed_step`` a step, ``since`` one of the
    `SPANS` (by default, a week), and ``fingerprint`` that of the message.
    """

    title = _("failed attempt")
    parameters = ("error", "failed_step", "since", "fingerprint")

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self._sees_failures = model_admin.sees_failures(request)
        for name in self.parameters:
            if name in params:
                self.used_parameters[name] = params.pop(name)[-1]

    def has_output(self) -> bool:
        return bool(self.used_parameters)

    def expected_parameters(self) -> list[str | None]:
        return list(self.parameters)

    def choices(self, changelist: Any) -> Iterator[Any]:
        everything = changelist.get_query_string(remove=list(self.parameters))
        yield {"selected": False, "query_string": everything, "display": _("All")}
        current = changelist.get_query_string(self.used_parameters)
        yield {"selected": True, "query_string": current, "display": self._described()}

    def _values(self) -> list[str]:
        return [str(self.used_parameters.get(name, "")) for name in self.parameters]

    def _described(self) -> str:
        error, step, span, _fingerprint = self._values()
        _span, label = SPANS.get(span, SPANS["week"])
        values = {"error": class_name(error), "step": label_of(step), "span": label}
        if error and step:
            return gettext("%(error)s at %(step)s, %(span)s") % values
        if error:
            return gettext("%(error)s, %(span)s") % values
        if step:
            return gettext("any error at %(step)s, %(span)s") % values
        return gettext("any error, %(span)s") % values

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self._sees_failures:  # it would tell which errors a run has had
            return queryset.none()
        using = conf.using()
        error, step, span, fingerprint = self._values()
        failures = StepFailure.objects.using(using).filter(failed_at__gte=since(span, using))
        if error:
            failures = failures.filter(error=error)
        if step:
            failures = failures.filter(step=step)
        if fingerprint:
            failures = failures.filter(fingerprint=fingerprint)
        return queryset.filter(pk__in=failures.order_by().values("run"))
