"""The contents of a run's page: truncated values, differences, steps with their buttons."""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, Max, QuerySet, TextField
from django.db.models.functions import Cast, Length
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..inspection import records
from ..inspection.losses import loss_sentence
from ..inspection.snapshot import (
    HOLDABLE,
    ON_HOLD,
    RunSnapshot,
    StepSnapshot,
    hide_secrets,
    visible,
)
from ..inspection.wording import format_duration
from ..models import (
    NO_ITEM,
    Operation,
    RunStatus,
    SequenceRun,
    StepFailure,
    StepLoss,
    StepRun,
    StepStatus,
)
from ..transitions.causes import REPORTS
from ..utils.text import label_of
from .action_texts import TEXTS, title_of
from .base import MAX_NEWEST_ROWS

#: How many characters of one value a page shows; a link leads to the rest.
MAX_VALUE_CHARACTERS = 100_000
#: The same for one value among many.
MAX_LISTED_VALUE_CHARACTERS = 10_000
#: How many failed attempts are shown with their tracebacks, the latest.
TRACEBACKS = 20
#: How many differences of edited data are shown, the latest.
DIFFERENCES = 10


@dataclass(frozen=True)
class Value:
    """A stored value as text, as much as a page shows of it."""

    text: str
    #: The length of the whole, in characters; 0: this is the whole.
    length: int = 0
    #: The link to the whole.
    url: str = ""


def text_of(value: Any) -> str:
    """JSON for people: indented, sorted by key."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def value_of(
    value: Any, sequence: str, step: str, url: str, longest: int = MAX_VALUE_CHARACTERS
) -> Value:
    """A value without its secrets."""
    text = text_of(visible(value, sequence, step))
    if len(text) <= longest:
        return Value(text)
    return Value(text[:longest], len(text), url)


@dataclass(frozen=True)
class Line:
    """A line of a difference: "+", "-", or unchanged."""

    kind: str
    text: str


def differences(before: str, after: str) -> list[Line]:
    """The differences of the second text, with three lines of context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3)
    names = {"+": "added", "-": "removed", "@": "place"}
    return [Line(names.get(line[0], ""), line) for line in list(lines)[2:]]


def small(
    rows: QuerySet[Any], column: str, longest: int = MAX_LISTED_VALUE_CHARACTERS
) -> QuerySet[Any]:
    """The rows whose JSON in this column is short: long values are not even loaded."""
    sized: QuerySet[Any] = rows.annotate(size=Length(Cast(column, TextField())))
    return sized.filter(size__lte=longest)


@dataclass(frozen=True)
class Button:
    """An action that the run allows now."""

    name: str
    explains: Any
    url: str
    step: str = ""
    step_label: str = ""
    is_dangerous: bool = False
    #: Whether a page asks for confirmation: it cannot be reverted, or would have no effect in this
    #: code.
    asks_first: bool = False
    #: For an event with declared choices: the one that it delivers, and its number among them.
    choice: str = ""
    number: int = 0

    @property
    def label(self) -> Any:
        """Its label in the row of its step."""
        return self.choice or TEXTS[self.name].button

    @property
    def id(self) -> str:
        """The id of its element in the row of its step."""
        number = str(self.number) if self.choice else ""
        return "-".join(filter(None, (self.name, self.step, number)))

    @property
    def title(self) -> str:
        """Its label next to buttons of other steps."""
        if self.choice:
            return gettext("“%(step)s”: %(choice)s") % {
                "step": self.step_label,
                "choice": self.choice,
            }
        return TEXTS[self.name].title_for(self.step_label)


@dataclass(frozen=True)
class Tally:
    """The number of items or children with a status."""

    status: str
    label: Any
    count: int
    url: str = ""


@dataclass(frozen=True)
class StepLine:
    """A step in the table on a run's page."""

    step: StepSnapshot
    now: datetime
    url: str = ""
    counts: tuple[Tally, ...] = ()
    buttons: tuple[Button, ...] = ()

    @property
    def anchor(self) -> str:
        """The id of its row."""
        return f"step-{self.step.name}"

    @property
    def status(self) -> str:
        """The class of its badge."""
        return self.step.state or "pending"

    @property
    def status_label(self) -> Any:
        """The text of its badge."""
        return label_of_step(self.step)

    @property
    def kind_label(self) -> str:
        """Its kind; empty for a plain step."""
        node = self.step.node
        return (
            gettext(node.traits.caption).replace("{step}", node.undoes)
            if node.traits.caption
            else ""
        )

    @property
    def waited(self) -> str:
        """How long it has waited."""
        return format_duration(self.step.waited(self.now))

    @property
    def ran(self) -> str:
        """How long its last attempt took."""
        return format_duration(self.step.ran(self.now))

    @property
    def due(self) -> datetime | None:
        """When it may run."""
        return self.step.row.due_at if self.step.row is not None else None

    @property
    def due_in(self) -> str:
        """How long until then."""
        return (
            "" if self.due is None or self.due <= self.now else format_duration(self.due - self.now)
        )

    @property
    def percent(self) -> int | None:
        """Its progress."""
        progress = self.step.progress
        return None if progress is None else min(round(100 * progress[0] / progress[1]), 100)


def label_of_step(step: StepSnapshot) -> Any:
    """The status of a step as text."""
    if step.is_on_hold:
        return _("on hold")
    return StepStatus(step.state).label if step.state else _("not started")


@dataclass(frozen=True)
class Attempt:
    """The latest of several similar failed attempts, folded."""

    failure: StepFailure
    ago: str
    #: Whether its traceback is here, and not on a page of its own.
    is_whole: bool
    is_open: bool = False
    #: How many there are: of one step, with the same exception and similar messages.
    count: int = 1


def attempts_of(run: SequenceRun, now: datetime) -> list[Attempt]:
    """The latest failed attempt of each kind, newest first; one more than are shown, if any.

    Three queries: the kinds, the latest of each, and those that are shown without tracebacks.
    """
    rows = StepFailure.objects.using(conf.using()).filter(run=run.pk)
    kinds = rows.order_by().values("step", "error", "fingerprint")
    counts = kinds.annotate(count=Count("pk"), newest=Max("pk")).order_by("-newest")
    count_of = {row["newest"]: row["count"] for row in counts[: MAX_NEWEST_ROWS + 1]}
    whole = list(count_of)[:TRACEBACKS]
    failures = list(rows.filter(pk__in=whole)) if whole else []
    if older := list(count_of)[TRACEBACKS:]:
        failures += rows.filter(pk__in=older).defer("traceback")
    hide_secrets(failures, [run], conf.using())
    failures.sort(key=lambda failure: -failure.pk)
    newest = next((failure for failure in failures if failure.error not in REPORTS), None)
    return [
        Attempt(
            failure,
            format_duration(now - failure.failed_at),
            is_whole=index < TRACEBACKS,
            # If it only reports other failures, there is nothing to read below it.
            is_open=failure is newest,
            count=count_of[failure.pk],
        )
        for index, failure in enumerate(failures)
    ]


def moments_of(run: SequenceRun, attempts: Sequence[Attempt]) -> list[StepFailure]:
    """The latest failed attempts for the timeline, without tracebacks."""
    if all(attempt.count == 1 for attempt in attempts):
        return [attempt.failure for attempt in attempts]
    return records.failures_of(run, MAX_NEWEST_ROWS)


@dataclass(frozen=True)
class LossLine:
    """The loss of a worker in the list on a run's page."""

    loss: StepLoss
    sentence: str
    ago: str


def losses_of(snapshot: RunSnapshot) -> list[LossLine]:
    """The latest losses of workers, newest first."""
    return [
        LossLine(loss, loss_sentence(loss), format_duration(snapshot.now - loss.lost_at))
        for loss in records.losses_of(snapshot, MAX_NEWEST_ROWS)
    ]


@dataclass(frozen=True)
class OperationLine:
    """An operation in the list on a run's page."""

    operation: Operation
    ago: str
    #: The changed lines of edited data.
    lines: list[Line] = field(default_factory=list)
    payload: str = ""

    @property
    def title(self) -> str:
        """Its title."""
        return title_of(self.operation.action, label_of(self.operation.step))


def operations_of(run: SequenceRun, now: datetime) -> list[OperationLine]:
    """The latest operations, newest first."""
    newest = records.operations_of(run, MAX_NEWEST_ROWS)
    values = _values_of([operation.pk for operation in newest])
    return [_operation_line(operation, run, values.get(operation.pk), now) for operation in newest]


def _values_of(ids: Collection[int]) -> dict[int, tuple[Any, Any]]:
    if not ids:
        return {}
    rows = Operation.objects.using(conf.using()).filter(pk__in=ids, after__isnull=False)
    values = (
        small(rows, "after", MAX_VALUE_CHARACTERS)
        .order_by("-pk")
        .values_list("pk", "before", "after")
    )
    values = values[:DIFFERENCES]
    return {pk: (before, after) for pk, before, after in values}


def _operation_line(
    operation: Operation, run: SequenceRun, values: tuple[Any, Any] | None, now: datetime
) -> OperationLine:
    ago = format_duration(now - operation.done_at)
    if values is None:
        return OperationLine(operation, ago)
    step = operation.step if operation.action == "deliver" else ""
    before, after = (visible(value, run.sequence, step) for value in values)
    if operation.action != "edit" and (operation.action == "deliver" or before == after):
        return OperationLine(operation, ago, payload=text_of(after))
    return OperationLine(operation, ago, differences(sorted_text(before), sorted_text(after)))


def sorted_text(value: Any) -> str:
    """JSON as text, with sorted keys, for differences."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)


@dataclass(frozen=True)
class Result:
    """What a step has returned."""

    step: str
    label: str
    value: Value


def results_of(snapshot: RunSnapshot, urls: Urls) -> list[Result]:
    """What the steps have returned; for a large result, only a link."""
    rows = StepRun.objects.using(conf.using()).filter(run=snapshot.run.pk, item=NO_ITEM)
    rows = rows.filter(result__isnull=False).order_by("pk")
    sizes = rows.annotate(size=Length(Cast("result", TextField()))).values_list("step", "size")
    size_of = dict(sizes)
    small_ones = [step for step, size in size_of.items() if size <= MAX_LISTED_VALUE_CHARACTERS]
    results = dict(rows.filter(step__in=small_ones).values_list("step", "result"))
    sequence = snapshot.run.sequence
    labels = {step.name: step.label for step in snapshot.steps}

    def value(step: str, size: int) -> Value:
        url = urls.value("result", step)
        if step not in results:
            return Value("", size, url)
        return value_of(results[step], sequence, step, url, MAX_LISTED_VALUE_CHARACTERS)

    return [
        Result(step, labels.get(step, step), value(step, size)) for step, size in size_of.items()
    ]


@dataclass(frozen=True)
class Urls:
    """The URLs of a run's pages."""

    site: str
    run: SequenceRun

    def to(self, name: str, *args: Any, **query: Any) -> str:
        """A page of the runs' admin."""
        url = reverse(f"{self.site}:job_sequences_sequencerun_{name}", args=args)
        return f"{url}?{urlencode(query)}" if query else url

    def action(self, action: str, step: str = "", choice: str = "") -> str:
        """The page that asks for confirmation."""
        query = {"step": step, "choice": choice}
        query = {name: value for name, value in query.items() if value}
        return self.to("action", self.run.pk, action, **query)

    def value(self, what: str, step: str = "") -> str:
        """A whole value, as text."""
        return self.to("value", self.run.pk, what, **({"step": step} if step else {}))

    def step_runs(self, step: str, status: str) -> str:
        """The list of a step's items."""
        url = reverse(f"{self.site}:job_sequences_steprun_changelist")
        query = {"run__id__exact": self.run.pk, "step__exact": step, "status__exact": status}
        return f"{url}?{urlencode(query)}"

    def step_run(self, row: StepRun) -> str:
        """The page of a step run."""
        return reverse(f"{self.site}:job_sequences_steprun_change", args=[row.pk])


class LineBuilder:
    """Builds the rows of the table of steps."""

    def __init__(
        self,
        snapshot: RunSnapshot,
        urls: Urls,
        buttons: Iterable[Button],
        children: Mapping[str, Mapping[str, int]],
        *,
        sees_rows: bool,
    ) -> None:
        self.snapshot, self.urls, self.children = snapshot, urls, children
        self.sees_rows = sees_rows
        self.buttons: dict[str, list[Button]] = defaultdict(list)
        for button in buttons:
            self.buttons[button.step].append(button)

    def lines_of(self, steps: Iterable[StepSnapshot]) -> list[StepLine]:
        """The rows for these steps."""
        return [self._line(step) for step in steps]

    def _line(self, step: StepSnapshot) -> StepLine:
        children = self.children.get(step.name, {})
        return StepLine(
            step,
            self.snapshot.now,
            url=self.urls.step_run(step.row) if self.sees_rows and step.row is not None else "",
            counts=tuple(_counts(step, self.urls, children, self.sees_rows)),
            buttons=tuple(self.buttons[step.name]),
        )


def _counts(
    step: StepSnapshot, urls: Urls, children: Mapping[str, int], sees_rows: bool
) -> Iterator[Tally]:
    for status in StepStatus:
        if count := step.items.get(status):
            url = urls.step_runs(step.name, status) if sees_rows else ""
            is_held = step.is_on_hold and status in HOLDABLE
            state, label = (ON_HOLD, _("on hold")) if is_held else (status, status.label)
            yield Tally(state, label, count, url)
    for run_status in RunStatus:
        if count := children.get(run_status):
            yield Tally(run_status, run_status.label, count)
