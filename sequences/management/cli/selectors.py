"""Which runs a command is about."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q

from ... import conf
from ...definitions import registry
from ...definitions.subjects import SubjectKey
from ...exceptions import did_you_mean
from ...models import (
    NO_ITEM,
    UNFINISHED_STEP,
    RunStatus,
    SequenceRun,
    SequenceRunQuerySet,
    StepRun,
    StepStatus,
)
from ...transitions import clock
from ...utils.text import id_digits
from .argtypes import moment, subject_key
from .arguments import SEQUENCE, flag, group, option
from .base import wrong

#: Values of --status besides the statuses themselves.
STATUSES = (*RunStatus.values, "unfinished", "finished")
#: Shorter prefixes of an id are taken for something else.
MIN_ID_DIGITS = 4
#: How many runs an error message names.
MAX_NAMED_RUNS = 3

RUN_HELP = "an ID, an ID prefix, or label:key"
ONE_RUN = option("run", RUN_HELP, metavar="RUN")
RUNS = option("runs", RUN_HELP, metavar="RUN", nargs="*")


def runs() -> SequenceRunQuerySet:
    """All runs, in their own database."""
    return SequenceRunQuerySet(SequenceRun, using=conf.using())


def find(text: str) -> SequenceRun:
    """Find the run; raises `CommandError` if there is none, or more than one."""
    matches = _by_id(text) or _by_key(text)
    if len(matches) == 1:
        return matches[0]
    if matches:
        some = ", ".join(str(run.pk) for run in matches[:MAX_NAMED_RUNS])
        raise wrong(f"{text!r} is the prefix of more than one run ID: {some}. Use a longer prefix.")
    raise wrong(f"There is no run {text!r}. Use {RUN_HELP}; `sequences list` shows them.")


def _by_id(text: str) -> list[SequenceRun]:
    digits = id_digits(text, MIN_ID_DIGITS)
    matches = runs().whose_id_begins(digits) if digits else runs().none()
    return list(matches.order_by("pk")[: MAX_NAMED_RUNS + 1])


def _by_key(text: str) -> list[SequenceRun]:
    """A key may contain colons, and so may the name of an inline definition."""
    is_named = Q()
    for index, char in enumerate(text[:-1]):
        if char == ":" and index:
            names = registry.names_of(text[:index])
            is_named |= Q(sequence__in=names, key=text[index + 1 :])
    if not is_named:
        return []
    matches = runs().filter(is_named).order_by("-created_at", "-pk")
    # Of the runs that no longer hold it, the newest.
    return list((matches.filter(active_key__isnull=False)[:1] or matches)[:1])


def known_names(label: str) -> list[str]:
    """The names of a sequence, which this code may lack. Raises `CommandError`."""
    names = registry.names_of(label)
    is_known = registry.find(label) is not None and not registry.is_inline(label)
    if not is_known and not runs().filter(sequence__in=names).exists():
        labels = [cls._definition.label for cls in registry.all() if cls._definition is not None]
        raise wrong(
            f"There is no sequence {label!r}, and no run of it. {did_you_mean(label, labels)}"
        )
    return names


# Filters


_FILTERS = (
    SEQUENCE,
    option("--status", ", ".join(STATUSES), choices=STATUSES, metavar="STATUS"),
    option("--key", "only runs started with this key"),
    option("--subject", "only runs about this object", subject_key, "app.model:pk"),
    option("--since", "only runs started since this time: a duration or a date", moment, "24h"),
    flag("--struggling", "only runs with a step that keeps failing", default=None),
)
_AT_STEP = option("--step", "only runs that are at this step or failed at it", metavar="NAME")
#: The filters that select runs which are not named.
FILTERS = group("filters", *_FILTERS, _AT_STEP)
FILTERS_BUT_STEP = group("filters", *_FILTERS)


def selected(
    options: Namespace, statuses: Collection[str], *, is_at_step: bool = False
) -> list[UUID]:
    """The ids of the runs that are named, or that match the filters.

    Without a filter by status, these have one of the ``statuses``; with ``is_at_step``, they are at
    the step of the operation.
    """
    is_filtered = any(getattr(options, name, None) is not None for name in _MATCHING)
    if options.runs and (is_filtered or options.all):
        raise wrong("Name runs, or select them with filters and --all, but not both.")
    if options.runs:
        return [find(name).pk for name in options.runs]
    if not is_filtered:
        raise wrong("Name the RUN, or select runs with filters: --sequence, --status, --since, …")
    if not options.all and not options.dry_run:
        raise wrong("Add --all to apply this to all matching runs, or --dry-run to list them.")
    rows = filtered(options)
    if options.status is None:
        rows = rows.filter(status__in=statuses)
    if is_at_step:
        rows = at_step(rows, options.on_step)
    return list(rows.values_list("pk", flat=True))


def filtered(options: Namespace) -> SequenceRunQuerySet:
    """The runs that match the filters, newest first."""
    rows = runs().order_by("-created_at", "-pk")
    for name, matching in _MATCHING.items():
        value = getattr(options, name, None)
        if value is not None:
            rows = matching(rows, value)
    return rows


def at_step(rows: SequenceRunQuerySet, step: str) -> SequenceRunQuerySet:
    """Runs that are at this step, or have failed at it."""
    states = (*UNFINISHED_STEP, StepStatus.FAILED)
    steps = StepRun.objects.using(conf.using()).filter(step=step, item=NO_ITEM, status__in=states)
    return rows.filter(pk__in=steps.values("run"))


def _with_status(rows: SequenceRunQuerySet, status: str) -> SequenceRunQuerySet:
    states = {"unfinished": rows.unfinished, "finished": rows.finished}
    return states[status]() if status in states else rows.filter(status=status)


def _about(rows: SequenceRunQuerySet, key: SubjectKey) -> SequenceRunQuerySet:
    return rows.filter(subject_row__model=key.model, subject_row__object_id=key.pk)


def _since(rows: SequenceRunQuerySet, since: timedelta | datetime) -> SequenceRunQuerySet:
    try:
        begin = clock.now(conf.using()) - since if isinstance(since, timedelta) else since
    except OverflowError:  # before the calendar begins
        return rows
    return rows.filter(created_at__gte=begin)


#: The runs among some that match the value of a filter.
_MATCHING: dict[str, Callable[[SequenceRunQuerySet, Any], SequenceRunQuerySet]] = {
    "sequence": lambda rows, label: rows.filter(sequence__in=known_names(label)),
    "status": _with_status,
    "key": lambda rows, key: rows.filter(key=key),
    "subject": _about,
    "since": _since,
    "struggling": lambda rows, is_on: rows.struggling() if is_on else rows,
    "step": at_step,
}
