"""The diagrams of a run: its snapshot, converted for `diagrams`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import timedelta

from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import diagrams
from ..diagrams import Lane, Mark, Span
from ..models import StepFailure, StepLoss, StepRun, StepStatus
from .diagnosis import error_of
from .losses import loss_sentence
from .phases import phases_of
from .snapshot import RunSnapshot, StepSnapshot
from .wording import format_duration, format_seconds

#: The link of a step's box; empty: none.
Href = Callable[[StepSnapshot], str]

#: How many failed attempts one lane shows, the latest ones.
MOST_FAILURES = 50
#: The same for lost workers.
MOST_LOSSES = 50


def picture_of(snapshot: RunSnapshot, href: Href | None = None) -> SafeString:
    """The run's plan as an SVG; empty if it has too many steps."""
    if not diagrams.is_drawable(snapshot.plan):
        return SafeString("")
    label = _("Steps of %(run)s") % {"run": snapshot.title}
    picture = diagrams.svg(snapshot.plan, marks_of(snapshot, href), label=label, translate=_)
    return mark_safe(picture)  # noqa: S308 - `diagrams` escapes


def timeline_of(
    snapshot: RunSnapshot,
    failures: Iterable[StepFailure] = (),
    href: Href | None = None,
    steps: Collection[StepSnapshot] | None = None,
    losses: Iterable[StepLoss] = (),
) -> SafeString:
    """When each step, or each of ``steps``, did what, as an SVG."""
    run, lanes = snapshot.run, lanes_of(snapshot, failures, href, losses)
    if steps is not None:
        names = {step.name for step in steps}
        lanes = [lane for lane in lanes if lane.name in names]
    label = _("Timeline of %(run)s") % {"run": snapshot.title}
    picture = diagrams.timeline(
        lanes,
        run.created_at,
        run.finished_at,
        snapshot.now,
        label=label,
        translate=_,
        format_seconds=format_seconds,
    )
    return mark_safe(picture)  # noqa: S308 - `diagrams` escapes


# Marks


def marks_of(snapshot: RunSnapshot, href: Href | None = None) -> dict[str, Mark]:
    """The mark of each step, by name."""
    return {step.name: _mark(snapshot, step, href) for step in snapshot.steps}


def _mark(snapshot: RunSnapshot, step: StepSnapshot, href: Href | None) -> Mark:
    count, total = step.progress or (None, None)
    # A delay of its own: only the class knows it, not the plan.
    declared = snapshot.declared.get(step.name)
    is_declared = declared is not None and declared.delay is not None
    return Mark(
        status=str(step.state),
        text=_text(snapshot, step),
        href=href(step) if href else "",
        count=count,
        total=total,
        title=_title(snapshot, step),
        label=step.label,
        delayed=is_declared or (step.is_delayed and step.status == StepStatus.WAITING),
    )


def _text(snapshot: RunSnapshot, step: StepSnapshot) -> str:
    """The text next to its status; short, because there is little room. Empty: its progress, if
    any."""
    row = step.row
    if row is None or step.is_on_hold:
        return ""
    if row.due_at and (step.is_delayed or step.is_awaiting_event):
        return _time_left(step, row.due_at - snapshot.now)
    if step.status == StepStatus.FAILED and (failed := step.items.get("failed")):
        # Not how many have ended: next to the status, it would mean that all of them have failed.
        return _("%(failed)d of %(total)d") % {"failed": failed, "total": sum(step.items.values())}
    if step.progress is not None:
        return ""
    if step.status == StepStatus.RUNNING and row.attempts:
        return _("attempt %(number)d") % {"number": row.attempts + 1}
    if step.status == StepStatus.FAILED and row.attempts > 1:
        words = ngettext("%(count)d attempt", "%(count)d attempts", row.attempts)
        return words % {"count": row.attempts}
    if step.status == StepStatus.SUCCEEDED and not step.node.traits.takes_delivery:
        return format_duration(step.ran(snapshot.now))
    return ""


def _time_left(step: StepSnapshot, left: timedelta) -> str:
    if left <= timedelta(0):
        return _("due")
    # For days, without the hours: a box has no room for both.
    left = timedelta(days=left.days) if left.days else left
    words = _("in %(time)s") if step.is_delayed else _("%(time)s left")
    return words % {"time": format_duration(left)}


def _title(snapshot: RunSnapshot, step: StepSnapshot) -> str:
    """The tooltip."""
    lines = []
    if step.row is not None and step.row.attempts and not step.items:
        lines.append(_("Failed attempts: %(count)d") % {"count": step.row.attempts})
    if failed := step.items.get("failed"):
        lines.append(_("Failed items: %(count)d") % {"count": failed})
    failure = snapshot.current_failure
    if failure is not None and failure.step == step.name:
        lines.append(error_of(failure))
    return "\n".join(filter(None, [*lines, step.progress_text]))


# Lanes


def lanes_of(
    snapshot: RunSnapshot,
    failures: Iterable[StepFailure] = (),
    href: Href | None = None,
    losses: Iterable[StepLoss] = (),
) -> list[Lane]:
    """When each step that the run has reached did what, in the order in which they became ready.

    ``failures`` are its failed attempts, including those of items, without secrets; ``losses``, the
    workers that were lost in it. When an earlier attempt started is not known: it is drawn as a
    moment, and so is a loss.
    """
    of: dict[str, list[StepFailure]] = defaultdict(list)
    for failure in failures:
        of[failure.step].append(failure)
    lost: dict[str, list[Span]] = defaultdict(list)
    for loss in sorted(losses, key=lambda loss: loss.lost_at):
        lost[loss.step].append(Span("lost", loss.lost_at, loss.lost_at, loss_sentence(loss)))
    rows = [(step, step.row) for step in snapshot.steps if step.row is not None]
    rows.sort(key=lambda pair: (pair[1].ready_at, pair[1].pk))
    return [
        Lane(
            name=step.name,
            label=step.label,
            href=href(step) if href else "",
            spans=(*_spans(step, row, of[step.name]), *lost[step.name][-MOST_LOSSES:]),
        )
        for step, row in rows
    ]


def _spans(step: StepSnapshot, row: StepRun, failures: list[StepFailure]) -> Iterator[Span]:
    failures = sorted(failures, key=lambda failure: failure.failed_at)[-MOST_FAILURES:]
    last = next((failure for failure in reversed(failures) if failure.item == row.item), None)
    phases = phases_of(row, step.held_since, last.failed_at) if last else step.phases
    for phase in phases:
        title = error_of(last) if last and phase.kind == "failed" else ""
        yield Span(phase.kind, phase.begins, phase.ends, title)
    is_drawn = any(phase.kind == "failed" for phase in phases)
    for failure in failures:
        if failure is not last or not is_drawn:
            yield Span("failed", failure.failed_at, failure.failed_at, error_of(failure))
