"""The quickstart, done as it stands there: an empty project becomes what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"^```(?:python\n#|django\n\{#) (\S+)(?: #\})?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
#: What a visitor does with it, in a process of its own, as it is a project of its own.
VISIT = """
import os, warnings
warnings.simplefilter("error")
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
from django.core.management import call_command
call_command("makemigrations", "contact", verbosity=0)
call_command("migrate", verbosity=0)
call_command("check", databases=["default"], fail_level="WARNING")
from django.test import Client
from sequences import testing
from sequences.engine import dispatcher
from contact.models import Message
from contact import sequences
sequences.time.sleep = lambda seconds: None
visitor = Client(headers={"host": "localhost"})
assert "csrfmiddlewaretoken" in visitor.get("/").text
with dispatcher.capture_dispatches():
    page = visitor.post("/", {"name": "Joel", "body": "Hello"}, follow=True)
print(page.text)
testing.drain()
print(visitor.get(page.request["PATH_INFO"]).text)
assert Message.objects.get().body == "Hello"
"""


@pytest.fixture
def project(tmp_path):
    call_command("startproject", "mysite", tmp_path)
    (tmp_path / "contact").mkdir()
    call_command("startapp", "contact", tmp_path / "contact")
    for name, text in BLOCK.findall((ROOT / "docs" / "quickstart.md").read_text()):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text() if path.name == "settings.py" else ""
        path.write_text(kept + text)
    return tmp_path


@pytest.mark.only_on("sqlite")
def test_an_empty_project_becomes_what_the_quickstart_says(project):
    visit = subprocess.run(
        [sys.executable, "-c", VISIT],
        cwd=project,
        env={"PYTHONPATH": f"{project}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert visit.returncode == 0, visit.stderr
    assert "Thank you, Joel" in visit.stdout
    assert "We are reading your message" in visit.stdout
    assert "To Joel: we have read your message." in visit.stdout
    assert "Our answer is on its way" not in visit.stdout, "the second page is of the end"
    assert '<a href="/">Write another message</a>' in visit.stdout
