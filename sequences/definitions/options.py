"""The options in a sequence's Meta."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from django.utils.functional import Promise

from .. import conf
from .limits import Limit, WhenFull
from .option_types import OnSubjectDelete
from .schedules import Timetable, declared_in
from .steps import as_tuple, inherit
from .validation import META_OWN, default_problems, meta_problems, path_of, raise_first

SCHEDULE_OPTIONS = ("schedule", "schedules")


@dataclass(frozen=True)
class MetaOptions:
    abstract: bool
    app_label: str | None
    aliases: tuple[str, ...]
    verbose_name: str | Promise | None
    handoff: Literal["broker", "direct"]
    retention: timedelta | None
    retention_failed: timedelta | None
    deadline: timedelta | None
    cancel: Literal["undo"] | None
    on_subject_delete: OnSubjectDelete | None
    redact: tuple[str, ...]
    limits: tuple[Limit, ...]
    when_full: WhenFull
    defaults: dict[str, Any]
    schedules: dict[str, Timetable]
    step_defaults: dict[str, Any]

    @classmethod
    def of(cls, owner: type) -> MetaOptions:
        options = _meta_options(owner)
        raise_first(f"{path_of(owner)}.Meta", meta_problems(options))
        options = inherit(project_defaults(), options)
        return cls(
            abstract=options.pop("abstract", False),
            app_label=options.pop("app_label", None),
            aliases=as_tuple(options.pop("aliases", ())),
            verbose_name=options.pop("verbose_name", None),
            handoff=options.pop("handoff", "broker"),
            retention=_kept_for(options, "retention"),
            retention_failed=_kept_for(options, "retention_failed"),
            deadline=options.pop("deadline", None),
            cancel=options.pop("cancel", None),
            on_subject_delete=options.pop("on_subject_delete", None),
            redact=as_tuple(options.pop("redact", ())),
            limits=as_tuple(options.pop("limits", ())),
            when_full=options.pop("when_full", "wait"),
            defaults=deepcopy(dict(options.pop("defaults", {}))),
            schedules=declared_in({name: options.pop(name, None) for name in SCHEDULE_OPTIONS}),
            step_defaults=options,
        )


def project_defaults() -> dict[str, Any]:
    """``SEQUENCES["DEFAULTS"]``, validated. Raises `InvalidDefinition`."""
    options = conf.settings.defaults
    raise_first('SEQUENCES["DEFAULTS"]', default_problems(options))
    return dict(options)


def _kept_for(options: dict[str, Any], name: str) -> timedelta | None:
    """The option's value: `timedelta.max` means forever, None that it is not set."""
    if name not in options:
        return None
    value = options.pop(name)
    return timedelta.max if value is None else value


def _meta_options(cls: type) -> dict[str, Any]:
    """The options in the Meta of a class, including inherited ones."""
    inherited: dict[str, Any] = {}
    parents = [vars(base)["Meta"] for base in cls.__mro__[1:] if "Meta" in vars(base)]
    for parent in reversed(parents):
        inherited |= _without_own(_public(parent))
    own = vars(cls).get("Meta")
    for base in reversed(own.__mro__ if own else ()):
        inherited |= _without_own(_public(base)) if base in parents else _public(base)
    return inherited


def _public(meta: type) -> dict[str, Any]:
    return {name: value for name, value in vars(meta).items() if not name.startswith("_")}


def _without_own(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in META_OWN}
