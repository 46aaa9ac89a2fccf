"""Asynchronous steps as users write them. Nobody runs it: mypy and pyright check the types."""

from __future__ import annotations

from typing import assert_type

from sequences import Sequence, on_end, step
from sequences.definitions.steps import AsyncStep, Step


async def notify(sequence: Sequence) -> int:
    return 1


class Render:
    async def perform(self, sequence: Sequence) -> str:
        return "done"


class Crawler(Sequence):
    @step
    async def fetch(self) -> dict[str, int]:
        return {"pages": 2}

    @step(max_retries=5)
    async def again(self) -> int:
        return 3

    @step(each="urls", concurrency=200, atomic=False)
    async def visit(self, url: str) -> bool:
        assert_type(await self.aresult(Crawler.fetch), dict[str, int])
        assert_type([one async for one in self.aresults(Crawler.again)], list[int])
        assert_type(await self.aonce("name", notify, self), int)
        return True

    @step
    def count(self) -> int:
        assert_type(self.result(Crawler.fetch), dict[str, int])
        assert_type(self.result(Crawler.again), int)
        assert_type(self.result(Crawler.told), int)
        assert_type(self.result(Crawler.render), str)
        assert_type(list(self.results(Crawler.visit)), list[bool])
        return 1

    told = step(notify)
    render = step(Render)

    @on_end
    async def close(self) -> None: ...


async def calls(crawler: Crawler) -> None:
    assert_type(await crawler.fetch(), dict[str, int])
    assert_type(await crawler.visit("a"), bool)
    assert_type(crawler.count(), int)


assert_type(Crawler.fetch, AsyncStep[dict[str, int]])
assert_type(Crawler.count, Step[int])
