import asyncio
import os
import signal
import subprocess
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import dramatiq
from dramatiq.middleware import CurrentMessage

from sequences import (
    Abort,
    Limit,
    Sequence,
    chain,
    dispatch,
    event,
    every,
    finish,
    group,
    job,
    on_cancel,
    on_end,
    on_failure,
    repeat,
    start_definition,
    step,
    subsequence,
)

from .gates import Gate
from .models import Entry
from .queues import QUEUE

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

    @step(max_retries=5, min_backoff=20, max_backoff=20)
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


class AsyncBooking(Booking):
    """The same, awaited: its writes are Django's asynchronous ORM's."""

    @step(max_retries=5, min_backoff=20, max_backoff=20)
    async def reserve(self):
        await Entry.objects.acreate(run=self.run.pk, step="reserve", note="seat")
        if self.attempt == 1:
            raise Rejected
        await asyncio.sleep(0)
        await Entry.objects.acreate(run=self.run.pk, step="reserve", note="meal")
        self.data["log"].append("reserve")

    @step
    async def confirm(self):
        self.data["log"].append("confirm")
        self.data["price"] = (await self.aresult("quote"))["price"]


@dramatiq.actor(max_retries=0)
def welcome(run):
    """What is told of a registration, and by which message."""
    message = CurrentMessage.get_current_message()
    Entry.objects.create(run=run, step="welcome", note=message.message_id)


class Registration(Sequence):
    """A step that writes and sends, fails, and does both again."""

    @step(max_retries=5, min_backoff=20, max_backoff=20)
    def create(self):
        Entry.objects.create(run=self.run.pk, step="create", note="")
        dispatch(welcome.message(str(self.run.pk)))
        if self.attempt == 1:
            raise Rejected
        self.data["log"].append("create")

    @step
    def confirm(self):
        self.data["log"].append("confirm")


class Fickle(Sequence):
    """Every second run takes a longer path."""

    @step(when=lambda self: self.data["k"] % 2)
    def long(self):
        Entry.objects.create(run=self.run.pk, step="long", note="")
        self.data["log"].append("long")

    @step(when=lambda self: self.data["k"] % 2 == 0)
    def short(self):
        self.data["log"].append("short")


class Leg(Sequence):
    """A part of a tour, in a run of its own."""

    @step
    def drive(self):
        Entry.objects.create(run=self.data["tour"], step="drive", note="")

    @step
    def arrive(self):
        self.data["arrived"] = True


class Tour(Sequence):
    """A delay, an event, a fan-out and a subsequence side by side, and a join of all."""

    class Meta:
        max_retries = 5
        min_backoff = max_backoff = 20

    def record(self, note=""):
        Entry.objects.create(run=self.run.pk, step=self.step_run.step, note=note)

    @step
    def begin(self):
        self.data["begun"] = True

    @step(after=begin, delay=20)
    def pack(self):
        self.record()
        self.data["packed"] = True

    @step(after=begin)
    def approve(self):
        self.run.deliver("approval", "yes")
        self.record()

    approval = event(after=begin, timeout=60_000)

    @step(each=lambda self: range(3), concurrency=2, after=begin)
    def invite(self, guest):
        if guest == 0 and self.attempt == 1:  # it leaves its place, and needs one again
            raise Rejected
        self.record(str(guest))
        return guest * 10

    leg = subsequence(Leg, after=begin, data=lambda self: {"tour": str(self.run.pk)})

    @step
    def end(self):
        self.record()
        self.data["sum"] = sum(self.results("invite"))


class FailedTour(Tour):
    """The same, but it fails in the end, and is taken back."""

    @step
    def end(self):
        raise Abort("it rains")

    @Tour.pack.undo
    def unpack(self):
        self.record()
        del self.data["packed"]

    @Tour.invite.undo
    def uninvite(self, guest, result):
        self.record(f"{guest}: {result}")

    @on_failure
    def tell(self):
        self.record(self.failure.message)


class Hike(Sequence):
    """A part of an outing, in a run of its own, which can be taken back."""

    def record(self, note=""):
        name = f"{self.step_run.step} {self.data['day']}"
        Entry.objects.create(run=self.data["outing"], step=name, note=note)

    @step
    def reserve(self):
        self.record()

    @reserve.undo
    def release(self):
        self.record()


class FailedOuting(Sequence):
    """Two hikes that have succeeded are taken back, as what comes after them fails."""

    def record(self):
        Entry.objects.create(run=self.run.pk, step=self.step_run.step, note="")

    @step
    def pack(self):
        self.record()

    @pack.undo
    def unpack(self):
        self.record()

    hikes = subsequence(
        Hike,
        each=lambda self: [1, 2],
        data=lambda self, day: {"outing": str(self.run.pk), "day": day},
    )

    @step
    def rest(self):
        raise Abort("it rains")


class CancelledOuting(FailedOuting):
    """The same, but the last step cancels its own run, and is undone first."""

    @step
    def rest(self):
        self.record()
        self.run.cancel(undo=True)

    @rest.undo
    def rise(self):
        self.record()


class Detour(Sequence):
    """A step that is performed three times, and one whose failure another one mends."""

    @step
    def collect(self):
        Entry.objects.create(run=self.run.pk, step="collect", note="")
        self.data["log"].append("collect")
        return repeat() if self.data["log"].count("collect") < 3 else "enough"

    @step(on_error="mend", max_retries=0)
    def deliver(self):
        Entry.objects.create(run=self.run.pk, step="deliver", note="never")
        raise Rejected

    @step
    def never(self):
        Entry.objects.create(run=self.run.pk, step="never", note="")

    @step
    def mend(self):
        Entry.objects.create(run=self.run.pk, step="mend", note="")
        self.data["log"].append("mend")

    @step(after=mend)
    def end(self):
        self.data["log"].append("end")


# Workers.


class Recorded(Sequence):
    """Its steps leave a row and a line in `data` each: both stand there once, or it did not."""

    class Meta:
        abstract = True
        queue_name = QUEUE
        min_backoff = max_backoff = 50

    def record(self):
        name = self.step_run.step
        Entry.objects.create(run=self.run.pk, step=name, note=str(os.getpid()))
        self.data.setdefault("log", []).append(name)

    def wait(self):
        Gate(self.data["gate"]).pass_through()


class Held(Recorded):
    """The second step waits for the test, in the middle of what it does."""

    @step
    def first(self):
        self.record()

    @step
    def held(self):
        self.record()
        self.wait()

    @step
    def last(self):
        self.record()


class HeldLater(Held):
    """The same, after a short delay."""

    @step(delay=300)
    def held(self):
        self.record()
        self.wait()


class HeldTwice(Held):
    """The last step waits as well, at a gate of its own."""

    @step
    def last(self):
        self.record()
        Gate(self.data["last_gate"]).pass_through()


class Released(Held):
    """A worker that shuts down interrupts it."""

    class Meta:
        notify_shutdown = True


class Rendering(Recorded):
    """A subprocess that takes ten minutes, and is killed when the run is cancelled."""

    @step(atomic=False)
    def render(self):
        with subprocess.Popen(["sleep", "600"]) as process:
            try:
                Path(self.data["book"]).write_text(f"{process.pid}\n")
                while process.poll() is None:
                    self.raise_if_cancelled()
                    time.sleep(0.05)
            finally:
                process.kill()

    @render.undo(attempted=True, queue_name=QUEUE)
    def remove(self):
        self.record()

    @on_cancel
    def tell(self):
        self.record()

    @on_end
    def close(self):
        self.record()


class Awaiting(Sequence):
    """A coroutine that waits until something cancels it, and then cleans up."""

    class Meta:
        queue_name = QUEUE
        max_retries = 0

    @step(time_limit=1000, notify_shutdown=True)
    async def wait(self):
        Path(self.data["book"]).write_text(f"{os.getpid()}\n")
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            Path(self.data["book"] + "-cleaned").touch()


class AwaitingLonger(Awaiting):
    """The same, without a limit."""

    class Meta:
        queue_name = QUEUE

    wait = step(Awaiting.wait.function, time_limit=None, notify_shutdown=True)


class Charged(Sequence):
    """Its step takes effect outside of any transaction, in the middle of which the test cancels."""

    class Meta:
        queue_name = QUEUE
        max_retries = 0

    def note(self, what):
        Entry.objects.create(run=self.data["of"], step=what, note="")

    @step(atomic=False)
    def charge(self):
        Gate(self.data["gate"]).pass_through()
        self.note("charge")

    @charge.undo(queue_name=QUEUE)
    def refund(self):
        self.note("refund")


class ChargedBelow(Sequence):
    """The same in a run below, after a step that is undone as well."""

    class Meta:
        queue_name = QUEUE
        max_retries = 0

    @step
    def reserve(self):
        Entry.objects.create(run=self.run.pk, step="reserve", note="")

    @reserve.undo(queue_name=QUEUE)
    def release(self):
        Entry.objects.create(run=self.run.pk, step="release", note="")

    charging = subsequence(
        Charged, data=lambda self: {"of": str(self.run.pk), "gate": self.data["gate"]}
    )


class FailsOnce(Recorded):
    """The first attempt fails when the test lets it go on."""

    @step
    def fails(self):
        self.record()
        self.wait()
        if self.attempt == 1:
            raise ValueError("once")

    @step
    def last(self):
        self.record()


class Deadly(Recorded):
    """Kills its worker, as one that needs too much memory does."""

    @step
    def kills(self):
        self.record()
        os.kill(os.getpid(), signal.SIGKILL)


class KillsOnce(Recorded):
    """Kills its worker when the gate opens, but once only."""

    @step
    def kills(self):
        self.record()
        self.wait()
        has_killed = Path(self.data["gate"]) / self.run.pk.hex
        if not has_killed.exists():
            has_killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class KillsLater(Recorded):
    """Kills its worker each time, when the gate is open."""

    @step
    def kills(self):
        self.record()
        self.wait()
        os.kill(os.getpid(), signal.SIGKILL)


class Long(Recorded):
    """Runs for as long as the test likes, and tells its progress."""

    @step
    def goes_on(self):
        self.record()
        self.progress(1, 2, "half of it")
        self.wait()
        self.progress(2, 2)


class Overtime(Recorded):
    """The first attempt exceeds its time limit."""

    @step(time_limit=timedelta(milliseconds=500))
    def takes_long(self):
        self.record()
        deadline = time.monotonic() + 60
        while self.attempt == 1 and time.monotonic() < deadline:
            time.sleep(0.01)

    @step
    def last(self):
        self.record()


class Tiny(Recorded):
    """One short step."""

    @step
    def only(self):
        self.record()


class JourneyLeg(Recorded):
    """A child of `Journey`."""

    @step
    def drive(self):
        self.record()


class Journey(Recorded):
    """All that waits for others: a fan-out, an event, a child; then a join, and short delays."""

    @step
    def begin(self):
        self.record()

    @step(each=lambda self: range(20), concurrency=5, after=begin)
    def invite(self, guest):
        return guest * guest

    approval = event(after=begin)

    leg = subsequence(JourneyLeg, after=begin, data=lambda self: {})

    @step
    def join(self):
        self.data["sum"] = sum(self.results("invite"))

    @step(delay=300)
    def soon(self):
        self.record()

    @step(delay=300)
    def end(self):
        self.record()


class Polls(Recorded):
    """Items that fail once and repeat themselves once; a book has when each of them is in hand."""

    @step(each=lambda self: range(8), concurrency=2)
    def ask(self, number):
        self.note("+")
        time.sleep(0.05)
        self.note("-")
        if self.attempt == 1 and self.step_run.repeats == 0:
            raise ValueError("not yet")
        return repeat(after=300) if self.step_run.repeats == 0 else number

    def note(self, sign):
        with Path(self.data["book"]).open("a") as book:
            book.write(sign)

    @step
    def end(self):
        self.data["numbers"] = list(self.results("ask"))


class Toll(Recorded):
    """So many at once; a book has when each was inside, and in which process."""

    @step(limits=[Limit("bridge", concurrency=2)], max_retries=100)
    def cross(self):
        self.note("+")
        time.sleep(self.data["seconds"])
        self.note("-")

    def note(self, sign):
        with Path(self.data["book"]).open("a") as book:
            book.write(f"{sign} {os.getpid()} {time.time()}\n")


class Metered(Recorded):
    """Four in a second; a book has when each was to begin, was claimed, and began."""

    @step(limits=[Limit("meter", rate=4, per=timedelta(seconds=1))])
    def pass_through(self):
        claim = self._context.claim
        moment = claim.due_at.timestamp() if claim.due_at else 0  # 0: it did not wait for one
        with Path(self.data["book"]).open("a") as book:
            book.write(f"{moment} {claim.now.timestamp()} {time.time()}\n")


class Delayed(Recorded):
    """Seven steps, each after a short delay."""

    class Meta:
        delay = 200

    one, two, three, four, five, six, seven = (step(lambda self: None) for _ in range(7))


class Busy(Recorded):
    """One step that keeps a thread busy."""

    @step
    def only(self):
        self.record()
        self.wait()


class Outside(Recorded):
    """One step without a transaction around it: what it does cannot be rolled back."""

    @step(atomic=False)
    def only(self):
        self.record()
        self.wait()


class Direct(Recorded):
    """Performed by one worker, without a trip through the broker between its steps."""

    class Meta:
        handoff = "direct"

    @step
    def one(self):
        self.record()
        self.wait()

    @step
    def two(self):
        self.record()

    @step
    def three(self):
        self.record()
        if self.attempt == 1:
            raise ValueError("once")

    @step
    def four(self):
        self.record()


class Everything(Recorded):
    """A step of each kind, and each succeeds in the end."""

    @step
    def returns(self):
        self.record()
        return {"price": 7}

    @step
    def fails_once(self):
        self.record()
        if self.attempt == 1:
            raise ValueError("once: é")

    @step(when=lambda self: False)
    def is_skipped(self):
        self.record()

    @step
    def repeats(self):
        self.record()
        self.progress(len(self.data["log"]), text="bites")
        return repeat() if self.data["log"].count("repeats") < 3 else "enough"

    @step(delay=100)
    def is_delayed(self):
        self.record()

    @step(after=is_delayed)
    def left(self):
        self.data["left"] = self.result("returns")["price"]

    @step(after=is_delayed)
    def right(self):
        self.data["right"] = {"of": self.result("repeats")}

    @step
    def joins(self):
        self.record()
        return [self.data["left"], self.data["right"]]

    @step(atomic=False)
    def is_not_atomic(self):
        self.record()

    @step
    def finishes(self):
        self.record()
        return finish()

    @step
    def never(self):
        self.record()


class GivesUp(Recorded):
    """Fails once more than it may."""

    @step
    def first(self):
        self.record()

    @step(max_retries=1)
    def fails(self):
        self.record()
        raise ValueError("again")


class Aborts(Recorded):
    """Fails at once."""

    @step
    def only(self):
        self.record()
        raise Abort("enough")


# The console.

SCRIPT = "<script>window.struck = true</script><img src=x onerror='window.struck = true'>"


class Delivery(Recorded):
    """Waits for an approval, and fails without an address."""

    class Meta:
        max_retries = 0

    approval = event()

    @step
    def send(self):
        self.data["sent_to"] = self.data["address"]


class Parallel(Recorded):
    """Waits for an approval, and works meanwhile."""

    approval = event(after=[])

    @step(after=[])
    def work(self):
        self.wait()

    @step
    def end(self):
        self.record()


class Struck(Recorded):
    """Whatever people can put into it is a script."""

    class Meta:
        max_retries = 0

    @step(label=SCRIPT)
    def fails(self):
        self.progress(1, 2, SCRIPT)
        raise ValueError(SCRIPT)


# Definitions that are kept with their runs.


@job("noted")
def noted(number: int, fails: list[int], sequence: Sequence):
    """Fails as often as its number stands in `fails`."""
    if sequence.attempt <= fails.count(number):
        raise Rejected
    Entry.objects.create(run=sequence.run.pk, step=f"note{number}", note="")


def start_kept(data):
    """A run whose definition is kept with it, on the queue of every project."""
    one, two, three, four = (
        noted.with_({"number": number}, name=f"note{number}", min_backoff=20, max_backoff=20)
        for number in (1, 2, 3, 4)
    )
    return start_definition(chain(one, group(two, three), four), data | {"fails": [2]}, name="kept")


# Deploys: this code is that of one of several releases.


def release_one():
    class Order(Recorded):
        @step
        def reserve(self):
            self.record()

        @step(notify_shutdown=True)
        def charge(self):
            self.record()
            self.wait()

        @step
        def ship(self):
            self.record()


def release_two():
    """Has one step more."""

    class Order(Recorded):
        @step
        def reserve(self):
            self.record()

        @step
        def charge(self):
            self.record()

        @step
        def pack(self):
            self.record()

        @step
        def ship(self):
            self.record()


def release_three():
    """The class and a step have other names, and the last step is gone."""

    class Purchase(Recorded):
        class Meta:
            aliases = ["acceptance.Order"]

        @step
        def reserve(self):
            self.record()

        @step(aliases=["charge"])
        def pay(self):
            self.record()


def release_four():
    """Brings back the step for which runs of the first release wait."""

    class Purchase(Recorded):
        class Meta:
            aliases = ["acceptance.Order"]

        @step
        def reserve(self):
            self.record()

        @step(aliases=["charge"])
        def pay(self):
            self.record()

        @step
        def ship(self):
            self.record()


# A schedule


def release_ticking():
    """Its workers start a run each second; those of the other releases do not."""

    class Ticks(Sequence):
        class Meta:
            app_label = "acceptance"
            queue_name = QUEUE
            schedule = every(
                timedelta(seconds=1),
                data=lambda slot: {"slot": slot},
                overlap="allow",
                missed="all",
                catch_up=timedelta(minutes=5),
            )

        @step
        def note(self):
            Entry.objects.create(run=self.run.pk, step="note", note=self.data["slot"])


def release_billing():
    """The same with customers, who are billed each month."""
    import_module(".programs.billing", __package__)


RELEASES = {
    "ticking": release_ticking,
    "billing": release_billing,
    "1": release_one,
    "2": release_two,
    "3": release_three,
    "4": release_four,
}
RELEASES[os.environ.get("RELEASE", "1")]()
