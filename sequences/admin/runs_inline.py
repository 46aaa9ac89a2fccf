"""The runs about an object, on the page of that object in its own admin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django import forms
from django.contrib.admin.checks import InlineModelAdminChecks
from django.contrib.admin.options import InlineModelAdmin
from django.core.checks import CheckMessage
from django.db.models import Model, QuerySet
from django.forms.models import BaseModelFormSet, modelformset_factory
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..exceptions import SequenceError
from ..inspection import snapshot
from ..inspection.diagnosis import summary
from ..inspection.snapshot import HEAVY, RunSnapshot, without_hidden_causes
from ..models import SequenceRun, SequenceRunQuerySet
from . import columns
from .base import ReadOnly
from .run_context import Button, Urls
from .run_detail import RunPage
from .subjects import SubjectViewer

#: The actions that are offered here, in this order; the run's page has the others.
ACTIONS = ("deliver", "retry", "run_now", "resume", "pause", "cancel")


@dataclass(frozen=True)
class RunLine:
    """A run on the page of its subject."""

    snapshot: RunSnapshot
    url: str = ""
    buttons: tuple[Button, ...] = ()

    @property
    def run(self) -> SequenceRun:
        """Its row."""
        return self.snapshot.run

    @property
    def badge(self) -> SafeString:
        """Its status."""
        return columns.run_badge(self.run.status)

    @property
    def name(self) -> SafeString:
        """The name of its sequence, and its key or the beginning of its id."""
        return columns.run_name(self.run)

    @property
    def progress(self) -> SafeString:
        """How far it has got."""
        return columns.progress(self.snapshot)

    @property
    def started(self) -> SafeString:
        """How long ago it started."""
        return columns.moment(self.run.created_at, self.snapshot.now)

    @property
    def summary(self) -> str:
        """The sentence about it."""
        return summary(self.snapshot)


class RunsPanel:
    """The newest runs about an object that a person may see."""

    def __init__(self, inline: RunsInline, request: HttpRequest, subject: Model) -> None:
        self._request, self._subject, self._limit = request, subject, inline.max_runs
        self._site = inline.admin_site
        run_admin: Any = self._site._registry.get(SequenceRun)
        #: None: this site has no pages of runs, or other pages than ours.
        self._pages = run_admin if isinstance(run_admin, RunPage) else None

    @cached_property
    def lines(self) -> list[RunLine]:
        """The newest first."""
        runs = list(self._newest[: self._limit])
        snapshots = without_hidden_causes(snapshot.of_many(runs), self._visible)
        return [self._line(run_snapshot) for run_snapshot in snapshots]

    @property
    def more_url(self) -> str:
        """The list of all of them, if there are more."""
        if self._pages is None or not self._newest[self._limit : self._limit + 1].exists():
            return ""
        [line] = self.lines[:1]
        key = line.run.subject_key
        return SubjectViewer(self._request, self._site).runs_url(key) if key else ""

    @cached_property
    def _visible(self) -> QuerySet[SequenceRun]:
        if self._pages is None:
            return SequenceRunQuerySet(SequenceRun, using=conf.using())
        return self._pages.get_queryset(self._request)

    @property
    def _newest(self) -> QuerySet[SequenceRun]:
        about = SequenceRunQuerySet(SequenceRun, using=conf.using())
        try:
            about = about.about(self._subject)
        except SequenceError:  # no run can be about it: its key is too long
            about = about.none()
        rows = self._visible.filter(pk__in=about.values("pk")).order_by("-created_at", "-pk")
        return rows.defer(*HEAVY)

    def _line(self, run_snapshot: RunSnapshot) -> RunLine:
        if self._pages is None:
            return RunLine(run_snapshot)
        urls = Urls(self._site.name, run_snapshot.run)
        buttons = self._pages._buttons(self._request, run_snapshot, urls, run_snapshot.at)
        return RunLine(
            run_snapshot, urls.to("change", run_snapshot.run.pk), tuple(_in_order(buttons))
        )


def _in_order(buttons: Iterator[Button]) -> list[Button]:
    offered = [button for button in buttons if button.name in ACTIONS]
    return sorted(offered, key=lambda button: ACTIONS.index(button.name))


class NoForms(BaseModelFormSet):  # type: ignore[type-arg]
    """No part of the object's form: an action has a page of its own."""

    panel: RunsPanel

    def __init__(self, *args: Any, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init__(queryset=SequenceRun.objects.none(), prefix=prefix)
        self.new_objects, self.changed_objects, self.deleted_objects = [], [], []

    @classmethod
    def get_default_prefix(cls) -> str:
        return "sequences-runs"

    @property
    def media(self) -> forms.Media:
        return forms.Media()

    def is_valid(self) -> bool:
        return True

    def save(self, commit: bool = True) -> list[Any]:
        return []


class _Checks(InlineModelAdminChecks):
    def _check_relation(self, obj: Any, parent_model: type[Model]) -> list[CheckMessage]:
        return []  # a run is about objects of any model, without a foreign key


class RunsInline(ReadOnly, InlineModelAdmin):  # type: ignore[type-arg]
    """For the ``inlines`` of a ModelAdmin: the newest runs about the object, with their actions.

    It is shown to those who may view runs.
    """

    model = SequenceRun
    template = "admin/job_sequences/runs_inline.html"
    checks_class = _Checks
    verbose_name_plural = _("Runs")
    #: How many it shows; a list has the others.
    max_runs = 10

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not on the page that adds an object, which cannot have runs yet."""
        return obj is not None and super().has_view_permission(request, obj)

    def get_queryset(self, request: HttpRequest) -> QuerySet[SequenceRun]:
        return SequenceRun.objects.none()

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return []

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        kind = modelformset_factory(SequenceRun, formset=NoForms, fields=(), extra=0, max_num=0)
        return type(kind.__name__, (kind,), {"panel": RunsPanel(self, request, obj)})

    @property
    def media(self) -> forms.Media:
        return forms.Media(css={"all": ["sequences/states.css", "sequences/inline.css"]})
