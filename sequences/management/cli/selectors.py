"""Which runs a command is about."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from datetime import datetime, timedelta

from django.db.models import Q

from ... import conf
from ...definitions import registry
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
from .argtypes import moment, subject_key
from .base import wrong

#: Values of --status besides the statuses themselves.
STATUSES = (*RunStatus.values, "unfinished", "finished")
#: Shorter prefixes of an id are taken for something else.
MIN_ID_DIGITS = 4
#: How many runs an error message names.
MAX_NAMED_RUNS = 3

RUN = "RUN"
RUN_HELP = "an ID, an ID prefix, or label:key"


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
    digits = text.replace("-", "").lower()
    if not MIN_ID_DIGITS <= len(digits) <= 32 or not set(digits) <= set("0123456789abcdef"):
        return []
    return list(runs().whose_id_begins(digits).order_by("pk")[: MAX_NAMED_RUNS + 1])


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


# Filters


def add_run(parser: ArgumentParser) -> None:
    """The argument for a single run."""
    parser.add_argument("run", metavar=RUN, help=RUN_HELP)


def add_filters(parser: ArgumentParser, *, step: bool = True) -> None:
    """The filters that select runs which are not named."""
    filters = parser.add_argument_group("filters")
    filters.add_argument("--sequence", metavar="LABEL", help="only runs of this sequence")
    filters.add_argument("--status", choices=STATUSES, metavar="STATUS", help=", ".join(STATUSES))
    filters.add_argument("--key", help="only runs started with this key")
    filters.add_argument(
        "--subject", type=subject_key, metavar="app.model:pk", help="only runs about this object"
    )
    filters.add_argument(
        "--since", type=moment, metavar="24h",
        help="only runs started since this time: a duration or a date",
    )  # fmt: skip
    filters.add_argument(
        "--struggling", action="store_true", default=None,
        help="only runs with a step that keeps failing",
    )  # fmt: skip
    if step:
        filters.add_argument(
            "--step", metavar="NAME", help="only runs that are at this step or failed at it"
        )


def is_filtered(options: Namespace) -> bool:
    """Whether there are any filters."""
    names = ("sequence", "status", "key", "subject", "since", "struggling", "step")
    return any(getattr(options, name, None) is not None for name in names)


def filtered(options: Namespace) -> SequenceRunQuerySet:
    """The runs that match the filters, newest first."""
    rows = runs().order_by("-created_at", "-pk")
    if options.sequence is not None:
        rows = rows.filter(sequence__in=known_names(options.sequence))
    if options.status in ("unfinished", "finished"):
        rows = getattr(rows, options.status)()
    elif options.status is not None:
        rows = rows.filter(status=options.status)
    if options.key is not None:
        rows = rows.filter(key=options.key)
    if options.subject is not None:
        model, pk = options.subject
        rows = rows.filter(subject_row__model=model, subject_row__object_id=pk)
    if options.since is not None:
        rows = rows.filter(created_at__gte=_since(options.since))
    if options.struggling:
        rows = rows.struggling()
    if getattr(options, "step", None) is not None:
        rows = at_step(rows, options.step)
    return rows


def _since(since: timedelta | datetime) -> datetime:
    return clock.now(conf.using()) - since if isinstance(since, timedelta) else since


def at_step(rows: SequenceRunQuerySet, step: str) -> SequenceRunQuerySet:
    """Runs that are at this step, or have failed at it."""
    states = (*UNFINISHED_STEP, StepStatus.FAILED)
    steps = StepRun.objects.using(conf.using()).filter(step=step, item=NO_ITEM, status__in=states)
    return rows.filter(pk__in=steps.values("run"))


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
