"""``manage.py sequences``: sequences from the command line."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from ... import conf
from ...sweep import once, run_forever


class Command(BaseCommand):
    """Sweeps, where no worker does."""

    help = "Dispatch what is due and what was lost."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One word a task."""
        tasks = parser.add_subparsers(dest="task", required=True)
        sweeping = tasks.add_parser("sweep", help=self.help)
        sweeping.add_argument("--loop", action="store_true", help="go on until interrupted")

    def handle(self, *args: Any, task: str, loop: bool = False, **options: Any) -> None:
        """Sweep once, or for ever."""
        if not loop:
            sent = once()
            self.stdout.write(f"{sent} dispatched")
            return
        try:
            run_forever(conf.settings.sweep_interval or 1)
        except KeyboardInterrupt:
            self.stdout.write("Stopped.")
