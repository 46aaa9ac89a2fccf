"""Whole programs, as their users would write them, on real workers."""

import os
import shlex
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import psutil
import pytest
from django.test import Client

from sequences.models import Permit, Schedule, SequenceRun, StepRun, StoredLimit
from sequences.testing import assert_steps

from .app.models import Charge, Customer, Entry
from .app.programs import ffmpeg
from .app.programs.crawler import Crawler
from .app.programs.loan import Loan, approve
from .app.programs.renditions import Renditions
from .servers import Bank, Pages
from .workers import SETTINGS, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.only_on("postgresql")]


def ended(run, status="succeeded", limit=60):
    """Wait until the run has ended so."""

    def condition():
        run.refresh_from_db()
        return run.is_finished

    wait_for(condition, f"the end of {run}", limit)
    failures = [f"{one}: {one.message}" for one in run.failures.all()[:5]]
    assert run.status == status, failures
    return run


# Monthly billing

#: How many customers are billed: `CUSTOMERS=2000` takes some minutes on a busy machine.
CUSTOMERS = int(os.environ.get("CUSTOMERS", "300"))
RATE = 100  # in a second: at the ten of the program it would take minutes


def begin_month(schedule):
    """A slot comes now, whatever the day: nobody waits for the first of the month."""
    slot = datetime.now(ZoneInfo("Europe/Berlin")).replace(microsecond=0)
    Schedule.objects.filter(pk=schedule.pk).update(next_slot=slot, wake_at=slot)
    return f"{slot:%Y-%m}"


def most_in_a_second(moments):
    """The most that came within one second, however the second lies."""
    most, first = 0, 0
    moments = sorted(moments)
    for last, moment in enumerate(moments):
        while moment - moments[first] > 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def charged(bank, count):
    return len(bank.charged) >= count


@pytest.mark.timeout(60 + 3 * CUSTOMERS)
def test_customers_are_billed_once_each_while_workers_are_killed(hire, monkeypatch):
    Customer.objects.bulk_create(
        Customer(account=f"account-{number}", amount=100 + number) for number in range(CUSTOMERS)
    )
    bank = Bank(seconds=0.1)
    with bank.served() as url:
        monkeypatch.setenv("BANK_URL", url)
        crew = hire("redis")
        crew.start(3, threads=3, release="billing")
        limit = wait_for(StoredLimit.objects.filter(name="bank").first, "the limit")
        limit.change(rate=RATE, per=timedelta(seconds=1), reason="the bank has time")
        month = begin_month(wait_for(Schedule.objects.first, "the schedule"))
        begun = time.monotonic()
        for customers in (CUSTOMERS // 5, CUSTOMERS // 2, CUSTOMERS * 4 // 5):
            wait_for(partial(charged, bank, customers), f"{customers} charges", CUSTOMERS)
            crew.performer(wait_for(StepRun.objects.filter(status="running").first)).kill()
            crew.start(1, threads=3, release="billing")
        run = ended(SequenceRun.objects.get(), limit=CUSTOMERS)
        seconds = time.monotonic() - begun
        print(f"{CUSTOMERS} customers in {seconds:.0f} s, {len(bank.asked)} calls of the bank")

    total = sum(100 + number for number in range(CUSTOMERS))
    assert run.key.startswith("schedule:default:")
    assert run.data["report"] == {"customers": CUSTOMERS, "amount": total, "charged": total}
    # The bank has taken it once from each, and so say our own rows.
    taken = Counter(what["account"] for what in bank.charged.values())
    assert sorted(taken) == sorted(Customer.objects.values_list("account", flat=True))
    assert set(taken.values()) == {1}
    charges = Charge.objects.filter(month=month)
    assert charges.count() == Charge.objects.count() == CUSTOMERS
    assert charges.values("customer").distinct().count() == CUSTOMERS
    assert 1 < bank.most <= 5
    # Those that a place let begin late come beside those that are in time.
    assert most_in_a_second(bank.asked) <= RATE + 5
    assert not Permit.objects.exists()


# Video renditions


@pytest.fixture
def film(tmp_path):
    """A film of ten seconds, for an ffmpeg that does so many of them in a second."""

    def make(pace):
        path = tmp_path / "film.mov"
        path.write_text(f"10 {pace}")
        return path

    return make


@pytest.fixture
def studio(hire, monkeypatch):
    monkeypatch.setenv("FFMPEG", shlex.join([sys.executable, ffmpeg.__file__]))
    crew = hire("redis")
    crew.start(1, threads=4)
    return crew


def encoders(source, count):
    """So many encoders, as soon as they have begun."""
    book = source.with_suffix(".pids")
    wait_for(lambda: book.exists() and book.read_text().count("\n") >= count, "encoders")
    return [int(pid) for pid in book.read_text().split()]


def test_renditions_show_their_progress(studio, film):
    source = film(pace=5)
    run = Renditions(source=str(source), seconds=10).run
    seen = []

    def condition():
        status = Client().get(run.status_url()).json()
        seen.append((status["fraction"], status["steps"][0]["text"]))
        return status["is_finished"]

    wait_for(condition, "the end")
    ended(run)
    files = {str(height): f"{source.parent}/film.{height}.mp4" for height in (1080, 720, 360)}
    assert run.data["files"] == files
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert len({fraction for fraction in fractions if 0 < fraction < 0.5}) >= 3, seen
    assert {"1080 lines", "360 lines"} <= {text for _, text in seen}


@pytest.mark.parametrize("undo", [False, True])
def test_a_cancelled_rendition_kills_its_encoders_at_once(studio, film, undo):
    source = film(pace=0.1)
    run = Renditions(source=str(source), seconds=10).run
    processes = [psutil.Process(pid) for pid in encoders(source, 2)]
    begun = time.monotonic()
    run.cancel(undo=undo, by="ann")
    wait_for(lambda: not any(one.is_running() for one in processes), "their death")
    # As much again for a machine that is busy with other things.
    assert time.monotonic() - begun < 2 * SETTINGS["HEARTBEAT"]
    ended(run, "cancelled")
    items = [(f"render[{item}]", "cancelled") for item in range(3)]
    assert_steps(run, [("render", "cancelled"), *items, ("remove", "succeeded")])
    assert not run.failures.exists()
    wait_for(lambda: not list(source.parent.glob("film*part")), "nothing half done")
    assert len(encoders(source, 2)) == 2  # and nobody has begun another


# A loan


def waits_for(loan, *events):
    """The run has come to these events."""
    rows = StepRun.objects.filter(run=loan.run.pk, status="waiting", wait="event")
    wait_for(lambda: rows.filter(step__in=events).count() == len(events), f"waits for {events}")
    return loan.run


def notes(loan, step):
    rows = Entry.objects.filter(run=loan.run.pk, step=step).order_by("pk")
    return list(rows.values_list("note", flat=True))


def row(loan, step):
    return StepRun.objects.get(run=loan.run.pk, step=step)


def test_a_loan_is_decided_by_the_first_of_several(hire):
    crew = hire("redis")
    crew.start(1, threads=4)
    approved, refused, withdrawn = (
        Loan(customer=name, every=0.2, patience=100) for name in ("Ada", "Bob", "Cid")
    )
    escalated = Loan(customer="Dan", every=0.2, patience=2)

    assert approve(waits_for(approved, "first"), "ann")
    assert not approve(approved.run, "ann")  # she has approved it already
    assert waits_for(refused, "first", "refusal").deliver("refusal", {"by": "kim"}, by="kim")
    assert refused.run.deliver("first", {"by": "ann"}) is False
    assert waits_for(withdrawn, "withdrawal").deliver("withdrawal", {"by": "customer"})
    assert approve(waits_for(approved, "second"), "joel")
    assert waits_for(escalated, "escalation", "first").deliver("escalation", {"by": "boss"})

    decisions = [
        ended(loan.run).data["decision"] for loan in (approved, refused, withdrawn, escalated)
    ]
    assert decisions == ["second", "refusal", "withdrawal", "escalation"]
    assert escalated.run.data["reminders"] == 2
    assert notes(approved, "pay_out") == ["Ada"]
    for loan in (refused, withdrawn, escalated):
        assert row(loan, "pay_out").status == "skipped"
        assert notes(loan, "pay_out") == []
    for loan in (approved, refused, withdrawn):
        # A reminder that was under way as the loan was decided is rolled back.
        assert row(loan, "remind").status == "skipped"
        assert len(notes(loan, "remind")) == loan.run.data["reminders"]


# A crawler

PAGES = 500


def test_a_crawler_awaits_500_pages_in_one_worker_process(hire):
    crew = hire("redis")
    (worker,) = crew.start(1, threads=2)
    pages = Pages()
    with pages.served() as port:
        run = Crawler(port=port, pages=PAGES).run
        wait_for(lambda: pages.busy >= 30, "many pages at once")
        processes = psutil.Process(worker.process.pid).children(recursive=True)
        assert max(process.num_threads() for process in processes) < 30
        ended(run)
    assert sorted(pages.asked) == list(range(PAGES))  # each once
    assert run.data["sum"] == sum(range(PAGES))
