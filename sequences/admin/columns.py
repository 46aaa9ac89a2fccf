"""The cells of lists: statuses, durations, steps, errors. Everything is escaped."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext

from ..inspection.diagnosis import reported
from ..inspection.snapshot import RunSnapshot, StepSnapshot, title_of
from ..inspection.wording import format_duration
from ..models import RunStatus, SequenceRun, StepFailure, StepRun, StepStatus, Wait
from ..utils.text import class_name, first_line, label_of

#: How many steps a cell names; the others are counted.
MAX_NAMED_STEPS = 2
#: Characters of an error's message.
CUT = 120
#: Characters of an object's name.
LONGEST_NAME = 80


def badge(status: str, label: Any = "") -> SafeString:
    """A status as colour and text."""
    return format_html('<span class="seq-state seq-{}">{}</span>', status, label or status)


def run_badge(status: str) -> SafeString:
    """The status of a run."""
    return badge(status, RunStatus(status).label)


def struggling(steps: Collection[str]) -> SafeString:
    """Says that these steps of a run keep failing, if there are any."""
    if not steps:
        return SafeString()
    names = {"steps": ", ".join(map(label_of, steps))}
    return format_html(
        ' <span class="seq-state seq-retrying" title="{}">{}</span>',
        gettext("Keeps failing: %(steps)s") % names,
        gettext("struggling"),
    )


def step_badge(status: str) -> SafeString:
    """The status of a step run."""
    return badge(status, StepStatus(status).label)


def run_name(run: SequenceRun) -> SafeString:
    """The name of its sequence, and its key or the beginning of its id."""
    name, kind = (run.key, "key") if run.key else (f"{str(run.pk)[:13]}…", "id")
    return format_html(
        '<span title="{}">{}</span> <bdi class="seq-{}" title="{}">{}</bdi>',
        run.sequence,
        title_of(run.sequence),
        kind,
        run.pk,
        name,
    )


def subject(label: Any) -> SafeString:
    """The object that a run is about, if there is one."""
    if label is None:
        return SafeString("")
    name = format_html("<bdi>{}</bdi>", Truncator(str(label)).chars(LONGEST_NAME))
    about = format_html(gettext("about %(subject)s").replace("%(subject)s", "{}"), name)
    return format_html('<small class="seq-subject">{}</small>', about)


def exact_time(when: datetime | None) -> SafeString | str:
    """To the second and with its time zone, as in logs."""
    if when is None:
        return ""
    return format_html('<time datetime="{}">{}</time>', _iso(when), _as_logged(when))


def _iso(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds")


def _as_logged(when: datetime) -> str:
    return timezone.localtime(when).strftime("%Y-%m-%d %H:%M:%S %Z")


def in_full(when: datetime | None) -> SafeString | str:
    """The same for a narrow column: it breaks only between date and time."""
    if when is None:
        return ""
    day, time, zone = _as_logged(when).split(" ", 2)
    parts = '<time class="seq-time-parts" datetime="{}"><span>{}</span> <span>{} {}</span></time>'
    return format_html(parts, _iso(when), day, time, zone)


def moment(when: datetime, now: datetime) -> SafeString:
    """How long ago, with the exact time as a tooltip."""
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        _iso(when),
        _as_logged(when),
        gettext("%(span)s ago") % {"span": format_duration(now - when)},
    )


def steps(snapshot: RunSnapshot) -> SafeString:
    """The current steps of a run, each with its progress."""
    at = sorted(snapshot.at, key=lambda step: _ORDER.get(step.status, 9))
    lines = [(step.name, step.label, doing(step, snapshot.now)) for step in at[:MAX_NAMED_STEPS]]
    named = format_html_join(
        "", '<span class="seq-at"><b title="{}">{}</b> <span>{}</span></span>', lines
    )
    more = len(at) - MAX_NAMED_STEPS
    if more <= 0:
        return named
    others = ngettext("and %(count)d other", "and %(count)d others", more) % {"count": more}
    return format_html('{}<span class="seq-at">{}</span>', named, others)


#: The order of statuses: what people look for comes first.
_ORDER = {"failed": 0, "retrying": 1, "running": 2, "waiting": 3, "queued": 4}


def doing(step: StepSnapshot, now: datetime) -> str:
    """What a step that has not succeeded is doing: "attempt 2 in 3 min"."""
    if step.row is None:
        return gettext("items running")
    if step.is_on_hold:
        return gettext("on hold")
    return _DOING[StepStatus(step.row.status)](step, step.row, now)


def _failed(step: StepSnapshot, row: StepRun, now: datetime) -> str:
    if row.attempts < 2:
        return gettext("failed")
    message = ngettext(
        "failed after %(count)d attempt", "failed after %(count)d attempts", row.attempts
    )
    return message % {"count": row.attempts}


def _queued(step: StepSnapshot, row: StepRun, now: datetime) -> str:
    if row.attempts:
        message = gettext("attempt %(number)d, queued for %(span)s")
    else:
        message = gettext("queued for %(span)s")
    return message % {"number": row.attempts + 1, "span": format_duration(now - row.queued_at)}


def _running(step: StepSnapshot, row: StepRun, now: datetime) -> str:
    if row.attempts:
        message = gettext("attempt %(number)d, running for %(span)s")
    else:
        message = gettext("running for %(span)s")
    span = now - (row.started_at or now)
    return message % {"number": row.attempts + 1, "span": format_duration(span)}


def _retrying(step: StepSnapshot, row: StepRun, now: datetime) -> str:
    if row.due_at is not None and row.due_at > now:
        message = gettext("attempt %(number)d in %(span)s")
    else:
        message = gettext("attempt %(number)d is due")
    left = (row.due_at or now) - now
    return message % {"number": row.attempts + 1, "span": format_duration(left)}


def _waiting(step: StepSnapshot, row: StepRun, now: datetime) -> str:
    left = row.due_at - now if row.due_at is not None and row.due_at > now else None
    span = {"span": format_duration(left)}
    if step.is_delayed:
        return gettext("due now") if left is None else gettext("starts in %(span)s") % span
    if step.node.traits.takes_delivery:
        if left is None:
            return gettext("waiting for the event")
        return gettext("waiting for the event, %(span)s left") % span
    if row.wait == Wait.LIMIT:
        return gettext("waiting for a limit")
    return gettext(step.node.traits.waiting or "waiting")


def _ended(step: StepSnapshot, row: StepRun, now: datetime) -> str:
    return str(StepStatus(row.status).label)


_DOING: dict[StepStatus, Callable[[StepSnapshot, StepRun, datetime], str]] = {
    StepStatus.FAILED: _failed,
    StepStatus.QUEUED: _queued,
    StepStatus.RUNNING: _running,
    StepStatus.RETRYING: _retrying,
    StepStatus.WAITING: _waiting,
    StepStatus.SUCCEEDED: _ended,
    StepStatus.SKIPPED: _ended,
    StepStatus.CANCELLED: _ended,
}


def progress(snapshot: RunSnapshot) -> SafeString:
    """How far a run has got, as a bar and in words."""
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
    """The last error: its class, and the beginning of its message. Its secrets are already
    redacted."""
    if failure is None:
        return ""
    return format_html(
        '<span class="seq-error" title="{}"><b>{}</b> {}</span>',
        failure.error,
        class_name(failure.error),
        reported(failure) or first_line(failure.message, CUT),
    )
