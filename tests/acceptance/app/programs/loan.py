"""A loan: two people approve it; reminders, refusal, escalation, withdrawal by the customer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sequences import Repeat, Sequence, SequenceMeta, any_of, event, repeat, step
from sequences.models import SequenceRun

from ..models import Entry
from ..queues import QUEUE


@dataclass
class Application:
    customer: str
    every: float = 24 * 60 * 60  # seconds
    patience: int = 3
    reminders: int = 0
    decision: str = ""


class Loan(Sequence[Application]):
    class Meta(SequenceMeta):
        queue_name = QUEUE

    first = event(after=[], label="First approval")
    second = event(after=first, label="Second approval")
    refusal = event(after=[])
    withdrawal = event(after=[], label="Withdrawal by the customer")

    @step(after=[], delay=lambda self: timedelta(seconds=self.data.every))
    def remind(self) -> Repeat | None:
        self.data.reminders += 1
        Entry.objects.create(run=self.run.pk, step="remind", note=str(self.data.reminders))
        if self.data.reminders < self.data.patience:
            return repeat(after=timedelta(seconds=self.data.every))
        return None

    escalation = event(after=remind, label="Decision by a manager")

    @step(after=second)
    def pay_out(self) -> None:
        Entry.objects.create(run=self.run.pk, step="pay_out", note=self.data.customer)

    @step(after=any_of(second, refusal, withdrawal, escalation))
    def decide(self) -> None:
        names = ("second", "refusal", "withdrawal", "escalation")
        self.data.decision = next(name for name in names if self.result(name))


def approve(run: SequenceRun, user: str) -> bool:
    """Whether this approval counted: the two come from different people."""
    if run.deliver("first", {"by": user}, by=user):
        return True
    if run.payload("first", {"by": user})["by"] == user:
        return False
    return run.deliver("second", {"by": user}, by=user)
