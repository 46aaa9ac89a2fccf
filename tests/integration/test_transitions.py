from datetime import timedelta

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, transaction
from django.test import override_settings

from sequences import Sequence, step
from sequences.definitions.plan import Node, Plan
from sequences.inspection import snapshot
from sequences.inspection.diagnosis import summary
from sequences.models import RunStatus, SequenceRun, StepFailure, StepRun, StoredPlan
from sequences.testing import assert_steps, drain, isolate_sequences
from sequences.transitions import claims, commits, due, failures, locking, periods, plans
from sequences.transitions.types import Beat, Change, ClaimLost
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import change, claim, fail, fresh, ledger, now, overdue, perform, row, take
from tests.steps import chain

pytestmark = pytest.mark.django_db

USING = "default"
HOUR = timedelta(hours=1)


@pytest.fixture
def run():
    return chain().start({"n": 1}).run


def stored(run, step="one"):
    """All of the row, to see that nothing of it changed."""
    return StepRun.objects.filter(run=run.pk, step=step).values().get()


# --- claim


def test_a_claim_takes_a_queued_step(run):
    taken = claim(run, "one", worker="host:1")
    found = row(run, "one")
    assert (found.status, found.token, found.worker) == ("running", taken.token, "host:1")
    assert found.started_at is not None
    assert (taken.run_id, taken.step, taken.attempts) == (run.pk, "one", 0)
    assert (taken.sequence, taken.plan_id, taken.version) == ("shop.Chain", run.plan_id, 0)
    assert taken.data.replace(" ", "") == '{"n":1}'


def test_a_claim_takes_a_retrying_step_of_as_many_attempts_as_its_message_says(run):
    fail(claim(run, "one"), final=False)
    before = stored(run)
    assert take(before["id"], attempts=0) is None
    assert take(before["id"], attempts=2) is None
    assert stored(run) == before
    assert take(before["id"], attempts=1).attempts == 1


def test_a_second_claim_of_the_same_message_gets_nothing(run):
    first = claim(run, "one")
    before = stored(run)
    assert take(first.step_run_id, worker="another") is None
    assert stored(run) == before


def test_a_held_step_is_claimed_by_nobody(run):
    change(run, "one", wake_at=None)
    before = stored(run)
    assert claim(run, "one") is None
    assert stored(run) == before


@pytest.mark.parametrize("status", ["succeeded", "failed", "skipped", "cancelled"])
def test_a_finished_step_is_not_claimed_though_a_time_stands_in_it(run, status):
    change(run, "one", status=status)
    assert claim(run, "one") is None
    assert row(run, "one").status == status


def test_a_waiting_step_is_claimed_when_it_is_due_and_not_before(run):
    change(run, "one", status="waiting", due_at=now() + timedelta(seconds=20))
    assert claim(run, "one") is None
    change(run, "one", due_at=now() - timedelta(seconds=1))
    assert claim(run, "one") is not None


def test_a_message_that_comes_milliseconds_before_its_time_is_taken(run):
    with transaction.atomic():
        change(run, "one", status="waiting", due_at=now() + timedelta(milliseconds=45))
        # Even if this machine stood still for a moment, the step is to be had by now.
        assert claim(run, "one") is not None


def test_a_waiting_step_without_a_time_is_not_claimed(run):
    change(run, "one", status="waiting", due_at=None)
    assert claim(run, "one") is None


def test_a_step_that_does_not_exist_is_not_claimed():
    assert take(10**9) is None


@override_settings(SEQUENCES={"HEARTBEAT": 20, "LEASE": 600, "GRACE": 600})
def test_a_claim_leaves_a_wake_time_that_serves_as_its_lease_and_moves_any_other(run):
    for left, stays in [(40, False), (300, True), (3600, False), (-5, False)]:
        wake_at = now() + timedelta(seconds=left)
        change(run, "one", status="queued", token=None, wake_at=wake_at)
        claim(run, "one")
        found = row(run, "one").wake_at
        if stays:
            assert found == wake_at
        else:
            assert timedelta(seconds=550) < found - now() <= timedelta(seconds=600)


# --- commit


def test_a_commit_with_an_old_token_stores_nothing(run):
    stale = claim(run, "one")
    overdue(run, "one")
    failures.reap(row(run, "one"), USING)
    fresh_claim = claim(run, "one")
    assert fresh_claim.token != stale.token
    before = stored(run)
    with pytest.raises(ClaimLost), transaction.atomic():
        commits.commit(stale, Change(data='{"n": 2}', after={"n": 2}), USING)
    change, plan = Change(data='{"n": 2}', after={"n": 2}), plans.load(run.plan_id, USING)
    assert commits.commit_quickly(stale, plan, change, USING) is None
    assert stored(run) == before
    assert (fresh(run).data, fresh(run).version) == ({"n": 1}, 0)
    perform(fresh_claim)
    assert ledger(run) == {"one": "succeeded", "two": "queued"}


def test_the_user_writes_of_a_commit_that_lost_its_claim_are_rolled_back():
    class Writing(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def write(self):
            StoredPlan.objects.create(
                sequence="a user's row", fingerprint="", graph={}, created_at=now()
            )

    run = Writing.start().run
    held = claim(run, "write")
    change(run, "write", token=1)
    with pytest.raises(Exception, match="lost its claim while it was running"):
        perform(held)
    assert not StoredPlan.objects.filter(sequence="a user's row").exists()


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_commit_of_a_run_that_has_ended_stores_nothing(run, status):
    held = claim(run, "one")
    SequenceRun.objects.filter(pk=run.pk).update(status=status)
    before = stored(run)
    with pytest.raises(ClaimLost), transaction.atomic():
        commits.commit(held, Change(), USING)
    plan = plans.load(run.plan_id, USING)
    assert commits.commit_quickly(held, plan, Change(), USING) is None
    assert stored(run) == before


def test_a_commit_resets_the_lost_workers_and_clears_the_times(run):
    change(run, "one", lost_workers=2, due_at=now())
    perform(claim(run, "one"))
    found = row(run, "one")
    assert (found.status, found.lost_workers, found.wake_at, found.due_at) == (
        "succeeded",
        0,
        None,
        None,
    )
    assert found.finished_at is not None
    following = row(run, "two")
    assert following.status == "queued"
    assert timedelta(seconds=10) < following.wake_at - now() <= timedelta(seconds=15)


def test_a_commit_beside_a_change_of_another_key_keeps_both(run):
    held = claim(run, "one")
    SequenceRun.objects.filter(pk=run.pk).update(data={"n": 1, "other": 2}, version=1)
    perform(held)
    assert fresh(run).data == {"n": 1, "other": 2, "one": 1}
    assert fresh(run).version == 2


def test_a_commit_beside_a_change_of_the_same_key_is_performed_again_on_the_fresh_data():
    class Counting(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def count(self):
            self.data["n"] += 1

    run = Counting.start({"n": 1}).run
    held = claim(run, "count")
    SequenceRun.objects.filter(pk=run.pk).update(data={"n": 10}, version=1)
    perform(held)
    assert fresh(run).data == {"n": 11}


# --- release


def test_a_released_step_is_queued_again_and_not_counted(run):
    held = claim(run, "one")
    change(run, "one", lost_workers=1)
    (dispatch,) = claims.release(held, USING)
    found = row(run, "one")
    assert (found.status, found.token, found.attempts, found.lost_workers) == ("queued", None, 0, 1)
    assert (dispatch.step_run_id, dispatch.attempts) == (found.pk, 0)
    assert claim(run, "one") is not None


def test_a_step_that_is_not_ours_any_more_is_not_released(run):
    held = claim(run, "one")
    change(run, "one", token=5)
    before = stored(run)
    assert claims.release(held, USING) == []
    assert stored(run) == before
    run.cancel()
    before = stored(run)
    assert claims.release(held, USING) == []
    assert stored(run) == before


def test_a_step_that_is_released_in_a_pause_is_held(run):
    held = claim(run, "one")
    run.pause()
    assert claims.release(held, USING) == []
    assert (row(run, "one").status, row(run, "one").wake_at) == ("queued", None)


# --- the heartbeat


def beat(claim, progress=None):
    return claims.beat([Beat(claim.step_run_id, claim.token, progress)], USING)


def test_a_beat_extends_the_lease_and_shows_the_progress(run):
    held = claim(run, "one")
    overdue(run, "one")
    assert beat(held, '{"done": 1}') == {held.token}
    found = row(run, "one")
    assert found.wake_at > now() + timedelta(seconds=10)
    assert found.progress == {"done": 1}
    assert beat(held) == {held.token}
    assert row(run, "one").progress == {"done": 1}


def test_a_beat_for_a_step_that_is_not_ours_any_more_changes_nothing(run):
    held = claim(run, "one")
    for values in ({"token": 5}, {"token": held.token, "status": "succeeded"}):
        change(run, "one", **values)
        before = stored(run)
        assert beat(held, '{"done": 1}') == set()
        assert stored(run) == before


# --- lost workers


def test_a_step_whose_lease_has_run_out_is_given_to_another(run):
    claim(run, "one")
    overdue(run, "one")
    (dispatch,) = failures.reap(row(run, "one"), USING)
    found = row(run, "one")
    assert (found.status, found.token, found.lost_workers, found.attempts) == ("queued", None, 1, 0)
    assert dispatch.step_run_id == found.pk
    assert found.wake_at > now()
    assert claim(run, "one") is not None


def test_a_lease_that_was_extended_meanwhile_is_not_reaped(run):
    held = claim(run, "one")
    overdue(run, "one")
    seen = row(run, "one")
    beat(held)
    before = stored(run)
    assert failures.reap(seen, USING) == []
    assert stored(run) == before


def test_a_step_that_another_has_claimed_meanwhile_is_not_reaped(run):
    claim(run, "one")
    overdue(run, "one")
    seen = row(run, "one")
    failures.reap(seen, USING)
    claim(run, "one")
    overdue(run, "one")
    before = stored(run)
    assert failures.reap(seen, USING) == []
    assert stored(run) == before


def test_a_lost_step_of_a_paused_run_is_held(run):
    claim(run, "one")
    run.pause()
    overdue(run, "one")
    assert failures.reap(row(run, "one"), USING) == []
    found = row(run, "one")
    assert (found.status, found.lost_workers, found.wake_at) == ("queued", 1, None)


def lose_a_worker(run):
    assert claim(run, "one", worker="host:7") is not None
    overdue(run, "one")
    failures.reap(row(run, "one"), USING)


def test_a_step_that_kills_three_workers_in_a_row_fails(run):
    lose_a_worker(run)
    lose_a_worker(run)
    assert fresh(run).status == "running"
    lose_a_worker(run)
    assert ledger(run) == {"one": "failed"}
    assert (fresh(run).status, row(run, "one").lost_workers) == ("failed", 3)
    failure = fresh(run).failures.get()
    assert (failure.error, failure.worker) == ("sequences.exceptions.WorkerLost", "host:7")
    assert failure.message == (
        f"Step 'one' of run {run.pk} lost 3 workers in a row, most recently host:7. "
        "Check its host for out-of-memory kills and crashes."
    )
    assert summary(snapshot.of(fresh(run))).endswith(
        "Find out why its workers died, then retry the run. Later steps are blocked."
    )
    run.retry()
    drain()
    assert fresh(run).status == "succeeded"


def test_how_many_workers_may_be_lost_is_a_setting(run):
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 1}):
        lose_a_worker(run)
    assert fresh(run).status == "failed"


def test_an_attempt_that_ends_forgets_the_workers_that_were_lost(run):
    lose_a_worker(run)
    lose_a_worker(run)
    fail(claim(run, "one"), final=False)
    assert row(run, "one").lost_workers == 0
    lose_a_worker(run)
    lose_a_worker(run)
    assert fresh(run).status == "running"


# --- failed attempts


def test_a_failed_attempt_is_recorded_and_due_again(run):
    held = claim(run, "one", worker="host:1")
    assert fail(held, final=False, error=KeyError("x")) is True
    found = row(run, "one")
    assert (found.status, found.attempts, found.lost_workers) == ("retrying", 1, 0)
    assert found.wake_at > now()
    failure = fresh(run).failures.get()
    assert (failure.step, failure.attempt, failure.worker) == ("one", 1, "host:1")
    assert (failure.error, failure.message) == ("KeyError", "'x'")
    assert "KeyError" in failure.traceback
    assert failure.step_run == found
    assert fresh(run).status == "running"


def test_a_final_failure_fails_the_step_and_its_run(run):
    fail(claim(run, "one"))
    found = row(run, "one")
    assert (found.status, found.attempts, found.wake_at) == ("failed", 1, None)
    assert found.finished_at is not None
    assert fresh(run).status == "failed"
    assert fresh(run).finished_at is not None


def test_a_failure_of_a_step_that_is_not_ours_any_more_is_not_recorded(run):
    held = claim(run, "one")
    change(run, "one", token=5)
    before = stored(run)
    assert fail(held) is False
    assert stored(run) == before
    assert not StepFailure.objects.exists()
    assert fresh(run).status == "running"


def test_a_failure_is_kept_also_if_its_text_is_nothing_that_a_database_takes(run):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    fail(claim(run, "one"), final=False, error=ValueError("a\0b \ud800 " + "x" * 10_000))
    fail(claim(run, "one"), final=False, error=Broken())
    first, second = fresh(run).failures.all()
    assert first.message.startswith("a\\0b \\ud800 xxx")
    assert len(first.message) == failures.MESSAGE
    assert second.message == "<RuntimeError in __str__>"


def retrying(run):
    """The claim of an attempt that has failed, and is to be tried again."""
    claimed = claim(run, "one")
    assert fail(claimed, final=False)
    return claimed


def begun_again(run):
    """The same after a retry by hand, whose first attempt has failed, too."""
    run.retry()
    return retrying(run)


def test_the_time_of_a_retry_is_set_where_its_attempt_is_still_the_last(run):
    claimed = retrying(run)
    failures.set_due(claimed, 60_000, USING)
    found = row(run, "one")
    assert timedelta(seconds=50) < found.due_at - now() <= timedelta(seconds=60)
    assert found.wake_at == found.due_at + timedelta(seconds=15)
    begun_again(run)
    before = stored(run)
    failures.set_due(claimed, 30_000, USING)
    assert stored(run) == before


def test_the_time_of_a_retry_that_has_been_claimed_already_is_not_set(run):
    claimed = retrying(run)
    claim(run, "one")
    before = stored(run)
    failures.set_due(claimed, 60_000, USING)
    assert stored(run) == before


def test_the_time_of_a_retry_is_set_in_a_pause_and_stays_held(run):
    claimed = retrying(run)
    run.pause()
    failures.set_due(claimed, 60_000, USING)
    found = row(run, "one")
    assert found.wake_at is None
    assert found.due_at > now() + timedelta(seconds=50)


def test_a_retry_that_is_given_up_fails_the_step(run):
    assert failures.give_up(retrying(run), USING) == []
    assert ledger(run) == {"one": "failed"}
    assert fresh(run).status == "failed"
    assert fresh(run).failures.count() == 1


def test_a_verdict_on_an_attempt_that_is_not_the_last_gives_nothing_up(run):
    claimed = retrying(run)
    newer = begun_again(run)
    assert (newer.attempts, row(run, "one").attempts) == (claimed.attempts, 1)
    before = stored(run)
    assert failures.give_up(claimed, USING) is None
    assert stored(run) == before
    assert failures.give_up(newer, USING) == []


def test_a_step_that_runs_again_already_is_not_given_up(run):
    claimed = retrying(run)
    claim(run, "one")
    before = stored(run)
    assert failures.give_up(claimed, USING) is None
    assert stored(run) == before
    assert fresh(run).status == "running"


def test_a_step_that_does_not_exist_is_not_given_up(run):
    claimed = retrying(run)
    run.delete()
    assert failures.give_up(claimed, USING) is None


# --- what the sweep takes


def never(queue, sent_at, now):
    return False


def always(queue, sent_at, now):
    return True


def test_nothing_is_taken_before_its_time_and_nothing_that_is_held(run):
    found = due.take(always, USING)
    assert (found.dispatches, found.expired) == ([], [])
    change(run, "one", wake_at=None)
    assert due.take(always, USING).dispatches == []


def test_a_queued_step_whose_message_is_lost_is_dispatched_again(run):
    overdue(run, "one")
    (dispatch,) = due.take(always, USING).dispatches
    assert dispatch.actor == "shop.Chain.one"
    assert row(run, "one").status == "queued"
    assert timedelta(seconds=10) < row(run, "one").wake_at - now() <= timedelta(seconds=15)


def test_a_step_that_is_taken_is_not_taken_by_the_next_sweep(run):
    overdue(run, "one")
    due.take(always, USING)
    assert due.take(always, USING).dispatches == []


def test_a_queued_step_that_is_only_late_is_looked_at_again_when_it_is_twice_as_late(run):
    change(run, "one", queued_at=now() - timedelta(seconds=100))
    overdue(run, "one")
    assert due.take(never, USING).dispatches == []
    assert timedelta(seconds=90) < row(run, "one").wake_at - now() <= timedelta(seconds=101)
    change(run, "one", queued_at=now() - HOUR)
    overdue(run, "one")
    due.take(never, USING)
    assert row(run, "one").wake_at - now() <= periods.MAX_LOOK_INTERVAL


def test_the_queue_and_the_time_of_the_message_are_asked_for(run):
    asked = []
    queued_at = now() - timedelta(seconds=100)
    change(run, "one", queued_at=queued_at)
    overdue(run, "one")
    due.take(lambda *values: asked.append(values) or False, USING)
    assert [(queue, sent_at) for queue, sent_at, _ in asked] == [("default", queued_at)]
    assert abs(asked[0][2] - now()) < timedelta(seconds=30)


def test_a_retry_is_late_only_from_its_own_time_on(run):
    failures.set_due(retrying(run), 60_000, USING)
    due_at = row(run, "one").due_at
    overdue(run, "one")
    asked = []
    due.take(lambda queue, sent_at, _: asked.append(sent_at) or False, USING)
    assert asked == [due_at]


def test_a_step_that_was_queued_late_after_its_delay_is_late_only_from_then_on(run):
    queued_at = now() - timedelta(seconds=20)
    change(run, "one", due_at=now() - HOUR, queued_at=queued_at)
    overdue(run, "one")
    asked = []
    due.take(lambda queue, sent_at, _: asked.append(sent_at) or False, USING)
    assert asked == [queued_at]


def test_a_waiting_step_whose_time_has_come_is_queued(run):
    change(run, "one", status="waiting", due_at=now() - HOUR, dispatches=4)
    overdue(run, "one")
    found = due.take(never, USING)
    assert [dispatch.step_run_id for dispatch in found.dispatches] == [row(run, "one").pk]
    queued = row(run, "one")
    assert (queued.status, queued.dispatches) == ("queued", 0)
    assert now() - queued.queued_at < timedelta(seconds=30)


def test_a_retrying_step_is_dispatched_with_its_count(run):
    retrying(run)
    overdue(run, "one")
    (dispatch,) = due.take(always, USING).dispatches
    assert dispatch.attempts == 1
    assert row(run, "one").status == "retrying"


def test_a_running_step_whose_lease_is_over_is_handed_to_the_reaper_as_it_is(run):
    claim(run, "one")
    overdue(run, "one")
    before = stored(run)
    found = due.take(always, USING)
    assert found.dispatches == []
    assert [one.pk for one in found.expired] == [before["id"]]
    assert stored(run) == before


@pytest.mark.parametrize("status", ["queued", "retrying"])
def test_an_accepted_dispatch_doubles_the_time_to_the_next(run, status):
    pk = row(run, "one").pk
    change(run, "one", status=status)
    for seconds in (15, 30, 60, 120, 240, 300, 300):
        overdue(run, "one")
        due.take(always, USING)
        left = row(run, "one").wake_at - now()
        assert timedelta(seconds=seconds - 5) < left <= timedelta(seconds=seconds)
        due.accepted([pk], USING)


def test_an_accepted_dispatch_of_a_step_that_is_claimed_already_counts_nothing(run):
    held = claim(run, "one")
    due.accepted([held.step_run_id], USING)
    assert row(run, "one").dispatches == 0


# --- steps that the code does not know


def plan_of(cls, *names):
    """The stored plan of a release in which the class has these steps."""
    label = cls._definition.label
    nodes = [Node(name, (), f"{label}.{name}", "default") for name in names]
    return plans.store(Plan.build(label, nodes), USING)


def start_of_plan(cls, plan_id, step):
    run = cls.start({}).run
    SequenceRun.objects.filter(pk=run.pk).update(plan=plan_id)
    StepRun.objects.filter(run=run.pk).update(step=step)
    overdue(run, step)
    return fresh(run)


def test_a_step_of_an_earlier_plan_that_this_release_removed_fails_visibly():
    cls = chain()
    plan_id = plan_of(cls, "removed")
    run = start_of_plan(cls, plan_id, "removed")
    assert sweep(AssumeLost(), USING) == 0
    assert ledger(run) == {"removed": "failed"}
    assert fresh(run).status == "failed"
    failure = fresh(run).failures.get()
    assert failure.error == "sequences.exceptions.UnknownStep"
    assert failure.message.startswith("shop.Chain has no step 'removed'.")
    assert failure.message.endswith("give the step aliases=['removed'].")
    assert "Retry the run once the code has the step again, or skip the step." in summary(
        snapshot.of(fresh(run))
    )
    run.refresh_from_db()
    run.skip("removed")
    assert run.status == "succeeded"


def test_a_step_of_a_later_plan_waits_for_a_worker_of_that_release():
    cls = chain()
    cls.start({})  # this release's plan
    plan_id = plan_of(cls, "added")
    run = start_of_plan(cls, plan_id, "added")
    assert sweep(AssumeLost(), USING) == 1
    assert ledger(run) == {"added": "queued"}
    assert fresh(run).status == "running"
    assert not StepFailure.objects.exists()


def test_a_removed_step_is_not_failed_once_it_is_skipped_or_held():
    cls = chain()
    plan_id = plan_of(cls, "removed")
    run = start_of_plan(cls, plan_id, "removed")
    seen = row(run, "removed")
    change(run, "removed", wake_at=None)
    failures.fail_unknown(seen, ValueError(), USING)
    assert ledger(run) == {"removed": "queued"}
    run.skip("removed")
    failures.fail_unknown(seen, ValueError(), USING)
    assert ledger(run) == {"removed": "skipped"}


def test_the_steps_of_a_class_that_is_not_known_here_are_dispatched():
    with isolate_sequences():
        run = chain().start({}).run
    overdue(run, "one")
    assert sweep(AssumeLost(), USING) == 1
    assert ledger(run) == {"one": "queued"}


# --- transactions


class Deadlock(Exception):
    sqlstate = "40P01"


def given_up(error=None):
    failure = OperationalError(*(error or ("deadlock detected",)))
    failure.__cause__ = None if error else Deadlock()
    return failure


def failing(times, error):
    calls = []

    def function():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return function


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "error",
    [
        given_up(),
        given_up((1213, "Deadlock found")),
        given_up((1205, "Lock wait timeout exceeded")),
        given_up((1020, "Record has changed")),
        given_up(("database is locked",)),
    ],
    ids=str,
)
def test_a_transaction_that_the_database_gave_up_is_played_again(error):
    assert locking.transact(USING, failing(3, error)) == 4


@pytest.mark.django_db(transaction=True)
def test_what_a_replayed_transaction_wrote_is_written_once():
    first = [given_up()]

    def write():
        StoredPlan.objects.create(sequence="x", fingerprint="y", graph={}, created_at=now())
        if first:
            raise first.pop()

    locking.transact(USING, write)
    assert StoredPlan.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_replays_have_an_end(monkeypatch):
    monkeypatch.setattr(locking, "back_off", lambda replay: None)
    function = failing(locking.REPLAYS + 1, given_up())
    with pytest.raises(OperationalError):
        locking.transact(USING, function)
    assert function() == locking.REPLAYS + 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "error", [IntegrityError("twice"), DatabaseError("wrong"), ValueError("database is locked")]
)
def test_any_other_error_is_not_played_again(error):
    function = failing(1, error)
    with pytest.raises(type(error)):
        locking.transact(USING, function)
    assert function() == 2


def test_inside_the_callers_transaction_nothing_is_played_again():
    function = failing(1, given_up())
    with transaction.atomic():
        with pytest.raises(OperationalError):
            locking.transact(USING, function)
        # The savepoint is rolled back, and the caller's transaction goes on.
        assert StoredPlan.objects.count() == 0
    assert function() == 2


# --- starts


def test_a_start_leaves_a_run_and_its_first_steps(run):
    assert_steps(run, [("one", "queued")])
    found = fresh(run)
    assert (found.status, found.version, found.data) == (RunStatus.RUNNING, 0, {"n": 1})
    assert found.plan.plan.names == ("one", "two")


def test_a_delayed_start_waits():
    run = chain().start({}, delay=HOUR).run
    found = row(run, "one")
    assert found.status == "waiting"
    assert timedelta(minutes=59) < found.due_at - now() <= HOUR
    assert found.wake_at == found.due_at
    assert claim(run, "one") is None
