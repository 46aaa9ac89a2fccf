"""Runs in the admin: list, page and actions combined."""

from __future__ import annotations

from django.contrib import admin

from ..models import SequenceRun
from .bulk_operations import ManyRuns
from .run_list import RunListing


@admin.register(SequenceRun)
class SequenceRunAdmin(RunListing, ManyRuns):
    """Runs: list, search, and a page for each."""
