"""The objects that runs are about, as far as a person may see them.

Whoever may not view the objects of a model only sees that a run is about one of them: neither which
one, nor, with a filter, whether it is a certain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..definitions.subjects import SubjectKey, load_all, rows_of
from ..models import SequenceRun, read_subject_rows
from ..utils.text import text_of
from .filters import is_narrowed

#: The parameter of the list of runs that selects those about one object.
PARAMETER = "subject"


@dataclass(frozen=True)
class SubjectLabel:
    """What a person is shown of an object that runs are about."""

    #: The name of its model, and as much of the object's own name as may be seen.
    model: str
    text: str = ""
    url: str = ""
    #: The list of the runs about it.
    runs_url: str = ""

    def __str__(self) -> str:
        return self.text or self.model


class SubjectViewer:
    """A person who looks at runs in an admin site."""

    def __init__(self, request: HttpRequest, site: admin.AdminSite) -> None:
        self.request, self.site = request, site

    def may_view(self, key: SubjectKey) -> bool:
        """Whether they may view objects of this model at all."""
        if (model_admin := self._admin_of(key)) is not None:
            return bool(model_admin.has_view_permission(self.request))
        app_label, _dot, name = key.model.partition(".")
        return self.request.user.has_perms([f"{app_label}.view_{name}"])

    def label_of(self, run: SequenceRun) -> SubjectLabel | None:
        """The label of the object that this run is about. None: there is none."""
        return self.labels_of([run]).get(run.pk)

    def label(self, key: SubjectKey | None) -> SubjectLabel | None:
        """The label of the object with this key."""
        if key is None:
            return None
        return self._label(key, self._objects({key} if self.may_view(key) else set()))

    def labels_of(self, runs: list[SequenceRun]) -> dict[Any, SubjectLabel]:
        """The same for many, by their ids: two queries per model, and one for their names."""
        read_subject_rows(runs)
        keys = {run.pk: key for run in runs if (key := run.subject_key) is not None}
        objects = self._objects({key for key in keys.values() if self.may_view(key)})
        return {pk: self._label(key, objects) for pk, key in keys.items()}

    def runs_about(self, rows: QuerySet[Any], key: SubjectKey) -> QuerySet[Any]:
        """The runs about this object; none if this person may not see it."""
        if not self.may_view(key) or not self._objects({key}):
            return rows.none()
        return rows.filter(subject_row__model=key.model, subject_row__object_id=key.pk)

    # What they may see

    def _objects(self, keys: set[SubjectKey]) -> dict[SubjectKey, Model | None]:
        """The objects that they may see; None: it no longer exists. Others are left out."""
        listed = load_all(keys, self._rows)
        objects: dict[SubjectKey, Model | None] = {
            key: subject for key, subject in listed.items() if self._may_view_one(key, subject)
        }
        if missing := keys - listed.keys():
            gone = missing - load_all(missing).keys()
            objects |= dict.fromkeys(key for key in gone if not self._is_narrowed(key))
        return objects

    def _rows(self, model: type[Model]) -> QuerySet[Model]:
        """The objects that the admin of this model would list."""
        model_admin = self.site._registry.get(model)
        if model_admin is None:
            return rows_of(model)
        rows: QuerySet[Model] = model_admin.get_queryset(self.request)
        return rows

    def _may_view_one(self, key: SubjectKey, subject: Model) -> bool:
        model_admin = self._admin_of(key)
        return model_admin is None or model_admin.has_view_permission(self.request, subject)

    def _is_narrowed(self, key: SubjectKey) -> bool:
        """Whether they may see only some objects: then a deleted one may have been another."""
        model = key.model_class
        return model is not None and is_narrowed(self._rows(model))

    def _label(self, key: SubjectKey, objects: dict[SubjectKey, Model | None]) -> SubjectLabel:
        model = key.model_class
        name = key.model if model is None else capfirst(str(model._meta.verbose_name))
        if key not in objects:
            return SubjectLabel(name)
        subject = objects[key]
        if subject is None:
            text = gettext("%(model)s %(pk)s (deleted)") % {"model": name, "pk": key.pk}
            return SubjectLabel(name, text, runs_url=self.runs_url(key))
        return SubjectLabel(name, text_of(subject), self._url(key, subject), self.runs_url(key))

    def _url(self, key: SubjectKey, subject: Model) -> str:
        if self._admin_of(key) is None:
            return ""
        name = f"{self.site.name}:{key.model.replace('.', '_')}_change"
        try:
            return reverse(name, args=[quote(subject.pk)])
        except NoReverseMatch:
            return ""  # its admin has no such page

    def runs_url(self, key: SubjectKey) -> str:
        """The URL of the list of runs about it; empty for those who may not view runs."""
        run_admin = self.site._registry.get(SequenceRun)
        if run_admin is None or not run_admin.has_view_permission(self.request):
            return ""
        url = reverse(f"{self.site.name}:job_sequences_sequencerun_changelist")
        return f"{url}?{urlencode({PARAMETER: str(key)})}"

    def _admin_of(self, key: SubjectKey) -> Any:
        model = key.model_class
        return None if model is None else self.site._registry.get(model)


def key_in(text: str) -> SubjectKey | None:
    """The key that this text stands for, if it is one, and its model exists."""
    try:
        key = SubjectKey.parse(text.replace("\0", ""))  # PostgreSQL allows none in text
    except ValueError:
        return None
    return None if key.model_class is None else key


class SubjectFilter(admin.ListFilter):
    """Runs about one object: ``?subject=shop.order:17``. Linked from the object's admin page."""

    title = _("subject")

    def __init__(self, request: HttpRequest, params: Any, model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self._viewer = SubjectViewer(request, model_admin.admin_site)
        if PARAMETER in params:
            self.used_parameters[PARAMETER] = params.pop(PARAMETER)[-1]

    def has_output(self) -> bool:
        return bool(self.used_parameters)

    def expected_parameters(self) -> list[str | None]:
        return [PARAMETER]

    def choices(self, changelist: Any) -> Iterator[Any]:
        everything = changelist.get_query_string(remove=[PARAMETER])
        yield {"selected": False, "query_string": everything, "display": _("All")}
        current = changelist.get_query_string(self.used_parameters)
        yield {"selected": True, "query_string": current, "display": self._text}

    @property
    def _text(self) -> str:
        return str(self.used_parameters.get(PARAMETER, ""))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.used_parameters:
            return queryset
        key = key_in(self._text)
        return queryset.none() if key is None else self._viewer.runs_about(queryset, key)
