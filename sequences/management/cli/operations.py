"""Operations on runs: each calls the run's own method, for one run or many."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from ...data.redaction import NoSecret, restore
from ...definitions import registry
from ...definitions.rules import RULES
from ...exceptions import SequenceError
from ...inspection.actions import ACTIONS
from ...models import SequenceRun
from ...utils.terminal import plain
from .argtypes import assignment, date, duration, json_object, json_value
from .base import (
    INTERRUPTED,
    REFUSED,
    Subcommand,
    add_caller_and_reason,
    caller_and_reason,
    counted,
    rejected,
    wrong,
)
from .selectors import (
    RUN,
    RUN_HELP,
    add_filters,
    add_run,
    at_step,
    filtered,
    find,
    is_filtered,
    runs,
)


@dataclass
class Tally:
    """What happened to each run."""

    done: list[SequenceRun] = field(default_factory=list)
    rejected: list[tuple[SequenceRun, str]] = field(default_factory=list)

    def as_json(self, action: str) -> dict[str, Any]:
        return {
            "action": action,
            "done": [str(run.pk) for run in self.done],
            "rejected": [{"run": str(run.pk), "why": why} for run, why in self.rejected],
        }


class Operating(Subcommand):
    """One of the `ACTIONS` on runs."""

    action: str
    #: Boolean options, by the argument of the method.
    flags: ClassVar[Mapping[str, str]] = {}
    flag_action: ClassVar[Any] = "store_true"

    def add_arguments(self, parser: ArgumentParser) -> None:
        action = ACTIONS[self.action]
        parser.description = str(action.explains)
        parser.add_argument("runs", nargs="*", metavar=RUN, help=RUN_HELP)
        if action.on_step:  # `step` is a filter
            parser.add_argument("on_step", metavar="STEP", help="the step, the same for all runs")
        self.add_options(parser)
        add_caller_and_reason(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_filters(parser, step=not action.on_step)
        parser.add_argument(
            "--all", action="store_true", help="apply to every run that matches the filters"
        )
        parser.add_argument("--dry-run", action="store_true", help="only list the runs")

    def add_options(self, parser: ArgumentParser) -> None:
        """Add the options that only this operation has."""
        for flag, help_text in self.flags.items():
            name = f"--{flag.replace('_', '-')}"
            parser.add_argument(name, action=self.flag_action, help=help_text)

    def keywords(self, options: Namespace) -> dict[str, Any]:
        """The arguments of its method, besides the step."""
        flags = {flag: getattr(options, flag) for flag in self.flags}
        return {**caller_and_reason(options), **flags}

    def run(self, options: Namespace) -> None:
        step = [options.on_step] if ACTIONS[self.action].on_step else []
        ids = self._ids(options, options.runs, *step)
        if options.dry_run:
            self._list(ids, options)
            return
        keywords, tally = self.keywords(options), Tally()
        try:
            for pk in ids:
                self._operate(pk, step, keywords, tally, quiet=options.json)
        except KeyboardInterrupt:
            self._sum_up(tally, options)
            raise CommandError(
                "Interrupted; the remaining runs are unchanged.", returncode=INTERRUPTED
            ) from None
        self._sum_up(tally, options)

    def _ids(self, options: Namespace, names: list[str], step: str | None = None) -> list[UUID]:
        if names and (is_filtered(options) or options.all):
            raise wrong("Name runs, or select them with filters and --all, but not both.")
        if names:
            return [find(name).pk for name in names]
        if not is_filtered(options):
            raise wrong(
                f"Name the {RUN}, or select runs with filters: --sequence, --status, --since, …"
            )
        if not options.all and not options.dry_run:
            raise wrong("Add --all to apply it to every matching run, or --dry-run to list them.")
        rows = filtered(options)
        if options.status is None:
            rows = rows.filter(status__in=RULES[self.action].targets)
        if step is not None and self.action != "restart_from":
            rows = at_step(rows, step)
        return list(rows.values_list("pk", flat=True))

    def _list(self, ids: list[UUID], options: Namespace) -> None:
        if options.json:
            self.write_json({"action": self.action, "runs": [str(pk) for pk in ids]})
            return
        for pk in ids:
            self.write(str(pk))
        self.write(f"{self.name} would be applied to {counted(len(ids), 'run')}.")

    def _operate(
        self, pk: UUID, step: list[str], keywords: dict[str, Any], tally: Tally, *, quiet: bool
    ) -> None:
        run = runs().filter(pk=pk).first()
        if run is None:  # pruned since it was found
            return
        try:
            why = self.perform(run, *step, **keywords)
        except SequenceError as error:
            why = str(error)
        if why:
            tally.rejected.append((run, why))
        else:
            tally.done.append(run)
        if not quiet and not why:
            self.write(f"{self.name}: {plain(run)} is {run.status}")
        elif not quiet:
            self.command.stderr.write(plain(why))

    def perform(self, run: SequenceRun, *step: str, **keywords: Any) -> str:
        """Perform it on one run. Returns or raises the reason if that is not possible."""
        getattr(run, self.action)(*step, **keywords)
        return ""

    def _sum_up(self, tally: Tally, options: Namespace) -> None:
        if options.json:
            self.write_json(tally.as_json(self.action))
        count = len(tally.done) + len(tally.rejected)
        if count != 1 and not options.json:
            self.write(f"{len(tally.done)} done, {len(tally.rejected)} rejected.")
        if tally.rejected:
            why = f"{self.name} was rejected for {len(tally.rejected)} of {count}."
            raise CommandError(why, returncode=REFUSED)


class SetDeadline(Operating):
    """Set the deadline of runs."""

    name, action = "set-deadline", "set_deadline"
    help = "Set or remove the deadline of runs."

    def add_options(self, parser: ArgumentParser) -> None:
        when = parser.add_mutually_exclusive_group(required=True)
        when.add_argument(
            "--in", type=duration, metavar="3d", dest="span", help="a duration from now"
        )
        when.add_argument(
            "--at", type=date, metavar="2026-12-01T08:00", help="a date, or a date and a time"
        )
        when.add_argument("--none", action="store_true", help="remove the deadline")

    def keywords(self, options: Namespace) -> dict[str, Any]:
        deadline = options.at if options.span is None else options.span
        return {**super().keywords(options), "deadline": deadline}


class Deliver(Operating):
    """Deliver an event."""

    name, action = "deliver", "deliver"
    help = "Deliver an event to runs."

    def add_options(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--payload", type=json_value, metavar="JSON", help="JSON, @file, or - (default: null)"
        )

    def keywords(self, options: Namespace) -> dict[str, Any]:
        return {**super().keywords(options), "payload": options.payload}

    def perform(self, run: SequenceRun, *step: str, **keywords: Any) -> str:
        if run.deliver(*step, **keywords):
            return ""
        return f"Run {run.pk} already has a delivery of {step[0]!r}; only the first one counts."


def _operating(action: str, help_text: str, **flags: str) -> Callable[[BaseCommand], Operating]:
    """The class of an operation that has only boolean options."""
    attributes = {
        "name": action.replace("_", "-"), "action": action, "help": help_text, "flags": flags,
    }  # fmt: skip
    return type(f"{action.title()}Subcommand", (Operating,), attributes)


class Edit(Subcommand):
    """Replace the data of a run."""

    name, help = "edit", "Replace the data of a run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.description = (
            "Replaces the data of a run while no step is running. Values shown as *** are kept "
            "wherever you leave the *** in place."
        )
        add_run(parser)
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--data", type=json_object, metavar="JSON", help="the complete data: JSON, @file or -"
        )
        what.add_argument(
            "--set",
            type=assignment,
            action="append",
            metavar="KEY=JSON",
            help="set one key; repeatable",
        )
        parser.add_argument(
            "--if-version", type=int, metavar="N",
            help="only if the run still has this version (see `show`)",
        )  # fmt: skip
        add_caller_and_reason(parser)

    def run(self, options: Namespace) -> None:
        if (options.data is None) == (options.set is None):
            raise wrong(
                "Pass --data with the complete data, or --set key=value to change single keys."
            )
        run = find(options.run)
        data = self._edited(run, options)
        if options.if_version is not None:
            run.version = options.if_version
        try:
            run.edit(data, **caller_and_reason(options))
        except SequenceError as error:
            raise rejected(error) from None
        self.write(f"edit: {plain(run)} is now at version {run.version}")

    def _edited(self, run: SequenceRun, options: Namespace) -> dict[str, Any]:
        if options.set is not None:
            return {**run.data, **dict(options.set)}
        patterns = registry.hidden_by(run.sequence)
        try:
            restored: dict[str, Any] = restore(options.data, run.data, patterns)
        except NoSecret as error:
            raise wrong(
                f"{error.path} is *** in this data, but it is unclear which value that stands "
                "for. Write the value itself, or change single keys with --set."
            ) from None
        return restored


class Cancel(Operating):
    """Without a flag, the class of each run decides."""

    name = "cancel"
    help = "Cancel runs; with --undo, roll back completed steps first."
    action = "cancel"
    flags: ClassVar[Mapping[str, str]] = {
        "undo": "roll back completed steps first, or not (default: Meta.cancel)"
    }
    flag_action = BooleanOptionalAction


TASKS: list[Callable[[BaseCommand], Subcommand]] = [
    _operating("retry", "Restart failed steps, and run pending retries now."),
    Cancel,
    _operating("pause", "Pause runs: no new step starts until you resume them."),
    _operating("resume", "Continue paused runs."),
    _operating("finish", "Mark runs as succeeded."),
    _operating("skip", "Skip a step, and continue without it."),
    _operating("run_now", "Run a delayed step now."),
    _operating(
        "restart_from",
        "Run a step and all later steps again.",
        keep_deliveries="keep earlier deliveries for the events among them",
    ),
    SetDeadline,
    Deliver,
    Edit,
    _operating(
        "erase",
        "Permanently erase data, results, error texts, reasons and the key.",
        keep_key="keep the key, so that no other run starts with it",
    ),
]
