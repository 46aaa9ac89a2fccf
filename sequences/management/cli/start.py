"""The subcommand that starts runs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ... import conf
from ...flows.builder import start_definition
from ...inspection.snapshot import RunSnapshot
from ...models import StepStatus
from ...sequence import Sequence, get
from ...utils.durations import format_duration
from ...utils.terminal import plain
from . import wait
from .argtypes import definition_in, duration, json_object, subject
from .arguments import flag, one_of, option
from .base import Subcommand, values_of, wrong
from .details import RunDetails


class Start(Subcommand):
    """Starts a run of a sequence, or of a definition in a file."""

    name = "start"
    help = "Start a sequence, or a definition in a file, and optionally wait for it to finish."
    arguments = (
        one_of(
            option("label", "a sequence, such as shop.Order", metavar="LABEL", nargs="?"),
            option("--file", "a definition in YAML or JSON, stored with the run", Path),
        ),
        option(
            "--data", "a JSON object, @file, or - for standard input", json_object, "JSON",
            default={},
        ),
        option("--key", "the key of the run; if a run already has it, nothing starts"),
        option(
            "--unique", "how long a run keeps its key: forever (default), or until it has finished",
            choices=("ever", "unfinished"), default="ever",
        ),
        option("--delay", "wait this long before the first steps", duration, "5m"),
        option(
            "--priority", "order among runs waiting for a limit; the lowest number goes first",
            int, "N", default=0,
        ),
        option(
            "--deadline", "fail the run if it has not finished within this time", duration, "3d"
        ),
        option("--subject", "the object the run is about", subject, "app.model:pk"),
        flag("--wait", "wait until the run has finished; the exit status depends on the outcome"),
        wait.FOR_HOW_LONG,
        flag("--json", "print JSON, as `show` does"),
    )  # fmt: skip
    _has_doubted = False

    def run(self, options: Namespace) -> None:
        if options.timeout is not None and not options.wait:
            raise wrong("--timeout needs --wait.")
        start = self._start(options)
        named = values_of(options, "key", "unique", "delay", "priority", "subject")
        if options.deadline is not None:
            named["deadline"] = options.deadline
        sequence = start(options.data, **named)
        run = sequence.run
        if not options.json:
            prefix = "Started" if sequence.created else "Already exists:"
            self.write(f"{prefix} {plain(run.sequence)} {run.pk}")
            self.command.stdout.flush()
        try:
            if options.wait:
                ended = wait.until_succeeded(run, self._doubt, timeout=options.timeout)
                if not options.json:
                    self.write(f"Succeeded after {format_duration(ended.duration)}.")
        finally:
            if options.json:
                run.refresh_from_db()
                self.write_json({**RunDetails(run).as_json(), "created": sequence.created})

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
        steps = run_snapshot.steps
        queues = {step.node.queue for step in steps if step.status == StepStatus.QUEUED}
        if queues and not any(step.row.started_at for step in steps if step.row is not None):
            self._has_doubted = True
            names = ", ".join(sorted(queues))
            self.command.stderr.write(
                f"No worker has started it yet. Is one running for the queue {names}? "
                "Start one with `python manage.py rundramatiq`."
            )
