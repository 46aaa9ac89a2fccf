"""Durable calls inside a step: each result is stored in a short commit of its own."""

from __future__ import annotations

import json
from typing import Any

from ..models import StepCall, StepRun, StepStatus
from . import clock
from .locking import transact
from .types import Claim, ClaimLost


def results(step_run_id: int, using: str) -> dict[str, Any]:
    """The results stored by earlier attempts of this step run, by the names of the calls."""
    rows = StepCall._base_manager.using(using).filter(step_run=step_run_id)
    return dict(rows.values_list("name", "result"))


def store(claim: Claim, name: str, result: str, using: str) -> None:
    """Store this result, as JSON, for later attempts. Raises `ClaimLost`."""
    transact(using, lambda: _store(claim, name, result, using))


def _store(claim: Claim, name: str, result: str, using: str) -> None:
    # Locked, so that nobody takes over the step between this check and the commit.
    rows = StepRun._base_manager.using(using).select_for_update()
    is_ours = rows.filter(pk=claim.step_run_id, token=claim.token, status=StepStatus.RUNNING)
    if is_ours.values_list("pk", flat=True).first() is None:
        raise ClaimLost
    StepCall._base_manager.using(using).create(
        run_id=claim.run_id,
        step_run_id=claim.step_run_id,
        name=name,
        result=json.loads(result),
        called_at=clock.now(using),
    )
