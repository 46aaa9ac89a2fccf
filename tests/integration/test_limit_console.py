"""Limits as people see and change them: the sentence, the admin, the command line, health."""

import json
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext

from sequences import Limit, Sequence, checks, start_definition, step
from sequences.definitions import registry
from sequences.engine.limits import store_declared
from sequences.engine.pruning import prune
from sequences.exceptions import InvalidDefinition, SequenceError
from sequences.flows.jobs import job
from sequences.inspection import diagnosis, health, snapshot
from sequences.models import LimitKey, LimitOverride, Permit, SequenceRun, StoredLimit
from sequences.testing import clock, drain
from sequences.worker.sweeper import AssumeLost, sweep
from tests.console import command
from tests.engine import fresh
from tests.limits import USING, bank, billing, come, go, look, row_of, seconds, sync, take, waits

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN = "/admin/job_sequences/storedlimit/"


def sentence(run):
    return diagnosis.summary(snapshot.of(fresh(run)))


@pytest.fixture
def line():
    """Three at the door of a bank with two places; the last waits."""
    runs = [billing(bank(concurrency=2)).start().run for _ in range(3)]
    return [(run, come(run)) for run in runs]


def test_the_sentence_of_a_run_says_for_what_it_waits(line):
    assert sentence(line[2][0]) == "“charge” is waiting for the limit “bank”: 2 of 2 in use."
    go(line[0][1])
    assert "is waiting for the limit" not in sentence(line[2][0])


def test_the_sentence_names_the_key():
    sequence = sync(limits=[Limit("customer", key="customer_id", concurrency=1)])
    first, second = (sequence.start({"customer_id": 7}).run for _ in range(2))
    come(first, name="fetch")
    come(second, name="fetch")
    assert sentence(second) == "“fetch” is waiting for the limit “customer” (7): 1 of 1 in use."


def test_the_sentence_says_when_a_moment_comes():
    sequence = billing(Limit("bank", rate=1, per=seconds(4)))
    runs = [sequence.start().run for _ in range(3)]
    for run in runs:
        come(run)
    assert "the limit “bank” allows 1 per 4 s." in sentence(runs[1])
    assert "“charge” starts in 3." in sentence(runs[1]) or "in 4 s" in sentence(runs[1])
    assert sentence(runs[2]) == "“charge” is waiting for the limit “bank”, which allows 1 per 4 s."


def test_the_sentence_of_a_fan_out_counts_the_items_in_line():
    run = billing(bank(), each=lambda self: range(4)).start().run
    go(take(row_of(run).pk))
    for item in range(4):
        come(run, item)
    assert sentence(run).endswith("3 items are waiting for the limit “bank”: 1 of 1 in use.")


def test_health_says_when_nobody_looks_at_a_line(line):
    assert not any(sign.name == "limits" for sign in health.read().signs)
    LimitKey.objects.update(wake_at=clock_now() - timedelta(minutes=10))
    (sign,) = (sign for sign in health.read().signs if sign.name == "limits")
    assert str(sign).startswith("1 stalled waiting line. Steps are waiting for the limit “bank”")


def clock_now():
    from sequences.transitions import clock as database_clock

    return database_clock.now(USING)


# --- other numbers, for now


def test_other_numbers_count_at_once_and_until_they_are_reset(line):
    limit = StoredLimit.objects.get()
    limit.change(concurrency=3, by="ada", reason="the bank is fast")
    look()
    assert row_of(line[2][0]).status == "queued"
    limit.change(concurrency=0)
    assert come(line[2][0]) is None
    assert waits(line[2][0])
    store_declared(USING)  # a deploy ends it not
    look()
    assert waits(line[2][0])
    limit.reset(by="bob")
    go(line[0][1])
    assert come(line[2][0]) is not None
    overrides = list(LimitOverride.objects.values_list("concurrency", "by", "reason", "ended_by"))
    assert overrides == [(3, "ada", "the bank is fast", ""), (0, "", "", "bob")]


def test_a_higher_rate_moves_those_who_wait():
    sequence = billing(Limit("bank", rate=1, per=timedelta(hours=1)))
    runs = [sequence.start().run for _ in range(3)]
    for run in runs:
        come(run)
    StoredLimit.objects.get().change(rate=10, per=seconds(1))
    with clock() as moving:
        moving.move(seconds(0.1))
        look()
        assert all(row_of(run).due_at or row_of(run).status == "queued" for run in runs[1:])


def test_a_higher_rate_also_counts_where_nobody_waits():
    sequence = billing(Limit("bank", rate=1, per=timedelta(days=1)))
    assert come(sequence.start().run)
    StoredLimit.objects.get().change(rate=10, per=seconds(1))
    with clock() as moving:
        moving.move(seconds(10))
        assert come(sequence.start().run)


@pytest.mark.parametrize("numbers", [{"rate": 10, "per": seconds(1)}, {"concurrency": 5}])
@pytest.mark.parametrize("early", [True, False])
def test_a_deploy_moves_those_who_wait_for_a_slower_rate(numbers, early):
    sequence = billing(Limit("bank", rate=1, per=timedelta(days=1)))
    runs = [sequence.start().run for _ in range(2)]
    assert come(runs[0])
    if early:
        assert come(runs[1]) is None
    billing(Limit("bank", **numbers))
    store_declared(USING)
    with clock() as moving:
        moving.move(seconds(10))
        sweep(AssumeLost(), USING)
        assert come(runs[1])


@pytest.mark.parametrize(
    "numbers", [{"concurrency": -1}, {"rate": 0}, {"rate": 1, "per": timedelta()}]
)
def test_numbers_that_cannot_be_are_refused(line, numbers):
    with pytest.raises(
        SequenceError, match=r"Limit 'bank': (concurrency|rate|the period) (cannot|must) be"
    ):
        StoredLimit.objects.get().change(**numbers)
    assert not LimitOverride.objects.exists()


def test_the_numbers_of_the_code_are_written_when_a_worker_boots(line):
    billing(bank(concurrency=5, rate=2))
    store_declared(USING)
    assert StoredLimit.objects.get(name="bank").numbers == (5, 2, seconds(1))


# --- the command line


def test_the_command_lists_limits_and_changes_one(line):
    listed = command("limits")
    assert listed.splitlines()[1].split()[:6] == ["bank", "2", "at", "once", "2", "1"]
    assert "1 at once" in command(
        "limits", "bank", "--concurrency", "1", "--reason", "slow", "--by", "ada"
    )
    assert LimitOverride.objects.get().reason == "slow"
    (details,) = json.loads(command("limits", "--json"))
    assert (details["in_use"], details["waiting"], details["concurrency"]) == (2, 1, 1)
    assert details["declared"]["concurrency"] == 2
    command("limits", "bank", "--reset")
    assert StoredLimit.objects.get().override is None
    shown = json.loads(command("limits", "bank", "--json"))
    assert [key["waiting"] for key in shown["keys"]] == [1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--concurrency", "1"], "Name the limit"),
        (["bnk"], "Did you mean 'bank'"),
        (["bank", "--reset", "--rate", "1"], "either"),
        (["bank", "--rate", "0"], "rate cannot be 0"),
    ],
)
def test_the_command_says_what_is_wrong(line, arguments, problem):
    with pytest.raises(CommandError, match=problem):
        command("limits", *arguments)


def test_without_limits_the_command_says_so():
    assert command("limits").startswith("There are no limits.")


# --- the admin


@pytest.fixture
def user(client):
    ada = User.objects.create_user("ada", is_staff=True)
    client.force_login(ada)
    return ada


def permit(user, *names):
    user.user_permissions.add(*Permission.objects.filter(codename__in=names))


def test_the_admin_shows_limits_to_those_who_may_see_them(line, client, user):
    assert client.get(ADMIN).status_code == 403
    permit(user, "view_storedlimit")
    page = client.get(ADMIN).content.decode()
    # Where a row is a card, no head of a column says what its cells are.
    assert '<td data-label="Current" class="field-numbers">2 at once</td>' in page
    assert '<td data-label="Overridden" data-empty="" class="field-overridden">-</td>' in page
    page = client.get(f"{ADMIN}{StoredLimit.objects.get().pk}/change/").content.decode()
    assert "<th>key</th>" in page
    assert "concurrency_now" not in page
    response = client.post(
        f"{ADMIN}{StoredLimit.objects.get().pk}/change/", {"concurrency_now": "1"}
    )
    assert response.status_code == 403


def test_the_admin_changes_a_limit_for_now(line, client, user):
    permit(user, "override_storedlimit")
    url = f"{ADMIN}{StoredLimit.objects.get().pk}/change/"
    values = {"concurrency_now": "1", "rate_now": "5", "per_now": "10 s", "reason": "slow"}
    assert client.post(url, values).status_code == 302
    override = LimitOverride.objects.get()
    assert (override.concurrency, override.rate, override.per) == (1, 5, seconds(10))
    assert (override.by, override.reason) == ("ada", "slow")
    page = client.get(url).content.decode()
    assert "1 at once, 5 per 10 s" in page
    assert "reason: <bdi>slow</bdi>" in page
    assert re.search(r"created: <bdi><time [^>]*>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC</time>", page)
    listed = client.get(ADMIN).content.decode()
    assert '<td data-label="Overridden" class="field-overridden">yes</td>' in listed
    assert "Enter a duration such as" in client.post(url, {"per_now": "soon"}).content.decode()
    assert client.post(url, {"reset_now": "on"}).status_code == 302
    assert StoredLimit.objects.get().override is None


@pytest.mark.parametrize("values", [{"concurrency_now": "5"}, {"reset_now": "on"}])
def test_a_page_that_is_out_of_date_changes_no_limit(line, client, user, values):
    permit(user, "override_storedlimit")
    limit = StoredLimit.objects.get()
    url = f"{ADMIN}{limit.pk}/change/"
    basis = re.search(r'name="basis" value="(\d+)"', client.get(url).content.decode())[1]
    limit.change(concurrency=0, by="a colleague", reason="the bank is down")
    page = client.post(url, {**values, "basis": basis}, follow=True).content.decode()
    assert "has changed since you opened the page" in page
    assert "was changed successfully" not in page
    assert StoredLimit.objects.get().override.concurrency == 0
    basis = re.search(r'name="basis" value="(\d+)"', page)[1]
    client.post(url, {**values, "basis": basis})
    override = StoredLimit.objects.get().override
    assert (override and override.concurrency) == (5 if "concurrency_now" in values else None)


def test_the_admin_says_why_it_has_not_changed_a_limit(line, client, user):
    permit(user, "override_storedlimit")
    url = f"{ADMIN}{StoredLimit.objects.get().pk}/change/"
    for values, problem in [
        ({"per_now": "400 days", "rate_now": "1"}, "the period must be positive"),
        ({"reason": "no numbers"}, "No changes."),
    ]:
        page = client.post(url, values, follow=True).content.decode()
        assert problem in page
        assert "was changed successfully" not in page
    assert not LimitOverride.objects.exists()
    assert not LogEntry.objects.exists()
    assert "was changed successfully" in client.post(
        url, {"concurrency_now": "1"}, follow=True
    ).content.decode()  # fmt: skip
    assert LogEntry.objects.count() == 1


def test_a_list_of_many_limits_takes_as_many_queries_as_one(line, client, user):
    permit(user, "view_storedlimit")
    with CaptureQueriesContext(connection) as few:
        client.get(ADMIN)
    limit = StoredLimit.objects.get()
    for number in range(9):
        limit.pk, limit.name = None, f"bank{number}"
        limit.save(force_insert=True)
    with CaptureQueriesContext(connection) as many:
        assert client.get(ADMIN).content.decode().count("field-numbers") == 10
    assert len(many) <= len(few)


# --- data, checks, pruning


def test_a_job_has_limits_and_a_definition_names_them():
    @job("pay", limits=[bank()])
    def pay(): ...

    @job("thank")
    def thank(): ...

    holder = start_definition({"steps": {"pay": {"job": "pay"}}}).run
    other = start_definition({"steps": {"thank": {"job": "thank", "limits": ["bank"]}}}).run
    claim = come(holder, name="pay")
    assert claim is not None
    assert come(other, name="thank") is None
    go(claim)
    drain()
    assert fresh(other).status == "succeeded"
    with pytest.raises(InvalidDefinition, match="no limit is declared as 'bnk'"):
        start_definition({"steps": {"thank": {"job": "thank", "limits": ["bnk"]}}})
    with pytest.raises(InvalidDefinition, match="limits is"):
        start_definition({"steps": {"thank": {"job": "thank", "limits": [7]}}})


def test_a_job_whose_limits_are_none_is_refused():
    with pytest.raises(InvalidDefinition, match="limits is"):
        job("pay", limits=["bank"])(print)


def test_a_check_finds_one_name_with_two_numbers():
    billing(bank())

    class Other(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["token"]
            limits = [Limit("token", key="token", concurrency=1)]

        @step(limits=[bank(concurrency=7)])
        def charge(self): ...

    assert registry.limits()["bank"]
    messages = {message.id: message.msg for message in checks.check_sequences(None)}
    assert "'bank' is declared twice" in messages["sequences.E014"]
    assert "'token'" in messages["sequences.W019"]


def test_pruned_runs_and_lines_leave_nothing(line):
    for run, _claim in line:
        run.cancel()
    with clock() as moving:
        moving.move(timedelta(days=2))
        prune(older_than=timedelta(days=1))
    assert not SequenceRun.objects.exists()
    assert not Permit.objects.exists()
    assert not LimitKey.objects.exists()
    assert StoredLimit.objects.count() == 1
