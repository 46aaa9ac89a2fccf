"""Subcommands for cron and for monitoring: sweep, prune, health."""

from __future__ import annotations

import signal
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError

from ... import conf
from ...engine.pruning import BATCH, Kept, Report, prune
from ...inspection import health
from ...inspection.health import Level
from ...utils.terminal import plain
from ...worker.sweeper import once, run_forever
from .argtypes import count, duration
from .base import REFUSED, Subcommand
from .selectors import known_names

#: Of each reason to keep some.
MAX_NAMED_RUNS = 5


class Sweep(Subcommand):
    """Do what is due, where no worker does."""

    name, help = "sweep", "Dispatch what is due and what was lost."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--loop", action="store_true", help="go on until interrupted")

    def run(self, options: Namespace) -> None:
        if not options.loop:
            self.write(f"{once()} dispatched")
            return
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            run_forever(conf.settings.sweep_interval or 1)
        except KeyboardInterrupt:
            self.write("Stopped.")
        finally:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    # As Ctrl-C: it takes leave, and health does not miss it for an hour.
    raise KeyboardInterrupt


class Health(Subcommand):
    """Whether steps are performed as they should be."""

    name, help = "health", "Whether workers and sweeps are there, and what waits for them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="a JSON object")

    def run(self, options: Namespace) -> None:
        report = health.read()
        if options.json:
            self.write_json(_health_as_json(report))
        else:
            for sign in report.signs:
                self.write(f"{self.paint(_PAINTS[sign.level])(_WORDS[sign.level]):8} {plain(sign)}")
        if report.level is Level.BAD:
            raise CommandError("Steps are not performed as they should be.", returncode=REFUSED)


_WORDS = {Level.GOOD: "good", Level.WARNING: "warning", Level.BAD: "bad"}
_PAINTS = {Level.GOOD: "succeeded", Level.WARNING: "retrying", Level.BAD: "failed"}


def _health_as_json(report: health.Health) -> dict[str, object]:
    return {
        "level": _WORDS[report.level],
        "signs": [
            {
                "name": sign.name,
                "level": _WORDS[sign.level],
                "says": sign.says,
                "advice": sign.advice,
            }
            for sign in report.signs
        ],
        "workers": [worker.name for worker in report.workers],
    }


class Prune(Subcommand):
    """Remove what is finished, and old."""

    name, help = "prune", "Remove finished runs whose retention is over, with their children."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--older-than", type=duration, metavar="30d", help='in the place of "RETENTION"'
        )
        parser.add_argument(
            "--failed-older-than", type=duration, metavar="90d",
            help='in the place of "RETENTION_FAILED"',
        )  # fmt: skip
        parser.add_argument("--sequence", metavar="LABEL", help="of this one only")
        parser.add_argument("--batch", type=count, default=BATCH, help="trees of a transaction")
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")
        parser.add_argument("--json", action="store_true", help="a JSON object")

    def run(self, options: Namespace) -> None:
        if options.sequence is not None:
            known_names(options.sequence)
        report = prune(
            sequence=options.sequence,
            older_than=options.older_than,
            failed_older_than=options.failed_older_than,
            batch=options.batch,
            dry_run=options.dry_run,
        )
        if options.json:
            self.write_json(_as_json(report, options.dry_run))
        else:
            self.write(plain("\n".join(_lines(report, options.dry_run)), lines=True))


def _as_json(report: Report, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "pruned": dict(report.runs),
        "runs": report.runs.total(),
        "trees": report.trees,
        "kept": [{"run": str(run.run), "why": run.why, "by": dict(run.by)} for run in report.kept],
    }


def _lines(report: Report, dry_run: bool) -> Iterator[str]:
    if not report.has_retention:
        yield 'All are kept: set SEQUENCES["RETENTION"] or Meta.retention, or --older-than 30d.'
        return
    for sequence, runs in sorted(report.runs.items()):
        yield f"{plain(sequence)}: {runs}"
    verb = "would be pruned" if dry_run else "pruned"
    yield f"{report.runs.total()} runs in {report.trees} trees {verb}."
    reasons: dict[str, list[Kept]] = {}
    for run in report.kept:
        reasons.setdefault(_why(run), []).append(run)
    for why, kept in reasons.items():
        some = ", ".join(str(run.run) for run in kept[:MAX_NAMED_RUNS])
        yield plain(f"{len(kept)} kept, {why}: {some}{' …' if len(kept) > MAX_NAMED_RUNS else ''}")


def _why(run: Kept) -> str:
    by: Counter[str] = Counter(run.by)
    return run.why + (f" ({', '.join(sorted(by))})" if by else "")
