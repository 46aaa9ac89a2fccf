"""What a step costs the database, and where it is never read."""

import re
import sys
import tempfile
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import dramatiq
import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone
from dramatiq.broker import MessageProxy
from dramatiq.worker import _WorkerThread

import sequences
from sequences import Sequence, conf, get, repeat, signals, step
from sequences.engine import dispatcher
from sequences.engine.executor import StepExecution
from sequences.models import RunDeadline, SequenceRun, StepFailure, StepRun, StoredPlan
from sequences.testing import assert_steps, clock, drain
from sequences.testing import run_sequence as run_all
from sequences.transitions import claims, failures, plans
from sequences.worker.sweeper import AssumeLost, store_plans, sweep
from tests.broken_reads import Router
from tests.engine import claim, fresh, ledger, messages, now, perform, row, take
from tests.flush import truncate
from tests.models import Parcel
from tests.portable import is_portable
from tests.steps import chain

pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.only_on("postgresql")
fast = pytest.mark.skipif(is_portable(), reason="of the statements for PostgreSQL")


@contextmanager
def statements():
    """What goes over the wire to PostgreSQL: the first word of each statement, or what the function
    that it calls is for."""
    sent = []
    with tempfile.TemporaryFile() as file:
        connection.ensure_connection()
        raw = connection.connection.pgconn
        raw.trace(file.fileno())
        try:
            yield sent
        finally:
            raw.untrace()
        file.seek(0)
        sent += [function or word for word, function in SENT.findall(file.read().decode())]


SENT = re.compile(
    r'\tF\t\d+\t(?:Query\t |Parse\t "[^"]*" )"\s*'
    r"(\w+)(?: (?:\* FROM )?job_sequences_(\w+)_[0-9a-f]{12}\()?"
)


@pytest.fixture
def empty_tables(transactional_db):
    """Without what the tests before have left behind in their pages."""
    truncate()


@pytest.fixture
def run():
    chain_run = chain().start({"n": 1}).run
    # The plan is known to every worker from its first step on.
    perform(claim(chain().start().run, "one"))
    return chain_run


def live(run, name):
    return StepExecution(row(run, name).pk, 0, "default").live()


@on_postgresql
def test_the_trace_sees_what_is_sent():
    with statements() as sent, transaction.atomic():
        StoredPlan.objects.count()
    assert sent == ["BEGIN", "SELECT", "COMMIT"]


@on_postgresql
@fast
def test_a_claim_is_one_statement(run):
    pk = row(run, "one").pk
    with statements() as sent:
        assert take(pk) is not None
    assert sent == ["claim"]


@on_postgresql
@fast
def test_a_claim_of_nothing_is_one_statement(run):
    with statements() as sent:
        assert take(10**9) is None
    assert sent == ["claim"]


@on_postgresql
@fast
def test_a_step_that_touches_no_table_is_two_statements_and_no_transaction_of_its_own(run):
    following = row(run, "one").pk
    for commit in ("advance", "succeed"):
        with statements() as sent:
            ready = StepExecution(following, 0, "default").live()
        assert sent == ["claim", commit]
        following = ready[0].step_run_id if ready else None
    assert fresh(run).status == "succeeded"
    assert fresh(run).data == {"n": 1, "one": 1, "two": 2}


@on_postgresql
@fast
def test_a_start_is_one_statement_and_one_message_and_no_transaction_of_its_own(run, broker):
    broker.flush_all()
    with statements() as sent:
        started = get("shop.Chain").start({"n": 1})
        assert (started.run.data, started.run.status) == ({"n": 1}, "running")
    assert sent == ["start_one"]
    assert [message.args for message in messages()] == [(str(started.run.pk), first_row(started))]
    assert fresh(started.run).data == {"n": 1}


@on_postgresql
@fast
def test_one_start_writes_what_the_start_of_many_does(run):
    cls = get("shop.Chain")
    with statements() as sent:
        one = cls.start({"n": 1})
        many = cls.start_many([{"n": 1}] * 2)
    assert sent == ["start_one", "start"]
    assert written(one) == written(many[0])


def written(sequence):
    """Its rows without their ids; each time as how long after the start it is."""
    rows = fresh(sequence.run), StepRun.objects.get(run=sequence.run.pk)
    values = [
        (field, getattr(row, field.attname)) for row in rows for field in row._meta.concrete_fields
    ]
    return {
        str(field): value - rows[0].created_at if isinstance(value, datetime) else value
        for field, value in values
        if field.attname not in ("id", "run_id")
    }


def first_row(sequence):
    return StepRun.objects.get(run=sequence.run.pk).pk


@on_postgresql
@fast
@pytest.mark.parametrize("key", [None, "a"])
def test_a_start_about_an_object_is_one_statement_too(run, key):
    parcel = Parcel.objects.create()
    with statements() as sent:
        started = get("shop.Chain").start({}, subject=parcel, key=key)
        assert started.subject is parcel
    assert sent == ["start_about_by_key" if key else "start_about"]
    with statements() as sent:
        get("shop.Chain").start_many([({}, {"subject": parcel}), {}])
    assert sent == ["start_about"]
    assert SequenceRun.objects.about(parcel).count() == 2


@on_postgresql
@fast
def test_a_start_by_a_key_is_one_statement_where_nobody_holds_the_key(run):
    with statements() as sent:
        started = get("shop.Chain").start({}, key="a")
    assert (sent, started.created) == (["start_by_key"], True)


@on_postgresql
@fast
def test_a_start_with_a_priority_is_one_statement_too(run):
    with statements() as sent:
        started = get("shop.Chain").start({}, priority=7)
    assert (sent, fresh(started.run).priority) == (["start"], 7)


@on_postgresql
@fast
@pytest.mark.parametrize(("key", "statement"), [(None, "start_until"), ("a", "start_by_key_until")])
def test_a_start_with_a_deadline_is_one_statement_too(run, key, statement):
    moment = timezone.now() + timedelta(days=3)
    with statements() as sent:
        after = get("shop.Chain").start({}, key=key, deadline=timedelta(hours=1)).run
        until = get("shop.Chain").start({}, deadline=moment).run
    assert sent == [statement, "start_until"]
    assert after.deadline.due_at == fresh(after).created_at + timedelta(hours=1)
    assert until.deadline.due_at == moment


@on_postgresql
@fast
def test_of_many_starts_only_those_with_a_deadline_get_one(run):
    with statements() as sent:
        starts = [{}, ({}, {"deadline": timedelta(hours=1)}), {}]
        without, first, other = get("shop.Chain").start_many(starts)
    assert sent == ["start_until"]
    assert [row.run_id for row in RunDeadline.objects.all()] == [first.run.pk]
    assert {without.created, other.created} == {True}


@on_postgresql
@fast
def test_a_thousand_starts_by_keys_are_one_statement_in_a_transaction(run):
    with statements() as sent:
        many = get("shop.Chain").start_many([({}, {"key": str(n)}) for n in range(1000)])
    assert sent == ["BEGIN", "start_by_key", "COMMIT"]
    assert all(each.created for each in many)
    assert SequenceRun.objects.filter(key__isnull=False).count() == 1000


@on_postgresql
@fast
def test_of_many_starts_by_keys_those_that_are_held_are_looked_up_together(run):
    holder = get("shop.Chain").start({}, key="b").run
    starts = [({"n": n}, {"key": key}) for n, key in enumerate("cabac")]
    with statements() as sent:
        many = get("shop.Chain").start_many(starts)
    assert sent == ["BEGIN", "start_by_key", "SELECT", "COMMIT"]
    assert [each.created for each in many] == [True, True, False, False, False]
    assert [each.run.key for each in many] == list("cabac")
    assert many[2].run == holder
    assert (many[3].run, many[4].run) == (many[1].run, many[0].run)
    assert [fresh(many[0].run).data, fresh(many[1].run).data] == [{"n": 0}, {"n": 1}]


def reads(model):
    """How many entries of the table's indexes were read."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT 1")
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT SUM(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = %s",
            [model._meta.db_table],
        )
        return int(cursor.fetchone()[0])


@on_postgresql
@fast
def test_a_start_by_a_key_reads_no_more_however_many_keys_there_are(empty_tables, run):
    chain_of_shop = get("shop.Chain")
    chain_of_shop.start({}, key="first")  # its plan is made while the table is small
    chain_of_shop.start_many([({}, {"key": str(n)}) for n in range(2000)])
    before = reads(SequenceRun)
    assert chain_of_shop.start({}, key="last").created
    assert reads(SequenceRun) - before < 50


@on_postgresql
@fast
def test_all_first_steps_of_one_run_begin_when_its_plan_is_known():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @step(after=[])
        def reserve(self): ...

    Order.start({})
    with statements() as sent:
        run = Order.start({}).run
    assert sent == ["start"]
    assert ledger(run) == {"charge": "queued", "reserve": "queued"}


@on_postgresql
@fast
def test_a_start_in_a_transaction_needs_no_savepoint(run):
    with statements() as sent, transaction.atomic():
        get("shop.Chain").start({})
    assert sent == ["BEGIN", "start_one", "COMMIT"]


@on_postgresql
@fast
def test_a_thousand_starts_are_one_statement(run):
    with statements() as sent:
        assert len(get("shop.Chain").start_many([{}] * 1000)) == 1000
    assert sent == ["start"]


@pytest.fixture
def direct_run(broker):
    class Direct(Sequence):
        class Meta:
            app_label = "shop"
            handoff = "direct"

        @step
        def one(self):
            self.data["one"] = 1

        @step
        def two(self): ...

        @step
        def three(self):
            self.data["three"] = self.data["one"]

    run_all(Direct)  # which lets this process know the plan
    return Direct.start({"n": 1}).run


def process(run):
    """A worker's thread has the message of the run's first step."""
    (message,) = [each for each in messages() if each.args[0] == str(run.pk)]
    broker, proxy = dramatiq.get_broker(), MessageProxy(message)
    broker.emit_before("process_message", proxy)
    broker.get_actor(message.actor_name)(*message.args)
    broker.emit_after("process_message", proxy, result=None)


@on_postgresql
@fast
def test_a_step_that_is_handed_over_directly_is_one_statement(direct_run):
    with statements() as sent:
        process(direct_run)
    assert sent == ["claim", "take", "take", "succeed"]
    assert (fresh(direct_run).status, fresh(direct_run).version) == ("succeeded", 3)
    assert fresh(direct_run).data == {"n": 1, "one": 1, "three": 1}
    assert set(ledger(direct_run).values()) == {"succeeded"}


@on_postgresql
@fast
def test_the_end_of_a_run_without_places_asks_for_them_once(run):
    held = claim(run, "one")
    with statements() as sent:
        failures.record(held, failures.Failure.of(ValueError()), final=True, using=conf.using())
    assert fresh(run).status == "failed"
    assert sent[0] == "BEGIN"
    assert sent[-2:] == ["COMMIT", "SELECT"]


@on_postgresql
@fast
def test_who_receives_a_signal_has_one_row_read_after_the_commit(run):
    def receive(**kwargs):
        pass

    pk = row(run, "one").pk
    signals.step_succeeded.connect(receive)
    try:
        with statements() as sent:
            StepExecution(pk, 0, "default").live()
    finally:
        signals.step_succeeded.disconnect(receive)
    assert sent == ["claim", "advance", "SELECT"]


@on_postgresql
@fast
def test_a_step_that_writes_commits_all_in_one_transaction():
    class Writing(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            StoredPlan.objects.filter(pk=0).update(fingerprint="")

        @step
        def two(self):
            StoredPlan.objects.filter(pk=0).update(fingerprint="")

    run = Writing.start().run
    perform(claim(Writing.start().run, "one"))
    pk = row(run, "one").pk
    with statements() as sent:
        StepExecution(pk, 0, "default").live()
    assert sent == ["claim", "BEGIN", "UPDATE", "advance", "COMMIT"]
    assert ledger(run) == {"one": "succeeded", "two": "queued"}


def updates(model):
    """How many rows of the table were updated, and how many of them in place."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("SELECT 1")
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s",
            [model._meta.db_table],
        )
        return cursor.fetchone()


def are_in_place(before, after, count):
    """Whether so many rows were updated, and in place: all but a few.

    Something else that reads the table just then, such as autovacuum, may keep an old version of
    a row alive, and with it the room for a new one. An index in the way would leave none.
    """
    updated, in_place = (new - old for old, new in zip(before, after, strict=True))
    return updated == count and in_place >= count * 0.8


@on_postgresql
def test_a_claim_updates_its_row_in_place(empty_tables):
    with override_settings(SEQUENCES={"HEARTBEAT": 20, "LEASE": 600, "GRACE": 600}):
        runs = [sequence.run for sequence in chain().start_many([{}] * 30)]
        before = updates(StepRun)
        for run in runs:
            assert claim(run, "one") is not None
        assert are_in_place(before, updates(StepRun), 30)


@on_postgresql
def test_a_commit_in_the_middle_of_a_run_updates_the_run_in_place(empty_tables):
    runs = [sequence.run for sequence in chain().start_many([{}] * 30)]
    held_by_us = [claim(run, "one") for run in runs]
    before = updates(SequenceRun)
    for held in held_by_us:
        perform(held)
    assert are_in_place(before, updates(SequenceRun), 30)


@on_postgresql
def test_what_most_rows_lack_is_in_no_index():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL "
            "AND indrelid = ANY(%s::regclass[])",
            [[SequenceRun._meta.db_table, StepRun._meta.db_table]],
        )
        names = {name.removeprefix("job_sequences_") for (name,) in cursor.fetchall()}
    assert names == {"run_key", "run_key_once", "run_parent", "step_run_attempts", "step_wake"}


@on_postgresql
def test_the_tables_leave_room_in_their_pages():
    with connection.cursor() as cursor:
        for model in (SequenceRun, StepRun):
            cursor.execute(
                "SELECT reloptions FROM pg_class WHERE relname = %s", [model._meta.db_table]
            )
            assert cursor.fetchone() == (["fillfactor=70"],)


def synchronous_commit():
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return cursor.fetchone()[0]


@on_postgresql
@fast
def test_only_the_claim_does_not_wait_for_the_disk():
    seen = []

    class Looking(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            seen.append(synchronous_commit())

        @step
        def two(self):
            seen.append(synchronous_commit())

    run = Looking.start().run
    assert synchronous_commit() == "on"
    with transaction.atomic():
        held = claim(run, "one")
        assert synchronous_commit() == "off"
    assert synchronous_commit() == "on"
    perform(held)
    live(run, "two")
    assert seen == ["on", "on"]
    assert synchronous_commit() == "on"


# --- nothing is read where a replica might be


@pytest.fixture
def _no_reads(monkeypatch):
    # Nothing is remembered, so that plans are read as by a process that has just begun.
    plans.forget()
    monkeypatch.setattr(plans, "_remember", lambda *_: None)
    Router.reads.clear()
    with override_settings(DATABASE_ROUTERS=["tests.broken_reads.Router"]):
        yield
    assert Router.reads == []


def steps_in(run):
    rows = StepRun.objects.using("default").filter(run=run.pk).order_by("pk")
    return dict(rows.values_list("step", "status"))


def status_of(run):
    return SequenceRun.objects.using("default").get(pk=run.pk).status


@pytest.mark.usefixtures("_no_reads")
def test_a_whole_sequence_reads_only_where_it_writes():
    class Everything(Sequence):
        class Meta:
            app_label = "shop"
            handoff = "direct"

        @step(when=lambda sequence: True)
        def first(self):
            self.data["seen"] = self.run.sequence
            self.progress(1, 2, "half")
            return 5

        @step(after=first, max_retries=3)
        def flaky(self):
            if self.attempt < 3:
                raise ValueError("not yet")
            return self.result("first")

        @step(after=first, delay=timedelta(hours=1))
        def later(self):
            return repeat(timedelta(hours=1)) if self.step_run.repeats == 0 else None

        @step(atomic=False)
        def join(self):
            self.data["results"] = [*self.results("first"), *self.results("flaky")]

    sequence = run_all(Everything, n=1)
    assert_steps(
        sequence,
        [
            ("first", "succeeded"),
            ("flaky", "succeeded"),
            ("later", "succeeded"),
            ("join", "succeeded"),
        ],
    )
    assert sequence.data == {"n": 1, "seen": "shop.Everything", "results": [5, 5]}


@pytest.mark.usefixtures("_no_reads")
def test_starts_read_only_where_they_write():
    cls = chain()
    first = cls.start({}, key="a")
    assert cls.start({}, key="a").run.pk == first.run.pk
    started = cls.start_many([({}, {"key": "a"}), ({}, {"key": "b"}), {}])
    assert [one.created for one in started] == [False, True, True]
    assert cls.runs.unfinished().count() == 3
    assert cls.runs.waiting_for("one").count() == 0
    assert cls.runs.get(key="b").pk == started[1].run.pk


@pytest.mark.usefixtures("_no_reads")
def test_steering_reads_only_where_it_writes():
    with dispatcher.capture_dispatches():
        run = chain().start({}, key="a", unique="unfinished").run
        run.pause(by="ada")
        run.resume()
        run.edit({"n": 2})
        run.skip("one")
        run.restart_from("one")
        run.finish()
        run.restart_from("one")
        run.cancel()
        run.restart_from("one")
        fail_one(run)
        run.retry()
        drain()
        run.refresh_from_db(using="default")
        run.erase()
    assert status_of(run) == "succeeded"


def fail_one(run):
    pk = StepRun.objects.using("default").get(run=run.pk, step="one").pk
    held = claims.claim(pk, 0, 1, "w", conf.using())
    failures.record(held, failures.Failure.of(ValueError()), final=True, using=conf.using())
    assert status_of(run) == "failed"


@pytest.mark.usefixtures("_no_reads")
def test_the_sweep_reads_only_where_it_writes():
    cls = chain()
    queued, taken = cls.start().run, cls.start().run
    delayed = cls.start({}, delay=timedelta(hours=1)).run
    pk = StepRun.objects.using("default").get(run=taken.pk).pk
    claims.claim(pk, 0, 1, "w", conf.using())
    StepRun.objects.using("default").update(wake_at=now() - timedelta(seconds=1))
    with dispatcher.capture_dispatches() as caught, clock() as moving:
        moving.move(timedelta(hours=2))
        store_plans(conf.using())
        assert sweep(AssumeLost(), conf.using()) == 3
    assert {dispatch.run_id for dispatch in caught} == {queued.pk, taken.pk, delayed.pk}
    assert not StepFailure.objects.using("default").exists()


# --- the way of one message through the house

PACKAGE = f"{Path(sequences.__file__).parent}/"
DONE = SimpleNamespace(task_done=lambda: None, post_process_message=lambda message: None)


def files_entered(act):
    """The files of the package whose functions are called, in their order."""
    files = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            files.append(frame.f_code.co_filename.removeprefix(PACKAGE))

    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(None)
    return files


@on_postgresql
@fast
def test_one_message_does_not_wander_through_the_house(run):
    """Dramatiq's own code enters 12 files for one, with 39 changes of file."""
    broker = dramatiq.get_broker()
    worker = _WorkerThread(
        broker=broker, consumers={"default": DONE}, work_queue=DONE, worker_timeout=0
    )
    (message, *_) = [found for found in messages() if found.args[1] == row(run, "one").pk]
    files = files_entered(lambda: worker.process_message(MessageProxy(message)))
    assert row(run, "two").status == "queued", "it has gone all the way"
    assert len(set(files)) <= 25
    assert sum(file != before for before, file in pairwise(files)) <= 50
