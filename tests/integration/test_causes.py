"""The root cause first: what failed five children down is named, linked and counted once."""

import json
import re

import pytest
from django.contrib.admin import AdminSite
from django.db import connection
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext

from sequences import Abort, Sequence, signals, step, subsequence
from sequences.admin import SequenceRunAdmin
from sequences.inspection import snapshot
from sequences.inspection.diagnosis import summary
from sequences.models import SequenceRun, StepFailure
from sequences.testing import clock, drain
from tests.console import FAILURES, RUNS, command, content_of, url_of
from tests.engine import claim, perform

pytestmark = pytest.mark.django_db


class CardError(Exception):
    pass


@pytest.fixture(autouse=True)
def _clock():
    with clock():
        yield


def family(depth):
    """Each of so many runs starts the next one; the last packs three items, and one is broken."""

    class Leaf(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card"]

        @step(each="items", max_retries=0)
        def charge(self, item):
            if item == "broken":
                raise CardError("no funds on 4111-secret")

    sequence = Leaf
    for level in reversed(range(depth)):
        meta = type("Meta", (), {"app_label": "shop"})
        child = subsequence(sequence, data=lambda self: dict(self.data))
        body = {"__module__": __name__, "Meta": meta, "child": child}
        sequence = type(f"Level{level}", (Sequence,), body)
    return sequence


@pytest.fixture
def top():
    """The run above five others, which has failed as the last of them has."""
    data = {"items": ["fine", "broken", "fine"], "card": "4111-secret"}
    run = family(5).start(data).run
    drain()
    run.refresh_from_db()
    assert run.status == "failed"
    return run


def leaf():
    return SequenceRun.objects.get(sequence="shop.Leaf")


def test_the_sentence_names_the_deepest_cause_and_where_it_is(top):
    sentence = summary(snapshot.of(top))
    assert f"CardError: no funds on *** (item 1 of “charge” of run {leaf()})" in sentence
    assert "ChildrenFailed" not in sentence
    own = summary(snapshot.of(leaf()))
    assert "“charge” failed" in own
    assert "CardError: no funds on *** (item 1)" in own
    assert "ItemsFailed" not in own


def test_the_page_leads_to_the_cause_in_one_click(top, admin_client):
    page = content_of(admin_client, url_of(top))
    address = re.search(r'seq-cause" dir="auto">Cause: <a href="([^"]+)"', page)[1]
    cause = StepFailure.objects.get(error__endswith="CardError")
    assert address.endswith(f"{leaf().pk}/change/#attempt-{cause.pk}")
    below = admin_client.get(address).content.decode()
    assert f'id="attempt-{cause.pk}"' in below


def test_lists_name_it_too(top, admin_client):
    page = admin_client.get(RUNS).content.decode()
    assert "ChildrenFailed" not in page
    assert "ItemsFailed" not in page
    assert page.count("<b>CardError</b> no funds on ***") == 6
    assert command("list").count("CardError: no funds on ***") == 6


def test_json_has_the_failure_and_its_cause(top):
    run = json.loads(command("show", top.pk, "--json"))
    assert run["error"]["error"].endswith("ChildrenFailed")
    assert run["cause"]["run"] == str(leaf().pk)
    assert (run["cause"]["step"], run["cause"]["item"]) == ("charge", 1)
    assert run["cause"]["message"] == "no funds on ***"


@pytest.mark.usefixtures("top")
def test_the_failures_page_counts_it_once(admin_client):
    page = admin_client.get(FAILURES).content.decode()
    body = page[page.index('id="seq-groups"') :]
    assert re.findall(r'<b title="[^"]*">(\w+)</b>', body) == ["CardError"]


def test_children_that_were_cancelled_are_a_cause_of_their_own(admin_client):
    run = family(1).start({"items": []}).run
    perform(claim(run, "child"))
    leaf().cancel()
    drain()
    assert snapshot.of(SequenceRun.objects.get(pk=run.pk)).cause is None
    body = admin_client.get(FAILURES).content.decode()
    assert re.findall(r'<b title="[^"]*">(\w+)</b>', body) == ["ChildrenFailed"]


def test_who_may_not_see_the_child_is_not_told_its_error(top, rf: RequestFactory, admin_user):
    class TopAdmin(SequenceRunAdmin):
        def get_queryset(self, request):
            return super().get_queryset(request).filter(sequence="shop.Level0")

    request = rf.get("/")
    request.user = admin_user
    admin = TopAdmin(SequenceRun, AdminSite())
    assert snapshot.of(top).cause is not None
    assert admin._snapshot(request, top).cause is None


def test_nor_is_it_told_in_the_sentence_of_a_child_between_them(
    top, rf: RequestFactory, admin_user
):
    class UpperAdmin(SequenceRunAdmin):
        def get_queryset(self, request):
            return super().get_queryset(request).exclude(sequence="shop.Leaf")

    request = rf.get("/")
    request.user = admin_user
    site = AdminSite("admin")
    site.register(SequenceRun, UpperAdmin)
    page = site.get_model_admin(SequenceRun).change_view(request, str(top.pk))
    below = list(page.context_data["relatives"].tree.walk())
    assert [family.run.sequence for family in below] == [f"shop.Level{n}" for n in range(5)]
    for relative in below:
        assert "CardError" not in summary(relative.snapshot)


def test_signals_have_the_cause():
    received = []

    def receive(signal, run, **more):
        received.append((run.sequence, more["failure"].error, more["cause"].error))

    signals.run_failed.connect(receive)
    try:
        run = family(2).start({"items": ["broken"]}).run
        drain()
    finally:
        signals.run_failed.disconnect(receive)
    assert [sequence for sequence, *_ in received] == ["shop.Leaf", "shop.Level1", "shop.Level0"]
    assert {cause.rpartition(".")[-1] for *_, cause in received} == {"CardError"}
    assert received[-1][1].endswith("ChildrenFailed")
    assert run.failures.get().error.endswith("ChildrenFailed")


def test_a_run_without_a_cause_below_costs_no_query():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self):
            raise Abort("no funds")

    run = Plain.start().run
    drain()
    run.refresh_from_db()
    with CaptureQueriesContext(connection) as queries:
        assert snapshot.of(run).cause is None
    assert not [query for query in queries if "parent_id" in query["sql"].partition("WHERE")[2]]
