"""Arguments of subcommands, for tables, and those that several subcommands have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: Called with a parser, or with a group of one, it adds itself.
Argument = Callable[[Any], object]
#: Converts the text to the value; None: the text is the value.
Parser = Callable[[str], Any] | None


def argument(*names: str, **options: Any) -> Argument:
    """An argument, as for ``add_argument`` of argparse."""
    return lambda parser: parser.add_argument(*names, **options)


def option(
    name: str, help_text: str, parse: Parser = None, metavar: str | None = None, **options: Any
) -> Argument:
    """An argument with a value, to which ``parse`` converts the text."""
    return argument(name, help=help_text, type=parse, metavar=metavar, **options)


def flag(name: str, help_text: str, **options: Any) -> Argument:
    """An option without a value."""
    return argument(name, help=help_text, action="store_true", **options)


def one_of(*arguments: Argument, required: bool = False) -> Argument:
    """Arguments that exclude each other."""
    return lambda parser: add(parser.add_mutually_exclusive_group(required=required), arguments)


def group(title: str, *arguments: Argument) -> Argument:
    """Arguments under a heading of their own."""
    return lambda parser: add(parser.add_argument_group(title), arguments)


def add(parser: Any, arguments: Iterable[Argument]) -> None:
    """Add these arguments, in this order."""
    for add_to in arguments:
        add_to(parser)


def reason_and_by(stored_with: str = "run") -> tuple[Argument, ...]:
    """What is stored with every operation."""
    return (
        option("--reason", f"the reason, stored with the {stored_with}", default=""),
        option("--by", "who does this (default: you)"),
    )


JSON = flag("--json", "print JSON")
SEQUENCE = option("--sequence", "only runs of this sequence", metavar="LABEL")
