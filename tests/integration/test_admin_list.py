"""The lists of the admin: what they show and cost, how they page and search, and for whom."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin import AdminSite, site
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches, path, reverse

from sequences import Sequence, event, step
from sequences.admin import SequenceRunAdmin, StepRunAdmin, base, failures, run_list
from sequences.admin import step_runs as step_run_admin
from sequences.models import SequenceRun, StepFailure, StepRun, StoredPlan
from sequences.testing import clock
from sequences.transitions import plans
from tests.console import FAILURES, RUNS, STEPS, count_queries, user_with, words
from tests.engine import change, claim, fail, now, perform, row

pytestmark = pytest.mark.django_db


@pytest.fixture
def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "order <of things>"
            redact = ["card.*"]

        @step(max_retries=5)
        def charge_card(self): ...

        approval = event()

        @step
        def ship(self): ...

    return Order


@pytest.fixture
def letter():
    class Letter(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def write(self): ...

    return Letter


def page_of(client, address=RUNS, **query):
    response = client.get(address, query)
    assert response.status_code == 200, response.headers
    return response


def text_of(client, address=RUNS, **query):
    """What people read: without tags, in single spaces."""
    page = page_of(client, address, **query).content.decode()
    return words(page.split('id="content-main"')[1])


def ids(client, address=RUNS, **query):
    return [row.pk for row in page_of(client, address, **query).context["cl"].result_list]


def bulk(cls, count, **values):
    """So many runs, each a second older than the one before, with a step run; newest first."""
    plan_id = plans.store(cls._definition.plan, "default")
    moment, first = now(), cls._definition.plan.main[0].name
    made = [
        SequenceRun(
            plan_id=plan_id,
            sequence=cls._definition.label,
            data={"card": {"number": f"4111-{number}"}},
            created_at=moment - timedelta(seconds=number),
            updated_at=moment,
            **values,
        )
        for number in range(count)
    ]
    SequenceRun.objects.bulk_create(made)
    StepRun.objects.bulk_create(
        StepRun(run=run, step=first, ready_at=moment, queued_at=moment) for run in made
    )
    return made


def failing(run, step="charge_card", error="shop.Declined", message="no", **values):
    return StepFailure.objects.create(
        run=run,
        step=step,
        attempt=1,
        error=error,
        message=message,
        **{"failed_at": now(), **values},
    )


def queries_of(client, address=RUNS, **query):
    return count_queries(client, address, query)


# --- what is shown


def test_a_row_says_where_its_run_is_and_what_went_wrong(admin_client, order):
    run = order.start({}, key="order-7").run
    fail(claim(run, "charge_card"), final=False, error=ValueError("too <b>poor</b>\nsecond line"))
    change(run, "charge_card", due_at=now() + timedelta(minutes=3, seconds=30))
    page = page_of(admin_client).content.decode()
    assert '<span class="seq-state seq-running">running</span>' in page
    assert 'title="shop.Order">Order &lt;of things&gt;</span>' in page
    assert "ValueError</b> too &lt;b&gt;poor&lt;/b&gt;</span>" in page
    assert "second line" not in page
    assert 'aria-label="0 of 3 steps"' in page
    assert f'<tr id="run-{run.pk}">' in page, "what swaps rows knows which is which"
    text = text_of(admin_client)
    assert "charge card attempt 2 in 3 min" in text
    assert "order-7" in text
    with clock() as moving:
        moving.move(timedelta(minutes=10))
        assert re.search(r"10 min( \d+ s)? ago", text_of(admin_client))


def test_each_state_of_a_step_is_told_in_words(admin_client, order):
    run = order.start({}).run
    assert re.search(r"charge card queued for [\d.]+ m?s\b", text_of(admin_client))
    held = claim(run, "charge_card")
    assert re.search(r"charge card running for [\d.]+ m?s\b", text_of(admin_client))
    perform(held)
    perform(claim(run, "approval"))
    assert "approval waiting for the event" in text_of(admin_client)
    run.deliver("approval", {})
    perform(claim(run, "approval"))
    change(run, "ship", attempts=2)
    fail(claim(run, "ship"), error=ValueError())
    text = text_of(admin_client)
    assert "ship failed after 3 attempts" in text
    assert "2 of 3" in text


def test_a_finished_run_says_how_long_it_took(admin_client, letter):
    run = letter.start({}).run
    perform(claim(run, "write"))
    SequenceRun.objects.update(finished_at=run.created_at + timedelta(hours=2))
    text = text_of(admin_client)
    assert "took 2 h" in text
    assert "1 of 1" in text


def test_errors_are_shown_without_secrets_and_groups_to_those_who_may_read_failures(
    client, admin_client, order
):
    run = order.start({"card": {"number": "4111-secret"}}).run
    failing(run, message="card 4111-secret declined")
    page = page_of(admin_client).content.decode()
    assert "card *** declined" in page
    assert "4111" not in page
    groups = page_of(admin_client, FAILURES).content.decode()
    assert "card *** declined" in groups
    assert "4111" not in groups
    client.force_login(reader := user_with("view_sequencerun"))
    assert FAILURES not in page_of(client).content.decode()
    assert client.get(FAILURES).status_code == 403
    reader.user_permissions.add(Permission.objects.get(codename="view_stepfailure"))
    assert client.get(FAILURES).status_code == 200
    reader.user_permissions.remove(Permission.objects.get(codename="view_sequencerun"))
    assert client.get(FAILURES).status_code == 403


def test_the_secrets_of_a_run_without_a_class_are_not_told_by_its_error(admin_client, letter):
    run = letter.start({"name": "Joel Smith"}).run
    failing(run, message="Joel Smith is unknown")
    SequenceRun.objects.update(sequence="shop.Removed")
    assert "Joel Smith" not in page_of(admin_client).content.decode()


# --- what it costs


@pytest.mark.parametrize("address", [RUNS, STEPS])
def test_a_page_takes_as_many_queries_for_thirty_rows_as_for_one(admin_client, order, address):
    counts, rows = [], []
    for more in (1, 29):
        for run in bulk(order, more, status="failed"):
            failing(run)
        with CaptureQueriesContext(connection) as queries:
            rows.append(len(ids(admin_client, address)))
        counts.append(len(queries))
    assert rows == [1, 30]
    assert len(set(counts)) == 1, counts


def test_the_plans_of_a_page_are_one_query(admin_client, letter, order):
    bulk(letter, 1)
    one = queries_of(admin_client)
    bulk(order, 1)
    for number in range(5):
        stored = StoredPlan.objects.filter(sequence="shop.Order").first()
        shape = {**stored.graph, "note": number}
        other = StoredPlan.objects.create(
            sequence="shop.Order",
            fingerprint=str(number),
            graph=shape,
            created_at=stored.created_at,
        )
        (run,) = bulk(order, 1)
        SequenceRun.objects.filter(pk=run.pk).update(plan=other)
    assert queries_of(admin_client) == one


def test_failures_take_as_many_queries_for_many_groups_as_for_one(admin_client, order):
    (run,) = bulk(order, 1)
    failing(run)
    one = queries_of(admin_client, FAILURES)
    for number, other in enumerate(bulk(order, 20)):
        failing(other, error=f"shop.Error{number}")
    assert queries_of(admin_client, FAILURES) == one


# --- tabs and filters


def test_tabs_count_by_status_and_keep_the_other_filters(admin_client, order, letter):
    bulk(letter, 2, status="failed")
    bulk(order, 1, status="paused")
    bulk(order, 3, status="running")
    tabs = {tab.name: tab for tab in page_of(admin_client).context["cl"].tabs}
    assert {name: tab.count for name, tab in tabs.items()} == {
        "": 6,
        "unfinished": 4,
        "running": 3,
        "paused": 1,
        "undoing": 0,
        "succeeded": 0,
        "failed": 2,
        "cancelled": 0,
    }
    response = page_of(admin_client, sequence="shop.Order", status="unfinished")
    tabs = {tab.name: tab for tab in response.context["cl"].tabs}
    assert (tabs[""].count, tabs["failed"].count, tabs["unfinished"].count) == (4, 0, 4)
    assert tabs["paused"].url == "?sequence=shop.Order&status=paused"
    assert tabs[""].url == "?sequence=shop.Order"
    page = response.content.decode()
    assert page.count('aria-current="page"') >= 1
    assert re.search(
        r'href="\?sequence=shop.Order&amp;status=unfinished" aria-current="page"', page
    )
    assert len(ids(admin_client, sequence="shop.Order", status="paused")) == 1
    assert "status=unfinished" in page.split('id="changelist-filter"')[1], "filters keep the tab"


def test_a_count_ends_where_nobody_cares(admin_client, letter, monkeypatch):
    monkeypatch.setattr(base, "COUNTED", 2)
    bulk(letter, 3, status="failed")
    bulk(letter, 1, status="running")
    counts = {tab.name: str(tab.count) for tab in page_of(admin_client).context["cl"].tabs}
    assert counts["failed"] == "2+"
    assert counts["running"] == "1"
    assert counts[""] == "2+"


def test_runs_are_found_by_the_step_that_they_are_at_or_failed_at(admin_client, order, letter):
    letter.start({})
    begun, failed, on = (order.start({}).run for _ in range(3))
    fail(claim(failed, "charge_card"))
    perform(claim(on, "charge_card"))
    assert set(ids(admin_client, step="charge_card")) == {begun.pk, failed.pk}
    assert ids(admin_client, step="approval") == [on.pk]
    assert ids(admin_client, step="charge_card", status="failed") == [failed.pk]
    assert "By current step" not in text_of(admin_client)
    text = text_of(admin_client, sequence="shop.Order")
    assert "By current step" in text
    assert "All charge card approval ship" in text
    SequenceRun.objects.filter(pk=failed.pk).update(status="cancelled")
    assert ids(admin_client, step="charge_card") == [begun.pk]


def test_runs_are_found_by_the_time_since_their_start(admin_client, letter):
    with clock() as moving:
        old = letter.start({}).run
        moving.move(timedelta(hours=2))
        new = letter.start({}).run
        assert ids(admin_client, created="hour") == [new.pk]
        assert ids(admin_client, created="day") == [new.pk, old.pk]
        assert ids(admin_client, created="nonsense") == [new.pk, old.pk]


def test_counts_beside_filters_are_not_offered(admin_client, letter):
    bulk(letter, 1)
    assert "_facets" not in page_of(admin_client).content.decode()
    assert queries_of(admin_client, _facets="True") == queries_of(admin_client)


# --- pages


@pytest.fixture
def pages_of_three(monkeypatch):
    monkeypatch.setattr(SequenceRunAdmin, "list_per_page", 3)
    monkeypatch.setattr(StepRunAdmin, "list_per_page", 3)


def list_at(user, query):
    """The list behind an address, as its page has it; the page itself is not made."""
    request = RequestFactory().get(f"{RUNS}{query}")
    request.user, request.session = user, {}
    response = site.get_model_admin(SequenceRun).changelist_view(request)
    assert response.status_code == 200
    return response.context_data["cl"]


def walk(user, link, query=""):
    """The rows of one page after the other, by its own links."""
    while query is not None:
        changelist = list_at(user, query)
        yield [row.pk for row in changelist.result_list]
        query = getattr(changelist, link) or None


@pytest.mark.usefixtures("pages_of_three")
@pytest.mark.parametrize("count", [3, 4, 6, 8])
@pytest.mark.parametrize("query", ["?", "?o=4"])
def test_pages_follow_each_other_without_a_gap(admin_user, letter, count, query):
    made = bulk(letter, count)
    # Runs of one batch have one time.
    SequenceRun.objects.filter(pk__in=[run.pk for run in made[1:6]]).update(
        created_at=made[1].created_at
    )
    order_by = ("created_at", "id") if "o=" in query else ("-created_at", "-id")
    expected = list(SequenceRun.objects.order_by(*order_by).values_list("pk", flat=True))
    on, back = ("newer_url", "older_url") if "o=" in query else ("older_url", "newer_url")
    forward = list(walk(admin_user, on, query))
    assert [len(page) for page in forward[:-1]] == [3] * (len(forward) - 1)
    assert [pk for page in forward for pk in page] == expected
    last = list_at(admin_user, query)
    while following := getattr(last, on):
        last = list_at(admin_user, following)
    if back_url := getattr(last, back):
        backward = list(walk(admin_user, back, back_url))
        assert backward[-1] == expected[:3], "the first page is a whole one"
        assert last.first_url


@pytest.mark.usefixtures("pages_of_three")
def test_a_page_keeps_filters_and_tab_and_a_filter_begins_anew(admin_client, letter, order):
    bulk(letter, 7, status="failed")
    bulk(order, 7)
    response = page_of(admin_client, sequence="shop.Letter", status="failed")
    older = response.context["cl"].older_url
    assert "sequence=shop.Letter" in older
    assert "status=failed" in older
    response = admin_client.get(f"{RUNS}{older}")
    assert {run.sequence for run in response.context["cl"].result_list} == {"shop.Letter"}
    page = response.content.decode()
    links = re.findall(r'href="(\?[^"]*)"', page)
    assert links
    assert not [
        link
        for link in links
        if "before=" in link
        and "rel" not in link
        and link.replace("&amp;", "&") != response.context["cl"].older_url
    ]
    assert 'name="before"' not in page, "a search begins anew"


@pytest.mark.parametrize("place", ["x", "1", "_", "9" * 40 + "_0", "1_zz", "1_2_3"])
def test_a_place_that_is_none_leads_to_the_list(admin_client, place):
    response = admin_client.get(RUNS, {"before": place})
    assert response.status_code == 302
    assert response["Location"] == f"{RUNS}?e=1"


@pytest.mark.usefixtures("pages_of_three")
def test_step_runs_page_by_their_ids(admin_client, letter):
    bulk(letter, 5)
    everything = list(StepRun.objects.order_by("-pk").values_list("pk", flat=True))
    response = page_of(admin_client, STEPS)
    assert ids(admin_client, STEPS) == everything[:3]
    response = admin_client.get(f"{STEPS}{response.context['cl'].older_url}")
    assert [row.pk for row in response.context["cl"].result_list] == everything[3:]
    assert response.context["cl"].older_url == ""


# --- search


def test_the_beginning_of_an_id_finds_its_runs(admin_client, letter):
    one, other = (letter.start({}).run for _ in range(2))
    SequenceRun.objects.filter(pk=other.pk).update(key="deadbeef")
    for length in (13, 18, 23, 30, 35):
        assert one.pk in ids(admin_client, q=str(one.pk)[:length])
    assert ids(admin_client, q=str(one.pk)[:35]) == [one.pk]
    assert ids(admin_client, q=one.pk.hex[:31].upper()) == [one.pk]
    assert ids(admin_client, q="deadbeef") == [other.pk], "no id begins so"
    assert ids(admin_client, STEPS, q=str(one.pk)[:35]) == [StepRun.objects.get(run=one).pk]


def test_a_whole_key_is_all_that_is_looked_for_unless_one_asks_for_more(admin_client, letter):
    named = letter.start({}, key="7").run
    beside = letter.start({"n": 7}, key="70").run
    response = page_of(admin_client, q="7")
    assert [run.pk for run in response.context["cl"].result_list] == [named.pk]
    more = response.context["cl"].everywhere_url
    assert more.replace("&", "&amp;") in response.content.decode()
    found = admin_client.get(f"{RUNS}{more}").context["cl"].result_list
    assert {run.pk for run in found} == {named.pk, beside.pk}


def test_a_search_looks_through_the_newest_and_goes_on_from_there(
    admin_client, letter, monkeypatch
):
    monkeypatch.setattr(run_list, "SEARCHED", 4)
    made = bulk(letter, 10)
    for index in (1, 5, 9):
        SequenceRun.objects.filter(pk=made[index].pk).update(data={"name": "needle"})
    response = page_of(admin_client, q="needle")
    found = []
    for _ in range(3):
        changelist = response.context["cl"]
        found.append([run.pk for run in changelist.result_list])
        if changelist.older_url:
            assert "Only the newest runs were searched" in response.content.decode()
            response = admin_client.get(f"{RUNS}{changelist.older_url}")
    assert found == [[made[1].pk], [made[5].pk], [made[9].pk]]
    assert changelist.older_url == ""


def test_a_filter_of_step_runs_looks_through_the_newest_and_those_of_a_run_are_all_found(
    admin_client, letter, monkeypatch
):
    monkeypatch.setattr(step_run_admin, "FILTERED", 2)
    bulk(letter, 5)
    oldest = StepRun.objects.order_by("pk").first()
    StepRun.objects.filter(pk=oldest.pk).update(status="failed")
    response = page_of(admin_client, STEPS, status__exact="failed")
    assert not response.context["cl"].result_list
    assert "The filters cover only the newest step runs" in response.content.decode()
    for _ in range(2):
        response = admin_client.get(f"{STEPS}{response.context['cl'].older_url}")
    assert [row.pk for row in response.context["cl"].result_list] == [oldest.pk]
    query = {"run__id__exact": str(oldest.run_id), "status__exact": "failed"}
    assert ids(admin_client, STEPS, **query) == [oldest.pk]


# --- failures


def test_failures_are_grouped_and_each_number_leads_to_its_runs(admin_client, order, letter):
    moment = now()
    first, second, other = order.start({}).run, order.start({}).run, letter.start({}).run
    failing(first, message="old", failed_at=moment - timedelta(hours=30))
    failing(first, message="newer", failed_at=moment - timedelta(minutes=5))
    failing(second, message="newest <b>one</b>\nmore", failed_at=moment - timedelta(minutes=4))
    failing(first, error="shop.Lost", failed_at=moment - timedelta(days=3))
    failing(other, step="write", failed_at=moment - timedelta(days=8))
    table = page_of(admin_client, FAILURES).context["table"]
    assert [(one.sequence, one.step, one.error, one.counts) for one in table.groups] == [
        ("shop.Order", "charge_card", "shop.Declined", {"hour": 2, "day": 2, "week": 3}),
        ("shop.Order", "charge_card", "shop.Lost", {"hour": 0, "day": 0, "week": 1}),
    ]
    page = page_of(admin_client, FAILURES).content.decode()
    assert "newest &lt;b&gt;one&lt;/b&gt;" in page
    links = [
        link.replace("&amp;", "&")
        for link in re.findall(rf'href="({RUNS}\?[^"]*since[^"]*)"', page)
    ]
    found = [{run.pk for run in admin_client.get(link).context["cl"].result_list} for link in links]
    assert found == [{first.pk, second.pk}] * 3 + [{first.pk}]
    filtered = text_of(admin_client, error="shop.Declined", since="hour", failed_step="charge_card")
    assert "Declined at charge card, last hour" in filtered


def test_no_more_failures_are_counted_than_is_bearable_and_the_page_says_so(
    admin_client, order, monkeypatch
):
    run = order.start({}).run
    for minutes in range(4):
        failing(run, failed_at=now() - timedelta(minutes=minutes))
    assert page_of(admin_client, FAILURES).context["table"].since is None
    monkeypatch.setattr(failures, "COUNTED", 2)
    table = page_of(admin_client, FAILURES).context["table"]
    assert [group.counts["week"] for group in table.groups] == [2]
    assert (
        "attempts failed in the last seven days; only those since"
        in page_of(admin_client, FAILURES).content.decode()
    )
    failing(run, error="shop.Other")
    monkeypatch.setattr(failures, "GROUPS", 1)
    assert page_of(admin_client, FAILURES).context["table"].more


# --- live


def test_the_list_says_when_to_look_again_and_which_parts_may_have_changed(admin_client, letter):
    page = page_of(admin_client, sequence="shop.Letter").content.decode()
    assert f'data-seq-live="{run_list.LIVE}" data-seq-url="{RUNS}?sequence=shop.Letter"' in page
    regions = re.findall(r'id="(seq-[a-z]+)"[^>]* data-seq-region', page)
    assert regions == ["seq-health", "seq-tabs", "seq-rows", "seq-pager"]
    run = letter.start({"name": "x"}).run
    perform(claim(run, "write"))
    searched = page_of(admin_client, q=str(run.pk)).content.decode()
    assert 'data-seq-live="0"' in searched, "what was found has ended"


def test_a_look_behind_the_back_leaves_messages_for_a_page_that_is_seen(admin_client):
    # The action without a selection leaves one.
    admin_client.post(RUNS, {"action": "", "index": "0"})
    header = {"X-Requested-With": "sequences-live"}
    assert "messagelist" not in admin_client.get(RUNS, headers=header).content.decode()


# --- a project's own


class SupportRunAdmin(SequenceRunAdmin):
    """DisplayOptions letters only."""

    def get_queryset(self, request):
        return super().get_queryset(request).filter(sequence="shop.Letter")


support = AdminSite("support")
support.register(SequenceRun, SupportRunAdmin)
support.register(StepRun, StepRunAdmin)
urlpatterns = [path("support/", support.urls)]


@pytest.fixture
def support_urls():
    with override_settings(ROOT_URLCONF=__name__):
        clear_url_caches()
        yield {
            name: reverse(f"support:job_sequences_{name}")
            for name in (
                "sequencerun_changelist",
                "sequencerun_failure_groups",
                "steprun_changelist",
            )
        }
    clear_url_caches()


def test_a_subclass_decides_what_is_seen_everywhere(admin_client, support_urls, order, letter):
    hidden, shown = order.start({}, key="hidden-key").run, letter.start({}).run
    for run, name in ((hidden, "charge_card"), (shown, "write")):
        failing(run, step=name, error=f"shop.{name}")
        change(run, name, queued_at=now() - timedelta(minutes=2))
    runs, groups, step_runs = support_urls.values()
    assert ids(admin_client, runs) == [shown.pk]
    assert ids(admin_client, step_runs) == [row(shown, "write").pk]
    assert ids(admin_client, runs, q="hidden-key") == []
    assert ids(admin_client, step_runs, q="hidden-key") == []
    for address in support_urls.values():
        page = page_of(admin_client, address).content.decode()
        assert "shop.Order" not in page
        assert "Order &lt;of" not in page
        assert "charge" not in page
        assert not re.findall(r'(?:href|action|data-seq-url)="/admin/', page)
    response = page_of(admin_client, runs)
    assert response.context["health"].queued == 1
    assert {tab.name: tab.count for tab in response.context["cl"].tabs}[""] == 1
    assert "charge" not in page_of(admin_client, runs, sequence="shop.Order").content.decode()
    assert page_of(admin_client, groups).context["table"].groups[0].list_url == runs
    assert [group.error for group in page_of(admin_client, groups).context["table"].groups] == [
        "shop.write"
    ]
    link = re.search(rf'href="({runs}\?[^"]*)"', page_of(admin_client, groups).content.decode())
    assert link


def test_an_error_that_a_run_has_got_over_is_no_news(admin_client, order):
    run = order.start({}).run
    fail(claim(run, "charge_card"), final=False, error=ValueError("insufficient funds"))
    assert "insufficient funds" in text_of(admin_client)
    SequenceRun.objects.get().cancel()
    assert "insufficient funds" not in text_of(admin_client)


def test_a_run_of_a_newer_release_is_listed_without_its_steps(admin_client, order, letter):
    order.start({}, key="order-7")
    letter.start({}, key="letter-7")
    stored = StoredPlan.objects.get(sequence="shop.Order")
    StoredPlan.objects.filter(pk=stored.pk).update(graph={**stored.graph, "format": 99})
    plans.forget()
    text = text_of(admin_client)
    assert "order-7" in text
    assert "0 of 1 write" in text, "the others are as ever"
    assert ids(admin_client, sequence="shop.Order")


def test_who_may_not_see_failed_attempts_does_not_find_runs_by_them(client, order):
    run = order.start({}).run
    fail(claim(run, "charge_card"))
    error = StepFailure.objects.get().error
    user = user_with("view_sequencerun")
    client.force_login(user)
    for names, found in [((), []), (("view_stepfailure",), [run.pk])]:
        user.user_permissions.add(*Permission.objects.filter(codename__in=names))
        for query in ({"error": error}, {"failed_step": "charge_card"}):
            rows = page_of(client, RUNS, **query).context["cl"].result_list
            assert [row.pk for row in rows] == found


@override_settings(USE_THOUSAND_SEPARATOR=True)
def test_a_number_for_the_script_has_no_separators(admin_client, letter):
    letter.start({})
    for address in (RUNS, FAILURES):
        page = page_of(admin_client, address).content.decode()
        assert re.search(r'data-seq-live="\d{4,5}"', page)


@override_settings(USE_THOUSAND_SEPARATOR=True)
@pytest.mark.parametrize(("most", "shown"), [(1_000, "1,000+"), (2_000, "1,001")])
def test_a_number_for_people_has_its_separators_once(
    admin_client, letter, monkeypatch, most, shown
):
    monkeypatch.setattr(base, "COUNTED", most)
    run = letter.start({}).run
    SequenceRun.objects.bulk_create(
        SequenceRun(sequence=run.sequence, plan_id=run.plan_id, created_at=now(), updated_at=now())
        for _ in range(1_000)
    )
    page = page_of(admin_client, RUNS).content.decode()
    assert f'<span class="seq-count">{shown}</span>' in page
    assert f'<span class="seq-quiet">{shown} ' in page


def test_a_list_checks_each_of_several_values(admin_client, letter):
    letter.start({})
    answer = admin_client.get(STEPS, {"status__exact": ["a\0b", "running"]})
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{STEPS}?e=1")


@pytest.mark.parametrize("name", ["error", "failed_step", "sequence", "step", "before", "key"])
def test_a_filter_that_no_database_takes_leads_to_the_list(admin_client, name):
    answer = admin_client.get(RUNS, {name: "a\0b", "sequence": "shop.Letter\0"})
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{RUNS}?e=1")
