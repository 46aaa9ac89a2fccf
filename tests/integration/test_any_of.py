"""`any_of`: the first of several steps counts, the others are skipped in the same transaction."""

from datetime import timedelta

import pytest
from django.db import transaction
from dramatiq.middleware import SkipMessage

from sequences import Sequence, any_of, event, repeat, step, subsequence
from sequences.engine import dispatcher
from sequences.exceptions import InvalidDefinition, InvalidTransition
from sequences.models import StepRun
from sequences.testing import clock, drain
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fail, fresh, ledger, overdue, perform, row

pytestmark = pytest.mark.django_db


class BankLoan(Sequence):
    """Two people approve, or one refuses, the customer withdraws, or a manager decides."""

    class Meta:
        app_label = "shop"

    @step
    def check(self): ...

    first = event(after=check)
    second = event(after=first)
    refusal = event(after=check)
    withdrawal = event(after=check)

    @step(after=check, delay=timedelta(days=1))
    def remind(self):
        self.data["reminders"] = self.data.get("reminders", 0) + 1
        return repeat(after=timedelta(days=1)) if self.data["reminders"] < 3 else None

    manager = event(after=remind)

    @step(after=second)
    def open_account(self): ...

    @step(after=[check, any_of(second, refusal, withdrawal, manager)])
    def decide(self):
        names = ("second", "refusal", "withdrawal", "manager")
        self.data["decided_by"] = [name for name in names if self.result(name)]

    @step(after=[open_account, decide])
    def tell(self): ...


@pytest.fixture
def run():
    run = BankLoan().run
    drain()
    return fresh(run)


def deliver(run, name):
    return run.deliver(name, {"by": name})


def claim_reminder(run):
    run.run_now("remind")
    return claim(run, "remind")


def test_the_step_is_ready_with_the_first_and_the_others_are_skipped_in_its_transaction(run):
    assert deliver(run, "withdrawal")
    states = ledger(run)
    assert states.pop("withdrawal") == "queued"
    assert states == {
        "check": "succeeded",
        "first": "skipped",
        "refusal": "skipped",
        "remind": "skipped",
        "second": "skipped",
        "manager": "skipped",
        "open_account": "skipped",
    }
    assert not StepRun.objects.filter(run=run.pk, status="skipped", wake_at__isnull=False).exists()
    drain()
    run = fresh(run)
    assert (run.status, run.data["decided_by"]) == ("succeeded", ["withdrawal"])
    assert ledger(run)["decide"] == ledger(run)["tell"] == "succeeded"


def test_what_comes_after_the_first_alone_is_not_skipped(run):
    assert deliver(run, "first")
    drain()
    assert ledger(run)["refusal"] == "waiting"
    assert deliver(run, "second")
    drain()
    states = ledger(fresh(run))
    assert states["open_account"] == states["decide"] == states["tell"] == "succeeded"
    assert states["refusal"] == states["withdrawal"] == states["remind"] == "skipped"
    assert states["first"] == "succeeded"


def test_nobody_decides_and_the_reminders_end_in_an_escalation(run):
    with clock() as moving:
        for _ in range(3):
            moving.move(timedelta(days=1))
            drain()
    assert fresh(run).data["reminders"] == 3
    assert ledger(run)["manager"] == "waiting"
    assert deliver(run, "manager")
    drain()
    assert fresh(run).data["decided_by"] == ["manager"]


def test_a_delivery_that_comes_second_does_not_count_and_says_so(run):
    assert deliver(run, "refusal") is True
    assert deliver(run, "withdrawal") is False
    assert deliver(run, "first") is False
    drain()
    assert fresh(run).data["decided_by"] == ["refusal"]


def test_an_event_that_was_skipped_by_hand_still_refuses_a_delivery(run):
    run.skip("refusal")
    with pytest.raises(InvalidTransition):
        deliver(run, "refusal")
    assert ledger(run)["withdrawal"] == "waiting"


def test_a_step_that_executes_when_it_loses_loses_its_commit(run):
    taken = claim_reminder(run)
    assert deliver(run, "refusal")
    with pytest.raises(SkipMessage):
        perform(taken)
    drain()
    assert "reminders" not in fresh(run).data
    assert fresh(run).status == "succeeded"


def test_a_step_that_executes_when_it_loses_sees_that_it_was_cancelled():
    seen = []

    class Race(Sequence):
        class Meta:
            app_label = "shop"

        stop = event(after=[])

        @step(after=[], atomic=False)
        def search(self):
            seen.append(self.cancelled)
            self.run.deliver("stop")
            seen.append(self.cancelled)
            self.raise_if_cancelled()

        @step(after=any_of(stop, search))
        def decide(self): ...

    run = Race().run
    drain()
    assert seen == [False, True]
    assert ledger(run) == {"stop": "succeeded", "search": "skipped", "decide": "succeeded"}
    assert not fresh(run).failures.exists()


def test_a_failed_attempt_of_what_has_lost_is_not_recorded(run):
    taken = claim_reminder(run)
    assert deliver(run, "refusal")
    assert not fail(taken)
    assert row(run, "remind").status == "skipped"


def test_a_decision_that_is_rolled_back_ends_no_wait(run):
    before = ledger(run)
    with transaction.atomic():
        assert deliver(run, "refusal")
        transaction.set_rollback(True)
    assert ledger(run) == before
    assert deliver(run, "withdrawal")
    drain()
    assert fresh(run).data["decided_by"] == ["withdrawal"]


def test_the_sweep_dispatches_what_was_decided_before_the_process_died(run):
    with dispatcher.capture_dispatches():  # nothing is sent
        assert deliver(run, "refusal")
    overdue(run, "refusal")
    assert sweep(AssumeLost(), "default") == 1
    drain()
    assert fresh(run).status == "succeeded"
    assert fresh(run).data["decided_by"] == ["refusal"]


def test_a_pause_holds_the_decision_and_not_the_skips(run):
    run.pause()
    assert deliver(run, "refusal")
    assert ledger(run)["withdrawal"] == "skipped"
    drain()
    assert ledger(run)["refusal"] == "queued"
    fresh(run).resume()
    drain()
    assert fresh(run).status == "succeeded"


def test_a_restart_from_the_decision_keeps_what_was_decided(run):
    deliver(run, "refusal")
    drain()
    fresh(run).restart_from("decide")
    drain()
    assert fresh(run).data["decided_by"] == ["refusal"]


@pytest.mark.parametrize(
    ("name", "asked"),
    [("refusal", "first"), ("withdrawal", "first"), ("first", "first"), ("second", "second")],
)
def test_a_restart_from_one_of_them_asks_all_of_them_again(run, name, asked):
    deliver(run, "refusal")
    drain()
    fresh(run).restart_from(name)
    drain()
    states = ledger(run)
    waiting = {step for step, state in states.items() if state == "waiting"}
    assert waiting == {asked, "refusal", "withdrawal", "remind"}
    assert deliver(run, "withdrawal")
    drain()
    assert fresh(run).data["decided_by"] == ["withdrawal"]


def test_if_all_are_skipped_the_step_is_ready():
    class Ask(Sequence):
        class Meta:
            app_label = "shop"

        ann = event(after=[], timeout=timedelta(hours=1), on_timeout="continue")
        joel = event(after=[], timeout=timedelta(hours=2), on_timeout="continue")

        @step(after=any_of(ann, joel))
        def decide(self):
            self.data["nobody"] = self.result("ann") is None and self.result("joel") is None

    run = Ask().run
    drain()
    with clock() as moving:
        moving.move(timedelta(hours=1))
        drain()
        assert ledger(run) == {"ann": "skipped", "joel": "waiting"}
        moving.move(timedelta(hours=1))
        drain()
    assert fresh(run).data == {"nobody": True}


def test_a_step_that_fails_fails_the_run_as_everywhere_and_a_retry_lets_the_first_count():
    class Quote(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(after=[])
        def one(self):
            raise ValueError

        two = event(after=[])

        @step(after=any_of(one, two))
        def take(self): ...

    run = Quote().run
    drain()
    assert fresh(run).status == "failed"
    run.deliver("two")
    fresh(run).retry()
    drain()
    assert ledger(run)["two"] == "succeeded" or fresh(run).status == "failed"


def test_a_handler_that_takes_over_does_not_skip_what_another_may_still_begin():
    class Quote(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(after=[], on_error="log")
        def one(self):
            raise ValueError

        two = event(after=[])

        @step(after=one)
        def pay_one(self): ...

        @step(after=any_of(one, two))
        def take(self): ...

        @step
        def log(self): ...

    run = Quote().run
    drain()
    assert ledger(run) == {
        "one": "failed", "log": "succeeded", "two": "waiting", "pay_one": "skipped",
    }  # fmt: skip
    run.deliver("two")
    drain()
    assert fresh(run).status == "succeeded"
    assert ledger(run)["take"] == "succeeded"


def test_children_and_items_of_what_has_lost_end_with_it():
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        answer = event()

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        children = subsequence(Child, after=[])

        @step(after=[], each=lambda self: range(3))
        def poll(self, item):
            return repeat(after=timedelta(days=1))

        stop = event(after=[])

        @step(after=any_of(children, poll, stop))
        def decide(self): ...

    run = Parent().run
    drain()
    assert set(Child.runs.values_list("status", flat=True)) == {"running"}
    assert run.deliver("stop")
    assert set(Child.runs.values_list("status", flat=True)) == {"cancelled"}
    items = StepRun.objects.filter(run=run.pk, step="poll", item__gte=0)
    assert set(items.values_list("status", flat=True)) == {"skipped"}
    drain()
    assert fresh(run).status == "succeeded"


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (lambda one, two: any_of(one), "any_of needs at least two steps"),
        (lambda one, two: [one, any_of(one, two)], "after names 'one' more than once"),
        (lambda one, two: any_of(one, 3), "after contains 3, which is not a step"),
        (lambda one, two: any_of(one, "three"), "after names 'three', which is not a step"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(after, problem):
    with pytest.raises(InvalidDefinition, match=problem):

        class Wrong(Sequence):
            class Meta:
                app_label = "shop"

            one = event(after=[])
            two = event(after=[])

            @step(after=after(one, two))
            def decide(self): ...
