"""System checks. docs/operations.md lists each id with its reason."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import metadata
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Info, Tags, Warning  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Model, Q
from dramatiq import Broker
from dramatiq import broker as dramatiq_broker
from dramatiq.middleware import Middleware, Retries

from . import conf
from .data.redaction import Path, path_of
from .data.typed import reaches
from .exceptions import SequenceError
from .utils.durations import format_duration

if TYPE_CHECKING:
    from .definitions.definition import Definition
    from .models import StoredPlan
    from .transitions.backends import Backend

__all__ = ["TAG", "register"]

TAG = "sequences"
#: Timeouts of redis-py connections, in seconds.
SOCKET_TIMEOUTS = ("socket_timeout", "socket_connect_timeout")
#: Options that are hardly ever shorter than a second. The shortest backoff may well be.
IN_MILLISECONDS = ("delay", "max_age", "max_backoff", "time_limit", "timeout")

Messages = Iterator[CheckMessage]


def register() -> None:
    """Register the checks with Django; called once, when the app is ready."""
    for check in (check_project, check_settings, check_broker, check_database, check_sequences):
        checks.register(check, TAG)
    checks.register(check_server, Tags.database)
    checks.register(check_character_sets, Tags.database)
    checks.register(check_schedules, Tags.database)
    checks.register(check_unfinished_runs, TAG, deploy=True)


def check_project(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The project around the app."""
    return [*_time_zones(), *_namesakes()]


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The keys and values of SEQUENCES."""
    problems = conf.problems()
    errors = [Error(message, hint=hint, id="sequences.E002") for _, message, hint in problems]
    return [*errors, *([] if problems else [*_permissions(), *_telemetry(), *_subjects()])]


def check_broker(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Dramatiq's broker and its middleware."""
    broker = dramatiq_broker.global_broker  # get_broker() would create one
    if broker is None or not apps.is_installed("django_dramatiq"):
        return [
            Error(
                "django_dramatiq has not configured a Dramatiq broker.",
                hint="Add 'django_dramatiq' to INSTALLED_APPS, above 'sequences'.",
                id="sequences.E003",
            )
        ]
    return [
        *_middleware(broker.middleware),
        *_texts_kept(broker.middleware),
        *_confirmation(broker),
        *_socket_timeouts(broker),
        *_pool_size(broker),
    ]


def check_database(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The settings of the database that holds the runs; does not connect to it."""
    connection = _connection()
    if connection is None:
        return []
    return [*_vendor(connection), *_isolation(connection), *_reconnects(connection)]


def check_server(
    app_configs: Any, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """The server of that database: only with ``check --database``, and before ``migrate``."""
    connection = _connection()
    if connection is None or connection.alias not in (databases or ()):
        return []
    return [*_version(connection), *_actual_isolation(connection), *_functions(connection)]


def check_character_sets(
    app_configs: Any, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Whether that database can store every character and compares text exactly; with
    ``--database``."""
    connection = _connection()
    if connection is None or connection.alias not in (databases or ()):
        return []
    return [*_character_set(connection), *_collations(connection)]


def check_schedules(
    app_configs: Any, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Whether the declared schedules can apply; with ``--database``."""
    connection = _connection()
    if connection is None or connection.alias not in (databases or ()):
        return []
    return list(_hidden_schedules(connection))


def check_sequences(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Problems of sequences that only the broker knows, and secrets that they would reveal."""
    from .engine import actors

    errors = [Error(message, hint=hint, id="sequences.E009") for message, hint in actors.problems()]
    return [
        *errors,
        *_shown_secrets(),
        *_scheduled_data(),
        *_long_jitters(),
        *_conflicting_limits(),
        *_hidden_keys(),
        *_unheard_deletions(),
        *_short_durations(),
    ]


def check_unfinished_runs(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """With ``check --deploy``: the unfinished runs that this code cannot finish."""
    connection = _connection()
    if connection is None:
        return []
    try:
        return list(_unfinished_runs(connection))
    except (DatabaseError, ImproperlyConfigured) as error:
        return [
            Info(
                f"Could not check for unfinished runs that this code cannot finish: {error}",
                hint="Run this check where it can reach the database.",
                id="sequences.I001",
            )
        ]


# The project


def _time_zones() -> Messages:
    if not django_settings.USE_TZ:
        yield Error(
            "USE_TZ is False, but the sequences app needs time zone support.",
            hint="Set USE_TZ = True.",
            id="sequences.E001",
        )


def _namesakes() -> Messages:
    try:
        metadata.distribution("django-sequences")
    except metadata.PackageNotFoundError:
        pass
    else:
        yield Error(
            "The package 'django-sequences' is also installed. It has a top-level module "
            "named 'sequences' too, so whichever was installed last has overwritten files "
            "of the other.",
            hint="Uninstall both, then install the one you need.",
            id="sequences.E010",
        )
    for config in apps.get_app_configs():
        if config.label == "sequences":
            yield _other_app(config)


def _other_app(config: AppConfig) -> CheckMessage:
    return Warning(
        f"The label of the app {config.name!r} is 'sequences'. The label of this package is "
        "'job_sequences'; the two are easy to confuse.",
        hint="Give that app another label, so that its tables are not mistaken for those of "
        "this package.",
        id="sequences.W005",
    )


def _permissions() -> Messages:
    permission = conf.settings.status_permission
    if isinstance(permission, str) and permission.partition(".")[0] not in apps.app_configs:
        yield Error(
            f"SEQUENCES['STATUS_PERMISSION'] is {permission!r}, which is neither a callable "
            "nor a permission of an installed app. No user could have it.",
            hint="Start a permission with its app label, as in 'shop.view_order', or correct "
            "the path of the callable.",
            id="sequences.E012",
        )


def _subjects() -> Messages:
    labels = {model._meta.label_lower: model for model in apps.get_models()}
    for label in conf.settings.on_subject_delete:
        model = labels.get(label)
        if model is None or model._meta.proxy:
            problem = "it is a proxy" if model else "there is no such model"
            yield Error(
                f"SEQUENCES['ON_SUBJECT_DELETE'] names {label!r}, but {problem}.",
                hint="Name a concrete model, such as 'shop.Order'.",
                id="sequences.E015",
            )


def _telemetry() -> Messages:
    if not conf.settings.telemetry:
        return
    try:
        import opentelemetry.trace  # noqa: F401
    except ImportError:
        yield Error(
            "SEQUENCES['TELEMETRY'] is True, but opentelemetry-api is not installed, so "
            "nothing is traced.",
            hint="Run pip install 'django-dramatiq-sequences[opentelemetry]' and install the "
            "SDK and an exporter of your choice.",
            id="sequences.E011",
        )


# The broker


def _middleware(middleware: list[Middleware]) -> Messages:
    from .worker.middleware import SequencesMiddleware

    ours = _place(middleware, SequencesMiddleware)
    retries = _place(middleware, Retries)
    if retries is None:
        yield Error(
            "The broker has no Retries middleware, so failed steps would never be retried.",
            hint="Add 'dramatiq.middleware.Retries' to DRAMATIQ_BROKER['MIDDLEWARE'].",
            id="sequences.E004",
        )
    if ours is None:
        yield Error(
            "The broker has no SequencesMiddleware, so retries would not be recorded.",
            hint="The sequences app adds it when Django starts. Do not replace the broker "
            "or its middleware afterwards.",
            id="sequences.E005",
        )
    elif retries is not None and ours > retries:
        yield Error(
            "SequencesMiddleware comes after Retries, so it would look for the retry "
            "decision before Retries has made it.",
            hint="Remove it from DRAMATIQ_BROKER['MIDDLEWARE']; the app adds it in the right "
            "place.",
            id="sequences.E005",
        )


def _place(middleware: list[Middleware], kind: type[Middleware]) -> int | None:
    places = (place for place, each in enumerate(middleware) if isinstance(each, kind))
    return next(places, None)


def _texts_kept(middleware: list[Middleware]) -> Messages:
    from django_dramatiq.middleware import AdminMiddleware

    keeps = AdminMiddleware.after_process_message
    if not any(getattr(type(part), "after_process_message", None) is keeps for part in middleware):
        return
    guarded = [definition.label for definition in _definitions() if definition.redact]
    if guarded:
        yield Warning(
            "The broker uses django_dramatiq's AdminMiddleware, which stores tracebacks of "
            "failed messages. They can contain values that Meta.redact hides (in "
            f"{', '.join(guarded)}).",
            hint="Remove it from DRAMATIQ_BROKER['MIDDLEWARE'], or replace it with a subclass "
            "whose after_process_message stores no traceback.",
            id="sequences.W011",
        )


def _confirmation(broker: Broker) -> Messages:
    # Only RabbitmqBroker has the attribute; its module cannot be imported without pika.
    if getattr(broker, "confirm_delivery", True) is False:
        yield Warning(
            "The RabbitMQ broker does not confirm deliveries. A message that the server "
            "never received seems to have been sent, and its step waits for the sweep.",
            hint="Set 'confirm_delivery': True in DRAMATIQ_BROKER['OPTIONS'].",
            id="sequences.W002",
        )


# The sequences


def _definitions() -> list[Definition]:
    from .definitions import registry

    definitions = (cls._definition for cls in registry.all())
    return [definition for definition in definitions if definition is not None]


def _scheduled_data() -> Messages:
    from .engine.schedules import check_data

    for definition in _definitions():
        for name, timetable in definition.schedules.items():
            if (problem := check_data(definition, timetable)) is not None:
                yield Error(
                    f"{definition.label}: its schedule {name!r} cannot start a run: {problem}",
                    hint="Set data=… in the schedule, to a dict or a function of the slot.",
                    id="sequences.E013",
                )


def _long_jitters() -> Messages:
    from .definitions.schedules import Cron

    for definition in _definitions():
        for name, timetable in definition.schedules.items():
            if not isinstance(timetable, Cron) or not timetable.jitter:
                continue
            gap = timetable.shortest_gap()
            if timetable.jitter >= gap:
                yield Warning(
                    f"{definition.label}: the jitter of its schedule {name!r} is "
                    f"{format_duration(timetable.jitter)}, but its slots are only "
                    f"{format_duration(gap)} apart.",
                    hint="Use a jitter that is shorter than the gap. Otherwise, slots are missed.",
                    id="sequences.W024",
                )


def _conflicting_limits() -> Messages:
    from .definitions import registry
    from .definitions.limits import conflict

    if name := conflict(registry.every_limit()):
        yield Error(
            f"The limit {name!r} is declared twice, with different numbers.",
            hint="Declare it once and import it, or give each limit a name of its own.",
            id="sequences.E014",
        )


def _unheard_deletions() -> Messages:
    if conf.problems() or conf.settings.on_subject_delete:
        return
    for definition in _definitions():
        if definition.on_subject_delete not in (None, "keep"):
            yield Warning(
                f"{definition.label}: Meta.on_subject_delete is "
                f"{definition.on_subject_delete!r}, but SEQUENCES['ON_SUBJECT_DELETE'] names no "
                "model, so nothing happens when an object is deleted.",
                hint="Name the models that the runs are about, such as {'shop.Order': 'keep'}.",
                id="sequences.W021",
            )


def _hidden_keys() -> Messages:
    for definition in _definitions():
        names = {path[0] for path in map(path_of, definition.redact) if len(path) == 1}
        for limit in definition.all_limits:
            if isinstance(limit.key, str) and limit.key in names:
                yield Warning(
                    f"{definition.label}: the limit {limit.name!r} has the key {limit.key!r}, "
                    "which Meta.redact hides. Limit keys are stored, and shown to everyone who may "
                    "see runs.",
                    hint="Use a key that is not secret, or a function that returns a hash of it.",
                    id="sequences.W019",
                )


def _short_durations() -> Messages:
    """Numbers that were probably meant as seconds, which is what they are in Celery."""
    project = {} if conf.problems() else _short(conf.settings.defaults)
    for name, value in project.items():
        yield _in_milliseconds("SEQUENCES['DEFAULTS']", name, value, f"timedelta(seconds={value})")
    for definition in _definitions():
        is_data = "_file" in vars(definition.cls)
        shared = _short(definition.step_defaults)
        places = {"Meta": shared.items() - project.items()} | {
            step.name: _short(step.declared).items() - shared.items()
            for step in definition.steps.values()
        }
        for place, options in places.items():
            for name, value in sorted(options):
                seconds = f'"{value} s"' if is_data else f"timedelta(seconds={value})"
                yield _in_milliseconds(f"{definition.label}.{place}", name, value, seconds)


def _short(options: Mapping[str, Any]) -> dict[str, int]:
    values = {name: options.get(name) for name in IN_MILLISECONDS}
    return {
        name: value for name, value in values.items() if type(value) is int and 0 < value < 1000
    }


def _in_milliseconds(place: str, name: str, value: int, seconds: str) -> CheckMessage:
    return Warning(
        f"{place}: {name} is {value}, which means {value} milliseconds.",
        hint=f"If you mean seconds, write {seconds}. If you mean milliseconds, write "
        f"{seconds.replace('seconds', 'milliseconds').replace(' s', ' ms')}.",
        id="sequences.W022",
    )


def _shown_secrets() -> Messages:
    for definition in _definitions():
        for pattern, hint in _unmatched(definition):
            yield Warning(
                f"{definition.label}: the pattern {pattern!r} in Meta.redact can never "
                "match, so it hides nothing.",
                hint=hint,
                id="sequences.W010",
            )


def _unmatched(definition: Definition) -> Iterator[tuple[str, str]]:
    """Yield each pattern that matches nothing in `data` or in a step's input, and a hint."""
    steps = definition.steps.values()
    names = {name for step in steps for name in (step.name, *step.aliases)}
    for pattern in definition.redact:
        path = path_of(pattern)
        # A step's input and output are found under the step's name.
        is_of_step = any(fnmatchcase(name, path[0]) for name in names)
        hint = "" if is_of_step else _why_unmatched(definition, pattern, path)
        if hint:
            yield pattern, hint


def _why_unmatched(definition: Definition, pattern: str, path: Path) -> str:
    codec = definition.cls._codec
    if pattern.startswith("/"):
        return f"Separate the parts with dots: {'.'.join(pattern.strip('/').split('/'))!r}."
    if codec is not None:
        return "" if reaches(codec.cls, path) else f"Use a field of {codec.name}."
    if path[0] == "data" and len(path) > 1 and "data" not in definition.defaults:
        return f"Write {'.'.join(path[1:])!r}, without the leading 'data.'."
    return ""


def _socket_timeouts(broker: Broker) -> Messages:
    # Only RedisBroker has a client; its module cannot be imported without redis.
    pool = getattr(getattr(broker, "client", None), "connection_pool", None)
    if pool is None:
        return
    missing = [name for name in SOCKET_TIMEOUTS if _pool_option(pool, name) is None]
    if missing:
        yield Warning(
            f"The Redis broker's client has no {' and no '.join(missing)}. If the server "
            "accepts connections but never answers, every start blocks forever.",
            hint="Add '?socket_timeout=5&socket_connect_timeout=5' to the URL in "
            "DRAMATIQ_BROKER['OPTIONS'].",
            id="sequences.W012",
        )


def _pool_size(broker: Any) -> Iterator[CheckMessage]:
    # Only the broker of dramatiq-postgres has such a pool; its module need not be installed.
    size = getattr(getattr(broker, "pool", None), "max_size", None)
    needed = 2 * len(broker.queues) + 2
    if isinstance(size, int) and size < needed:
        yield Warning(
            f"The pool of the PostgreSQL broker has {size} connections. A worker that consumes "
            f"all {len(broker.queues)} queues needs {needed}: two for each queue (one of them for "
            "delayed messages) and two more. A consumer that gets no connection waits forever.",
            hint="Add ?maxconn= to the broker's url, or use sequences.brokers.PostgresBroker, "
            "whose pool has the right size.",
            id="sequences.W020",
        )


def _pool_option(pool: Any, name: str) -> Any:
    """A connection option of the pool, or redis-py's default, which it has had since version 8."""
    if name in pool.connection_kwargs:
        return pool.connection_kwargs[name]
    for kind in pool.connection_class.__mro__:
        parameter = inspect.signature(kind).parameters.get(name)
        if parameter is not None:
            return parameter.default
    return None


# The database


def _connection() -> BaseDatabaseWrapper | None:
    try:
        return connections[conf.using()]
    except ImproperlyConfigured:
        return None  # check_settings reports it


def _backend(connection: BaseDatabaseWrapper) -> Backend:
    from .transitions.backends import of_vendor

    return of_vendor(connection.vendor)


def _vendor(connection: BaseDatabaseWrapper) -> Messages:
    if not _backend(connection).vendor:
        yield Error(
            f"The database {connection.alias!r} uses the engine {connection.vendor!r}, "
            "which the sequences app does not support.",
            hint="Use PostgreSQL, MariaDB, MySQL, or SQLite (for development only). "
            "SEQUENCES['DATABASE'] selects the alias.",
            id="sequences.E006",
        )
    elif _backend(connection).locks_late(_options(connection)):
        yield Warning(
            f"The SQLite database {connection.alias!r} takes its write lock late, so "
            "concurrent transactions fail immediately instead of waiting.",
            hint=f"Set DATABASES[{connection.alias!r}]['OPTIONS']['transaction_mode'] = "
            "'IMMEDIATE'.",
            id="sequences.W003",
        )


def _isolation(connection: BaseDatabaseWrapper) -> Messages:
    level = _backend(connection).configured_isolation(_options(connection))
    if level != "read committed":
        yield _wrong_isolation(connection, level)


def _wrong_isolation(connection: BaseDatabaseWrapper, level: str) -> CheckMessage:
    return Error(
        f"The isolation level of the database {connection.alias!r} is {level}; the "
        "sequences app needs read committed.",
        hint="Remove 'isolation_level' from its OPTIONS, or set it to read committed.",
        id="sequences.E007",
    )


def _reconnects(connection: BaseDatabaseWrapper) -> Messages:
    if not _backend(connection).has_server or _options(connection).get("pool"):
        return
    if connection.settings_dict.get("CONN_MAX_AGE") == 0 and _closes_connections():
        yield Warning(
            f"CONN_MAX_AGE of the database {connection.alias!r} is 0, so "
            "DbConnectionsMiddleware closes the connection after every step, and every step opens "
            "a new one.",
            hint=f"Set DATABASES[{connection.alias!r}]['CONN_MAX_AGE'] to 60 or more. On "
            "PostgreSQL, you can set ['OPTIONS']['pool'] = True instead.",
            id="sequences.W001",
        )


def _closes_connections() -> bool:
    from django_dramatiq.middleware import DbConnectionsMiddleware

    broker = dramatiq_broker.global_broker
    return broker is not None and _place(broker.middleware, DbConnectionsMiddleware) is not None


def _options(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    return connection.settings_dict.get("OPTIONS") or {}


def _version(connection: BaseDatabaseWrapper) -> Messages:
    needed = _backend(connection).needed_version(connection)
    if needed:
        yield Error(
            f"The server of the database {connection.alias!r} does not support SKIP LOCKED.",
            hint=needed,
            id="sequences.E008",
        )


def _actual_isolation(connection: BaseDatabaseWrapper) -> Messages:
    level = _backend(connection).actual_isolation(connection)
    if level != "read committed":
        yield _wrong_isolation(connection, level)


def _functions(connection: BaseDatabaseWrapper) -> Messages:
    missing = _backend(connection).missing_functions(connection)
    if missing:
        yield Warning(
            f"The database {connection.alias!r} lacks the functions {', '.join(missing)}, or does "
            "not let this role call them. Sequences work without them, but need more CPU time.",
            hint="Run manage.py migrate as a role that may create functions in the schema of the "
            "tables, and grant EXECUTE on them to the role of the workers.",
            id="sequences.W018",
        )


def _character_set(connection: BaseDatabaseWrapper) -> Messages:
    backend = _backend(connection)
    tables = backend.not_unicode(_tables(), connection)
    if tables:
        yield Warning(
            f"The database {connection.alias!r} cannot store every character: {'; '.join(tables)}.",
            hint="Emoji in error texts and reasons are stored escaped, and starting a run fails "
            f"if its key contains one. {backend.character_set_hint}",
            id="sequences.W016",
        )


def _collations(connection: BaseDatabaseWrapper) -> Messages:
    """Columns whose collation treats values that differ in case, accents or spaces as equal."""
    from .models import ExactCharField

    backend = _backend(connection)
    exact = backend.exact_collation(connection)
    fields = {
        (model._meta.db_table, field.column)
        for model in _models()
        for field in model._meta.local_fields
        if isinstance(field, ExactCharField)
    }
    for column in backend.text_columns(_tables(), connection):
        if (column.table, column.name) in fields and column.collation != exact:
            yield Warning(
                f"{column.table}.{column.name} in the database {connection.alias!r} has the "
                f"collation {column.collation}, which treats some different strings as "
                "equal.",
                hint=f"MODIFY the column: CHARACTER SET utf8mb4 COLLATE {exact}.",
                id="sequences.W017",
            )


def _models() -> Iterable[type[Model]]:
    return apps.get_app_config("job_sequences").get_models()


def _tables() -> list[str]:
    return [model._meta.db_table for model in _models()]


def _hidden_schedules(connection: BaseDatabaseWrapper) -> Messages:
    from .engine.schedules import hidden_declarations
    from .models import Schedule, StoredPlan

    tables = {Schedule._meta.db_table, StoredPlan._meta.db_table}
    if not tables <= set(connection.introspection.table_names()):
        return
    for declaration in hidden_declarations(connection.alias):
        yield Warning(
            f"{declaration.sequence}: its schedule {declaration.name!r} starts no runs, because a "
            "schedule with this name was created at run time.",
            hint="Remove the one created at run time, or rename one of the two.",
            id="sequences.W023",
        )


# Unfinished runs


def _unfinished_runs(connection: BaseDatabaseWrapper) -> Messages:
    from .models import SequenceRun, StoredPlan

    tables = {StoredPlan._meta.db_table, SequenceRun._meta.db_table}
    if not tables <= set(connection.introspection.table_names()):
        return
    unfinished = SequenceRun.objects.using(connection.alias).unfinished()
    plans = StoredPlan.objects.using(connection.alias).filter(pk__in=unfinished.values("plan"))
    for stored in plans.order_by("sequence", "pk"):
        try:
            yield from _unfinished_runs_of(stored)
        except SequenceError as error:  # written by a newer release
            yield _unfinishable(str(error), "Install the release that wrote it or a newer one.")


def _unfinished_runs_of(stored: StoredPlan) -> Messages:
    definition = _definition(stored)
    if definition is not None:
        yield from _changed_kinds(stored, definition)
    step_of = definition.step if definition else _unknown
    missing = [name for name in stored.plan.names if step_of(name) is None]
    count = _count_without(stored, missing) if missing else 0
    if count:
        lack = _gone(missing) if definition else "the class no longer exists"
        yield _unfinishable(
            f"This code cannot finish {count} of the unfinished runs of {stored.sequence!r}: "
            f"{lack}.",
            _mend(stored.sequence, definition),
        )


def _gone(steps: list[str]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]!r} no longer exists"
    return f"steps {', '.join(map(repr, steps))} no longer exist"


def _changed_kinds(stored: StoredPlan, definition: Definition) -> Messages:
    for name in stored.plan.names:
        change = definition.change_of_kind(name, stored.plan)
        count = _count_without(stored, [name]) if change else 0
        if change and count:
            yield _unfinishable(
                f"This code cannot finish {count} of the unfinished runs of "
                f"{stored.sequence!r}: step {name!r} is {change[1]}, but was {change[0]} "
                "when they started.",
                "Give the new step another name and keep the old step until those runs "
                "have finished, or skip it with run.skip(step).",
            )


def _unfinishable(message: str, hint: str) -> CheckMessage:
    return Warning(message, hint=hint, id="sequences.W004")


def _definition(stored: StoredPlan) -> Definition | None:
    from .definitions import registry

    return registry.definition_for(stored.sequence, stored.plan)


def _unknown(step: str) -> None:
    """The hint for a sequence whose class no longer exists."""


def _count_without(stored: StoredPlan, missing: list[str]) -> int:
    """Count this plan's unfinished runs that have yet to run one of these steps."""
    from .models import NO_ITEM, SequenceRun, StepStatus

    done = Q(
        steps__step__in=missing,
        steps__item=NO_ITEM,
        steps__status__in=[StepStatus.SUCCEEDED, StepStatus.SKIPPED],
    )
    runs = SequenceRun.objects.using(stored._state.db).unfinished().filter(plan=stored)
    counted = runs.values("pk").annotate(done=Count("steps", filter=done))
    return int(counted.filter(done__lt=len(missing)).count())


def _mend(sequence: str, definition: Definition | None) -> str:
    if definition is None:
        return (
            f"If the class was renamed, add aliases = [{sequence!r}] to the Meta of the new "
            "class. Otherwise keep the class until its runs have finished."
        )
    return (
        "If the steps were renamed, add @step(aliases=[...]) to the new steps. Otherwise "
        "keep them until those runs have finished, or skip them with run.skip(step)."
    )
