"""What has happened to runs and steps, for whoever wants to hear of it: told after the commit.

A transition says it inside of its transaction, and what is rolled back is never told. Where nobody
listens that costs a look at a list, and no query. Whoever is told is told at most once: a process
that dies after its commit, or a commit that is not known to have been one, tells nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from django.db import DatabaseError, connections, transaction

from ..models import RunStatus, SequenceRun, StepFailure, StepRun

logger = logging.getLogger("sequences")


class Listener(Protocol):
    """Who is told. `what` is a name such as ``run_started`` or ``step_failed``."""

    def wants(self, what: str, sequence: str | None) -> bool:
        """Whether it is to hear of this. None: the sequence is not known without a query."""

    def hear_of_run(self, what: str, run: SequenceRun) -> None:
        """A run has got as far as this."""

    def hear_of_step(self, what: str, step_run: StepRun, failure: StepFailure | None) -> None:
        """A step run has; ``failure`` is its failed attempt, if it is that."""


_listener: Listener | None = None


def listen(listener: Listener) -> None:
    """Tell this one from now on."""
    global _listener
    _listener = listener


def started(runs: Iterable[SequenceRun], sequence: str, using: str) -> None:
    """These runs, of one sequence, have come into being."""
    if _is_wanted("run_started", sequence):
        _tell(_OfRuns("run_started", using, [run.pk for run in runs]))


def ended(run_id: UUID, sequence: str, status: RunStatus, using: str) -> None:
    """A run has succeeded, failed, or been cancelled."""
    what = f"run_{status.value}"
    if _is_wanted(what, sequence):
        _tell(_OfRuns(what, using, [run_id]))


def succeeded(step_run_id: int, status: str, sequence: str, using: str) -> None:
    """A step has come to this status by itself; only success is news."""
    if status == "succeeded" and _is_wanted("step_succeeded", sequence):
        _tell(_OfStep("step_succeeded", using, step_run_id))


def failed(step_run_id: int, attempt: int, sequence: str, using: str) -> None:
    """A step has finally failed with this attempt."""
    if _is_wanted("step_failed", sequence):
        _tell(_OfStep("step_failed", using, step_run_id, attempt))


def retrying(step_run_id: int, attempt: int, using: str) -> None:
    """This attempt of a step has failed, and there will be another."""
    if _is_wanted("step_retrying", None):
        _tell(_OfStep("step_retrying", using, step_run_id, attempt))


def _is_wanted(what: str, sequence: str | None) -> bool:
    return _listener is not None and _listener.wants(what, sequence)


@dataclass(slots=True)
class News:
    """A hook of a transaction: reads what is stored by then, and tells of it, once."""

    what: str
    using: str

    def __call__(self) -> None:
        what, self.what = self.what, ""
        if not what or _listener is None:
            return
        try:
            self.tell(what, _listener)
        except Exception:  # what is committed is, whoever hears of it
            logger.exception("Nobody was told that a run or a step is %s.", what)

    def tell(self, what: str, listener: Listener) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class _OfRuns(News):
    run_ids: list[UUID]

    def tell(self, what: str, listener: Listener) -> None:
        runs = SequenceRun._base_manager.using(self.using).in_bulk(self.run_ids)
        for run_id in self.run_ids:
            if run_id in runs:  # it may be gone by now
                listener.hear_of_run(what, runs[run_id])


@dataclass(slots=True)
class _OfStep(News):
    step_run_id: int
    attempt: int = 0

    def tell(self, what: str, listener: Listener) -> None:
        rows = StepRun._base_manager.using(self.using).select_related("run")
        row = rows.filter(pk=self.step_run_id).first()
        if row is not None:
            listener.hear_of_step(what, row, self._failure() if self.attempt else None)

    def _failure(self) -> StepFailure | None:
        rows = StepFailure._base_manager.using(self.using).filter(
            step_run=self.step_run_id, attempt=self.attempt
        )
        # A retry by hand counts attempts anew: the newest is the one.
        return rows.order_by("-pk").first()


def _tell(news: News) -> None:
    transaction.on_commit(news, using=news.using, robust=True)


def tell_pending(using: str) -> None:
    """Tell what a transaction holds back that a test will never commit."""
    while pending := [hook for hook in _hooks(using) if hook.what]:
        for hook in pending:
            _tell_inside(hook)


def _hooks(using: str) -> list[News]:
    hooks = (hook for _, hook, *_ in connections[using].run_on_commit)
    return [hook for hook in hooks if isinstance(hook, News)]


def _tell_inside(hook: News) -> None:
    try:
        with transaction.atomic(using=hook.using):
            hook()
    except DatabaseError:  # after a commit it would have broken its own statement alone
        logger.exception("A receiver has broken the transaction that it was called in.")
