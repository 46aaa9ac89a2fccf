"""Database errors that people can fix, and texts that must be stored anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from django.db import DEFAULT_DB_ALIAS, DatabaseError, transaction

from ..exceptions import SequenceError
from .backends import is_error

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def is_unmigrated(error: DatabaseError) -> bool:
    """Whether a statement of ours failed because the tables do not match this release."""
    return is_error(error, lambda backend, error: backend.is_undefined(error))


def unmigrated(error: DatabaseError, using: str) -> SequenceError:
    """The same error, with a hint."""
    option = "" if using == DEFAULT_DB_ALIAS else f" --database={using}"
    return SequenceError(
        f"The database {using!r} lacks a table or column that this release needs. "
        f"Run manage.py migrate{option}. The database's own message: {error}"
    )


def is_of_characters(error: DatabaseError) -> bool:
    """Whether the database's character set lacks a character of a text."""
    return is_error(error, lambda backend, error: backend.is_of_characters(error))


def with_text(store: Callable[[T], None], text: T, using: str) -> None:
    """Store this text; escaped, if the database's character set lacks a character."""
    for escape in (_beyond_first_plane, _beyond_ascii):
        if _is_ascii(text):
            break
        try:
            # the error that is being recorded must not be lost
            with transaction.atomic(using=using):
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
