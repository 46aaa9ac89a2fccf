"""What people are told of a worker that was lost: beside whom the step was that it died in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db.models import Max
from django.utils.translation import gettext, ngettext

from ..models import NO_ITEM, StepLoss, StepRun

#: How many neighbours are named.
NAMED = 3


def newest_losses(step_run_ids: Collection[int], using: str) -> dict[int, StepLoss]:
    """The newest loss of each of these step runs, as far as they have one."""
    rows = StepLoss._base_manager.using(using).filter(step_run__in=step_run_ids)
    newest = rows.order_by().values("step_run").annotate(newest=Max("pk")).values("newest")
    losses = StepLoss._base_manager.using(using).filter(pk__in=[row["newest"] for row in newest])
    return {loss.step_run_id: loss for loss in losses if loss.step_run_id is not None}


def deaths(row: StepRun, loss: StepLoss | None) -> str:
    """How many workers died in the step, and beside whom: a part of a sentence."""
    died = ngettext("lost %(count)d worker", "lost %(count)d workers in a row", row.lost)
    text = died % {"count": row.lost}
    if loss is None:
        return text
    if not loss.beside:
        return gettext("%(deaths)s, the last one with nothing else in hand") % {"deaths": text}
    return gettext("%(deaths)s, the last one beside %(steps)s") % {
        "deaths": text,
        "steps": names(loss.beside),
    }


def names(beside: list[dict[str, Any]]) -> str:
    """The neighbours, the first of them by name."""
    named = ", ".join(_name(one) for one in beside[:NAMED])
    more = len(beside) - NAMED
    if more <= 0:
        return named
    others = ngettext("%(count)d other", "%(count)d others", more) % {"count": more}
    return gettext("%(steps)s and %(others)s") % {"steps": named, "others": others}


def _name(one: dict[str, Any]) -> str:
    item = "" if one["item"] == NO_ITEM else f"[{one['item']}]"
    values = {"step": f"{one['step']}{item}", "run": one["run"]}
    return gettext("“%(step)s” of run %(run)s") % values
