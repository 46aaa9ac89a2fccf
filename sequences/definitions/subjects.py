"""What a run is about: an object of the project, named by its model and its primary key.

Both are stored as text, without a foreign key. So the primary key may be a number, a UUID, text or
composite, the object may be in another database, and the name outlives the object and its model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Model, QuerySet

from ..exceptions import SequenceError

#: The lengths of the columns for a label and a primary key, in characters.
MAX_MODEL, MAX_PK = 200, 255
#: The length of both, with the separator.
MAX_KEY = MAX_MODEL + 1 + MAX_PK


class SubjectKey(NamedTuple):
    """The lower-case label of a model, and a primary key as text."""

    model: str
    pk: str

    @classmethod
    def of(cls, subject: Model) -> SubjectKey:
        """The key of an object. Raises `ValueError` if its primary key is missing or too long."""
        # request.user is a lazy object: its __class__ is that of the user.
        meta = _concrete(subject.__class__)._meta
        if _is_without_key(subject.pk):
            raise ValueError("it has no primary key. Save it first")
        pk = str(meta.pk.value_to_string(subject))
        if len(pk) > MAX_PK:
            raise ValueError(f"its primary key has {len(pk)} characters; the limit is {MAX_PK}")
        return cls(meta.label_lower, pk)

    @classmethod
    def parse(cls, text: str) -> SubjectKey:
        """The key written as ``shop.order:17``. Raises `ValueError` if the text has another
        form."""
        model, colon, pk = text.strip().partition(":")
        if not colon or not pk or model.count(".") != 1 or len(pk) > MAX_PK:
            raise ValueError(f"{text!r} does not have the form app.model:pk")
        return cls(model.lower(), pk)

    def __str__(self) -> str:
        return f"{self.model}:{self.pk}"

    @property
    def model_class(self) -> type[Model] | None:
        """The model; None if this code does not have it."""
        try:
            return apps.get_model(self.model)
        except (LookupError, ValueError):
            return None

    def load(self) -> Model | None:
        """The object, whoever may see it; None if it or its model is gone."""
        model = self.model_class
        pk = None if model is None else primary_key(model, self.pk)
        return None if model is None or pk is None else rows_of(model).filter(pk=pk).first()


def rows_of(model: type[Model]) -> QuerySet[Model]:
    """Rows from the database that the model is written to: a replica may not have the object
    yet."""
    return model._base_manager.using(router.db_for_write(model))


def load_all(
    keys: Iterable[SubjectKey], rows: Callable[[type[Model]], QuerySet[Model]] = rows_of
) -> dict[SubjectKey, Model]:
    """Load those of these objects that are among the ``rows`` of their model, one query per
    model."""
    pks_by_model: dict[type[Model], dict[Any, SubjectKey]] = {}
    for key in keys:
        model = key.model_class
        if model is not None and (pk := primary_key(model, key.pk)) is not None:
            pks_by_model.setdefault(model, {})[pk] = key
    objects: dict[SubjectKey, Model] = {}
    for model, key_by_pk in pks_by_model.items():
        loaded = rows(model).filter(pk__in=list(key_by_pk))
        objects |= {key_by_pk[row.pk]: row for row in loaded if row.pk in key_by_pk}
    return objects


def primary_key(model: type[Model], text: str) -> Any:
    """The primary key that this text stands for; None if it is not valid for the model."""
    try:
        return cast(Any, model._meta.pk).to_python(text)
    except (ValidationError, ValueError, TypeError):
        return None


def _concrete(model: type[Model]) -> type[Model]:
    """The model that has the table: a proxy names the same objects."""
    return cast("type[Model]", model._meta.concrete_model)


def _is_without_key(pk: Any) -> bool:
    return pk is None or (isinstance(pk, tuple) and None in pk)


def check_subject(subject: Any, where: str) -> SubjectKey:
    """The key of a subject that was passed by a caller. Raises `SequenceError`."""
    if not isinstance(subject, Model):
        raise SequenceError(
            f"{where}: subject is of type {type(subject).__name__}; it must be a model instance or "
            "None."
        )
    try:
        return SubjectKey.of(subject)
    except ValueError as error:
        raise SequenceError(
            f"{where}: this {subject.__class__.__name__} cannot be the subject: {error}."
        ) from error
