"""The strip above the lists: whether steps run as they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.http import HttpRequest

from .. import conf
from ..inspection import health
from .base import is_refresh
from .filters import runs_for

#: The time between two polls of a page that may change, in milliseconds.
LIVE = 5_000


def strip(model_admin: Any, request: HttpRequest) -> dict[str, Any]:
    """For templates: the health of what this person may see, and how to poll the page."""
    report = health.read(conf.using(), runs_for(model_admin, request))
    if not request.user.has_perms(["job_sequences.view_schedule"]):
        report = replace(report, schedules=())
    return {
        "health": report,
        "is_refresh": is_refresh(request),
        "page_url": request.get_full_path(),
    }
