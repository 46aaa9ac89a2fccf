"""Many pages of a site, a lot of them at once, in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from sequences import Sequence, SequenceMeta, step

from ..queues import QUEUE


class Crawler(Sequence):
    class Meta(SequenceMeta):
        queue_name = QUEUE
        max_retries = 5

    def pages(self) -> Iterator[int]:
        yield from range(self.data["pages"])

    @step(each=pages, concurrency=200, atomic=False)
    async def fetch(self, page: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.data["port"])
        try:
            writer.write(f"{page}\n".encode())
            await writer.drain()
            return int(await reader.readline())
        finally:
            writer.close()

    @step
    def end(self) -> None:
        self.data["sum"] = sum(self.results(Crawler.fetch))
