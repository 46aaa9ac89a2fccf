"""The object that a run is about is deleted: its runs are kept, cancelled or erased.

Schedules that were made for it are kept or removed. What becomes of all of them is decided in the
transaction of the delete, and is rolled back with it: a run is cancelled there, and marked; the
sweep erases it, once it has finished.
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
#: Those whose deletion we hear of.
_models: set[type[Model]] = set()


def connect(**_: Any) -> None:
    """Hear of the objects of the models in ``ON_SUBJECT_DELETE``, and of those of no other.

    A receiver for all models would keep Django from deleting any rows by one statement.
    """
    for model in _models:
        post_delete.disconnect(sender=model, dispatch_uid=_UID)
    _models.clear()
    _models.update(_watched())
    for model in _models:
        # After the row is gone, and locked: a step locks what it writes before its run, too.
        post_delete.connect(_deleted, sender=model, dispatch_uid=_UID)


def _watched() -> list[type[Model]]:
    """With their proxies, which delete the same objects."""
    try:
        labels = conf.settings.on_subject_delete
    except ImproperlyConfigured:
        return []  # the system check says what is wrong, if Django comes to that
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
    """It would start runs about nothing."""
    reason = gettext("The object that its runs are about was deleted.")
    if policy == "erase":
        schedules.erase_log(schedule.pk, using)
    with suppress(InvalidSchedule):  # somebody has removed it meanwhile
        schedules.remove(schedule.pk, ScheduleRequest("remove", reason=reason), using)


def policy_of(sequence: str, key: SubjectKey) -> str:
    """What becomes of a run of this sequence when that object is deleted."""
    definition = registry.definition_of(sequence)
    declared = None if definition is None else definition.on_subject_delete
    return declared or conf.settings.on_subject_delete.get(key.model, "keep")


def _cancel(run_id: UUID, using: str) -> None:
    try:
        dispatches = operations.cancel(run_id, _request("cancel"), using)
    except InvalidTransition:
        return  # it has finished meanwhile, perhaps with its parent
    dispatcher.send_on_commit(dispatches, using)


def _request(action: str) -> OperationRequest:
    return OperationRequest(action, reason=gettext("The object that the run is about was deleted."))


def erase(run_id: UUID, using: str) -> None:
    """Erase this run, whose object was deleted. One that has not finished is looked at later."""
    try:
        operations.erase(run_id, _request("erase"), using)
    except InvalidTransition:
        subjects.put_off(run_id, using)
