"""The operations on runs: each is one transition and its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_noop as _

from .. import conf
from ..data import serialization
from ..data.redaction import redact
from ..definitions import registry
from ..exceptions import InvalidData, Text, UnknownStep, did_you_mean
from ..models import SequenceRun
from ..transitions import claims, operations, plans
from ..transitions.operations import OperationRequest
from ..transitions.types import Dispatch
from . import deliveries, dispatcher
from .start import checked_deadline

if TYPE_CHECKING:
    from ..definitions.plan import Plan
    from ..models import Named


def operate(
    run: SequenceRun, action: str, /, *, by: Any = "", reason: str = "", **options: Any
) -> Any:
    """Perform an operation on a run; the options are those of its method."""
    using = conf.using()
    request = OperationRequest(action, by=name_of_caller(by), reason=reason, basis=run._basis)
    return _OPERATIONS[action](run, request, using, **options)


def _on_run(transition: Callable[..., list[Dispatch]]) -> Callable[..., None]:
    def operation(run: SequenceRun, request: OperationRequest, using: str) -> None:
        _send_and_reload(run, transition(run.pk, request, using), using)

    return operation


def _on_step(transition: Callable[..., list[Dispatch]]) -> Callable[..., None]:
    def operation(
        run: SequenceRun, request: OperationRequest, using: str, *, step: Named, **options: Any
    ) -> None:
        request = replace(request, step=_step(run, step, using))
        _send_and_reload(run, transition(run.pk, request, using, **options), using)

    return operation


def _cancel(run: SequenceRun, request: OperationRequest, using: str, *, undo: bool | None) -> None:
    _send_and_reload(run, operations.cancel(run.pk, request, using, undo=undo), using)


def _set_deadline(
    run: SequenceRun, request: OperationRequest, using: str, *, deadline: Any
) -> None:
    checked = checked_deadline(deadline, "set_deadline")
    dispatches = operations.set_deadline(run.pk, request, using, deadline=checked)
    _send_and_reload(run, dispatches, using)


def _edit(run: SequenceRun, request: OperationRequest, using: str, *, data: dict[str, Any]) -> None:
    checked, _text = serialization.normalise(data, **conf.settings.as_json)
    if not isinstance(checked, dict):
        problem = Text(_("is of type %(type)s, not a dict"), type=type(data).__name__)
        hint = _("Pass the complete data as a dict.")
        raise InvalidData(path="data", problem=problem, hint=hint)
    definition = registry.definition_of(run.sequence)
    if definition is not None and definition.cls._codec is not None:
        definition.cls._codec.check(checked)
    hidden = registry.hidden_by(run.sequence)
    dispatches = operations.edit(run.pk, run.version, checked, hidden, request, using)
    _send_and_reload(run, dispatches, using)


def _deliver(
    run: SequenceRun, request: OperationRequest, using: str, *, event: Named, payload: Any
) -> bool:
    name = _event(run, event, using)
    checked = deliveries.checked(run, name, payload)
    hidden = registry.hidden_by(run.sequence)
    visible = redact({name: redact(checked, hidden)}, hidden)[name]
    request = replace(request, step=name, after=visible)
    dispatches, counted = operations.deliver(run.pk, checked, request, using)
    _send_and_reload(run, dispatches, using)
    return counted


def _erase(run: SequenceRun, request: OperationRequest, using: str, *, keep_key: bool) -> None:
    if keep_key:
        request = replace(request, action="erase_but_key")
    _send_and_reload(run, operations.erase(run.pk, request, using, keep_key=keep_key), using)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "pause": _on_run(operations.pause),
    "resume": _on_run(operations.resume),
    "cancel": _cancel,
    "finish": _on_run(operations.finish),
    "set_deadline": _set_deadline,
    "retry": _on_run(operations.retry),
    "erase": _erase,
    "skip": _on_step(operations.skip),
    "restart_from": _on_step(operations.restart_from),
    "run_now": _on_step(operations.run_now),
    "edit": _edit,
    "deliver": _deliver,
}


def payload(run: SequenceRun, event: Named, default: Any) -> Any:
    """The payload that was delivered for this event, or the default."""
    using = conf.using()
    return claims.inbox(run.pk, using).get(_event(run, event, using), default)


def delivery(run: SequenceRun, event: Named, payload: Any, by: Any) -> tuple[str, Any, str]:
    """The event's name in the run's plan, the payload as JSON, and the name of who delivers it.

    The payload of an event with a form may be left out: whoever delivers it fills in the form.
    """
    name = _event(run, event, conf.using())
    if payload is not None or deliveries.form_of(run, name) is None:
        payload = deliveries.checked(run, name, payload)
    return name, payload, name_of_caller(by)


def _send_and_reload(run: SequenceRun, dispatches: list[Dispatch], using: str) -> None:
    dispatcher.send_on_commit(dispatches, using)
    run.refresh_from_db(using=using)


def _step(run: SequenceRun, step: Named, using: str) -> str:
    """The name of this step in the run's plan, which may be an earlier name."""
    plan = plans.load(run.plan_id, using)
    return _name_in(plan, run, step, plan.names)


def _name_in(plan: Plan, run: SequenceRun, step: Named, choices: Iterable[str]) -> str:
    names = [step] if isinstance(step, str) else [step.name, *step.aliases]
    for name in names:
        if plan.get(name) is not None:
            return name
    definition = registry.definition_of(run.sequence)
    name_in_plan = None if definition is None else definition.name_in(plan, names[0])
    if name_in_plan is not None:
        return name_in_plan
    raise UnknownStep(sequence=run.sequence, step=names[0], hint=did_you_mean(names[0], choices))


def _event(run: SequenceRun, event: Named, using: str) -> str:
    plan = plans.load(run.plan_id, using)
    events = [node.name for node in plan.nodes if node.traits.takes_delivery]
    name = _name_in(plan, run, event, events)
    if name in events:
        return name
    hint = did_you_mean(name, events)
    text = _("Step %(step)r of %(sequence)s is not an event. %(hint)s")
    raise UnknownStep(
        Text(text, step=name, sequence=run.sequence, hint=hint),
        sequence=run.sequence,
        step=name,
        hint=hint,
    )


def name_of_caller(by: Any) -> str:
    """The name of a user, or the string itself."""
    get_username = getattr(by, "get_username", None)
    return str(get_username() if callable(get_username) else by)[:150]
