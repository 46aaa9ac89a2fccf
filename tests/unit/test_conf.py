import json
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.serializers.json import DjangoJSONEncoder

from sequences import conf


class Encoder(json.JSONEncoder):
    pass


class Router:
    def db_for_write(self, model, **hints):
        return "other" if model._meta.label == "job_sequences.SequenceRun" else None


def test_without_settings_the_defaults_hold(settings):
    settings.SEQUENCES = {}
    assert conf.settings.grace == 15
    assert conf.settings.lease == 15
    assert conf.settings.heartbeat == 3
    assert conf.settings.sweep_interval == 1
    assert conf.settings.max_lost_workers == 3
    assert conf.settings.max_data_bytes == 1_048_576
    assert conf.settings.database is None
    assert conf.settings.encoder is DjangoJSONEncoder
    assert conf.settings.retention is None
    assert conf.settings.status_permission is None
    assert conf.problems() == []


def test_no_dict_at_all_means_the_defaults(settings):
    settings.SEQUENCES = {}
    del settings.SEQUENCES
    assert conf.settings.grace == 15
    assert conf.problems() == []


def test_settings_change_while_they_are_overridden(settings):
    settings.SEQUENCES = {
        "GRACE": 0.5,
        "SWEEP_INTERVAL": None,
        "ENCODER": f"{__name__}.Encoder",
        "RETENTION": timedelta(days=30),
        "DATABASE": "default",
        "STATUS_PERMISSION": "sequences.conf.using",
    }
    assert conf.settings.grace == 0.5
    assert conf.settings.sweep_interval is None
    assert conf.settings.encoder is Encoder
    assert conf.settings.retention == timedelta(days=30)
    assert conf.settings.database == "default"
    assert conf.settings.status_permission is conf.using
    settings.SEQUENCES = {"GRACE": 1}
    assert conf.settings.grace == 1
    assert conf.settings.encoder is DjangoJSONEncoder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("GRACE", 0),
        ("GRACE", "15"),
        ("GRACE", True),
        ("GRACE", None),
        ("LEASE", -1),
        ("HEARTBEAT", float("inf")),
        ("HEARTBEAT", float("nan")),
        ("SWEEP_INTERVAL", 0),
        ("MAX_LOST_WORKERS", 0),
        ("MAX_LOST_WORKERS", 1.5),
        ("MAX_DATA_BYTES", "1 MiB"),
        ("MAX_DATA_BYTES", True),
        ("DATABASE", "nowhere"),
        ("DATABASE", 1),
        ("ENCODER", "no.such.Encoder"),
        ("ENCODER", "Encoder"),
        ("ENCODER", "json.JSONDecoder"),
        ("ENCODER", None),
        ("RETENTION", 30),
        ("RETENTION", timedelta(0)),
        ("RETENTION_FAILED", 30),
        ("STATUS_PERMISSION", True),
        ("STATUS_PERMISSION", "view_order"),
        ("STATUS_PERMISSION", "shop.no.such_function"),
        ("STATUS_PERMISSION", "sequences.links.MAX_TOKEN_LENGTH"),
    ],
)
def test_a_bad_value_is_named_with_what_it_must_be(settings, key, value):
    settings.SEQUENCES = {key: value}
    (problem,) = conf.problems()
    assert problem.setting == key
    assert f"SEQUENCES['{key}'] must be" in problem.message
    assert repr(value) in problem.message
    assert "default" in problem.hint
    with pytest.raises(ImproperlyConfigured, match=key):
        getattr(conf.settings, key.lower())


def test_an_unknown_key_is_named_with_the_one_that_was_meant(settings):
    settings.SEQUENCES = {"GRASE": 1}
    (problem,) = conf.problems()
    assert "'GRASE'" in problem.message
    assert problem.hint == "Did you mean 'GRACE'?"


def test_every_problem_is_found_at_once(settings):
    settings.SEQUENCES = {"GRACE": 0, "LEASE": 0, 3: 0}
    assert {problem.setting for problem in conf.problems()} == {"GRACE", "LEASE", "3"}


def test_settings_that_are_no_dict_are_a_problem(settings):
    settings.SEQUENCES = ["GRACE"]
    assert [problem.setting for problem in conf.problems()] == ["SEQUENCES"]
    with pytest.raises(ImproperlyConfigured, match="dict"):
        _ = conf.settings.grace


def test_a_heartbeat_that_comes_after_the_lease_is_a_problem(settings):
    settings.SEQUENCES = {"HEARTBEAT": 15, "LEASE": 15}
    (problem,) = conf.problems()
    assert "less than" in problem.message


@pytest.mark.parametrize("others", [None, timedelta(days=31)])
def test_failed_runs_that_are_kept_for_less_than_the_others_are_a_problem(settings, others):
    settings.SEQUENCES = {"RETENTION": others, "RETENTION_FAILED": timedelta(days=30)}
    (problem,) = conf.problems()
    assert problem.setting == "RETENTION_FAILED"
    settings.SEQUENCES = {"RETENTION": timedelta(days=30), "RETENTION_FAILED": None}
    assert conf.problems() == []


def test_the_database_is_the_one_that_is_set(settings):
    settings.SEQUENCES = {"DATABASE": "default"}
    settings.DATABASE_ROUTERS = [Router()]
    assert conf.using() == "default"


def test_without_one_the_router_decides(settings):
    settings.SEQUENCES = {}
    assert conf.using() == "default"
    settings.DATABASE_ROUTERS = [Router()]
    assert conf.using() == "other"
