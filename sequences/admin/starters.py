"""What started a run: a link from its page to the schedule."""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.http import HttpRequest

from ..definitions import registry
from ..definitions.schedules import name_in
from ..models import Schedule, SequenceRun


def schedule_of(run: SequenceRun, request: HttpRequest, site: AdminSite) -> Schedule | None:
    """The schedule that started this run, if it still exists and this person may see it."""
    name = name_in(run.key or "")
    model_admin = site._registry.get(Schedule)
    if name is None or model_admin is None or not model_admin.has_view_permission(request):
        return None
    rows = model_admin.get_queryset(request)
    schedule: Schedule | None = rows.filter(
        sequence__in=registry.names_of(run.sequence), name=name
    ).first()
    return schedule
