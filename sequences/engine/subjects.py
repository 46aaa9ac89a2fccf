"""What happens when the subject of runs is deleted: they are kept, cancelled or erased.

Schedules created for it are kept or removed. Everything is decided in the transaction of the
deletion, and rolled back with it: there, a run is cancelled and marked; the sweep erases it once it
has finished.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import transaction
from django.db.models import Model
from django.db.models.signals import post_delete
from django.utils.translation import gettext

from .. import conf
from ..definitions import registry
from ..definitions.subjects import SubjectKey
from ..exceptions import InvalidSchedule, InvalidTransition
from ..models import RunStatus, Schedule
from ..transitions import locking, operations, schedules, subjects
from ..transitions.operations import OperationRequest
from ..transitions.schedules import ScheduleRequest
from . import dispatcher

_UID = "sequences.subjects"
#: The models whose deletions are watched.
_models: set[type[Model]] = set()


def connect(**_: Any) -> None:
    """Watch the models in ``ON_SUBJECT_DELETE``, and no others.

    A receiver for all models would prevent Django from deleting rows with a single statement.
    """
    for model in _models:
        post_delete.disconnect(sender=model, dispatch_uid=_UID)
    _models.clear()
    _models.update(_watched())
    for model in _models:
        # After the row was deleted and locked: a step also locks what it writes before its run.
        post_delete.connect(_deleted, sender=model, dispatch_uid=_UID)


def _watched() -> list[type[Model]]:
    """The models with their proxies, which delete the same objects."""
    try:
        labels = conf.settings.on_subject_delete
    except ImproperlyConfigured:
        return []  # a system check reports the problem
    return [model for model in apps.get_models() if _label(model) in labels]


def _label(model: type[Model]) -> str:
    concrete = model._meta.concrete_model or model
    return concrete._meta.label_lower


def _changed(*, setting: str, **_: Any) -> None:
    if setting == "SEQUENCES":
        connect()


setting_changed.connect(_changed)


def _deleted(instance: Model, using: str, **_: Any) -> None:
    try:
        key = SubjectKey.of(instance)
    except ValueError:
        return  # no run can be about it: its key is too long
    runs_using = conf.using()
    if using == runs_using:
        _decide(key, runs_using)
    else:
        transaction.on_commit(partial(_decide, key, runs_using), using=using)


def _decide(key: SubjectKey, using: str) -> None:
    rows = subjects.runs_about(key, using)
    runs = [(pk, status, policy_of(sequence, key)) for pk, sequence, status in rows]
    for pk, status, policy in runs:
        if policy != "keep" and status in (RunStatus.RUNNING, RunStatus.PAUSED):
            _cancel(pk, using)
    erased = [pk for pk, _, policy in runs if policy == "erase"]
    if erased:
        locking.transact(using, lambda: subjects.request_erasure(erased, using))
    for schedule in schedules.made_for(key, using):
        if (policy := policy_of(schedule.sequence, key)) != "keep":
            _remove(schedule, policy, using)


def _remove(schedule: Schedule, policy: str, using: str) -> None:
    """The schedule would start runs about nothing."""
    reason = gettext("The subject of its runs was deleted.")
    if policy == "erase":
        schedules.erase_log(schedule.pk, using)
    with suppress(InvalidSchedule):  # someone has removed it in the meantime
        schedules.remove(schedule.pk, ScheduleRequest("remove", reason=reason), using)


def policy_of(sequence: str, key: SubjectKey) -> str:
    """What happens to a run of this sequence when that object is deleted."""
    definition = registry.definition_of(sequence)
    declared = None if definition is None else definition.on_subject_delete
    return declared or conf.settings.on_subject_delete.get(key.model, "keep")


def _cancel(run_id: UUID, using: str) -> None:
    try:
        dispatches = operations.cancel(run_id, _request("cancel"), using, ends_rollbacks=False)
    except InvalidTransition:
        return  # it has finished in the meantime, perhaps with its parent
    dispatcher.send_on_commit(dispatches, using)


def _request(action: str) -> OperationRequest:
    return OperationRequest(action, reason=gettext("The subject of the run was deleted."))


def erase(run_id: UUID, using: str) -> None:
    """Erase this run, whose object was deleted. An unfinished run is checked again later."""
    try:
        operations.erase(run_id, _request("erase"), using)
    except InvalidTransition:
        subjects.put_off(run_id, using)
