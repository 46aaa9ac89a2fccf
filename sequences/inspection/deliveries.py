"""The page behind an event's signed link: what it would deliver, or what was delivered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

from django.forms import BaseForm
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from .. import conf
from ..data.redaction import redact
from ..definitions import registry
from ..definitions.rules import NOT_STARTED, RULES
from ..links import DeliveryLink, InvalidLink, LinkExpired
from ..models import Operation, SequenceRun
from ..transitions import clock
from ..utils.text import label_of
from . import snapshot
from .actions import has_use_for
from .snapshot import RunSnapshot, StepSnapshot
from .status import NoLonger, StatusNotFound
from .wording import format_duration


class ExpiredDelivery(NoLonger):
    """The link was valid, but has expired."""

    @property
    def text(self) -> str:  # type: ignore[override]
        """The message for people."""
        return _("This link has expired.")


class EventPage:
    """An event of a run, for whoever has this link."""

    def __init__(self, link: DeliveryLink, run: SequenceRun) -> None:
        self.link, self.run = link, run

    @cached_property
    def snapshot(self) -> RunSnapshot:
        return snapshot.of(self.run, failures=False)

    @cached_property
    def step(self) -> StepSnapshot:
        """The event. Raises `StatusNotFound` if the run's plan cannot be read."""
        step = self.snapshot.step(self.link.event)
        if step is None:
            raise StatusNotFound
        return step

    @property
    def title(self) -> str:
        return capfirst(self.step.label)

    @property
    def state(self) -> Literal["open", "delivered", "closed"]:
        """Whether it can be delivered, was delivered, or can no longer be delivered."""
        if self.link.event in self.run.inbox:
            return "delivered"
        rule, status = RULES["deliver"], self.step.status or NOT_STARTED
        if not rule.allows(self.run.status) or status not in rule.step_states or self._was_used():
            return "closed"
        if not has_use_for(self.snapshot, self.link.event):
            return "closed"
        states, plan = self.snapshot.states, self.snapshot.plan
        return "closed" if plan.has_lost(self.link.event, states, self.run.inbox) else "open"

    @property
    def text(self) -> str:
        """What has happened to it, in a sentence."""
        if self.state == "closed":
            return _("An answer is no longer needed.")
        delivery = self._delivery()
        if delivery is None:
            return _("This has already been answered.")
        ago = format_duration(clock.now(conf.using()) - delivery.done_at)
        message = (
            _("This was answered by %(by)s %(ago)s ago.")
            if delivery.by
            else _("This was answered %(ago)s ago.")
        )
        return message % {"by": delivery.by, "ago": ago}

    @property
    def button(self) -> str:
        """The label of the choice that is delivered, if it is one of the event's choices."""
        choices = self.step.choices.items()
        names = (name for name, payload in choices if payload == self.link.payload)
        return next(names, "") or _("Confirm")

    def form(self, data: Any = None) -> BaseForm | None:
        """The form to fill in, if the link has no payload and the event has a form."""
        if self.step.form is None or self.link.payload is not None:
            return None
        return self.step.form(data)

    @property
    def values(self) -> list[tuple[str, str]]:
        """The values that will be delivered, by name, without secrets."""
        payload = self.link.payload
        hidden = registry.hidden_by(self.run.sequence)
        payload = redact(payload, hidden)
        values = redact({self.link.event: payload}, hidden)[self.link.event]
        if not isinstance(values, Mapping):
            return [] if payload is None else [("", _text_of(values))]
        return [(self._label(name), _text_of(value)) for name, value in values.items()]

    def _label(self, name: str) -> str:
        fields: Mapping[str, Any] = getattr(self.step.form, "base_fields", {})
        label = fields[name].label if name in fields else None
        return str(label or capfirst(label_of(name)))

    def _was_used(self) -> bool:
        """Whether this link has made its delivery, even if the event is waiting again."""
        return any(operation.reason == self.link.mark for operation in self._operations())

    def _delivery(self) -> Operation | None:
        """The first delivery since it was last asked for."""
        first = None
        for operation in self._operations():
            if operation.action == "restart_from":
                first = None
            elif first is None:
                first = operation
        return first

    def _operations(self) -> Iterator[Operation]:
        rows = Operation.objects.using(conf.using()).filter(run=self.run.pk).order_by("pk")
        deliveries = rows.filter(action="deliver", step=self.link.event)
        return (deliveries | rows.filter(action="restart_from")).iterator()


def by_token(token: str) -> EventPage:
    """The event behind a signed link. Raises `StatusNotFound`."""
    try:
        link = DeliveryLink.read(token)
    except LinkExpired:
        raise ExpiredDelivery from None
    except InvalidLink:
        raise StatusNotFound from None
    run = SequenceRun.objects.using(conf.using()).filter(pk=link.run).first()
    if run is None:
        raise StatusNotFound
    return EventPage(link, run)


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return _("Yes") if value else _("No")
    if value is None:
        return "–"  # noqa: RUF001
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
