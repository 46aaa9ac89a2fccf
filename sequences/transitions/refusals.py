"""What a database refuses that people can mend; and texts that it stores all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, DatabaseError, transaction

from ..exceptions import SequenceError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# PostgreSQL: undefined table, undefined column. MySQL and MariaDB: the same.
_UNDEFINED = {"42P01", "42703", 1146, 1054}
_UNDEFINED_IN_SQLITE = ("no such table", "no such column", "has no column named")

# PostgreSQL: not in the repertoire, no equivalent in the database's encoding. MySQL and MariaDB:
# an incorrect string, an illegal mix of collations, an invalid string, an impossible conversion.
_CHARACTERS = {"22021", "22P05", 1366, 1267, 1300, 3988}


def _is_one_of(codes: set[Any], error: DatabaseError) -> bool:
    return not codes.isdisjoint({getattr(error.__cause__, "sqlstate", None), *error.args[:1]})


def is_unmigrated(error: DatabaseError) -> bool:
    """Whether a statement of ours met tables that are not those of this release."""
    is_sqlites = any(words in str(error) for words in _UNDEFINED_IN_SQLITE)
    return is_sqlites or _is_one_of(_UNDEFINED, error)


def unmigrated(error: DatabaseError, using: str) -> SequenceError:
    """The same error, saying what to do."""
    option = "" if using == DEFAULT_DB_ALIAS else f" --database={using}"
    return SequenceError(
        f"The database {using!r} lacks a table or column that this release needs. "
        f"Run manage.py migrate{option}. The database's own message: {error}"
    )


def is_of_characters(error: DatabaseError) -> bool:
    """Whether the database's character set lacks a character of a text."""
    return _is_one_of(_CHARACTERS, error)


def with_text(store: Callable[[T], None], text: T, using: str) -> None:
    """Store what this says; escaped, where the database's character set lacks a character."""
    for escape in (_beyond_first_plane, _beyond_ascii):
        if _is_ascii(text):
            break
        try:
            with transaction.atomic(using=using):  # what failed before must not be lost with it
                return store(text)
        except DatabaseError as error:
            if not is_of_characters(error):
                raise
        text = _escaped(text, escape)
    store(text)


def _strings(text: DataclassInstance) -> dict[str, str]:
    values = {field.name: getattr(text, field.name) for field in fields(text)}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _is_ascii(text: DataclassInstance) -> bool:
    return all(value.isascii() for value in _strings(text).values())


def _escaped(text: T, escape: Callable[[str], str]) -> T:
    return replace(text, **{name: escape(value) for name, value in _strings(text).items()})


def _beyond_first_plane(text: str) -> str:
    return "".join(each if each <= "\uffff" else _beyond_ascii(each) for each in text)


def _beyond_ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")
