"""Steps that keep failing: found in the admin, on the command line and in health."""

import json
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from sequences import Sequence, step
from sequences.inspection import health, struggling
from sequences.models import SequenceRun, StepRun
from tests.console import RUNS, command, url_of
from tests.engine import claim, fail, fresh, perform, row, take

pytestmark = pytest.mark.django_db


def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge_card(self): ...

        @step(each=lambda self: range(2))
        def ship(self, item): ...

    return Order


def fail_often(run, name, count, item=-1):
    """So many failed attempts in a row, each of which is to be followed by another."""
    for _ in range(count):
        own = StepRun.objects.get(run=run.pk, step=name, item=item)
        assert fail(take(own.pk, own.attempts), final=False)


@pytest.fixture
def runs():
    """One that is struggling, one that has failed not quite as often, and one that has not."""
    cls = order()
    keys = ("struggling", "failing", "well")
    runs = {key: cls.start({}, key=key).run for key in keys}
    fail_often(runs["struggling"], "charge_card", 5)
    fail_often(runs["failing"], "charge_card", 4)
    return runs


def keys_in(page):
    return set(re.findall(r'class="seq-key"[^>]*>([\w-]+)<', page))


BADGE = 'title="Keeps failing: {}">struggling</span>'


def test_the_list_has_a_badge_and_a_filter(runs, admin_client):
    page = admin_client.get(RUNS).content.decode()
    assert keys_in(page) == set(runs)
    assert page.count(BADGE.format("charge card")) == 1
    assert 'href="?struggling=yes"' in page
    narrowed = admin_client.get(RUNS, {"struggling": "yes"}).content.decode()
    assert keys_in(narrowed) == {"struggling"}
    assert keys_in(admin_client.get(RUNS, {"struggling": "no"}).content.decode()) == set(runs)


def test_it_is_over_when_the_step_has_succeeded(runs, admin_client):
    run = runs["struggling"]
    own = row(run, "charge_card")
    perform(take(own.pk, own.attempts))
    page = admin_client.get(RUNS, {"struggling": "yes"}).content.decode()
    assert keys_in(page) == set()
    assert struggling.steps_of([fresh(run)]) == {}


def test_its_page_has_the_badge(runs, admin_client):
    for key, count in {"struggling": 1, "failing": 0}.items():
        address = url_of(runs[key])
        page = admin_client.get(address).content.decode()
        assert page.count(BADGE.format("charge card")) == count, key


def test_an_item_struggles_too(admin_client):
    run = order().start().run
    perform(claim(run, "charge_card"))
    perform(claim(run, "ship"))
    fail_often(run, "ship", 5, item=0)
    fail_often(run, "ship", 6, item=1)
    assert struggling.steps_of([fresh(run)]) == {run.pk: ("ship",)}
    assert BADGE.format("ship") in admin_client.get(RUNS).content.decode()
    assert struggling.count("default") == 2


def test_a_run_that_has_ended_does_not_struggle(runs):
    run = runs["struggling"]
    run.cancel()
    assert struggling.steps_of([run]) == {}
    assert struggling.count("default") == 0


def test_the_command_lists_it(runs):
    listed = command("list", "--struggling")
    assert "charge_card (struggling)" in listed
    assert len(listed.splitlines()) == 2
    assert command("list").count("(struggling)") == 1
    by_key = {run["key"]: run["struggling"] for run in json.loads(command("list", "--json"))}
    assert by_key == {"struggling": ["charge_card"], "failing": [], "well": []}
    shown = json.loads(command("show", "shop.Order:struggling", "--json"))
    assert shown["struggling"] == ["charge_card"]


def test_the_command_operates_on_all_of_them(runs):
    assert command("pause", "--struggling", "--all") == "Paused shop.Order struggling.\n"
    paused = SequenceRun.objects.filter(status="paused")
    assert list(paused.values_list("key", flat=True)) == ["struggling"]


def test_health_counts_them(runs):
    fail_often(runs["failing"], "charge_card", 1)
    (sign,) = [sign for sign in health.read().signs if sign.name == "struggling"]
    assert (sign.says, sign.level) == ("2 struggling steps", health.Level.WARNING)
    assert "at least 5 times in a row" in sign.advice
    own = SequenceRun.objects.filter(key="well")
    assert "struggling" not in {sign.name for sign in health.read(runs=own).signs}
    own = SequenceRun.objects.filter(key="failing")
    assert health.read(runs=own).struggling == 1


def test_health_does_not_count_for_ever(runs, monkeypatch):
    fail_often(runs["failing"], "charge_card", 1)
    monkeypatch.setattr(struggling, "MAX_COUNTED", 1)
    (sign,) = [sign for sign in health.read().signs if sign.name == "struggling"]
    assert sign.says == "1+ struggling step"


def test_nothing_struggles_where_nobody_asks(runs, admin_client, settings):
    settings.SEQUENCES = {"STRUGGLING_AFTER": None}
    page = admin_client.get(RUNS).content.decode()
    assert "struggling=yes" not in page
    assert "Keeps failing" not in page
    with CaptureQueriesContext(connection) as queries:
        assert struggling.count("default") == 0
        assert struggling.steps_of(list(runs.values())) == {}
    assert not queries.captured_queries
    assert command("list", "--struggling") == "No matching runs.\n"


def test_it_is_one_query_for_a_page_of_runs(runs):
    with CaptureQueriesContext(connection) as queries:
        struggling.steps_of(list(runs.values()))
    assert len(queries) == 1


def test_an_index_has_those_that_have_failed_and_no_others():
    with connection.cursor() as cursor:
        indexes = connection.introspection.get_constraints(cursor, StepRun._meta.db_table)
        own = indexes["job_sequences_step_run_attempts"]
        assert (own["columns"], own["index"]) == (["attempts"], True)
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT indexdef FROM pg_indexes WHERE indexname = %s",
                ["job_sequences_step_run_attempts"],
            )
            assert cursor.fetchone()[0].endswith("WHERE (attempts > 0)")


@pytest.mark.only_on("postgresql")
def test_the_count_reads_that_index(runs):
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    plan = struggling.step_runs("default").order_by().explain()
    assert "job_sequences_step_run_attempts" in plan
