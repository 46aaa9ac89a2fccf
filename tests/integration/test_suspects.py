"""Which steps are suspected of killing their workers, and what is done about it."""

import json
from datetime import timedelta
from itertools import count

import dramatiq
import pytest
from django.test import override_settings
from dramatiq.middleware import Shutdown, TimeLimitExceeded

from sequences import Sequence, step
from sequences.engine import current, handoff, suspects
from sequences.engine.pruning import prune
from sequences.inspection import health, snapshot
from sequences.inspection.diagnosis import summary
from sequences.inspection.run_diagrams import lanes_of
from sequences.management.cli.details import moment
from sequences.models import NO_ITEM, StepLoss, StepRun
from sequences.testing import _InlineBroker, clock, drain
from sequences.transitions import claims, losses
from sequences.transitions.types import dispatch_of
from sequences.worker.sweeper import AssumeLost, sweep
from tests.console import command, content_of, count_queries, step_url, url_of, user_with, words
from tests.engine import change, claim, fail, fresh, now, overdue, row, sent, take
from tests.engine import perform as commit

pytestmark = pytest.mark.django_db

USING = "default"
#: Processes of a container that is started again each time: they have one name, and their marks.
marks = count(0xAB12)


def order(steps=1, **options):
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step(atomic=False, **options)
        def pay(self):
            if inside := Inside.calls.pop(str(self.run.pk), None):
                inside()

    return [Order.start().run for _ in range(steps)]


class Inside:
    """What a step does while it is in hand."""

    calls: dict = {}


def threads():
    """The names of a new process's threads."""
    mark = next(marks)
    return (f"box:7:Thread-{number}~{mark:x}" for number in count())


def lose(runs):
    """One process has all of them in hand, and dies."""
    for run, thread in zip(runs, threads(), strict=False):
        assert claim(run, "pay", worker=thread) is not None
    for run in runs:
        overdue(run, "pay")
        sweep(AssumeLost(), USING)


def perform(run):
    """A message of the step arrives at this process."""
    found = row(run, "pay")
    plan = snapshot.of(fresh(run)).plan
    handoff.process(dispatch_of(found, plan), _InlineBroker(dramatiq.get_broker()), USING)
    return row(run, "pay").status


def beside(run):
    """Whom each of its workers had in hand besides."""
    return [{one["run"] for one in loss.concurrent_steps} for loss in run.losses.all()]


def shown(run, *options):
    return command("show", str(run.pk), *options)


def told(run):
    return summary(snapshot.of(fresh(run)))


def test_what_dies_with_others_is_no_more_to_blame_than_they_are():
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 2}):
        one, other = order(2)
        lose([one, other])
        lose([one, other])
        assert {fresh(run).status for run in (one, other)} == {"running"}
        assert beside(one) == [{str(other.pk)}] * 2
        assert beside(other) == [{str(one.pk)}] * 2
        lose([one])
        lose([one])
        assert (fresh(one).status, fresh(other).status) == ("failed", "running")
    drain()
    assert fresh(other).status == "succeeded"


def test_a_lost_worker_is_still_told_of_when_the_step_has_succeeded(admin_client):
    one, other, spared = order(3)
    lose([one, other])
    drain()
    assert "Lost workers" not in shown(spared)
    assert json.loads(shown(spared, "--json"))["losses"] == []
    assert fresh(one).status == "succeeded"
    loss = one.losses.get()

    (told_of,) = json.loads(shown(one, "--json"))["losses"]
    assert told_of == {
        "step": "pay", "item": None, "worker": loss.worker, "concurrent_steps": [
            {"run": str(other.pk), "step": "pay", "item": NO_ITEM}
        ], "lost_at": told_of["lost_at"],
    }  # fmt: skip
    sentence = f"Lost worker {loss.worker}, which was also running “pay” of run {other.pk}."
    line = f"{moment(loss.lost_at)}  pay  {sentence}"
    assert shown(one).count(line) == 1
    page = content_of(admin_client, url_of(one))
    assert f"pay · {sentence}" in words(page[page.index('id="failures"') :])
    assert "seq-span-lost" in page[page.index('id="timeline"') : page.index('id="failures"')]
    assert f"{sentence}" in words(content_of(admin_client, step_url(row(one, "pay"))))
    without = count_queries(admin_client, url_of(spared))
    assert count_queries(admin_client, url_of(one)) == without + 1
    (lane,) = lanes_of(snapshot.of(fresh(one)), losses=[loss])
    assert [span.begins for span in lane.spans if span.kind == "lost"] == [loss.lost_at]


def test_who_may_see_no_failed_attempts_sees_no_lost_workers(client):
    (run,) = order()
    lose([run])
    drain()
    client.force_login(user_with("view_sequencerun", "view_steprun"))
    for address in (url_of(run), step_url(row(run, "pay"))):
        assert "Lost worker " not in words(content_of(client, address))


def test_of_an_item_is_told_which_one_lost_its_worker():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: [1, 2])
        def pack(self, item): ...

    run = Order.start().run
    commit(claim(run, "pack"))
    item = StepRun.objects.get(run=run.pk, item=1)
    take(item.pk)
    overdue_at = now() - timedelta(minutes=1)
    StepRun.objects.filter(pk=item.pk).update(wake_at=overdue_at)
    sweep(AssumeLost(), USING)
    drain()
    (told_of,) = json.loads(shown(run, "--json"))["losses"]
    assert (told_of["step"], told_of["item"]) == ("pack", 1)
    assert "  pack[1]  Lost worker " in shown(run)


def test_what_dies_alone_fails_though_others_died_with_it_before():
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 3}):
        one, other = order(2)
        lose([one, other])
        lose([one])
        assert fresh(one).status == "running"
        lose([one])
    assert fresh(one).status == "failed"
    assert beside(one) == [{str(other.pk)}, set(), set()]


def test_what_kills_its_worker_once_does_not_fail_for_what_others_did_before():
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 3}):
        once, poison, *others = order(4)
        for other in others:
            lose([once, poison, other])
        lose([once])
        lose([poison])
        assert {fresh(run).status for run in (once, poison)} == {"running"}
        lose([poison])
        assert fresh(poison).status == "failed"
    drain()
    assert fresh(once).status == "succeeded"


def test_a_single_death_alone_is_enough_if_the_settings_say_so():
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 1}):
        (poison,) = order()
        lose([poison])
    assert fresh(poison).status == "failed"


def test_the_losses_of_an_attempt_that_ended_do_not_count():
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 1}):
        one, other = order(2)
        lose([one, other])
        fail(take(row(one, "pay").pk), final=False)
        change(one, "pay", status="queued")
        lose([one])
    assert beside(one) == [{str(other.pk)}, set()]
    assert fresh(one).status == "failed"


def test_what_never_died_alone_fails_at_twice_as_many_deaths():
    with override_settings(SEQUENCES={"MAX_LOST_WORKERS": 2}):
        (poison,) = order()
        for _ in range(3):
            lose([poison, *order()])
            assert fresh(poison).status == "running"
        lose([poison, *order()])
    assert fresh(poison).status == "failed"
    assert (
        fresh(poison)
        .failures.get()
        .message.startswith(f"Step 'pay' of run {poison.pk} lost 4 workers in a row")
    )


def test_a_process_of_the_same_name_is_another_one():
    one, other = order(2)
    assert claim(other, "pay", worker=next(threads())) is not None
    lose([one])
    assert beside(one) == [set()]


def test_the_name_of_a_worker_tells_its_process():
    host, pid, thread = current.worker().split(":")
    assert f"{host}:{pid}" == current.process()
    assert losses._process_of(current.worker()) == (f"{host}:{pid}:", f"~{thread[-4:]}")
    assert losses._process_of("box:7") is None


def test_a_process_has_one_suspect_in_hand_and_the_next_has_its_turn_when_that_has_ended():
    one, other, innocent = runs = order(3)
    lose([one, other])
    while_in_hand = {}

    def inside():
        while_in_hand.update(other=perform(other), innocent=perform(innocent))

    Inside.calls[str(one.pk)] = inside
    following = sent(lambda: perform(one))
    assert while_in_hand == {"other": "queued", "innocent": "succeeded"}
    assert [dispatch.run_id for dispatch in following] == [other.pk]
    assert row(other, "pay").lost_workers == 1
    assert perform(other) == "succeeded"
    assert {fresh(run).status for run in runs} == {"succeeded"}


def raises(error):
    def inside():
        raise error

    return inside


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [ValueError, TimeLimitExceeded, Shutdown, SystemExit])
def test_the_place_is_free_again_when_a_suspect_fails_or_is_interrupted(error):
    one, other = order(2, max_retries=3)
    lose([one, other])
    Inside.calls[str(one.pk)] = raises(error)
    following = sent(lambda: perform(one))
    assert row(one, "pay").status == ("queued" if error is Shutdown else "retrying")
    assert other.pk in {dispatch.run_id for dispatch in following}
    assert suspects.enter(1, alone=False)
    assert suspects.leave(1)


def test_one_that_never_died_alone_waits_for_an_idle_process_but_not_for_ever():
    one, other = order(2)
    lose([one])
    change(one, "pay", lost_workers=3)
    seen = []
    Inside.calls[str(other.pk)] = lambda: seen.append(perform(one))
    perform(other)
    assert seen == ["queued"]
    (later,) = order()
    change(one, "pay", queued_at=now() - losses.MAX_SUSPECT_WAIT)
    Inside.calls[str(later.pk)] = lambda: seen.append(perform(one))
    perform(later)
    assert seen == ["queued", "succeeded"]


def test_an_idle_process_takes_it_at_once():
    (one,) = order()
    lose([one])
    change(one, "pay", lost_workers=3)
    assert perform(one) == "succeeded"


def test_those_that_were_lost_least_often_are_cleared_first():
    often, seldom = order(2)
    lose([often, seldom])
    change(often, "pay", lost_workers=2)
    assert losses.next_suspect(USING).run_id == seldom.pk
    seldom.pause()
    assert losses.next_suspect(USING).run_id == often.pk, "a held one is claimed by nobody"
    often.pause()
    assert losses.next_suspect(USING) is None


def test_items_of_a_fan_out_are_suspects_each_for_itself():
    class Mailing(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: range(3), atomic=False)
        def mail(self, number):
            if inside := Inside.calls.pop(number, None):
                inside()

    run = Mailing.start().run
    perform_step(run, "mail", -1)
    for number, thread in zip(range(3), threads(), strict=False):
        assert take(item(run, number).pk, worker=thread) is not None
    StepRun.objects.filter(run=run, item__gte=0).update(wake_at=now() - timedelta(seconds=1))
    sweep(AssumeLost(), USING)
    seen = []
    Inside.calls[1] = lambda: seen.append(perform_step(run, "mail", 2))
    assert perform_step(run, "mail", 1) == "succeeded"
    assert seen == ["queued"]
    lost = StepLoss.objects.get(item=1)
    assert {(one["step"], one["item"]) for one in lost.concurrent_steps} == {
        ("mail", 0),
        ("mail", 2),
    }
    drain()
    assert fresh(run).status == "succeeded"


def item(run, number):
    return StepRun.objects.get(run=run, item=number)


def perform_step(run, name, number):
    plan = snapshot.of(fresh(run)).plan
    broker = _InlineBroker(dramatiq.get_broker())
    handoff.process(dispatch_of(item(run, number), plan), broker, USING)
    return item(run, number).status


def test_a_step_that_was_never_lost_costs_no_look_at_suspects(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(losses, "suspicion", refuse)
    monkeypatch.setattr(losses, "next_suspect", refuse)
    (run,) = order()
    assert perform(run) == "succeeded"


def test_people_are_told_whom_to_suspect(admin_client):
    one, other = order(2)
    lose([one, other])
    lose([one])
    change(one, "pay", queued_at=now() - timedelta(seconds=75))
    assert told(one) == (
        "“pay” has been queued for 1 min 15 s. Because it lost its worker, it runs only in a "
        "process that is not running another such step. Lost 2 workers in a row; the last one "
        "was running nothing else."
    )
    assert told(other).startswith("“pay” has been queued for ")
    assert told(other).endswith(f"Lost 1 worker, which was also running “pay” of run {one.pk}.")
    (sign,) = [sign for sign in health.read().signs if sign.name == "suspects"]
    assert (sign.level, sign.says) == (health.Level.WARNING, "2 steps have lost their workers")
    assert sign.advice.startswith(f"“pay” of run {one.pk}: Lost 2 workers in a row")
    assert f"“pay” of run {other.pk}: Lost 1 worker, which was also running" in sign.advice
    page = admin_client.get(f"/admin/job_sequences/sequencerun/{other.pk}/change/")
    assert f"Lost 1 worker, which was also running “pay” of run {one.pk}" in page.content.decode()
    taken = take(row(other, "pay").pk)
    assert told(other).endswith(f"Lost 1 worker, which was also running “pay” of run {one.pk}.")
    commit(taken)
    drain()
    assert [sign.name for sign in health.read().signs if sign.name == "suspects"] == []


def test_many_neighbours_are_counted():
    runs = order(6)
    lose(runs)
    assert told(runs[0]).count("“pay” of run") == 3
    assert "and 2 others" in told(runs[0])


def test_losses_go_with_their_runs(settings):
    one, other = order(2)
    lose([one, other])
    drain()
    assert StepLoss.objects.count() == 2
    with clock() as moving:
        moving.move(timedelta(days=2))
        prune(older_than=timedelta(days=1))
    assert not StepLoss.objects.exists()


def test_a_step_that_is_begun_again_leaves_its_losses_with_the_run():
    (one,) = order()
    lose([one])
    drain()
    one = fresh(one)
    one.restart_from("pay")
    assert [loss.step_run for loss in one.losses.all()] == [None]
    assert losses.next_suspect(USING) is None
    assert claims.find(row(one, "pay").pk, USING).lost_workers == 0
