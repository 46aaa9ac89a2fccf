"""The subcommand for limits: list them, show one, override its numbers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from ... import conf
from ...exceptions import SequenceError, did_you_mean
from ...inspection import limits as inspection
from ...inspection.limits import LimitSnapshot, LineSnapshot
from ...models import StoredLimit
from ...utils.durations import format_duration
from .argtypes import duration
from .base import (
    Subcommand,
    add_caller_and_reason,
    caller_and_reason,
    rejected,
    seconds_of,
    values_of,
    wrong,
)


class Limits(Subcommand):
    """How many steps or runs may be active at once, and how many may start per period."""

    name, help = "limits", "List limits, show one, or override its numbers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("limit", nargs="?", metavar="NAME", help="show this limit")
        parser.add_argument(
            "--concurrency", type=int, metavar="N", help="override how many may be active at once"
        )
        parser.add_argument(
            "--rate", type=int, metavar="N", help="override the maximum number of starts per period"
        )
        parser.add_argument("--per", type=duration, metavar="1s", help="the period of --rate")
        parser.add_argument(
            "--reset", action="store_true", help="end the override: use the numbers in the code"
        )
        add_caller_and_reason(parser, "change")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, options: Namespace) -> None:
        numbers = {name: getattr(options, name) for name in ("concurrency", "rate", "per")}
        is_changed = any(value is not None for value in numbers.values())
        if options.limit is None:
            if is_changed or options.reset:
                raise wrong("Name the limit to change.")
            self._list(options)
            return
        row = _find(options.limit)
        if options.reset and is_changed:
            raise wrong("Pass either --reset or new numbers, not both.")
        by_and_reason = caller_and_reason(options)
        if options.reset:
            row.reset(by=by_and_reason["by"])
        elif is_changed:
            try:
                row.change(**numbers, **by_and_reason)
            except SequenceError as error:
                raise rejected(error) from None
        self._show(row, options)

    def _list(self, options: Namespace) -> None:
        rows = StoredLimit.objects.using(conf.using()).select_related("override")
        snapshots = inspection.of_many(rows, conf.using())
        if options.json:
            self.write_json([as_json(each) for each in snapshots])
        elif snapshots:
            self.write_table(_rows(snapshots), 0, 1)
        else:
            self.write("There are no limits. Workers add the declared limits when they start.")

    def _show(self, row: StoredLimit, options: Namespace) -> None:
        (snapshot,) = inspection.of_many([row], conf.using())
        lines = inspection.lines_of(row, conf.using())
        if options.json:
            self.write_json({**as_json(snapshot), "keys": [asdict(line) for line in lines]})
            return
        self.write_table(_rows([snapshot]), 0, 1)
        if lines:
            self.write("")
            self.write_table(_rows_of_lines(lines, snapshot.now), 0)


def _rows(snapshots: list[LimitSnapshot]) -> Iterator[tuple[object, ...]]:
    yield ("LIMIT", "CURRENT", "IN USE", "WAITING", "OLDEST", "KEYS", "CODE")
    for each in snapshots:
        code = each.declared if each.row.override_id else ""
        oldest = _age(each.oldest, each.now)
        yield each.row.name, each.numbers, each.in_use, each.waiting, oldest, each.lines, code


def _rows_of_lines(lines: list[LineSnapshot], now: datetime) -> Iterator[tuple[object, ...]]:
    yield ("KEY", "IN USE", "WAITING", "OLDEST")
    for line in lines:
        yield line.key or "-", line.in_use, line.waiting, _age(line.oldest, now)


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
    return {
        "name": row.name,
        **_numbers(*row.numbers),
        "in_use": snapshot.in_use,
        "waiting": snapshot.waiting,
        "oldest": snapshot.oldest,
        "lines": snapshot.lines,
        "declared": _numbers(row.concurrency, row.rate, row.per),
        "override": override and values_of(override, "by", "reason", "created_at"),
    }


def _numbers(concurrency: int | None, rate: int | None, per: timedelta | None) -> dict[str, Any]:
    return {"concurrency": concurrency, "rate": rate, "per_seconds": seconds_of(per)}
