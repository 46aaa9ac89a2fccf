"""What is PostgreSQL's, MariaDB's and MySQL's, or SQLite's: a file for each kind of database.

A new one is a file, and its entry here. All else speaks SQL that they have in common, by Django.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError, connections

from .base import Backend, FastStatements, Holder
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["BACKENDS", "Backend", "FastStatements", "Holder", "backend_of", "is_error", "of_vendor"]

#: Each kind of database that sequences can run on, by Django's name of it.
BACKENDS: dict[str, Backend] = {each.vendor: each for each in (PostgreSQL(), MySQL(), SQLite())}
_UNKNOWN = Backend()

_backends: dict[str, Backend] = {}


def backend_of(using: str) -> Backend:
    """The backend of this alias: chosen once, as its settings do not change."""
    backend = _backends.get(using)
    if backend is None:
        backend = _backends[using] = of_vendor(connections[using].vendor)
    return backend


def of_vendor(vendor: str) -> Backend:
    """The backend of a kind; for an unknown one what holds on any."""
    return BACKENDS.get(vendor, _UNKNOWN)


def is_error(error: BaseException, judge: Callable[[Backend, DatabaseError], bool]) -> bool:
    """Whether this is such an error of any database: it does not tell which alias it is of."""
    if not isinstance(error, DatabaseError):
        return False
    return any(judge(backend, error) for backend in BACKENDS.values())
