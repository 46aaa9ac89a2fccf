"""Runs about objects as their users would write them: mypy and pyright check the types, a test
runs them."""

from __future__ import annotations

from typing import assert_type

from django.db.models import Model

from sequences import Sequence, SequenceMeta, step, subsequence
from sequences.definitions.subjects import SubjectKey
from sequences.models import SequenceRun, SequenceRunQuerySet
from testproject.orders.models import Order


class Pack(Sequence):
    """One parcel of an order."""

    class Meta(SequenceMeta):
        app_label = "shop"
        on_subject_delete = "cancel"

    subject: Order

    @step
    def wrap(self) -> str:
        assert_type(self.subject, Order)
        return self.subject.name


class Fulfil(Sequence):
    """Its child is about the same order, and its last step awaits it."""

    class Meta(SequenceMeta):
        app_label = "shop"

    subject: Order

    pack = subsequence(Pack, data=lambda self: {}, subject=lambda self: self.subject)

    @step
    async def thank(self) -> None:
        order = await self.asubject()
        self.data["thanked"] = order.name


def place(order: Order) -> Fulfil:
    """Start it, and look at it from both sides."""
    fulfil = Fulfil.start({}, subject=order)
    assert_type(fulfil.subject, Order)
    assert_type(fulfil.run.subject, Model | None)
    assert_type(fulfil.run.subject_key, SubjectKey | None)
    assert_type(SequenceRun.objects.about(order), SequenceRunQuerySet)
    assert_type(Fulfil.runs.about(order).unfinished(), SequenceRunQuerySet)
    if isinstance(subject := fulfil.run.subject, Order):
        assert_type(subject, Order)
    Fulfil.start_many([({}, {"subject": order})])
    return fulfil


def misuse() -> None:
    """What type checkers refuse: none of it is called."""
    Fulfil.start({}, subject="shop.order:17")  # type: ignore[arg-type]
    SequenceRun.objects.about("shop.order:17")  # type: ignore[arg-type]
    subsequence(Pack, subject="subject")  # type: ignore[arg-type]
