"""One subcommand: its arguments, and what it does."""

from __future__ import annotations

import getpass
import json
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError
from django.core.management.color import no_style
from django.core.serializers.json import DjangoJSONEncoder

from ...exceptions import SequenceError
from ...models import RunStatus
from ...utils.terminal import printable

#: How the command ends, beside 0: the act was refused or the run has failed; it was called wrongly;
#: the run was cancelled; it has not ended in time, as with ``timeout``; it was interrupted.
REFUSED, USAGE, CANCELLED, TIMEOUT, INTERRUPTED = 1, 2, 3, 124, 130
OUTCOMES = {RunStatus.SUCCEEDED: 0, RunStatus.FAILED: REFUSED, RunStatus.CANCELLED: CANCELLED}

Paint = Callable[[str], str]


class Subcommand:
    """One of them. It writes to where its command does, in colour only on a terminal."""

    name: ClassVar[str]
    help: ClassVar[str]

    def __init__(self, command: BaseCommand) -> None:
        self.command = command

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What it takes."""

    def run(self, options: Namespace) -> None:
        """Do it. Raises `CommandError` for what the caller can fix."""
        raise NotImplementedError

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the output where it is written."""
        return self.command.stdout.isatty()

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None: what reads this has as many as it takes."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    def write(self, text: str) -> None:
        """One line, or several."""
        self.command.stdout.write(text)

    def write_json(self, value: Any) -> None:
        """The one document of a call with ``--json``."""
        self.write(json_text(value, indent=2 if self.is_terminal else None))

    def paint(self, status: str) -> Paint:
        """The colour of a status."""
        style: Any = self.command.style if self._is_coloured else no_style()
        role = _ROLES.get(status)
        paint: Paint = getattr(style, role) if role else str
        return paint

    @property
    def _is_coloured(self) -> bool:
        # Django decides by the process's own output, which this may not be.
        forced = getattr(self.command, "is_forced", False)
        return forced or self.is_terminal


_ROLES = {
    "succeeded": "SUCCESS",
    "failed": "ERROR",
    "retrying": "WARNING",
    "paused": "WARNING",
    "undoing": "WARNING",
    "running": "HTTP_INFO",
    "skipped": "HTTP_NOT_MODIFIED",
    "cancelled": "HTTP_NOT_MODIFIED",
    "heading": "MIGRATE_HEADING",
}


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON in which nothing steers a terminal: such characters stand in it by their numbers."""
    text = json.dumps(value, cls=DjangoJSONEncoder, indent=indent, ensure_ascii=False)
    return printable(text, lambda char: json.dumps(char)[1:-1], keep="\n")


def wrong(message: str) -> CommandError:
    """It was called with something that is not there, or not so."""
    return CommandError(message, returncode=USAGE)


def usage_error(error: SequenceError) -> CommandError:
    """An error that says itself what to do."""
    return wrong(str(error))


def caller() -> str:
    """Who has typed this, as operations show it."""
    try:
        return f"command line: {getpass.getuser()}"
    except (OSError, KeyError):  # a container whose user has no name
        return "command line"


def add_caller_and_reason(parser: ArgumentParser) -> None:
    """What every operation stores with the run."""
    parser.add_argument("--reason", default="", help="the reason, stored with the run")
    parser.add_argument("--by", help="who does this (default: you)")


def caller_and_reason(options: Namespace) -> dict[str, str]:
    """The same, as the methods of a run take it."""
    return {"by": caller() if options.by is None else options.by, "reason": options.reason}
