"""The strip above the lists: whether steps are performed at all."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from .. import conf
from ..inspection import health
from .base import is_refresh
from .filters import runs_for

#: Milliseconds between two looks of a page that may change.
LIVE = 5_000


def strip(model_admin: Any, request: HttpRequest) -> dict[str, Any]:
    """For the templates: the health of what this person may see, and how the page is asked for."""
    return {
        "health": health.read(conf.using(), runs_for(model_admin, request)),
        "is_refresh": is_refresh(request),
        "page_url": request.get_full_path(),
    }
