"""What stands in the cells of lists: states, spans of time, steps, errors. All of it escaped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext

from ..inspection.snapshot import RunSnapshot, StepSnapshot, title_of
from ..models import RunStatus, SequenceRun, StepFailure, StepStatus
from ..utils.durations import format_duration
from ..utils.text import class_name, first_line

#: Steps that a cell names; the others are counted.
NAMED = 2
#: Characters of an error's message.
CUT = 120


def badge(status: str, label: Any = "") -> SafeString:
    """A state as colour and text."""
    return format_html('<span class="seq-state seq-{}">{}</span>', status, label or status)


def run_badge(status: str) -> SafeString:
    """The state of a run."""
    return badge(status, RunStatus(status).label)


def step_badge(status: str) -> SafeString:
    """The state of a step run."""
    return badge(status, StepStatus(status).label)


def run_name(run: SequenceRun) -> SafeString:
    """What people call its sequence, and its key, or the beginning of its id."""
    name, kind = (run.key, "key") if run.key else (f"{str(run.pk)[:13]}…", "id")
    return format_html(
        '<span title="{}">{}</span> <span class="seq-{}" title="{}">{}</span>',
        run.sequence,
        title_of(run.sequence),
        kind,
        run.pk,
        name,
    )


def moment(when: datetime, now: datetime) -> SafeString:
    """How long ago, and in full where one points at it."""
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        when.isoformat(timespec="seconds"),
        date_format(timezone.localtime(when), "DATETIME_FORMAT"),
        gettext("%(span)s ago") % {"span": format_duration(now - when)},
    )


def steps(snapshot: RunSnapshot) -> SafeString:
    """The steps that a run is at, each with how it is doing there."""
    at = sorted(snapshot.at, key=lambda step: _ORDER.get(step.status, 9))
    lines = [(step.name, step.label, doing(step, snapshot.now)) for step in at[:NAMED]]
    named = format_html_join(
        "", '<span class="seq-at"><b title="{}">{}</b> <span>{}</span></span>', lines
    )
    more = len(at) - NAMED
    if more <= 0:
        return named
    others = ngettext("and %(count)d other", "and %(count)d others", more) % {"count": more}
    return format_html('{}<span class="seq-at">{}</span>', named, others)


#: What people want to know of first.
_ORDER = {"failed": 0, "retrying": 1, "running": 2, "waiting": 3, "queued": 4}


def doing(step: StepSnapshot, now: datetime) -> str:
    """How a step that has not ended well is doing: "attempt 2, in 3 min"."""
    return ", ".join(_doing(step, now))


def _doing(step: StepSnapshot, now: datetime) -> Iterator[str]:
    row = step.row
    if row is None:
        yield gettext("items running")
        return
    if row.status == StepStatus.FAILED:
        tried = ngettext("failed", "failed after %(count)d attempts", row.attempts)
        yield tried % {"count": row.attempts}
        return
    if row.status == StepStatus.WAITING:
        yield _waiting(step)
    elif row.attempts:
        yield gettext("attempt %(number)d") % {"number": row.attempts + 1}
    if row.due_at is not None and row.due_at > now and row.status != StepStatus.RUNNING:
        yield gettext("in %(span)s") % {"span": format_duration(row.due_at - now)}
    elif row.status == StepStatus.RUNNING:
        yield gettext("running for %(span)s") % {
            "span": format_duration(now - (row.started_at or now))
        }
    elif row.status == StepStatus.QUEUED:
        yield gettext("queued for %(span)s") % {"span": format_duration(now - row.queued_at)}


def _waiting(step: StepSnapshot) -> str:
    if step.node.kind == "event":
        return gettext("waiting for the event")
    if step.node.kind == "subsequence" and not step.is_delayed:
        return gettext("waiting for child runs")
    if step.node.kind == "each" and not step.is_delayed:
        return gettext("waiting for items")
    return gettext("waiting")


def progress(snapshot: RunSnapshot) -> SafeString:
    """How far a run is, as a bar and in words."""
    words = gettext("%(done)d of %(total)d") % {"done": snapshot.done, "total": snapshot.total}
    label = gettext("%(done)d of %(total)d steps") % {
        "done": snapshot.done,
        "total": snapshot.total,
    }
    return format_html(
        '<span class="seq-far"><progress class="seq-meter seq-{}" max="100" value="{}" '
        'aria-label="{}">{}</progress> <small>{}</small></span>',
        snapshot.run.status,
        round(100 * snapshot.fraction),
        label,
        label,
        words,
    )


def error(failure: StepFailure | None) -> SafeString | str:
    """The last error: its class, and the beginning of its message. Without secrets already."""
    if failure is None:
        return ""
    return format_html(
        '<span class="seq-error" title="{}"><b>{}</b> {}</span>',
        failure.error,
        class_name(failure.error),
        first_line(failure.message, CUT),
    )
