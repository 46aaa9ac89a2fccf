"""Code as users write it. Nobody runs it: mypy and pyright check that they understand it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import dramatiq
from django.db.models import QuerySet

from sequences import Abort, Finish, Repeat, Sequence, finish, get, repeat, step
from sequences.definitions.steps import Step, Undo
from sequences.models import Operation, SequenceRun, StepFailure, StepLoss, StepRun
from sequences.testing import assert_steps, build, clock, drain, isolate_sequences, run_sequence


def notify(sequence: Sequence) -> int:
    return len(sequence.data)


class Render:
    def perform(self, sequence: Sequence) -> str:
        return ""


@dramatiq.actor(max_retries=3)
def convert(pages: int) -> float:
    return 1.0


class ContactForm(Sequence):
    class Meta:
        max_retries = 3
        handoff = "direct"
        retention = timedelta(days=30)

    @step
    def create(self) -> int:
        assert_type(self.data, dict[str, Any])
        assert_type(self.run, SequenceRun)
        assert_type(self.step_run, StepRun)
        assert_type(self.attempt, int)
        assert_type(self.idempotency_key, str)
        self.progress(1, 2, "half")
        return 1

    @step(after=create, delay=timedelta(days=1), when=lambda self: True, max_retries=5)
    def assign(self) -> Repeat | None:
        if self.create() > 1:
            raise Abort("too many")
        return repeat(after=timedelta(seconds=3))

    @step(after=[create, "assign"], delay=lambda self: timedelta(days=self.data["days"]))
    def end(self) -> Finish:
        assert_type(self.result(ContactForm.create), int)
        assert_type(self.result(ContactForm.create, 0), int)
        assert_type(self.result(ContactForm.create, None), int | None)
        assert_type(self.result(ContactForm.rendered, default=0), str | int)
        assert_type(self.result(ContactForm.converted), float)
        assert_type(self.result("create"), Any)
        assert_type(self.results("create"), Iterator[Any])
        self.result(1)  # type: ignore[call-overload]
        return finish()

    notified = step(notify, after="create")
    rendered = step(Render)
    converted = step(convert, args=lambda self: (self.data["pages"],))

    def of_instances(self) -> None:
        assert_type(self.create(), int)
        assert_type(self.notified(), int)
        assert_type(self.rendered(), str)
        assert_type(self.converted(), float)


def resize(sequence: Sequence, page: str) -> int:
    return len(page)


class Album(Sequence):
    def pages(self) -> Iterator[str]:
        yield from self.data["pages"]

    @step(each=pages, concurrency=3, batch=2, allow_failed=0.1)
    def fetch(self, pages: list[str]) -> int:
        return len(pages)

    @fetch.undo
    def forget(self, pages: list[str], result: int) -> None: ...

    resized = step(resize, each="pages", after=fetch)

    @step
    def publish(self) -> None:
        assert_type(self.results(Album.fetch), Iterator[int])
        assert_type(self.results(Album.resized), Iterator[int])

    @publish.undo(attempted=True, max_retries=3)
    def withdraw(self) -> None: ...

    def of_instances(self) -> None:
        assert_type(self.fetch(["a", "b"]), int)
        assert_type(Album.fetch, Step[int])
        assert_type(Album.resized, Step[int])
        assert_type(Album.forget, Undo)
        assert_type(Album.withdraw, Undo)


class GiftForm(ContactForm):
    assign = None  # type: ignore[assignment]

    @step
    def create(self) -> int:
        return super().create() + 1


def view() -> None:
    sequence = ContactForm(name="Joel", key="data too", self="also", cls="this")
    assert_type(sequence, ContactForm)
    assert_type(sequence.created, bool)
    assert_type(ContactForm.start({"name": "Joel"}, key="a", unique="unfinished"), ContactForm)
    assert_type(ContactForm.start_many([{}, ({}, {"key": "a"})]), list[ContactForm])
    assert_type(ContactForm.create, Step[int])
    assert_type(ContactForm.rendered, Step[str])
    assert_type(get("shop.ContactForm"), type[Sequence[Any]])

    ContactForm.start({}, kay=1)  # type: ignore[call-arg]
    ContactForm.start({}, unique="never")  # type: ignore[arg-type]
    ContactForm.start([1])  # type: ignore[arg-type]


def steer(run: SequenceRun) -> None:
    run.pause(by="me", reason="let me see")
    run.skip(ContactForm.assign, reason="not needed")
    run.restart_from("create")
    run.edit({"name": "Joel"})
    for waiting in ContactForm.runs.unfinished().waiting_for(ContactForm.end):
        assert_type(waiting, SequenceRun)
        waiting.cancel()
    assert_type(ContactForm.runs.get(key="a").deliver("approval", {"by": "me"}), bool)
    run.set_deadline(timedelta(days=2), by="me", reason="on the road")
    run.set_deadline(None)
    run.set_deadline(5)  # type: ignore[arg-type]
    run.skip(5)  # type: ignore[arg-type]


def read(run: SequenceRun) -> None:
    assert_type(run.steps.get(), StepRun)
    assert_type(run.steps.filter(step="create"), QuerySet[StepRun])
    assert_type(run.steps.get().run_id, UUID)
    assert_type(run.steps.get().children.get(), SequenceRun)
    assert_type(run.steps.get().failures.get(), StepFailure)
    assert_type(run.steps.get().losses.get(), StepLoss)
    assert_type(run.failures.get(), StepFailure)
    assert_type(run.failures.get().step_run_id, int | None)
    assert_type(run.losses.get(), StepLoss)
    assert_type(run.operations.get(), Operation)
    assert_type(run.parent_id, int | None)
    run.stepps.all()  # type: ignore[attr-defined]


async def asynchronous_view() -> None:
    sequence = await ContactForm.astart({})
    assert_type(sequence, ContactForm)
    assert_type(await ContactForm.astart_many([{}]), list[ContactForm])
    await sequence.run.apause()
    await sequence.run.aset_deadline(datetime(2030, 1, 1, tzinfo=UTC))


@isolate_sequences()
def test() -> None:
    assert_type(run_sequence(ContactForm, name="Joel"), ContactForm)
    assert_type(build(ContactForm).create(), int)
    assert_type(drain(), int)
    with clock() as moving:
        moving.move(timedelta(days=1))
    assert_steps(run_sequence(ContactForm), [("create", "succeeded")])
