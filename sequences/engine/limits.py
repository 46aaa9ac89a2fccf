"""How a claimed step and its run get their places under limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from .. import conf
from ..data import serialization
from ..definitions import registry
from ..definitions.definition import Definition
from ..definitions.limits import MAX_COUNT, MAX_PER, Limit
from ..definitions.steps import Step
from ..exceptions import SequenceError, Text
from ..models import StoredLimit
from ..transitions import claims, limit_overrides, limits, locking, operations
from ..transitions.limits import Admission, Request
from ..transitions.operations import OperationRequest
from ..transitions.types import Claim, Dispatch
from . import dispatcher
from .operations import name_of_caller
from .recovery import Parked

if TYPE_CHECKING:
    from .context import ExecutionContext


def enter(context: ExecutionContext, step: Step[Any], using: str) -> None:
    """Take the places that this step and its run need. Raises `Parked` if there is none."""
    definition, claim = context.definition, context.claim
    assert definition is not None
    requests = list(_requests(context, step, definition))
    if not requests:
        return
    claim.is_limited = True
    admission = limits.enter(claim, requests, using)
    if admission.is_granted:
        return
    dispatcher.send(admission.dispatches)
    _make_room(claim, admission, using)
    raise Parked(f"Step run {claim.step_run_id} is waiting for its limits.")


def _requests(
    context: ExecutionContext, step: Step[Any], definition: Definition
) -> Iterator[Request]:
    claim, kind = context.claim, context.kind
    run_limits = definition.limits if kind.needs_run(claim) else ()
    step_limits = step.limits if kind.needs_place(claim, step) else ()
    if not run_limits and not step_limits:
        return
    context.bind()
    data = json.loads(claim.data)
    for limit in run_limits:
        if (key := _storable(limit, limit.key_for(context.sequence, data))) is not None:
            yield Request(limit, key, of_run=True, when_full=definition.when_full)
    for limit in step_limits:
        value = limit.key_for(context.sequence, data, *kind.item_of(claim))
        if (key := _storable(limit, value)) is not None:
            yield Request(limit, key)


def _storable(limit: Limit, key: str | None) -> str | None:
    """Raise `InvalidData` for characters that some database rejects."""
    serialization.normalise(key, path=f"The key of limit {limit.name!r}")
    return key


def _make_room(claim: Claim, admission: Admission, using: str) -> None:
    """If a run must not wait: cancel it, or the oldest run that has its place."""
    if admission.oldest is not None:
        cancel_for(admission.oldest, claim.run_id, using)
    elif admission.full:
        reason = gettext("the limit “%(limit)s” is full") % {"limit": admission.full}
        _cancel(claim.run_id, reason, using)
        # If the run has an undo, it waits for the end of this claim.
        dispatcher.send(claims.release(claim, using))


def cancel_for(oldest: Any, newer: Any, using: str) -> None:
    """Cancel a run because another one takes its place; None: some run that is waiting."""
    reason = (
        gettext("run %(run)s takes its place")
        if newer
        else gettext("a waiting run takes its place")
    )
    _cancel(oldest, reason % {"run": newer}, using)


def _cancel(run_id: Any, reason: str, using: str) -> None:
    request = OperationRequest("cancel", by="limits", reason=reason)
    try:
        dispatches = operations.cancel(run_id, request, using, ends_rollbacks=False)
    except SequenceError:  # it ends anyway, or only a later release can read its plan
        return
    dispatcher.send(dispatches)


def limits_changed(run_id: Any, using: str) -> None:
    """See `port.Engine`. Whoever has locked a line checks it, or leaves that to the sweep."""
    with suppress(locking.Locked), locking.no_wait():
        dispatcher.send(limits.clear(run_id, using))


def look(line: int, using: str) -> list[Dispatch]:
    """For the sweep: check a line in which something is waiting."""
    admission = limits.look(line, using)
    if admission.oldest is not None:
        cancel_for(admission.oldest, None, using)
    return admission.dispatches


def change_limit(
    limit: StoredLimit,
    *,
    concurrency: int | None,
    rate: int | None,
    per: timedelta | None,
    by: Any,
    reason: str,
) -> None:
    """See `StoredLimit.change`."""
    using = conf.using()
    limit.refresh_from_db(using=using)
    now = limit_overrides.Numbers(*limit.numbers)
    numbers = limit_overrides.Numbers(
        now.concurrency if concurrency is None else concurrency,
        now.rate if rate is None else rate,
        (now.per or timedelta(seconds=1)) if per is None else per,
    )
    _check(limit, numbers)
    if numbers.rate is None:
        numbers = replace(numbers, per=None)
    request = limit_overrides.OverrideRequest(name_of_caller(by), reason, limit._basis)
    limit_overrides.override(limit.pk, numbers, request, using)
    limit.refresh_from_db(using=using)


def _check(limit: StoredLimit, numbers: limit_overrides.Numbers) -> None:
    if numbers.concurrency is not None and not 0 <= numbers.concurrency <= MAX_COUNT:
        text = _("Limit %(limit)r: concurrency cannot be %(value)s.")
        raise SequenceError(Text(text, limit=limit.name, value=numbers.concurrency))
    if numbers.rate is not None and not 0 < numbers.rate <= MAX_COUNT:
        text = _(
            "Limit %(limit)r: rate cannot be %(value)s. To stop everything, set concurrency to 0."
        )
        raise SequenceError(Text(text, limit=limit.name, value=numbers.rate))
    if numbers.per is not None and not timedelta() < numbers.per <= MAX_PER:
        text = _("Limit %(limit)r: the period must be positive, and at most %(days)d days.")
        raise SequenceError(Text(text, limit=limit.name, days=MAX_PER.days))


def reset_limit(limit: StoredLimit, *, by: Any) -> None:
    """See `StoredLimit.reset`."""
    using = conf.using()
    request = limit_overrides.OverrideRequest(name_of_caller(by), basis=limit._basis)
    limit_overrides.reset(limit.pk, request, using)
    limit.refresh_from_db(using=using)


def store_declared(using: str) -> None:
    """Write the numbers that this release declares, in sequences and in jobs."""
    limits.store_all(registry.limits().values(), using)
