"""A run as JSON and as text. Nothing that its sequence hides is in either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from ... import conf
from ...inspection import snapshot
from ...inspection.diagnosis import error_of, summary
from ...inspection.snapshot import RunSnapshot, StepSnapshot
from ...models import NO_ITEM, Operation, SequenceRun, StepFailure, StepRun
from ...utils.durations import format_duration
from .base import Subcommand
from .tables import Cell, plain, table

#: Children, failures and operations that are shown: the newest of each.
MAX_ENTRIES = 100
#: And tracebacks, in text.
MAX_TRACEBACKS = 5


def brief(run_snapshot: RunSnapshot) -> dict[str, Any]:
    """What tells a run among others."""
    run = run_snapshot.run
    return {
        "id": str(run.pk),
        "sequence": run.sequence,
        "key": run.key,
        "status": run.status,
        "at": [step.name for step in run_snapshot.at],
        "done": run_snapshot.done,
        "total": run_snapshot.total,
        "fraction": round(run_snapshot.fraction, 4),
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "duration": run_snapshot.duration.total_seconds(),
        "error": _error(run_snapshot.current_failure),
    }


def _error(failure: StepFailure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {
        "step": failure.step,
        "item": None if failure.item == NO_ITEM else failure.item,
        "attempt": failure.attempt,
        "error": failure.error,
        "message": failure.message,
    }


class RunDetails:
    """All that is known of one run."""

    def __init__(self, run: SequenceRun, *, tracebacks: bool = False) -> None:
        self.run, self.tracebacks, self.using = run, tracebacks, conf.using()
        self.run_snapshot = snapshot.of(run)

    def as_json(self) -> dict[str, Any]:
        """With stable keys."""
        return {
            **brief(self.run_snapshot),
            "summary": self.summary,
            "version": self.run.version,
            "data": snapshot.visible(self.run.data, self.run.sequence),
            "parent": self._parent,
            "children": [
                {"id": str(pk), "sequence": sequence, "status": status}
                for pk, sequence, status in self._children[:MAX_ENTRIES]
            ],
            "steps": list(self._steps()),
            "failures": [self._failure(failure) for failure in self._failures],
            "operations": [self._operation(operation) for operation in self._operations],
        }

    @property
    def summary(self) -> str:
        """What is the matter with it, in a sentence."""
        operations = self._operations
        return summary(self.run_snapshot, operations[-1] if operations else None)

    @property
    def _parent(self) -> str | None:
        if self.run.parent_id is None:
            return None
        rows = StepRun.objects.using(self.using).filter(pk=self.run.parent_id)
        return str(rows.values_list("run", flat=True).get())

    @property
    def _children(self) -> Any:
        rows = SequenceRun.objects.using(self.using).filter(parent__run=self.run.pk)
        return rows.order_by("pk").values_list("pk", "sequence", "status")

    @property
    def _failures(self) -> list[StepFailure]:
        rows = StepFailure.objects.using(self.using).filter(run=self.run.pk)
        rows = rows if self.tracebacks else rows.defer("traceback")
        newest = list(rows.order_by("-pk")[:MAX_ENTRIES])[::-1]
        snapshot.hide_secrets(newest, [self.run], self.using)
        return newest

    @property
    def _operations(self) -> list[Operation]:
        rows = Operation.objects.using(self.using).filter(run=self.run.pk)
        return list(rows.defer("before", "after").order_by("-pk")[:MAX_ENTRIES])[::-1]

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
            "status": step.status or None,
            "attempts": row.attempts if row is not None else 0,
            "items": dict(step.items),
            "progress": list(step.progress) if step.progress else None,
            "text": step.progress_text,
            "waited": _seconds(step.waited(now)),
            "ran": _seconds(step.ran(now)),
            "due_at": row.due_at if row is not None and step.is_delayed else None,
            "worker": row.worker if row is not None else "",
            "result": snapshot.visible(result, self.run.sequence, step.name),
        }

    def _failure(self, failure: StepFailure) -> dict[str, Any]:
        attempt = {
            **(_error(failure) or {}),
            "failed_at": failure.failed_at,
            "worker": failure.worker,
        }
        return {**attempt, "traceback": failure.traceback} if self.tracebacks else attempt

    def _operation(self, operation: Operation) -> dict[str, Any]:
        return {
            "action": operation.action,
            "step": operation.step or None,
            "by": operation.by,
            "reason": operation.reason,
            "done_at": operation.done_at,
        }

    # As text

    def lines(self, subcommand: Subcommand) -> Iterator[str]:
        """For people."""
        run = self.run
        yield subcommand.paint("heading")(plain(f"{self.run_snapshot.title}: {run.key or run.pk}"))
        yield ""
        yield from table(list(self._heads(subcommand)), subcommand.width, narrowing=[1])
        yield ""
        yield from table(list(self._rows(subcommand)), subcommand.width, narrowing=[6, 5, 0])
        yield from self._section(subcommand, "Data", self._data())
        children = [
            plain(f"{pk}  {sequence}  {status}")
            for pk, sequence, status in self._children[:MAX_ENTRIES]
        ]
        yield from self._section(subcommand, "Children", children)
        yield from self._section(subcommand, "Failed attempts", list(self._failure_lines()))
        yield from self._section(subcommand, "Operations", list(self._operation_lines()))

    def _heads(self, subcommand: Subcommand) -> Iterator[list[Cell]]:
        run, paint = self.run, subcommand.paint
        yield [Cell("id"), Cell(str(run.pk))]
        yield [Cell("sequence"), Cell(plain(run.sequence))]
        if run.key is not None:
            yield [Cell("key"), Cell(plain(run.key))]
        yield [Cell("status"), Cell(run.status, paint(run.status))]
        yield [Cell("started"), Cell(moment(run.created_at))]
        if run.finished_at is not None:
            yield [Cell("finished"), Cell(moment(run.finished_at))]
        took = format_duration(self.run_snapshot.duration)
        yield [Cell("took" if run.is_finished else "takes"), Cell(took)]
        yield [Cell("done"), Cell(f"{self.run_snapshot.done} of {self.run_snapshot.total} steps")]
        if (above := self._parent) is not None:
            yield [Cell("parent"), Cell(above)]
        yield [Cell("version"), Cell(str(run.version))]
        yield [Cell(""), Cell(plain(self.summary))]

    def _rows(self, subcommand: Subcommand) -> Iterator[list[Cell]]:
        yield [Cell(head) for head in ("STEP", "STATUS", "FAILED", "WAITED", "RAN", "", "WORKER")]
        now = self.run_snapshot.now
        for step in self.run_snapshot.steps:
            if step.node.aside and not step.status:
                continue
            row = step.row
            yield [
                Cell(plain(step.name)),
                Cell(step.status or "-", subcommand.paint(step.status)),
                Cell(str(row.attempts) if row is not None and row.attempts else ""),
                Cell(format_duration(step.waited(now))),
                Cell(format_duration(step.ran(now))),
                Cell(remark(step, self.run_snapshot)),
                Cell(plain(row.worker) if row is not None else ""),
            ]

    def _data(self) -> list[str]:
        data = snapshot.visible(self.run.data, self.run.sequence)
        text = json.dumps(data, indent=2, ensure_ascii=False, cls=DjangoJSONEncoder)
        return plain(text, lines=True).splitlines() if data else []

    def _failure_lines(self) -> Iterator[str]:
        failures = self._failures
        for index, failure in enumerate(failures):
            item = "" if failure.item == NO_ITEM else f"[{failure.item}]"
            attempt = f"{failure.step}{item} #{failure.attempt}"
            yield plain(f"{moment(failure.failed_at)}  {attempt}  {error_of(failure)}")
            if self.tracebacks and index >= len(failures) - MAX_TRACEBACKS:
                trace = plain(failure.traceback, lines=True)
                yield from (f"    {line}" for line in trace.splitlines())

    def _operation_lines(self) -> Iterator[str]:
        for operation in self._operations:
            action = " ".join(filter(None, [operation.action, operation.step]))
            by = f" by {operation.by}" if operation.by else ""
            reason = f": {operation.reason}" if operation.reason else ""
            yield plain(f"{moment(operation.done_at)}  {action}{by}{reason}")

    def _section(self, subcommand: Subcommand, title: str, lines: list[str]) -> Iterator[str]:
        if lines:
            yield from ["", subcommand.paint("heading")(title), *lines]


def remark(step: StepSnapshot, run_snapshot: RunSnapshot) -> str:
    """How far a step is, what it says of itself, and until when it waits."""
    parts = []
    if step.progress is not None:
        parts.append(f"{step.progress[0]:g}/{step.progress[1]:g}")
    if failed := step.items.get("failed"):
        parts.append(f"{failed} failed")
    if step.progress_text:
        parts.append(plain(step.progress_text))
    row = step.row
    if row is not None and row.due_at is not None and row.due_at > run_snapshot.now:
        ends = "times out in" if step.is_awaiting_event and not step.is_delayed else "in"
        parts.append(f"{ends} {format_duration(row.due_at - run_snapshot.now)}")
    return ", ".join(parts)


def moment(value: datetime) -> str:
    """In the project's time zone, to the second."""
    return timezone.localtime(value).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()
