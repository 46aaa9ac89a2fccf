"""Runs in each state that the console has to show, played in this process without a worker."""

from datetime import timedelta
from types import SimpleNamespace

from django.urls import reverse

from sequences import Abort, Sequence, any_of, cron, event, every, step, subsequence
from sequences.engine import dispatcher
from sequences.models import Schedule, SequenceRun, StepRun, StoredLimit
from sequences.testing import drain, sync_schedules
from testproject.orders.models import Order
from tests.engine import claim, fail, fresh, perform, take
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


def loan():
    """A sequence in which the first of several answers counts."""

    class Loan(Sequence):
        Meta = Meta

        @step
        def check(self): ...

        approval = event(after=check, choices={"Approve": {"ok": True}, "Refuse": {"ok": False}})
        withdrawal = event(after=check, timeout=timedelta(days=14))
        manager = event(after=check)

        @step(after=any_of(approval, withdrawal, manager))
        def decide(self): ...

    return Loan


def packing():
    """A sequence that packs many things, some of which are out of stock."""

    class Packing(Sequence):
        Meta = Meta

        @step
        def list_things(self):
            self.data["things"] = list(range(15))

        @step(each="things", after=list_things)
        def pack(self, thing):
            if thing % 5 == 0:
                raise Abort(f"thing {thing}: out of stock")

        @step(after=list_things)
        def invoice(self): ...

        @step(after=[pack, invoice])
        def ship(self): ...

    return Packing


def reports():
    """A sequence with a schedule."""

    class MonthlyReport(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "monthly report for accounting"
            schedule = cron("0 3 * * *", timezone="Europe/Berlin")

        @step
        def write(self): ...

    return MonthlyReport


class Scenes:
    """The runs, by what they show. What is drained comes first: it would move the others."""

    def __init__(self):
        self.levels, self.approved, self.loan = nested(DEPTH), approved(), loan()
        self.packing, self.reports = packing(), reports()

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

    def succeeded(self):
        run = self.waiting_for_an_event("order-7")
        run.deliver("approval", {"by": "Ada"}, by="ada")
        drain()
        return run

    def failed(self):
        run = self.packing.start({}, key="order-8").run
        drain()
        return run

    def cancelled(self):
        run = self.waiting_for_an_event("order-9")
        run.cancel(reason="the customer has changed her mind", by="ada")
        return run

    def rolled_back(self):
        run = self.waiting_for_an_event("order-10")
        run.cancel(undo=True, by="ada")
        drain()
        return run

    def waiting_with_any_of(self):
        run = self.loan.start({"customer": 7}, key="loan-7").run
        drain()
        return run

    def of_a_child_that_was_mended(self):
        run = self.levels[1].start({}, key="order-12").run
        drain()
        child = SequenceRun.objects.get(parent__run=run.pk)
        child.skip("charge", reason="paid in cash", by="ada")
        drain()
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

    def running_with_failed_items(self):
        """Its items run one after the other, in this thread, and half of them have ended."""
        run = self.packing.start({}, key="order-13").run
        perform(claim(run, "list_things"))
        perform(claim(run, "pack"))
        rows = StepRun.objects.filter(run=run.pk, step="pack", item__gte=0).order_by("item")
        for row in rows[:8]:
            item = take(row.pk, row.attempts)
            if row.item % 5 == 0:
                fail(item, error=Abort(f"thing {row.item}: out of stock"))
            else:
                perform(item)
        for row in rows[8:10]:
            take(row.pk, row.attempts)
        return run

    def scheduled(self):
        return self.approved.start({}, key="order-14", delay=timedelta(days=3)).run

    def paused_while_it_runs(self):
        run = self.approved.start({}, key="order-15").run
        claim(run, "reserve")
        fresh(run).pause(by="ada")
        return run

    def struggling(self):
        run = self.approved.start({}, key="k" * 180).run
        fail(claim(run, "reserve"), final=False)
        return run


#: What is drained comes first: it would move the others.
STATES = (
    "waiting_for_an_event",
    "on_hold",
    "erased",
    "of_a_schedule",
    "of_a_class_that_is_gone",
    "succeeded",
    "failed",
    "cancelled",
    "rolled_back",
    "waiting_with_any_of",
    "of_a_child_that_was_mended",
    "failed_five_levels_down",
    "long_names",
    "undoing",
    "waiting_for_children",
    "waiting_for_a_limit",
    "running_with_failed_items",
    "scheduled",
    "paused_while_it_runs",
    "struggling",
)


def play():
    """A run in each state, and schedules."""
    scenes = Scenes()
    with dispatcher.capture_dispatches():
        runs = {name: fresh(getattr(scenes, name)()) for name in STATES}
        sync_schedules(scenes.reports)
        add_others(scenes.reports)
    return runs


def play_one(name):
    """A run in this state only."""
    with dispatcher.capture_dispatches():
        return fresh(getattr(Scenes(), name)())


def add_others(reports):
    """What has an override, a failure, or was made by hand."""
    limit = StoredLimit.objects.get(name="bank")
    limit.change(concurrency=1, by="ada", reason="the bank has asked us to")
    hourly = reports.schedules.create("hourly", every(timedelta(hours=1)), data={"to": BIDI})
    hourly.pause(by="ada", reason="too many mails")


RUN = "admin:job_sequences_sequencerun"


def walk(page):
    """Every page of the console in turn, each with its name."""
    runs = play()
    for name, path in pages(runs).items():
        assert page.goto(path).ok, name
        yield name
    yield from by_hand(page, runs)


def by_hand(page, runs):
    """The pages that have no address of their own: somebody has filled in a form."""
    page.goto(reverse(f"{RUN}_action", args=[runs["waiting_for_an_event"].pk, "edit"]))
    page.fill("textarea[name=text]", '{"city": "Napoli"}')
    page.get_by_role("button", name="Review changes").click()
    page.get_by_role("button", name="Back to editing").wait_for()
    yield "edit reviewed"
    for action in ("retry", "restart_from"):
        page.goto(f"{reverse(f'{RUN}_changelist')}?status=failed")
        for run in page.locator("input.action-select").all():  # a phone has no box for all
            run.check()
        page.select_option("select[name=action]", f"{action}_runs")
        page.get_by_role("button", name="Go", exact=True).click()
        page.locator("input[name=select_across]").wait_for(state="attached")
        page.locator("a.closelink").wait_for()
        yield f"{action} of many"
    page.goto(reverse("admin:job_sequences_schedule_add"))
    page.fill("input[name=name]", "nightly")
    page.get_by_role("button", name="Add", exact=True).click()
    page.locator(".errornote").wait_for()
    yield "schedule add refused"


def pages(runs):
    """Every page of the console that has an address, by what it shows."""
    return {
        "index": reverse("admin:app_list", args=["job_sequences"]),
        **lists(runs["waiting_for_an_event"].subject_key),
        **confirmations(runs),
        **rows(runs),
        **{f"run {name.replace('_', ' ')}": page_of(run) for name, run in runs.items()},
    }


def page_of(run):
    return reverse(f"{RUN}_change", args=[run.pk])


def lists(about):
    changelist = reverse(f"{RUN}_changelist")
    return {
        "runs": changelist,
        "runs failed": f"{changelist}?status=failed",
        "runs about an object": f"{changelist}?subject={about}",
        "search for nothing": f"{changelist}?q=nothing",
        "search in texts": f"{changelist}?q=order&text=1",
        "schedules": reverse("admin:job_sequences_schedule_changelist"),
        "limits": reverse("admin:job_sequences_storedlimit_changelist"),
        "failures": reverse(f"{RUN}_failure_groups"),
        "step runs": reverse("admin:job_sequences_steprun_changelist"),
        "schedule add": reverse("admin:job_sequences_schedule_add"),
    }


def confirmations(runs):
    failed, waiting = runs["failed"], runs["waiting_for_an_event"]
    asked = {
        "retry": (failed, ""), "restart_from": (failed, "list_things"), "finish": (waiting, ""),
        "deliver": (waiting, "approval"), "skip": (waiting, "approval"), "pause": (waiting, ""),
        "cancel": (waiting, ""), "edit": (waiting, ""), "erase": (runs["cancelled"], ""),
        "resume": (runs["on_hold"], ""), "run_now": (runs["scheduled"], "reserve"),
        "set_deadline": (waiting, ""),
    }  # fmt: skip
    pages = {
        f"confirm {action}": reverse(f"{RUN}_action", args=[run.pk, action])
        + (f"?step={step}" if step else "")
        for action, (run, step) in asked.items()
    }
    gone = reverse(f"{RUN}_action", args=[runs["of_a_class_that_is_gone"].pk, "cancel"])
    choice = reverse(f"{RUN}_action", args=[runs["waiting_with_any_of"].pk, "deliver"])
    return {
        **pages,
        "confirm cancel of a class that is gone": gone,
        "confirm a choice": f"{choice}?step=approval&choice=Approve",
    }


def rows(runs):
    """The pages of what belongs to runs, and of the other tables."""
    failed, waiting = runs["failed"], runs["waiting_for_an_event"]
    items = StepRun.objects.filter(run=failed.pk, step="pack", status="failed", item__gte=0)
    limit, schedule = StoredLimit.objects.get(name="bank"), Schedule.objects.get(name="default")
    by_hand = Schedule.objects.get(name="hourly")
    return {
        "failed attempts": reverse(f"{RUN}_failures", args=[failed.pk]),
        "history": reverse(f"{RUN}_history", args=[waiting.pk]),
        "step run history": reverse(
            "admin:job_sequences_steprun_history", args=[waiting.steps.first().pk]
        ),
        "limit history": reverse("admin:job_sequences_storedlimit_history", args=[limit.pk]),
        "value": reverse(f"{RUN}_value", args=[waiting.pk, "data"]),
        "step run": reverse("admin:job_sequences_steprun_change", args=[waiting.steps.first().pk]),
        "step run failed": reverse("admin:job_sequences_steprun_change", args=[items[0].pk]),
        "limit": reverse("admin:job_sequences_storedlimit_change", args=[limit.pk]),
        "schedule": reverse("admin:job_sequences_schedule_change", args=[schedule.pk]),
        "schedule history": reverse("admin:job_sequences_schedule_history", args=[schedule.pk]),
        "schedule paused": reverse("admin:job_sequences_schedule_change", args=[by_hand.pk]),
        **{
            f"schedule {action}": reverse(
                "admin:job_sequences_schedule_action", args=[row.pk, action]
            )
            for action, row in (
                ("pause", schedule),
                ("run_now", schedule),
                ("resume", by_hand),
                ("update", by_hand),
                ("remove", by_hand),
            )
        },
    }
