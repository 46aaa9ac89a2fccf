"""Starts a sequence: validates its data, writes its rows, and sends its messages on commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from django.db import DatabaseError
from django.utils.timezone import is_aware

from .. import conf
from ..data import serialization
from ..definitions.definition import Definition
from ..definitions.option_types import StartOptions
from ..definitions.steps import (
    FIRST_MOMENT,
    LAST_MOMENT,
    MAX_WAIT,
    as_timedelta,
    duration_problem,
)
from ..definitions.subjects import SubjectKey, check_subject
from ..exceptions import SequenceError, did_you_mean
from ..models import SequenceRun, SequenceRunQuerySet
from ..sequence import Sequence
from ..transitions import starts
from ..transitions.locking import transact
from ..transitions.refusals import is_of_characters
from ..transitions.types import Dispatch, Start
from . import dispatcher, tracing

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

S = TypeVar("S", bound=Sequence[Any])

#: The number of runs per INSERT.
RUNS_PER_INSERT = 1000
KEY_LENGTH = 255


def start(cls: type[S], data: Any, **options: Unpack[StartOptions]) -> S:
    """See `Sequence.start`."""
    definition = definition_of(cls)
    if unknown := options.keys() - OPTIONS:
        option = min(unknown)
        raise TypeError(
            f"{definition.label}.start has no option {option!r}. {did_you_mean(option, OPTIONS)} "
            f"Pass data as a dict: {cls.__name__}.start({{{option!r}: …}})."
        )
    request = _request(definition, data, **options)
    using = conf.using()
    labels = [definition.label, *definition.aliases]
    with tracing.starting(definition.plan, [request]):
        run, dispatches = _start_one(definition, request, labels, using)
    dispatcher.send_on_commit(dispatches, using)
    return _bound(cls, run, request)


def start_many(cls: type[S], iterable: Iterable[Any]) -> list[S]:
    """See `Sequence.start_many`."""
    definition = definition_of(cls)
    requests = [_request_of(definition, item) for item in iterable]
    started = {
        request.id: sequence
        for batch in _batches(requests)
        for request, sequence in zip(batch, _start_batch(cls, definition, batch), strict=True)
    }
    return [started[request.id] for request in requests]


def runs(cls: type[Sequence[Any]]) -> SequenceRunQuerySet:
    """The runs of this class, including those under its earlier names."""
    runs = SequenceRunQuerySet(SequenceRun, using=conf.using())
    return runs._of_class(definition_of(cls))


def _start_batch(cls: type[S], definition: Definition, requests: SequenceOf[Start]) -> Iterator[S]:
    using = conf.using()
    labels = [definition.label, *definition.aliases]
    with tracing.starting(definition.plan, requests):
        runs, dispatches = _start_all(definition, requests, labels, using)
    dispatcher.send_on_commit(dispatches, using)
    return (_bound(cls, run, request) for run, request in zip(runs, requests, strict=True))


def _start_one(
    definition: Definition, request: Start, labels: list[str], using: str
) -> tuple[SequenceRun, list[Dispatch]]:
    with _refusing_characters(definition, using):
        if quick := starts.start_quickly(definition.plan, [request], labels, using):
            return quick[0][0], quick[1]
        return transact(using, lambda: starts.start(definition.plan, request, labels, using))


def _start_all(
    definition: Definition, requests: SequenceOf[Start], labels: list[str], using: str
) -> tuple[list[SequenceRun], list[Dispatch]]:
    with _refusing_characters(definition, using):
        return starts.start_quickly(definition.plan, requests, labels, using) or transact(
            using, lambda: starts.start_many(definition.plan, requests, labels, using)
        )


@contextmanager
def _refusing_characters(definition: Definition, using: str) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        if not is_of_characters(error):
            raise
        # An escaped key would be a different key, perhaps that of another run.
        raise SequenceError(
            f"{definition.label}.start: the database {using!r} cannot store a character of the "
            "key. Its character set must be utf8mb4 on MySQL and MariaDB, and UTF8 on PostgreSQL: "
            f"see manage.py check --database={using}. The database's own message: {error}"
        ) from error


def _batches(requests: list[Start]) -> Iterator[list[Start]]:
    if len(requests) > RUNS_PER_INSERT:
        # In a transaction of the caller's, the locks of each batch are kept for the next ones.
        requests = sorted(requests, key=starts.in_order_of_keys)
    for index in range(0, len(requests), RUNS_PER_INSERT):
        yield requests[index : index + RUNS_PER_INSERT]


def definition_of(cls: type[Sequence[Any]]) -> Definition:
    """The definition of this class."""
    assert cls._definition is not None  # the caller has rejected abstract classes
    return cls._definition


def _bound(cls: type[S], run: SequenceRun, request: Start) -> S:
    is_created = run.pk == request.id
    if is_created and request.subject is not None:
        SequenceRun.subject.keep(run, request.subject)
    return cls._bind(run=run, data=run.data, created=is_created)


OPTIONS = frozenset(StartOptions.__annotations__)
#: The minimum and maximum of a priority: the column's.
PRIORITIES = -(2**15), 2**15 - 1


def _request_of(definition: Definition, item: Any) -> Start:
    """One item of `start_many`: data, or a pair of data and a dict of the options of `start`."""
    if not isinstance(item, tuple):
        return _request(definition, item)
    data: Any = item[0] if item else None
    options: Any = item[1] if len(item) == 2 else None
    if not isinstance(options, Mapping) or not options.keys() <= OPTIONS:
        names = ", ".join(f'"{name}"' for name in StartOptions.__annotations__)
        raise SequenceError(
            f"{definition.label}.start_many: {item!r} must be data, or a pair of data and a "
            f"dict of options ({names})."
        )
    return _request(definition, data, **cast(StartOptions, options))


def _request(definition: Definition, data: Any, **options: Unpack[StartOptions]) -> Start:
    key, unique = options.get("key"), options.get("unique", "ever")
    _check_key(definition, key, unique)
    checked, text = serialization.normalise(definition.admit(data), **conf.settings.as_json)
    delay = _delay(definition, options.get("delay"))
    deadline = options.get("deadline", definition.deadline)
    deadline = checked_deadline(deadline, f"{definition.label}.start")
    priority = _priority(definition, options.get("priority", 0))
    start = Start(checked, text, key, unique, delay, priority, deadline)
    if (subject := options.get("subject")) is not None:
        start.subject, start.subject_key = subject, subject_key(definition.label, subject)
    return start


def subject_key(label: str, subject: Any) -> SubjectKey:
    """The name of a run's subject. Raises `SequenceError`, and `InvalidData` for its characters."""
    key = check_subject(subject, f"{label}.start")
    serialization.normalise(key.pk, path="subject")
    return key


def start_of(
    definition: Definition, data: Any, *, key: str | None, subject_key: SubjectKey | None = None
) -> Start:
    """The run of a schedule; data and key are checked as by `Sequence.start`."""
    request = _request(definition, data, key=key)
    request.subject_key = subject_key
    return request


def child_of(definition: Definition, data: Any, parent: int, subject: Any) -> Start:
    """A child run of this step run."""
    request = _request(definition, data, subject=subject)
    request.parent = parent
    return request


def _check_key(definition: Definition, key: Any, unique: Any) -> None:
    if unique not in ("ever", "unfinished"):
        raise SequenceError(
            f'{definition.label}.start: unique is {unique!r}; it must be "ever" or "unfinished".'
        )
    if key is None:
        return
    if not isinstance(key, str) or not key:
        raise SequenceError(
            f"{definition.label}.start: key is {key!r}; it must be a non-empty string or None."
        )
    if len(key) > KEY_LENGTH:
        raise SequenceError(
            f"{definition.label}.start: the key that begins with {key[:40]!r} has {len(key)} "
            f"characters; the limit is {KEY_LENGTH}. Use a hash of long keys."
        )
    serialization.normalise(key, path="key")


def _priority(definition: Definition, priority: Any) -> int:
    least, most = PRIORITIES
    if type(priority) is not int or not least <= priority <= most:
        raise SequenceError(
            f"{definition.label}.start: priority is {priority!r}; it must be an int from {least} "
            f"to {most}."
        )
    return priority


def checked_deadline(value: Any, call: str) -> timedelta | datetime | None:
    """Validate a deadline. Raises `SequenceError`, which names the call."""
    if value is None:
        return None
    if isinstance(value, datetime) and is_aware(value) and FIRST_MOMENT <= value <= LAST_MOMENT:
        return value
    if isinstance(value, timedelta) and timedelta() < value <= MAX_WAIT:
        return value
    raise SequenceError(
        f"{call}: deadline is {value!r}; it must be a positive timedelta of at most 1,000 years, "
        "an aware datetime before the last day of the year 9999, or None."
    )


def _delay(definition: Definition, delay: Any) -> timedelta | None:
    if delay is None:
        return None
    if problem := duration_problem(delay):
        raise SequenceError(f"{definition.label}.start: delay is {delay!r}; {problem}.")
    return as_timedelta(delay)
