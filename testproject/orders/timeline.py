"""The steps of a run as a customer reads them: with the items of a fan-out and the steps of
another sequence below the step that they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass

from sequences.models import PLAIN, SequenceRun, StepRun


@dataclass(frozen=True)
class Row:
    """A line of the order's page."""

    step: str
    label: str
    status: str
    note: str = ""
    is_part: bool = False


def of(run: SequenceRun) -> list[Row]:
    """What has happened and what will, in the order of the plan."""
    return list(rows_of(run, is_part=False))


def rows_of(run: SequenceRun, *, is_part: bool) -> Iterator[Row]:
    notes = {failure.step_run_id: failure.message for failure in run.failures.order_by("pk")}
    steps: dict[str, list[StepRun]] = {}
    for step in run.steps.order_by("item").prefetch_related("children__plan"):
        steps.setdefault(step.step, []).append(step)
    for node in run.plan.plan.nodes:
        label = node.name.replace("_", " ")
        if node.name not in steps and not node.aside and not run.is_finished:
            yield Row(node.name, label, "", is_part=is_part)
        for step in steps.get(node.name, ()):
            is_item = step.item != PLAIN
            name = step.payload["product"] if is_item and step.payload else label
            note = notes.get(step.pk, "") if step.status in ("failed", "retrying") else ""
            yield Row(node.name, name, step.status, note, is_part=is_part or is_item)
            for child in step.children.all():
                yield from rows_of(child, is_part=True)
