"""Two that are the first of several at once, on real threads: exactly one of them is."""

import pytest

from sequences import Sequence, any_of, event, step, subsequence
from sequences.models import SequenceRun, StepRun
from sequences.testing import drain
from tests.engine import claim, fail, fresh, ledger, perform
from tests.threads import soon

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgresql", "mysql"),
]

ROUNDS = 12


class Bid(Sequence):
    class Meta:
        app_label = "shop"

    approval = event(after=[])
    refusal = event(after=[])

    @step(after=[])
    def ask_bank(self):
        self.data["bank"] = True

    @step(after=[])
    def ask_friend(self):
        self.data["friend"] = True

    @step(after=any_of(approval, refusal, ask_bank, ask_friend))
    def decide(self):
        names = ("approval", "refusal")
        self.data["delivered"] = [name for name in names if self.result(name)]


def deliver(run, name):
    return lambda: SequenceRun.objects.get(pk=run.pk).deliver(name, {"by": name})


def waiting():
    """Both events wait, and neither of the two steps has begun."""
    run = Bid().run
    for name in ("approval", "refusal"):
        perform(claim(run, name))
    return run


def winners(run):
    states = ledger(run)
    assert states.pop("decide") == "succeeded"
    assert sorted(states.values()) == ["skipped"] * 3 + ["succeeded"]
    assert StepRun.objects.filter(run=run.pk, step="decide").count() == 1
    assert fresh(run).status == "succeeded"
    return [name for name, state in states.items() if state == "succeeded"]


def test_of_two_deliveries_at_once_exactly_one_counts(together):
    for _ in range(ROUNDS):
        run = waiting()
        names = ["approval", "refusal"]
        outcomes = together(*[soon(deliver(run, name)) for name in names])
        assert sorted(outcomes) == [False, True]
        assert run.operations.get().step == names[outcomes.index(True)]
        drain()
        assert winners(run) == [names[outcomes.index(True)]]
        assert fresh(run).data["delivered"] == winners(run)


def test_of_two_commits_at_once_exactly_one_stands(together):
    for _ in range(ROUNDS):
        run = waiting()
        held = [claim(run, name) for name in ("ask_bank", "ask_friend")]
        together(*[soon(perform, one) for one in held])
        drain()
        (winner,) = winners(run)
        assert fresh(run).data == {winner.removeprefix("ask_"): True, "delivered": []}


def test_a_delivery_and_a_commit_at_once_exactly_one_stands(together):
    for _ in range(ROUNDS):
        run = waiting()
        held = claim(run, "ask_bank")
        counts, _ = together(soon(deliver(run, "refusal")), soon(perform, held))
        drain()
        assert winners(run) == (["refusal"] if counts is True else ["ask_bank"])
        assert ("bank" in fresh(run).data) is (counts is not True)


def test_a_delivery_and_a_failure_of_another_at_once_never_fail_what_has_lost(together):
    for _ in range(ROUNDS):
        run = waiting()
        held = claim(run, "ask_bank")
        counts, recorded = together(soon(deliver(run, "refusal")), soon(fail, held))
        assert counts is True
        if recorded:
            drain()
            assert fresh(run).status == "failed"
            fresh(run).retry()
        drain()
        assert fresh(run).status == "succeeded"
        assert fresh(run).data["delivered"] == ["refusal"]


def test_a_claim_and_a_delivery_at_once_leave_no_row_behind(together):
    for _ in range(ROUNDS):
        run = waiting()
        counts, taken = together(soon(deliver(run, "approval")), soon(claim, run, "ask_bank"))
        assert counts is True
        if taken is not None:
            together(lambda taken=taken: perform(taken))
        drain()
        assert winners(run) == ["approval"]


def test_children_of_what_has_lost_end_in_the_same_transaction(together):
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def work(self):
            self.data["worked"] = True

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        child = subsequence(Child, after=[])
        stop = event(after=[])

        @step(after=any_of(child, stop))
        def decide(self): ...

    for _ in range(ROUNDS):
        run = Parent().run
        for name in ("child", "stop"):
            perform(claim(run, name))
        child = Child.runs.latest("pk")
        held = claim(child, "work")
        together(soon(deliver(run, "stop")), soon(perform, held))
        drain()
        assert fresh(run).status == "succeeded"
        states = ledger(run)
        assert sorted([states["child"], states["stop"]]) == ["skipped", "succeeded"]
        if states["stop"] == "succeeded":
            assert fresh(child).status in ("cancelled", "succeeded")
