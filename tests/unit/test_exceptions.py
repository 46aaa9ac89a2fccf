import copy
import pickle
from datetime import timedelta

import pytest

from sequences import exceptions
from sequences.exceptions import (
    Abort,
    EventTimeout,
    InvalidTransition,
    SequenceError,
    UnknownSequence,
    UnknownStep,
    did_you_mean,
)

EVERY = [getattr(exceptions, name) for name in exceptions.__all__]
TRANSITION = {
    "action": "skip",
    "run": 7,
    "status": "running",
    "allowed": "failed",
    "problem": "its status is running. Allowed: failed.",
}


def test_the_template_is_the_message():
    error = InvalidTransition(**TRANSITION)
    assert str(error) == "Cannot skip run 7: its status is running. Allowed: failed."


def test_the_details_are_attributes():
    error = InvalidTransition(**TRANSITION)
    assert (error.action, error.run, error.status, error.allowed, error.problem) == tuple(
        TRANSITION.values()
    )


def test_a_message_of_ones_own_replaces_the_template_and_keeps_the_details():
    error = InvalidTransition("Not now.", run=7)
    assert str(error) == "Not now."
    assert error.run == 7


def test_a_detail_that_is_missing_does_not_hide_the_error():
    assert str(InvalidTransition(run=7, status="running")) == ("Cannot <action> run 7: <problem>")


def test_braces_in_a_message_or_a_detail_are_kept():
    assert str(Abort("no {such} thing {")) == "no {such} thing {"
    assert str(UnknownSequence(name="{x", hint="{y}")) == "No sequence is registered as '{x'. {y}"


@pytest.mark.parametrize("cls", EVERY)
def test_each_has_one_root_and_a_message(cls):
    assert issubclass(cls, SequenceError)
    assert "{" not in cls.__doc__, "its docstring is no template"
    assert str(cls())
    # Only an Abort says what its caller says.
    assert cls in (SequenceError, Abort) or "template" in vars(cls)


@pytest.mark.parametrize("cls", EVERY)
def test_none_advises_an_operation_that_a_rollback_would_forbid(cls):
    template = vars(cls).get("template", "").lower()
    assert not any(verb in template for verb in ("retry", "restart", "skip"))


def test_a_duration_is_shown_as_everywhere_else():
    error = EventTimeout(step="approval", run=7, timeout=timedelta(days=2))
    assert str(error) == "Event 'approval' of run 7 was not delivered within 2 d."
    assert error.timeout == timedelta(days=2)


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_is_the_same_error(duplicate):
    error = InvalidTransition("Not now.", run=7, status="running")
    same = duplicate(error)
    assert type(same) is InvalidTransition
    assert (str(same), vars(same)) == (str(error), vars(error))


def test_an_abort_says_why_and_needs_no_reason():
    assert str(Abort("out of stock")) == "out of stock"
    assert str(Abort()) == "Aborted."


def test_an_abort_of_a_users_class_does_not_format_its_docstring():
    class OutOfStock(Abort):
        """Raised if {this} is not there {."""

    assert str(OutOfStock()) == "Aborted."
    assert str(OutOfStock("no more", item=3)) == "no more"


@pytest.mark.parametrize("cls", [UnknownStep, UnknownSequence])
def test_what_is_unknown_is_a_lookup_error(cls):
    assert issubclass(cls, LookupError)


def test_the_mend_for_a_name_is_the_nearest_or_all_of_them():
    assert did_you_mean("asign", ["assign", "create"]) == "Did you mean 'assign'?"
    assert did_you_mean("xyz", ["assign", "create"]) == "Available: assign, create."
    assert did_you_mean("xyz", []) == "None exist."
