"""A run that is not finished by its deadline fails, and its children with it; its undos run."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from dramatiq.middleware import SkipMessage

from sequences import (
    Sequence,
    define,
    event,
    on_failure,
    signals,
    start_definition,
    step,
    subsequence,
)
from sequences.exceptions import InvalidDefinition, InvalidTransition, SequenceError
from sequences.flows.jobs import job
from sequences.inspection import snapshot
from sequences.inspection.diagnosis import summary
from sequences.models import RunDeadline, SequenceRun, StepRun
from sequences.testing import clock, drain, run_sequence
from sequences.transitions import deadlines
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fresh, ledger, perform, row
from tests.locks import held

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
#: The last two are a date in some time zones only, and not in that of the database or of a page.
NO_DEADLINES = [
    timedelta(),
    -HOUR,
    5,
    timezone.now().replace(tzinfo=None),
    datetime.max.replace(tzinfo=timezone.get_fixed_timezone(-720)),
    datetime.max.replace(tzinfo=UTC),
]


def sweep_now():
    return sweep(AssumeLost(), "default")


def approval(**options):
    class Loan(Sequence):
        class Meta:
            app_label = "shop"
            deadline = HOUR

        @step(max_retries=0, **options)
        def check(self):
            self.data["checked"] = True

        approve = event()

        @step
        def pay(self): ...

    return Loan


def test_a_run_that_waits_fails_at_its_deadline():
    with clock() as moving:
        run = approval().start().run
        drain()
        moving.move(HOUR - timedelta(seconds=10))
        sweep_now()
        assert fresh(run).status == "running"
        moving.move(timedelta(seconds=11))
        sweep_now()
    run = fresh(run)
    assert run.status == "failed"
    assert ledger(run) == {"check": "succeeded", "approve": "cancelled"}
    failure = run.failures.get()
    assert (failure.step, failure.error) == ("approve", "sequences.exceptions.DeadlineExceeded")
    assert "Unfinished steps: approve." in failure.message
    assert not RunDeadline.objects.exists()


def test_a_run_that_is_finished_has_none_to_miss():
    with clock() as moving:
        run = approval().start().run
        run.deliver("approve")
        drain()
        assert fresh(run).status == "succeeded"
        moving.move(2 * HOUR)
        sweep_now()
    assert fresh(run).status == "succeeded"
    assert not fresh(run).failures.exists()
    assert not RunDeadline.objects.exists()


@pytest.mark.parametrize("given", ["timedelta", "datetime"])
def test_a_start_has_a_deadline_of_its_own(given):
    minute = timedelta(minutes=1)
    deadline = minute if given == "timedelta" else timezone.now() + minute
    with clock() as moving:
        run = approval().start({}, deadline=deadline).run
        drain()
        moving.move(minute + timedelta(seconds=2))
        drain()
    assert fresh(run).status == "failed"


def test_a_start_may_have_none():
    with clock() as moving:
        run = approval().start({}, deadline=None).run
        moving.move(2 * HOUR)
        drain()
    assert fresh(run).status == "running"


def test_many_have_theirs():
    loan = approval()
    first, _ = loan.start_many([{}, ({}, {"deadline": None})])
    assert [one.run_id for one in RunDeadline.objects.all()] == [first.run.pk]
    first = loan.start({}, key="k", deadline=2 * HOUR)
    again = loan.start({}, key="k")
    assert first.run == again.run
    assert RunDeadline.objects.count() == 2


@pytest.mark.parametrize("deadline", NO_DEADLINES)
def test_what_is_no_deadline_is_an_error(deadline):
    with pytest.raises(SequenceError, match="deadline is"):
        approval().start({}, deadline=deadline)


def test_an_option_that_start_does_not_have_is_a_type_error():
    with pytest.raises(TypeError, match=r"has no option 'dedline'\. Did you mean 'deadline'"):
        approval().start({}, dedline=HOUR)
    with pytest.raises(TypeError, match=r"Pass data as a dict: \w+\.start\(\{'name': …\}\)\."):
        approval().start(name="Joel")
    assert not SequenceRun.objects.exists()


@pytest.mark.parametrize("value", [timedelta(), 5, "1h"])
def test_a_meta_that_cannot_be_fails_the_class(value):
    with pytest.raises(InvalidDefinition, match="deadline is"):

        class Wrong(Sequence):
            class Meta:
                app_label = "shop"
                deadline = value


def test_what_was_done_is_undone_and_on_failure_knows_why():
    seen = []

    class Booking(Sequence):
        class Meta:
            app_label = "shop"
            deadline = HOUR

        @step
        def book(self): ...

        @book.undo
        def cancel(self):
            seen.append("cancel")

        confirmed = event()

        @on_failure
        def tell(self):
            seen.append((self.failure.step, self.failure.error.rpartition(".")[2]))

    run = run_sequence(Booking).run
    assert run.status == "failed"
    assert seen == ["cancel", ("confirmed", "DeadlineExceeded")]
    assert summary(snapshot.of(run)).endswith(
        "Completed steps were rolled back. To run it again, restart it from a step."
    )


def test_what_executes_ends_first_and_is_undone_then():
    undone = []

    class Booking(Sequence):
        class Meta:
            app_label = "shop"
            deadline = HOUR

        @step
        def book(self): ...

        @book.undo
        def cancel(self):
            undone.append(self.run.pk)

        @step
        def confirm(self): ...

    with clock() as moving:
        run = Booking.start().run
        working = claim(run, "book")
        moving.move(HOUR + timedelta(seconds=1))
        StepRun.objects.update(wake_at=timezone.now() + 3 * HOUR)  # its worker is alive
        sweep_now()
        assert fresh(run).status == "undoing"
        assert undone == []
        perform(working)
        drain()
    assert fresh(run).status == "failed"
    assert undone == [run.pk]
    assert ledger(run)["book"] == "succeeded"
    assert "confirm" not in ledger(run)


def test_what_executes_loses_its_commit_where_nothing_is_undone():
    with clock() as moving:
        run = approval().start().run
        working = claim(run, "check")
        moving.move(HOUR + timedelta(seconds=1))
        StepRun.objects.update(wake_at=timezone.now() + 3 * HOUR)
        sweep_now()
        assert fresh(run).status == "failed"
        with pytest.raises(SkipMessage):
            perform(working)
    assert fresh(run).data == {}
    assert ledger(run) == {"check": "cancelled"}


def test_its_children_end_with_it():
    class Parent(Sequence):
        class Meta:
            app_label = "shop"
            deadline = HOUR / 2

        child = subsequence("shop.Loan")

    approval()
    run = run_sequence(Parent).run
    child = SequenceRun.objects.get(parent__run=run.pk)
    assert (run.status, child.status) == ("failed", "cancelled")
    assert ledger(run) == {"child": "cancelled"}


def test_a_child_that_misses_its_own_fails_its_parent():
    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        child = subsequence("shop.Loan")

    approval()
    run = run_sequence(Parent).run
    child = SequenceRun.objects.get(parent__run=run.pk)
    assert (run.status, child.status) == ("failed", "failed")


def test_a_paused_run_has_one_too():
    with clock() as moving:
        run = approval().start().run
        run.pause()
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
    assert fresh(run).status == "failed"


def test_a_retry_goes_on_without_a_deadline():
    with clock() as moving:
        run = approval().start().run
        drain()
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
        fresh(run).retry()
        moving.move(9 * HOUR)
        drain()
        assert fresh(run).status == "running"
        fresh(run).deliver("approve")
        drain()
    assert fresh(run).status == "succeeded"


def test_the_failure_is_heard(monkeypatch):
    heard = []

    def hear(sender, run, **kwargs):
        heard.append((sender.__name__, run.status))

    signals.run_failed.connect(hear)
    try:
        run_sequence(approval())
    finally:
        signals.run_failed.disconnect(hear)
    assert heard == [("Loan", "failed")]


def test_two_sweeps_fail_it_once():
    with clock() as moving:
        run = approval().start().run
        drain()
        moving.move(HOUR + timedelta(seconds=1))
        due = deadlines.due("default")
        assert due == [run.pk]
        for _ in range(2):
            deadlines.expire(run.pk, "default")
    assert fresh(run).failures.count() == 1


@pytest.mark.only_on("postgresql", "mysql")
def test_a_run_that_is_locked_has_its_turn_later_and_costs_no_other_one_anything():
    loan = approval()
    with clock() as moving:
        runs = [loan.start().run for _ in range(2)]
        drain()
        moving.move(HOUR + timedelta(seconds=1))
        with held(lambda: SequenceRun.objects.select_for_update().get(pk=runs[0].pk)):
            sweep_now()
        assert [fresh(run).status for run in runs] == ["running", "failed"]
        sweep_now()
    assert fresh(runs[0]).status == "failed"


def test_an_error_puts_one_off_and_costs_no_other_one_anything(monkeypatch, caplog):
    loan = approval()
    expire = deadlines.expire

    def fail_first(run_id, using):
        if run_id == runs[0].pk:
            raise RuntimeError("broken")
        return expire(run_id, using)

    with clock() as moving:
        runs = [loan.start().run for _ in range(2)]
        drain()
        moving.move(HOUR + timedelta(seconds=1))
        with monkeypatch.context() as patch:
            patch.setattr(deadlines, "expire", fail_first)
            sweep_now()
        assert [fresh(run).status for run in runs] == ["running", "failed"]
        assert "as failed after its deadline" in caplog.text
        sweep_now()
        assert fresh(runs[0]).status == "running"
        moving.move(timedelta(minutes=1))
        sweep_now()
    assert fresh(runs[0]).status == "failed"


def test_who_has_no_deadline_pays_nothing():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self): ...

    run_sequence(Plain)
    with CaptureQueriesContext(connection) as queries:
        Plain.start()
    assert not [query for query in queries if "deadline" in query["sql"].lower()]


def test_a_definition_that_is_data_may_have_one():
    @job("wait_for_it")
    def wait_for_it(): ...

    definition = {"steps": {"ask": {"event": {}}, "done": {"job": "wait_for_it"}}}
    cls = define({"name": "shop.Asked", "deadline": "1 hour", **definition})
    assert cls._definition.deadline == HOUR
    with clock() as moving:
        runs = [cls.start().run, start_definition(definition, deadline=HOUR).run]
        drain()
        moving.move(HOUR + timedelta(seconds=1))
        drain()
    assert [fresh(run).status for run in runs] == ["failed", "failed"]


def test_the_sentence_says_it(admin_client):
    run = run_sequence(approval()).run
    page = admin_client.get(f"/admin/job_sequences/sequencerun/{run.pk}/change/").content.decode()
    assert "DeadlineExceeded" in page
    assert row(run, "approve").status == "cancelled"


# --- moved


def waiting(**options):
    """A run that waits for its approval."""
    run = approval().start({}, **options).run
    drain()
    return run


def deadline_of(run):
    return RunDeadline.objects.filter(run=run.pk).values_list("due_at", flat=True).first()


def test_it_is_moved_to_a_later_time():
    with clock() as moving:
        run = waiting()
        run.set_deadline(3 * HOUR, by="ann", reason="the customer is away")
        moving.move(2 * HOUR)
        sweep_now()
        assert fresh(run).status == "running"
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
    assert fresh(run).status == "failed"


def test_it_is_moved_to_an_earlier_time_and_to_a_moment():
    with clock() as moving:
        run = waiting()
        moment = timezone.now() + timedelta(minutes=1)
        run.set_deadline(moment)
        assert (run.deadline.due_at, deadline_of(run)) == (moment, moment)
        moving.move(timedelta(minutes=1, seconds=2))
        sweep_now()
    assert fresh(run).status == "failed"


def test_it_is_removed():
    with clock() as moving:
        run = waiting()
        run.set_deadline(None)
        assert not RunDeadline.objects.exists()
        run.set_deadline(None)
        moving.move(9 * HOUR)
        drain()
    assert fresh(run).status == "running"


def test_a_run_without_one_gets_one():
    with clock() as moving:
        run = waiting(deadline=None)
        run.set_deadline(HOUR)
        moving.move(HOUR + timedelta(seconds=1))
        drain()
    assert fresh(run).status == "failed"


def test_a_retry_may_have_another():
    with clock() as moving:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
        run = fresh(run)
        run.retry()
        run.set_deadline(HOUR)
        drain()
        assert fresh(run).status == "running"
        moving.move(HOUR + timedelta(seconds=1))
        drain()
    assert fresh(run).status == "failed"


def test_its_operation_says_by_whom_and_from_when_to_when():
    run = waiting(deadline=None)
    moment = timezone.now().replace(microsecond=0) + HOUR
    run.set_deadline(moment, by="ann", reason="they are slow")
    run.set_deadline(None)
    first, second = run.operations.order_by("pk")
    assert (first.action, first.by, first.reason) == ("set_deadline", "ann", "they are slow")
    text = moment.isoformat()
    assert (first.before, first.after) == ({"deadline": None}, {"deadline": text})
    assert (second.before, second.after) == ({"deadline": text}, {"deadline": None})


def test_a_deadline_that_stays_as_it_is_leaves_no_operation():
    run = waiting(deadline=None)
    run.set_deadline(None, by="ann")
    moment = timezone.now() + HOUR
    run.set_deadline(moment, by="ann")
    run.set_deadline(moment, by="joel")
    assert [one.by for one in run.operations.all()] == ["ann"]
    assert deadline_of(run) == moment


def test_asynchronous_code_moves_it():
    run = waiting()
    async_to_sync(run.aset_deadline)(None, by="ann")
    assert not RunDeadline.objects.exists()
    assert run.operations.get().by == "ann"


@pytest.mark.parametrize("deadline", NO_DEADLINES)
def test_what_is_no_deadline_moves_nothing(deadline):
    run = waiting()
    before = deadline_of(run)
    with pytest.raises(SequenceError, match="set_deadline: deadline is"):
        run.set_deadline(deadline)
    assert deadline_of(run) == before
    assert not run.operations.exists()


def test_a_run_that_is_finished_or_being_undone_has_none():
    run = waiting()
    SequenceRun.objects.update(status="undoing")
    with pytest.raises(InvalidTransition, match=r"Allowed: running or paused\."):
        fresh(run).set_deadline(HOUR)
    run = run_sequence(approval()).run
    with pytest.raises(InvalidTransition):
        run.set_deadline(HOUR)
    assert not RunDeadline.objects.filter(run=run.pk).exists()


def test_a_sweep_that_has_seen_it_pass_spares_a_run_whose_deadline_was_moved():
    with clock() as moving:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        assert deadlines.due("default") == [run.pk]
        run.set_deadline(HOUR)  # between the look and the lock
        assert deadlines.expire(run.pk, "default") == []
        assert fresh(run).status == "running"
        assert deadline_of(run) > timezone.now() + HOUR
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
    assert fresh(run).status == "failed"


def test_a_sweep_that_cannot_fail_a_run_leaves_a_deadline_that_was_moved():
    with clock() as moving:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        run.set_deadline(3 * HOUR)  # between its error and its note of that
        moved = deadline_of(run)
        deadlines.put_off(run.pk, "default")
        assert deadline_of(run) == moved


def test_a_sweep_that_was_first_leaves_nothing_to_be_moved():
    with clock() as moving:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
        with pytest.raises(InvalidTransition):
            run.set_deadline(HOUR)
    assert fresh(run).failures.count() == 1
    assert not RunDeadline.objects.exists()


@pytest.mark.only_on("postgresql", "mysql")
def test_a_sweep_beside_a_move_waits_for_it_and_spares_the_run():
    with clock() as moving:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        with held(lambda: fresh(run).set_deadline(HOUR), commits=True):
            sweep_now()
            assert fresh(run).status == "running"
        sweep_now()
    assert (fresh(run).status, fresh(run).failures.count()) == ("running", 0)


def closing(function):
    """What it returns, in a thread, whose connection is closed after it."""
    try:
        return function()
    finally:
        connections.close_all()


@pytest.mark.only_on("postgresql", "mysql")
def test_a_move_beside_a_sweep_waits_for_it_and_is_refused():
    with clock() as moving, ThreadPoolExecutor(1) as pool:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        with held(lambda: deadlines.expire(run.pk, "default"), commits=True):
            moved = pool.submit(closing, lambda: fresh(run).set_deadline(HOUR))
            time.sleep(0.2)
            assert not moved.done()
        with pytest.raises(InvalidTransition):
            moved.result(60)
    assert (fresh(run).status, fresh(run).failures.count()) == ("failed", 1)
    assert not RunDeadline.objects.exists()


@pytest.mark.only_on("postgresql", "mysql")
def test_a_run_that_ends_beside_a_sweep_has_ended():
    with clock() as moving, ThreadPoolExecutor(1) as pool:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        with held(lambda: fresh(run).finish(), commits=True):
            expired = pool.submit(closing, lambda: deadlines.expire(run.pk, "default"))
            time.sleep(0.2)
            assert not expired.done()
        assert expired.result(60) == []
    assert (fresh(run).status, fresh(run).failures.count()) == ("succeeded", 0)


@pytest.mark.only_on("postgresql", "mysql")
def test_a_sweep_that_cannot_fail_a_run_does_not_wait_for_whoever_moves_its_deadline():
    with clock() as moving:
        run = waiting()
        moving.move(HOUR + timedelta(seconds=1))
        before = deadline_of(run)
        with held(lambda: fresh(run).set_deadline(HOUR)):
            deadlines.put_off(run.pk, "default")
        assert deadline_of(run) == before


# --- guards


def test_a_deadline_that_has_not_passed_does_not_expire():
    run = waiting()
    assert deadlines.due("default") == []
    assert deadlines.expire(run.pk, "default") == []
    assert fresh(run).status == "running"
    assert deadline_of(run) is not None


def test_one_that_passes_while_the_run_is_undone_or_after_its_end_changes_nothing():
    with clock() as moving:
        runs = [waiting(), waiting()]
        SequenceRun.objects.filter(pk=runs[0].pk).update(status="undoing", final_status="cancelled")
        SequenceRun.objects.filter(pk=runs[1].pk).update(status="cancelled")
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
        for run, status in zip(runs, ("undoing", "cancelled"), strict=True):
            stored = fresh(run)
            assert (stored.status, stored.failures.count()) == (status, 0)
    assert not RunDeadline.objects.exists()


def test_a_run_that_is_gone_leaves_no_deadline():
    with clock() as moving:
        run = waiting()
        SequenceRun._base_manager.filter(pk=run.pk)._raw_delete("default")
        moving.move(HOUR + timedelta(seconds=1))
        assert deadlines.expire(run.pk, "default") == []
    assert not RunDeadline.objects.exists()


def test_a_fan_out_is_what_the_run_was_at_and_not_its_items():

    class Wide(Sequence):
        class Meta:
            app_label = "shop"
            deadline = HOUR

        @step(each=lambda self: range(2))
        def ask(self, number): ...

    with clock() as moving:
        run = Wide.start().run
        perform(claim(run, "ask"))
        run.pause()
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
    failure = fresh(run).failures.get()
    assert (failure.step, failure.item) == ("ask", -1)
    assert failure.message.endswith("Unfinished steps: ask.")
    text = summary(snapshot.of(fresh(run)))
    assert text.endswith("Unfinished steps: ask. Retry the run to continue without a deadline.")


def test_those_that_have_waited_longest_come_first_and_not_too_many_at_once(monkeypatch):
    monkeypatch.setattr(deadlines, "RUNS_PER_SWEEP", 2)
    loan = approval()
    with clock() as moving:
        runs = [loan.start({}, deadline=HOUR / number).run for number in (1, 2, 4)]
        moving.move(2 * HOUR)
        assert deadlines.due("default") == [runs[2].pk, runs[1].pk]
        assert deadlines.due("default") == [runs[2].pk, runs[1].pk], "a look changes nothing"


def test_all_steps_are_named_and_the_oldest_has_failed():
    class Both(Sequence):
        class Meta:
            app_label = "shop"
            deadline = HOUR

        first = event(after=[])
        second = event(after=[])

    failure = run_sequence(Both).run.failures.get()
    assert failure.step == "first"
    assert "Unfinished steps: first, second." in failure.message


def test_a_run_without_an_unfinished_step_fails_all_the_same():
    """Its last commit is not made yet, or never will be."""
    with clock() as moving:
        run = waiting()
        StepRun.objects.filter(run=run.pk).update(status="succeeded")
        moving.move(HOUR + timedelta(seconds=1))
        sweep_now()
    assert (fresh(run).status, fresh(run).failures.count()) == ("failed", 0)
