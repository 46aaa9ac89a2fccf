"""Operations on runs: each is the run's own method, for one run or many."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from ...data.redaction import NoSecret, restore
from ...definitions.rules import RULES
from ...exceptions import SequenceError
from ...inspection import snapshot
from ...inspection.actions import ACTIONS
from ...models import SequenceRun
from ...utils.terminal import plain
from .argtypes import assignment, json_object, json_value
from .base import INTERRUPTED, REFUSED, Subcommand, caller, wrong
from .selectors import RUN, RUN_HELP, add_filters, at_step, filtered, find, is_filtered, runs


@dataclass
class Tally:
    """What has become of each run."""

    done: list[SequenceRun] = field(default_factory=list)
    refused: list[tuple[SequenceRun, str]] = field(default_factory=list)

    def as_json(self, action: str) -> dict[str, Any]:
        return {
            "action": action,
            "done": [str(run.pk) for run in self.done],
            "refused": [{"run": str(run.pk), "why": why} for run, why in self.refused],
        }


class Operating(Subcommand):
    """One of the `ACTIONS` on runs."""

    action: str

    def add_arguments(self, parser: ArgumentParser) -> None:
        action = ACTIONS[self.action]
        parser.description = str(action.explains)
        if action.on_step:
            parser.add_argument(
                "names", nargs="+", metavar=f"{RUN} STEP",
                help=f"runs ({RUN_HELP}), and last the step; the step alone, with filters",
            )  # fmt: skip
        else:
            parser.add_argument("runs", nargs="*", metavar=RUN, help=RUN_HELP)
        self.add_options(parser)
        parser.add_argument("--reason", default="", help="why; stored with the run")
        parser.add_argument("--by", help="who; you, if nobody is named")
        parser.add_argument("--json", action="store_true", help="a JSON object: done, refused")
        add_filters(parser, step=not action.on_step)
        parser.add_argument("--all", action="store_true", help="every run that matches the filters")
        parser.add_argument("--dry-run", action="store_true", help="only list these runs")

    def add_options(self, parser: ArgumentParser) -> None:
        """What only this operation takes."""

    def arguments(self, options: Namespace) -> tuple[Any, ...]:
        """What its method takes, after the step."""
        return ()

    def keywords(self, options: Namespace) -> dict[str, Any]:
        """The same by name."""
        return {"by": caller() if options.by is None else options.by, "reason": options.reason}

    def run(self, options: Namespace) -> None:
        named, step = self._named(options)
        chosen = self._chosen(options, named, step)
        if options.dry_run:
            self._list_chosen(chosen, options)
            return
        arguments = [*([step] if step is not None else []), *self.arguments(options)]
        keywords = self.keywords(options)
        tally = Tally()
        try:
            for pk in chosen:
                self._operate(pk, arguments, keywords, tally, quiet=options.json)
        except KeyboardInterrupt:
            self._sum_up(tally, options)
            raise CommandError(
                "Interrupted; the rest is as it was.", returncode=INTERRUPTED
            ) from None
        self._sum_up(tally, options)

    def _named(self, options: Namespace) -> tuple[list[str], str | None]:
        if not ACTIONS[self.action].on_step:
            return options.runs, None
        *named, step = options.names
        return named, step

    def _chosen(self, options: Namespace, named: list[str], step: str | None) -> list[UUID]:
        if named and (is_filtered(options) or options.all):
            raise wrong("Name runs, or choose them by filters and --all; not both.")
        if named:
            return [find(text).pk for text in named]
        if not is_filtered(options):
            raise wrong(f"Name the {RUN}, or choose by filters: --sequence, --status, --since, …")
        if not options.all and not options.dry_run:
            raise wrong("Add --all to do it to every run of these filters, --dry-run to see them.")
        chosen = filtered(options)
        if options.status is None:
            chosen = chosen.filter(status__in=RULES[self.action].targets)
        if step is not None and self.action != "restart_from":
            chosen = at_step(chosen, step)
        return list(chosen.values_list("pk", flat=True))

    def _list_chosen(self, chosen: list[UUID], options: Namespace) -> None:
        if options.json:
            self.write_json({"action": self.action, "runs": [str(pk) for pk in chosen]})
            return
        for pk in chosen:
            self.write(str(pk))
        self.write(f"{self.name} would be tried on {len(chosen)} runs.")

    def _operate(
        self, pk: UUID, arguments: list[Any], keywords: dict[str, Any], tally: Tally, *, quiet: bool
    ) -> None:
        run = runs().filter(pk=pk).first()
        if run is None:  # pruned since it was found
            return
        try:
            why = self.perform(run, arguments, keywords)
        except SequenceError as error:
            why = str(error)
        if why:
            tally.refused.append((run, why))
        else:
            tally.done.append(run)
        if not quiet and not why:
            self.write(f"{self.name}: {plain(run)} is {run.status}")
        elif not quiet:
            self.command.stderr.write(plain(why))

    def perform(self, run: SequenceRun, arguments: list[Any], keywords: dict[str, Any]) -> str:
        """Do it to one. Returns, or raises, why not."""
        method: Callable[..., Any] = getattr(run, self.action)
        method(*arguments, **keywords)
        return ""

    def _sum_up(self, tally: Tally, options: Namespace) -> None:
        if options.json:
            self.write_json(tally.as_json(self.action))
        count = len(tally.done) + len(tally.refused)
        if count != 1 and not options.json:
            self.write(f"{len(tally.done)} done, {len(tally.refused)} refused.")
        if tally.refused:
            why = f"{self.name} was refused for {len(tally.refused)} of {count}."
            raise CommandError(why, returncode=REFUSED)


class Cancel(Operating):
    """Cancel, perhaps with its undos."""

    name, action = "cancel", "cancel"
    help = "Cancel runs; with --undo, roll back completed steps first."

    def add_options(self, parser: ArgumentParser) -> None:
        parser.add_argument("--undo", action="store_true", help="roll back completed steps first")

    def keywords(self, options: Namespace) -> dict[str, Any]:
        return {**super().keywords(options), "undo": options.undo}


class Deliver(Operating):
    """Deliver an event."""

    name, action = "deliver", "deliver"
    help = "Deliver an event to runs."

    def add_options(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--payload", type=json_value, metavar="JSON", help="JSON, @file, or -; null"
        )

    def arguments(self, options: Namespace) -> tuple[Any, ...]:
        return (options.payload,)

    def perform(self, run: SequenceRun, arguments: list[Any], keywords: dict[str, Any]) -> str:
        if run.deliver(*arguments, **keywords):
            return ""
        return f"Run {run.pk} has a delivery of {arguments[0]!r} already, and the first one counts."


class RestartFrom(Operating):
    """Restart, perhaps with what was delivered before."""

    name, action = "restart-from", "restart_from"
    help = "Run a step and all later steps again."

    def add_options(self, parser: ArgumentParser) -> None:
        keep = "keep earlier deliveries for the events among them"
        parser.add_argument("--keep-deliveries", action="store_true", help=keep)

    def keywords(self, options: Namespace) -> dict[str, Any]:
        return {**super().keywords(options), "keep_deliveries": options.keep_deliveries}


class Erase(Operating):
    """Erase, perhaps without its key."""

    name, action = "erase", "erase"
    help = "Permanently erase data, results, error texts, reasons and the key."

    def add_options(self, parser: ArgumentParser) -> None:
        keep = "keep the key, so that no other run starts with it"
        parser.add_argument("--keep-key", action="store_true", help=keep)

    def keywords(self, options: Namespace) -> dict[str, Any]:
        return {**super().keywords(options), "keep_key": options.keep_key}


def _operating(action: str, help_text: str) -> Callable[[BaseCommand], Operating]:
    """The class of an operation that takes nothing of its own."""
    attributes = {"name": action.replace("_", "-"), "action": action, "help": help_text}
    return type(f"{action.title()}Subcommand", (Operating,), attributes)


class Edit(Subcommand):
    """Replace the data of a run."""

    name, help = "edit", "Replace the data of a run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.description = (
            "Replaces the data of a run while no step is running. Values shown as *** stay as they "
            "are wherever you leave *** in place."
        )
        parser.add_argument("run", metavar=RUN, help=RUN_HELP)
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--data", type=json_object, metavar="JSON", help="all of it: JSON, @file or -"
        )
        what.add_argument(
            "--set", type=assignment, action="append", metavar="KEY=JSON", help="one key of it"
        )
        parser.add_argument(
            "--if-version", type=int, metavar="N", help="only if `show` says this version still"
        )
        parser.add_argument("--reason", default="", help="why; stored with the run")
        parser.add_argument("--by", help="who; you, if nobody is named")

    def run(self, options: Namespace) -> None:
        if (options.data is None) == (options.set is None):
            raise wrong("Give --data with all of it, or --set key=value for some of it.")
        run = find(options.run)
        data = self._edited(run, options)
        if options.if_version is not None:
            run.version = options.if_version
        by = caller() if options.by is None else options.by
        try:
            run.edit(data, by=by, reason=options.reason)
        except SequenceError as error:
            raise CommandError(str(error), returncode=REFUSED) from None
        self.write(f"edit: {plain(run)} has version {run.version}")

    def _edited(self, run: SequenceRun, options: Namespace) -> dict[str, Any]:
        if options.set is not None:
            return {**run.data, **dict(options.set)}
        patterns = snapshot.patterns_of(run.sequence)
        try:
            restored: dict[str, Any] = restore(options.data, run.data, patterns)
        except NoSecret as error:
            raise wrong(
                f"{error.path} is *** in this data, and it cannot be told which value that stands "
                "for. Write the value itself, or change single keys with --set."
            ) from None
        return restored


TASKS: list[Callable[[BaseCommand], Subcommand]] = [
    _operating("retry", "Restart failed steps, and run waiting retries now."),
    Cancel,
    _operating("pause", "Start no further steps until you resume."),
    _operating("resume", "Continue paused runs."),
    _operating("finish", "Mark runs as succeeded."),
    _operating("skip", "Continue without a step."),
    _operating("run_now", "Run a delayed step now."),
    RestartFrom,
    Deliver,
    Edit,
    Erase,
]
