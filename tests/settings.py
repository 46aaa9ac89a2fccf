"""The settings of the tests' own process: messages stay in memory, the database is a new one."""

import os
import tempfile
from pathlib import Path
from uuid import uuid4

from tests.worker_settings import *  # noqa: F403
from tests.worker_settings import DATABASES, DRAMATIQ_MIDDLEWARE

DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.stub.StubBroker",
    "OPTIONS": {},
    "MIDDLEWARE": DRAMATIQ_MIDDLEWARE,
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# A name for each process: what another run left behind, or one beside this, can't matter.
TEST_NAME = os.environ.get("TEST_DATABASE_NAME") or f"test_sequences_{uuid4().hex[:12]}"
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, for threads and other processes see nothing of a database in memory.
    TEST_NAME = str(Path(tempfile.gettempdir()) / f"{TEST_NAME}.sqlite3")
DATABASES["default"]["TEST"] = {"NAME": TEST_NAME}
