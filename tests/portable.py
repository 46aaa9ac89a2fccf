"""PostgreSQL with the statements of all databases, as if it had none of its own."""

import os

from sequences.transitions import backends
from sequences.transitions.backends.postgresql import PostgreSQL


class Portable(PostgreSQL):
    fast = None


def is_portable():
    """Whether this whole process is to be tested so: `run.py` says it in the environment."""
    return bool(os.environ.get("SEQUENCES_PORTABLE"))


def choose(monkeypatch, backend):
    """For one test, and only on PostgreSQL."""
    if isinstance(backends.backend_of("default"), PostgreSQL):
        monkeypatch.setitem(backends._backends, "default", backend)
