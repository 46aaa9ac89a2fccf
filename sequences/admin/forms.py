"""The forms of confirmation pages: a reason, a payload, other data."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import BigIntegerField
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..data.serialization import MAX_DEPTH, depth_of
from ..definitions.steps import LAST_MOMENT

#: The highest id of an operation.
MAX_ID = BigIntegerField.MAX_BIGINT


class JSONText(forms.CharField):
    """JSON typed by a person. An empty field is None."""

    widget = forms.Textarea(attrs={"rows": 6, "spellcheck": "false", "class": "seq-json"})

    def to_python(self, value: Any) -> Any:
        """The value. Raises ValidationError if it is not JSON."""
        text = (value or "").strip()
        if not text:
            return None
        try:
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()
            if depth_of(value) > MAX_DEPTH:
                raise RecursionError
        except UnicodeEncodeError as error:
            # It could not even be shown, because no encoding has it.
            raise ValidationError(
                _("Contains half of a surrogate pair, which is not a valid character.")
            ) from error
        except ValueError as error:
            raise ValidationError(_("Invalid JSON: %(error)s") % {"error": error}) from error
        except RecursionError as error:
            raise ValidationError(_("Nested too deeply.")) from error
        return value

    def validate(self, value: Any) -> None:
        if self.required and value is None:
            raise ValidationError(self.error_messages["required"], code="required")

    def run_validators(self, value: Any) -> None:
        """The value is no longer text."""


class ActionForm(forms.Form):
    """The reason for an action, and what the decision is based on."""

    #: The id of the newest operation when the page was opened.
    basis = forms.IntegerField(
        required=False, min_value=0, max_value=MAX_ID, widget=forms.HiddenInput
    )
    reason = forms.CharField(
        label=_("Reason"),
        required=False,
        max_length=2_000,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_("Stored with the run."),
    )


class RetryForm(ActionForm):
    """Whether the parent runs that failed waiting for this one restart with it."""

    parents = forms.BooleanField(
        label=_("Also retry the parent runs that failed while waiting for this one"),
        required=False,
        initial=True,
    )
    field_order = ("parents", "reason")


class SkipForm(ActionForm):
    """The reason is all that remains of a step that was skipped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].required = True


class CancelForm(ActionForm):
    """Whether to roll back first."""

    undo = forms.BooleanField(label=_("Roll back completed steps first"), required=False)
    field_order = ("undo", "reason")


class DeadlineForm(ActionForm):
    """When a run must be finished."""

    deadline = forms.DateTimeField(
        label=_("Deadline"),
        required=False,
        widget=forms.DateTimeInput(
            attrs={"type": "datetime-local", "step": 1}, format="%Y-%m-%dT%H:%M:%S"
        ),
        help_text=_("Leave it empty to remove the deadline."),
    )
    field_order = ("deadline", "reason")

    def clean_deadline(self) -> datetime | None:
        """A time in the past is a mistake: to end a run at once, there is a button."""
        deadline: datetime | None = self.cleaned_data["deadline"]
        if deadline is not None and deadline <= timezone.now():
            raise ValidationError(_("This time has passed. To end the run now, cancel it."))
        if deadline is not None and deadline > LAST_MOMENT:
            raise ValidationError(self.fields["deadline"].error_messages["invalid"])
        return deadline


class RestartForm(ActionForm):
    """Whether approvals and other events that run again are asked for again."""

    keep_deliveries = forms.BooleanField(
        label=_("Keep delivered events instead of waiting for them again"), required=False
    )
    field_order = ("keep_deliveries", "reason")


class EraseForm(ActionForm):
    """Whether other runs may use the key again."""

    keep_key = forms.BooleanField(
        label=_("Keep the key, so that no other run can use it"), required=False
    )
    field_order = ("keep_key", "reason")


class DeliverForm(ActionForm):
    """The payload of the event."""

    payload = JSONText(label=_("Payload (JSON)"), required=False, help_text=_("Optional."))
    field_order = ("payload", "reason")


class EditForm(ActionForm):
    """The new data, and the version of the run that it is based on."""

    version = forms.IntegerField(widget=forms.HiddenInput)
    text = JSONText(
        label=_("Data (JSON)"),
        widget=forms.Textarea(attrs={"rows": 24, "spellcheck": "false", "class": "seq-json"}),
    )
    field_order = ("text", "reason")

    def clean_text(self) -> dict[str, Any]:
        """The data that steps share is always an object."""
        data = self.cleaned_data["text"]
        if not isinstance(data, dict):
            raise ValidationError(_("Data must be a JSON object: {…}."))
        return data
