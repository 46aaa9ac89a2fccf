"""The settings of the app: ``SEQUENCES`` in Django's settings; every key is optional."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast, overload

from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import router
from django.http import HttpRequest
from django.utils.module_loading import import_string

from .exceptions import did_you_mean

__all__ = ["Problem", "problems", "settings", "using"]

T = TypeVar("T")
#: Decides whether the user of this request may see that run.
Guard = Callable[[HttpRequest, Any], bool]
PERMISSION = re.compile(r"\w+\.\w+")


class Problem(NamedTuple):
    setting: str
    message: str
    hint: str


class Option(Generic[T]):
    """One key of SEQUENCES; read and checked on first use, then cached by the instance."""

    def __init__(self, default: Any, read: Callable[[Any], T]) -> None:
        self.default = default
        self.read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name
        self.key = name.upper()

    @overload
    def __get__(self, instance: None, owner: type) -> Option[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Option[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self.attribute] = self.value()
        return value

    def value(self) -> T:
        """The value; raises ImproperlyConfigured if it is not valid."""
        setting = _sequences_setting()
        if not isinstance(setting, dict):
            raise ImproperlyConfigured("SEQUENCES must be a dict.")
        raw = setting.get(self.key, self.default)
        try:
            return self.read(raw)
        except (TypeError, ValueError, ImportError) as error:
            raise ImproperlyConfigured(
                f"SEQUENCES[{self.key!r}] must be {error}; it is {raw!r}."
            ) from error


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ValueError("a positive number of seconds")


def _seconds_or_none(value: Any) -> float | None:
    try:
        return None if value is None else _seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or None") from None


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("True or False")


def _count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError("a positive integer")


def _alias(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value in django_settings.DATABASES):
        return value
    raise ValueError("None or a key of DATABASES")


def _encoder(value: Any) -> type[json.JSONEncoder]:
    error = ValueError("the path of a json.JSONEncoder subclass")
    try:
        encoder = import_string(value) if isinstance(value, str) else value
    except ImportError:
        raise error from None
    if isinstance(encoder, type) and issubclass(encoder, json.JSONEncoder):
        return encoder
    raise error


def _retention(value: Any) -> timedelta | None:
    if value is None or (isinstance(value, timedelta) and value > timedelta(0)):
        return value
    raise ValueError("None or a positive timedelta")


def _step_defaults(value: Any) -> dict[str, Any]:
    """`definitions.validation` checks the values of the options."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return dict(value)
    raise ValueError("a dict of step options, such as {'max_retries': 5}")


#: What can happen to runs when the object that they are about is deleted.
ON_SUBJECT_DELETE = ("keep", "cancel", "erase")


def _by_model(value: Any) -> dict[str, str]:
    """A dict keyed by lower-case model labels. A system check tells whether the models exist."""
    if isinstance(value, dict) and all(
        isinstance(label, str) and label.count(".") == 1 and policy in ON_SUBJECT_DELETE
        for label, policy in value.items()
    ):
        return {label.lower(): policy for label, policy in value.items()}
    policies = ", ".join(map(repr, ON_SUBJECT_DELETE))
    raise ValueError(f"a dict such as {{'shop.Order': 'cancel'}}, with values from {policies}")


def _count_or_none(value: Any) -> int | None:
    try:
        return None if value is None else _count(value)
    except ValueError as error:
        raise ValueError(f"{error}, or None") from None


def _permission(value: Any) -> str | Guard | None:
    """A callable, the path of one, or what looks like the name of a permission."""
    if value is None or callable(value):
        return cast("Guard | None", value)
    error = ValueError(
        "None, a permission such as 'shop.view_order', or the path of a callable"
        " that takes a request and a run"
    )
    if not isinstance(value, str):
        raise error
    with suppress(ImportError):
        guard = import_string(value)
        if callable(guard):
            return cast(Guard, guard)
        raise error
    if PERMISSION.fullmatch(value):
        return value
    raise error


class Settings:
    """The settings as attributes. Reading an invalid value raises ImproperlyConfigured."""

    #: Seconds before the sweep examines a dispatched step that no worker has claimed.
    grace = Option(15, _seconds)
    #: Seconds that a claim lasts without a heartbeat.
    lease = Option(15, _seconds)
    #: Seconds before a running step's lease is extended, and then again after half as many.
    heartbeat = Option(3, _seconds)
    #: Seconds between sweeps in each worker process; None: workers do not sweep.
    sweep_interval = Option(1, _seconds_or_none)
    #: Default options of all steps in the project; a step and its Meta take precedence.
    defaults = Option({}, _step_defaults)
    #: A step that has failed this many times in a row and is still retried is struggling; None:
    #: never.
    struggling_after = Option(5, _count_or_none)
    #: How many workers in a row may die while running the same step.
    max_lost_workers = Option(3, _count)
    #: The maximum size of a run's data: bytes of UTF-8, as JSON.
    max_data_bytes = Option(1_048_576, _count)
    #: The alias of the database that holds the runs; None: the router decides.
    database = Option(None, _alias)
    #: The class that encodes values as JSON.
    encoder = Option("django.core.serializers.json.DjangoJSONEncoder", _encoder)
    #: How long finished runs are kept; None: forever.
    retention = Option(None, _retention)
    #: How long failed runs are kept; None: forever.
    retention_failed = Option(None, _retention)
    #: What happens to runs when their subject is deleted, by model. Other models: nothing happens.
    on_subject_delete = Option({}, _by_model)
    #: Who may see the status of a run by its id; None: nobody.
    status_permission = Option(None, _permission)
    #: Whether starts and attempts create OpenTelemetry spans.
    telemetry = Option(False, _boolean)

    @cached_property
    def as_json(self) -> dict[str, Any]:
        """How values from user code are written: the arguments of `serialization.normalise`."""
        return {"encoder": self.encoder, "max_bytes": self.max_data_bytes}


settings = Settings()


def using() -> str:
    """The alias of the database that holds the runs."""
    return settings.database or router.db_for_write(apps.get_model("job_sequences.SequenceRun"))


def problems() -> list[Problem]:
    """What is wrong with SEQUENCES, for the system check."""
    setting = _sequences_setting()
    if not isinstance(setting, dict):
        return [Problem("SEQUENCES", "SEQUENCES must be a dict.", "See docs/operations.md.")]
    options = {
        option.key: option for option in vars(Settings).values() if isinstance(option, Option)
    }
    unknown = [
        Problem(str(key), f"SEQUENCES has no setting {key!r}.", did_you_mean(key, options))
        for key in setting
        if key not in options
    ]
    unknown += [problem for option in options.values() for problem in _problems_of(option)]
    return unknown or _contradictions()


def _problems_of(option: Option[Any]) -> list[Problem]:
    try:
        option.value()
    except ImproperlyConfigured as error:
        return [Problem(option.key, str(error), f"The default is {option.default!r}.")]
    return []


def _contradictions() -> list[Problem]:
    contradictions = []
    if settings.heartbeat >= settings.lease:
        message = "SEQUENCES['HEARTBEAT'] must be less than SEQUENCES['LEASE']."
        hint = (
            "Otherwise leases expire before their first heartbeat. A fifth of LEASE is a good "
            "value."
        )
        contradictions.append(Problem("HEARTBEAT", message, hint))
    longest = settings.retention_failed
    if longest is not None and (settings.retention is None or settings.retention > longest):
        message = "SEQUENCES['RETENTION_FAILED'] must not be shorter than SEQUENCES['RETENTION']."
        hint = "Keep failed runs at least as long as other runs; None keeps them forever."
        contradictions.append(Problem("RETENTION_FAILED", message, hint))
    return contradictions


def _sequences_setting() -> Any:
    return getattr(django_settings, "SEQUENCES", {})


def _forget(*, setting: str, **_: Any) -> None:
    if setting in {"SEQUENCES", "DATABASES"}:
        settings.__dict__.clear()


setting_changed.connect(_forget)
