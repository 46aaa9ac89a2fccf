"""Operations on runs: each calls the run's own method, for one run or many."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from ...data.redaction import NoSecret, restore
from ...definitions import registry
from ...exceptions import SequenceError
from ...inspection.actions import ACTIONS
from ...models import RunStatus, SequenceRun
from ...utils.terminal import plain
from .argtypes import assignment, date, duration, json_object, json_value
from .arguments import JSON, Argument, argument, flag, one_of, option, reason_and_by
from .base import (
    INTERRUPTED,
    REFUSED,
    Subcommand,
    caller_and_reason,
    counted,
    done_sentence,
    rejecting,
    values_of,
    wrong,
)
from .selectors import FILTERS, FILTERS_BUT_STEP, ONE_RUN, RUNS, find, runs, selected

# The name `step` is that of a filter.
ON_STEP = argument("on_step", metavar="STEP", help="the step, the same for all runs")
#: The statuses that the names of operations imply.
_ENDS_IN = {
    "cancel": RunStatus.CANCELLED,
    "pause": RunStatus.PAUSED,
    "finish": RunStatus.SUCCEEDED,
}
#: A run, and why the operation was rejected for it; empty: it was not.
Outcome = tuple[SequenceRun, str]


class Operating(Subcommand):
    """One of the `ACTIONS` on runs."""

    def __init__(
        self,
        command: BaseCommand,
        *,
        action: str,
        help_text: str,
        done: str,
        own: dict[str, Argument],
    ) -> None:
        super().__init__(command)
        #: What was done, for a ``{run}`` and a ``{step}``.
        self.done = done
        self.action, self.name, self.help = ACTIONS[action], action.replace("_", "-"), help_text
        self.description = str(self.action.explains)
        #: The options that only this operation has, by keyword arguments of its method.
        self.own = own
        self.arguments = (
            RUNS,
            *([ON_STEP] if self.action.on_step else []),
            *own.values(),
            *reason_and_by(),
            JSON,
            FILTERS_BUT_STEP if self.action.on_step else FILTERS,
            flag("--all", "apply to every run that matches the filters"),
            flag("--dry-run", "only list the runs"),
        )

    def run(self, options: Namespace) -> None:
        step = [options.on_step] if self.action.on_step else []
        is_at_step = self.action.on_step and self.action.name != "restart_from"
        ids = selected(options, self.action.rule.targets, is_at_step=is_at_step)
        if options.dry_run:
            self._list(ids, options)
            return
        keywords = {**caller_and_reason(options), **values_of(options, *self.own)}
        outcomes: list[Outcome] = []
        try:
            for run in _each(ids):
                outcomes.append((run, self._operate(run, options, *step, **keywords)))
        except KeyboardInterrupt:
            self._sum_up(outcomes, options)
            raise CommandError(
                "Interrupted; the remaining runs are unchanged.", returncode=INTERRUPTED
            ) from None
        self._sum_up(outcomes, options)

    def _list(self, ids: list[UUID], options: Namespace) -> None:
        if options.json:
            self.write_json({"action": self.action.name, "runs": ids})
        else:
            total = f"{self.name} would be applied to {counted(len(ids), 'run')}."
            self.write("\n".join([*map(str, ids), total]))

    def _operate(self, run: SequenceRun, options: Namespace, *step: str, **keywords: Any) -> str:
        """The reason if it is not possible for this run; otherwise empty."""
        try:
            why = self.perform(run, *step, **keywords)
        except SequenceError as error:
            why = str(error)
        if why and not options.json:
            self.command.stderr.write(plain(why))
        elif not options.json:
            self.write(self._sentence(run, *step, **keywords))
        return why

    def _sentence(self, run: SequenceRun, *step: str, **keywords: Any) -> str:
        """What was done, and how the run is now."""
        done = self.done_with(**keywords).format(run=plain(run), step=plain("".join(step)))
        return done_sentence(done, run.status, _ENDS_IN.get(self.action.name))

    def done_with(self, **keywords: Any) -> str:
        """What was done with these keyword arguments, for a ``{run}`` and a ``{step}``."""
        return self.done

    def perform(self, run: SequenceRun, *step: str, **keywords: Any) -> str:
        """Perform it on one run. Returns or raises the reason if that is not possible."""
        getattr(run, self.action.name)(*step, **keywords)
        return ""

    def _sum_up(self, outcomes: list[Outcome], options: Namespace) -> None:
        done = [run.pk for run, why in outcomes if not why]
        rejected = [{"run": run.pk, "why": why} for run, why in outcomes if why]
        if options.json:
            self.write_json({"action": self.action.name, "done": done, "rejected": rejected})
        elif len(outcomes) != 1:
            self.write(f"{len(done)} done, {len(rejected)} rejected.")
        if rejected:
            why = f"{self.name} was rejected for {len(rejected)} of {len(outcomes)}."
            raise CommandError(why, returncode=REFUSED)


def _each(ids: list[UUID]) -> Iterator[SequenceRun]:
    """Each of these runs as it is when its turn comes, except those that were pruned meanwhile."""
    for pk in ids:
        yield from runs().filter(pk=pk)


class Deliver(Operating):
    """A delivery may be superfluous, which is no error of its method."""

    def perform(self, run: SequenceRun, *step: str, **keywords: Any) -> str:
        if run.deliver(*step, **keywords):
            return ""
        if run.delivered(*step):
            return f"Run {run.pk} already has a delivery of {step[0]!r}; only the first one counts."
        return f"Run {run.pk} no longer needs {step[0]!r}: another event or step came first."


class SetDeadline(Operating):
    """A deadline may also be removed."""

    def done_with(self, **keywords: Any) -> str:
        return self.done if keywords["deadline"] else "Removed the deadline of {run}"


class Edit(Subcommand):
    """Replace the data of a run."""

    name, help = "edit", "Replace the data of a run."
    description = (
        "Replaces the data of a run while no step is running. Values shown as *** are kept "
        "wherever you leave the *** in place."
    )
    arguments = (
        ONE_RUN,
        one_of(
            option(
                "--data", "the complete data: JSON, @file or -", type=json_object, metavar="JSON"
            ),
            option(
                "--set", "set one key; repeatable",
                type=assignment, action="append", metavar="KEY=JSON",
            ),
        ),
        option(
            "--if-version", "only if the run still has this version (see `show`)",
            type=int, metavar="N",
        ),
        *reason_and_by(),
    )  # fmt: skip

    def run(self, options: Namespace) -> None:
        if (options.data is None) == (options.set is None):
            raise wrong(
                "Pass --data with the complete data, or --set key=value to change single keys."
            )
        run = find(options.run)
        data = self._edited(run, options)
        if options.if_version is not None:
            run.version = options.if_version
        with rejecting():
            run.edit(data, **caller_and_reason(options))
        self.write(f"Changed the data of {plain(run)}, which is now at version {run.version}.")

    def _edited(self, run: SequenceRun, options: Namespace) -> dict[str, Any]:
        if options.set is not None:
            return {**run.data, **dict(options.set)}
        patterns = registry.hidden_by(run.sequence)
        try:
            restored: dict[str, Any] = restore(options.data, run.data, patterns)
        except NoSecret as error:
            raise wrong(
                f"{error.path} is *** in this data, but it is unclear which value that stands "
                "for. Write the value itself, or change single keys with --set."
            ) from None
        return restored


def _operation(
    action: str, help_text: str, done: str, kind: type[Operating] = Operating, **own: Argument
) -> Callable[[BaseCommand], Subcommand]:
    return partial(kind, action=action, help_text=help_text, done=done, own=own)


UNDO = option(
    "--undo", "roll back completed steps first, or not (default: Meta.cancel)",
    action=BooleanOptionalAction,
)  # fmt: skip
KEEP_DELIVERIES = flag(
    "--keep-deliveries", "keep delivered events instead of waiting for them again"
)
KEEP_KEY = flag("--keep-key", "keep the key, so that no other run starts with it")
PAYLOAD = option("--payload", "JSON, @file, or - (default: null)", type=json_value, metavar="JSON")
DEADLINE = one_of(
    option("--in", "a duration from now", dest="deadline", type=duration, metavar="3d"),
    option(
        "--at", "a date, or a date and a time",
        dest="deadline", type=date, metavar="2026-12-01T08:00",
    ),
    argument(
        "--none", help="remove the deadline", dest="deadline", action="store_const", const=None
    ),
    required=True,
)  # fmt: skip

OPERATIONS = [
    _operation("retry", "Restart failed steps, and run pending retries now.", "Retried {run}"),
    _operation(
        "cancel", "Cancel runs; with --undo, roll back completed steps first.", "Cancelled {run}",
        undo=UNDO,
    ),
    _operation("pause", "Pause runs: no new step starts until you resume them.", "Paused {run}"),
    _operation("resume", "Continue paused runs.", "Resumed {run}"),
    _operation("finish", "Mark runs as succeeded.", "Finished {run}"),
    _operation("skip", "Skip a step, and continue without it.", "Skipped “{step}” of {run}"),
    _operation("run_now", "Run a delayed step now.", "Scheduled “{step}” to run now in {run}"),
    _operation(
        "restart_from", "Run a step and all later steps again.",
        "Restarted “{step}” and all later steps of {run}", keep_deliveries=KEEP_DELIVERIES,
    ),
    _operation(
        "set_deadline", "Set or remove the deadline of runs.", "Set the deadline of {run}",
        SetDeadline, deadline=DEADLINE,
    ),
    _operation(
        "deliver", "Deliver an event to runs.", "Delivered “{step}” to {run}", Deliver,
        payload=PAYLOAD,
    ),
    Edit,
    _operation(
        "erase",
        "Permanently erase data, payloads, results, error texts, reasons, keys and subjects.",
        "Erased the data of {run}",
        keep_key=KEEP_KEY,
    ),
]  # fmt: skip
