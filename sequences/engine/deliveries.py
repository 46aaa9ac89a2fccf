"""Payloads of events: as JSON, and validated by the event's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS
from django.db.models import Model, QuerySet
from django.forms import BaseForm
from django.utils.datastructures import MultiValueDict
from django.utils.translation import gettext_noop as _

from .. import conf
from ..data import serialization
from ..definitions import registry
from ..definitions.steps import Event
from ..exceptions import InvalidData, Text
from ..models import SequenceRun


def checked(run: SequenceRun, event: str, payload: Any) -> Any:
    """The payload as JSON. Raises `InvalidData` if it is not JSON, or if the event's form rejects
    it."""
    form = form_of(run, event)
    cleaned = payload if form is None else _cleaned(form, event, payload)
    value, _text = serialization.normalise(cleaned, path="payload", **conf.settings.as_json)
    return value


def form_of(run: SequenceRun, event: str) -> type[BaseForm] | None:
    """The form that this code declares for an event of the run."""
    definition = registry.definition_of(run.sequence)
    step = None if definition is None else definition.step(event)
    return step.form if isinstance(step, Event) else None


def _cleaned(form_class: type[BaseForm], event: str, payload: Any) -> dict[str, Any]:
    """The form's cleaned data for a payload, which is a dict of its fields or a bound form."""
    form = payload
    if not isinstance(payload, form_class):
        if not isinstance(payload, Mapping | None):
            problem = Text(_("is of type %(type)s, not a dict"), type=type(payload).__name__)
            hint = Text(_("Use the fields of %(form)s."), form=form_class.__qualname__)
            raise InvalidData(path=_path_of(event), problem=problem, hint=hint)
        form = _bound(form_class, payload)
    if not form.is_valid():
        text = _("was rejected by %(form)s: %(errors)s")
        problem = Text(text, form=form_class.__qualname__, errors=_text_of(form))
        raise InvalidData(
            path=_path_of(event),
            problem=problem,
            hint=_("Correct the payload and deliver it again."),
        )
    return {name: _plain(value) for name, value in form.cleaned_data.items()}


def _bound(form_class: type[BaseForm], payload: Mapping[str, Any] | None) -> BaseForm:
    if isinstance(payload, MultiValueDict):
        return form_class(data=payload)  # as a dict, request.POST would have a list for each field
    data, prefix = dict(payload or {}), form_class.prefix
    # Code names only the fields; HTML adds their prefix.
    if prefix and not any(str(name).startswith(f"{prefix}-") for name in data):
        return form_class(data=data, prefix="")
    return form_class(data=data)


def _path_of(event: str) -> str:
    return Text(_("The payload of %(event)r"), event=event)


def _text_of(form: BaseForm) -> str:
    lines = []
    for name, errors in form.errors.items():
        prefix = "" if name == NON_FIELD_ERRORS else f"{name}: "
        lines += [prefix + str(error).rstrip(".") for error in errors]
    return "; ".join(lines)


def _plain(value: Any) -> Any:
    """Model instances are replaced with their primary keys."""
    if isinstance(value, Model):
        return value.pk
    return list(value.values_list("pk", flat=True)) if isinstance(value, QuerySet) else value
