"""What a visitor sees of a run: how far it has got. Never what is in it, or why it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from django.http import HttpRequest
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .. import conf
from ..links import InvalidLink, Link, LinkExpired
from ..models import RunStatus, SequenceRun, StepStatus
from ..transitions.compensation import STOPPED
from . import snapshot
from .snapshot import HEAVY, RunSnapshot, StepSnapshot

#: The shortest and the longest time between two polls of a run's status.
MIN_POLL, MAX_POLL = timedelta(seconds=1), timedelta(seconds=15)
#: The longer a run takes, the less often a page needs to poll.
POLLS_PER_RUN = 30


class StatusNotFound(Exception):
    """There is nothing to show. All such cases look alike, so that nobody can guess URLs."""

    code = "not-found"
    http_status = 404
    text = gettext_lazy("Page not found.")


class NoLonger(StatusNotFound):
    """The URL was valid, but has expired."""

    code = "expired"
    http_status = 410
    text = gettext_lazy("This link has expired. Reload the page that it came from.")


#: What a run with the status `undoing` is doing, by its `final_status`.
_ENDINGS: dict[str, Any] = {
    RunStatus.SUCCEEDED: gettext_lazy("Finishing…"),
    STOPPED: gettext_lazy("Cancelling…"),
}


@dataclass(frozen=True)
class DisplayOptions:
    """What a page has chosen to show; part of the signed URL of the progress."""

    labels: Mapping[str, str] = field(default_factory=dict)
    done_url: str = ""
    done_text: str = ""
    failed_text: str = ""
    cancelled_text: str = ""
    redirect: bool = False
    #: The page's language, which its URL may have chosen; that of the progress lacks it.
    language: str = ""

    def as_json(self) -> dict[str, Any]:
        """Only the options that are set."""
        return {name: value for name, value in vars(self).items() if value}


class Status:
    """How far a run has got, in the words of a page."""

    def __init__(self, run: SequenceRun, shows: DisplayOptions) -> None:
        self.run, self.shows = run, shows

    @cached_property
    def snapshot(self) -> RunSnapshot:
        return snapshot.of(self.run, failures=False)

    def as_json(self) -> dict[str, Any]:
        """The response of the status view."""
        return {
            "title": self.snapshot.title,
            "status": self.run.status,
            "is_finished": self.run.is_finished,
            "fraction": round(self.snapshot.fraction, 4),
            "done": self.snapshot.done,
            "total": self.snapshot.total,
            "at": [self.label(step) for step in self.at],
            "failed": [self.label(step) for step in self.snapshot.at] if self._has_failed else [],
            "steps": [self._step(step) for step in self.snapshot.listed_steps],
            "poll": self.poll,
        }

    @property
    def state(self) -> str:
        """The state as a colour: of the run, or of its current steps."""
        if self._has_failed:
            return RunStatus.FAILED
        states = {step.status for step in self.at}
        if self.run.status != RunStatus.RUNNING or not states:
            return self.run.status
        if StepStatus.RETRYING in states:
            return StepStatus.RETRYING
        return StepStatus.WAITING if states == {StepStatus.WAITING} else RunStatus.RUNNING

    @property
    def percent(self) -> int:
        """How far it has got; 100 only if it has succeeded."""
        if self.run.status == RunStatus.SUCCEEDED:
            return 100
        return min(int(self.snapshot.fraction * 100), 99)

    @property
    def texts(self) -> list[str]:
        """In words: how it has ended, or what it is doing now."""
        if ended := self._ending():
            return [ended]
        if self.run.status == RunStatus.PAUSED:
            return [_("Paused.")]
        if self.run.status == RunStatus.UNDOING:
            return [str(_ENDINGS.get(self.run.final_status) or _("Rolling back…"))]
        return [capfirst(self._phrase(step)) for step in self.at] or [_("Starting…")]

    @property
    def notes(self) -> list[str]:
        """What the steps report about themselves."""
        return (
            [] if self._ending() else [step.progress_text for step in self.at if step.progress_text]
        )

    @property
    def link(self) -> tuple[str, str] | None:
        """Where a success leads to, and the text of that link."""
        if self.run.status != RunStatus.SUCCEEDED or not self.shows.done_url:
            return None
        return self.shows.done_url, self.shows.done_text or _("Continue")

    @property
    def redirects(self) -> bool:
        """Whether the browser is to follow the link by itself."""
        return self.shows.redirect and self.link is not None

    @property
    def poll(self) -> int | None:
        """In how many milliseconds to poll again; None: nothing will change any more."""
        if self.run.is_finished:
            return None
        waits = self.run.status == RunStatus.PAUSED or self.state == StepStatus.WAITING
        least = 5 * MIN_POLL if waits else MIN_POLL
        interval = min(max(self.snapshot.duration / POLLS_PER_RUN, least), MAX_POLL)
        return round(interval / timedelta(milliseconds=1))

    @property
    def at(self) -> tuple[StepSnapshot, ...]:
        """The steps that are in progress or waited for."""
        return () if self._has_failed or self.run.is_finished else self.snapshot.at

    def label(self, step: StepSnapshot) -> str:
        """The name of a step on this page."""
        return self.shows.labels.get(step.name) or step.label

    @property
    def _has_failed(self) -> bool:
        failed = self.run.status == RunStatus.FAILED
        return failed or (not self.run.is_finished and self.snapshot.is_failing)

    def _step(self, step: StepSnapshot) -> dict[str, Any]:
        return {
            "name": step.name,
            "label": self.label(step),
            "status": step.status,
            "progress": step.progress,
            "fraction": None if step.fraction is None else round(step.fraction, 4),
            "text": step.progress_text,
        }

    def _ending(self) -> str:
        if self._has_failed:
            return self.shows.failed_text or _("Something went wrong; we have been notified.")
        if self.run.status == RunStatus.CANCELLED:
            return self.shows.cancelled_text or _("This was cancelled.")
        if self.run.status == RunStatus.SUCCEEDED:
            return (not self.shows.done_url and self.shows.done_text) or _("Done.")
        return ""

    def _phrase(self, step: StepSnapshot) -> str:
        label = self.label(step)
        if step.status == StepStatus.RETRYING:
            return _("%(step)s (retrying)") % {"step": label}
        if step.is_awaiting_event:
            own = step.name in self.shows.labels
            return label if own else _("waiting for %(step)s") % {"step": label}
        if step.is_delayed:
            return _("%(step)s (scheduled)") % {"step": label}
        return _with_amount(step, label)


def by_token(token: str) -> Status:
    """The status of the run behind a signed URL. Raises `StatusNotFound`."""
    try:
        link = Link.read(token)
    except LinkExpired:
        raise NoLonger from None
    except InvalidLink:
        raise StatusNotFound from None
    return Status(_run(link.run), DisplayOptions(**link.shows))


def by_id(request: HttpRequest, pk: UUID) -> Status:
    """The status of this run, if ``SEQUENCES["STATUS_PERMISSION"]`` allows it; or
    `StatusNotFound`."""
    permission = conf.settings.status_permission
    if permission is None:
        raise StatusNotFound
    if not callable(permission):
        user = getattr(request, "user", None)
        if user is None or not user.has_perm(permission):
            raise StatusNotFound
        return Status(_run(pk), DisplayOptions())
    run = _run(pk)
    if not permission(request, run):
        raise StatusNotFound
    return Status(run, DisplayOptions())


def _run(pk: UUID) -> SequenceRun:
    runs = SequenceRun.objects.using(conf.using()).defer(*HEAVY)
    run = runs.filter(pk=pk).first()
    if run is None:
        raise StatusNotFound
    return run


def _with_amount(step: StepSnapshot, label: str) -> str:
    """The step, and how much of it is done, if that is known."""
    done, total = step.progress or (0, 0)
    if not total:
        return label
    if done == int(done) and total == int(total) and total > 1:
        values = {"step": label, "done": int(done), "total": int(total)}
        return _("%(step)s (%(done)s of %(total)s)") % values
    percent = min(int(done / total * 100), 100)
    return _("%(step)s (%(percent)d%%)") % {"step": label, "percent": percent}
