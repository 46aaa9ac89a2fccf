"""Runs in each state that the console has to show, played in this process without a worker."""

from datetime import timedelta
from types import SimpleNamespace

from sequences import Abort, Sequence, event, every, step, subsequence
from sequences.engine import dispatcher
from sequences.models import SequenceRun
from sequences.testing import drain
from testproject.orders.models import Order
from tests.engine import claim, fail, fresh, perform
from tests.limits import bank, billing, come

DEPTH = 5
#: What the deepest run fails for, until a test changes it.
card = SimpleNamespace(is_valid=False)
LONG = "a_step_whose_name_is_as_long_as_somebody_who_types_fast_would_make_it_in_a_hurry"
#: Hebrew with digits, as a customer types it: a page that isolates it keeps its own order.
BIDI = "הזמנה 123 (דחוף)"


class Meta:
    app_label = "shop"
    max_retries = 0


def nested(depth):
    """A sequence that starts another, and so on; the last one fails until the card is paid."""

    class Leaf(Sequence):
        Meta = Meta

        @step
        def charge(self):
            if not card.is_valid:
                raise Abort("card expired")

    levels = [Leaf]
    for level in range(1, depth + 1):
        members = {"Meta": Meta, "child": subsequence(levels[-1])}
        levels.append(type(f"Level{level}", (Sequence,), members))
    return levels


def approved():
    """A sequence with an undo that waits for an approval."""

    class Approved(Sequence):
        Meta = Meta

        @step
        def reserve(self):
            self.data["city"] = "Roma"

        @reserve.undo
        def release(self): ...

        approval = event()

        @step
        def ship(self): ...

    return Approved


class Scenes:
    """The runs, by what they show. What is drained comes first: it would move the others."""

    def __init__(self):
        self.levels, self.approved = nested(DEPTH), approved()

    def waiting_for_an_event(self, key=BIDI):
        subject = Order.objects.create(name=BIDI, email="ada@example.com")
        run = self.approved.start({"note": BIDI}, key=key, subject=subject).run
        drain()
        return run

    def on_hold(self):
        run = self.waiting_for_an_event("held")
        run.pause(reason="carrier strike", by="ada")
        return run

    def erased(self):
        run = self.waiting_for_an_event("erased")
        run.cancel()
        fresh(run).erase()
        return run

    def of_a_schedule(self):
        create = self.approved.schedules.create
        schedule = create("nightly", every(timedelta(days=1)), data={"n": 1}, reason=LONG)
        run = schedule.run_now(reason=BIDI)
        drain()
        return run

    def of_a_class_that_is_gone(self):
        run = self.waiting_for_an_event("gone")
        SequenceRun.objects.filter(pk=run.pk).update(sequence="shop.Gone")
        return run

    def failed_five_levels_down(self):
        run = self.levels[-1].start({}, key="order-1").run
        drain()
        return run

    def long_names(self):
        names = {LONG: step(lambda self: {}), "last": event()}
        cls = type("Long", (Sequence,), {"Meta": Meta, **names})
        run = cls.start({LONG: LONG * 3}, key=LONG * 2).run
        drain()
        return run

    def undoing(self):
        run = self.waiting_for_an_event("undoing")
        run.cancel(undo=True)
        return run

    def waiting_for_a_limit(self):
        first, second = (billing(bank()).start().run for _ in range(2))
        come(first)
        come(second)
        return second

    def waiting_for_children(self):
        run = self.levels[2].start({}, key="family").run
        perform(claim(run, "child"))
        return run

    def struggling(self):
        run = self.approved.start({}, key="k" * 180).run
        fail(claim(run, "reserve"), final=False)
        return run


STATES = (
    "waiting_for_an_event",
    "on_hold",
    "erased",
    "of_a_schedule",
    "of_a_class_that_is_gone",
    "failed_five_levels_down",
    "long_names",
    "undoing",
    "waiting_for_children",
    "waiting_for_a_limit",
    "struggling",
)


def play():
    """A run in each state."""
    scenes = Scenes()
    with dispatcher.capture_dispatches():
        return {name: fresh(getattr(scenes, name)()) for name in STATES}
