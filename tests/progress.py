"""How far the suite is: a line that changes in a terminal, elsewhere a new one each half minute."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import Protocol, TextIO

PERCENT = re.compile(rb"\[ *(\d+)%\]")
ERASE_LINE = "\r\x1b[K"
#: Below this share an estimate says more about the first tests than about the suite.
LEAST_SHARE = 0.1


class Estimated(Protocol):
    """A part of the suite."""

    @property
    def seconds(self) -> int: ...


def share_done(output: Path) -> float:
    """How much of its tests a pytest that writes here has done."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - 4096))
        percents = PERCENT.findall(file.read())
    return int(percents[-1]) / 100 if percents else 0.0


def minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else f"about {round(seconds / 60)} min"


@dataclass
class Progress:
    """The share of the parts' expected time that is over."""

    legs: list[Estimated]
    expected: float  # seconds, for all of them
    output: TextIO = field(default_factory=lambda: sys.stdout)
    outputs: dict[Estimated, Path] = field(default_factory=dict, init=False)
    ended: set[Estimated] = field(default_factory=set, init=False)
    started: float = field(default_factory=monotonic, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def share(self) -> float:
        total = sum(leg.seconds for leg in self.legs)
        done = sum(leg.seconds * self.share_of(leg) for leg in self.legs)
        return done / total if total else 0.0

    def share_of(self, leg: Estimated) -> float:
        if leg in self.ended:
            return 1.0
        return share_done(self.outputs[leg]) if leg in self.outputs else 0.0

    def seconds_left(self) -> float:
        share = self.share()
        if share < LEAST_SHARE:
            return self.expected * (1 - share)
        return (monotonic() - self.started) * (1 - share) / share

    def line(self) -> str:
        legs = ", ".join(
            f"{leg} {self.share_of(leg):.0%}" for leg in self.outputs if leg not in self.ended
        )
        return f"{self.share():4.0%}, {minutes(self.seconds_left())} left: {legs}"

    def say(self, text: str) -> None:
        with self._lock:
            erase = ERASE_LINE if self.output.isatty() else ""
            print(f"{erase}{text}", end="", file=self.output, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        over = Event()
        thread = Thread(target=self._show, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _show(self, over: Event) -> None:
        terminal = self.output.isatty()
        while not over.wait(1 if terminal else 30):
            self.say(self.line() if terminal else f"{self.line()}\n")
