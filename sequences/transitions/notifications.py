"""Django signals about runs and steps, sent after the commit.

A transition notifies inside its transaction, and what is rolled back is never sent. A signal
without receivers costs one check of a list, and no query. A signal is sent at most once: if the
process dies after its commit, or nobody knows whether it committed, nothing is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from django.db import DatabaseError, connections, transaction
from django.dispatch import Signal

from .. import conf, signals
from ..definitions import registry
from ..models import RunStatus, SequenceRun, StepFailure, StepRun
from . import causes

logger = logging.getLogger("sequences")

_SIGNALS: dict[str, Signal] = {name: getattr(signals, name) for name in signals.__all__}


def started(runs: Iterable[SequenceRun], sequence: str, using: str) -> None:
    """These runs, of one sequence, were created."""
    if _has_receivers("run_started", sequence):
        _send_on_commit(_PendingOfRuns("run_started", using, [run.pk for run in runs]))


def ended(run_id: UUID, sequence: str, status: RunStatus, using: str) -> None:
    """A run has succeeded, failed, or been cancelled."""
    signal = f"run_{status.value}"
    if _has_receivers(signal, sequence):
        _send_on_commit(_PendingOfRuns(signal, using, [run_id]))


def succeeded(step_run_id: int, status: str, sequence: str, using: str) -> None:
    """A step has reached this status on its own; only success has a signal."""
    if status == "succeeded" and _has_receivers("step_succeeded", sequence):
        _send_on_commit(_PendingOfStep("step_succeeded", using, step_run_id))


def failed(step_run_id: int, attempt: int, sequence: str, using: str) -> None:
    """A step has failed permanently with this attempt."""
    if _has_receivers("step_failed", sequence):
        _send_on_commit(_PendingOfStep("step_failed", using, step_run_id, attempt))


def retrying(step_run_id: int, attempt: int, using: str) -> None:
    """This attempt of a step has failed, and there will be another."""
    if _has_receivers("step_retrying", None):
        _send_on_commit(_PendingOfStep("step_retrying", using, step_run_id, attempt))
    if attempt == conf.settings.struggling_after:
        logger.warning("Step run %s is struggling: %s attempts have failed.", step_run_id, attempt)
        if _has_receivers("step_struggling", None):
            _send_on_commit(_PendingOfStep("step_struggling", using, step_run_id, attempt))


def are_heard(sequence: str) -> bool:
    """Whether there is a receiver for the success of a step of this sequence."""
    return _has_receivers("step_succeeded", sequence)


def _has_receivers(name: str, sequence: str | None) -> bool:
    """None: the sequence is not known without a query."""
    signal = _SIGNALS[name]
    if not signal.receivers:
        return False
    return sequence is None or signal.has_listeners(registry.find(sequence))


@dataclass(slots=True)
class PendingSignal:
    """A hook of a transaction: reads what is stored by then, and sends the signal, once."""

    name: str
    using: str

    def __call__(self) -> None:
        name, self.name = self.name, ""
        if not name:
            return
        try:
            self.send(_SIGNALS[name])
        except Exception:  # the change is committed, whatever a receiver does
            logger.exception("Could not send the signal %s.", name)

    def send(self, signal: Signal) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class _PendingOfRuns(PendingSignal):
    run_ids: list[UUID]

    def send(self, signal: Signal) -> None:
        runs = SequenceRun._base_manager.using(self.using).in_bulk(self.run_ids)
        for run_id in self.run_ids:
            if run := runs.get(run_id):  # it may be gone by now
                signal.send_robust(
                    registry.find(run.sequence), run=run, **self._failure(signal, run_id)
                )

    def _failure(self, signal: Signal, run_id: UUID) -> dict[str, StepFailure]:
        """For a failed run: why it failed."""
        has_failed = signal is signals.run_failed
        return _with_cause(causes.of_run(run_id, self.using) if has_failed else None, self.using)


@dataclass(slots=True)
class _PendingOfStep(PendingSignal):
    step_run_id: int
    attempt: int = 0

    def send(self, signal: Signal) -> None:
        rows = StepRun._base_manager.using(self.using).select_related("run")
        row = rows.filter(pk=self.step_run_id).first()
        if row is None:
            return
        failure = self._failure() if self.attempt else None
        more = _with_cause(failure, self.using)
        signal.send_robust(registry.find(row.run.sequence), run=row.run, step_run=row, **more)

    def _failure(self) -> StepFailure | None:
        rows = StepFailure._base_manager.using(self.using).filter(
            step_run=self.step_run_id, attempt=self.attempt
        )
        # A manual retry restarts the count of attempts: the newest failure is the right one.
        return rows.order_by("-pk").first()


def _with_cause(failure: StepFailure | None, using: str) -> dict[str, StepFailure]:
    """A failure and its deepest cause: itself, unless items or child runs caused it."""
    if failure is None:
        return {}
    return {"failure": failure, "cause": causes.deepest([failure], using).get(failure.pk, failure)}


def _send_on_commit(pending: PendingSignal) -> None:
    transaction.on_commit(pending, using=pending.using, robust=True)


class HeldSignals:
    """What a transaction holds back: a test will never commit it."""

    def __init__(self, using: str) -> None:
        self._using, self._position = using, 0

    def send(self) -> None:
        """Send what has been added since the last call, and what its receivers add."""
        while hooks := connections[self._using].run_on_commit[self._position :]:
            self._position += len(hooks)
            for _, hook, *_ in hooks:
                if isinstance(hook, PendingSignal) and hook.name:
                    _send_inside(hook)


def _send_inside(hook: PendingSignal) -> None:
    try:
        with transaction.atomic(using=hook.using):
            hook()
    except DatabaseError:  # after a real commit, only its own statement would have been affected
        logger.exception("A signal receiver broke the transaction that it was called in.")
