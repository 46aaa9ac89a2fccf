"""Python without docstrings and asserts: what people read, and what is checked, stays."""

import os
import re
import subprocess
import sys

EXPECTED = [
    r"False None",
    r"reserve An item of step 'reserve' changed data\['item'\], but items .*",
    r"parcels 1 of 1 runs that step 'parcels' has started did not succeed: .*",
    r"failed {'items': \[1\], 'refunded': 5}",
    r"Cannot pause run .*: it is failed\. Allowed while it is running\.",
    r".*Wrong\.one: 'nothing' cannot be called\. Give @step a method, a function, or a class\.",
    r'data\["items"\] is of type set, which is not JSON\. Use a list\.',
    r"The ledger of run .* is",
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
