"""The subcommand that starts runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ... import conf
from ...flows.builder import start_definition
from ...inspection.snapshot import RunSnapshot
from ...models import StepRun, StepStatus
from ...sequence import Sequence, get
from ...utils.durations import format_duration
from ...utils.terminal import plain
from . import wait
from .argtypes import definition_in, duration, json_object, subject
from .base import Subcommand, wrong
from .details import RunDetails


class Start(Subcommand):
    """Starts a run of a sequence, or of a definition in a file."""

    name, help = (
        "start",
        "Start a sequence, or a definition in a file, and optionally wait for it to finish.",
    )
    _has_doubted = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "label", nargs="?", metavar="LABEL", help="a sequence, such as shop.Order"
        )
        what.add_argument(
            "--file", type=Path, help="a definition in YAML or JSON, stored with the run"
        )
        parser.add_argument(
            "--data", type=json_object, default={}, metavar="JSON",
            help="a JSON object, @file, or - for standard input",
        )  # fmt: skip
        parser.add_argument(
            "--key", help="the key of the run; if a run already has it, nothing starts"
        )
        parser.add_argument(
            "--unique",
            choices=("ever", "unfinished"),
            default="ever",
            help="how long a run keeps its key: forever (the default), or until it has ended",
        )
        parser.add_argument("--delay", type=duration, metavar="5m", help="start after this time")
        parser.add_argument(
            "--priority", type=int, default=0, metavar="N",
            help="order among runs that wait for a limit; the lowest goes first",
        )  # fmt: skip
        parser.add_argument(
            "--deadline",
            type=duration,
            metavar="3d",
            help="fail the run if it has not finished within this time",
        )
        parser.add_argument(
            "--subject", type=subject, metavar="app.model:pk", help="the object the run is about"
        )
        parser.add_argument(
            "--wait",
            action="store_true",
            help="wait until the run has ended; the exit status says how",
        )
        parser.add_argument(
            "--timeout", type=duration, metavar="10m", help="stop waiting after this time"
        )
        parser.add_argument("--json", action="store_true", help="print JSON, as `show` does")

    def run(self, options: Namespace) -> None:
        if options.timeout is not None and not options.wait:
            raise wrong("--timeout needs --wait.")
        start = self._start(options)
        names = ("key", "unique", "delay", "priority", "subject")
        named = {name: getattr(options, name) for name in names}
        if options.deadline is not None:
            named["deadline"] = options.deadline
        sequence = start(options.data, **named)
        run = sequence.run
        if not options.json:
            prefix = "Started" if sequence.created else "Already exists:"
            self.write(f"{prefix} {plain(run.sequence)} {run.pk}")
            self.command.stdout.flush()
        ended = None
        try:
            if options.wait:
                ended = wait.until_ended(run, self._doubt, timeout=options.timeout)
        finally:
            if options.json:
                run.refresh_from_db()
                self.write_json({**RunDetails(run).as_json(), "created": sequence.created})
        if ended is not None:
            wait.outcome(ended)
            if not options.json:
                self.write(f"Succeeded after {format_duration(ended.duration)}.")

    def _start(self, options: Namespace) -> Callable[..., Sequence[Any]]:
        if (options.label is None) == (options.file is None):
            raise wrong("Name a sequence by its label, or use --file flow.yaml.")
        if options.file is None:
            return get(options.label).start
        definition = definition_in(options.file)
        name = definition.pop("name", None) or options.file.stem
        return partial(start_definition, definition, name=name)

    def _doubt(self, run_snapshot: RunSnapshot) -> None:
        """Ask once whether a worker is running, if nothing seems to happen."""
        if self._has_doubted or run_snapshot.age.total_seconds() < conf.settings.grace:
            return
        rows = StepRun.objects.using(conf.using()).filter(run=run_snapshot.run.pk)[:100]
        queued = [row for row in rows if row.status == StepStatus.QUEUED]
        if queued and not any(row.started_at for row in rows):
            self._has_doubted = True
            queues = ", ".join(sorted({run_snapshot.plan.node(row.step).queue for row in queued}))
            self.command.stderr.write(
                f"No worker has started it yet. Is one running for the queue {queues}? "
                "Start one with `python manage.py rundramatiq`."
            )
