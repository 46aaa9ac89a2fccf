"""The reference has every public name, and none that is gone."""

import inspect
import re
from pathlib import Path

import pytest

import sequences
from sequences import admin, conf, exceptions, logs, models, sequence, signals, testing, urls
from sequences.definitions.steps import DURATION_OPTIONS, STEP_OPTIONS
from sequences.definitions.validation import META_OPTIONS, META_STEP_OPTIONS
from sequences.templatetags.sequences import sequence_progress

TEXT = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", TEXT, re.MULTILINE))


def names_in(section):
    """The words in its code spans."""
    spans = re.findall(r"`([^`]+)`", SECTIONS[section])
    return {word for span in spans for word in re.findall(r"\w+", span)}


def rows_of(section):
    """The names that the rows of its tables are of."""
    firsts = re.findall(r"^\| (`.+?) \| ", SECTIONS[section], re.MULTILINE)
    return {name for first in firsts for name in re.findall(r"`(\w+)", first)}


def public(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


def parameters(function):
    return set(inspect.signature(function).parameters)


def operations():
    names = public(models.SequenceRun) - {
        "objects",
        "id",
        "DoesNotExist",
        "MultipleObjectsReturned",
    }
    functions = {name for name in names if inspect.isfunction(vars(models.SequenceRun)[name])}
    return {name for name in functions if not name.startswith("get_")}


def fields_of(model):
    return {field.name for field in model._meta.fields if field.editable}


META = META_OPTIONS - META_STEP_OPTIONS
DRAMATIQ = {
    *DURATION_OPTIONS, "max_retries", "priority", "queue_name", "retry_when", "throws",
}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ("Names", set(sequences.__all__)),
        ("Sequence", sequence.RESERVED),
        ("Options of steps", STEP_OPTIONS | {"attempted"}),
        ("Options of steps", parameters(sequences.event) - {"options"}),
        ("Options of steps", parameters(sequences.subsequence) - {"options", "sequence"}),
        ("Options of Meta", META - DRAMATIQ),
        ("Runs", operations()),
        ("Runs", public(models.SequenceRunQuerySet)),
        ("Runs", fields_of(models.SequenceRun) - {"inbox"}),
        ("Runs", set(models.RunStatus.values)),
        ("Step runs", fields_of(models.StepRun) - {"wake_at"}),
        ("Step runs", set(models.StepStatus.values)),
        ("Other rows", fields_of(models.StepFailure) | {"StepFailure"}),
        ("Other rows", fields_of(models.StepLoss) | {"StepLoss"}),
        ("Other rows", fields_of(models.Operation) | {"Operation"}),
        ("Other rows", fields_of(models.WorkerProcess) | {"WorkerProcess"}),
        ("Exceptions", set(exceptions.__all__)),
        ("Signals", set(signals.__all__)),
        ("Logging", set(logs.__all__)),
        ("Settings", {one.key for one in vars(conf.Settings).values() if hasattr(one, "key")}),
        ("Admin and broker", set(admin.__all__)),
        ("In templates", parameters(sequence_progress) - {"context"}),
        ("URLs", {pattern.name for pattern in urls.urlpatterns}),
        ("Testing", set(testing.__all__)),
    ],
)
def test_every_public_name_is_there(section, wanted):
    assert wanted - {"id"} <= names_in(section)


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("Names", set(sequences.__all__)),
        ("Exceptions", set(exceptions.__all__)),
        ("Options of Meta", META),
        ("Testing", set(testing.__all__)),
    ],
)
def test_nothing_is_there_that_is_gone(section, known):
    assert rows_of(section)
    assert rows_of(section) <= known


def test_every_link_leads_to_a_heading():
    for name, anchor in re.findall(r"\]\((\w*(?:\.md)?)#([\w-]+)\)", TEXT):
        text = (Path(__file__).parents[2] / "docs" / (name or "reference.md")).read_text()
        headings = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
        anchors = [
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
        ]
        assert anchor in anchors, f"{name}#{anchor}"
