"""Plans in the database: written once, never changed, cached by every process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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

#: The size of the cache.
MAX_KEPT_PLANS = 2000


def forget() -> None:
    """Empty the cache: the alias stands for another database now."""
    _ids.clear()
    _plans.clear()
    _thread.pending.clear()


def known_id(plan: Plan, using: str) -> int | None:
    """The id of this plan's row, if this process remembers it; the row may be gone."""
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
    """The id of this plan's row, which exists at the time that is returned with it.

    Someone may have emptied the tables while this process runs, so the statement that asks for the
    time also checks whether the remembered row still exists.
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

    An older release knows only some of the names. All know the oldest name, whose plan came first:
    if all use that one, no key can be held twice.
    """
    own, *earlier = labels
    if len(earlier) < 2:
        return earlier[0] if earlier else own
    stored = StoredPlan.objects.using(using).filter(sequence__in=earlier).order_by("pk")
    return stored.values_list("sequence", flat=True).first() or earlier[-1]


def load(plan_id: int, using: str) -> Plan:
    """The plan with this id."""
    plan = _plans.get((using, plan_id)) or _uncommitted(plan_id, using)
    if plan is not None:
        return plan
    plan = StoredPlan.objects.using(using).get(pk=plan_id).plan
    _once_committed(plan, plan_id, using)
    return plan


def load_of(sequence: str, plan_id: int, using: str) -> Plan:
    """The same for a run of this sequence. If the cache has the plan of another sequence under this
    id, the tables are new."""
    plan = load(plan_id, using)
    if plan.sequence == sequence:
        return plan
    forget()
    return load(plan_id, using)


def load_many(plan_ids: Iterable[int], using: str) -> dict[int, Plan]:
    """The plans with these ids, with one query for all that are not cached yet.

    A plan that only a newer release can read has no steps.
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
    # A transaction that rolls back also removes the row with this id.
    connection = connections[using]
    if not connection.in_atomic_block:
        _remember(plan, plan_id, using)
    elif _uncommitted(plan_id, using) is None:
        pending = PendingPlan(plan, plan_id, using, position=len(connection.run_on_commit))
        if not pending.position:
            _thread.pending.clear()  # a new transaction
        _thread.pending[using, plan_id] = pending
        transaction.on_commit(pending, using=using, robust=True)


@dataclass(eq=False)
class PendingPlan:
    """A hook of a transaction: lets the whole process remember a plan that was read inside."""

    plan: Plan
    plan_id: int
    using: str
    #: Its index among the hooks. A rollback to a savepoint only removes later ones.
    position: int

    def __post_init__(self) -> None:
        self.__qualname__ = type(self).__qualname__  # Django logs it if a hook fails

    def __call__(self) -> None:
        _remember(self.plan, self.plan_id, self.using)

    def is_valid(self) -> bool:
        """Whether the block it was read in is still open: Django drops the hooks of all others."""
        hooks = connections[self.using].run_on_commit
        return self.position < len(hooks) and hooks[self.position][1] is self


class _Thread(threading.local):
    def __init__(self) -> None:
        #: By alias and id.
        self.pending: dict[tuple[str, int], PendingPlan] = {}


_thread = _Thread()


def _uncommitted(plan_id: int, using: str) -> Plan | None:
    """A plan that this thread has read in its open transaction, which may last for a whole test."""
    pending = _thread.pending.get((using, plan_id))
    return pending.plan if pending is not None and pending.is_valid() else None


def _remember(plan: Plan, plan_id: int, using: str) -> None:
    if connections[using].in_atomic_block:
        return  # a test runs the hooks of a transaction that it will roll back
    with _lock:
        # Inline definitions are unlimited in number.
        if len(_plans) >= MAX_KEPT_PLANS:
            forget()
        _ids[using, plan.sequence, plan.fingerprint] = plan_id
        _plans[using, plan_id] = plan
