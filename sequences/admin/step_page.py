"""The steps that a run's page shows at once: of a thousand, those around the current step."""

from __future__ import annotations

from dataclasses import dataclass

from ..inspection.snapshot import RunSnapshot, StepSnapshot

#: Steps per page.
STEPS_PER_PAGE = 100


@dataclass(frozen=True)
class StepPage:
    """Some of a run's steps, and where the others are."""

    steps: tuple[StepSnapshot, ...]
    number: int
    #: The number of pages.
    count: int
    #: The number of steps.
    total: int

    @property
    def first(self) -> int:
        """The number of its first step."""
        return (self.number - 1) * STEPS_PER_PAGE + 1

    @property
    def last(self) -> int:
        """The number of its last step."""
        return self.first + len(self.steps) - 1

    @property
    def before(self) -> int:
        """The number of the previous page; 0: there is none."""
        return self.number - 1

    @property
    def after(self) -> int:
        """The number of the next page; 0: there is none."""
        return self.number + 1 if self.number < self.count else 0


def step_page(snapshot: RunSnapshot, number: str = "") -> StepPage:
    """The page with that number, or the one with the first current step of the run."""
    steps = snapshot.steps
    count = max(-(-len(steps) // STEPS_PER_PAGE), 1)
    page = int(number) if number.isdecimal() and len(number) < 9 else _current(snapshot)
    page = min(max(page, 1), count)
    begin = (page - 1) * STEPS_PER_PAGE
    return StepPage(steps[begin : begin + STEPS_PER_PAGE], page, count, len(steps))


def _current(snapshot: RunSnapshot) -> int:
    at = snapshot.at[0].name if snapshot.at else ""
    index = next((i for i, step in enumerate(snapshot.steps) if step.name == at), 0)
    return index // STEPS_PER_PAGE + 1
