"""``manage.py sequences``: its subcommands are in `sequences.management.cli`."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, no_translations
from django.db import DatabaseError

from ... import conf
from ...exceptions import SequenceError
from ...transitions.refusals import is_unmigrated, unmigrated
from ...utils.terminal import plain
from ..cli import limits, maintenance, operations, read, schedules, start
from ..cli.arguments import add, argument
from ..cli.base import USAGE, Subcommand, wrong

SUBCOMMANDS: list[Callable[[BaseCommand], Subcommand]] = [
    read.List,
    read.Show,
    start.Start,
    read.Watch,
    *operations.SUBCOMMANDS,
    read.Graph,
    limits.Limits,
    schedules.Schedules,
    maintenance.Sweep,
    maintenance.Prune,
    maintenance.Health,
]
HIDDEN: dict[str, Any] = {"default": SUPPRESS, "help": SUPPRESS}
#: Django's own options are accepted after the subcommand as well: `sequences list --no-color`.
DJANGOS = [
    argument("--no-color", action="store_true", **HIDDEN),
    argument("--force-color", action="store_true", **HIDDEN),
    argument("--traceback", action="store_true", **HIDDEN),
    argument("--settings", **HIDDEN),
    argument("--pythonpath", **HIDDEN),
    argument("-v", "--verbosity", type=int, **HIDDEN),
]


class Command(BaseCommand):
    """A subcommand for each task of an operator."""

    help = "Start, inspect, control, sweep and prune runs, and check their health."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the subcommands with their arguments, and Django's own after them, too."""
        self.parser = parser
        parsers = parser.add_subparsers(metavar="subcommand")
        for subcommand in (make(self) for make in SUBCOMMANDS):
            below = parsers.add_parser(
                subcommand.name,
                help=subcommand.help,
                description=subcommand.description or subcommand.help,
            )
            below.set_defaults(subcommand=subcommand)
            add(below, [*subcommand.arguments, *DJANGOS])

    def execute(self, *args: Any, **options: Any) -> Any:
        """Without a subcommand, show which there are; no check of the project comes first."""
        if "subcommand" not in options:
            self.parser.print_help(sys.stderr)
            raise wrong("A subcommand is missing: choose one of those above.")
        return super().execute(*args, **options)

    @no_translations
    def handle(self, *args: Any, subcommand: Subcommand, **options: Any) -> None:
        """Run the subcommand. Its output is in English, like its options."""
        self.is_forced = options.get("force_color", False)
        if self.stdout._out is sys.stdout and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show ✓ gets a ?
        try:
            _check_encoding(options)
            subcommand.run(Namespace(**options))
        except (CommandError, SequenceError) as error:
            raise _safe(error) from None
        except DatabaseError as error:
            if not is_unmigrated(error):
                raise
            raise _safe(unmigrated(error, conf.using())) from None
        except BrokenPipeError:
            # The reader, such as `head`, has closed the pipe: flushing at exit must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_encoding(options: dict[str, Any]) -> None:
    """Bytes that are not UTF-8 are lone surrogates in Python, which no database takes."""
    values = (value if isinstance(value, list) else [value] for value in options.values())
    try:
        "".join(text for texts in values for text in texts if isinstance(text, str)).encode()
    except UnicodeEncodeError:
        raise wrong("An argument is not valid UTF-8.") from None


def _safe(error: CommandError | SequenceError) -> CommandError:
    """An error may quote a key, or a reason that somebody gave."""
    status = error.returncode if isinstance(error, CommandError) else USAGE
    return CommandError(plain(error, lines=True), returncode=status)
