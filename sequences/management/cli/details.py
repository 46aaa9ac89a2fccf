"""A run as JSON and as text, without anything that its sequence redacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.utils import timezone

from ... import conf
from ...inspection import family, records, snapshot, struggling
from ...inspection.diagnosis import error_of, summary
from ...inspection.losses import loss_sentence
from ...inspection.snapshot import RunSnapshot, StepSnapshot
from ...inspection.tracebacks import blocks_of
from ...models import NO_ITEM, Operation, SequenceRun, StepFailure, StepLoss, StepRun
from ...utils.durations import format_duration
from ...utils.terminal import plain
from ...utils.text import digits_of, text_of
from .base import Subcommand, counted, json_text, seconds_of, values_of
from .selectors import runs
from .tables import Cell, table

#: How many children, failures, losses and operations are shown: the latest ones.
MAX_ENTRIES = 100
#: The same for tracebacks, in text.
MAX_TRACEBACKS = 5
#: The fields of a failed attempt that describe the error.
ERROR = ("attempt", "error", "message")


def brief(run_snapshot: RunSnapshot) -> dict[str, Any]:
    """The fields that identify a run among others."""
    run, failure, cause = run_snapshot.run, run_snapshot.current_failure, run_snapshot.cause
    return {
        "id": run.pk,
        **values_of(run, "sequence", "key"),
        "subject": None if run.subject_key is None else str(run.subject_key),
        "status": run.status,
        "at": [step.name for step in run_snapshot.at],
        **values_of(run_snapshot, "done", "total"),
        "fraction": round(run_snapshot.fraction, 4),
        **values_of(run, "created_at", "finished_at"),
        "duration": run_snapshot.duration.total_seconds(),
        "error": failure and _entry(failure, *ERROR),
        "cause": failure and cause and _cause(cause),
    }


def _cause(cause: StepFailure) -> dict[str, Any]:
    """The deepest cause, in an item or in a child run."""
    return {"run": cause.run_id, "sequence": cause.run.sequence, **_entry(cause, *ERROR)}


def _entry(row: StepFailure | StepLoss, *names: str) -> dict[str, Any]:
    """Where it happened, and these fields of it."""
    item = None if row.item == NO_ITEM else row.item
    return {"step": row.step, "item": item, **values_of(row, *names)}


class RunDetails:
    """Everything that is known about one run."""

    def __init__(self, run: SequenceRun, *, tracebacks: bool = False) -> None:
        self.run, self.tracebacks = run, tracebacks
        self.run_snapshot = snapshot.of(run)
        self.deadline = snapshot.deadline_of(run)
        self.failures = records.failures_of(run, MAX_ENTRIES, tracebacks=tracebacks)[::-1]
        self.losses = records.losses_of(self.run_snapshot, MAX_ENTRIES)[::-1]
        self.operations = records.operations_of(run, MAX_ENTRIES)[::-1]
        self.sentences = [
            summary(self.run_snapshot, self.operations[-1] if self.operations else None),
            *_about_family(self.run_snapshot),
        ]
        step_runs = StepRun.objects.using(conf.using())
        self.step_runs = step_runs.filter(run=run.pk)
        parents = step_runs.values_list("run", flat=True)
        self.parent = None if run.parent_id is None else parents.get(pk=run.parent_id)
        children = runs().filter(parent__run=run.pk).order_by("pk")
        self.children = list(children.values("id", "sequence", "status")[:MAX_ENTRIES])

    def as_json(self) -> dict[str, Any]:
        """With stable keys."""
        more = ("failed_at", "worker", *(["traceback"] if self.tracebacks else []))
        results = dict(self.step_runs.filter(item=NO_ITEM).values_list("step", "result"))
        return {
            **brief(self.run_snapshot),
            "summary": self.sentences[0],
            "family": self.sentences[1:],
            "version": self.run.version,
            "deadline": self.deadline,
            "struggling": struggling.steps_of([self.run]).get(self.run.pk, ()),
            "data": self._data,
            "parent": self.parent,
            "children": self.children,
            "steps": [self._step(step, results.get(step.name)) for step in self.run_snapshot.steps],
            "failures": [_entry(failure, *ERROR, *more) for failure in self.failures],
            "losses": [
                _entry(loss, "lost_at", "worker", "concurrent_steps") for loss in self.losses
            ],
            "operations": [_operation(operation) for operation in self.operations],
        }

    @property
    def _data(self) -> Any:
        return snapshot.visible(self.run.data, self.run.sequence)

    def _step(self, step: StepSnapshot, result: Any) -> dict[str, Any]:
        now = self.run_snapshot.now
        return {
            **values_of(step, "name", "label"),
            **values_of(step.node, "kind", "after", "any_of"),
            "status": step.status or None,
            "on_hold": step.is_on_hold,
            **values_of(step, "attempts", "items", "progress"),
            "text": step.progress_text,
            "waited": seconds_of(step.waited(now)),
            "ran": seconds_of(step.ran(now)),
            "due_at": step.row.due_at if step.row is not None and step.is_delayed else None,
            "phases": [asdict(phase) for phase in step.phases],
            "worker": step.worker,
            "result": snapshot.visible(result, self.run.sequence, step.name),
        }

    # Text

    def lines(self, subcommand: Subcommand) -> Iterator[str]:
        """For people."""
        heading, run = subcommand.paint("heading"), self.run
        yield heading(plain(f"{self.run_snapshot.title}: {run.key or run.pk}"))
        yield ""
        yield from table(self._heads(subcommand), subcommand.width, narrowing=[1])
        yield ""
        yield from table(self._rows(subcommand), subcommand.width, narrowing=[6, 5, 0])
        sections = {
            "Data": json_text(self._data, indent=2).splitlines() if self._data else [],
            "Child runs": ("  ".join(map(str, child.values())) for child in self.children),
            "Failed attempts": self._failure_lines(),
            "Lost workers": map(_loss_line, self.losses),
            "Operations": map(_operation_line, self.operations),
        }
        for title, texts in sections.items():
            if lines := [plain(text) for text in texts]:
                yield from ["", heading(title), *lines]

    def _heads(self, subcommand: Subcommand) -> Iterator[tuple[object, object]]:
        run, run_snapshot = self.run, self.run_snapshot
        heads = {
            "id": run.pk,
            "sequence": run.sequence,
            "key": run.key,
            "about": run.subject_key and _described(run),
            "status": Cell(run.status, subcommand.paint(run.status)),
            "started": moment(run.created_at),
            "finished": moment(run.finished_at),
            "deadline": moment(self.deadline),
            "duration": format_duration(run_snapshot.duration),
            "done": f"{run_snapshot.done} of {run_snapshot.total} steps",
            "parent": self.parent,
            "version": run.version,
        }
        yield from ((name, value) for name, value in heads.items() if value is not None)
        yield from (("", sentence) for sentence in self.sentences)

    def _rows(self, subcommand: Subcommand) -> Iterator[tuple[object, ...]]:
        yield ("STEP", "STATUS", "FAILED", "WAITED", "RAN", "", "WORKER")
        now = self.run_snapshot.now
        for step in self.run_snapshot.listed_steps:
            yield (
                step.name,
                Cell(state_word(step), subcommand.paint(step.state)),
                step.attempts or None,
                format_duration(step.waited(now)),
                format_duration(step.ran(now)),
                remark(step, self.run_snapshot),
                step.worker,
            )

    def _failure_lines(self) -> Iterator[str]:
        with_traceback = self.failures[-MAX_TRACEBACKS:] if self.tracebacks else []
        for failure in self.failures:
            attempt = f"{_name(failure)} #{failure.attempt}"
            yield f"{moment(failure.failed_at)}  {attempt}  {error_of(failure)}"
            if failure in with_traceback:
                yield from (f"    {line}" for line in _folded(failure.traceback))


def _loss_line(loss: StepLoss) -> str:
    return f"{moment(loss.lost_at)}  {_name(loss)}  {loss_sentence(loss)}"


def _name(row: StepFailure | StepLoss) -> str:
    return row.step if row.item == NO_ITEM else f"{row.step}[{row.item}]"


def _about_family(run_snapshot: RunSnapshot) -> Iterator[str]:
    """Which parent runs failed waiting for it, and whether its child runs have been fixed since."""
    run, others = run_snapshot.run, runs().defer(*snapshot.HEAVY)
    above = family.explain_held_up(run, family.held_up(run, others))
    below = family.explain_fixed(family.tree_of(run_snapshot, others))
    yield from filter(None, (above, below))


def _described(run: SequenceRun) -> str:
    """The name of the object that it is about, and the object's own description."""
    subject = run.subject
    return f"{run.subject_key} ({'deleted' if subject is None else text_of(subject)})"


def _folded(traceback: str) -> Iterator[str]:
    """Its lines, the project's own frames first. Library frames are counted."""
    for block in blocks_of(traceback):
        if block.folded:
            yield f"  … {counted(block.folded, 'library frame')}"
        else:
            yield from block.text.splitlines()


def _operation(operation: Operation) -> dict[str, Any]:
    values = values_of(operation, "action", "step", "by", "reason", "done_at")
    return {**values, "step": operation.step or None}


def _operation_line(operation: Operation) -> str:
    by = f" by {operation.by}" if operation.by else ""
    reason = f": {operation.reason}" if operation.reason else ""
    return f"{moment(operation.done_at)}  {operation}{by}{reason}"


def state_word(step: StepSnapshot) -> str:
    """Its state, in a word or two."""
    return "on hold" if step.is_on_hold else step.state or "-"


def remark(step: StepSnapshot, run_snapshot: RunSnapshot) -> str:
    """How far a step has got, what it reports, and until when it waits."""
    parts = [amount_of(step), step.progress_text]
    row, now = step.row, run_snapshot.now
    if row is not None and row.due_at is not None and row.due_at > now:
        ends = "times out in" if step.is_awaiting_event and not step.is_delayed else "in"
        parts.append(f"{ends} {format_duration(row.due_at - now)}")
    return ", ".join(filter(None, parts))


def amount_of(step: StepSnapshot) -> str:
    """How much is done of how much: ``3/10, 1 failed``."""
    failed = step.items.get("failed")
    parts = ["/".join(map(digits_of, step.progress or ())), f"{failed} failed" if failed else ""]
    return ", ".join(filter(None, parts))


def moment(value: datetime | None) -> str | None:
    """In the project's time zone, to the second."""
    return None if value is None else timezone.localtime(value).strftime("%Y-%m-%d %H:%M:%S")
