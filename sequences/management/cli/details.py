"""A run as JSON and as text, without anything that its sequence redacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from typing import Any

from django.utils import timezone

from ... import conf
from ...inspection import family, records, snapshot, struggling
from ...inspection.diagnosis import error_of, summary
from ...inspection.snapshot import RunSnapshot, StepSnapshot
from ...inspection.tracebacks import blocks_of
from ...models import NO_ITEM, Operation, SequenceRun, StepFailure, StepRun
from ...utils.durations import format_duration
from ...utils.terminal import plain
from ...utils.text import digits_of, text_of
from .base import Subcommand, counted, json_text, seconds_of, values_of
from .tables import Cell, table

#: How many children, failures and operations are shown: the latest ones.
MAX_ENTRIES = 100
#: The same for tracebacks, in text.
MAX_TRACEBACKS = 5


def brief(run_snapshot: RunSnapshot) -> dict[str, Any]:
    """The fields that identify a run among others."""
    run = run_snapshot.run
    return {
        "id": str(run.pk),
        "sequence": run.sequence,
        "key": run.key,
        "subject": _subject_key(run),
        "status": run.status,
        "at": [step.name for step in run_snapshot.at],
        "done": run_snapshot.done,
        "total": run_snapshot.total,
        "fraction": round(run_snapshot.fraction, 4),
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "duration": run_snapshot.duration.total_seconds(),
        "error": _error(run_snapshot.current_failure),
        "cause": _cause(run_snapshot.cause) if run_snapshot.current_failure else None,
    }


def _subject_key(run: SequenceRun) -> str | None:
    return None if run.subject_key is None else str(run.subject_key)


def _cause(cause: StepFailure | None) -> dict[str, Any] | None:
    """The deepest cause, in an item or in a child run."""
    if cause is None:
        return None
    return {"run": str(cause.run_id), "sequence": cause.run.sequence, **(_error(cause) or {})}


def _error(failure: StepFailure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    item = None if failure.item == NO_ITEM else failure.item
    return {**values_of(failure, "step", "item", "attempt", "error", "message"), "item": item}


class RunDetails:
    """Everything that is known about one run."""

    def __init__(self, run: SequenceRun, *, tracebacks: bool = False) -> None:
        self.run, self.tracebacks, self.using = run, tracebacks, conf.using()
        self.run_snapshot = snapshot.of(run)

    def as_json(self) -> dict[str, Any]:
        """With stable keys."""
        return {
            **brief(self.run_snapshot),
            "summary": self.summary,
            "family": self._family,
            "version": self.run.version,
            "deadline": self.deadline,
            "struggling": list(self._struggling),
            "data": snapshot.visible(self.run.data, self.run.sequence),
            "parent": self._parent,
            "children": self._children,
            "steps": list(self._steps()),
            "failures": [self._failure(failure) for failure in self._failures],
            "operations": [_operation(operation) for operation in self._operations],
        }

    @property
    def summary(self) -> str:
        """A sentence about its state."""
        operations = self._operations
        return summary(self.run_snapshot, operations[-1] if operations else None)

    @cached_property
    def deadline(self) -> datetime | None:
        """When it must be finished."""
        return snapshot.deadline_of(self.run)

    @cached_property
    def _struggling(self) -> tuple[str, ...]:
        return struggling.steps_of([self.run]).get(self.run.pk, ())

    @cached_property
    def _family(self) -> list[str]:
        """Which parent runs failed waiting for it, and whether its child runs have been fixed
        since."""
        runs = SequenceRun.objects.using(self.using).defer(*snapshot.HEAVY)
        above = family.explain_held_up(self.run, family.held_up(self.run, runs))
        below = family.explain_fixed(family.tree_of(self.run_snapshot, runs))
        return list(filter(None, (above, below)))

    @cached_property
    def _parent(self) -> str | None:
        if self.run.parent_id is None:
            return None
        rows = StepRun.objects.using(self.using).filter(pk=self.run.parent_id)
        return str(rows.values_list("run", flat=True).get())

    @cached_property
    def _children(self) -> list[dict[str, Any]]:
        rows = SequenceRun.objects.using(self.using).filter(parent__run=self.run.pk)
        children = rows.order_by("pk").values("id", "sequence", "status")[:MAX_ENTRIES]
        return [dict(child) for child in children]

    @cached_property
    def _failures(self) -> list[StepFailure]:
        return records.failures_of(self.run, MAX_ENTRIES, tracebacks=self.tracebacks)[::-1]

    @cached_property
    def _operations(self) -> list[Operation]:
        return records.operations_of(self.run, MAX_ENTRIES)[::-1]

    def _steps(self) -> Iterator[dict[str, Any]]:
        rows = StepRun.objects.using(self.using).filter(run=self.run.pk, item=NO_ITEM)
        results = dict(rows.values_list("step", "result"))
        for step in self.run_snapshot.steps:
            yield self._step(step, results.get(step.name))

    def _step(self, step: StepSnapshot, result: Any) -> dict[str, Any]:
        row, now = step.row, self.run_snapshot.now
        return {
            "name": step.name,
            "label": step.label,
            "kind": step.node.kind,
            "after": list(step.node.after),
            "any_of": [list(group) for group in step.node.any_of],
            "status": step.status or None,
            "on_hold": step.is_on_hold,
            "attempts": row.attempts if row is not None else 0,
            "items": dict(step.items),
            "progress": list(step.progress) if step.progress else None,
            "text": step.progress_text,
            "waited": seconds_of(step.waited(now)),
            "ran": seconds_of(step.ran(now)),
            "due_at": row.due_at if row is not None and step.is_delayed else None,
            "phases": [asdict(phase) for phase in step.phases],
            "worker": step.worker,
            "result": snapshot.visible(result, self.run.sequence, step.name),
        }

    def _failure(self, failure: StepFailure) -> dict[str, Any]:
        more = ["failed_at", "worker", *(["traceback"] if self.tracebacks else [])]
        return {**(_error(failure) or {}), **values_of(failure, *more)}

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
            "Data": self._data(),
            "Child runs": ("  ".join(map(str, child.values())) for child in self._children),
            "Failed attempts": self._failure_lines(),
            "Operations": map(_operation_line, self._operations),
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
            "about": self._subject,
            "status": Cell(run.status, subcommand.paint(run.status)),
            "started": moment(run.created_at),
            "finished": moment(run.finished_at) if run.finished_at else None,
            "deadline": moment(self.deadline) if self.deadline else None,
            "duration": format_duration(run_snapshot.duration),
            "done": f"{run_snapshot.done} of {run_snapshot.total} steps",
            "parent": self._parent,
            "version": run.version,
        }
        yield from ((name, value) for name, value in heads.items() if value is not None)
        yield from (("", sentence) for sentence in [self.summary, *self._family])

    @property
    def _subject(self) -> str | None:
        """The name of the object that it is about, and the object's own description."""
        if (key := self.run.subject_key) is None:
            return None
        subject = self.run.subject
        return f"{key} ({'deleted' if subject is None else text_of(subject)})"

    def _rows(self, subcommand: Subcommand) -> Iterator[tuple[object, ...]]:
        yield ("STEP", "STATUS", "FAILED", "WAITED", "RAN", "", "WORKER")
        now = self.run_snapshot.now
        for step in self.run_snapshot.steps:
            if step.node.off_path and not step.status:
                continue
            row = step.row
            yield (
                step.name,
                Cell(state_word(step), subcommand.paint(step.state)),
                (row.attempts if row is not None else 0) or "",
                format_duration(step.waited(now)),
                format_duration(step.ran(now)),
                remark(step, self.run_snapshot),
                step.worker,
            )

    def _data(self) -> list[str]:
        data = snapshot.visible(self.run.data, self.run.sequence)
        return json_text(data, indent=2).splitlines() if data else []

    def _failure_lines(self) -> Iterator[str]:
        failures = self._failures
        for index, failure in enumerate(failures):
            item = "" if failure.item == NO_ITEM else f"[{failure.item}]"
            attempt = f"{failure.step}{item} #{failure.attempt}"
            yield f"{moment(failure.failed_at)}  {attempt}  {error_of(failure)}"
            if self.tracebacks and index >= len(failures) - MAX_TRACEBACKS:
                yield from (f"    {line}" for line in _folded(failure.traceback))


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
    action = " ".join(filter(None, [operation.action, operation.step]))
    by = f" by {operation.by}" if operation.by else ""
    reason = f": {operation.reason}" if operation.reason else ""
    return f"{moment(operation.done_at)}  {action}{by}{reason}"


def state_word(step: StepSnapshot) -> str:
    """Its state, in a word or two."""
    return "on hold" if step.is_on_hold else step.state or "-"


def remark(step: StepSnapshot, run_snapshot: RunSnapshot) -> str:
    """How far a step has got, what it reports, and until when it waits."""
    parts = []
    if step.progress is not None:
        parts.append(fraction_of(step.progress))
    if failed := step.items.get("failed"):
        parts.append(f"{failed} failed")
    if step.progress_text:
        parts.append(step.progress_text)
    row = step.row
    if row is not None and row.due_at is not None and row.due_at > run_snapshot.now:
        ends = "times out in" if step.is_awaiting_event and not step.is_delayed else "in"
        parts.append(f"{ends} {format_duration(row.due_at - run_snapshot.now)}")
    return ", ".join(parts)


def fraction_of(progress: tuple[float, float]) -> str:
    """How much is done of how much: ``3/10``."""
    return "/".join(map(digits_of, progress))


def moment(value: datetime) -> str:
    """In the project's time zone, to the second."""
    return timezone.localtime(value).strftime("%Y-%m-%d %H:%M:%S")
