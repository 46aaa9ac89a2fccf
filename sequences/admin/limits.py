"""Limits in the admin: places in use, what is waiting, and overrides."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext, pgettext
from django.utils.translation import gettext_lazy as _

from .. import conf
from ..exceptions import SequenceError
from ..inspection import limits as inspection
from ..inspection.limits import LimitSnapshot
from ..inspection.wording import explain, format_duration
from ..models import LimitOverride, StoredLimit
from ..utils.durations import parse_duration
from . import columns
from .base import EMPTY, LightChangeList, ReadOnlyAdmin
from .failures import list_media
from .forms import MAX_ID

#: How many overrides are shown, the newest.
MAX_OVERRIDES = 20


class LimitForm(forms.ModelForm):  # type: ignore[type-arg]
    """An override of the numbers, or the numbers in the code again."""

    concurrency_now = forms.IntegerField(
        label=_("Concurrency"),
        min_value=0,
        required=False,
        help_text=_("The maximum number active at the same time. With 0, nothing starts."),
    )
    rate_now = forms.IntegerField(
        label=_("Rate"),
        min_value=1,
        required=False,
        help_text=_("The maximum number of starts per period."),
    )
    per_now = forms.CharField(
        label=_("Period"), required=False, help_text=_("For example “1 s” or “10 min”.")
    )
    reason = forms.CharField(
        label=_("Reason"), required=False, widget=forms.Textarea(attrs={"rows": 2})
    )
    reset_now = forms.BooleanField(
        label=_("Use the numbers from the code"), required=False, help_text=_("Ends the override.")
    )

    #: The id of the override when the page was opened; 0 if there was none.
    basis = forms.IntegerField(
        label="", required=False, min_value=0, max_value=MAX_ID, widget=forms.HiddenInput
    )

    class Meta:
        model = StoredLimit
        fields: ClassVar[list[str]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["basis"] = self.instance.override_id or 0

    def clean_per_now(self) -> timedelta | None:
        """A duration as people write it."""
        text = self.cleaned_data["per_now"]
        if not text:
            return None
        per = parse_duration(text)
        if per is None:
            raise ValidationError(_("Enter a duration such as 90 s, 15 min, 24 h or 7 days."))
        return per


class LimitList(LightChangeList):
    """Limits, each with its snapshot."""

    model_admin: StoredLimitAdmin

    def get_results(self, request: HttpRequest) -> None:
        """Read what the rows show, with four queries."""
        super().get_results(request)
        rows = list(self.result_list)
        self.model_admin.take_snapshots(rows)
        self.result_list = rows


@admin.register(StoredLimit)
class StoredLimitAdmin(ReadOnlyAdmin):
    """Limits: the list, and a page for each with its lines."""

    form = LimitForm
    list_display = ("name", "numbers", "in_use", "waiting", "oldest", "overridden")
    search_fields = ("name",)
    readonly_fields = ("name", "numbers", "declared", "in_use", "waiting", "oldest", "lines", "log")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """With the permission to override limits."""
        return request.user.has_perm("job_sequences.override_storedlimit")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Those who may override may also view."""
        may_view = super().has_view_permission(request, obj)
        return may_view or self.has_change_permission(request, obj)

    @property
    def media(self) -> forms.Media:
        return super().media + list_media()

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(
            request, {"title": capfirst(self.opts.verbose_name_plural), **(extra_context or {})}
        )

    def get_queryset(self, request: HttpRequest) -> QuerySet[StoredLimit]:
        """With the overrides."""
        rows: QuerySet[StoredLimit] = super().get_queryset(request)
        return rows.select_related("override")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """The form, for those who may use it."""
        if not self.has_change_permission(request, obj):
            return self.readonly_fields
        now = ("concurrency_now", "rate_now", "per_now", "reason", "reset_now", "basis")
        return (*self.readonly_fields[:6], *now, *self.readonly_fields[6:])

    def save_model(self, request: HttpRequest, obj: StoredLimit, form: Any, change: bool) -> None:
        """The transition writes, and leaves a row that says who did it."""
        values = form.cleaned_data
        numbers = {name: values[f"{name}_now"] for name in ("concurrency", "rate", "per")}
        problem = ""
        obj._basis = values["basis"]
        try:
            if values["reset_now"]:
                obj.reset(by=request.user)
            elif any(value is not None for value in numbers.values()):
                obj.change(**numbers, by=request.user, reason=values["reason"])
            else:
                problem = gettext("No changes.")
        except SequenceError as error:
            problem = explain(error)
        vars(obj)["_problem"] = problem

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Only what has been changed."""
        return None if _problem_of(obj) else super().log_change(request, obj, message)

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        """Say why nothing has been changed, instead of Django's message that it was."""
        if problem := _problem_of(obj):
            self.message_user(request, problem, messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        return super().response_change(request, obj)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[LimitList]:
        return LimitList

    def take_snapshots(self, rows: list[StoredLimit]) -> None:
        """Give each row its snapshot."""
        for snapshot in inspection.of_many(rows, conf.using()):
            vars(snapshot.row)["_snapshot"] = snapshot

    def _snapshot(self, row: StoredLimit) -> LimitSnapshot:
        if "_snapshot" not in vars(row):
            self.take_snapshots([row])
        snapshot: LimitSnapshot = vars(row)["_snapshot"]
        return snapshot

    @admin.display(description=_("current"))
    def numbers(self, row: StoredLimit) -> str:
        """The numbers in force."""
        return self._snapshot(row).numbers

    @admin.display(description=_("declared in code"))
    def declared(self, row: StoredLimit) -> str:
        """The numbers in the code."""
        return self._snapshot(row).declared

    @admin.display(description=_("in use"))
    def in_use(self, row: StoredLimit) -> int:
        """The places in use, across all lines."""
        return self._snapshot(row).in_use

    @admin.display(description=_("waiting"))
    def waiting(self, row: StoredLimit) -> int:
        """The step runs and runs that wait, across all lines."""
        return self._snapshot(row).waiting

    @admin.display(description=_("oldest"))
    def oldest(self, row: StoredLimit) -> str:
        """How long the first one has waited."""
        snapshot = self._snapshot(row)
        return EMPTY if snapshot.oldest is None else format_duration(snapshot.now - snapshot.oldest)

    @admin.display(description=_("overridden"))
    def overridden(self, row: StoredLimit) -> str:
        """Whether there is an override. Having none is not a problem."""
        return EMPTY if row.override_id is None else gettext("yes")

    @admin.display(description=_("by key"))
    def lines(self, row: StoredLimit) -> SafeString | str:
        """Its keys, those in which something is waiting first."""
        now = self._snapshot(row).now
        rows = [
            (
                line.key or EMPTY,
                line.in_use,
                line.waiting,
                EMPTY if line.oldest is None else format_duration(now - line.oldest),
            )
            for line in inspection.lines_of(row, conf.using())
        ]
        heads = (_("key"), _("in use"), _("waiting"), _("oldest"))
        return _table(heads, rows)

    @admin.display(description=_("overrides"))
    def log(self, row: StoredLimit) -> SafeString | str:
        """Who has changed it, newest first."""
        overrides = LimitOverride.objects.using(conf.using()).filter(limit=row.name)
        newest = overrides.order_by("-pk")[:MAX_OVERRIDES]
        items = ((_override(each),) for each in newest)
        text = format_html_join("", "<li>{}</li>", items)
        return format_html('<ul class="seq-overrides">{}</ul>', text) if text else EMPTY


def _problem_of(row: StoredLimit) -> str:
    """Why the last `save_model` has changed nothing; empty: it has."""
    return str(vars(row).get("_problem", ""))


def _override(row: LimitOverride) -> SafeString:
    """Its numbers, who and why, each with a label: a table would be too wide for a phone."""
    facts = (
        (pgettext("time", "created"), columns.exact_time(row.created_at)),
        (gettext("by"), row.by),
        (gettext("reason"), row.reason),
        (pgettext("time", "ended"), columns.exact_time(row.ended_at)),
        (gettext("ended by"), row.ended_by),
    )
    numbers = inspection.numbers_text(row.concurrency, row.rate, row.per)
    pairs = (fact for fact in facts if fact[1])
    text = format_html_join("", " · {}: <bdi>{}</bdi>", pairs)
    return format_html("<strong>{}</strong>{}", numbers, text)


def _table(heads: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> SafeString | str:
    if not rows:
        return EMPTY
    head = format_html_join("", "<th>{}</th>", ((text,) for text in heads))
    body = format_html_join(
        "",
        "<tr>{}</tr>",
        ((format_html_join("", "<td>{}</td>", ((cell,) for cell in row)),) for row in rows),
    )
    return format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", head, body)
