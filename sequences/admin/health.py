"""The strip above the lists: whether steps are performed at all."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from .. import conf, health
from .filters import runs_for

#: How the page is asked for by its own script.
LIVE_HEADER = "sequences-live"
#: Milliseconds between two looks of a page that may change.
LIVE = 5_000


def strip(model_admin: Any, request: HttpRequest) -> dict[str, Any]:
    """For the templates: the health of what this person may see, and how the page is asked for."""
    return {
        "health": health.read(conf.using(), runs_for(model_admin, request)),
        "is_refresh": request.headers.get("X-Requested-With") == LIVE_HEADER,
        "page_url": request.get_full_path(),
    }
