"""Options as users write them. Nobody runs it: mypy and pyright check that they understand them.

A line with ``type: ignore`` must be an error: both say so if it is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from math import inf
from typing import Any, assert_type

from django.forms import Form
from django.utils.translation import gettext_lazy as _

from sequences import Sequence, SequenceMeta, any_of, event, on_failure, step, subsequence
from sequences.definitions.steps import Event, OnFailure, Step, Subsequence, Undo

SOON = timedelta(minutes=1)


def notify(sequence: Sequence) -> int:
    return 1


def resize(sequence: Sequence, page: str) -> int:
    return 1


class Render:
    def perform(self, sequence: Sequence, page: str) -> str:
        return page


def is_retried(retries: int, exception: Exception) -> bool:
    return retries < 3


class Everything(Sequence):
    class Meta(SequenceMeta):
        app_label = "shop"
        aliases = ["shop.Everything"]
        verbose_name = _("everything")
        handoff = "direct"
        retention = timedelta(days=30)
        retention_failed = None
        redact = ["card"]
        defaults = {"pages": []}
        atomic = False
        max_retries = 3
        min_backoff = SOON
        throws = ValueError, KeyError
        time_limit = inf
        delay = lambda self: SOON  # noqa: E731
        trace = "all"  # of a middleware of the project

        @staticmethod
        def retry_when(retries: int, exception: Exception) -> bool:
            return True

    @step(
        queue_name="slow",
        priority=5,
        max_retries=None,
        min_backoff=SOON,
        max_backoff=60_000,
        retry_when=is_retried,
        throws=(ValueError, KeyError),
        max_age=SOON,
        time_limit=None,
        store_results=True,
        result_ttl=1_000,
        atomic=False,
        delay=lambda self: datetime.now(timezone.utc) + SOON,  # noqa: UP017
        when=lambda self: self.data["x"] > 1,
        on_error="end",
        aliases=["earlier"],
        label=_("the first"),
        options={"trace": "all"},
    )
    def first(self) -> int:
        return 1

    @first.undo(attempted=True, atomic=False, max_retries=3, options={"trace": "all"})
    def forget(self) -> None: ...

    approval = event(
        timeout=timedelta(days=3),
        on_timeout="continue",
        on_error=first,
        after=first,
        delay=SOON,
        max_retries=3,
        options={"trace": "all"},
    )
    child = subsequence(
        "shop.Child",
        data=lambda self, item: {"item": item},
        each="pages",
        allow_failed=0.1,
        retries={LookupError: 0},
        after=[first, "approval"],
        max_retries=3,
        options={"trace": "all"},
    )

    @step(
        each="pages",
        concurrency=3,
        batch=2,
        allow_failed=True,
        retries={ConnectionError: 10, ValueError: None},
        options={"trace": "all"},
    )
    def fetch(self, pages: list[str]) -> int:
        return len(pages)

    notified = step(notify, max_retries=3, options={"trace": "all"})
    resized = step(resize, each="pages", concurrency=3)
    rendered = step(Render, each="pages", concurrency=3)

    @on_failure(max_retries=3, options={"trace": "all"})
    def end(self) -> None: ...

    def of_classes(self) -> None:
        assert_type(Everything.first, Step[int])
        assert_type(Everything.forget, Undo)
        assert_type(Everything.approval, Event)
        assert_type(Everything.child, Subsequence)
        assert_type(Everything.fetch, Step[int])
        assert_type(Everything.notified, Step[int])
        assert_type(Everything.resized, Step[int])
        assert_type(Everything.rendered, Step[str])
        assert_type(Everything.end, OnFailure)
        assert_type(self.result(Everything.approval), Any)
        assert_type(self.results(Everything.rendered), Iterator[str])


class WrongMeta(Sequence):
    class Meta(SequenceMeta):
        abstract = 1  # type: ignore[assignment]
        aliases = 1  # type: ignore[assignment]
        handoff = "drect"  # type: ignore[assignment]
        max_retries = "3"  # type: ignore[assignment]
        retention = 30  # type: ignore[assignment]
        throws = "ValueError"  # type: ignore[assignment]
        time_limit = "1 h"  # type: ignore[assignment]


def wrong(sequence: type[Everything]) -> None:
    # A value of another type
    step(max_retries="3")  # type: ignore[call-overload]
    step(notify, max_retries="3")  # type: ignore[call-overload]
    step(after=3)  # type: ignore[call-overload]
    step(delay="1 h")  # type: ignore[call-overload]
    step(when=True)  # type: ignore[call-overload]
    step(min_backoff=1.5)  # type: ignore[call-overload]
    step(throws="ValueError")  # type: ignore[call-overload]
    step(each=3)  # type: ignore[call-overload]
    step(each="pages", batch="2")  # type: ignore[call-overload]
    step(options="trace")  # type: ignore[call-overload]
    event(timeout="3 days")  # type: ignore[arg-type]
    event(on_timeout="wait")  # type: ignore[arg-type]
    event(max_retries="3")  # type: ignore[arg-type]
    subsequence(sequence, allow_failed="1 %")  # type: ignore[arg-type]
    subsequence(sequence, priority="high")  # type: ignore[arg-type]
    on_failure(max_retries="3")  # type: ignore[call-overload]
    sequence.first.undo(attempted="yes")  # type: ignore[call-overload]
    # A name that is none
    step(max_retry=3)  # type: ignore[call-overload]
    step(notify, max_retry=3)  # type: ignore[call-overload]
    step(each="pages", concurency=3)  # type: ignore[call-overload]
    event(time_out=SOON)  # type: ignore[call-arg]
    subsequence(sequence, max_retry=3)  # type: ignore[call-arg]
    on_failure(max_retry=3)  # type: ignore[call-overload]
    sequence.first.undo(max_retry=3)  # type: ignore[call-overload]
    # One that another kind of step has
    step(concurrency=3)  # type: ignore[call-overload]
    step(timeout=SOON)  # type: ignore[call-overload]
    step(attempted=True)  # type: ignore[call-overload]
    event(each="pages")  # type: ignore[call-arg]
    event(atomic=False)  # type: ignore[call-arg]
    subsequence(sequence, batch=3)  # type: ignore[call-arg]
    on_failure(after="first")  # type: ignore[call-overload]
    sequence.first.undo(each="pages")  # type: ignore[call-overload]
    # One that is refused
    step(on_success=notify)  # type: ignore[call-overload]
    step(actor_name="mine")  # type: ignore[call-overload]


class FirstOfSeveral(Sequence):
    approval = event(after=[])
    refusal = event(after=[])

    @step(after=any_of(approval, refusal))
    def decide(self) -> None: ...

    @step(after=[decide, any_of("approval", refusal)])
    def tell(self) -> None: ...

    later = event(after=any_of(approval, "refusal"))
    child = subsequence("shop.Child", after=[any_of(approval, refusal)])

    @step(after=any_of(1, 2))  # type: ignore[arg-type]
    def wrong(self) -> None: ...


class Approval(Form): ...


class WithForm(Sequence):
    approval = event(form=Approval)
    wrong = event(form=Approval())  # type: ignore[arg-type]


def link_of(sequence: WithForm) -> str:
    link = sequence.run.deliver_url(WithForm.approval, {"yes": True}, by="ann", max_age=SOON)
    assert_type(link, str)
    sequence.run.deliver_url("approval", max_age=5)  # type: ignore[arg-type]
    return link
