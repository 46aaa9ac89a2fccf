"""The list of runs: its columns, its tabs and its search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from ..inspection import snapshot, struggling
from ..inspection.snapshot import RunSnapshot, without_hidden_causes
from ..inspection.wording import format_duration
from ..models import UNFINISHED_RUN, RunStatus, SequenceRun
from . import columns, pagination
from .base import heavy
from .failures import RunFailures, list_media
from .filters import (
    CreatedFilter,
    FailureFilter,
    SequenceFilter,
    StepFilter,
    StrugglingFilter,
)
from .health import LIVE, strip
from .pagination import KeysetChangeList
from .search import holding, named
from .subjects import SubjectFilter, SubjectViewer, key_in

#: How many runs' keys and data one search reads, the newest.
SEARCHED = 20_000
STATUS, TEXT = "status", "text"


@dataclass(frozen=True)
class Tab:
    """One of the links above the list."""

    name: str
    label: str | Promise
    statuses: tuple[str, ...]
    #: None: counting would take too long.
    count: int | None = None
    url: str = ""
    is_current: bool = False


TABS = (
    ("", _("all"), ()),
    ("unfinished", _("unfinished"), tuple(UNFINISHED_RUN)),
    *((status.value, status.label, (status.value,)) for status in RunStatus),
)


class RunList(KeysetChangeList):
    """The runs of one tab: a page of them, with everything that is shown of each."""

    model_admin: RunListing
    #: Whether the search has found an exact id or key.
    is_exact = False

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        filters: dict[str, Any] = super().get_filters_params(params)
        return {name: filters[name] for name in filters if name not in (STATUS, TEXT)}

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        query, self.query = self.query, ""
        try:
            self.of_any_status = super().get_queryset(request, exclude_parameters)
        finally:
            self.query = query
        self.has_active_filters |= bool(self.statuses)
        rows: QuerySet[Any] = self.of_any_status
        if self.statuses:
            rows = rows.filter(status__in=self.statuses)
        return self._search(request, rows) if query.strip() else rows

    @property
    def tab(self) -> str:
        """The name of the chosen tab."""
        name = self.params.get(STATUS, "")
        return name if any(name == tab for tab, *_ in TABS) else ""

    @property
    def statuses(self) -> tuple[str, ...]:
        """The statuses of its runs; none: all."""
        return next(statuses for name, _label, statuses in TABS if name == self.tab)

    def _search(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        matches = None if TEXT in self.params else self._named(request, rows)
        if matches is not None:
            self.is_exact = True
            return matches
        rows = self.newest(rows, rows, SEARCHED)
        return self.model_admin.get_search_results(request, rows, self.query)[0]

    def _named(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any] | None:
        matches = named(rows, self.query)
        if matches is None and (key := key_in(self.query)) is not None:
            about = SubjectViewer(request, self.model_admin.admin_site).runs_about(rows, key)
            return about if about.exists() else None
        return matches

    def get_results(self, request: HttpRequest) -> None:
        self.tabs = tuple(self._tabs())
        super().get_results(request)
        viewer = SubjectViewer(request, self.model_admin.admin_site)
        labels = viewer.labels_of(self.result_list)
        for run in self.result_list:
            run.__dict__["subject_label"] = labels.get(run.pk)
        snapshots = without_hidden_causes(
            snapshot.of_many(self.result_list), self.model_admin.get_queryset(request)
        )
        steps = struggling.steps_of(self.result_list)
        for run, run_snapshot in zip(self.result_list, snapshots, strict=True):
            run.__dict__["snapshot"] = run_snapshot
            run.__dict__["struggling"] = steps.get(run.pk, ())

    def count_results(self) -> int:
        current = next(tab for tab in self.tabs if tab.is_current)
        return super().count_results() if current.count is None else current.count

    def _tabs(self) -> Iterator[Tab]:
        counts = {} if self.query else self._counts()
        for name, label, statuses in TABS:
            yield Tab(
                name,
                label,
                statuses,
                pagination.total([counts[status] for status in statuses or counts])
                if counts
                else None,
                self.get_query_string({STATUS: name or None}),
                name == self.tab,
            )

    def _counts(self) -> dict[str, int]:
        rows = self.of_any_status
        return {
            status: pagination.count(rows.filter(status=status), "status")
            for status in RunStatus.values
        }

    @property
    def everywhere_url(self) -> str:
        """The same search, not only for ids and whole keys."""
        return self.get_query_string({TEXT: "1"})

    @property
    def live(self) -> int:
        """Milliseconds until the page is polled again; 0: it does not change."""
        is_moving = any(snapshot_of(run).is_moving for run in self.result_list)
        is_first = not self.newer_url and not self.query
        return LIVE if is_first or is_moving else 0


class RunListing(RunFailures):
    """The part of the runs' admin that lists and searches them."""

    list_display = (
        "status_column",
        "run_column",
        "progress_column",
        "start_column",
        "error_column",
    )
    list_display_links = ("run_column",)
    list_filter = (
        FailureFilter,
        SubjectFilter,
        SequenceFilter,
        StepFilter,
        StrugglingFilter,
        CreatedFilter,
    )
    list_select_related = ()
    search_fields = ("key",)
    search_help_text = _("Run ID (or prefix), key, subject (app.model:pk), or text in key or data.")
    ordering = ("-created_at",)
    sortable_by = ("start_column",)
    page_keys: ClassVar[tuple[str, ...]] = ("created_at", "id")
    deferred = heavy()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[RunList]:
        return RunList

    def runs_for(self, request: HttpRequest) -> QuerySet[SequenceRun]:
        """The runs that this person may see: everything that is shown here is about these."""
        return self.get_queryset(request)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {} if request.method == "POST" else strip(self, request)
        return super().changelist_view(
            request,
            {
                "title": _("Runs"),
                "sees_failures": self.sees_failures(request),
                **context,
                **(extra_context or {}),
            },
        )

    @property
    def media(self) -> forms.Media:
        return super().media + list_media()

    # Columns

    @admin.display(description=_("status"))
    def status_column(self, run: SequenceRun) -> str:
        """Its status, and whether a step keeps failing."""
        return columns.run_badge(run.status) + columns.struggling(vars(run).get("struggling", ()))

    @admin.display(description=_("run"))
    def run_column(self, run: SequenceRun) -> str:
        """The name of its sequence, its key or the beginning of its id, and its subject."""
        return columns.run_name(run) + columns.subject(run.__dict__.get("subject_label"))

    @admin.display(description=_("progress"))
    def progress_column(self, run: SequenceRun) -> str:
        """How far it has got, and its current steps, or those that failed it."""
        return columns.progress(snapshot_of(run)) + columns.steps(snapshot_of(run))

    @admin.display(description=pgettext_lazy("time", "started"), ordering="created_at")
    def start_column(self, run: SequenceRun) -> str:
        """How long ago it started, and how long it took."""
        run_snapshot = snapshot_of(run)
        ago = columns.moment(run.created_at, run_snapshot.now)
        if run_snapshot.is_moving:
            return ago
        took = gettext("took %(span)s") % {"span": format_duration(run_snapshot.duration)}
        return format_html("{}<small>{}</small>", ago, took)

    @admin.display(description=_("last error"), empty_value="")
    def error_column(self, run: SequenceRun) -> str:
        """The error of its latest failed attempt, if the run has not got over it."""
        return columns.error(snapshot_of(run).root_failure)

    # Search

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id or key; otherwise, by a part of the key, or of the visible data."""
        term = search_term.strip()
        if not term:
            return queryset, False
        matches = None if TEXT in request.GET else named(queryset, term)
        return holding(queryset, term) if matches is None else matches, False


def snapshot_of(run: SequenceRun) -> RunSnapshot:
    """The snapshot that the list has read for all of its rows at once."""
    run_snapshot: RunSnapshot | None = run.__dict__.get("snapshot")
    return run_snapshot or snapshot.of_many([run])[0]
