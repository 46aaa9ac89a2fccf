"""What is specific to PostgreSQL, to MariaDB and MySQL, or to SQLite: one file each.

A new database is a file, and its entry here. All other code uses the SQL that they share, through
Django.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError, connections

from .base import Backend, FastStatements, Holder
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["BACKENDS", "Backend", "FastStatements", "Holder", "backend_of", "is_error", "of_vendor"]

#: The supported databases, by Django's vendor name.
BACKENDS: dict[str, Backend] = {each.vendor: each for each in (PostgreSQL(), MySQL(), SQLite())}
_UNKNOWN = Backend()


class _Backends(dict[str, Backend]):
    """The backend of each alias: chosen once, because settings do not change."""

    def __missing__(self, using: str) -> Backend:
        backend = self[using] = of_vendor(connections[using].vendor)
        return backend


_backends = _Backends()
#: The backend of an alias. A dict, because every step looks it up several times.
backend_of = _backends.__getitem__


def of_vendor(vendor: str) -> Backend:
    """The backend for a vendor; for an unknown one, what works on any."""
    return BACKENDS.get(vendor, _UNKNOWN)


def is_error(error: BaseException, judge: Callable[[Backend, DatabaseError], bool]) -> bool:
    """Whether it is such an error on any database: an error does not say which alias it came
    from."""
    if not isinstance(error, DatabaseError):
        return False
    return any(judge(backend, error) for backend in BACKENDS.values())
