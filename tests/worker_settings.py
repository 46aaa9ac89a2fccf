"""The settings of processes that tests start: real servers, and the tests' own app."""

from testproject.settings import *  # noqa: F403
from testproject.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests", "tests.acceptance.app"]
