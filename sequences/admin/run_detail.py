"""The page of one run: its state in a sentence, and everything that happened in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import django
from django import forms
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from .. import conf
from ..inspection import actions, records, run_diagrams, snapshot, struggling
from ..inspection.diagnosis import summary
from ..inspection.snapshot import (
    RunSnapshot,
    StepSnapshot,
    deadline_of,
    hide_secrets,
    visible,
    visible_inbox,
    without_hidden_causes,
)
from ..inspection.wording import format_duration
from ..models import NO_ITEM, Operation, RunStatus, SequenceRun, StepFailure, StepRun
from . import columns, run_context
from .base import MAX_NEWEST_ROWS, ReadOnlyAdmin, is_refresh
from .relatives import Relatives
from .run_context import Button, Urls
from .starters import schedule_of
from .step_page import step_page
from .subjects import SubjectViewer

#: The time between two polls while the run is moving, in milliseconds.
INTERVAL = 2_000
#: The templates around the page, and around what its script requests.
BARE = "admin/job_sequences/sequencerun/bare.html"
#: The maximum length of an id.
MAX_DIGITS = 19
#: Failed attempts per page on the page that shows nothing else.
PER_PAGE = 50
#: How many steps have their buttons at the top of the page.
MAX_STEPS_IN_HEAD = 3


class RunPage(ReadOnlyAdmin):
    """The part of the runs' admin that shows a run."""

    change_form_template = "admin/job_sequences/sequencerun/change_form.html"

    def get_urls(self) -> list[URLPattern]:
        """The pages below a run's own come before Django's, which treat every URL as an id."""
        return [
            *self._paths(
                ("failures/", self.failures_view, "failures"),
                ("value/<str:what>/", self.value_view, "value"),
            ),
            *super().get_urls(),
        ]

    def _paths(self, *pages: tuple[str, Any, str]) -> list[URLPattern]:
        return [
            path(
                f"<path:object_id>/{route}",
                self.admin_site.admin_view(view),
                name=f"job_sequences_sequencerun_{name}",
            )
            for route, view, name in pages
        ]

    # Permissions

    def has_action_permission(
        self, request: HttpRequest, action: actions.Action, run: SequenceRun | None = None
    ) -> bool:
        """Whether this user may do this to this run. Projects can override it to restrict it
        further."""
        return actions.permitted(request.user, action)

    def _sees(self, request: HttpRequest, model: type[Any]) -> bool:
        name = model._meta.model_name
        return request.user.has_perms([f"job_sequences.view_{name}"])

    def _links_rows(self, request: HttpRequest) -> bool:
        """Whether the pages of step runs exist, and this user may see them."""
        return self.admin_site.is_registered(StepRun) and self._sees(request, StepRun)

    def _run(self, request: HttpRequest, object_id: str) -> SequenceRun:
        """The run, if this user may see it; otherwise, 403 or 404."""
        run: SequenceRun | None = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        if run is None:
            raise Http404(_("Run not found."))
        return run

    def _snapshot(self, request: HttpRequest, run: SequenceRun) -> RunSnapshot:
        """The snapshot for this user: without a cause of the failure in a run that they may not
        see."""
        return without_hidden_causes([snapshot.of(run)], self.get_queryset(request))[0]

    # The page

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The page of this run. Nothing can be saved here."""
        run = self.get_object(request, unquote(object_id))
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request, run):
            raise PermissionDenied
        if run is None:
            return self._get_obj_does_not_exist_redirect(  # type: ignore[attr-defined, no-any-return]
                request, self.opts, object_id
            )
        last = next(iter(records.operations_of(run, 1)), None)
        context = self._page(request, self._snapshot(request, run), last)
        return self._show(request, run, self.change_form_template, context | (extra_context or {}))

    def _show(
        self,
        request: HttpRequest,
        run: SequenceRun | None,
        template: str,
        context: dict[str, Any],
        **kwargs: Any,
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name
        shared = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": run,
            "title": str(run or ""),
            "media": self._media(),
            "has_view_permission": True,
            "preserved_filters": self.get_preserved_filters(request),
            "has_list_crumbs": django.VERSION >= (6, 1),
            "is_refresh": is_refresh(request),
            "base_template": BARE if is_refresh(request) else "admin/change_form.html",
        }
        return TemplateResponse(request, template, shared | context, **kwargs)

    def _media(self) -> forms.Media:
        return forms.Media(
            css={"all": ["sequences/states.css", "sequences/console.css"]},
            js=["sequences/live.js"],
        )

    def _page(
        self, request: HttpRequest, run_snapshot: RunSnapshot, last: Operation | None
    ) -> dict[str, Any]:
        run, urls = run_snapshot.run, Urls(self.admin_site.name, run_snapshot.run)
        page = step_page(run_snapshot, request.GET.get("steps", ""))
        at = run_snapshot.at[:MAX_STEPS_IN_HEAD]
        buttons = list(self._buttons(request, run_snapshot, urls, [*page.steps, *at]))
        relatives = self._relatives(request, run_snapshot)
        history = self._history(request, run_snapshot, urls)
        failures = run_context.moments_of(run, history.get("attempts", ()))
        losses = [line.loss for line in history.get("losses", ())]
        sees_rows = self._links_rows(request)
        lines_of = run_context.LineBuilder(
            run_snapshot, urls, buttons, relatives.counts, sees_rows=sees_rows
        ).lines_of
        return {
            "snapshot": run_snapshot,
            "run": run,
            "path": request.get_full_path(),
            "title": run_snapshot.title,
            "summary": summary(run_snapshot, last),
            "basis": 0 if last is None else last.pk,
            "age": format_duration(run_snapshot.age),
            "duration": format_duration(run_snapshot.duration),
            "deadline": deadline_of(run),
            "struggling": columns.struggling(struggling.steps_of([run]).get(run.pk, ())),
            "live": str(INTERVAL) if relatives.is_moving else "",
            "buttons": [button for button in buttons if not button.step],
            "at": [line for line in lines_of(at) if line.buttons],
            "restart": _way_out(run_snapshot, buttons),
            "steps": lines_of(page.steps),
            "step_page": page,
            "urls": urls,
            "data": run_context.value_of(run.data, run.sequence, "", urls.value("data")),
            "inbox": run.inbox
            and run_context.value_of(visible_inbox(run), run.sequence, "", urls.value("inbox")),
            "subject": SubjectViewer(request, self.admin_site).label_of(run),
            "schedule": schedule_of(run, request, self.admin_site),
            "relatives": relatives,
            **self._retry_top(request, relatives),
            "picture": run_diagrams.picture_of(run_snapshot, _row_of),
            "timeline": run_diagrams.timeline_of(
                run_snapshot, failures, _row_of, page.steps, losses
            ),
            **history,
        }

    def _history(
        self, request: HttpRequest, run_snapshot: RunSnapshot, urls: Urls
    ) -> dict[str, Any]:
        """The parts that need permissions of their own."""
        context: dict[str, Any] = {}
        if self._sees(request, StepFailure):
            attempts = run_context.attempts_of(run_snapshot.run, run_snapshot.now)
            context["attempts"] = attempts[:MAX_NEWEST_ROWS]
            is_grouped = any(attempt.count > 1 for attempt in attempts)
            context["more_attempts"] = len(attempts) > MAX_NEWEST_ROWS or is_grouped
            context["losses"] = run_context.losses_of(run_snapshot)
        if self._sees(request, StepRun):
            context["results"] = run_context.results_of(run_snapshot, urls)
        if self._sees(request, Operation):
            context["operations"] = run_context.operations_of(run_snapshot.run, run_snapshot.now)
        return context

    def _buttons(
        self,
        request: HttpRequest,
        run_snapshot: RunSnapshot,
        urls: Urls,
        steps: Iterable[StepSnapshot],
    ) -> Iterator[Button]:
        names = {step.name for step in steps}
        for action, step in actions.allowed(run_snapshot, names):
            if not self.has_action_permission(request, action, run_snapshot.run):
                continue
            name = step.name if step else ""
            choices = step.choices if step and action.name == "deliver" else {}
            for number, choice in enumerate(choices or [""]):
                yield Button(
                    action.name,
                    action.explains,
                    urls.action(action.name, name, choice),
                    step=name,
                    step_label=step.label if step else "",
                    is_dangerous=action.warns,
                    asks_first=_asks_first(run_snapshot, action),
                    choice=choice,
                    number=number,
                )

    def _relatives(self, request: HttpRequest, run_snapshot: RunSnapshot) -> Relatives:
        """The runs above and below, as far as this user may see them."""
        name = f"{self.admin_site.name}:job_sequences_sequencerun_change"
        return Relatives(run_snapshot, self.get_queryset(request), name)

    def _retry_top(self, request: HttpRequest, relatives: Relatives) -> dict[str, Any]:
        """The URL that retries, by POST, the topmost run that failed waiting for this one."""
        retry, top = actions.ACTIONS["retry"], relatives.top
        if top is None or not self.has_action_permission(request, retry, top):
            return {}
        url = Urls(self.admin_site.name, top).action("retry")
        return {"retry_top_url": url, "top_basis": records.newest_operation([top.pk])}

    # Pages below it

    def failures_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Every failed attempt, with its traceback."""
        run = self._run(request, object_id)
        if not self._sees(request, StepFailure):
            raise PermissionDenied
        rows = StepFailure.objects.using(conf.using()).filter(run=run.pk).order_by("-pk")
        rows = _alike(rows, request.GET.get("like", ""))
        page = Paginator(rows, PER_PAGE).get_page(request.GET.get("page"))
        failures = list(page)
        hide_secrets(failures, [run], conf.using())
        context = {
            "page_title": _("Failed attempts"),
            "page": page,
            "failures": failures,
            "like": request.GET.get("like", ""),
        }
        return self._show(request, run, "admin/job_sequences/sequencerun/failures.html", context)

    def value_view(self, request: HttpRequest, object_id: str, what: str) -> HttpResponse:
        """A whole value as text, without its secrets."""
        run = self._run(request, object_id)
        if what not in ("data", "inbox", "result"):
            raise Http404
        step = request.GET.get("step", "") if what == "result" else ""
        value = self._result(request, run, step) if what == "result" else getattr(run, what)
        value = visible_inbox(run) if what == "inbox" else value
        text = run_context.text_of(visible(value, run.sequence, step))
        headers = {"X-Content-Type-Options": "nosniff"}
        return HttpResponse(text, content_type="text/plain; charset=utf-8", headers=headers)

    def _result(self, request: HttpRequest, run: SequenceRun, step: str) -> Any:
        if not self._sees(request, StepRun):
            raise PermissionDenied
        step = step.replace("\0", "")  # PostgreSQL has none, and would reject the query
        rows = StepRun.objects.using(conf.using()).filter(run=run.pk, step=step, item=NO_ITEM)
        for result in rows.values_list("result", flat=True):
            return result
        raise Http404


def _asks_first(run_snapshot: RunSnapshot, action: actions.Action) -> bool:
    is_simple = not (action.is_dangerous or action.asks)
    return not is_simple or bool(actions.warning(run_snapshot, action))


def _way_out(run_snapshot: RunSnapshot, buttons: list[Button]) -> Button | None:
    """For a failed run that was rolled back, and cannot be retried: a restart."""
    if run_snapshot.run.status != RunStatus.FAILED or any(
        button.name == "retry" for button in buttons
    ):
        return None
    return next((button for button in buttons if button.name == "restart_from"), None)


def _alike(rows: QuerySet[StepFailure], pk: str) -> QuerySet[StepFailure]:
    """Attempts with the same step, exception and similar message as this one; without an id,
    all."""
    alike = rows.filter(pk=int(pk)).first() if pk.isdecimal() and len(pk) < MAX_DIGITS else None
    if alike is None:
        return rows
    return rows.filter(step=alike.step, error=alike.error, fingerprint=alike.fingerprint)


def _row_of(step: StepSnapshot) -> str:
    """The target of links in the diagram: the step's row in the table."""
    return f"#step-{step.name}"
