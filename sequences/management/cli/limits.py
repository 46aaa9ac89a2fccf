"""The subcommand for limits: list them, show one, override its numbers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet

from ... import conf
from ...exceptions import did_you_mean
from ...inspection import limits as inspection
from ...inspection.limits import LimitSnapshot, LineSnapshot
from ...models import StoredLimit
from ...utils.durations import format_duration
from .argtypes import duration
from .arguments import JSON, flag, option, reason_and_by
from .base import Subcommand, caller_and_reason, rejecting, seconds_of, values_of, wrong


class Limits(Subcommand):
    """How many steps or runs may be active at once, and how many may start per period."""

    name, help = "limits", "List limits, show one, or override its numbers."
    arguments = (
        option("limit", "show this limit", metavar="NAME", nargs="?"),
        option("--concurrency", "override how many may be active at once", int, "N"),
        option("--rate", "override the maximum number of starts per period", int, "N"),
        option("--per", "the period of --rate", duration, "1s"),
        flag("--reset", "end the override: use the numbers in the code"),
        *reason_and_by("change"),
        JSON,
    )

    def run(self, options: Namespace) -> None:
        numbers = values_of(options, "concurrency", "rate", "per")
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
            with rejecting():
                row.change(**numbers, **by_and_reason)
        self._show(row, options)

    def _list(self, options: Namespace) -> None:
        snapshots = inspection.of_many(_limits(), conf.using())
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


def _limits() -> QuerySet[StoredLimit]:
    return StoredLimit.objects.using(conf.using()).select_related("override")


def _find(name: str) -> StoredLimit:
    row = _limits().filter(name=name).first()
    if row is None:
        names = list(_limits().values_list("name", flat=True))
        raise wrong(f"There is no limit {name!r}. {did_you_mean(name, names)}")
    return row


def _rows(snapshots: list[LimitSnapshot]) -> Iterator[tuple[object, ...]]:
    yield ("LIMIT", "CURRENT", "IN USE", "WAITING", "OLDEST", "KEYS", "CODE")
    for each in snapshots:
        code = each.declared if each.row.override_id else None
        oldest = format_duration(each.now - each.oldest if each.oldest else None)
        yield each.row.name, each.numbers, each.in_use, each.waiting, oldest, each.lines, code


def _rows_of_lines(lines: list[LineSnapshot], now: datetime) -> Iterator[tuple[object, ...]]:
    yield ("KEY", "IN USE", "WAITING", "OLDEST")
    for line in lines:
        oldest = format_duration(now - line.oldest if line.oldest else None)
        yield line.key or "-", line.in_use, line.waiting, oldest


def as_json(snapshot: LimitSnapshot) -> dict[str, Any]:
    """The fields of a limit, for programs."""
    row, override = snapshot.row, snapshot.row.override
    return {
        "name": row.name,
        **_numbers(*row.numbers),
        **values_of(snapshot, "in_use", "waiting", "oldest", "lines"),
        "declared": _numbers(row.concurrency, row.rate, row.per),
        "override": override and values_of(override, "by", "reason", "created_at"),
    }


def _numbers(concurrency: int | None, rate: int | None, per: timedelta | None) -> dict[str, Any]:
    return {"concurrency": concurrency, "rate": rate, "per_seconds": seconds_of(per)}
