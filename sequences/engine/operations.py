"""Runs are steered: the acts of `Steerable`, each one transition and its messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import conf
from ..data import serialization
from ..data.redaction import redact
from ..definitions import registry
from ..exceptions import InvalidData, UnknownStep, did_you_mean
from ..models import SequenceRun
from ..transitions import claims, operations, plans
from ..transitions.operations import Deed
from ..transitions.types import Dispatch
from . import dispatcher

if TYPE_CHECKING:
    from ..steerable import Named

_ACTS: dict[str, Callable[..., list[Dispatch]]] = {
    "pause": operations.pause,
    "resume": operations.resume,
    "cancel": operations.cancel,
    "cancel_and_undo": partial(operations.cancel, undo=True),
    "finish": operations.finish,
    "retry": operations.retry,
    "erase": operations.erase,
    "erase_but_key": partial(operations.erase, keep_key=True),
}
_ACTS_ON_STEPS = {
    "skip": operations.skip,
    "restart_from": operations.restart_from,
    "run_now": operations.run_now,
}


class Steering:
    """What the methods of a run call."""

    def act(self, run: SequenceRun, action: str, *, by: Any, reason: str) -> None:
        """Pause, resume, cancel, finish, retry, erase."""
        using = conf.using()
        done = Deed(action, by=_name(by), reason=reason)
        _send_and_reload(run, _ACTS[action](run.pk, done, using), using)

    def act_on_step(
        self, run: SequenceRun, action: str, step: Named, *, by: Any, reason: str, **options: Any
    ) -> None:
        """Skip, restart_from, run_now."""
        using = conf.using()
        done = Deed(action, by=_name(by), step=_step(run, step, using), reason=reason)
        _send_and_reload(run, _ACTS_ON_STEPS[action](run.pk, done, using, **options), using)

    def edit(self, run: SequenceRun, data: dict[str, Any], *, by: Any, reason: str) -> None:
        """Put other data in the place of the run's."""
        using = conf.using()
        checked, _ = serialization.normalise(
            data, encoder=conf.settings.encoder, max_bytes=conf.settings.max_data_bytes
        )
        if not isinstance(checked, dict):
            problem = f"is a {type(data).__name__}, not a dict"
            raise InvalidData(path="data", problem=problem, mend="Give all that it is to hold.")
        definition = registry.definition_of(run.sequence)
        if definition is not None and definition.cls._codec is not None:
            definition.cls._codec.check(checked)
        deed = Deed("edit", by=_name(by), reason=reason)
        hidden = registry.hidden_by(run.sequence)
        dispatches = operations.edit(run.pk, run.version, checked, hidden, deed, using)
        _send_and_reload(run, dispatches, using)

    def deliver(
        self, run: SequenceRun, event: Named, payload: Any, *, by: Any, reason: str
    ) -> bool:
        """Keep the payload, and end the wait."""
        using = conf.using()
        checked, _ = serialization.normalise(
            payload,
            encoder=conf.settings.encoder,
            max_bytes=conf.settings.max_data_bytes,
            path="payload",
        )
        name = _event(run, event, using)
        hidden = registry.hidden_by(run.sequence)
        shown = redact({name: redact(checked, hidden)}, hidden)[name]
        deed = Deed("deliver", by=_name(by), step=name, reason=reason, after=shown)
        dispatches, counted = operations.deliver(run.pk, checked, deed, using)
        _send_and_reload(run, dispatches, using)
        return counted

    def payload(self, run: SequenceRun, event: Named, default: Any) -> Any:
        """What was delivered for this event."""
        using = conf.using()
        return claims.inbox(run.pk, using).get(_event(run, event, using), default)


def _send_and_reload(run: SequenceRun, dispatches: list[Dispatch], using: str) -> None:
    dispatcher.send_on_commit(dispatches, using)
    run.refresh_from_db(using=using)


def _step(run: SequenceRun, step: Named, using: str) -> str:
    """The name that the run's plan has for this step, which may be an earlier one."""
    plan = plans.load(run.plan_id, using)
    names = [step] if isinstance(step, str) else [step.name, *step.aliases]
    definition = registry.definition_of(run.sequence)
    declared = None if definition is None else definition.step(names[0])
    if declared is not None:
        names += [declared.name, *declared.aliases]
    for name in names:
        if plan.get(name) is not None:
            return name
    raise UnknownStep(sequence=run.sequence, step=names[0], mend=did_you_mean(names[0], plan.names))


def _event(run: SequenceRun, event: Named, using: str) -> str:
    name = _step(run, event, using)
    plan = plans.load(run.plan_id, using)
    if plan.node(name).kind == "event":
        return name
    events = [node.name for node in plan.nodes if node.kind == "event"]
    raise UnknownStep(
        f"Step {name!r} of {run.sequence} waits for no event. {did_you_mean(name, events)}",
        sequence=run.sequence,
        step=name,
        mend=did_you_mean(name, events),
    )


def _name(by: Any) -> str:
    """A user's name, or the text itself."""
    get_username = getattr(by, "get_username", None)
    return str(get_username() if callable(get_username) else by)[:150]
