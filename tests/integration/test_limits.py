"""Limits of steps, in turns: who has a place, who waits, who is next."""

from itertools import pairwise

import pytest

from sequences import Limit, Sequence, repeat, step
from sequences.exceptions import Abort
from sequences.models import LimitKey, Permit, StepRun, StoredLimit
from sequences.testing import clock, drain, run_sequence
from sequences.transitions import claims, failures, fanout
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import change, fail, fresh, ledger, now, overdue, take
from tests.limits import (
    bank,
    billing,
    come,
    come_again,
    falter,
    go,
    in_use,
    look,
    row_of,
    seconds,
    waiting,
    waits,
)
from tests.sagas import saga

pytestmark = pytest.mark.django_db(transaction=True)


def test_so_many_are_inside_and_the_rest_wait_without_a_worker():
    runs = [billing(bank(concurrency=2)).start().run for _ in range(4)]
    inside = [come(run) for run in runs]
    assert [claim is not None for claim in inside] == [True, True, False, False]
    assert [waits(run) for run in runs] == [False, False, True, True]
    assert (in_use(), waiting()) == (2, 2)
    # No message has it claimed.
    assert come(runs[2]) is None
    assert waits(runs[2])


def test_a_place_is_passed_on_in_the_commit_that_frees_it_first_come_first_served():
    runs = [billing(bank()).start().run for _ in range(4)]
    claim = come(runs[0])
    for run in (runs[2], runs[1], runs[3]):  # in whatever order they come to the door
        assert come(run) is None
    for run in runs[1:]:
        (dispatch,) = go(claim)
        assert dispatch.run_id == run.pk
        assert row_of(run).status == "queued"
        claim = come(run)
        assert claim is not None
    assert go(claim) == []
    assert Permit.objects.count() == 0
    assert {fresh(run).status for run in runs} == {"succeeded"}


def test_a_key_that_no_database_stores_fails_the_step_with_a_sentence():
    cls = billing(Limit("customer", concurrency=1, key=lambda self: "a\0b"), max_retries=0)
    failure = run_sequence(cls).run.failures.get()
    assert failure.message.startswith("The key of limit 'customer' contains U+0000")


def test_whoever_comes_before_the_message_of_the_next_waits_behind_it():
    first, second, third = (billing(bank()).start().run for _ in range(3))
    claim = come(first)
    assert come(second) is None
    go(claim)
    assert come(third) is None  # the place is the second's already
    assert come(second) is not None


def test_one_key_never_holds_up_another():
    per_customer = Limit("customer", key="customer", concurrency=1)
    sequence = billing(per_customer)
    seven, also_seven, eight = (sequence.start({"customer": n}).run for n in (7, 7, 8))
    assert come(seven) is not None
    assert come(also_seven) is None
    assert come(eight) is not None


def test_a_key_that_is_none_is_not_limited():
    sequence = billing(Limit("customer", key=lambda self: None, concurrency=1))
    assert all(come(sequence.start().run) for _ in range(3))
    assert not Permit.objects.exists()


def test_a_key_that_is_missing_fails_the_step():
    run = billing(Limit("customer", key="customer", concurrency=1)).start().run
    drain()
    assert fresh(run).status == "failed"
    assert "customer" in run.failures.get().message


def test_lines_are_shared_by_all_sequences_that_name_the_limit():
    one = billing(bank()).start().run

    class Other(Sequence):
        class Meta:
            app_label = "shop"

        @step(limits=[bank()])
        def charge(self): ...

    other = Other.start().run
    claim = come(one)
    assert come(other) is None
    assert [dispatch.run_id for dispatch in go(claim)] == [other.pk]


@pytest.mark.parametrize("how", ["retry", "fail", "abort", "release", "repeat", "pause", "cancel"])
def test_what_frees_a_place_passes_it_on(how):
    class Billing(Sequence):
        class Meta:
            app_label = "shop"

        @step(limits=[bank()])
        def charge(self):
            if how == "abort":
                raise Abort("No.")
            return repeat(after=60_000) if how == "repeat" else None

    first, second = Billing.start().run, Billing.start().run
    claim = come(first)
    assert come(second) is None
    match how:
        case "retry":
            falter(claim)
        case "fail":
            fail(claim)
        case "release":
            claims.release(claim, "default")
        case "repeat":
            go(claim)
        case "abort":
            with pytest.raises(Abort):
                go(claim)
        case "cancel":
            first.cancel()
        case "pause":
            claims.release(claim, "default")
            assert come(second) is not None
            return
    assert row_of(second).status == "queued"
    assert come(second) is not None


def test_a_place_that_is_not_claimed_yet_is_freed_by_a_pause():
    first, second, third = (billing(bank()).start().run for _ in range(3))
    claim = come(first)
    assert come(second) is None
    assert come(third) is None
    go(claim)
    second.pause()
    assert row_of(third).status == "queued"
    second.resume()
    claim = come(third)
    assert claim is not None
    assert come(second) is None
    assert waits(second)
    go(claim)
    assert come(second) is not None


def test_what_waits_is_not_served_while_its_run_is_paused():
    first, second, third = (billing(bank()).start().run for _ in range(3))
    claim = come(first)
    assert come(second) is None
    assert come(third) is None
    second.pause()
    go(claim)
    assert row_of(second).status == "waiting"
    claim = come(third)
    assert claim is not None
    second.resume()
    assert come(second) is None
    go(claim)
    assert come(second) is not None


def test_a_killed_workers_place_is_free_when_its_lease_is_over():
    first, second = billing(bank()).start().run, billing(bank()).start().run
    assert come(first) is not None
    assert come(second) is None
    overdue(first, "charge")
    failures.reap(row_of(first), "default")
    assert row_of(second).status == "queued"
    claim = come(second)
    assert claim is not None
    assert come(first) is None
    assert waits(first)
    go(claim)
    assert come(first) is not None


def test_a_claim_that_came_too_late_for_its_place_waits_again():
    """Somebody resumes a run whose place another has: it counts, but is not used."""
    first, second = billing(bank()).start().run, billing(bank()).start().run
    claim = come(first)
    assert come(second) is None
    go(claim)
    third = billing(bank()).start().run
    assert come(third) is None
    change(second, "charge", wake_at=None)
    look()
    assert row_of(third).status == "queued"
    change(second, "charge", wake_at=now())
    inside = [claim for claim in (come(second), come(third)) if claim]
    assert len(inside) == 1
    assert in_use() == 1


def test_the_sweep_passes_on_what_nobody_did():
    first, second = billing(bank()).start().run, billing(bank()).start().run
    assert come(first) is not None
    assert come(second) is None
    # Whoever ends a run has died before it has looked.
    change(first, "charge", status="cancelled", token=None, wake_at=None)
    assert waits(second)
    look()
    assert row_of(second).status == "queued"
    assert come(second) is not None


def test_those_who_have_left_the_line_are_passed_over():
    runs = [billing(bank()).start().run for _ in range(3)]
    claim = come(runs[0])
    assert come(runs[1]) is None
    assert come(runs[2]) is None
    change(runs[1], "charge", status="cancelled", wake_at=None)
    go(claim)
    assert row_of(runs[2]).status == "queued"


def test_several_limits_are_had_together_or_not_at_all():
    customer = Limit("customer", key="customer", concurrency=1)
    sequence = billing(bank(concurrency=2), customer)
    a, also_a, b = (sequence.start({"customer": n}).run for n in "aab")
    claim = come(a)
    assert come(also_a) is None  # for its customer, and takes no place at the bank
    assert in_use("bank") == 1
    inside = come(b)
    assert inside is not None
    c = sequence.start({"customer": "c"}).run
    assert come(c) is None
    go(claim)  # whoever it is, a place at the bank and one of the customer are free
    assert {row_of(run).status for run in (also_a, c)} == {"queued", "waiting"}
    look()
    served = also_a if row_of(also_a).status == "queued" else c
    claim = come(served)
    assert claim is not None
    go(claim)
    go(inside)
    look()
    assert all(come(run) or row_of(run).status == "succeeded" for run in (also_a, c))


def test_who_waits_for_one_limit_is_no_obstacle_in_the_line_of_another():
    customer = Limit("customer", key="customer", concurrency=1)
    sequence = billing(bank(), customer)

    class Other(Sequence):
        class Meta:
            app_label = "shop"

        @step(limits=[customer])
        def charge(self): ...

    holder = Other.start({"customer": "a"}).run
    at_bank = sequence.start({"customer": "z"}).run
    of_a = sequence.start({"customer": "a"}).run
    of_b = sequence.start({"customer": "b"}).run
    claim = come(at_bank)
    held = come(holder)
    assert held
    assert claim
    assert come(of_a) is None
    assert come(of_b) is None
    go(claim)
    assert waits(of_a)
    claim = come(of_b)
    assert claim is not None
    go(held)
    assert waits(of_a)  # at the bank now
    go(claim)
    assert come(of_a) is not None


def test_a_delay_is_waited_for_without_a_place():
    class Later(Sequence):
        class Meta:
            app_label = "shop"

        @step(delay=seconds(60), limits=[bank()])
        def charge(self): ...

    run = Later.start().run
    claim = come(run)
    assert not Permit.objects.exists()
    go(claim)
    assert row_of(run).status == "waiting"
    assert not waits(run)

    class AtOnce(Sequence):
        class Meta:
            app_label = "shop"

        @step(delay=lambda self: seconds(0), limits=[bank()])
        def charge(self): ...

    run = AtOnce.start().run
    go(come(run))
    assert row_of(run).status == "queued"
    assert come(run) is not None
    assert in_use() == 1


def test_the_undo_of_a_step_has_limits_too():
    cls = saga(undo={"limits": [bank()]})
    holder = billing(bank()).start().run
    claim = come(holder)
    run = cls.start().run
    drain()
    assert ledger(run)["refund"] == "waiting"
    go(claim)
    drain()
    assert ledger(run)["refund"] == "succeeded"
    assert fresh(run).status == "failed"


def test_a_second_attempt_asks_anew():
    first, second = billing(bank()).start().run, billing(bank()).start().run
    falter(come(first))
    claim = come(second)
    assert claim is not None
    assert come(first) is None
    assert waits(first)
    assert row_of(first).attempts == 1
    go(claim)
    again = come_again(row_of(first))
    assert again is not None
    assert again.attempts == 1


def test_what_is_skipped_or_restarted_leaves_its_line():
    class Two(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pack(self): ...

        @step(limits=[bank()])
        def charge(self): ...

    holder, run = billing(bank()).start().run, Two.start().run
    claim = come(holder)
    drain()
    assert waits(run)
    run.restart_from("pack")
    assert not Permit.objects.filter(run=run.pk).exists()
    drain()
    assert waits(run)
    run.skip("charge")
    assert fresh(run).status == "succeeded"
    assert go(claim) == []
    assert not Permit.objects.exists()


def test_a_line_is_one_row_for_each_key_and_is_locked_by_whoever_gives_a_place():
    for run in [billing(bank()).start().run for _ in range(2)]:
        come(run)
    assert LimitKey.objects.count() == 1
    assert StepRun.objects.count() == 2


def test_a_rate_gives_each_its_moment_in_order_and_evenly():
    sequence = billing(Limit("bank", rate=40, per=seconds(60)))
    runs = [sequence.start().run for _ in range(4)]
    claims_of = [come(run) for run in runs]
    assert claims_of[0] is not None
    rows = [row_of(run) for run in runs[1:]]
    assert [row.wait for row in rows] == ["limit"] * 3
    moments = [Permit.objects.get(step_run=row_of(run).pk).granted_at for run in runs]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
    assert gaps == pytest.approx([1.5] * 3, abs=0.002)
    assert [row.due_at for row in rows] == moments[1:]
    with clock() as moving:
        assert come(runs[2]) is None  # its moment has not come
        moving.move(seconds(3))
        assert come(runs[2]) is not None


def test_moments_far_ahead_are_not_given_yet_and_come_in_order():
    sequence = billing(Limit("bank", rate=1, per=seconds(4)))
    runs = [sequence.start().run for _ in range(5)]
    for run in runs:
        come(run)
    assert [row_of(run).due_at is not None for run in runs] == [False, True, False, False, False]
    with clock() as moving:
        for place in (2, 3, 4, 5):
            for _ in range(2):
                moving.move(seconds(2))
                sweep(AssumeLost(), "default")
            assert [bool(row_of(run).due_at) for run in runs[2:]] == [
                place > later for later in (2, 3, 4)
            ]
    moments = [row_of(run).due_at for run in runs[1:]]
    assert {(later - earlier).total_seconds() for earlier, later in pairwise(moments)} == {4}


def test_an_attempt_that_is_tried_again_has_another_moment():
    run = billing(Limit("bank", rate=1, per=seconds(4))).start().run
    falter(come(run))
    assert come(run) is None
    assert row_of(run).due_at > now() + seconds(2)


def test_a_rate_and_a_number_of_places_hold_together():
    sequence = billing(bank(concurrency=2, rate=1, per=seconds(1)))
    runs = [sequence.start().run for _ in range(4)]
    claim = come(runs[0])
    assert all(come(run) is None for run in runs[1:])
    assert in_use() == 2
    assert waiting() == 2
    (dispatch,) = go(claim)
    assert dispatch.run_id == runs[2].pk
    assert 1000 < dispatch.delay <= 2000


def test_a_test_of_a_project_sees_the_end_of_what_waits():
    sequence = billing(bank(rate=1, per=seconds(3600)))
    runs = [sequence.start().run for _ in range(3)]
    with clock() as moving:
        drain()
        while moving.move_to_next(runs[2]):
            drain()
    assert [fresh(run).status for run in runs] == ["succeeded"] * 3
    assert run_sequence(sequence).run.status == "succeeded"


def test_each_item_has_a_place_of_its_own():
    run = billing(bank(concurrency=2), each=lambda self: range(5)).start().run
    go(take(row_of(run).pk))
    assert not Permit.objects.exists()  # to expand it takes none
    inside = [come(run, item) for item in range(5)]
    assert [claim is not None for claim in inside] == [True, True, False, False, False]
    go(inside[1])
    assert row_of(run, 2).status == "queued"
    assert waits(run, 3)
    drain()
    assert [row_of(run, item).status for item in range(5)] == ["running"] + 4 * ["succeeded"]
    go(inside[0])
    drain()
    assert fresh(run).status == "succeeded"


def test_an_item_may_be_what_has_a_line():
    customer = Limit("customer", key="id", concurrency=1)
    run = billing(customer, each=lambda self: [{"id": n} for n in "aba"]).start().run
    go(take(row_of(run).pk))
    inside = [come(run, item) for item in range(3)]
    assert [claim is not None for claim in inside] == [True, True, False]


def test_an_item_in_line_keeps_its_place_among_its_siblings():
    class Billing(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: range(5), concurrency=2, limits=[bank(rate=1, per=seconds(2))])
        def charge(self, customer): ...

    run = Billing.start().run
    go(take(row_of(run).pk))
    claim = come(run, 0)
    assert come(run, 1) is None
    fanout.look(run.pk, "charge", "default")
    assert [row_of(run, item).wait for item in (2, 3, 4)] == ["place"] * 3
    go(claim)
    assert row_of(run, 1).due_at is not None  # its moment is ahead
    with clock() as moving:
        while fresh(run).status == "running":
            drain()
            states = StepRun.objects.filter(run=run.pk, item__gte=0).values_list("status", "wait")
            flying = [s for s in states if s[0] in ("queued", "running") or s[1] == "limit"]
            assert len([s for s in flying if s[0] not in ("succeeded",)]) <= 2
            moving.move_to_next(run)
    assert fresh(run).status == "succeeded"


def test_a_fan_out_that_was_put_aside_goes_on_where_it_was():
    """A paused run gives up its place; to gather its items it needs none."""

    class Billing(Sequence):
        class Meta:
            app_label = "shop"
            limits = [bank()]

        @step(each=lambda self: range(2))
        def charge(self, customer): ...

        @step
        def report(self): ...

    first, second = Billing.start().run, Billing.start().run
    go(come(first))
    inside = [come(first, item) for item in range(2)]
    first.pause()
    assert come(second) is None
    for claim in inside:
        go(claim)
    look()
    assert come(second) is not None
    first.resume()
    drain()
    assert ledger(first) == {"charge": "succeeded", "report": "waiting"}
    assert waits(first, name="report")


def test_a_step_in_the_middle_of_a_run_passes_its_place_on():
    class Two(Sequence):
        class Meta:
            app_label = "shop"

        @step(limits=[bank()])
        def charge(self): ...

        @step
        def report(self): ...

    first, second = Two.start().run, Two.start().run
    claim = come(first)
    assert come(second) is None
    ready = go(claim)
    assert [dispatch.run_id for dispatch in ready] == [first.pk, second.pk]
    assert row_of(second).status == "queued"


def test_whoever_comes_is_not_served_before_those_who_wait():
    """A place is free, as somebody has changed the number and nobody has looked yet."""
    first, second, third = (billing(bank()).start().run for _ in range(3))
    assert come(first) is not None
    assert come(second) is None
    StoredLimit.objects.update(concurrency=2)
    assert come(third) is None
    assert row_of(second).status == "queued"
    assert waits(third)


def test_a_moment_is_used_once():
    """A worker was lost, and nobody has passed its place on."""
    run = billing(Limit("bank", rate=1, per=seconds(4))).start().run
    assert come(run) is not None
    change(run, "charge", status="queued", token=None)
    assert come(run) is None
    assert row_of(run).due_at > now() + seconds(2)
