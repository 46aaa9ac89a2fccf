"""Runs in the admin: list, page and acts, put together."""

from __future__ import annotations

from django.contrib import admin

from ..models import SequenceRun
from .acting import RunActs
from .listing import RunListing


@admin.register(SequenceRun)
class SequenceRunAdmin(RunListing, RunActs):
    """Runs: list, search, and one with all that happened in it."""
