"""The seven cases of `tests/typing/user_cases.py` do what their users want."""

import csv
import importlib
from datetime import date, timedelta

import pytest
from django.core import mail

from sequences.testing import assert_steps, clock, drain, isolate_sequences, run_sequence
from testproject.contact.models import Message
from tests.engine import fresh, ledger

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def module():
    with isolate_sequences():
        yield importlib.import_module("tests.typing.user_cases")


@pytest.fixture
def cases(module, monkeypatch):
    """The cases, with services that nobody has used yet."""
    for name in ("FLIGHTS", "HOTELS", "CARDS"):
        monkeypatch.setattr(module, name, module.Service())
    monkeypatch.setattr(module, "CONVERTED", set())
    return module


def subjects():
    return [message.subject for message in mail.outbox]


def test_a_contact_form_makes_a_message_for_a_team_and_thanks(cases):
    sequence = run_sequence(cases.ContactForm, name="Joel", email="joel@example.com", body="Hello")
    steps = ("create_message", "assign_message", "thank")
    assert_steps(sequence, [(name, "succeeded") for name in steps])
    message = Message.objects.get(pk=sequence.data["message_id"])
    assert (message.name, message.team.name) == ("Joel", "Support")
    assert mail.outbox[0].body == "The Support team will answer."


LINES = [{"count": 2, "price": 10}, {"count": 1, "price": 5}]


def test_an_order_is_packed_and_invoiced_side_by_side_and_ships_when_it_is_approved(cases):
    order = cases.Order(lines=LINES)
    drain()
    assert_steps(
        order,
        [
            ("reserve", "succeeded"),
            ("pack", "succeeded"),
            ("invoice", "succeeded"),
            ("approval", "waiting"),
        ],
    )
    assert cases.approve(order.run.pk, by="ann") is True
    drain()
    found = fresh(order.run)
    assert found.status == "succeeded"
    assert (found.data["shipped"], found.data["invoice"]) == ("3 pieces", {"total": 25})


def test_an_order_that_is_refused_or_forgotten_fails(cases):
    refused = cases.Order(lines=LINES)
    refused.run.deliver("approval", {"approved": False, "by": "ann"})
    forgotten = cases.Order(lines=LINES)
    with clock() as moving:
        drain()
        moving.move(timedelta(days=3, minutes=1))
        drain()
    assert fresh(refused.run).status == fresh(forgotten.run).status == "failed"
    assert refused.run.failures.get().message == "ann refused it"
    assert ledger(forgotten.run)["approval"] == "failed"


def write_csv(path, count):
    """So many rows, of which every 400th has no address that one can write to."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "email", "body"])
        for number in range(1, count + 1):
            email = "nowhere" if number % 400 == 0 else f"{number}@example.com"
            writer.writerow([f"name {number}", email, "Hello"])


@pytest.mark.parametrize("count", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_csv_import_stores_all_rows_but_the_bad_ones_and_sums_up(cases, tmp_path, count):
    path = tmp_path / "old.csv"
    write_csv(path, count)
    sequence = run_sequence(cases.CsvImport, path=str(path))
    assert sequence.run.status == "succeeded"
    bad = count // 400
    summary = sequence.data["summary"]
    assert (summary["stored"], summary["bad"]) == (count - bad, bad)
    assert summary["first_bad"][0] == [400, ["Enter a valid email address."]]
    assert Message.objects.count() == count - bad
    assert sequence.run.steps.filter(step="store", item__gte=0).count() == count // 500


def test_a_nightly_report_does_not_start_while_one_runs(cases):
    monday, tuesday = date(2030, 1, 7), date(2030, 1, 8)
    assert cases.start_nightly_report(monday) is True
    assert cases.start_nightly_report(tuesday) is False
    drain()
    assert cases.start_nightly_report(tuesday) is True
    drain()
    assert subjects() == ["The report of 2030-01-07", "The report of 2030-01-08"]


def days(count):
    return timedelta(days=count, minutes=1)


def test_onboarding_mails_come_after_one_three_and_seven_days(cases):
    cases.start_onboarding(7)
    assert not cases.start_onboarding(7).created
    sent = []
    with clock() as moving:
        for _ in range(8):
            drain()
            sent.append(len(mail.outbox))
            moving.move(days(1))
    assert sent == [0, 1, 1, 2, 2, 2, 2, 3]


def test_onboarding_stops_when_the_user_converts(cases):
    by_itself, at_once = cases.start_onboarding(7), cases.start_onboarding(8)
    with clock() as moving:
        drain()
        moving.move(days(1))
        drain()
        assert len(mail.outbox) == 2
        cases.CONVERTED.add(7)
        cases.stop_onboarding(8)
        assert fresh(at_once.run).status == "succeeded"
        for _ in range(6):
            moving.move(days(1))
            drain()
    assert fresh(by_itself.run).status == "succeeded"
    assert ledger(by_itself.run) == {
        "first_day": "succeeded",
        "third_day": "succeeded",
    }
    assert len(mail.outbox) == 2


def test_a_saga_books_each_of_its_services_once(cases):
    trip = run_sequence(cases.Trip, email="joel@example.com")
    assert trip.run.status == "succeeded"
    for service in (cases.FLIGHTS, cases.HOTELS, cases.CARDS):
        assert (len(service.done), service.undone) == (1, [])


def test_a_saga_takes_back_what_was_booked_when_a_service_has_nothing_left(cases):
    cases.CARDS.full = True
    trip = run_sequence(cases.Trip, email="joel@example.com")
    assert_steps(
        trip,
        [
            ("flight", "succeeded"),
            ("hotel", "succeeded"),
            ("payment", "failed"),
            ("cancel_hotel", "succeeded"),
            ("cancel_flight", "succeeded"),
            ("apologise", "succeeded"),
        ],
    )
    assert trip.run.status == "failed"
    assert (cases.HOTELS.undone, cases.FLIGHTS.undone) == (["hotel-1"], ["flight-1"])
    assert mail.outbox[0].body == "payment: nothing is free"


def test_a_saga_also_takes_back_what_was_only_tried_where_that_may_have_happened(cases):
    cases.HOTELS.full = True
    run_sequence(cases.Trip, email="joel@example.com")
    assert cases.HOTELS.undone == ["what was tried"]
    assert cases.FLIGHTS.undone == ["flight-1"]


def test_a_celery_chain_is_steps_that_take_what_the_ones_before_returned(cases):
    sequence = run_sequence(cases.CountWords, url="https://example.com", name="Joel")
    assert sequence.run.status == "succeeded"
    assert Message.objects.get().body == "4 words"
    assert cases.CountWords._definition.options(cases.CountWords.counted)["max_retries"] == 3
