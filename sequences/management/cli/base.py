"""The base class of subcommands."""

from __future__ import annotations

import getpass
import json
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.management.color import no_style
from django.core.serializers.json import DjangoJSONEncoder

from ...exceptions import SequenceError
from ...models import RunStatus
from ...utils.terminal import printable
from .arguments import Argument
from .tables import Paint, table

#: The exit statuses, besides 0: the action was rejected or the run has failed; the command was
#: called wrongly; the run was cancelled; it has not ended in time, as with ``timeout``;
#: interrupted.
REFUSED, USAGE, CANCELLED, TIMEOUT, INTERRUPTED = 1, 2, 3, 124, 130
OUTCOMES = {RunStatus.SUCCEEDED: 0, RunStatus.FAILED: REFUSED, RunStatus.CANCELLED: CANCELLED}


class Subcommand:
    """A subcommand. It writes to its command's output, in colour only on a terminal."""

    name: str
    #: A line for the list of subcommands. Its own help begins with the description, if it has one.
    help: str
    description: str = ""
    arguments: Iterable[Argument] = ()

    def __init__(self, command: BaseCommand) -> None:
        self.command = command

    def run(self, options: Namespace) -> None:
        """Run it. Raises `CommandError` for problems that the caller can fix."""
        raise NotImplementedError

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the output on a terminal."""
        return self.command.stdout.isatty()

    @property
    def width(self) -> int | None:
        """The columns of the terminal; None if the output is not a terminal: then width does not
        matter."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    def write(self, text: str) -> None:
        """Write one line, or several."""
        self.command.stdout.write(text)

    def write_table(self, rows: Iterable[Iterable[object]], *narrowing: int) -> None:
        """Write a table that fits the terminal: these columns are cut if necessary."""
        self.write("\n".join(table(rows, self.width, narrowing=narrowing)))

    def write_json(self, value: Any) -> None:
        """Write the document of a call with ``--json``."""
        self.write(json_text(value, indent=2 if self.is_terminal else None))

    def paint(self, status: str) -> Paint:
        """The text in the colour of this status."""
        # Django decides by the process's own output, which may be a different one.
        is_coloured = self.is_terminal or getattr(self.command, "is_forced", False)
        style = self.command.style if is_coloured else no_style()
        paint: Paint = getattr(style, _ROLES.get(status, ""), str)
        return paint


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
    """JSON that cannot control a terminal: such characters are escaped."""
    text = json.dumps(value, cls=DjangoJSONEncoder, indent=indent, ensure_ascii=False)
    return printable(text, lambda char: json.dumps(char)[1:-1], keep="\n")


def values_of(holder: object, *names: str) -> dict[str, Any]:
    """These fields of a row, or these options."""
    return {name: getattr(holder, name) for name in names}


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def done_sentence(done: str, state: str, implied: str | None) -> str:
    """What was done, and the state after that, unless it is the one that this implies."""
    if state == implied:
        return f"{done}."
    return f"{done}, which {_IN_STATE.get(state, f'is {state}')}."


#: What follows "which" where it is not "is" and the name of the state.
_IN_STATE = {
    "undoing": "is being rolled back",
    "succeeded": "has succeeded",
    "failed": "has failed",
    "cancelled": "was cancelled",
    "ended": "has ended",
}


def seconds_of(length: timedelta | None) -> float | None:
    """A duration, for JSON."""
    return None if length is None else length.total_seconds()


def wrong(message: str) -> CommandError:
    """The error for a wrong call: something does not exist or does not fit."""
    return CommandError(message, returncode=USAGE)


@contextmanager
def rejecting(error: type[SequenceError] = SequenceError) -> Iterator[None]:
    """Raise the `CommandError` for a correct call that was rejected with this error."""
    try:
        yield
    except error as reason:
        raise CommandError(str(reason), returncode=REFUSED) from None


def caller() -> str:
    """The name of the person at the terminal, as operations show it."""
    try:
        return f"command line: {getpass.getuser()}"
    except (OSError, KeyError):  # a container whose user has no name
        return "command line"


def caller_and_reason(options: Namespace) -> dict[str, Any]:
    """Who does it, and why, as keyword arguments for the methods of a model."""
    return {"by": caller() if options.by is None else options.by, "reason": options.reason}
