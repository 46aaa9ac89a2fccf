"""A film in several sizes, by ffmpeg: with its progress, and stopped as soon as it is cancelled."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE, CalledProcessError
from uuid import uuid4

from sequences import Sequence, SequenceMeta, on_cancel, step

from ..queues import QUEUE

FFMPEG = shlex.split(os.environ.get("FFMPEG", "ffmpeg"))


@dataclass
class Film:
    source: str
    seconds: float
    heights: list[int] = field(default_factory=lambda: [1080, 720, 360])
    files: dict[str, str] = field(default_factory=dict)


class Renditions(Sequence[Film]):
    class Meta(SequenceMeta):
        queue_name = QUEUE
        max_retries = 3

    def heights(self) -> Iterator[int]:
        yield from self.data.heights

    @step(
        each=heights,
        concurrency=2,
        atomic=False,
        notify_shutdown=True,
        time_limit=timedelta(hours=2),
    )
    async def render(self, height: int) -> str:
        target = self.target(height)
        # A name of its own: the ffmpeg of a worker that was killed may still write to its file.
        part = target.with_name(f"{target.stem}-{uuid4().hex}.part")
        command = [*FFMPEG, "-nostats", "-progress", "pipe:1", "-i", self.data.source]
        command += ["-vf", f"scale=-2:{height}", "-f", "mp4", str(part)]
        ffmpeg = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        assert ffmpeg.stdout is not None
        try:
            async for line in ffmpeg.stdout:
                name, _, value = line.decode().strip().partition("=")
                if name == "out_time_us" and value.isdecimal():  # at first it says N/A
                    self.progress(int(value) / 1e6, self.data.seconds, f"{height} lines")
            if code := await ffmpeg.wait():
                raise CalledProcessError(code, command)
        except BaseException:
            # It failed, was cancelled, took too long, or the worker shuts down.
            if ffmpeg.returncode is None:
                ffmpeg.kill()
            await ffmpeg.wait()
            part.unlink(missing_ok=True)
            raise
        part.replace(target)
        return str(target)

    @step
    def publish(self) -> None:
        outcomes = self.outcomes(Renditions.render)
        self.data.files = {str(outcome.item): outcome.result for outcome in outcomes}

    @on_cancel
    def remove(self) -> None:
        for height in self.data.heights:
            self.target(height).unlink(missing_ok=True)

    def target(self, height: int) -> Path:
        return Path(self.data.source).with_suffix(f".{height}.mp4")
