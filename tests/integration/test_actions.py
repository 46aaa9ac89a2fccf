"""What the buttons of a state promise is what the run's methods accept; no more, and no less."""

import random
from copy import copy
from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.db import transaction
from django.db.models import Q
from dramatiq.middleware import SkipMessage

from sequences import Abort, Sequence, conf, event, on_failure, step, subsequence
from sequences.definitions.rules import RULES
from sequences.exceptions import ChildrenFailed, EventTimeout, InvalidTransition, ItemsFailed
from sequences.inspection import actions, snapshot
from sequences.models import RunStatus, SequenceRun, StepRun
from sequences.testing import clock
from sequences.transitions.compensation import look
from tests.engine import claim, fail, fresh, perform, take

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("caught")]


class Undo(Exception):
    """Ends an attempt without a trace."""


def accepts(run, action, name):
    """Whether the run's own method does it; nothing of it stays. ``run`` is as it is stored."""
    of_run = {"edit": [run.data], "set_deadline": [None]}
    arguments = [name] if name else of_run.get(action.name, [])
    try:
        with transaction.atomic():
            result = getattr(copy(run), action.name)(*arguments)
            raise Undo
    except InvalidTransition:
        return False
    except Undo:
        return result is not False


def disagreements(run):
    """What is promised and refused, or accepted and not promised."""
    run = fresh(run)
    run_snapshot = snapshot.of(fresh(run))
    promised = names_of(run_snapshot)
    wrong = []
    for action in actions.ACTIONS.values():
        for name in run_snapshot.plan.names if action.on_step else [None]:
            if action.name == "deliver" and is_no_wait(run_snapshot.step(name)):
                assert (action.name, name) not in promised
                continue
            if action.name == "skip" and is_beside_a_failure(run_snapshot, name):
                assert (action.name, name) not in promised
                continue
            if accepts(run, action, name) != ((action.name, name) in promised):
                states = {on.name: (on.status, dict(on.items)) for on in run_snapshot.steps}
                wrong.append((action.name, name, run.status, states))
    return wrong


def is_beside_a_failure(run_snapshot, name):
    # Code may skip it in advance; people are offered what is in the way.
    return run_snapshot.is_failing and run_snapshot.step(name).is_on_hold


def names_of(run_snapshot):
    """The buttons, each with the name of its step."""
    allowed = actions.allowed(run_snapshot)
    return {(action.name, on.name if on else None) for action, on in allowed}


def is_no_wait(step_snapshot):
    # One that comes early is kept; no button asks for that. Other steps have no such method.
    kind, status = step_snapshot.node.kind, step_snapshot.status
    return kind != "event" or status not in ("waiting", "failed")


def order():
    """Something of everything."""

    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def carry(self): ...

    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def first(self): ...

        @step
        def mend(self): ...

        @step(after=first, on_error=mend)
        def fragile(self): ...

        @step(after=first, each="items", concurrency=2)
        def pack(self, item): ...

        @step(after=first, delay=timedelta(hours=1))
        def later(self): ...

        approval = event(after=first, timeout=timedelta(days=1))
        ship = subsequence(Child, data=lambda self: {}, after=first)

        @step
        def last(self): ...

    return Order


def undoing():
    class Undone(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def reserve(self): ...

        @reserve.undo
        def release(self): ...

        @step(each="items", after=reserve)
        def pack(self, item): ...

        @pack.undo
        def unpack(self, item, result): ...

        @step(after=reserve)
        def look(self): ...

        @step
        def pay(self): ...

        @on_failure
        def tell(self): ...

    return Undone


def tree():
    class Below(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def book(self): ...

        @book.undo
        def release(self): ...

        @step
        def confirm(self): ...

    class Tree(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Below, each="items", data=lambda self, n: {"n": n}, after=[])

        @step(after=[])
        def beside(self): ...

        @beside.undo
        def back(self): ...

        @step
        def last(self): ...

        @on_failure
        def tell(self): ...

    return Tree


def linear():
    class Linear(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self): ...

        @step(delay=60_000)
        def two(self): ...

    return Linear


def wander(run, seed, moving):
    """Go some way at random, as workers, people and time do."""
    dice = random.Random(seed)
    luck, running = dice.choice([0.5, 0.7, 0.95]), []
    for _ in range(dice.randrange(30)):
        chance = dice.random()
        if running and chance < 0.4:
            end(running.pop(dice.randrange(len(running))), luck, dice)
        elif chance < 0.75:
            running += begin(run, dice)
        elif chance < 0.8:
            moving.move(timedelta(hours=dice.choice([1, 30])))
        elif chance < 0.85:
            end_children(run, dice)
        elif chance < 0.95:
            operate(fresh(run), dice)
    return run


def begin(run, dice):
    """A worker takes what it can get: one step run, or none."""
    family = Q(run=run.pk) | Q(run__parent__run=run.pk)
    rows = StepRun.objects.filter(family, wake_at__isnull=False).order_by("pk")
    rows = list(rows.filter(status__in=("queued", "retrying", "waiting")))
    chosen = dice.choice(rows) if rows else None
    claimed = take(chosen.pk, chosen.attempts) if chosen else None
    return [claimed] if claimed else []


def end(claimed, luck, dice):
    if dice.random() < luck:
        try:
            perform(claimed)
        except SkipMessage:
            pass  # somebody has ended, or restarted, its run meanwhile
        except (EventTimeout, ItemsFailed, ChildrenFailed):
            fail(claimed)
    else:
        fail(claimed, final=dice.random() < 0.6, error=Abort("broken"))


def end_children(run, dice):
    for child in SequenceRun.objects.filter(parent__run=run.pk):
        if not child.is_finished and dice.random() < 0.4:
            child.cancel()
        look(child.parent_id, conf.using())


def operate(run, dice):
    allowed = [
        (action.name, [on.name] if on else [])
        for action, on in actions.allowed(snapshot.of(run))
        if action.name not in ("erase", "edit", "set_deadline")
    ]
    if allowed:
        name, arguments = dice.choice(allowed)
        options = {"undo": True} if name == "cancel" and may_undo(run, dice) else {}
        getattr(run, name)(*arguments, **options)


def may_undo(run, dice):
    return RULES["cancel_and_undo"].allows(run.status) and dice.random() < 0.8


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(n, marks=pytest.mark.slow) for n in range(5, 12))]
)
@pytest.mark.parametrize("declare", [linear, order, undoing, tree])
def test_what_is_promised_is_accepted_and_what_is_not_is_refused(declare, seed):
    with clock() as moving:
        run = declare().start({"items": [1, 2]}).run
        wander(run, f"{declare.__name__} {seed}", moving)
        assert disagreements(run) == []


def run_that(cls, *moves, items=(1, 2)):
    """A run that has come so far."""
    run = cls.start({"items": list(items)}).run
    for move in moves:
        move(run)
    return fresh(run)


def succeeds(name):
    return lambda run: perform(claim(run, name))


def fails(name, *, final=True):
    return lambda run: fail(claim(run, name), final=final)


def does(name, *arguments):
    return lambda run: getattr(fresh(run), name)(*arguments)


def of_run(run):
    return of_step(run, None)


def of_step(run, name):
    return {action for action, on in names_of(snapshot.of(fresh(run))) if on == name}


@pytest.mark.parametrize(
    ("moves", "expected", "of_one"),
    [
        ([], {"pause", "edit", "finish", "cancel", "set_deadline"}, {"skip", "restart_from"}),
        (
            [lambda run: claim(run, "one")],
            {"pause", "finish", "cancel", "set_deadline"},
            {"restart_from"},
        ),
        (
            [does("pause")],
            {"resume", "edit", "finish", "cancel", "set_deadline"},
            {"skip", "restart_from"},
        ),
        (
            [fails("one", final=False)],
            {"retry", "pause", "edit", "finish", "cancel", "set_deadline"},
            {"skip", "restart_from", "run_now"},
        ),
        ([fails("one")], {"retry", "edit", "erase"}, {"skip", "restart_from"}),
        ([does("finish")], {"edit", "erase"}, {"restart_from"}),
        ([does("cancel")], {"edit", "erase"}, {"restart_from"}),
    ],
    ids=["queued", "running", "paused", "retrying", "failed", "succeeded", "cancelled"],
)
def test_each_state_has_its_buttons(moves, expected, of_one):
    run = run_that(linear(), *moves)
    assert of_run(run) == expected
    assert of_step(run, "one") == of_one
    assert disagreements(run) == []


def test_a_step_that_waits_for_its_time_can_be_run_now_unless_a_pause_holds_it():
    run = run_that(linear(), succeeds("one"), succeeds("two"))
    assert of_step(run, "two") == {"run_now", "skip", "restart_from"}
    run.pause()
    assert of_step(run, "two") == {"skip", "restart_from"}
    assert disagreements(run) == []


def test_an_event_is_delivered_while_it_waits_and_after_its_time_but_not_twice():
    run = run_that(order(), succeeds("first"), succeeds("approval"))
    assert of_step(run, "approval") == {"deliver", "skip", "restart_from"}
    run.deliver("approval")
    assert "deliver" not in of_step(run, "approval")
    assert disagreements(run) == []


def test_a_run_with_a_failed_undo_is_retried_and_not_restarted_in_its_middle():
    run = run_that(
        undoing(),
        succeeds("reserve"),
        succeeds("pack"),
        fails("look"),
        fails("release"),
        succeeds("tell"),
        items=(),
    )
    assert run.status == RunStatus.FAILED
    assert of_run(run) == {"retry", "edit", "erase"}
    assert of_step(run, "release") == {"skip"}
    assert of_step(run, "reserve") == {"restart_from"}
    assert of_step(run, "look") == set(), "its predecessor was undone"
    assert disagreements(run) == []


def test_a_run_with_a_failed_undo_below_is_retried_and_restarted_from_the_step_at_most():
    run = run_that(tree(), succeeds("below"), items=[1])
    (child,) = SequenceRun.objects.filter(parent__run=run.pk)
    perform(claim(child, "book"))
    run.cancel(undo=True)
    fail(claim(child, "release"))
    look(child.parent_id, conf.using())
    perform(claim(run, "tell"))
    assert fresh(run).status == RunStatus.FAILED
    assert of_run(run) == {"retry", "edit", "erase"}
    assert of_step(run, "below") == {"restart_from"}
    assert of_step(run, "beside") == set()
    assert disagreements(run) == []


def test_a_failed_item_does_not_let_its_fan_out_be_edited_while_another_runs():
    run = run_that(order(), succeeds("first"), succeeds("pack"))
    one, two = (take(row.pk) for row in StepRun.objects.filter(run=run.pk, kind="item"))
    fail(one)
    assert "edit" not in of_run(run)
    perform(two)
    assert "edit" in of_run(run)
    assert disagreements(run) == []


def test_each_action_needs_a_permission_of_its_own_and_the_one_to_view_gives_none():
    user = User.objects.create_user("mia")
    user.user_permissions.add(Permission.objects.get(codename="view_sequencerun"))
    assert not [name for name, action in actions.ACTIONS.items() if actions.permitted(user, action)]
    user.user_permissions.add(Permission.objects.get(codename="pause_sequencerun"))
    user = User.objects.get(pk=user.pk)
    assert [
        name for name, action in actions.ACTIONS.items() if actions.permitted(user, action)
    ] == [
        "pause",
        "resume",
    ]
    assert not actions.permitted(AnonymousUser(), actions.ACTIONS["pause"])
    user.is_active = False
    assert not actions.permitted(user, actions.ACTIONS["pause"])


def test_every_action_has_a_permission_that_exists():
    known = {f"job_sequences.{name}" for name, _ in SequenceRun._meta.permissions}
    assert {action.permission for action in actions.ACTIONS.values()} == known
