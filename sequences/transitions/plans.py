"""Plans in the database: written once, never changed, kept by every process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import connections, transaction

from ..definitions.plan import Plan
from ..exceptions import SequenceError
from ..models import StoredPlan
from . import clock
from .locking import transact

_ids: dict[tuple[str, str, str], int] = {}
_plans: dict[tuple[str, int], Plan] = {}
_lock = threading.Lock()

#: How many a process keeps.
MAX_KEPT_PLANS = 2000


def forget() -> None:
    """Empty the cache: another database stands behind the alias."""
    _ids.clear()
    _plans.clear()


def known_id(plan: Plan, using: str) -> int | None:
    """The id of this plan's row, if this process remembers it: the row may be gone."""
    return _ids.get((using, plan.sequence, plan.fingerprint))


def store(plan: Plan, using: str) -> int:
    """The id of this plan's row, written if it is new."""
    plan_id = known_id(plan, using)
    if plan_id is not None:
        return plan_id
    plan_id = transact(using, lambda: _store(plan, using))
    _once_committed(plan, plan_id, using)
    return plan_id


def _store(plan: Plan, using: str) -> int:
    stored, _ = StoredPlan.objects.using(using).get_or_create(
        sequence=plan.sequence,
        fingerprint=plan.fingerprint,
        defaults={"graph": plan.to_json(), "created_at": clock.now(using)},
    )
    return stored.pk


_ROW = f"FROM {StoredPlan._meta.db_table} WHERE id = %s AND sequence = %s AND fingerprint = %s"


def store_now(plan: Plan, using: str) -> tuple[int, datetime]:
    """The id of this plan's row, which is there at the time that comes with it.

    Somebody may have emptied the tables under this process: the statement that asks for the time
    looks whether the row that is remembered is there still.
    """
    plan_id = known_id(plan, using)
    if plan_id is not None:
        now = clock.now_beside(_ROW, (plan_id, plan.sequence, plan.fingerprint), using)
        if now is not None:
            return plan_id, now
        forget()
    return store(plan, using), clock.now(using)


def key_scope(labels: Sequence[str], using: str) -> str:
    """The name under which runs of a sequence with these names hold their keys.

    An older release has only some of the names. All have the oldest, whose plan was the first:
    what each holds under that one name no other can hold beside it.
    """
    own, *earlier = labels
    if len(earlier) < 2:
        return earlier[0] if earlier else own
    stored = StoredPlan.objects.using(using).filter(sequence__in=earlier).order_by("pk")
    return stored.values_list("sequence", flat=True).first() or earlier[-1]


def load(plan_id: int, using: str) -> Plan:
    """The plan of this id."""
    plan = _plans.get((using, plan_id))
    if plan is not None:
        return plan
    plan = StoredPlan.objects.using(using).get(pk=plan_id).plan
    _once_committed(plan, plan_id, using)
    return plan


def forget_unless_of(sequence: str, plan_id: int, using: str) -> None:
    """Forget what is remembered if another sequence's plan has this id: the tables are new ones."""
    plan = _plans.get((using, plan_id))
    if plan is not None and plan.sequence != sequence:
        forget()


def load_many(plan_ids: Iterable[int], using: str) -> dict[int, Plan]:
    """The plans of these ids, in one query for all that are not known yet.

    One that only a newer release can read is there without its steps.
    """
    ids = set(plan_ids)
    loaded = {pk: plan for pk in ids if (plan := _plans.get((using, pk))) is not None}
    for stored in StoredPlan.objects.using(using).filter(pk__in=ids - loaded.keys()):
        try:
            loaded[stored.pk] = stored.plan
        except SequenceError:
            loaded[stored.pk] = Plan(stored.sequence, ())
        else:
            _once_committed(stored.plan, stored.pk, using)
    return loaded


def _once_committed(plan: Plan, plan_id: int, using: str) -> None:
    # A transaction that rolls back takes the row's id with it.
    if connections[using].in_atomic_block:
        # No partial: Django wants the name of a hook that fails.

        def remember_plan() -> None:
            _remember(plan, plan_id, using)

        transaction.on_commit(remember_plan, using=using, robust=True)
    else:
        _remember(plan, plan_id, using)


def _remember(plan: Plan, plan_id: int, using: str) -> None:
    if connections[using].in_atomic_block:
        return  # a test that plays the hooks of a transaction that it will roll back
    with _lock:
        # Definitions that are kept with their runs have no end.
        if len(_plans) >= MAX_KEPT_PLANS:
            forget()
        _ids[using, plan.sequence, plan.fingerprint] = plan_id
        _plans[using, plan_id] = plan
