"""Which exception is retried how often, what the whole project says of it, and what struggles."""

import logging

import dramatiq
import pytest
from django.db import transaction
from django.test import override_settings

from sequences import Sequence, signals, step
from sequences.exceptions import InvalidDefinition
from sequences.flows.builder import plan_of
from sequences.flows.jobs import job
from sequences.models import SequenceRun, StepRun
from sequences.testing import drain, run_sequence

pytestmark = pytest.mark.django_db(transaction=True)


class Refused(ConnectionError):
    pass


def failing(*errors, handed_off="broker", **options):
    """A sequence of one step, which raises these in turn, and then succeeds."""
    remaining = iter(errors)

    class Payment(Sequence):
        class Meta:
            app_label = "shop"
            min_backoff = 1
            max_backoff = 2
            handoff = handed_off

        @step(**options)
        def charge(self):
            for error in remaining:
                raise error

    return Payment


def attempts(cls):
    """How often it is tried, and how its run ends."""
    run = run_sequence(cls).run
    return run.failures.count() + (run.status == "succeeded"), run.status


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([ValueError()], (1, "failed")),
        ([UnicodeError()], (1, "failed")),  # a ValueError
        ([Refused()], (2, "succeeded")),  # a ConnectionError
        ([ConnectionError()] * 2, (3, "succeeded")),
        ([ConnectionError()] * 3, (3, "failed")),
        ([KeyError()], (2, "succeeded")),
        ([KeyError()] * 2, (2, "failed")),  # by max_retries
        ([KeyError(), ConnectionError()], (3, "succeeded")),
        ([ConnectionError(), KeyError()], (2, "failed")),  # all its retries count
    ],
)
@pytest.mark.parametrize("handoff", ["broker", "direct"])
def test_each_exception_has_retries_of_its_own(errors, expected, handoff):
    retries = {ConnectionError: 2, ValueError: 0}
    cls = failing(*errors, handed_off=handoff, max_retries=1, retries=retries)
    assert attempts(cls) == expected


def test_none_is_without_end_and_the_next_attempt_is_judged_by_its_own_exception():
    options = {"max_retries": 1, "retries": {ConnectionError: None}}
    assert attempts(failing(*[ConnectionError()] * 4, **options)) == (5, "succeeded")
    assert attempts(failing(*[ConnectionError()] * 4, KeyError(), **options)) == (5, "failed")


def test_it_counts_before_the_retry_when_of_the_project(monkeypatch):
    (retries,) = (
        middleware
        for middleware in dramatiq.get_broker().middleware
        if isinstance(middleware, dramatiq.middleware.Retries)
    )
    monkeypatch.setattr(retries, "retry_when", lambda number, error: False)
    assert attempts(failing(KeyError(), retries={KeyError: 1})) == (2, "succeeded")
    assert attempts(failing(KeyError())) == (1, "failed")


@override_settings(SEQUENCES={"DEFAULTS": {"max_retries": 1, "retries": {ConnectionError: 2}}})
@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({}, KeyError, 2),
        ({}, ConnectionError, 3),
        ({"max_retries": 0}, ConnectionError, 1),
        ({"retries": {KeyError: 3}}, KeyError, 4),
        ({"retries": {KeyError: 3}}, ConnectionError, 2),
        ({"retry_when": lambda number, error: number < 3}, ConnectionError, 4),
    ],
)
def test_what_a_step_declares_replaces_what_the_project_says(options, error, expected):
    assert attempts(failing(*[error()] * 9, **options)) == (expected, "failed")


@override_settings(SEQUENCES={"DEFAULTS": {"queue_name": "slow", "handoff": "direct"}})
def test_a_meta_takes_precedence_over_the_project():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self): ...

    class Own(Plain):
        class Meta:
            app_label = "shop"
            queue_name = "own"
            handoff = "broker"

    plain, own = Plain._definition, Own._definition
    assert (plain.plan.node("one").queue, plain.handoff) == ("slow", "direct")
    assert (own.plan.node("one").queue, own.handoff) == ("own", "broker")


@override_settings(
    SEQUENCES={"DEFAULTS": {"max_retries": 1, "retries": {ValueError: 0}, "throws": KeyError}}
)
def test_a_definition_that_is_data_has_those_that_are_data():
    @job("fetch")
    def fetch(): ...

    plan = plan_of(
        {"steps": {"one": {"job": "fetch"}, "two": {"job": "fetch", "max_retries": 7}}}, "x"
    )
    assert plan.node("one").options == {"max_retries": 1}
    assert plan.node("two").options == {"max_retries": 7}


@pytest.mark.parametrize(
    ("defaults", "problem"),
    [
        ({"max_retries": -1}, "max_retries is -1"),
        ({"retries": {"ValueError": 1}}, "retries is {'ValueError': 1}"),
        ({"delay": 1}, "delay cannot be set for all steps of the project"),
        ({"label": "Charge"}, "label cannot be set for all steps of the project"),
        ({"redact": ["name"]}, "redact cannot be set for all steps of the project"),
        ({"on_success": "x"}, "on_success"),
    ],
)
def test_a_default_that_cannot_be_fails_the_first_class(defaults, problem):
    settings = override_settings(SEQUENCES={"DEFAULTS": defaults})
    with settings, pytest.raises(InvalidDefinition) as caught:
        failing()
    assert str(caught.value).startswith('SEQUENCES["DEFAULTS"]: ')
    assert problem in str(caught.value)


def test_a_default_that_no_middleware_knows_is_named_where_it_stands():
    settings = override_settings(SEQUENCES={"DEFAULTS": {"max_retrys": 1}})
    with settings, pytest.raises(InvalidDefinition) as caught:
        failing()
    assert str(caught.value).startswith('SEQUENCES["DEFAULTS"]: ')
    assert "max_retries" in str(caught.value)


@pytest.mark.parametrize(
    "retries", [{int: 1}, {ValueError: -1}, {ValueError: True}, {ValueError: "1"}, [ValueError], 3]
)
def test_retries_that_cannot_be_are_found_in_the_class(retries):
    with pytest.raises(InvalidDefinition, match="retries is"):
        failing(retries=retries)


def test_two_that_decide_are_one_too_many():
    with pytest.raises(InvalidDefinition, match="retries and retry_when"):
        failing(retries={KeyError: 1}, retry_when=lambda number, error: True)


# --- struggling


@pytest.fixture
def struggles():
    heard = []

    def hear(sender, run, step_run, failure, **kwargs):
        heard.append((sender.__name__, str(step_run), failure.attempt, step_run.is_struggling))

    signals.step_struggling.connect(hear)
    yield heard
    signals.step_struggling.disconnect(hear)


def test_a_step_struggles_once_and_until_it_has_succeeded(struggles, caplog):
    seen = []

    class Payment(Sequence):
        class Meta:
            app_label = "shop"
            min_backoff = 1
            max_backoff = 2

        @step
        def charge(self):
            seen.append((SequenceRun.objects.struggling().exists(), self.step_run.is_struggling))
            if self.attempt < 8:
                raise ConnectionError("busy")

    with caplog.at_level(logging.WARNING, "sequences"):
        run = run_sequence(Payment).run
    assert struggles == [("Payment", "charge", 5, True)]
    assert seen == [(False, False)] * 5 + [(True, True)] * 3
    assert not SequenceRun.objects.struggling().exists()
    assert not run.steps.get().is_struggling
    warnings = [record.message for record in caplog.records if "struggling" in record.message]
    assert warnings == [f"Step run {run.steps.get().pk} is struggling: 5 attempts have failed."]


@override_settings(SEQUENCES={"STRUGGLING_AFTER": None})
def test_nothing_struggles_where_nobody_asks(struggles):
    run_sequence(failing(*[KeyError()] * 9))
    assert struggles == []
    StepRun.objects.update(status="retrying", attempts=100)
    assert not SequenceRun.objects.struggling().exists()
    assert not StepRun.objects.get().is_struggling


def test_the_last_attempt_is_a_failure_and_no_struggle(struggles):
    run_sequence(failing(*[KeyError()] * 9, max_retries=4))
    assert struggles == []


def test_a_retry_by_hand_counts_anew(struggles):
    run = run_sequence(failing(*[KeyError()] * 9, max_retries=5)).run
    assert len(struggles) == 1
    with transaction.atomic():
        run.retry()
    drain()
    assert len(struggles) == 1  # four more have failed
