"""Keys across a rename: one run holds a key, whichever release or name it was started by."""

import threading

import pytest
from django.db import IntegrityError, transaction

from sequences import Sequence, step
from sequences.exceptions import InvalidTransition
from sequences.models import SequenceRun
from sequences.testing import drain, isolate_sequences
from sequences.transitions import operations, starts
from tests.engine import claim, fail, fresh
from tests.sagas import cannot, saga

pytestmark = pytest.mark.django_db
on_servers = pytest.mark.only_on("postgresql", "mysql")

ROUNDS = 20


def release(name, *earlier):
    """The same sequence as another release of the project declares it."""

    class Meta:
        app_label = "shop"
        aliases = list(earlier)

    steps = {"one": step(one), "two": step(two)}
    return type(name, (Sequence,), {"Meta": Meta, "__module__": __name__, **steps})


def one(self): ...


def two(self): ...


@pytest.fixture
def releases():
    """Before the rename and after it: each with the names that it knows."""
    with isolate_sequences():
        before = release("Old")
    return before, release("New", "shop.Old")


def failed_run(cls):
    run = cls.start({}, key="k", unique="unfinished").run
    fail(claim(run, "one"))
    return run


CALLS = {
    "retry": lambda run: run.retry(),
    "restart_from": lambda run: run.restart_from("one"),
    "skip": lambda run: run.skip("one"),
}


@pytest.mark.parametrize("action", CALLS)
def test_a_run_of_the_old_name_cannot_begin_again_while_one_of_the_new_name_holds_its_key(
    releases, action
):
    before, after = releases
    run = failed_run(before)
    other = after.start({}, key="k", unique="unfinished")
    assert other.created
    with pytest.raises(InvalidTransition, match=f"its key 'k' is now held by run {other.run.pk}"):
        CALLS[action](run)
    assert fresh(run).status == "failed"
    assert not run.operations.exists()
    other.run.cancel()
    CALLS[action](run)
    assert fresh(run).active_key == "k"
    assert after.start({}, key="k", unique="unfinished").run.pk == run.pk


@pytest.mark.parametrize("action", CALLS)
def test_a_run_of_the_new_name_cannot_begin_again_while_one_of_the_old_name_holds_its_key(
    releases, action
):
    before, after = releases
    run = failed_run(after)
    other = before.start({}, key="k", unique="unfinished")
    assert other.created
    with pytest.raises(InvalidTransition, match=f"its key 'k' is now held by run {other.run.pk}"):
        CALLS[action](run)


def test_a_paused_run_of_the_old_name_keeps_its_key_until_it_is_resumed(releases):
    before, after = releases
    run = before.start({}, key="k", unique="unfinished").run
    run.pause()
    found = after.start({}, key="k", unique="unfinished")
    assert (found.created, found.run.pk) == (False, run.pk)
    run.resume()
    drain()
    assert after.start({}, key="k", unique="unfinished").created


@pytest.mark.parametrize("in_bulk", [False, True])
@pytest.mark.parametrize("unique", ["ever", "unfinished"])
def test_a_release_from_before_the_rename_finds_the_run_of_the_new_name(releases, unique, in_bulk):
    before, after = releases
    run = after.start({}, key="k", unique=unique).run
    if in_bulk:
        found = before.start_many([({}, {"key": "k", "unique": unique})])[0]
    else:
        found = before.start({}, key="k", unique=unique)
    assert (found.created, found.run.pk) == (False, run.pk)


@pytest.mark.parametrize(
    "names", [["shop.Old", "shop.New"], ["shop.New", "shop.Old"]], ids=["oldest", "newest"]
)
def test_after_two_renames_all_releases_hold_a_key_once_in_whatever_order_the_names_stand(names):
    with isolate_sequences():
        first = release("Old")
        first.start()
    with isolate_sequences():
        second = release("New", "shop.Old")
    third = release("Newest", *names)
    run = third.start({}, key="k").run
    assert second.start({}, key="k").run.pk == run.pk
    assert first.start({}, key="k").run.pk == run.pk
    scopes = SequenceRun.objects.filter(key="k").values_list("key_scope", flat=True)
    assert list(scopes) == ["shop.Old"]


@pytest.mark.parametrize("action", ["retry", "skip"])
def test_a_failed_undo_cannot_go_on_while_another_run_holds_the_key(action):
    cls = saga(refund=cannot)
    run = cls.start({}, key="k", unique="unfinished").run
    drain()
    assert (fresh(run).status, fresh(run).active_key) == ("failed", None)
    other = cls.start({}, key="k", unique="unfinished")
    assert other.created

    def go_on():
        run.skip("refund") if action == "skip" else run.retry()

    with pytest.raises(InvalidTransition, match=f"its key 'k' is now held by run {other.run.pk}"):
        go_on()
    assert fresh(run).status == "failed"
    other.run.cancel()
    go_on()
    # Without its undo the run ends at once, and frees the key again.
    assert fresh(run).active_key == (None if action == "skip" else "k")
    drain()
    assert fresh(run).finished_at is not None
    assert cls.start({}, key="k", unique="unfinished").created


# --- at the same time


@on_servers
@pytest.mark.django_db(transaction=True)
def test_two_releases_that_start_with_one_key_at_once_start_one_run(
    releases, together, monkeypatch
):
    before, after = releases
    look = starts._holders
    looked = threading.local()

    def late(*arguments):
        # Both have looked before either has inserted.
        found = look(*arguments)
        if not getattr(looked, "once", False):
            looked.once = True
            both.wait(60)
        return found

    monkeypatch.setattr(starts, "_holders", late)
    monkeypatch.setattr(starts, "start_quickly", lambda *arguments: None)
    for number in range(ROUNDS):
        both = threading.Barrier(2)
        looked = threading.local()
        one, other = together(
            lambda key=str(number): before.start({}, key=key),
            lambda key=str(number): after.start({}, key=key),
        )
        assert sorted([one.created, other.created]) == [False, True]
        assert one.run.pk == other.run.pk


@on_servers
@pytest.mark.django_db(transaction=True)
def test_of_starts_with_one_key_that_wait_for_each_other_one_starts_a_run(releases, together):
    before, after = releases
    for cls in releases:
        cls.start({})  # which stores its plan
    for number in range(ROUNDS):
        one, other = together(
            lambda key=str(number): before.start({}, key=key),
            lambda key=str(number): after.start({}, key=key),
        )
        assert sorted([one.created, other.created]) == [False, True]
        assert one.run.pk == other.run.pk


@on_servers
@pytest.mark.django_db(transaction=True)
def test_of_two_runs_that_begin_again_with_one_key_at_once_one_is_refused(
    releases, together, monkeypatch
):
    before, after = releases
    look = operations.LockedRun._holder
    looked = threading.local()

    def late(self, key):
        found = look(self, key)
        if not getattr(looked, "once", False):
            looked.once = True
            both.wait(60)
        return found

    monkeypatch.setattr(operations.LockedRun, "_holder", late)
    for _ in range(ROUNDS):
        both = threading.Barrier(2)
        looked = threading.local()
        runs = [failed_run(before), failed_run(after)]
        outcomes = together(runs[0].retry, runs[1].retry)
        assert not any(isinstance(outcome, IntegrityError) for outcome in outcomes)
        refused = [isinstance(outcome, InvalidTransition) for outcome in outcomes]
        assert sorted(refused) == [False, True], outcomes
        assert [fresh(run).status for run in runs].count("running") == 1
        for run in runs:
            if fresh(run).status == "running":
                run.cancel()


@on_servers
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("count", [1000, 1001])
def test_two_that_start_many_with_the_same_keys_in_another_order_wait_and_never_deadlock(
    releases, together, count
):
    _, cls = releases
    for number in range(3):
        keys = [f"{number}-{key}" for key in range(count)]
        first = [({}, {"key": key}) for key in keys]

        def start(items):
            with transaction.atomic():
                return cls.start_many(items)

        started, found = together(
            lambda items=first: start(items), lambda items=first[::-1]: start(items)
        )
        assert isinstance(started, list), repr(started)
        assert isinstance(found, list), repr(found)
        assert [one.run.pk for one in started] == [one.run.pk for one in found[::-1]]
        assert [one.run.key for one in started] == keys
        assert sum(one.created for one in started + found) == count
