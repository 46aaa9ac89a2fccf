"""Seven cases as their users would write them.

mypy and pyright check their types; `tests/integration/test_user_cases.py` runs them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dramatiq
from django.core.exceptions import ValidationError
from django.core.mail import send_mail

from sequences import Abort, Sequence, event, finish, on_failure, step
from testproject.contact.models import Message, Team

# 1. A contact form


class ContactForm(Sequence):
    """What happens once somebody has written to us."""

    @step
    def create_message(self) -> None:
        message = Message.objects.create(name=self.data["name"], body=self.data["body"])
        self.data["message_id"] = message.pk

    @step
    def assign_message(self) -> None:
        team, _ = Team.objects.get_or_create(topic="questions", defaults={"name": "Support"})
        Message.objects.filter(pk=self.data["message_id"]).update(team=team)
        self.data["team"] = team.name

    @step(max_retries=5)
    def thank(self) -> None:
        text = f"The {self.data['team']} team will answer."
        send_mail("Thank you", text, "hello@example.com", [self.data["email"]])


# 2. An order: packed and invoiced side by side, then approved, then shipped


class Order(Sequence):
    """From a basket to a parcel."""

    @step
    def reserve(self) -> int:
        return sum(line["count"] for line in self.data["lines"])

    @step(after=reserve)
    def pack(self) -> None:
        self.data["parcel"] = f"{self.result(Order.reserve)} pieces"

    @step(after=reserve)
    def invoice(self) -> None:
        total = sum(line["count"] * line["price"] for line in self.data["lines"])
        self.data["invoice"] = {"total": total}

    approval = event(timeout=timedelta(days=3), after=[pack, invoice])

    @step
    def ship(self) -> None:
        if not self.data["approval"]["approved"]:
            raise Abort(f"{self.data['approval']['by']} refused it")
        self.data["shipped"] = self.data["parcel"]


def approve(order: str, by: str) -> bool:
    """What the view of the approver does."""
    run = Order.runs.waiting_for(Order.approval).get(pk=order)
    return run.deliver("approval", {"approved": True, "by": by}, by=by)


# 3. A CSV import of many rows, which a few bad rows do not stop


class CsvImport(Sequence):
    """Rows of old messages become `Message`s, a few hundred in each transaction."""

    def rows(self) -> Iterator[list[Any]]:
        with Path(self.data["path"]).open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                yield [number, row]

    @step(each=rows, batch=500, concurrency=8, max_retries=3)
    def store(self, batch: list[list[Any]]) -> dict[str, Any]:
        good, bad = [], []
        for number, row in batch:
            message = Message(name=row["name"], email=row["email"], body=row["body"])
            try:
                message.clean_fields()
            except ValidationError as error:
                bad.append([number, error.messages])
            else:
                good.append(message)
        Message.objects.bulk_create(good)
        return {"stored": len(good), "bad": bad}

    @step
    def sum_up(self) -> None:
        stored, bad = 0, []
        for result in self.results(CsvImport.store):
            stored += result["stored"]
            bad += result["bad"]
        self.data["summary"] = {"stored": stored, "bad": len(bad), "first_bad": bad[:10]}


# 4. A nightly report, which cron starts, and which does not start while one runs


class NightlyReport(Sequence):
    """One at a time."""

    @step
    def count(self) -> None:
        self.data["messages"] = Message.objects.count()

    @step(max_retries=10)
    def mail(self) -> None:
        subject = f"The report of {self.data['day']}"
        send_mail(subject, f"{self.data['messages']} messages", None, ["boss@example.com"])


def start_nightly_report(today: date) -> bool:
    """What cron calls, as a management command; false while the last one is unfinished."""
    report = NightlyReport.start({"day": today}, key="nightly", unique="unfinished")
    return report.created


# 5. Mails after 1, 3 and 7 days, until the user converts

CONVERTED: set[int] = set()


class Onboarding(Sequence):
    """Stops by itself at the next mail, or at once by `stop_onboarding`."""

    @step(delay=timedelta(days=1))
    def first_day(self) -> Any:
        return self.mail("Welcome")

    @step(delay=timedelta(days=2))
    def third_day(self) -> Any:
        return self.mail("Have you seen this?")

    @step(delay=timedelta(days=4))
    def seventh_day(self) -> Any:
        return self.mail("The last one")

    def mail(self, subject: str) -> Any:
        """Plain methods are the user's own."""
        if self.data["user"] in CONVERTED:
            return finish()
        send_mail(subject, "…", None, [f"user-{self.data['user']}@example.com"])
        return None


def start_onboarding(user: int) -> Onboarding:
    """What the sign-up view does."""
    return Onboarding.start({"user": user}, key=f"user-{user}")


def stop_onboarding(user: int) -> None:
    """What the checkout does."""
    for run in Onboarding.runs.unfinished().filter(key=f"user-{user}"):
        run.finish(by="checkout", reason="converted")


# 6. A saga of three services that know no transactions of ours


class Service:
    """An API somewhere else. It knows a key again, and answers the same."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}
        self.undone: list[str] = []
        self.full = False

    def book(self, what: str, key: str) -> str:
        if self.full:
            raise RuntimeError("nothing is free")
        return self.done.setdefault(key, f"{what}-{len(self.done) + 1}")

    def cancel(self, booking: str) -> None:
        self.undone.append(booking)


FLIGHTS, HOTELS, CARDS = Service(), Service(), Service()


class Trip(Sequence):
    """All three, or none."""

    class Meta:
        max_retries = 2
        atomic = False  # the services take seconds

    @step
    def flight(self) -> str:
        return FLIGHTS.book("flight", self.idempotency_key)

    @flight.undo
    def cancel_flight(self) -> None:
        FLIGHTS.cancel(self.result(Trip.flight, "what was tried"))

    @step
    def hotel(self) -> str:
        return HOTELS.book("hotel", self.idempotency_key)

    @hotel.undo
    def cancel_hotel(self) -> None:
        HOTELS.cancel(self.result(Trip.hotel, "what was tried"))

    @step
    def payment(self) -> str:
        return CARDS.book("payment", self.idempotency_key)

    @payment.undo(attempted=False)
    def refund(self) -> None:
        CARDS.cancel(self.result(Trip.payment))

    @on_failure
    def apologise(self) -> None:
        assert self.failure is not None
        text = f"{self.failure.step}: {self.failure.message}"
        send_mail("We are sorry", text, None, [self.data["email"]])


# 7. A Celery chain brought over: its tasks were plain functions, or became Dramatiq actors

# It was: chain(fetch.s(url), count_words.s(), store.s(name=name)).delay()


def fetch(url: str) -> str:
    """Was a task; is a function, which a step calls."""
    return f"the page at {url}"


@dramatiq.actor(max_retries=3, min_backoff=1_000)
def count_words(text: str) -> int:
    """Was a task; is an actor, which others send too."""
    return len(text.split())


@dramatiq.actor
def store(count: int, name: str) -> None:
    """Takes what the task before returned, and an argument of its own."""
    Message.objects.create(name=name, body=f"{count} words")


class CountWords(Sequence):
    """`fetch | count_words | store`."""

    @step
    def fetched(self) -> str:
        return fetch(self.data["url"])

    counted = step(count_words, args=lambda self: [self.result("fetched")])
    stored = step(
        store,
        args=lambda self: [self.result("counted")],
        kwargs=lambda self: {"name": self.data["name"]},
    )
