"""Signals after the commit: of every way to each state, once; for nothing where none listens."""

import logging
from collections import Counter
from datetime import timedelta

import dramatiq
import pytest
from django.db import connection, transaction
from django.test import TestCase
from django.test.utils import CaptureQueriesContext
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from sequences import Abort, Sequence, event, finish, repeat, signals, step, subsequence
from sequences.definitions import registry
from sequences.engine.executor import StepExecution
from sequences.models import SequenceRun, StepRun
from sequences.testing import clock, drain, isolate_sequences
from sequences.testing import run_sequence as run_all
from sequences.transitions import failures
from sequences.worker.sweeper import AssumeLost, Sweeper, sweep
from tests.engine import claim, fail, fresh, messages, overdue, perform, row
from tests.integration.test_middleware import deliver
from tests.portable import Portable, choose
from tests.sagas import nothing, saga

pytestmark = pytest.mark.django_db(transaction=True)


class Heard(list):
    """What was received: names of signals, with the step's where there is one."""

    def __init__(self):
        super().__init__()
        self.details = []
        self.receivers = []

    def listen(self, *names, sender=None):
        for name in names or signals.__all__:
            self._connect(name, sender)
        return self

    def _connect(self, name, sender):
        def receive(signal, sender, run, **more):
            assert not connection.in_atomic_block or connection.savepoint_ids
            self.append(" ".join([name, *_step(more)]))
            self.details.append({"sender": sender, "run": run, **more})

        getattr(signals, name).connect(receive, weak=False, sender=sender)
        self.receivers.append((name, receive, sender))

    def forget(self):
        for name, receive, sender in self.receivers:
            assert getattr(signals, name).disconnect(receive, sender=sender)


def _step(more):
    if "step_run" not in more:
        return []
    row = more["step_run"]
    name = row.step if row.item < 0 else f"{row.step}[{row.item}]"
    return [name, str(more["failure"].attempt)] if "failure" in more else [name]


@pytest.fixture
def heard():
    heard = Heard()
    yield heard
    heard.forget()


def two_steps(handoff="broker", **options):
    class Chain(Sequence):
        Meta = type("Meta", (), {"app_label": "shop", "handoff": handoff})

        @step(**options)
        def one(self):
            self.data["one"] = 1
            if self.attempt <= self.data.get("fails", 0):
                raise ValueError("not yet")

        @step
        def two(self):
            pass

    return Chain


def test_a_run_that_succeeds_is_told_from_its_start_to_its_end(heard):
    cls = two_steps()
    heard.listen()
    run = run_all(cls).run
    assert heard == [
        "run_started",
        "step_succeeded one",
        "step_succeeded two",
        "run_succeeded",
    ]
    assert [one["run"].pk for one in heard.details] == [run.pk] * 4
    assert {one["sender"] for one in heard.details} == {cls}


def test_what_is_received_was_read_after_the_commit(heard):
    cls = two_steps()
    heard.listen()
    run_all(cls, n=1)
    started, first, second, ended = heard.details
    assert (started["run"].data, started["run"].status) == ({"n": 1}, "running")
    assert first["run"].data == {"n": 1, "one": 1}
    assert (first["step_run"].status, first["step_run"].run) == ("succeeded", first["run"])
    assert (second["run"].status, ended["run"].status) == ("succeeded", "succeeded")
    assert ended["run"].finished_at is not None


def test_a_failed_attempt_is_retried_or_final_and_never_both(heard):
    cls = two_steps(max_retries=2)
    heard.listen()
    run_all(cls, fails=3)
    assert heard == [
        "run_started",
        "step_retrying one 1",
        "step_retrying one 2",
        "step_failed one 3",
        "run_failed",
    ]
    failure = heard.details[3]["failure"]
    assert (failure.error, failure.message) == ("ValueError", "not yet")
    assert heard.details[3]["step_run"].status == "failed"


def test_a_retry_that_succeeds_is_told_as_that(heard):
    heard.listen()
    run_all(two_steps(), fails=1)
    assert heard[1:3] == ["step_retrying one 1", "step_succeeded one"]
    assert heard.details[1]["step_run"].status == "retrying"
    assert heard.details[1]["failure"].attempt == 1


def test_an_attempt_that_begins_anew_after_a_retry_by_hand_has_the_failure_of_its_own(heard):
    cls = two_steps(max_retries=0)
    run = run_all(cls, fails=1).run
    heard.listen("step_failed")
    run.edit({"fails": 2})
    run.retry()
    drain()
    newest = run.failures.order_by("-pk")[0]
    assert [one["failure"] for one in heard.details] == [newest]
    assert run.failures.count() == 2


def test_an_abort_is_final_at_once(heard):
    class Aborts(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            raise Abort("no")

    heard.listen()
    run_all(Aborts)
    assert heard == ["run_started", "step_failed one 1", "run_failed"]


def test_a_repeat_is_no_success_and_a_skipped_step_neither(heard):
    class Polls(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def poll(self):
            return repeat(timedelta(hours=1)) if self.step_run.repeats < 2 else None

        @step(when=lambda sequence: False)
        def never(self):
            pass

        @step(delay=timedelta(hours=1))
        def later(self):
            pass

    heard.listen()
    run_all(Polls)
    assert heard == [
        "run_started",
        "step_succeeded poll",
        "step_succeeded later",
        "run_succeeded",
    ]


def test_each_item_succeeds_and_then_the_step_that_has_waited_for_them(heard):
    class Fans(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each="numbers", allow_failed=1)
        def pack(self, number):
            if number == 2:
                raise ValueError(number)

    heard.listen()
    run_all(Fans, numbers=[1, 2])
    assert heard == [
        "run_started",
        "step_succeeded pack[0]",
        "step_failed pack[1] 1",
        "step_succeeded pack",
        "run_succeeded",
    ]


def test_events_and_children_succeed_as_steps_when_their_wait_is_over(heard):
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def inside(self):
            pass

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()
        ship = subsequence(Child)

    run = Parent.start().run
    heard.listen()
    drain()
    assert heard == []
    run.deliver("approval", {"by": "ada"})
    drain()
    assert heard == [
        "step_succeeded approval",
        "run_started",
        "step_succeeded inside",
        "run_succeeded",
        "step_succeeded ship",
        "run_succeeded",
    ]
    assert [one["sender"] for one in heard.details] == [Parent, Child, Child, Child, Parent, Parent]


def test_a_run_that_is_undone_fails_when_that_is_over(heard):
    cls = saga(tell=nothing)
    heard.listen()
    run_all(cls)
    assert heard == [
        "run_started",
        "step_succeeded charge",
        "step_failed ship 1",
        "step_succeeded refund",
        "step_succeeded tell",
        "run_failed",
    ]


def test_a_step_that_finishes_the_run_succeeds_and_so_does_the_run(heard):
    class Early(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            return finish()

        @step
        def two(self):
            pass

    heard.listen()
    run_all(Early)
    assert heard == ["run_started", "step_succeeded one", "run_succeeded"]


@pytest.mark.parametrize(("act", "expected"), [("cancel", "cancelled"), ("finish", "succeeded")])
def test_people_end_runs_and_their_children(heard, act, expected):
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        wait = event()

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        ship = subsequence(Child)

    run = Parent.start().run
    drain()
    heard.listen()
    getattr(run, act)()
    assert heard == ["run_cancelled", f"run_{expected}"]
    assert heard.details[0]["sender"] is Child
    assert [one["run"].status for one in heard.details] == ["cancelled", expected]


def test_a_skip_ends_the_run_but_no_step_succeeds(heard):
    class One(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            pass

    run = One.start().run
    heard.listen()
    run.skip("one")
    assert heard == ["run_succeeded"]


def test_a_worker_that_dies_too_often_fails_its_step(heard, settings):
    settings.SEQUENCES = {"MAX_LOST_WORKERS": 2}
    run = two_steps().start().run
    heard.listen()
    for expected in ([], ["step_failed one 1", "run_failed"]):
        assert claim(run, "one") is not None
        overdue(run, "one")
        sweep(AssumeLost(), "default")
        assert heard == expected
    assert heard.details[0]["failure"].error == "sequences.exceptions.WorkerLost"


def test_a_step_that_nobody_will_ever_know_fails(heard):
    run = two_steps().start().run
    heard.listen()
    failures.fail_unknown(row(run, "one"), LookupError("gone"), "default")
    assert heard == ["step_failed one 1", "run_failed"]


def test_only_runs_that_are_really_created_have_started(heard):
    cls = two_steps()
    heard.listen()
    first = cls.start({}, key="a").run
    cls.start({}, key="a")
    many = cls.start_many([({}, {"key": "a"}), ({}, {"key": "b"}), {}])
    assert heard == ["run_started"] * 3
    assert [one["run"].pk for one in heard.details] == [first.pk, many[1].run.pk, many[2].run.pk]


def test_what_is_rolled_back_is_not_told(heard):
    cls = two_steps()
    heard.listen()
    with transaction.atomic():
        cls.start()
        transaction.set_rollback(True)
    with transaction.atomic():
        cls.start()
        assert heard == []
    assert heard == ["run_started"]


def test_a_step_whose_commit_is_lost_did_not_succeed(heard):
    class Cancels(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            StepRun.objects.filter(pk=self.step_run.pk).update(token=1)

    run = Cancels.start().run
    heard.listen()
    held = claim(run, "one")
    run.cancel()
    with pytest.raises(Exception, match="lost its claim"):
        perform(held)
    assert heard == ["run_cancelled"]


def test_what_a_receiver_raises_is_logged_and_hinders_nobody(heard, caplog):
    def broken(**kwargs):
        raise ZeroDivisionError("in a receiver")

    signals.step_succeeded.connect(broken)
    try:
        heard.listen("step_succeeded", "run_succeeded")
        sequence = run_all(two_steps())
    finally:
        signals.step_succeeded.disconnect(broken)
    assert sequence.run.status == "succeeded"
    assert heard == ["step_succeeded one", "step_succeeded two", "run_succeeded"]
    assert [record.name for record in caplog.records] == ["django.dispatch"] * 2
    assert "in a receiver" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, TimeLimitExceeded, Shutdown])
@pytest.mark.parametrize("handoff", ["broker", "direct"])
def test_what_comes_out_of_a_receiver_keeps_no_next_step_from_its_worker(error, handoff):
    def leaves(**kwargs):
        raise error("now")

    run = two_steps(handoff=handoff).start().run
    signals.step_succeeded.connect(leaves)
    try:
        while waiting := messages():
            dramatiq.get_broker().queues["default"].get_nowait()
            deliver(waiting[0])
    finally:
        signals.step_succeeded.disconnect(leaves)
    assert fresh(run).status == "succeeded"
    assert not run.failures.exists()


def test_a_receiver_that_leaves_stops_no_sweep(settings):
    settings.SEQUENCES = {"MAX_LOST_WORKERS": 1}
    heard, sweeper = [], Sweeper(AssumeLost(), 1)
    sweeper._stored = True

    def leaves(step_run, **kwargs):
        heard.append(step_run.run_id)
        raise SystemExit

    runs = [two_steps().start().run for _ in range(2)]
    for run in runs:
        claim(run, "one")
        overdue(run, "one")
    signals.step_failed.connect(leaves)
    try:
        done = [sweeper._succeeds(sweeper._sweep) for _ in range(3)]
    finally:
        signals.step_failed.disconnect(leaves)
    assert done == [False, False, True]
    assert sorted(heard) == sorted(run.pk for run in runs)


def test_what_cannot_be_read_any_more_is_logged_and_fails_no_step(heard, caplog, monkeypatch):
    heard.listen("run_started")
    monkeypatch.setattr(SequenceRun._base_manager, "using", None)
    cls = two_steps()
    with caplog.at_level(logging.ERROR, "sequences"):
        cls.start()
    assert "Could not send the signal run_started." in caplog.text


def test_a_run_that_is_gone_by_then_is_not_told_of(heard):
    heard.listen("run_started")
    with transaction.atomic():
        run = two_steps().start().run
        SequenceRun.objects.filter(pk=run.pk).delete()
    assert heard == []


def test_a_receiver_of_one_sequence_hears_of_no_other(heard):
    cls = two_steps()

    class Other(cls):
        class Meta:
            app_label = "shop"

    heard.listen(sender=cls)
    run_all(Other, fails=1)
    assert heard == []
    run_all(cls, fails=1)
    assert len(heard) == 5


def test_the_sender_of_a_class_that_is_gone_is_none(heard):
    with isolate_sequences():
        run = two_steps().start().run
    assert registry.find("shop.Chain") is None
    heard.listen()
    run.cancel()
    assert heard == ["run_cancelled"]
    assert heard.details[0]["sender"] is None


# --- what it costs


def queries_of(act):
    with CaptureQueriesContext(
        connection,
    ) as captured:
        act()
    return [query["sql"].split()[0] for query in captured]


@pytest.fixture(params=["chain", "portable"])
def life(request, monkeypatch):
    """One life of a step, from claim to commit."""
    if request.param == "portable":
        choose(monkeypatch, Portable())

    def life(cls, name="one", **data):
        run = cls.start(data).run
        pk = row(run, name).pk
        return queries_of(lambda: StepExecution(pk, 0, "default").live())

    return life


def test_without_receivers_of_it_nothing_is_read_and_with_them_one_row_with_its_run(life, heard):
    cls = two_steps()
    life(cls)  # the plan is read once
    without = life(cls)
    heard.listen("run_succeeded", "run_failed", "step_failed", "step_retrying")
    heard.listen("step_succeeded", sender=SequenceRun)  # of another sender
    assert life(cls) == without
    heard.listen("step_succeeded")
    assert life(cls) == [*without, "SELECT"]


def test_the_end_of_a_run_is_one_read_more(life, heard):
    class One(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            pass

    life(One)
    without = life(One)
    heard.listen("run_succeeded")
    assert life(One) == [*without, "SELECT"]


def test_a_failed_attempt_is_two_reads_more(heard):
    def cost():
        run = two_steps().start().run
        held = claim(run, "one")
        return queries_of(lambda: fail(held))

    cost()
    without = cost()
    heard.listen("step_failed")
    assert Counter(cost()) - Counter(without) == Counter(SELECT=2)


def test_many_starts_are_one_read_more(heard):
    cls = two_steps()
    cls.start()
    cls.start_many([{}] * 50)  # a process looks once for what the database has
    without = queries_of(lambda: cls.start_many([{}] * 50))
    heard.listen("run_started")
    assert queries_of(lambda: cls.start_many([{}] * 50)) == [*without, "SELECT"]
    assert len(heard) == 50


# --- in a TestCase, which never commits


class InTestCaseTests(TestCase):
    def setUp(self):
        self.enterContext(isolate_sequences())
        self.heard = Heard().listen()
        self.addCleanup(self.heard.forget)

    def test_a_run_sends_its_signals_as_if_it_were_committed(self):
        run_all(two_steps(), fails=1)
        assert self.heard == [
            "run_started",
            "step_retrying one 1",
            "step_succeeded one",
            "step_succeeded two",
            "run_succeeded",
        ]
        assert self.heard.details[0]["run"].status == "running"

    def test_a_drain_sends_those_of_the_starts_before_it_too(self):
        two_steps().start()
        assert self.heard == []
        drain()
        assert self.heard[0] == "run_started"

    def test_each_is_sent_once_where_the_hooks_of_the_commit_are_played_too(self):
        with self.captureOnCommitCallbacks(execute=True):
            run_all(two_steps())
            assert len(self.heard) == 4
        assert len(self.heard) == 4

    def test_a_call_outside_of_these_is_told_when_its_hooks_are_played(self):
        with self.captureOnCommitCallbacks(execute=True):
            two_steps().start().run.cancel()
        assert self.heard == ["run_started", "run_cancelled"]

    def test_what_a_step_rolls_back_is_not_told(self):
        cls = two_steps()

        class Starts(Sequence):
            @step(max_retries=1)
            def start_another(self):
                cls.start()
                if self.attempt == 1:
                    raise ValueError

        with clock():
            run_all(Starts)
        assert self.heard.count("run_started") == 2
        assert self.heard.count("step_retrying start_another 1") == 1

    def test_what_a_receiver_does_is_told_too(self):
        cls = two_steps()
        first = cls.start().run

        def start_another(run, **_):
            if run == first:
                cls.start().run.cancel()

        signals.run_succeeded.connect(start_another)
        self.addCleanup(signals.run_succeeded.disconnect, start_another)
        drain()
        assert self.heard[-2:] == ["run_started", "run_cancelled"]

    def test_a_receiver_with_a_wrong_statement_breaks_no_test(self):
        def wrong(**_):
            with connection.cursor() as cursor:
                cursor.execute("SELECT what FROM nowhere")

        signals.step_succeeded.connect(wrong)
        self.addCleanup(signals.step_succeeded.disconnect, wrong)
        assert run_all(two_steps()).run.status == "succeeded"
        assert self.heard[-1] == "run_succeeded"
