"""Operations on runs: each calls the run's own method, for one run or many."""

from __future__ import annotations

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable
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
from . import base
from .argtypes import assignment, date, duration, json_object, json_value
from .arguments import JSON, argument, flag, one_of, option, reason_and_by
from .base import Subcommand, caller_and_reason, counted, done_sentence, rejecting, values_of, wrong
from .selectors import FILTERS, FILTERS_BUT_STEP, ONE_RUN, RUNS, find, runs, selected

# The name `step` is that of a filter.
ON_STEP = option("on_step", "the step, the same for all runs", metavar="STEP")
#: Each makes a subcommand: its help, and what was done, for a ``{run}`` and a ``{step}``.
OPERATIONS = {
    "retry": ("Restart failed steps, and run pending retries now.", "Retried {run}"),
    "cancel": ("Cancel runs; with --undo, roll back completed steps first.", "Cancelled {run}"),
    "pause": ("Pause runs: no new step starts until you resume them.", "Paused {run}"),
    "resume": ("Continue paused runs.", "Resumed {run}"),
    "finish": ("Mark runs as succeeded.", "Finished {run}"),
    "skip": ("Skip a step, and continue without it.", "Skipped “{step}” of {run}"),
    "run_now": ("Run a delayed step now.", "Scheduled “{step}” to run now in {run}"),
    "restart_from": (
        "Run a step and all later steps again.",
        "Restarted “{step}” and all later steps of {run}",
    ),
    "set_deadline": ("Set or remove the deadline of runs.", "Set the deadline of {run}"),
    "deliver": ("Deliver an event to runs.", "Delivered “{step}” to {run}"),
    "erase": (
        "Permanently erase data, payloads, results, error texts, reasons, keys and subjects.",
        "Erased the data of {run}",
    ),
}
UNDO = argument(
    "--undo", help="roll back completed steps first, or not (default: Meta.cancel)",
    action=BooleanOptionalAction,
)  # fmt: skip
KEEP_DELIVERIES = flag(
    "--keep-deliveries", "keep delivered events instead of waiting for them again"
)
KEEP_KEY = flag("--keep-key", "keep the key, so that no other run starts with it")
PAYLOAD = option("--payload", "JSON, @file, or - (default: null)", json_value, "JSON")
DEADLINE = one_of(
    option("--in", "a duration from now", duration, "3d", dest="deadline"),
    option("--at", "a date, or a date and a time", date, "2026-12-01T08:00", dest="deadline"),
    argument("--none", help="remove the deadline", dest="deadline", action="store_const"),
    required=True,
)
#: The options that only one of them has, by keyword arguments of its method.
OWN_OPTIONS = {
    "cancel": {"undo": UNDO},
    "restart_from": {"keep_deliveries": KEEP_DELIVERIES},
    "set_deadline": {"deadline": DEADLINE},
    "deliver": {"payload": PAYLOAD},
    "erase": {"keep_key": KEEP_KEY},
}
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

    def __init__(self, action: str, command: BaseCommand) -> None:
        super().__init__(command)
        self.name, self.action = action.replace("_", "-"), ACTIONS[action]
        self.help, self.done = OPERATIONS[action]
        self.description = str(self.action.explains)
        self.own = OWN_OPTIONS.get(action, {})
        self.arguments = (
            RUNS,
            *([ON_STEP] if self.action.on_step else []),
            *self.own.values(),
            *reason_and_by(),
            JSON,
            FILTERS_BUT_STEP if self.action.on_step else FILTERS,
            flag("--all", "apply to every run that matches the filters"),
            flag("--dry-run", "only list the runs"),
        )

    def run(self, options: Namespace) -> None:
        is_at_step = self.action.on_step and self.action.name != "restart_from"
        ids = selected(options, self.action.rule.targets, is_at_step=is_at_step)
        if options.dry_run:
            self._list(ids, options)
            return
        step = {"step": options.on_step} if self.action.on_step else {}
        keywords = {**step, **caller_and_reason(options), **values_of(options, *self.own)}
        outcomes: list[Outcome] = []
        try:
            # Each as it is when its turn comes, except those that were pruned meanwhile.
            for run in (run for pk in ids for run in runs().filter(pk=pk)):
                outcomes.append((run, self._operate(run, keywords, options)))
        except KeyboardInterrupt:
            self._sum_up(outcomes, options)
            raise CommandError(
                "Interrupted; the remaining runs are unchanged.", returncode=base.INTERRUPTED
            ) from None
        self._sum_up(outcomes, options)

    def _list(self, ids: list[UUID], options: Namespace) -> None:
        if options.json:
            self.write_json({"action": self.action.name, "runs": ids})
        else:
            total = f"{self.name} would be applied to {counted(len(ids), 'run')}."
            self.write("\n".join([*map(str, ids), total]))

    def _operate(self, run: SequenceRun, keywords: dict[str, Any], options: Namespace) -> str:
        """The reason if it is not possible for this run; otherwise empty."""
        try:
            self.perform(run, **keywords)
        except SequenceError as error:
            if not options.json:
                self.command.stderr.write(plain(error))
            return str(error)
        if not options.json:
            done = self.done_with(**keywords)
            done = done.format(run=plain(run), step=plain(keywords.get("step", "")))
            self.write(done_sentence(done, run.status, _ENDS_IN.get(self.action.name)))
        return ""

    def done_with(self, **keywords: Any) -> str:
        """What was done with these keyword arguments, for a ``{run}`` and a ``{step}``."""
        return self.done

    def perform(self, run: SequenceRun, **keywords: Any) -> None:
        """Perform it on one run. Raises `SequenceError` if that is not possible."""
        getattr(run, self.action.name)(**keywords)

    def _sum_up(self, outcomes: list[Outcome], options: Namespace) -> None:
        done = [run.pk for run, why in outcomes if not why]
        rejected = [{"run": run.pk, "why": why} for run, why in outcomes if why]
        if options.json:
            self.write_json({"action": self.action.name, "done": done, "rejected": rejected})
        elif len(outcomes) != 1:
            self.write(f"{len(done)} done, {len(rejected)} rejected.")
        if rejected:
            why = f"{self.name} was rejected for {len(rejected)} of {len(outcomes)}."
            raise CommandError(why, returncode=base.REFUSED)


class Deliver(Operating):
    """A delivery may be superfluous, which is no error of its method."""

    def perform(self, run: SequenceRun, *, step: str = "", **keywords: Any) -> None:
        if run.deliver(step, **keywords):
            return
        if run.delivered(step):
            why = f"already has a delivery of {step!r}; only the first one counts."
        else:
            why = f"no longer needs {step!r}: another event or step came first."
        raise SequenceError(f"Run {run.pk} {why}")


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
            option("--data", "the complete data: JSON, @file or -", json_object, "JSON"),
            option("--set", "set one key; repeatable", assignment, "KEY=JSON", action="append"),
        ),
        option("--if-version", "only if the run still has this version (see `show`)", int, "N"),
        *reason_and_by(),
    )

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


#: The class of an operation, if it is not `Operating`.
_CLASSES = {"deliver": Deliver, "set_deadline": SetDeadline}
*_others, _erase = (partial(_CLASSES.get(action, Operating), action) for action in OPERATIONS)
#: In the order of the help.
SUBCOMMANDS: list[Callable[[BaseCommand], Subcommand]] = [*_others, Edit, _erase]
