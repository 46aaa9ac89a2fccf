"""Typed data as users write it. Nobody runs it: mypy and pyright check that they understand it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypedDict, TypeVar, assert_type

from pydantic import BaseModel

from sequences import Sequence, event, step, subsequence
from sequences.definitions.steps import Step
from sequences.testing import assert_steps, build, run_sequence


class Line(BaseModel):
    sku: str


class Order(BaseModel):
    total: Decimal
    lines: list[Line] = []


@dataclass
class Parcel:
    weight: float


class Address(TypedDict):
    city: str


T = TypeVar("T", bound=Order)


def notify(sequence: Sequence[Order]) -> Decimal:
    return sequence.data.total


class Checkout(Sequence[Order]):
    approval = event()

    @step
    def charge(self) -> int:
        assert_type(self.data, Order)
        assert_type(self.data.lines[0].sku, str)
        self.data.total += 1
        self.data = self.data.model_copy(update={"total": 3})
        self.data.totl = 3  # type: ignore[attr-defined]
        self.data["total"]  # type: ignore[index]
        return len(self.data.lines)

    notified = step(notify)

    @step(when=lambda self: self.data.total > 3)
    def ship(self) -> None: ...


class Express(Checkout):
    @step
    def hurry(self) -> None:
        assert_type(self.data, Order)


class Base(Sequence[T]):
    class Meta:
        abstract = True

    @step
    def count(self) -> int:
        return len(self.data.lines)


class Concrete(Base[Order]):
    @step
    def look(self) -> None:
        assert_type(self.data, Order)


class Shipping(Sequence[Parcel]):
    def each_gram(self) -> Iterator[int]:
        assert_type(self.data.weight, float)
        yield from range(int(self.data.weight))

    checkout = subsequence(Checkout)


class Move(Sequence[Address]):
    @step
    def go(self) -> None:
        assert_type(self.data, Address)
        assert_type(self.data["city"], str)
        self.data["town"] = 1  # type: ignore[typeddict-unknown-key]


class Plain(Sequence):
    @step
    def go(self) -> None:
        assert_type(self.data, dict[str, Any])


class Mapped(Sequence[dict[str, int]]):
    @step
    def go(self) -> None:
        assert_type(self.data, dict[str, int])


def start(order: Order, address: Address) -> None:
    assert_type(Checkout.start(order), Checkout)
    assert_type(Checkout.start({"total": 3}, key="a"), Checkout)
    assert_type(Checkout(total=3).data, Order)
    assert_type(Checkout.start_many([order, {"total": 3}, (order, {"key": "a"})]), list[Checkout])
    assert_type(Move.start(address).data["city"], str)
    assert_type(run_sequence(Checkout, total=3).data.total, Decimal)
    assert_type(build(Shipping, weight=1.5).data, Parcel)
    assert_type(Checkout.charge, Step[int])
    assert_steps(Checkout(total=3), [])
    Checkout.start(3)  # type: ignore[arg-type]
    Checkout.start(Parcel(1))  # type: ignore[arg-type]


async def astart(order: Order) -> None:
    assert_type((await Checkout.astart(order)).data, Order)
