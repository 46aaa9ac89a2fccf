"""The subcommand for limits: list them, show one, override its numbers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError

from ... import conf
from ...exceptions import SequenceError, did_you_mean
from ...inspection import limits as inspection
from ...inspection.limits import LimitSnapshot, LineSnapshot
from ...models import StoredLimit
from ...utils.durations import format_duration
from ...utils.terminal import plain
from .argtypes import duration
from .base import REFUSED, Subcommand, caller, wrong
from .tables import Cell, table


class Limits(Subcommand):
    """How many steps or runs may be active at once, and how many may start per period."""

    name, help = "limits", "List limits, show one, or override its numbers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("limit", nargs="?", metavar="NAME", help="show this limit")
        parser.add_argument(
            "--concurrency", type=int, metavar="N", help="override the maximum at once"
        )
        parser.add_argument(
            "--rate", type=int, metavar="N", help="override the maximum number of starts per period"
        )
        parser.add_argument("--per", type=duration, metavar="1s", help="the period of --rate")
        parser.add_argument(
            "--reset", action="store_true", help="end the override: use the numbers in the code"
        )
        parser.add_argument("--reason", default="", help="the reason, stored with the change")
        parser.add_argument("--by", help="who does this (default: you)")
        parser.add_argument("--json", action="store_true", help="a JSON list, or an object")

    def run(self, options: Namespace) -> None:
        numbers = {name: getattr(options, name) for name in ("concurrency", "rate", "per")}
        is_changed = any(value is not None for value in numbers.values())
        if options.limit is None:
            if is_changed or options.reset:
                raise wrong("Name the limit to change.")
            self._list(options)
            return
        row = _find(options.limit)
        by = caller() if options.by is None else options.by
        if options.reset and is_changed:
            raise wrong("Pass either --reset or new numbers, not both.")
        if options.reset:
            row.reset(by=by)
        elif is_changed:
            self._change(row, numbers, by, options.reason)
        self._show(row, options)

    def _change(self, row: StoredLimit, numbers: dict[str, Any], by: str, reason: str) -> None:
        try:
            row.change(**numbers, by=by, reason=reason)
        except SequenceError as error:
            raise CommandError(str(error), returncode=REFUSED) from None

    def _list(self, options: Namespace) -> None:
        rows = StoredLimit.objects.using(conf.using()).select_related("override")
        snapshots = inspection.of_many(rows, conf.using())
        if options.json:
            self.write_json([as_json(each) for each in snapshots])
        elif snapshots:
            self.write("\n".join(table(self._rows(snapshots), self.width, narrowing=[0, 1])))
        else:
            self.write("There are no limits. Workers add the declared limits when they start.")

    def _rows(self, snapshots: list[LimitSnapshot]) -> Iterator[list[Cell]]:
        heads = ("LIMIT", "NUMBERS", "IN USE", "WAITING", "OLDEST", "LINES", "CODE")
        yield [Cell(head) for head in heads]
        for each in snapshots:
            yield [
                Cell(plain(each.row.name)),
                Cell(each.numbers),
                Cell(str(each.in_use)),
                Cell(str(each.waiting)),
                Cell(_age(each.oldest, each.now)),
                Cell(str(each.lines)),
                Cell(each.declared if each.row.override_id else ""),
            ]

    def _show(self, row: StoredLimit, options: Namespace) -> None:
        (snapshot,) = inspection.of_many([row], conf.using())
        lines = inspection.lines_of(row, conf.using())
        if options.json:
            self.write_json({**as_json(snapshot), "keys": [_line_json(line) for line in lines]})
            return
        self.write("\n".join(table(self._rows([snapshot]), self.width, narrowing=[0, 1])))
        if lines:
            self.write("")
            self.write("\n".join(table(self._lines(lines, snapshot), self.width, narrowing=[0])))

    def _lines(self, lines: list[LineSnapshot], of: LimitSnapshot) -> Iterator[list[Cell]]:
        yield [Cell(head) for head in ("KEY", "IN USE", "WAITING", "OLDEST")]
        for line in lines:
            yield [
                Cell(plain(line.key) or "-"),
                Cell(str(line.in_use)),
                Cell(str(line.waiting)),
                Cell(_age(line.oldest, of.now)),
            ]


def _age(moment: datetime | None, now: datetime) -> str:
    return "" if moment is None else format_duration(now - moment)


def _find(name: str) -> StoredLimit:
    rows = StoredLimit.objects.using(conf.using()).select_related("override")
    row = rows.filter(name=name).first()
    if row is None:
        names = list(rows.values_list("name", flat=True))
        raise wrong(f"There is no limit {name!r}. {did_you_mean(name, names)}")
    return row


def as_json(snapshot: LimitSnapshot) -> dict[str, Any]:
    """The fields of a limit, for programs."""
    row, override = snapshot.row, snapshot.row.override
    concurrency, rate, per = row.numbers
    return {
        "name": row.name,
        "concurrency": concurrency,
        "rate": rate,
        "per_seconds": None if per is None else per.total_seconds(),
        "in_use": snapshot.in_use,
        "waiting": snapshot.waiting,
        "oldest": snapshot.oldest,
        "lines": snapshot.lines,
        "declared": {
            "concurrency": row.concurrency,
            "rate": row.rate,
            "per_seconds": None if row.per is None else row.per.total_seconds(),
        },
        "override": None
        if override is None
        else {"by": override.by, "reason": override.reason, "created_at": override.created_at},
    }


def _line_json(line: LineSnapshot) -> dict[str, Any]:
    return {
        "key": line.key,
        "in_use": line.in_use,
        "waiting": line.waiting,
        "oldest": line.oldest,
    }
