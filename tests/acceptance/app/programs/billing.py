"""Each month, every customer is charged once, no faster than the bank likes; then a report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.request import Request, urlopen

from django.db.models import Sum

from sequences import Limit, Sequence, SequenceMeta, cron, step

from ..models import Charge, Customer
from ..queues import QUEUE

BANK = os.environ.get("BANK_URL", "https://bank.example/charges")

bank_limit = Limit("bank", concurrency=5, rate=10, per=timedelta(seconds=1))


def charge_at_bank(customer: Customer, key: str) -> str:
    """The receipt. The bank knows a key again, and answers the same."""
    body = json.dumps({"account": customer.account, "amount": customer.amount}).encode()
    request = Request(BANK, body, {"Idempotency-Key": key}, method="POST")
    with urlopen(request, timeout=10) as answer:
        receipt: str = json.load(answer)["receipt"]
    return receipt


def of_month(slot: datetime) -> dict[str, Any]:
    return {"month": f"{slot:%Y-%m}"}


class MonthlyBilling(Sequence):
    """On the first of each month, at six."""

    class Meta(SequenceMeta):
        queue_name = QUEUE
        # Late is better than never.
        schedule = cron(
            "0 6 1 * *", timezone="Europe/Berlin", data=of_month, catch_up=timedelta(days=31)
        )

    def customers(self) -> Iterator[int]:
        yield from Customer.objects.order_by("pk").values_list("pk", flat=True)

    @step(
        each=customers,
        concurrency=5,
        limits=[bank_limit],
        max_retries=10,
        max_backoff=timedelta(minutes=10),
    )
    def charge(self, pk: int) -> int:
        customer = Customer.objects.get(pk=pk)
        month = self.data["month"]
        receipt = charge_at_bank(customer, f"{month}-{pk}")
        Charge.objects.create(
            customer=customer, month=month, amount=customer.amount, receipt=receipt
        )
        return customer.amount

    @step
    def report(self) -> None:
        charges = Charge.objects.filter(month=self.data["month"])
        self.data["report"] = {
            "customers": charges.count(),
            "amount": charges.aggregate(total=Sum("amount"))["total"] or 0,
            "charged": sum(self.results(MonthlyBilling.charge)),
        }
