"""Durable calls inside a step: what one attempt has stored, every later one gets."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from dramatiq.middleware import SkipMessage

from sequences import Sequence, repeat, step
from sequences.engine import current
from sequences.models import StepCall, StepRun
from sequences.sequence import Sequence as Base
from sequences.testing import build, clock, drain, run_sequence
from sequences.transitions import calls
from sequences.transitions.types import ClaimLost
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fresh, overdue, perform, row
from tests.locks import held

pytestmark = pytest.mark.django_db(transaction=True)


class Bank:
    """What charges, and remembers it."""

    def __init__(self, *errors):
        self.charges, self.errors = [], list(errors)

    def charge(self, amount):
        self.charges.append(amount)
        return {"receipt": f"r-{len(self.charges)}", "amount": amount}


@pytest.fixture
def bank():
    return Bank()


def payment(body, hidden=(), **options):
    class Payment(Sequence):
        class Meta:
            app_label = "shop"
            min_backoff = 1
            max_backoff = 2
            redact = hidden

        pay = step(body, **{"atomic": False, "max_retries": 3, **options})

    return Payment


def test_a_later_attempt_gets_what_an_earlier_one_has_stored(bank):
    seen = []

    def pay(self):
        seen.append(self.once("charge", bank.charge, 5))
        self.data["receipt"] = seen[-1]["receipt"]
        if self.attempt < 3:
            raise ConnectionError("after the charge")

    sequence = run_sequence(payment(pay))
    assert bank.charges == [5]
    assert seen == [{"receipt": "r-1", "amount": 5}] * 3
    assert sequence.data == {"receipt": "r-1"}
    assert [(call.name, call.result) for call in StepCall.objects.all()] == [("charge", seen[0])]
    assert row(sequence.run, "pay").calls.count() == sequence.run.calls.count() == 1


def test_a_call_that_raises_is_made_again_and_those_before_it_are_not(bank):
    def pay(self):
        for number in range(3):
            self.once(f"charge-{number}", charge_or_fail, number)
        self.data["sum"] = sum(bank.charges)

    def charge_or_fail(number):
        bank.charge(number)
        if number == 1 and bank.charges.count(1) < 3:
            raise ConnectionError

    assert run_sequence(payment(pay)).run.status == "succeeded"
    assert bank.charges == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1, None]}])
def test_every_value_is_a_result(bank, value):
    seen = []

    def pay(self):
        seen.append(self.once("charge", lambda: (bank.charge(1), value)[1]))
        if self.attempt == 1:
            raise ConnectionError

    run_sequence(payment(pay))
    assert (seen, bank.charges) == ([value, value], [1])


def test_the_first_attempt_gets_json_like_all_others():
    seen = []

    def pay(self):
        seen.append(self.once("when", lambda: {"at": timedelta(seconds=1), "two": (2,)}))
        if self.attempt == 1:
            raise ConnectionError

    run_sequence(payment(pay))
    assert seen[0] == seen[1] == {"at": "P0DT00H00M01S", "two": [2]}


def test_it_is_stored_at_once_whatever_becomes_of_the_step(bank):
    def pay(self):
        self.once("charge", bank.charge, 5)
        assert StepCall.objects.get().name == "charge"
        raise SystemExit

    run = payment(pay).start().run
    with pytest.raises(SystemExit):
        perform(claim(run, "pay"))
    assert StepCall.objects.count() == 1


def test_each_item_has_calls_of_its_own(bank):
    def pay(self, amount):
        receipt = self.once("charge", bank.charge, amount)
        if self.attempt == 1:
            raise ConnectionError
        return receipt["amount"]

    sequence = run_sequence(payment(pay, each="amounts"), amounts=[3, 4])
    assert sorted(bank.charges) == [3, 4]
    items = StepRun.objects.filter(run=sequence.run.pk, item__gte=0).order_by("item")
    assert [item.result for item in items] == [3, 4]


def test_a_repeat_gets_it_too(bank):
    def pay(self):
        self.once("charge", bank.charge, 5)
        return repeat(after=timedelta(hours=1)) if not self.step_run.repeats else None

    with clock() as moving:
        run = payment(pay).start().run
        drain()
        moving.move(timedelta(hours=1))
        drain()
    assert fresh(run).status == "succeeded"
    assert bank.charges == [5]


def test_a_retry_by_hand_gets_it_and_a_restart_does_not(bank):
    def pay(self):
        self.once("charge", bank.charge, 5)
        raise ConnectionError

    run = run_sequence(payment(pay, max_retries=0)).run
    fresh(run).retry()
    drain()
    assert bank.charges == [5]
    fresh(run).restart_from("pay")
    drain()
    assert bank.charges == [5, 5]
    assert StepCall.objects.count() == 1


def test_who_has_lost_the_step_stores_nothing(bank):
    def pay(self):
        lost = not bank.charges

        def charge():
            bank.charge(5)
            if lost:
                overdue(run, "pay")
                sweep(AssumeLost(), "default")

        self.once("charge", charge)

    run = payment(pay).start().run
    with pytest.raises(SkipMessage):
        perform(claim(run, "pay"))
    assert not StepCall.objects.exists()
    drain()
    assert fresh(run).status == "succeeded"
    assert bank.charges == [5, 5]
    assert StepCall.objects.count() == 1


@pytest.mark.only_on("postgresql", "mysql")
def test_who_loses_the_step_at_that_moment_stores_nothing():
    """Whoever takes the step away has locked its row: the result is stored before, or never."""

    def take_away():
        StepRun.objects.filter(pk=own.step_run_id).update(token=None, status="queued")

    def store():
        try:
            calls.store(own, "charge", "5", "default")
        finally:
            connections.close_all()

    own = claim(payment(lambda self: None).start().run, "pay")
    with ThreadPoolExecutor(1) as pool:
        with held(take_away, commits=True):
            stored = pool.submit(store)
            time.sleep(0.2)
            assert not stored.done()
        with pytest.raises(ClaimLost):
            stored.result(60)
    assert not StepCall.objects.exists()


@pytest.mark.parametrize("values", [{"token": 7}, {"status": "succeeded"}])
def test_a_claim_that_is_over_stores_nothing(values):
    """Neither beside another worker's, nor after its own commit."""
    own = claim(payment(lambda self: None).start().run, "pay")
    StepRun.objects.filter(pk=own.step_run_id).update(**values)
    with pytest.raises(ClaimLost):
        calls.store(own, "charge", "5", "default")
    assert not StepCall.objects.exists()


@pytest.mark.only_on("postgresql", "mysql")
def test_a_connection_that_died_during_the_call_does_not_cost_another(bank):
    def pay(self):
        def charge():
            bank.charge(5)
            kill(connection)
            return "paid"

        return self.once("charge", charge)

    sequence = run_sequence(payment(pay, max_retries=0))
    assert sequence.run.status == "succeeded"
    assert bank.charges == [5]
    assert row(sequence.run, "pay").result == "paid"


def kill(connection):
    """End the session at the server."""
    import psycopg

    if connection.vendor != "postgresql":
        connection.connection.close()
        return
    pid = connection.connection.info.backend_pid
    with psycopg.connect(connection.connection.info.dsn, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [pid])


# --- what it is not for


def failure_of(body, **options):
    return run_sequence(payment(body, **options)).run.failures.get().message


def test_a_step_with_a_transaction_is_told(bank):
    message = failure_of(lambda self: self.once("charge", bank.charge, 5), atomic=True)
    assert "atomic=False" in message
    assert bank.charges == []


def test_a_transaction_around_it_is_seen(bank):
    def pay(self):
        with transaction.atomic():
            self.once("charge", bank.charge, 5)

    assert "outside that block" in failure_of(pay)
    assert bank.charges == []


@pytest.mark.parametrize("name", ["", "x" * 101, None, 7])
def test_a_name_is_a_text_that_fits(bank, name):
    assert "the name must be" in failure_of(lambda self: self.once(name, bank.charge, 5))
    assert bank.charges == []


def test_a_name_counts_once_in_an_attempt(bank):
    def pay(self):
        for amount in (3, 4):
            self.once("charge", bank.charge, amount)

    assert "twice in one attempt" in failure_of(pay)
    assert bank.charges == [3]


def test_what_is_no_json_is_no_result():
    assert "The result of once('charge')" in failure_of(
        lambda self: self.once("charge", lambda: object())
    )
    assert not StepCall.objects.exists()


# --- what it costs, and where it ends


def test_a_step_without_calls_pays_nothing(bank):
    def cost(body):
        run = payment(body).start().run
        taken = claim(run, "pay")
        with CaptureQueriesContext(
            connection,
        ) as queries:
            perform(taken)
        return [query["sql"] for query in queries if "stepcall" in query["sql"].lower()]

    assert cost(lambda self: None) == []
    statements = cost(lambda self: [self.once(f"c-{number}", lambda: 1) for number in range(3)])
    assert len([sql for sql in statements if sql.startswith("SELECT")]) == 1
    assert len([sql for sql in statements if sql.startswith("INSERT")]) == 3


def test_it_is_erased_and_pruned_with_its_run(bank):
    from sequences.engine.pruning import prune

    run = run_sequence(payment(lambda self: self.once("charge", bank.charge, 5))).run
    fresh(run).erase()
    assert [call.result for call in StepCall.objects.all()] == [None]
    with clock() as moving:
        moving.move(timedelta(days=2))
        prune(older_than=timedelta(days=1))
    assert not StepCall.objects.exists()


@pytest.mark.parametrize("pattern", ["charge.password", "pay.password", "pay.charge.password"])
def test_its_page_shows_it_without_secrets(bank, admin_client, pattern):
    def pay(self):
        self.once("charge", lambda: {"password": "hunter2", "paid": 5})

    cls = payment(pay, hidden=pattern)
    step_run = row(run_sequence(cls).run, "pay")
    page = admin_client.get(f"/admin/job_sequences/steprun/{step_run.pk}/change/").content.decode()
    assert "paid" in page[page.index("Durable calls") :]
    assert "hunter2" not in page


def test_a_step_by_itself_makes_its_calls(bank):
    cls = payment(lambda self: self.once("charge", bank.charge, 5))
    assert build(cls).pay() == {"receipt": "r-1", "amount": 5}


def test_outside_a_step_there_is_none():
    with pytest.raises(Exception, match="inside a step"):
        Base.once(payment(lambda self: None).start(), "charge", lambda: 1)
    assert current.current_attempt() is None
