"""Edit and erase the data of a run."""

import json

import pytest

from sequences import Sequence, step, subsequence
from sequences.exceptions import InvalidData, InvalidTransition
from sequences.models import Operation, SequenceRun, StepFailure, StepRun
from sequences.testing import drain
from tests.engine import (
    claim,
    fail,
    fresh,
    ledger,
    perform,
    row,
)
from tests.operations import chain, run_in

pytestmark = pytest.mark.django_db


# edit


def test_an_edit_replaces_the_data_and_keeps_both_without_secrets():
    run = chain().start({"n": 1, "secret": "x", "card": {"number": "4711"}}).run
    run.edit({"n": 2, "secret": "y", "card": {"number": "0815"}}, by="ada", reason="a typo")
    assert fresh(run).data == {"n": 2, "secret": "y", "card": {"number": "0815"}}
    operation = run.operations.get()
    assert operation.before == {"n": 1, "secret": "***", "card": {"number": "***"}}
    assert operation.after == {"n": 2, "secret": "***", "card": {"number": "***"}}
    assert (operation.by, operation.reason) == ("ada", "a typo")


def test_an_edit_in_place_records_what_was_stored_before():
    run = run_in("running")
    run.data["n"] = 2
    run.edit(run.data)
    operation = run.operations.get()
    assert (operation.before, operation.after) == ({"n": 1}, {"n": 2})


def test_an_edit_that_changes_nothing_leaves_no_operation():
    run = run_in("running")
    run.edit({"n": 1}, by="ada")
    assert not run.operations.exists()
    run.edit({"n": True}, by="ada")  # equal in Python, but not as JSON
    run.edit({"n": 1.5}, by="joel")
    assert [one.by for one in run.operations.all()] == ["ada", "joel"]
    assert fresh(run).data == {"n": 1.5}


def test_an_edit_of_a_secret_alone_is_a_change():
    run = chain().start({"n": 1, "secret": "x"}).run
    run.edit({"n": 1, "secret": "y"}, by="ada")
    assert run.operations.get().by == "ada"


def test_an_edit_is_seen_by_the_next_step():
    run = run_in("running")
    run.edit({"done": ["zero"]})
    drain()
    assert fresh(run).data == {"done": ["zero", "one", "two"]}


def test_an_edit_is_refused_while_a_step_is_running():
    run = run_in("running")
    claim(run, "one")
    with pytest.raises(InvalidTransition, match="a step is running"):
        run.edit({})
    assert fresh(run).data == {"n": 1}


def test_an_edit_of_a_run_that_has_changed_since_is_refused():
    run = run_in("running")
    perform(claim(run, "one"))
    with pytest.raises(InvalidTransition) as caught:
        run.edit({})
    assert str(caught.value) == (
        f"Cannot edit run {run.pk}: it has changed since it was read (version 0, now 1). Call "
        "refresh_from_db() and edit again."
    )
    run.refresh_from_db()
    run.edit({"n": 3})
    assert fresh(run).data == {"n": 3}


@pytest.mark.parametrize("data", [None, [1], "x"])
def test_only_a_dict_takes_the_place_of_data(data):
    run = run_in("running")
    with pytest.raises(InvalidData, match=f"data is of type {type(data).__name__}, not a dict"):
        run.edit(data)


def test_an_edit_with_what_cannot_be_stored_names_the_path():
    run = run_in("running")
    with pytest.raises(InvalidData, match=r'data\["who"\]'):
        run.edit({"who": {1, 2}})
    assert fresh(run).data == {"n": 1}
    assert not run.operations.exists()


# erase


def test_erase_blanks_all_that_a_run_has_stored_of_its_data():
    run = run_in("running")
    fail(claim(run, "one"), final=False, error=ValueError("4711 is no card"))
    run.refresh_from_db()
    run.edit({"card": {"number": "4711"}, "holder": "Ada"})
    drain()
    assert row(run, "two").result == {"paid": 1}
    run.refresh_from_db()
    run.erase(by="ada")
    stored = fresh(run)
    assert (stored.status, stored.data, stored.inbox) == ("succeeded", {}, {})
    assert row(run, "two").result is None
    failure = stored.failures.get()
    assert (failure.error, failure.message, failure.traceback) == ("ValueError", "", "")
    assert list(stored.operations.values_list("action", "before", "after")) == [
        ("edit", None, None),
        ("erase", None, None),
    ]
    assert ledger(run) == {"one": "succeeded", "two": "succeeded"}


def family():
    """A sequence whose child has a child, each with data and a reason of its own."""

    class Inner(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self):
            self.data["inner"] = "Ada"
            return "Ada"

    class Outer(Sequence):
        class Meta:
            app_label = "shop"

        inner = subsequence(Inner, data=lambda self: {"name": "Ada"})

    class Family(Sequence):
        class Meta:
            app_label = "shop"

        outer = subsequence(Outer, data=lambda self: {"name": "Ada"})

        @step(after=[], max_retries=0)
        def beside(self):
            raise ValueError("Ada")

    return Family


def everything():
    """All that is stored of any run, as text."""
    models = (SequenceRun, StepRun, StepFailure, Operation)
    return json.dumps([list(model.objects.values()) for model in models], default=str)


@pytest.mark.parametrize("keep_key", [False, True])
def test_erase_leaves_nothing_in_children_keys_and_reasons(keep_key):
    run = family().start({"name": "Ada"}, key="Ada", unique="ever").run
    drain()
    for one in SequenceRun.objects.all():
        one.edit({**one.data, "more": "Ada"}, by="joan", reason="Ada has called")
    fresh(run).erase(keep_key=keep_key, by="joan", reason="she has asked for it")
    assert SequenceRun.objects.count() == 3
    assert everything().count("Ada") == (2 if keep_key else 0)
    assert fresh(run).key == ("Ada" if keep_key else None)
    last = fresh(run).operations.last()
    assert (last.by, last.reason) == ("joan", "she has asked for it")
    below = Operation.objects.exclude(run=run.pk).filter(action=last.action)
    assert set(below.values_list("by", "reason")) == {
        ("joan", f"inherited from its parent run {run.pk}")
    }
    again = family().start({}, key="Ada", unique="ever").run
    assert (again.pk == run.pk) == keep_key


def test_nothing_is_erased_while_a_run_below_has_not_ended():
    run = family().start({"name": "Ada"}).run
    perform(claim(run, "outer"))
    fail(claim(run, "beside"), error=ValueError("Ada"))
    assert fresh(run).status == "failed"
    before = everything()
    with pytest.raises(InvalidTransition, match="has not finished \\(status running\\)"):
        fresh(run).erase()
    assert everything() == before
    child = SequenceRun.objects.get(parent__run=run.pk)
    child.cancel()
    fresh(run).erase()
    assert "Ada" not in everything()
