from sequences import Sequence, step

from .models import Entry

# Crash points and interrupts.


class Rejected(Exception):
    """What the second step of `Booking` raises at its first attempt, after it has written."""


class Booking(Sequence):
    """Three steps: the first and the last touch `data` only, the second writes rows and retries.

    `data["log"]` grows by each step that has committed: it is exact only if each did so once.
    """

    @step
    def quote(self):
        self.data["log"].append("quote")
        return {"price": 7}

    @step(max_retries=5, min_backoff=100, max_backoff=100)
    def reserve(self):
        Entry.objects.create(run=self.run.pk, step="reserve", note="seat")
        if self.attempt == 1:
            raise Rejected
        Entry.objects.create(run=self.run.pk, step="reserve", note="meal")
        self.data["log"].append("reserve")

    @step
    def confirm(self):
        self.data["log"].append("confirm")
        self.data["price"] = self.result("quote")["price"]


class DirectBooking(Booking):
    """The same, each step performed by the worker that committed the one before."""

    class Meta:
        handoff = "direct"
