"""Subcommands that only read: list, show, watch, graph."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from uuid import UUID

from django.utils.translation import gettext

from ... import diagrams
from ...definitions import registry
from ...definitions.plan import Plan
from ...flows import builder
from ...inspection import snapshot, struggling
from ...inspection.diagnosis import error_of
from ...inspection.run_diagrams import marks_of
from ...inspection.snapshot import HEAVY, RunSnapshot
from ...models import read_subject_rows
from ...utils.durations import format_duration
from ...utils.terminal import plain, printable
from . import wait
from .argtypes import count, definition_in
from .arguments import JSON, argument, flag, one_of, option
from .base import Subcommand, json_text, wrong
from .details import RunDetails, brief
from .live import Display
from .selectors import FILTERS, ONE_RUN, filtered, find
from .tables import Cell, shortened


class List(Subcommand):
    """The newest runs."""

    name, help = "list", "List runs, newest first."
    arguments = (FILTERS, option("--limit", "how many runs (default: 50)", count, default=50), JSON)

    def run(self, options: Namespace) -> None:
        runs = list(filtered(options).defer(*HEAVY)[: options.limit])
        snapshots = snapshot.of_many(runs)
        steps = struggling.steps_of(runs)
        if options.json:
            read_subject_rows(runs)
            self.write_json(
                [{**brief(each), "struggling": steps.get(each.run.pk, ())} for each in snapshots]
            )
        elif snapshots:
            self.write_table(self._rows(snapshots, steps), 1, 2, 4, 7)
        else:
            self.write("No matching runs.")

    def _rows(
        self, snapshots: list[RunSnapshot], struggling_steps: Mapping[UUID, tuple[str, ...]]
    ) -> Iterator[tuple[object, ...]]:
        yield ("RUN", "SEQUENCE", "KEY", "STATUS", "AT", "DONE", "AGE", "ERROR")
        ids = [run_snapshot.run.pk for run_snapshot in snapshots]
        # A pipe gets everything.
        texts = {pk: str(pk) for pk in ids} if self.width is None else shortened(ids)
        for run_snapshot in snapshots:
            run, failure = run_snapshot.run, run_snapshot.root_failure
            yield (
                texts[run.pk],
                run.sequence,
                run.key,
                Cell(run.status, self.paint("failed" if run_snapshot.is_failing else run.status)),
                _at(run_snapshot, struggling_steps.get(run.pk, ())),
                f"{run_snapshot.done}/{run_snapshot.total}",
                format_duration(run_snapshot.age),
                failure and error_of(failure),
            )


def _at(run_snapshot: RunSnapshot, struggling_steps: tuple[str, ...]) -> str:
    marks = dict.fromkeys(struggling_steps, " (struggling)")
    return ", ".join(f"{step.name}{marks.get(step.name, '')}" for step in run_snapshot.at)


class Show(Subcommand):
    """Everything about one run."""

    name, help = "show", "Show one run: its steps, data, failed attempts and operations."
    description = (
        "Show one run: its steps, data, failed attempts and operations. RAN is how long the last "
        "attempt of a step took, with its items or child runs; WAITED is the rest of the time "
        "since the step became ready, earlier attempts included."
    )
    arguments = (
        ONE_RUN,
        flag(
            "--tracebacks",
            "include the tracebacks of failed attempts; in text, library frames are folded",
        ),
        JSON,
    )

    def run(self, options: Namespace) -> None:
        details = RunDetails(find(options.run), tracebacks=options.tracebacks)
        if options.json:
            self.write_json(details.as_json())
        else:
            self.write("\n".join(details.lines(self)))


class Watch(Subcommand):
    """The progress of a run, until it has ended."""

    name, help = "watch", "Follow the progress of a run until it finishes."
    arguments = (ONE_RUN, wait.FOR_HOW_LONG, flag("--json", "print JSON, a line per change"))

    def run(self, options: Namespace) -> None:
        run = find(options.run)
        display = (JsonLines if options.json else Display)(self.command.stdout, self.paint)
        wait.until_succeeded(
            run, lambda run_snapshot: display.show([run_snapshot]), timeout=options.timeout
        )


class JsonLines(Display):
    """One line of JSON for each change of a run."""

    def show(self, snapshots: Collection[RunSnapshot]) -> None:
        """Write a line if anything has changed."""
        for run_snapshot in snapshots:
            before = self.states_of.get(run_snapshot.run.pk)
            self.changes(run_snapshot)
            if self.states_of[run_snapshot.run.pk] != before:
                steps = {step.name: step.status for step in run_snapshot.steps if step.status}
                line = {"time": run_snapshot.now, **brief(run_snapshot), "steps": steps}
                self.out.write(f"{json_text(line)}\n")
                self.out.flush()


class Graph(Subcommand):
    """The diagram of a plan, or of a run."""

    name, help = "graph", "Draw the steps of a sequence or a run as text, Mermaid or SVG."
    arguments = (
        one_of(
            option("what", "a sequence, or a run", metavar="LABEL|RUN", nargs="?"),
            option("--file", "a definition in YAML or JSON", Path),
        ),
        argument("--format", choices=("text", "mermaid", "svg"), default="text"),
        argument("-o", "--output", type=Path, metavar="FILE", help="write to this file"),
    )

    def run(self, options: Namespace) -> None:
        if (options.what is None) == (options.file is None):
            raise wrong("Name a sequence by its label, name a run, or use --file flow.yaml.")
        plan, marks = _marked(options)
        picture = self._picture(options, plan, marks)
        if options.output is None:
            self.write(_safe(picture, options.format))
            return
        try:
            options.output.write_text(f"{picture.rstrip()}\n", encoding="utf-8")
        except OSError as error:
            raise wrong(f"{options.output} cannot be written: {error.strerror}.") from None

    def _picture(self, options: Namespace, plan: Plan, marks: Mapping[str, diagrams.Mark]) -> str:
        if options.format == "svg":
            return diagrams.svg(plan, marks, standalone=True, translate=gettext)
        if options.format == "mermaid":
            return diagrams.mermaid(plan, marks, translate=gettext)
        encoding = getattr(self.command.stdout, "encoding", None) or "utf-8"
        is_unicode = options.output is not None or encoding.lower().startswith("utf")
        width = WIDE if options.output is not None else self.width or WIDE
        return diagrams.text(plan, marks, width=width, unicode=is_unicode, translate=gettext)


def _safe(picture: str, form: str) -> str:
    """Escaped for a terminal: anyone can choose labels."""
    if form != "svg":
        return plain(picture, lines=True)
    return printable(picture, lambda char: f"&#x{ord(char):x};", keep="\n\t")


#: The width of text that is not for a terminal, in columns.
WIDE = 100


def _marked(options: Namespace) -> tuple[Plan, dict[str, diagrams.Mark]]:
    if options.file is not None:
        return builder.plan_of(definition_in(options.file), str(options.file)), {}
    definition = registry.definition_of(options.what)
    if definition is not None and ":" not in options.what:
        return definition.plan, {}
    run_snapshot = snapshot.of(find(options.what))
    return run_snapshot.plan, marks_of(run_snapshot)
