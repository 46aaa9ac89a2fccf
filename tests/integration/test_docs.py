"""The examples in the documents do what they say."""

import re
import sys
import unittest
from pathlib import Path
from types import ModuleType

import pytest
from django.contrib import admin
from django.test import TestCase
from django.urls import include, path

from sequences import sequence
from sequences.models import SequenceRun
from sequences.testing import isolate_sequences
from testproject.contact import models

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILE = re.compile(
    r"^```(?:yaml\n#|django\n\{#) (\S+)(?: #\})?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)


def sections(name):
    """Every section that has examples: its heading, and its code on the lines that it has there.

    What stands in one section is one module.
    """
    text = (DOCS / name).read_text()
    starts = [match.start() for match in HEADING.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        section = text[start:end]
        blocks = list(BLOCK.finditer(section))
        if blocks:
            offset = text.count("\n", 0, start)
            yield HEADING.match(section)[1], code_of(section, blocks, offset)


def code_of(section, blocks, offset):
    lines = [""] * (offset + section.count("\n") + 1)
    for block in blocks:
        first = offset + section.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.fixture
def shop(request, monkeypatch, settings, tmp_path):
    """The reader's app: all its modules are one, but its models."""
    module = ModuleType("shop.sequences")
    module.__file__ = str(tmp_path / "sequences.py")
    document, _ = request.node.callspec.params["section"]
    for name, text in FILE.findall((DOCS / document).read_text()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    models_module = ModuleType("shop.models")
    vars(models_module).update(vars(models))
    module.views = module
    module.urlpatterns = [path("sequences/", include("sequences.urls"))]
    for name in ("shop", "shop.sequences", "shop.urls", "shop.views"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "shop.models", models_module)
    monkeypatch.setattr(sequence, "_containing_app_label", lambda cls: "shop")
    monkeypatch.setattr(models.Message, "__module__", "shop.models")
    registry = admin.site._registry
    monkeypatch.setitem(registry, SequenceRun, registry[SequenceRun])  # as it was, afterwards
    settings.ROOT_URLCONF = "shop.urls"
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]
    with isolate_sequences():
        yield module


FILES = [
    "writing.md",
    "orchestration.md",
    "schedules.md",
    "limits.md",
    "flows.md",
    "coming-from.md",
    "cookbook.md",
    "pages.md",
    "observing.md",
    "admin.md",
]
SECTIONS = {(name, heading): code for name in FILES for heading, code in sections(name)}
TESTS = {section for section, code in SECTIONS.items() if "(TestCase)" in code}


@pytest.mark.django_db
@pytest.mark.parametrize("section", [section for section in SECTIONS if section not in TESTS])
def test_the_examples_run(shop, section):
    execute(section, shop)


@pytest.mark.usefixtures("django_db_setup")
@pytest.mark.parametrize("section", sorted(TESTS))
def test_the_tests_among_the_examples_pass(shop, section, django_db_blocker):
    execute(section, shop)
    found = [value for value in vars(shop).values() if isinstance(value, type)]
    with django_db_blocker.unblock():
        for test_case in found:
            if issubclass(test_case, TestCase) and test_case is not TestCase:
                perform(test_case)


def execute(section, module):
    exec(compile(SECTIONS[section], DOCS / section[0], "exec"), vars(module))


def perform(test_case):
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(test_case).run(result)
    assert result.testsRun > 0
    assert not [text for _, text in (*result.errors, *result.failures)]


@pytest.mark.parametrize("name", FILES)
def test_every_heading_is_said_once_and_every_link_inside_leads_to_one(name):
    text = (DOCS / name).read_text()
    headings = [heading.lower() for heading in HEADING.findall(text)]
    anchors = [re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= set(anchors)
