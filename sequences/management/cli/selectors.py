"""The runs that somebody means."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db.models import Q

from ... import conf
from ...definitions import registry
from ...exceptions import did_you_mean
from ...models import (
    NO_ITEM,
    UNFINISHED_RUN,
    UNFINISHED_STEP,
    RunStatus,
    SequenceRun,
    SequenceRunQuerySet,
    StepRun,
    StepStatus,
)
from ...transitions import clock
from .argtypes import moment
from .base import wrong

#: What can be asked for beside the states themselves.
STATUSES = (*RunStatus.values, "unfinished", "finished")
#: Shorter beginnings of an id are taken for something else.
SHORTEST = 4
#: How many runs an error names.
NAMED = 3

RUN = "RUN"
RUN_HELP = "its id, the beginning of its id, or label:key"


def runs() -> SequenceRunQuerySet:
    """All of them, in the runs' own database."""
    return SequenceRunQuerySet(SequenceRun, using=conf.using())


def find(text: str) -> SequenceRun:
    """The run that is meant; raises `CommandError` if it is none, or more than one."""
    found = _by_id(text) or _by_key(text)
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(str(run.pk) for run in found[:NAMED])
        raise wrong(
            f"{text!r} is the beginning of more than one run's id: {some}. Give more of it."
        )
    raise wrong(f"There is no run {text!r}. Give {RUN_HELP}; `sequences list` shows them.")


def _by_id(text: str) -> list[SequenceRun]:
    digits = text.replace("-", "").lower()
    if not SHORTEST <= len(digits) <= 32 or not set(digits) <= set("0123456789abcdef"):
        return []
    return list(runs().whose_id_begins(digits).order_by("pk")[: NAMED + 1])


def _by_key(text: str) -> list[SequenceRun]:
    """A key may contain colons, and so may the name of a definition that is kept with its run."""
    wanted = Q()
    for label, key in _pairs(text):
        wanted |= Q(sequence__in=registry.names_of(label), key=key)
    if not wanted:
        return []
    found = runs().filter(wanted).order_by("-created_at", "-pk")
    # Of those that have freed it, the newest.
    return list((found.filter(active_key__isnull=False)[:1] or found)[:1])


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for index, char in enumerate(text):
        if char == ":" and 0 < index < len(text) - 1:
            yield text[:index], text[index + 1 :]


# Filters


def add_filters(parser: ArgumentParser, *, step: bool = True) -> None:
    """Which runs, if they are not named."""
    chosen = parser.add_argument_group("filters")
    chosen.add_argument("--sequence", metavar="LABEL", help="of this sequence")
    chosen.add_argument("--status", choices=STATUSES, metavar="STATUS", help=", ".join(STATUSES))
    chosen.add_argument("--key", help="started with this key")
    chosen.add_argument(
        "--since", type=moment, metavar="24h", help="started since then: a duration, or a date"
    )
    if step:
        chosen.add_argument("--step", metavar="NAME", help="that are at this step, or failed at it")


def is_filtered(options: Namespace) -> bool:
    """Whether somebody has said which runs."""
    names = ("sequence", "status", "key", "since", "step")
    return any(getattr(options, name, None) is not None for name in names)


def filtered(options: Namespace) -> SequenceRunQuerySet:
    """The runs that the filters let through, the newest first."""
    found = runs().order_by("-created_at", "-pk")
    if options.sequence is not None:
        found = found.filter(sequence__in=known_names(options.sequence))
    if options.status is not None:
        found = found.filter(status__in=_statuses(options.status))
    if options.key is not None:
        found = found.filter(key=options.key)
    if options.since is not None:
        found = found.filter(created_at__gte=_since(options.since))
    if getattr(options, "step", None) is not None:
        found = at_step(found, options.step)
    return found


def _statuses(status: str) -> list[str]:
    finished = [one for one in RunStatus.values if one not in UNFINISHED_RUN]
    several: dict[str, list[str]] = {"unfinished": [*UNFINISHED_RUN], "finished": finished}
    return [str(one) for one in several.get(status, [status])]


def _since(since: timedelta | datetime) -> datetime:
    return clock.now(conf.using()) - since if isinstance(since, timedelta) else since


def at_step(found: SequenceRunQuerySet, step: str) -> SequenceRunQuerySet:
    """Those that are at this step, or have failed at it."""
    states = (*UNFINISHED_STEP, StepStatus.FAILED)
    rows = StepRun.objects.using(conf.using()).filter(step=step, item=NO_ITEM, status__in=states)
    return found.filter(pk__in=rows.values("run"))


def known_names(label: str) -> list[str]:
    """The names of a sequence, which may be gone from the code. Raises `CommandError`."""
    names = registry.names_of(label)
    is_known = registry.find(label) is not None and not registry.is_inline(label)
    if not is_known and not runs().filter(sequence__in=names).exists():
        labels = [cls._definition.label for cls in registry.all() if cls._definition is not None]
        raise wrong(
            f"There is no sequence {label!r}, and no run of it. {did_you_mean(label, labels)}"
        )
    return names
