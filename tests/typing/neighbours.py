"""Steps that are somebody else's: Dramatiq's actors and Django's tasks. Nobody runs it: mypy and
pyright check the types.

A line with ``type: ignore`` must be an error: both say so if it is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, assert_type

import dramatiq
from django.tasks import TaskContext, task

from sequences import Sequence, adispatch, dispatch, step
from sequences.definitions.steps import Step


@dramatiq.actor(max_retries=3)
def resize(page: str, width: int = 100) -> int:
    return width


@dramatiq.actor
async def fetch(url: str) -> str:
    return url


@task
def send_welcome(address: str) -> int:
    return 1


@task(queue_name="mails", priority=10)
async def remind(address: str, *, urgent: bool = False) -> str:
    return address


class Signup(Sequence):
    # An actor, once and for each item
    cover = step(resize, args=lambda self: ["cover"], kwargs=lambda self: {"width": 10})
    pages = step(resize, each="pages", args=lambda self, page: [page], concurrency=3)
    plain = step(resize, each=lambda self: ["one", "two"])
    named = step(resize, each="pages", kwargs=lambda self, page: {"page": page})
    fetched = step(fetch, each="urls", atomic=False, allow_failed=0.1)

    # A task, once and for each item
    welcome = step(send_welcome, args=lambda self: [self.data["email"]], max_retries=3)
    reminded = step(
        remind,
        each="friends",
        args=lambda self, friend: [friend],
        kwargs=lambda self, friend: {"urgent": True},
        concurrency=2,
        after=welcome,
    )

    @step
    def count(self) -> int:
        assert_type(list(self.results(Signup.pages)), list[int])
        assert_type(self.results(Signup.plain), Iterator[int])
        assert_type(self.result(Signup.welcome), int)
        return 1


assert_type(Signup.cover, Step[int])
assert_type(Signup.pages, Step[int])
assert_type(Signup.fetched, Step[str])
assert_type(Signup.welcome, Step[int])
# What Django's stubs know of an asynchronous task is its coroutine.
reminded: Step[Any] = Signup.reminded


@task(takes_context=True)
def with_context(context: TaskContext[Any, Any], address: str) -> int:
    return 1


step(resize, each="pages", args=["page"])  # type: ignore[call-overload]
step(resize, each="pages", widht=3)  # type: ignore[call-overload]
step(send_welcome, args=["page"])  # type: ignore[call-overload]
step(send_welcome, concurrency=3)  # type: ignore[call-overload]


# The outbox


class Register(Sequence):
    @step
    def create(self) -> None:
        dispatch(resize.message("cover", width=10))
        dispatch(resize.message_with_options(args=("cover",)), delay=timedelta(days=1))
        dispatch(fetch.message("/"), delay=60_000)

    @step
    async def later(self) -> None:
        await adispatch(resize.message("cover"))


dispatch(resize)  # type: ignore[arg-type]
dispatch(resize.message("cover"), delay="1 day")  # type: ignore[arg-type]
