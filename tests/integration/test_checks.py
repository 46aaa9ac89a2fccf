import re
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

import dramatiq
import pydantic
import pytest
import redis
from django.apps import apps
from django.core import checks as django_checks
from django.core.checks import Tags
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.utils import timezone
from django_dramatiq.middleware import AdminMiddleware, DbConnectionsMiddleware
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AgeLimit, Retries
from dramatiq_postgres import PostgresBroker
from typing_extensions import TypedDict

from sequences import Sequence, checks, conf, define, event, job, step
from sequences.definitions import registry
from sequences.definitions.plan import Node, Plan
from sequences.engine import actors
from sequences.flows import jobs
from sequences.models import RunStatus, SequenceRun, StepRun, StepStatus, StoredPlan
from sequences.worker.middleware import SequencesMiddleware

SERIALIZABLE = 4  # as psycopg counts


def ids(messages):
    return [message.id.removeprefix("sequences.") for message in messages]


def only(messages):
    (message,) = messages
    assert message.hint
    return message


def database(vendor="postgresql", *, age=60, skip_locked=True, **options):
    return SimpleNamespace(
        alias="default",
        vendor=vendor,
        settings_dict={"CONN_MAX_AGE": age, "OPTIONS": options},
        features=SimpleNamespace(has_select_for_update_skip_locked=skip_locked),
    )


@pytest.fixture
def use_database(monkeypatch):
    def use(*args, **kwargs):
        monkeypatch.setattr(checks, "_connection", lambda: database(*args, **kwargs))

    return use


@pytest.fixture
def use_broker(monkeypatch):
    def use(*middleware):
        broker = StubBroker(middleware=list(middleware))
        monkeypatch.setattr(checks.dramatiq_broker, "global_broker", broker)
        return broker

    return use


class TestRegistration:
    def test_a_project_that_is_in_order_has_no_errors(self):
        found = django_checks.run_checks(tags=[checks.TAG])
        assert [message for message in found if message.level >= django_checks.ERROR] == []

    @pytest.mark.django_db
    def test_the_server_is_asked_with_the_checks_of_databases_only(self):
        names = {check.__name__ for check in django_checks.registry.registry.get_checks()}
        assert names >= {"check_project", "check_broker", "check_database", "check_server"}
        assert checks.check_server.tags == (Tags.database,)
        assert checks.check_server(None, databases=["default"]) == []

    def test_unfinished_runs_are_looked_for_when_deploying_only(self):
        daily = django_checks.registry.registry.get_checks()
        deploying = django_checks.registry.registry.get_checks(include_deployment_checks=True)
        assert checks.check_unfinished_runs not in daily
        assert checks.check_unfinished_runs in deploying

    def test_every_id_is_documented(self):
        source = Path(checks.__file__).read_text()
        docs = Path(__file__).parents[2] / "docs" / "operations.md"
        used = set(re.findall(r"sequences\.[EWI]\d{3}", source))
        rows = re.findall(r"^\| `(sequences\.[EWI]\d{3})` \|", docs.read_text(), re.MULTILINE)
        assert sorted(rows) == sorted(used)


class TestProject:
    def test_naive_times_are_an_error(self, settings):
        settings.USE_TZ = False
        assert ids(checks.check_project(None)) == ["E001"]

    def test_a_distribution_with_the_same_package_is_an_error(self, monkeypatch):
        monkeypatch.setattr(metadata, "distribution", lambda name: name)
        error = only(checks.check_project(None))
        assert error.id == "sequences.E010"
        assert "django-sequences" in error.msg

    def test_an_app_with_the_label_of_that_package_is_warned_of(self, monkeypatch):
        other = SimpleNamespace(label="sequences", name="shop.sequences")
        monkeypatch.setattr(apps, "get_app_configs", lambda: [other])
        warning = only(checks.check_project(None))
        assert warning.id == "sequences.W005"
        assert "shop.sequences" in warning.msg


class TestSettings:
    def test_each_problem_is_an_error_with_its_hint(self, settings):
        settings.SEQUENCES = {"GRASE": 1, "LEASE": 0}
        found = checks.check_settings(None)
        assert ids(found) == ["E002", "E002"]
        assert "Did you mean 'GRACE'?" in [error.hint for error in found]

    @pytest.mark.parametrize("value", ["shop.view_order", "contact.views.may_sea"])
    def test_a_permission_that_nobody_can_have_is_an_error(self, settings, value):
        settings.SEQUENCES = {"STATUS_PERMISSION": value}
        error = only(checks.check_settings(None))
        assert error.id == ("sequences.E002" if value.count(".") > 1 else "sequences.E012")
        assert value in error.msg

    @pytest.mark.parametrize(
        "value", [None, "orders.view_order", "job_sequences.view_sequencerun", only]
    )
    def test_a_permission_of_an_installed_app_is_in_order(self, settings, value):
        settings.SEQUENCES = {"STATUS_PERMISSION": value}
        assert checks.check_settings(None) == []


class TestBroker:
    def test_ours_before_retries_is_in_order(self, use_broker):
        use_broker(AgeLimit(), SequencesMiddleware(), Retries())
        assert checks.check_broker(None) == []

    def test_no_broker_is_an_error(self, monkeypatch):
        monkeypatch.setattr(checks.dramatiq_broker, "global_broker", None)
        assert only(checks.check_broker(None)).id == "sequences.E003"
        assert checks.dramatiq_broker.global_broker is None

    def test_a_broker_that_django_dramatiq_did_not_configure_is_an_error(self, monkeypatch):
        monkeypatch.setattr(apps, "is_installed", lambda name: name != "django_dramatiq")
        assert only(checks.check_broker(None)).id == "sequences.E003"

    def test_no_retries_is_an_error(self, use_broker):
        use_broker(SequencesMiddleware())
        assert only(checks.check_broker(None)).id == "sequences.E004"

    def test_without_our_middleware_it_is_an_error(self, use_broker):
        use_broker(Retries())
        assert only(checks.check_broker(None)).id == "sequences.E005"

    def test_our_middleware_after_retries_is_an_error(self, use_broker):
        use_broker(Retries(), SequencesMiddleware())
        error = only(checks.check_broker(None))
        assert error.id == "sequences.E005"
        assert "after Retries" in error.msg

    @pytest.mark.parametrize(
        ("given", "missing"),
        [
            ({"socket_timeout": 5, "socket_connect_timeout": 5}, ""),
            ({"socket_timeout": None, "socket_connect_timeout": 5}, "no socket_timeout."),
            (
                {"socket_timeout": None, "socket_connect_timeout": None},
                "no socket_timeout and no socket_connect_timeout.",
            ),
        ],
    )
    def test_a_client_of_redis_that_waits_without_limit_is_warned_of(
        self, use_broker, given, missing
    ):
        pool = redis.ConnectionPool.from_url("redis://127.0.0.1")
        pool.connection_kwargs.update(given)
        use_broker(SequencesMiddleware(), Retries()).client = redis.Redis(connection_pool=pool)
        found = checks.check_broker(None)
        assert ids(found) == (["W012"] if missing else [])
        assert missing in "".join(message.msg for message in found)

    @pytest.mark.parametrize(("queues", "found"), [(7, []), (8, ["W020"])])
    def test_a_pool_that_its_consumers_would_exhaust_is_warned_of(
        self, use_broker, monkeypatch, queues, found
    ):
        use_broker()
        broker = PostgresBroker(url="", middleware=[SequencesMiddleware(), Retries()])
        monkeypatch.setattr(checks.dramatiq_broker, "global_broker", broker)
        for number in range(queues):
            broker.declare_queue(f"queue{number}")
        try:
            assert ids(checks.check_broker(None)) == found
        finally:
            broker.close()

    def test_what_redis_py_sets_by_itself_counts(self, use_broker, monkeypatch):
        pool = redis.ConnectionPool.from_url("redis://127.0.0.1")
        use_broker(SequencesMiddleware(), Retries()).client = redis.Redis(connection_pool=pool)
        default = pool.connection_class().socket_timeout
        assert ids(checks.check_broker(None)) == ([] if default else ["W012"])

    @pytest.mark.parametrize(("confirms", "found"), [(False, ["W002"]), (True, [])])
    def test_a_broker_that_does_not_confirm_is_warned_of(self, use_broker, confirms, found):
        use_broker(SequencesMiddleware(), Retries()).confirm_delivery = confirms
        assert ids(checks.check_broker(None)) == found


class TestDatabase:
    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"vendor": "postgresql"}, []),
            ({"vendor": "postgresql", "isolation_level": 2}, []),
            ({"vendor": "postgresql", "isolation_level": SERIALIZABLE}, ["E007"]),
            ({"vendor": "postgresql", "isolation_level": 99}, ["E007"]),
            ({"vendor": "mysql"}, []),
            ({"vendor": "mysql", "isolation_level": "READ COMMITTED"}, []),
            ({"vendor": "mysql", "isolation_level": "repeatable read"}, ["E007"]),
            ({"vendor": "mysql", "isolation_level": None}, ["E007"]),
            ({"vendor": "sqlite", "transaction_mode": "immediate"}, []),
            ({"vendor": "sqlite", "transaction_mode": "EXCLUSIVE"}, []),
            ({"vendor": "sqlite", "transaction_mode": None}, ["W003"]),
            ({"vendor": "sqlite"}, ["W003"]),
            ({"vendor": "oracle"}, ["E006"]),
        ],
        ids=str,
    )
    def test_vendor_and_isolation(self, use_database, options, found):
        use_database(**options)
        messages = checks.check_database(None)
        assert ids(messages) == found
        assert all(message.hint for message in messages)

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"age": 0}, ["W001"]),
            ({"age": 0, "pool": True}, []),
            ({"age": 0, "pool": {"max_size": 4}}, []),
            ({"age": 0, "vendor": "mysql"}, ["W001"]),
            ({"age": 0, "vendor": "sqlite", "transaction_mode": "IMMEDIATE"}, []),
            ({"age": 60}, []),
            ({"age": None}, []),
        ],
        ids=str,
    )
    def test_a_connection_for_every_step_is_warned_of(
        self, use_broker, use_database, options, found
    ):
        use_broker(DbConnectionsMiddleware())
        use_database(**options)
        assert ids(checks.check_database(None)) == found

    def test_connections_that_nobody_closes_are_fine(self, use_broker, use_database):
        use_broker()
        use_database(age=0)
        assert checks.check_database(None) == []

    def test_an_unknown_alias_is_left_to_the_check_of_settings(self, settings):
        settings.SEQUENCES = {"DATABASE": "nowhere"}
        assert checks.check_database(None) == []
        assert checks.check_server(None, databases=["default"]) == []
        assert checks.check_unfinished_runs(None) == []
        assert ids(checks.check_settings(None)) == ["E002"]


class TestServer:
    def test_is_not_asked_unless_its_database_is_checked(self, use_database):
        use_database("mysql", skip_locked=False)
        assert checks.check_server(None, databases=None) == []
        assert checks.check_server(None, databases=["other"]) == []

    @pytest.mark.parametrize(("skip_locked", "found"), [(False, ["E008"]), (True, [])])
    def test_a_server_without_skip_locked_is_an_error(self, use_database, skip_locked, found):
        use_database("mysql", skip_locked=skip_locked)
        assert ids(checks.check_server(None, databases=["default"])) == found

    @pytest.mark.only_on("postgresql")
    @pytest.mark.django_db(transaction=True)
    def test_the_servers_own_isolation_level_counts(self):
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION default_transaction_isolation = 'repeatable read'")
        try:
            assert ids(checks.check_server(None, databases=["default"])) == ["E007"]
        finally:
            connection.close()


class TestSequences:
    def test_what_the_broker_says_of_a_sequence_is_an_error(self, monkeypatch):
        monkeypatch.setattr(actors, "problems", lambda: [("shop.Form.pay: no", "Do that.")])
        error = only(
            each for each in checks.check_sequences(None) if each.level >= django_checks.ERROR
        )
        assert (error.id, error.msg, error.hint) == (
            "sequences.E009",
            "shop.Form.pay: no",
            "Do that.",
        )


class TestDurations:
    @pytest.fixture(autouse=True)
    def _alone(self):
        with registry.isolated(), jobs.isolated():
            registry._by_label.clear()  # what other modules declare
            yield

    def found(self):
        messages = [each for each in checks.check_sequences(None) if each.id.endswith("W022")]
        return [(each.msg.partition(",")[0], each.hint) for each in messages]

    def hint(self, value):
        return (
            f"If you mean seconds, write timedelta(seconds={value}). If you mean milliseconds, "
            f"write timedelta(milliseconds={value})."
        )

    @pytest.mark.parametrize("name", ["time_limit", "max_age", "max_backoff", "delay"])
    def test_a_number_below_a_second_is_warned_of_on_a_step_and_in_meta(self, name):
        class Form(Sequence):
            class Meta:
                app_label = "tests"

            Meta = type("Meta", (Meta,), {name: 30})

            @step(**{name: 999})
            def one(self): ...

            @step
            def two(self): ...

            @step(**{name: 1000})
            def three(self): ...

            @step(**{name: timedelta(milliseconds=30)})
            def four(self): ...

        assert self.found() == [
            (f"tests.Form.Meta: {name} is 30", self.hint(30)),
            (f"tests.Form.one: {name} is 999", self.hint(999)),
        ]

    def test_so_are_timeouts_of_events_and_options_of_actors_but_neither_none_nor_backoffs(self):
        @dramatiq.actor(actor_name="short-lived", time_limit=60)
        def act(): ...

        class Form(Sequence):
            class Meta:
                app_label = "tests"
                min_backoff = 10
                time_limit = None
                delay = 0

            approval = event(timeout=5)
            call = step(act)

        try:
            assert self.found() == [
                ("tests.Form.approval: timeout is 5", self.hint(5)),
                ("tests.Form.call: time_limit is 60", self.hint(60)),
            ]
        finally:
            del dramatiq.get_broker().actors["short-lived"]

    def test_of_the_projects_defaults_it_is_said_once(self, settings):
        settings.SEQUENCES = {"DEFAULTS": {"max_age": 60}}

        class Form(Sequence):
            class Meta:
                app_label = "tests"
                time_limit = 60

            @step
            def one(self): ...

        assert self.found() == [
            ("SEQUENCES['DEFAULTS']: max_age is 60", self.hint(60)),
            ("tests.Form.Meta: time_limit is 60", self.hint(60)),
        ]

    def test_in_definitions_as_data_a_string_says_its_unit(self):
        job("checks.note")(lambda: None)
        note = {"job": "checks.note"}
        define(
            {
                "name": "tests.Data",
                "options": {"max_age": 60, "max_backoff": "500 ms"},
                "steps": {
                    "one": {**note, "time_limit": 30, "delay": 5},
                    "two": {**note, "time_limit": "500 ms", "delay": "5 ms"},
                    "three": {"event": {"timeout": 7}},
                },
            }
        )

        def hint(value):
            return (
                f'If you mean seconds, write "{value} s". If you mean milliseconds, write '
                f'"{value} ms".'
            )

        assert self.found() == [
            ("tests.Data.Meta: max_age is 60", hint(60)),
            ("tests.Data.one: delay is 5", hint(5)),
            ("tests.Data.one: time_limit is 30", hint(30)),
            ("tests.Data.three: timeout is 7", hint(7)),
        ]


@pytest.fixture
def form():
    with registry.isolated():

        class Form(Sequence):
            @step
            def first(self): ...

            @step(aliases=["old"])
            def second(self): ...

            class Meta:
                app_label = "tests"
                aliases = ["tests.OldForm"]

        yield Form


def start(sequence, *names, status=RunStatus.RUNNING, done=()):
    now = timezone.now()
    plan = Plan.build(sequence, [Node(name, (), f"{sequence}.{name}", "default") for name in names])
    stored, _ = StoredPlan.objects.get_or_create(
        sequence=sequence,
        fingerprint=plan.fingerprint,
        defaults={"graph": plan.to_json(), "created_at": now},
    )
    run = SequenceRun.objects.create(
        id=uuid4(),
        plan=stored,
        sequence=sequence,
        status=status,
        created_at=now,
        updated_at=now,
    )
    for name in done:
        StepRun.objects.create(
            run=run, step=name, status=StepStatus.SUCCEEDED, ready_at=now, queued_at=now
        )
    return run


@pytest.mark.django_db
class TestUnfinishedRuns:
    def test_that_this_code_can_finish_are_in_order(self, form):
        start("tests.Form", "first", "second")
        start("tests.Form", "first", "old")
        start("tests.OldForm", "first")
        assert checks.check_unfinished_runs(None) == []

    def test_with_steps_that_are_gone_are_counted(self, form):
        start("tests.Form", "first", "gone", "lost")
        start("tests.Form", "first", "gone", "lost", status=RunStatus.PAUSED, done=["gone"])
        warning = only(checks.check_unfinished_runs(None))
        assert warning.id == "sequences.W004"
        assert "2 of the unfinished runs of 'tests.Form'" in warning.msg
        assert "steps 'gone', 'lost' no longer exist." in warning.msg
        assert "'first'" not in warning.msg
        assert "aliases" in warning.hint

    def test_with_one_step_that_is_gone_are_counted(self, form):
        start("tests.Form", "first", "gone")
        assert "step 'gone' no longer exists." in only(checks.check_unfinished_runs(None)).msg

    def test_with_a_sequence_that_is_gone_are_counted(self, form):
        start("tests.Gone", "first", status=RunStatus.UNDOING)
        warning = only(checks.check_unfinished_runs(None))
        assert "1 of the unfinished runs of 'tests.Gone'" in warning.msg
        assert "aliases = ['tests.Gone']" in warning.hint

    def test_that_have_the_gone_step_behind_them_are_not_counted(self, form):
        start("tests.Form", "gone", "second", done=["gone"])
        assert checks.check_unfinished_runs(None) == []

    def test_finished_runs_are_not_counted(self, form):
        start("tests.Gone", "first", status=RunStatus.SUCCEEDED)
        start("tests.Form", "gone", status=RunStatus.FAILED)
        assert checks.check_unfinished_runs(None) == []

    def test_of_a_newer_release_are_named(self, form):
        run = start("tests.Form", "first")
        StoredPlan.objects.filter(pk=run.plan_id).update(graph={"format": 999, "steps": []})
        assert only(checks.check_unfinished_runs(None)).id == "sequences.W004"

    def test_that_do_not_exist_cost_two_queries_and_no_more(self, django_assert_max_num_queries):
        with django_assert_max_num_queries(2):
            assert checks.check_unfinished_runs(None) == []

    def test_before_the_first_migration_there_are_none(self, monkeypatch):
        monkeypatch.setattr(connection.introspection, "table_names", list)
        assert checks.check_unfinished_runs(None) == []

    @pytest.mark.parametrize("error", [OperationalError("down"), ImproperlyConfigured("none")])
    def test_a_database_that_cannot_be_reached_is_told(self, monkeypatch, error):
        def fail():
            raise error

        monkeypatch.setattr(connection.introspection, "table_names", fail)
        message = only(checks.check_unfinished_runs(None))
        assert message.id == "sequences.I001"
        assert str(error) in message.msg


def test_the_checks_look_at_the_database_of_the_runs(settings):
    settings.SEQUENCES = {"DATABASE": "default"}
    assert checks._connection().alias == conf.using() == "default"


class Card(TypedDict):
    number: str
    holder: str | None


@dataclass
class Wallet:
    token: str
    cards: list[Card]
    by_name: dict[str, Card]
    note: str = ""
    size: Literal["s", "l"] = "s"
    pair: tuple[Card, int] | None = None
    anything: Any = None


class WalletModel(pydantic.BaseModel):
    cards: list[Card] = []
    token: pydantic.SecretStr | None = None


class OpenModel(pydantic.BaseModel, extra="allow"):
    name: str = ""


class TestPatterns:
    def warnings(self, data, *patterns):
        class Guarded(Sequence if data is None else Sequence[data]):
            class Meta:
                redact = patterns

            @step
            def pay(self): ...

        found = checks.check_sequences(None)  # other modules' classes have short backoffs
        return [each for each in found if not each.id.endswith("W022")]

    @pytest.mark.parametrize(
        "pattern",
        ["token", "tok*", "*", "cards", "cards.number", "cards.*.number", "cards[].number",
         "cards[0].number", "cards.*", "by_name.*", "by_name.ann.number", "by_name.*.num*",
         "pair.0.number", "pair.number", "anything.at.all", "pay.receipt", "pay"],
    )  # fmt: skip
    def test_what_may_match_is_right(self, pattern):
        assert self.warnings(Wallet, pattern) == []

    @pytest.mark.parametrize(
        "pattern",
        ["tokens", "card.number", "cards.numbers", "cards.*.*.number", "cards.number.last",
         "by_name.number.x.y", "note.x", "size.s", "pair.x", "data.token", "/token", "Token"],
    )  # fmt: skip
    def test_what_no_data_of_its_type_has_is_warned_of(self, pattern):
        warning = only(self.warnings(Wallet, "token", pattern))
        assert warning.id == "sequences.W010"
        assert repr(pattern) in warning.msg

    def test_of_a_model_the_fields_are_known_unless_it_takes_others(self):
        assert ids(self.warnings(WalletModel, "token", "cards.*.number", "name")) == ["W010"]
        assert self.warnings(OpenModel, "token.x", "name") == []

    @pytest.mark.parametrize(("pattern", "mend"), [("data.card.pin", "'card.pin'"),
                                                   ("/card/pin", "'card.pin'")])  # fmt: skip
    def test_of_untyped_data_a_path_in_another_language_is_warned_of(self, pattern, mend):
        assert mend in only(self.warnings(None, "data", "cards.*.number", pattern)).hint

    def test_tracebacks_that_another_middleware_keeps_are_warned_of(self, use_broker, monkeypatch):
        monkeypatch.setattr(registry, "_by_label", {})  # other modules' classes hide something

        class Careful(AdminMiddleware):
            def after_process_message(self, *args, **kwargs):
                pass

        others = SequencesMiddleware(), Retries(), DbConnectionsMiddleware()
        use_broker(*others, AdminMiddleware())
        assert "W011" not in ids(checks.check_broker(None))
        self.warnings(None, "token")
        assert ids(checks.check_broker(None)) == ["W011"]
        use_broker(*others, Careful())
        assert ids(checks.check_broker(None)) == []
