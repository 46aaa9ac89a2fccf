"""The steps of a run for customers: below each step, the items of its fan-out or the steps of its
child run."""

from collections.abc import Iterator
from dataclasses import dataclass

from sequences.models import NO_ITEM, SequenceRun, StepRun


@dataclass(frozen=True)
class Row:
    """A line of the order's page."""

    step: str
    label: str
    status: str
    note: str = ""
    is_part: bool = False


def of(run: SequenceRun) -> list[Row]:
    """What has happened and what will, in the plan's order; steps started by a failure come
    last."""
    return list(rows_of(run, is_part=False))


def rows_of(run: SequenceRun, *, is_part: bool) -> Iterator[Row]:
    failures = {failure.step_run_id: failure.message for failure in run.failures.order_by("pk")}
    steps: dict[str, list[StepRun]] = {}
    for step in run.steps.order_by("item").prefetch_related("children__plan"):
        steps.setdefault(step.step, []).append(step)
    for node in sorted(run.plan.plan.nodes, key=lambda node: node.off_path):
        if node.name not in steps and not node.off_path and not run.is_finished:
            yield Row(node.name, label_of(node.name), "", is_part=is_part)
        for step in steps.get(node.name, ()):
            yield row_of(step, failures.get(step.pk, ""), is_part=is_part)
            for child in step.children.all():
                yield from rows_of(child, is_part=True)


def row_of(step: StepRun, failure: str, *, is_part: bool) -> Row:
    is_item = step.item != NO_ITEM
    label = step.payload["product"] if is_item and step.payload else label_of(step.step)
    # The items of a fan-out, listed below it, say why they failed.
    tells = step.status in ("failed", "retrying") and step.kind != "each"
    return Row(step.step, label, step.status, failure if tells else "", is_part or is_item)


def label_of(name: str) -> str:
    return name.replace("_", " ")
