"""The settings of processes that tests start: real servers, and the tests' own app."""

import json
import os

from testproject.settings import *  # noqa: F403
from testproject.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests", "tests.acceptance.app"]
SEQUENCES = json.loads(os.environ.get("TEST_SEQUENCES") or "{}")
# The tests' own sequences wait for milliseconds, on purpose.
SILENCED_SYSTEM_CHECKS = ["sequences.W022"]
