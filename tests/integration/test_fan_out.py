from contextlib import suppress
from datetime import timedelta
from itertools import count
from random import Random

import pytest
from dramatiq.middleware import SkipMessage

from sequences import Abort, Sequence, finish, on_failure, repeat, step
from sequences.engine import dispatcher
from sequences.engine.executor import StepExecution
from sequences.exceptions import InvalidDefinition
from sequences.models import SequenceRun, StepFailure, StepRun
from sequences.testing import assert_steps, clock, drain, run_sequence
from sequences.transitions import failures, fanout
from sequences.transitions.types import WINDOW
from tests.engine import fresh, perform, sent, take

pytestmark = pytest.mark.django_db


def fan_out(each="numbers", body=lambda item: item * item, **options):
    class FanOut(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each=each, **options)
        def square(self, item):
            return body(item)

        @step
        def add_up(self):
            self.data["results"] = list(self.results("square"))

    return FanOut


def items(run, **conditions):
    return StepRun.objects.filter(run=run.pk, item__gte=0, **conditions).order_by("item")


def own(run):
    return StepRun.objects.get(run=run.pk, step="square", item=-1)


def started(cls, **data):
    """A run whose fan-out has been expanded."""
    run = cls(**data).run
    perform(claim_own(run))
    return run


def claim_own(run):
    found = own(run)
    return take(found.pk, found.attempts)


def claim_item(run, index):
    found = items(run).get(item=index)
    return take(found.pk, found.attempts)


def test_each_item_of_a_key_is_performed_and_the_results_come_in_order():
    sequence = run_sequence(fan_out(), numbers=[3, 1, 2])
    assert sequence.run.status == "succeeded"
    assert sequence.data["results"] == [9, 1, 4]
    assert [row.result for row in items(sequence.run)] == [9, 1, 4]


def test_a_generator_can_yield_the_items():
    def numbers(sequence):
        yield from range(sequence.data["upto"])

    assert run_sequence(fan_out(numbers), upto=4).data["results"] == [0, 1, 4, 9]


def test_batches_are_lists():
    sequence = run_sequence(fan_out(lambda sequence: range(7), body=sum, batch=3))
    assert sequence.data["results"] == [3, 12, 6]


def test_no_items_succeed_at_once():
    sequence = run_sequence(fan_out(), numbers=[])
    assert_steps(sequence, [("square", "succeeded"), ("add_up", "succeeded")])


def test_an_item_has_its_own_attempts_and_failures():
    tries = count()

    def second_time(item):
        if item == 2 and next(tries) == 0:
            raise ValueError("not yet")
        return item

    sequence = run_sequence(fan_out(body=second_time, max_retries=3), numbers=[1, 2])
    assert sequence.data["results"] == [1, 2]
    failure = StepFailure.objects.get(run=sequence.run)
    assert (failure.step, failure.item, failure.attempt) == ("square", 1, 1)
    assert [row.attempts for row in items(sequence.run)] == [0, 1]


def test_a_failed_item_fails_the_step_after_the_others_and_a_retry_runs_only_that():
    bad, done = {2}, []

    def body(item):
        if item in bad:
            raise ValueError("broken")
        done.append(item)
        return item

    sequence = run_sequence(fan_out(body=body), numbers=[1, 2, 3])
    assert sequence.run.status == "failed"
    assert [row.status for row in items(sequence.run)] == ["succeeded", "failed", "succeeded"]
    newest = StepFailure.objects.filter(run=sequence.run).order_by("-pk")[0]
    assert newest.message == (
        "1 of 3 items of step 'square' failed (none allowed). "
        "The first is item 1: ValueError: broken"
    )
    bad.clear()
    sequence.run.retry()
    drain()
    assert fresh(sequence.run).status == "succeeded"
    assert fresh(sequence.run).data["results"] == [1, 2, 3]
    assert done == [1, 3, 2]


def test_the_failure_of_a_fan_out_quotes_the_first_item_that_has_failed():
    class Import(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each=lambda self: range(4))
        def read(self, row):
            if row:
                raise ValueError(f"row {row} is no number\n" + "x" * 9000)

        @on_failure
        def tell(self):
            self.data["told"] = [self.failure.step, self.failure.error, self.failure.message]

    step_name, error, message = run_sequence(Import).data["told"]
    assert (step_name, error) == ("read", "sequences.exceptions.ItemsFailed")
    assert message == (
        "3 of 4 items of step 'read' failed (none allowed). "
        "The first is item 1: ValueError: row 1 is no number"
    )


def test_a_long_error_of_an_item_is_quoted_in_part():
    def body(item):
        raise ValueError("x" * 9000)

    sequence = run_sequence(fan_out(body=body), numbers=[1])
    newest = StepFailure.objects.filter(run=sequence.run).order_by("-pk")[0]
    assert newest.message.endswith("x…")
    assert len(newest.message) < 400


def test_an_abort_fails_its_item_without_retries():
    def body(item):
        raise Abort("no")

    sequence = run_sequence(fan_out(body=body, max_retries=5), numbers=[1])
    assert items(sequence.run).get().status == "failed"
    assert StepFailure.objects.filter(run=sequence.run, item=0).count() == 1


@pytest.mark.parametrize(
    ("allowed", "status"),
    [(True, "succeeded"), (2, "succeeded"), (1, "failed"), (0.2, "succeeded"), (0.19, "failed")],
)
def test_some_items_may_fail(allowed, status):
    def body(item):
        if item < 2:
            raise ValueError("broken")
        return item

    sequence = run_sequence(fan_out(body=body, allow_failed=allowed), numbers=list(range(10)))
    assert sequence.run.status == status
    if status == "succeeded":
        assert sequence.data["results"] == list(range(2, 10))


def test_outcomes_pair_each_item_with_its_result_where_some_have_failed():
    class Album(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each="photos", allow_failed=True)
        def resize(self, photo):
            if photo == "b":
                raise ValueError("broken")
            return None if photo == "c" else photo.upper()

        @step
        def publish(self):
            self.data["outcomes"] = [
                [one.item, one.status, one.result] for one in self.outcomes(Album.resize)
            ]

    assert run_sequence(Album, photos=["a", "b", "c"]).data["outcomes"] == [
        ["a", "succeeded", "A"],
        ["b", "failed", None],
        ["c", "succeeded", None],
    ]


def test_data_cannot_be_changed_in_an_item_and_a_write_says_so():
    class Writes(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="numbers")
        def square(self, item):
            self.data["last"] = item

    sequence = run_sequence(Writes, numbers=[1])
    failure = StepFailure.objects.filter(run=sequence.run, item=0).get()
    assert failure.message == (
        "An item of step 'square' changed data['last'], but items must not change data. Return a "
        "result and collect the results with self.results() in a later step."
    )
    assert "last" not in fresh(sequence.run).data


def test_an_item_cannot_finish_the_run_but_can_repeat_itself():
    rounds = count()

    class Repeats(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each="numbers")
        def square(self, item):
            if item == 0:
                return finish()
            return repeat() if next(rounds) < 2 else self.step_run.repeats

    sequence = run_sequence(Repeats, numbers=[0, 1])
    assert "returned finish(), which would end the other items" in (
        StepFailure.objects.get(run=sequence.run, item=0).message
    )
    assert items(sequence.run).get(item=1).result == 2


def test_no_more_items_are_in_flight_than_may_be():
    run = started(fan_out(concurrency=2), numbers=list(range(5)))
    assert [row.status for row in items(run)] == ["queued", "queued", *["waiting"] * 3]
    first = claim_item(run, 0)
    assert [row.status for row in items(run)] == ["running", "queued", *["waiting"] * 3]
    released = perform(first)
    assert [one.step_run_id for one in released] == [items(run).get(item=2).pk]
    assert items(run, status="queued").count() == 2
    drain()
    assert fresh(run).data["results"] == [0, 1, 4, 9, 16]


def test_places_are_filled_at_once_when_no_more_than_half_of_them_are_queued():
    run = started(fan_out(concurrency=8), numbers=list(range(20)))
    for index in range(3):
        assert perform(claim_item(run, index)) == []
    released = perform(claim_item(run, 3))
    assert [one.step_run_id for one in released] == [row.pk for row in items(run)[8:12]]
    assert items(run, status="queued").count() == 8
    drain()
    assert fresh(run).data["results"] == [item * item for item in range(20)]


@pytest.mark.parametrize(
    "values", [{"wake_at": None}, {"lost_workers": 1}, {"status": "waiting", "wait": "limit"}]
)
def test_items_that_no_worker_can_take_at_once_do_not_delay_the_release_of_others(values):
    run = started(fan_out(concurrency=4), numbers=list(range(9)))
    running = claim_item(run, 0)
    items(run, status="queued").update(**values)
    assert items(run).get(item=4).pk in [one.step_run_id for one in perform(running)]


def test_most_ends_of_items_with_limited_places_look_at_no_sibling(monkeypatch):
    looks = []
    look = fanout._look
    monkeypatch.setattr(fanout, "_look", lambda *args: looks.append(args) or look(*args))
    sequence = run_sequence(fan_out(concurrency=20), numbers=list(range(200)))
    assert len(sequence.data["results"]) == 200
    assert len(looks) < 200 / 20 * 3


def test_an_item_that_repeats_itself_at_once_keeps_its_place():
    class Repeats(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="numbers", concurrency=1)
        def square(self, item):
            return repeat() if self.step_run.repeats == 0 else item

    run = started(Repeats, numbers=[0, 1])
    (again,) = perform(claim_item(run, 0))
    assert again.step_run_id == items(run).get(item=0).pk
    assert items(run).get(item=1).status == "waiting"
    drain()
    assert [row.result for row in items(run)] == [0, 1]


def polls(**options):
    class Polls(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="numbers", **options)
        def square(self, item):
            if self.step_run.repeats == 0:
                return repeat(after=timedelta(hours=1))
            return item * item

        @step
        def add_up(self):
            self.data["results"] = list(self.results("square"))

    return Polls


def test_an_item_that_waits_to_repeat_itself_leaves_its_place_to_another():
    run = started(polls(concurrency=1), numbers=[0, 1, 2])
    (released,) = perform(claim_item(run, 0))
    assert released.step_run_id == items(run).get(item=1).pk
    (released,) = perform(claim_item(run, 1))
    assert released.step_run_id == items(run).get(item=2).pk
    assert [row.status for row in items(run)] == ["waiting", "waiting", "queued"]


def test_an_item_that_comes_back_waits_for_a_place():
    run = started(polls(concurrency=1), numbers=[0, 1])
    with clock() as moving:
        perform(claim_item(run, 0))
        second = claim_item(run, 1)
        moving.move(timedelta(hours=1))
        first = items(run).get(item=0)
        with pytest.raises(SkipMessage):
            StepExecution(first.pk, 0, "default").live()
        first.refresh_from_db()
        assert (first.status, first.due_at, first.wake_at) == ("waiting", None, None)
        (released,) = perform(second)
        assert released.step_run_id == first.pk
        drain()
        moving.move(timedelta(hours=1))
        drain()
    assert fresh(run).data["results"] == [0, 1]


def test_an_item_that_finds_a_place_has_it():
    run = started(polls(concurrency=1), numbers=[0, 1])
    with clock() as moving:
        perform(claim_item(run, 0))
        perform(claim_item(run, 1))
        moving.move(timedelta(hours=1))
        first = items(run).get(item=0)
        StepExecution(first.pk, 0, "default").live()
        second = items(run).get(item=1)
        claimed = claim_item(run, 1)
        assert fanout.find_place(claimed, "default")
        second.refresh_from_db()
        assert (second.status, second.due_at) == ("running", None)


def test_a_place_that_became_free_meanwhile_is_found_by_the_look_that_follows(monkeypatch):
    run = started(polls(concurrency=1), numbers=[0, 1])
    find_place = fanout.find_place

    def just_before_the_other_ends(claim, using):
        found = find_place(claim, using)
        items(run, item=1).update(status="succeeded", wake_at=None)  # it saw no item held
        return found

    with clock() as moving, dispatcher.capture_dispatches() as caught:
        perform(claim_item(run, 0))
        claim_item(run, 1)
        moving.move(timedelta(hours=1))
        monkeypatch.setattr(fanout, "find_place", just_before_the_other_ends)
        with pytest.raises(SkipMessage):
            StepExecution(items(run).get(item=0).pk, 0, "default").live()
    assert [one.step_run_id for one in caught] == [items(run).get(item=0).pk]


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_no_more_items_are_performed_at_once_whoever_comes_back(concurrency):
    """Each item fails once and then repeats itself twice, in an order of chance."""
    chance = Random(concurrency)

    class Flaky(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 5

        @step(each=lambda self: range(5), concurrency=concurrency)
        def square(self, item):
            if self.attempt == 1:
                raise ValueError("not yet")
            return repeat(after=60_000) if self.step_run.repeats < 2 else item * item

        @step
        def add_up(self):
            self.data["results"] = list(self.results("square"))

    run = started(Flaky)
    claimed = {}
    with clock() as moving, dispatcher.capture_dispatches():
        for _ in range(2000):
            if own(run).status != "waiting":
                break
            due = items(run, wake_at__isnull=False).exclude(status="running")
            rows = [row for row in due if row.pk not in claimed]
            row = chance.choice([*rows, *claimed] or [None])
            if row is None:
                moving.move(timedelta(minutes=1))
            elif isinstance(row, StepRun):
                claim = take(row.pk, row.attempts)
                if claim is None:
                    moving.move(timedelta(minutes=1))
                elif claim.due_at is None or fanout.find_place(claim, "default"):
                    claimed[row.pk] = claim
                else:
                    fanout.look(run.pk, "square", "default")
            else:
                with suppress(ValueError):
                    perform(claimed.pop(row))
            assert len(claimed) <= concurrency
        drain()
    assert fresh(run).data["results"] == [0, 1, 4, 9, 16]


def test_a_retrying_item_leaves_its_place_to_another():
    def body(item):
        if item == 0:
            raise ValueError("not yet")
        return item

    run = started(fan_out(concurrency=1, max_retries=3, body=body), numbers=[0, 1])
    first = claim_item(run, 0)
    with dispatcher.capture_dispatches() as caught, pytest.raises(ValueError, match="not yet"):
        perform(first)
    assert [one.step_run_id for one in caught] == [items(run).get(item=1).pk]
    assert [row.status for row in items(run)] == ["retrying", "queued"]


def test_a_person_who_retries_the_waiting_items_gives_them_no_places():
    def body(item):
        raise ValueError("not yet")

    run = started(fan_out(concurrency=1, max_retries=3, body=body), numbers=[0, 1, 2])
    with dispatcher.capture_dispatches():
        for index in (0, 1):
            with pytest.raises(ValueError, match="not yet"):
                perform(claim_item(run, index))
    third = claim_item(run, 2)
    run.retry()
    assert [row.status for row in items(run)] == ["queued", "queued", "running"]
    for index in (0, 1):
        assert not fanout.find_place(claim_item(run, index), "default")
    with dispatcher.capture_dispatches(), pytest.raises(ValueError, match="not yet"):
        perform(third)
    assert [row.status for row in items(run)] == ["queued", "waiting", "retrying"]


def test_waiting_items_of_a_wide_fan_out_do_not_stop_the_release_of_others():
    run = started(polls(), numbers=list(range(WINDOW + fanout.ITEMS_PER_RELEASE)))
    for index in range(fanout.ITEMS_PER_RELEASE):
        perform(claim_item(run, index))
    assert not items(run, status="waiting", due_at=None).exists()


def test_items_that_nobody_released_are_released_by_the_look():
    """A process died between an item's commit and the look after it."""
    run = started(fan_out(concurrency=1), numbers=[0, 1])
    items(run, item=0).update(status="succeeded", wake_at=None)
    released = fanout.look(run.pk, "square", "default")
    assert [one.step_run_id for one in released] == [items(run).get(item=1).pk]


def test_an_end_that_nobody_saw_is_seen_by_the_look():
    run = started(fan_out(), numbers=[0, 1])
    items(run).update(status="succeeded", wake_at=None)
    assert own(run).status == "waiting"
    assert [one.step_run_id for one in fanout.look(run.pk, "square", "default")] == [own(run).pk]
    assert fanout.look(run.pk, "square", "default") == []


def test_the_sweep_looks_after_a_fan_out():
    from sequences.worker.sweeper import AssumeLost, sweep

    run = started(fan_out(), numbers=[0])
    items(run).update(status="succeeded", wake_at=None)
    found = own(run)
    StepRun.objects.filter(pk=found.pk).update(wake_at=found.ready_at)
    sent(lambda: sweep(AssumeLost(), "default"))
    assert own(run).status == "queued"


def test_many_items_are_released_in_chunks():
    run = started(fan_out(lambda sequence: range(WINDOW + fanout.ITEMS_PER_RELEASE)))
    assert items(run, status="queued").count() == WINDOW
    assert perform(claim_item(run, 0)) == []
    assert len(perform(claim_item(run, fanout.ITEMS_PER_RELEASE - 1))) == fanout.ITEMS_PER_RELEASE
    assert not items(run, status="waiting").exists()


def test_a_pause_holds_the_items_and_a_resume_lets_them_go_on():
    run = started(fan_out(concurrency=2), numbers=list(range(4)))
    running = claim_item(run, 0)
    run.pause()
    assert perform(running) == []
    drain()
    assert items(run, status="succeeded").count() == 1
    run.resume()
    drain()
    assert fresh(run).data["results"] == [0, 1, 4, 9]


def test_a_cancelled_run_loses_its_items_commits():
    run = started(fan_out(), numbers=[1, 2])
    running = claim_item(run, 0)
    run.cancel()
    with pytest.raises(Exception, match="lost its claim while it was running"):
        perform(running)
    assert {row.status for row in items(run)} == {"cancelled"}


def test_skipping_a_fan_out_skips_its_items():
    run = started(fan_out(), numbers=[1, 2])
    run.skip("square", reason="enough")
    drain()
    assert {row.status for row in items(run)} == {"skipped"}
    assert fresh(run).status == "succeeded"
    assert fresh(run).data["results"] == []


def test_a_restart_expands_anew():
    sequence = run_sequence(fan_out(), numbers=[1, 2])
    row = SequenceRun.objects.get(pk=sequence.run.pk)
    row.edit({"numbers": [5]})
    row.restart_from("square")
    drain()
    assert fresh(row).data["results"] == [25]


def test_a_failure_of_the_callable_is_a_failed_attempt_and_leaves_no_items():
    def broken(sequence):
        yield 1
        raise ValueError("broken")

    sequence = run_sequence(fan_out(broken))
    assert sequence.run.status == "failed"
    assert not items(sequence.run).exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data['numbers'] does not exist, but step 'square' runs once for each of its items."),
        (
            {"numbers": 3},
            "data['numbers'] is of type int, but step 'square' needs a list of items.",
        ),
    ],
)
def test_what_gives_no_items_says_so(data, message):
    sequence = run_sequence(fan_out(), **data)
    assert StepFailure.objects.get(run=sequence.run).message.startswith(message)


def test_an_item_that_is_not_json_names_its_place():
    sequence = run_sequence(fan_out(lambda sequence: [1, {2}]))
    assert StepFailure.objects.get(run=sequence.run).message.startswith("item 1 is of type set")


def test_a_branch_beside_a_fan_out_goes_on_and_both_are_joined():
    class Branches(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda sequence: range(3), after=[])
        def square(self, item):
            return item * item

        @step(after=[])
        def beside(self):
            self.data["beside"] = True

        @step
        def join(self):
            self.data["sum"] = sum(self.results(Branches.square))

    sequence = run_sequence(Branches)
    assert sequence.data == {"beside": True, "sum": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency is 0. It must be a positive int"),
        ({"batch": "many"}, "batch is 'many'. It must be a positive int"),
        ({"allow_failed": 1.5}, "allow_failed is 1.5. It must be True, a number of items"),
        ({"each": 3}, "each is 3. It must be a key of data, or a function"),
    ],
)
def test_a_wrong_option_is_refused_when_the_class_is_created(options, message):
    with pytest.raises(InvalidDefinition, match=message):
        fan_out(**options)


def test_options_of_a_fan_out_need_each():
    with pytest.raises(InvalidDefinition, match="concurrency needs each"):

        class Plain(Sequence):
            class Meta:
                app_label = "shop"

            @step(concurrency=2)
            def one(self): ...


def test_the_step_of_a_fan_out_takes_an_item():
    with pytest.raises(InvalidDefinition, match="cannot be called with the sequence and an item"):

        class Plain(Sequence):
            class Meta:
                app_label = "shop"

            @step(each="numbers")
            def one(self): ...


def test_delay_and_when_are_the_steps_own_and_not_its_items():
    asked = []

    class Delayed(Sequence):
        class Meta:
            app_label = "shop"

        @step(
            each=lambda sequence: [1, 2],
            delay=lambda sequence: asked.append("delay") or timedelta(hours=1),
            when=lambda sequence: asked.append("when") or True,
        )
        def square(self, item):
            return item

    sequence = run_sequence(Delayed)
    assert sequence.run.status == "succeeded"
    assert asked == ["delay", "when"]
    assert [row.delay_evaluated for row in items(sequence.run)] == [False, False]


def test_a_claim_of_the_own_row_takes_nothing_while_items_run():
    run = started(fan_out(), numbers=[1])
    assert claim_own(run) is None


def test_a_fan_out_that_is_not_atomic_is_expanded_in_one_transaction_all_the_same(monkeypatch):
    monkeypatch.setattr(fanout, "ROWS_PER_INSERT", 3)
    tries = count()

    def numbers(sequence):
        yield from range(5)
        if next(tries) == 0:
            raise ConnectionError("at the very end")

    sequence = run_sequence(fan_out(numbers, atomic=False, max_retries=1))
    assert sequence.run.status == "succeeded"
    assert items(sequence.run, status="succeeded").count() == 5


def failing_beside(**options):
    """A fan-out beside a step that fails, and a join of both."""

    class Beside(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step(each=lambda self: range(3), after=[], **options)
        def square(self, item):
            return item * item

        @step(after=[])
        def beside(self):
            if not self.data.get("mended"):
                raise ValueError("broken")

        @step
        def join(self):
            self.data["results"] = list(self.results("square"))

        @on_failure
        def tell(self):
            self.data["told"] = True

    return Beside


def beside_of(run):
    return take(StepRun.objects.get(run=run.pk, step="beside").pk)


def failed(claimed):
    with pytest.raises(ValueError, match="broken"):
        perform(claimed)
    # What Dramatiq's middleware does when the attempts are over.
    return failures.give_up(claimed, "default")


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}])
def test_a_failing_run_waits_for_the_items_that_run_and_begins_no_others(options):
    run = started(failing_beside(**options))
    running = claim_item(run, 0)
    failed(beside_of(run))
    assert fresh(run).status == "running"
    assert own(run).wake_at is not None
    ready = perform(running)
    assert fresh(run).status == "undoing"
    assert [row.status for row in items(run)] == ["succeeded", "cancelled", "cancelled"]
    assert [one.actor for one in ready] == ["shop.Beside.tell"]
    drain()
    assert fresh(run).status == "failed"


def test_the_end_of_the_last_item_of_a_failing_run_is_seen_by_the_sweep_too():
    run = started(failing_beside())
    claim_item(run, 0)
    failed(beside_of(run))
    items(run, item=0).update(status="succeeded", wake_at=None)
    fanout.look(run.pk, "square", "default")
    assert fresh(run).status == "undoing"


def test_a_retry_after_a_failure_performs_the_items_before_what_waits_for_them():
    run = started(failing_beside(concurrency=1))
    failed(beside_of(run))
    drain()
    run = fresh(run)
    assert run.status == "failed"
    run.edit({"mended": True})
    run.retry()
    assert items(run, status="queued").count() == 1
    drain()
    run = fresh(run)
    assert run.status == "succeeded"
    assert run.data["results"] == [0, 1, 4]


def test_the_last_items_may_end_one_well_and_one_badly_whichever_comes_first():
    def body(item):
        if item == 0:
            raise Abort("no")
        return item

    run = started(fan_out(body=body), numbers=[0, 1])
    bad, good = claim_item(run, 0), claim_item(run, 1)
    perform(good)
    with pytest.raises(Abort):
        perform(bad)
    assert own(run).status == "queued"


def test_a_look_too_many_releases_no_more_than_there_is_room_for():
    run = started(fan_out(concurrency=1), numbers=[0, 1, 2])
    items(run, item=0).update(status="succeeded", wake_at=None)
    assert len(fanout.look(run.pk, "square", "default")) == 1
    assert fanout.look(run.pk, "square", "default", 1) == []
    assert items(run, status="queued").count() == 1
