from __future__ import annotations

from django.db import models


class Entry(models.Model):
    """A user's own row: steps write some, and the tests count them."""

    run = models.UUIDField(db_index=True)
    step = models.CharField(max_length=100)
    note = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"{self.run} {self.step} {self.note}"


class Customer(models.Model):
    """Somebody who pays each month."""

    account = models.CharField(max_length=40)
    amount = models.IntegerField()  # cents

    def __str__(self) -> str:
        return self.account


class Charge(models.Model):
    """What a customer has paid for a month. No constraint: the tests count."""

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    month = models.CharField(max_length=7)
    amount = models.IntegerField()
    receipt = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.customer} {self.month}"
