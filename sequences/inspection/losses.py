"""What people are told about a lost worker: what else it was running."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db.models import Max
from django.utils.translation import gettext, ngettext

from ..models import NO_ITEM, StepLoss, StepRun

#: The number of neighbours that are named.
MAX_NAMED_STEPS = 3


def newest_losses(step_run_ids: Collection[int], using: str) -> dict[int, StepLoss]:
    """The latest loss of each of these step runs that has one."""
    rows = StepLoss._base_manager.using(using).filter(step_run__in=step_run_ids)
    newest = rows.order_by().values("step_run").annotate(newest=Max("pk")).values("newest")
    losses = StepLoss._base_manager.using(using).filter(pk__in=[row["newest"] for row in newest])
    return {loss.step_run_id: loss for loss in losses if loss.step_run_id is not None}


def deaths_sentence(row: StepRun, loss: StepLoss | None) -> str:
    """How many workers died in the step, and what else the last one was running."""
    values = {
        "count": row.lost_workers,
        "steps": names(loss.concurrent_steps) if loss is not None else "",
    }
    if loss is None:
        message = ngettext(
            "Lost %(count)d worker.", "Lost %(count)d workers in a row.", row.lost_workers
        )
    elif not loss.concurrent_steps:
        message = ngettext(
            "Lost %(count)d worker, which was running nothing else.",
            "Lost %(count)d workers in a row; the last one was running nothing else.",
            row.lost_workers,
        )
    else:
        message = ngettext(
            "Lost %(count)d worker, which was also running %(steps)s.",
            "Lost %(count)d workers in a row; the last one was also running %(steps)s.",
            row.lost_workers,
        )
    return message % values


def loss_sentence(loss: StepLoss) -> str:
    """Which worker died, and what else it was running."""
    message = (
        gettext("Lost worker %(worker)s, which was also running %(steps)s.")
        if loss.concurrent_steps
        else gettext("Lost worker %(worker)s, which was running nothing else.")
    )
    return message % {"worker": loss.worker, "steps": names(loss.concurrent_steps)}


def names(neighbours: list[dict[str, Any]]) -> str:
    """The neighbours, the first of them by name."""
    named = ", ".join(_name(neighbour) for neighbour in neighbours[:MAX_NAMED_STEPS])
    more = len(neighbours) - MAX_NAMED_STEPS
    if more <= 0:
        return named
    message = ngettext("%(steps)s and %(count)d other", "%(steps)s and %(count)d others", more)
    return message % {"steps": named, "count": more}


def _name(neighbour: dict[str, Any]) -> str:
    item = "" if neighbour["item"] == NO_ITEM else f"[{neighbour['item']}]"
    values = {"step": f"{neighbour['step']}{item}", "run": neighbour["run"]}
    return gettext("“%(step)s” of run %(run)s") % values
