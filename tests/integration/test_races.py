"""Races on real threads, each with a connection of its own, over many rounds."""

import time
from functools import partial

import pytest
from django.db import transaction
from dramatiq.middleware import SkipMessage

from sequences import Sequence, event, step
from sequences.engine import recovery
from sequences.models import SequenceRun, StepRun, StoredPlan
from sequences.testing import drain
from sequences.transitions import failures, locking
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import change, claim, fail, fresh, ledger, now, perform, row, take
from tests.threads import refused, soon

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.only_on("postgresql", "mysql"),
]

ROUNDS = 20


@pytest.fixture(autouse=True)
def given_up(monkeypatch):
    """What the database gave up for another transaction's sake, and was played again."""
    errors = []
    is_transient = locking.is_transient

    def noting(error):
        found = is_transient(error)
        if found:
            errors.append(error)
        return found

    monkeypatch.setattr(locking, "is_transient", noting)
    monkeypatch.setattr(recovery, "is_transient", noting)
    return errors


def chain():
    class Chain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            StoredPlan.objects.create(
                sequence="a user's row", fingerprint=self.run.pk.hex, graph={}, created_at=now()
            )
            self.data["one"] = 1

        @step
        def two(self):
            self.data["two"] = 2

    return Chain


def wrote(run):
    return StoredPlan.objects.filter(sequence="a user's row", fingerprint=run.pk.hex).count()


def ended(outcome):
    """Whether the step committed; it must have lost its claim otherwise."""
    if isinstance(outcome, SkipMessage):
        return False
    assert isinstance(outcome, list), repr(outcome)
    return True


def rounds(cls=None):
    cls = cls or chain()
    for _ in range(ROUNDS):
        yield cls.start({"n": 1}).run


# --- acts against the completion of a step


def test_a_pause_never_stops_the_step_in_hand_and_always_holds_the_next(together):
    for run in rounds():
        held = claim(run, "one")
        committed, paused = together(soon(lambda: perform(held)), soon(run.pause))  # noqa: B023
        assert ended(committed)
        assert not refused(paused)
        assert ledger(run) == {"one": "succeeded", "two": "queued"}
        assert fresh(run).status == "paused"
        assert row(run, "two").wake_at is None
        assert wrote(run) == 1
        run.refresh_from_db()
        run.resume()
        assert claim(run, "two") is not None


def test_of_two_decisions_from_the_same_page_one_counts(together):
    for run in rounds():
        perform(claim(run, "one"))
        first, second = fresh(run), fresh(run)
        first._basis = second._basis = 0
        outcomes = together(
            soon(lambda: first.restart_from("one")),  # noqa: B023
            soon(lambda: second.restart_from("one")),  # noqa: B023
        )
        assert sorted(map(refused, outcomes)) == [False, True]
        assert run.operations.count() == 1


@pytest.mark.parametrize(
    ("action", "status", "of_steps"),
    [("cancel", "cancelled", "cancelled"), ("finish", "succeeded", "skipped")],
)
def test_an_end_from_outside_takes_all_of_the_step_in_hand_or_nothing(
    together, action, status, of_steps
):
    won = []
    for run in rounds():
        held = claim(run, "one")
        committed, done = together(
            soon(lambda: perform(held)),  # noqa: B023
            soon(getattr(run, action)),
        )
        assert not refused(done)
        won.append(ended(committed))
        if won[-1]:
            assert ledger(run) == {"one": "succeeded", "two": of_steps}
        else:
            assert ledger(run) == {"one": of_steps}
        assert fresh(run).status == status
        assert fresh(run).data == ({"n": 1, "one": 1} if won[-1] else {"n": 1})
        assert wrote(run) == won[-1]
        assert not StepRun.objects.filter(run=run.pk, wake_at__isnull=False).exists()


def test_a_skip_and_a_claim_exclude_each_other(together):
    for run in rounds():
        pk = row(run, "one").pk

        def work(pk=pk):
            held = take(pk)
            return held and perform(held)

        worked, skipped = together(soon(work), soon(lambda: run.skip("one")))  # noqa: B023
        if refused(skipped):
            assert ended(worked)
            assert ledger(run) == {"one": "succeeded", "two": "queued"}
        else:
            assert worked is None
            assert ledger(run) == {"one": "skipped", "two": "queued"}
        assert wrote(run) == refused(skipped)
        assert row(run, "two").wake_at is not None


def test_an_edit_beside_a_step_loses_nothing_of_both(together):
    for run in rounds():
        pk = row(run, "one").pk
        worked, edited = together(
            soon(lambda: perform(take(pk))),  # noqa: B023
            soon(lambda: run.edit({"n": 1, "edited": 2})),  # noqa: B023
        )
        assert ended(worked)
        expected = {"n": 1, "one": 1} if refused(edited) else {"n": 1, "one": 1, "edited": 2}
        assert fresh(run).data == expected
        assert run.operations.count() == (0 if refused(edited) else 1)
        assert ledger(run) == {"one": "succeeded", "two": "queued"}


def test_a_restart_beside_the_completion_begins_the_step_once_more(together):
    for run in rounds():
        held = claim(run, "one")
        committed, restarted = together(
            soon(lambda: perform(held)),  # noqa: B023
            soon(lambda: run.restart_from("one")),  # noqa: B023
        )
        assert not refused(restarted)
        assert ledger(run) == {"one": "queued"}
        assert fresh(run).status == "running"
        assert wrote(run) == ended(committed)
        StoredPlan.objects.filter(sequence="a user's row").delete()
    drain()
    assert set(SequenceRun.objects.values_list("status", flat=True)) == {"succeeded"}


def branches(count, *, counting=False):
    """So many steps side by side, and a join."""

    def branch(name):
        def perform(self):
            self.data[name] = 1
            if counting:
                self.data["count"] += 1

        perform.__name__ = name
        return perform

    names = [f"branch_{number}" for number in range(count)]
    body = {"Meta": type("Meta", (), {"app_label": "shop"})}
    for name in names:
        body[name] = step(after=[])(branch(name))

    def join(self):
        self.data["joined"] = self.data.get("joined", 0) + 1

    body["join"] = step(join)
    return type("Branches", (Sequence,), body), names


def test_a_retry_beside_the_completion_of_a_sibling_goes_on(together):
    cls, _ = branches(2)
    for run in rounds(cls):
        held = claim(run, "branch_0")
        fail(claim(run, "branch_1"))
        committed, retried = together(soon(lambda: perform(held)), soon(run.retry))  # noqa: B023
        assert ended(committed)
        assert not refused(retried)
        assert ledger(run) == {"branch_0": "succeeded", "branch_1": "queued"}
        assert fresh(run).status == "running"
        ready = perform(claim(run, "branch_1"))
        assert [dispatch.actor for dispatch in ready] == ["shop.Branches.join"]


def test_a_failure_beside_the_completion_of_a_sibling_fails_the_run(together):
    cls, _ = branches(2)
    for run in rounds(cls):
        first, second = claim(run, "branch_0"), claim(run, "branch_1")
        committed, failed = together(soon(lambda: perform(first)), soon(lambda: fail(second)))  # noqa: B023
        assert ended(committed)
        assert failed is True
        assert ledger(run) == {"branch_0": "succeeded", "branch_1": "failed"}
        assert fresh(run).status == "failed"


def test_a_pause_and_a_claim_never_leave_a_step_that_both_runs_and_is_held(together):
    for run in rounds():
        pk = row(run, "one").pk
        taken, paused = together(soon(lambda: take(pk)), soon(run.pause))  # noqa: B023
        assert not refused(paused)
        found = row(run, "one")
        assert (found.status == "running") == (taken is not None)
        assert (found.wake_at is None) == (taken is None)


def test_two_acts_at_once_leave_one_of_them_refused(together):
    for run in rounds():
        other = fresh(run)
        outcomes = together(run.pause, other.pause)
        assert sorted(refused(outcome) for outcome in outcomes) == [False, True]
        assert run.operations.count() == 1
        assert fresh(run).version == 1


# --- claims, joins, data


def test_one_of_many_claims_gets_the_step(together):
    for run in rounds():
        pk = row(run, "one").pk
        claims = together(*[lambda: take(pk)] * 4)  # noqa: B023
        (taken,) = [one for one in claims if one is not None]
        assert row(run, "one").token == taken.token


def test_a_step_that_is_taken_back_and_commits_at_the_same_time_is_committed_once(together):
    for run in rounds():
        held = claim(run, "one")
        change(run, "one", wake_at=now())
        seen = row(run, "one")
        committed, reaped = together(
            soon(lambda: perform(held)),  # noqa: B023
            soon(lambda: failures.reap(seen, "default")),  # noqa: B023
        )
        assert ended(committed) == (reaped == [])
        assert wrote(run) == ended(committed)
        assert ledger(run)["one"] == ("succeeded" if ended(committed) else "queued")


@pytest.mark.parametrize("count", [2, 8, 20])
def test_parallel_steps_lose_nothing_and_their_join_is_ready_once(together, count):
    cls, names = branches(count, counting=True)
    run = cls.start({"count": 0}).run
    held = [claim(run, name) for name in names]
    outcomes = together(*[lambda one=one: perform(one) for one in held])
    assert [one for one in outcomes if not isinstance(one, list)] == []
    (ready,) = [dispatch for outcome in outcomes for dispatch in outcome]
    assert ready.actor == "shop.Branches.join"
    assert fresh(run).data == {"count": count, **dict.fromkeys(names, 1)}
    assert set(ledger(run).values()) == {"succeeded", "queued"}
    perform(claim(run, "join"))
    assert fresh(run).data["joined"] == 1
    assert fresh(run).status == "succeeded"


def test_a_join_is_ready_once_however_its_branches_end(together):
    cls, names = branches(3)
    for run in rounds(cls):
        first, second = claim(run, names[0]), claim(run, names[1])
        outcomes = together(
            lambda: perform(first),  # noqa: B023
            lambda: perform(second),  # noqa: B023
            lambda: run.skip(names[2]),  # noqa: B023
        )
        assert not refused(outcomes[2])
        ready = [dispatch for outcome in outcomes[:2] for dispatch in outcome]
        assert len(ready) <= 1
        assert ledger(run)["join"] == "queued"
        assert row(run, "join").wake_at is not None
        assert perform(claim(run, "join")) == []
        assert fresh(run).status == "succeeded"


# --- run_now


def waiting(by):
    """Runs whose first step waits for a time: it is due now, or has failed once."""
    for run in rounds():
        if by == "retry":
            fail(claim(run, "one"), final=False)
        else:
            values = {"status": "waiting", "wait": "time", "waiting_since": now()}
            change(run, "one", **values, due_at=now(), wake_at=now())
        yield run


@pytest.mark.parametrize("by", ["delay", "retry"])
def test_of_run_now_and_a_claim_both_find_one_step_and_perform_it_once(together, by):
    for run in waiting(by):
        one = row(run, "one")
        claimed, forced = together(
            soon(lambda: take(one.pk, one.attempts)),  # noqa: B023
            soon(lambda: run.run_now("one")),  # noqa: B023
        )
        assert not isinstance(claimed, BaseException), claimed
        late = take(one.pk, one.attempts)
        assert (claimed is None) != (late is None)  # one of the two claims, not both
        assert refused(forced) == (run.operations.count() == 0)
        perform(claimed or late)
        assert ledger(run) == {"one": "succeeded", "two": "queued"}
        assert wrote(run) == 1


def test_of_run_now_and_a_sweep_one_queues_the_step(together, given_up):
    for run in waiting("delay"):
        swept, forced = together(
            soon(lambda: sweep(AssumeLost(), "default")),
            soon(lambda: run.run_now("one")),  # noqa: B023
        )
        assert swept == (1 if refused(forced) else 0)
        assert row(run, "one").status == "queued"
        perform(claim(run, "one"))
        assert wrote(run) == 1
    assert given_up == []


# --- keys


@pytest.mark.parametrize("unique", ["ever", "unfinished"])
def test_of_starts_with_one_key_at_once_one_is_made(together, unique):
    cls = chain()
    for number in range(ROUNDS):
        starts = together(
            *[lambda: cls.start({}, key=f"key {number}", unique=unique)] * 4  # noqa: B023
        )
        assert sorted(start.created for start in starts) == [False, False, False, True]
        assert len({start.run.pk for start in starts}) == 1
        assert cls.runs.filter(key=f"key {number}").count() == 1
    assert StepRun.objects.count() == ROUNDS


def test_a_start_beside_the_end_of_its_keys_holder_gets_one_of_the_two(together):
    cls = chain()
    for number in range(ROUNDS):
        holder = cls.start({}, key=f"key {number}", unique="unfinished").run
        started, cancelled = together(
            soon(lambda: cls.start({}, key=f"key {number}", unique="unfinished")),  # noqa: B023
            soon(holder.cancel),
        )
        assert not refused(cancelled)
        assert started.created == (started.run.pk != holder.pk)


# --- all at once


def test_all_at_once_nothing_deadlocks_or_is_lost(together, given_up):
    cls, names = branches(8, counting=True)
    runs = [cls.start({"count": 0}).run for _ in range(3)]
    working = set(names)

    def work(name):
        try:
            for run in runs:
                finish(run, name)
        finally:
            working.discard(name)

    def finish(run, name):
        end = time.monotonic() + 60
        while row(run, name).status != "succeeded":
            assert time.monotonic() < end, f"{name} of {run} does not end"
            held = take(row(run, name).pk)
            if held is not None:
                perform(held)

    def pause_and_resume():
        while working:
            for run in runs:
                mine = fresh(run)
                mine.pause()
                mine.resume()
                time.sleep(0.002)

    def sweep_all():
        while working:
            StepRun.objects.filter(status="queued", wake_at__isnull=False).update(wake_at=now())
            sweep(AssumeLost(), "default")

    def hold_and_let_go():
        while working:
            for run in runs:
                with transaction.atomic():
                    SequenceRun.objects.select_for_update().get(pk=run.pk)
                    time.sleep(0.05)
                time.sleep(0.01)

    workers = [lambda name=name: work(name) for name in names]
    assert together(*workers, pause_and_resume, hold_and_let_go, sweep_all) == [None] * 11
    for run in runs:
        assert fresh(run).data == {"count": 8, **dict.fromkeys(names, 1)}
        assert ledger(run)["join"] == "queued"
    assert given_up == []


def two_approvals():
    class Contract(Sequence):
        class Meta:
            app_label = "shop"

        first = event(after=[])
        second = event(after=[])

    return Contract


def approve(run, user):
    """As the documentation has it: two people, and whether this approval counted."""
    if run.deliver("first", {"by": user}):
        return True
    if run.payload("first")["by"] == user:
        return False
    return run.deliver("second", {"by": user})


def test_one_person_who_approves_twice_at_once_does_so_once(together):
    for _ in range(ROUNDS):
        run = two_approvals()().run
        twice = together(*[soon(partial(approve, fresh(run), "ann")) for _ in range(2)])
        assert sorted(twice) == [False, True]
        assert (run.delivered("first"), run.delivered("second")) == (True, False)
        assert approve(fresh(run), "joel") is True
        drain()
        assert fresh(run).status == "succeeded"
