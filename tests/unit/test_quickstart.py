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


#: A test of that project, with the settings of its own that "Testing" shows.
TESTS = """
import dramatiq
from django.test import TestCase
from contact.sequences import ContactForm
from sequences.testing import run_sequence

class DispatchTests(TestCase):
    def test_a_start_sends_a_message(self):
        with self.captureOnCommitCallbacks(execute=True):
            ContactForm(name="Joel", body="Hello")
        self.assertEqual(dramatiq.get_broker().queues["default"].qsize(), 1)

    def test_a_step_that_fails_is_quiet_and_not_retried(self):
        run = run_sequence(ContactForm).run
        self.assertEqual(run.failures.count(), 1)
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


@pytest.mark.only_on("sqlite")
def test_its_tests_pass_with_the_settings_for_tests(project):
    text = (ROOT / "docs" / "writing.md").read_text()
    settings = re.search(
        r"^```py\n# mysite/test_settings.py.*?^```$", text, re.MULTILINE | re.DOTALL
    )
    code = settings[0].removeprefix("```py").removesuffix("```")
    (project / "mysite" / "test_settings.py").write_text(code)
    (project / "contact" / "tests.py").write_text(TESTS)
    tests = subprocess.run(
        [sys.executable, "manage.py", "test", "--settings", "mysite.test_settings"],
        cwd=project,
        env={"PYTHONPATH": f"{project}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert tests.returncode == 0, tests.stderr
    assert "Ran 2 tests" in tests.stderr
    assert "Traceback" not in tests.stderr
