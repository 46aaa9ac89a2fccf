"""Limits as users write them. Nobody runs it: mypy and pyright check that they understand them.

A line with ``type: ignore`` must be an error: both say so if it is none.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type
from uuid import UUID

from sequences import Limit, Sequence, SequenceMeta, job, on_failure, step
from sequences.definitions.steps import Step, Undo
from sequences.models import StoredLimit

bank = Limit("bank", concurrency=5, rate=10, per=timedelta(seconds=1))
account = Limit("account", key="account_id", concurrency=1)
item = Limit("item", key=lambda sequence, item: item["id"], rate=5, per=60_000)


def tenant(sequence: Sequence[Any]) -> UUID | None:
    return UUID(sequence.data["tenant"]) if "tenant" in sequence.data else None


class Billing(Sequence):
    class Meta(SequenceMeta):
        app_label = "shop"
        limits = [Limit("tenant", key=tenant, concurrency=1)]
        when_full = "cancel_oldest"

    @step(limits=[bank, account])
    def charge(self) -> int:
        return 1

    @charge.undo(limits=bank)
    def refund(self) -> None: ...

    @step(each="customers", limits=item)
    def write(self, customer: dict[str, Any]) -> str:
        return str(customer["id"])

    @on_failure(limits=[bank])
    def tell(self) -> None: ...


assert_type(Billing.charge, Step[int])
assert_type(Billing.refund, Undo)
Billing.start({"tenant": "a"}, priority=-1)
Billing.start({}, priority="high")  # type: ignore[arg-type]
Limit("bank", 5)  # type: ignore[call-arg]
Limit("bank", concurrency="5")  # type: ignore[arg-type]
Limit("bank", rate=1, key=7)  # type: ignore[arg-type]


class Wrong(Sequence):
    class Meta(SequenceMeta):
        when_full = "drop"  # type: ignore[assignment]

    @step(limits=["bank"])  # type: ignore[list-item]
    def charge(self) -> None: ...


@job("pay", limits=[bank])
def pay() -> None: ...


def slow_down(limit: StoredLimit) -> None:
    limit.change(concurrency=1, rate=5, per=timedelta(seconds=10), by="ada", reason="slow")
    limit.reset(by="ada")
