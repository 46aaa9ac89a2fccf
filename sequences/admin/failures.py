"""What fails, where and how often: failed attempts of the last week, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import django
from django import forms
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Exists, Max, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..inspection.snapshot import hide_secrets, title_of
from ..inspection.wording import format_number
from ..models import SequenceRun, StepFailure
from ..transitions import clock
from ..transitions.causes import CHILDREN_FAILED, ITEMS_FAILED
from ..utils.text import class_name, first_line, label_of
from . import columns
from .base import heavy
from .filters import SPANS, runs_for
from .health import LIVE, strip
from .pagination import KeysetAdmin

#: How many failed attempts are counted, and how many groups are shown.
COUNTED, GROUPS = 50_000, 100
#: The columns.
WITHIN = ("hour", "day", "week")


@dataclass(frozen=True)
class Group:
    """Failed attempts of one step with the same class of exception and similar messages."""

    sequence: str
    step: str
    error: str
    fingerprint: str
    counts: dict[str, int]
    newest: StepFailure
    now: datetime
    list_url: str

    @property
    def title(self) -> str:
        """The name of the sequence, for people."""
        return title_of(self.sequence)

    @property
    def step_label(self) -> str:
        """The label of the step."""
        return label_of(self.step)

    @property
    def error_name(self) -> str:
        """The class without its module."""
        return class_name(self.error)

    @property
    def message(self) -> str:
        """The first line of the latest message."""
        return first_line(self.newest.message, columns.CUT)

    @property
    def last(self) -> str:
        """When the latest one happened."""
        return columns.moment(self.newest.failed_at, self.now)

    @property
    def cells(self) -> list[str]:
        """The number within each time span, each a link to the runs."""
        return [self._cell(span) for span in WITHIN]

    def _cell(self, span: str) -> str:
        if not self.counts[span]:
            return "0"
        query = {
            "sequence": self.sequence,
            "error": self.error,
            "failed_step": self.step,
            "fingerprint": self.fingerprint,
            "since": span,
        }
        count = format_number(self.counts[span])
        return format_html('<a href="{}?{}">{}</a>', self.list_url, urlencode(query), count)


@dataclass(frozen=True)
class Table:
    """All groups, those that fail most at present first."""

    groups: tuple[Group, ...]
    #: If there are more failed attempts than are counted: since when they are counted.
    since: datetime | None
    #: Whether there are more groups.
    more: bool


def read(runs: QuerySet[SequenceRun] | None, list_url: str, using: str) -> Table:
    """The failed attempts of these runs, or of all runs. Four queries."""
    now = clock.now(using)
    rows = StepFailure.objects.using(using).filter(failed_at__gte=now - SPANS["week"][0])
    if runs is not None:
        rows = rows.filter(run__in=runs.values("pk"))
    rows = rows.exclude(_has_failures_below(runs, using))
    newest_first = rows.order_by("-failed_at").values_list("failed_at", flat=True)
    since = newest_first[COUNTED : COUNTED + 1].first()
    if since is not None:
        rows = rows.filter(failed_at__gt=since)
    counts = list(_grouped(rows, now)[: GROUPS + 1])
    newest = _newest([row["newest"] for row in counts[:GROUPS]], using)
    groups = (
        Group(
            sequence=row["run__sequence"],
            step=row["step"],
            error=row["error"],
            fingerprint=row["fingerprint"],
            counts={span: row[span] for span in WITHIN},
            newest=newest[row["newest"]],
            now=now,
            list_url=list_url,
        )
        for row in counts[:GROUPS]
        if row["newest"] in newest
    )
    return Table(tuple(groups), since, len(counts) > GROUPS)


def _has_failures_below(runs: QuerySet[SequenceRun] | None, using: str) -> Q:
    """Whether it only reports that items or child runs have failed, which are counted
    themselves."""
    below = StepFailure.objects.using(using).filter(run__parent=OuterRef("step_run"))
    if runs is not None:  # what this person may not see is not counted either
        below = below.filter(run__in=runs.values("pk"))
    return Q(error=ITEMS_FAILED) | Q(Exists(below), error=CHILDREN_FAILED)


def _grouped(rows: QuerySet[StepFailure], now: datetime) -> Any:
    within: dict[str, Any] = {
        span: Count("pk", filter=Q(failed_at__gte=now - length))
        for span, (length, _label) in SPANS.items()
        if span in WITHIN
    }
    grouped: Any = rows.order_by().values("run__sequence", "step", "error", "fingerprint")
    return grouped.annotate(**within, newest=Max("pk")).order_by("-hour", "-day", "-week", "newest")


def _newest(ids: list[int], using: str) -> dict[int, StepFailure]:
    rows = StepFailure.objects.using(using).filter(pk__in=ids).select_related("run")
    failures = list(rows.defer("traceback", *heavy("run__")))
    hide_secrets(failures, [failure.run for failure in failures], using)
    return {failure.pk: failure for failure in failures}


class RunFailures(KeysetAdmin):
    """The part of the runs' admin that counts failures."""

    def get_urls(self) -> list[URLPattern]:
        """Before Django's own, which treat every URL as the id of a run."""
        page = path(
            "failures/",
            self.admin_site.admin_view(self.failure_groups_view),
            name="job_sequences_sequencerun_failure_groups",
        )
        return [page, *super().get_urls()]

    def sees_failures(self, request: HttpRequest) -> bool:
        """Whether this person may read error texts: failed attempts have a permission of their
        own."""
        return request.user.has_perms(["job_sequences.view_stepfailure"])

    def failure_groups_view(self, request: HttpRequest) -> TemplateResponse:
        """Failed attempts by sequence, step and error."""
        if not (self.has_view_permission(request) and self.sees_failures(request)):
            raise PermissionDenied
        request.current_app = self.admin_site.name
        list_url = reverse(
            "admin:job_sequences_sequencerun_changelist", current_app=self.admin_site.name
        )
        context = {
            **self.admin_site.each_context(request),
            **strip(self, request),
            "opts": self.opts,
            "title": _("Failures"),
            "page_title": _("Failures"),
            "table": read(runs_for(self, request), list_url, conf.using()),
            "counted": COUNTED,
            "media": self.media + list_media(),
            "live": 4 * LIVE,
            "has_list_crumbs": django.VERSION >= (6, 1),
        }
        template = "admin/job_sequences/sequencerun/failure_groups.html"
        return TemplateResponse(request, template, context)


def list_media() -> forms.Media:
    """The scripts and styles that lists need in addition to the admin's own."""
    return forms.Media(
        css={"all": ["sequences/states.css", "sequences/listing.css"]}, js=["sequences/live.js"]
    )
