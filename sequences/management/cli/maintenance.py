"""Subcommands for cron and for monitoring: sweep, prune, health."""

from __future__ import annotations

import signal
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from uuid import UUID

from django.core.management.base import CommandError

from ... import conf
from ...engine.pruning import TREES_PER_TRANSACTION, Report, prune
from ...inspection import health
from ...inspection.health import Level
from ...utils.terminal import plain
from ...worker.sweeper import once, run_forever
from .argtypes import count, duration
from .arguments import JSON, SEQUENCE, flag, option
from .base import REFUSED, Subcommand, counted, values_of
from .selectors import known_names

#: How many kept runs are named for each reason.
MAX_NAMED_RUNS = 5


class Sweep(Subcommand):
    """Handle what is due, where no worker sweeps."""

    name, help = "sweep", "Dispatch steps that are due or whose messages were lost."
    arguments = (flag("--loop", "repeat until interrupted"),)

    def run(self, options: Namespace) -> None:
        if not options.loop:
            self.write(f"{once()} dispatched")
            return
        # Like Ctrl-C: it reports that it stops, so that health does not take it for killed.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            run_forever(conf.settings.sweep_interval or 1)
        except KeyboardInterrupt:
            self.write("Stopped.")
        finally:
            signal.signal(signal.SIGTERM, before)


class Health(Subcommand):
    """Whether steps run as they should."""

    name, help = "health", "Check workers, sweeps and queues."
    arguments = (JSON,)

    def run(self, options: Namespace) -> None:
        report = health.read()
        if options.json:
            signs = [{**asdict(sign), "level": _word(sign.level)} for sign in report.signs]
            workers = [worker.name for worker in report.workers]
            self.write_json({"level": _word(report.level), "signs": signs, "workers": workers})
        else:
            for sign in report.signs:
                paint = self.paint(_PAINTS[sign.level])
                self.write(f"{paint(_word(sign.level)):8} {plain(sign)}")
        if report.level is Level.BAD:
            raise CommandError("Steps are not running as they should.", returncode=REFUSED)


_PAINTS = {Level.GOOD: "succeeded", Level.WARNING: "retrying", Level.BAD: "failed"}


def _word(level: Level) -> str:
    return level.name.lower()


class Prune(Subcommand):
    """Remove old finished runs."""

    name = "prune"
    help = "Remove finished runs whose retention period is over, with their child runs."
    arguments = (
        option(
            "--older-than",
            "remove runs that finished at least this long ago (overrides RETENTION)",
            duration, "30d",
        ),
        option(
            "--failed-older-than", "the same for failed runs (overrides RETENTION_FAILED)",
            duration, "90d",
        ),
        SEQUENCE,
        option(
            "--batch", "runs per transaction, not counting child runs", count,
            default=TREES_PER_TRANSACTION,
        ),
        flag("--dry-run", "only show what would be removed"),
        JSON,
    )  # fmt: skip

    def run(self, options: Namespace) -> None:
        if options.sequence is not None:
            known_names(options.sequence)
        names = ("sequence", "older_than", "failed_older_than", "batch", "dry_run")
        report = prune(**values_of(options, *names))
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
        "kept": [{"run": run.run, "why": run.why, "by": dict(run.by)} for run in report.remaining],
    }


def _lines(report: Report, dry_run: bool) -> Iterator[str]:
    if not report.has_retention:
        yield 'All runs are kept. Set SEQUENCES["RETENTION"], Meta.retention or --older-than.'
        return
    for sequence, runs in sorted(report.runs.items()):
        yield f"{sequence}: {runs}"
    verb = "would be pruned" if dry_run else "pruned"
    total, trees = counted(report.runs.total(), "run"), counted(report.trees, "tree")
    yield f"{total} in {trees} {verb}."
    ids: dict[str, list[UUID]] = defaultdict(list)
    for run in report.remaining:
        by = f" ({', '.join(sorted(set(run.by)))})" if run.by else ""
        ids[f"{run.why}{by}"].append(run.run)
    for why, roots in ids.items():
        some = ", ".join(map(str, roots[:MAX_NAMED_RUNS]))
        yield f"{len(roots)} kept, {why}: {some}{' …' if len(roots) > MAX_NAMED_RUNS else ''}"
