"""Python without docstrings and asserts: what people read, and what is checked, stays."""

import os
import re
import subprocess
import sys

EXPECTED = [
    r"False None",
    r"reserve An item of step 'reserve' changed data\['item'\], but items must .*",
    r"parcels 1 of 1 child runs of step 'parcels' did not succeed: .*",
    r"failed {'items': \[1\], 'refunded': 5}",
    r"Cannot pause run .*: its status is failed\. Allowed: running\.",
    r".*Wrong\.one: 'nothing' is not callable\. Pass a function, a method or a class to @step\.",
    r'data\["items"\] is of type set, which JSON cannot represent\. Use a list\.',
    r"The steps of run .* are",
]


def test_messages_and_checks_are_the_same_without_docstrings_and_asserts():
    environment = {
        **os.environ,
        "DATABASE_URL": "sqlite:///:memory:",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "tests.optimised"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = iter(done.stdout.splitlines())
    for pattern in EXPECTED:
        assert any(re.fullmatch(pattern, line) for line in lines), (pattern, done.stdout)
