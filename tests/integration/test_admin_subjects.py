"""The admin: the runs about an object on its page, the object on the page of a run, and who may."""

import re

import pytest
from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.checks import InlineModelAdminChecks
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches, path, reverse
from django.utils.html import escape

from sequences import Sequence, event, step
from sequences.admin import RunsInline, SequenceRunAdmin
from sequences.models import SequenceRun
from sequences.testing import drain
from testproject.orders.models import Order
from tests.console import RUNS, content_of, log_in, words
from tests.console import url_of as run_url
from tests.engine import claim, fail, fresh
from tests.models import Country, Parcel

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("caught")]

NAME = "Joan <b>"


@pytest.fixture
def order():
    return Order.objects.create(name=NAME, email="joan@example.com")


@pytest.fixture
def delivery():
    class Delivery(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=0)
        def pack(self): ...

        approval = event(choices={"Approve": True})

    return Delivery


def panel_of(client, order):
    """The part of the order's page that is ours; nothing without it."""
    page = content_of(client, url_of(order))
    found = re.search(r'<div class="inline-group seq-inline".*?</fieldset>', page, re.DOTALL)
    return found[0] if found else ""


def url_of(order):
    return reverse("admin:orders_order_change", args=[order.pk])


# On the object's page


def test_the_page_of_an_object_has_its_runs_with_their_states_and_actions(
    admin_client, order, delivery
):
    run = delivery.start(subject=order, key="a").run
    failed = delivery.start(subject=order).run
    other = delivery.start(subject=Order.objects.create(name="x", email="x@example.com")).run
    fail(claim(failed, "pack"), error=ZeroDivisionError("no paper"))
    panel = panel_of(admin_client, order)
    text = words(panel)
    assert "“pack” failed" in text
    assert "ZeroDivisionError: no paper" in text
    assert 'class="seq-state seq-failed"' in panel
    assert 'class="seq-state seq-running"' in panel
    assert f'href="{run_url(run)}"' in panel
    assert f'href="{run_url(failed, "action", "retry")}"' in panel
    assert f'href="{run_url(run, "action", "cancel")}"' in panel
    assert str(other.pk) not in panel
    assert panel.index(str(failed.pk)) < panel.index(str(run.pk)), "the newest first"
    for url in (run_url(failed, "action", "retry"), run_url(run, "action", "cancel")):
        assert "confirm" in content_of(admin_client, url)


def test_an_approval_is_a_click_away(admin_client, order, delivery):
    run = delivery.start(subject=order).run
    drain()
    panel = panel_of(admin_client, order)
    url = f"{run_url(run, 'action', 'deliver')}?step=approval&amp;choice=Approve"
    assert f'href="{url}"' in panel
    assert panel.index(url) < panel.index("action/cancel"), "what waits for a person comes first"


def test_an_object_without_runs_says_so_and_the_page_to_add_one_has_no_panel(admin_client, order):
    assert "No runs yet." in panel_of(admin_client, order)
    assert "seq-inline" not in content_of(admin_client, reverse("admin:orders_order_add"))


def form_of(order):
    """What a browser sends of the order's page; without what is ours."""
    return {
        "name": "Ada",
        "email": "ada@example.com",
        "items-TOTAL_FORMS": 0,
        "items-INITIAL_FORMS": 0,
        "payment-TOTAL_FORMS": 0,
        "payment-INITIAL_FORMS": 0,
    }


def test_the_form_of_the_object_is_saved_as_ever(admin_client, order, delivery):
    delivery.start(subject=order)
    response = admin_client.post(url_of(order), form_of(order))
    assert response.status_code == 302
    order.refresh_from_db()
    assert order.name == "Ada"
    assert SequenceRun.objects.about(order).count() == 1
    response = admin_client.post(url_of(order), form_of(order) | {"email": "x"})
    assert response.status_code == 200, "shown again, with its errors"
    assert "seq-inline-runs" in response.content.decode()
    response = admin_client.post(reverse("admin:orders_order_add"), form_of(order))
    assert response.status_code == 302


def test_nobody_sees_runs_without_the_permission(client, order, delivery):
    delivery.start(subject=order)
    assert panel_of(log_in(client, "view_order", "change_order"), order) == ""


def test_whoever_may_view_runs_sees_them_without_actions(client, order, delivery):
    run = delivery.start(subject=order).run
    panel = panel_of(log_in(client, "view_order", "view_sequencerun"), order)
    assert f'href="{run_url(run)}"' in panel
    assert "action/" not in panel


def test_the_actions_are_those_of_the_permissions(client, order, delivery):
    delivery.start(subject=order)
    permissions = ("view_order", "view_sequencerun", "pause_sequencerun")
    panel = panel_of(log_in(client, *permissions), order)
    assert re.findall(r"action/(\w+)", panel) == ["pause"]


def test_many_runs_cost_as_many_queries_as_one(admin_client, order, delivery):
    def queries():
        with CaptureQueriesContext(connection) as caught:
            panel_of(admin_client, order)
        return len(caught)

    delivery.start(subject=order)
    panel_of(admin_client, order)
    one_run = queries()
    delivery.start_many([({}, {"subject": order})] * 6)
    assert queries() == one_run


def test_of_many_runs_the_newest_are_shown_and_a_link_to_all(admin_client, order, delivery):
    delivery.start_many([({}, {"subject": order})] * (RunsInline.max_runs + 2))
    panel = panel_of(admin_client, order)
    assert panel.count('<li id="run-') == RunsInline.max_runs
    href = re.search(r'href="([^"]*\?subject=[^"]*)"', panel)[1]
    assert content_of(admin_client, href).count('<tr id="run-') == RunsInline.max_runs + 2


def test_what_is_shown_is_escaped(admin_client, order):
    class Delivery(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "<script>"

        @step(max_retries=0)
        def pack(self): ...

    run = Delivery.start(subject=order, key="<i>").run
    fail(claim(run, "pack"), error=ZeroDivisionError("<b>"))
    panel = panel_of(admin_client, order)
    assert "<script>" not in panel
    assert "<i>" not in panel
    assert "<b>" not in panel


class Narrow(SequenceRunAdmin):
    def get_queryset(self, request):
        return super().get_queryset(request).filter(key="mine")


def test_a_project_that_shows_some_runs_only_shows_no_others_here(rf, admin_user, order, delivery):
    mine = delivery.start(subject=order, key="mine").run
    delivery.start(subject=order, key="theirs")
    site = AdminSite()
    site.register(SequenceRun, Narrow)
    request = rf.get("/")
    request.user = admin_user
    with at(site):
        panel = RunsInline(Order, site).get_formset(request, order).panel
        assert [line.run for line in panel.lines] == [mine]


def test_a_site_without_pages_of_runs_shows_them_without_links(rf, admin_user, order, delivery):
    delivery.start(subject=order)
    request = rf.get("/")
    request.user = admin_user
    panel = RunsInline(Order, AdminSite()).get_formset(request, order).panel
    [line] = panel.lines
    assert (line.url, line.buttons, panel.more_url) == ("", (), "")


def test_an_object_whose_key_is_too_long_to_be_a_subject_has_no_runs(rf, admin_user):
    request = rf.get("/")
    request.user = admin_user
    formset = RunsInline(Country, AdminSite()).get_formset(request, Country(code="x" * 300))
    assert formset.panel.lines == []


def test_django_checks_the_inline():
    class ParcelAdmin(ModelAdmin):
        inlines = (RunsInline,)

    assert ParcelAdmin(Parcel, AdminSite()).check() == []
    assert issubclass(RunsInline.checks_class, InlineModelAdminChecks)


def at(site):
    """Its pages under /, with the name ``admin``."""
    clear_url_caches()
    urls = type("urls", (), {"urlpatterns": [path("", site.urls)]})
    return override_settings(ROOT_URLCONF=urls)


# On the run's page, and in the list


def test_the_page_of_a_run_leads_to_its_object_and_to_the_other_runs(admin_client, order, delivery):
    run = delivery.start(subject=order).run
    page = content_of(admin_client, run_url(run))
    assert f'<a href="{url_of(order)}"><bdi>{escape(order)}</bdi></a>' in page
    assert f'href="{RUNS}?subject=orders.order%3A{order.pk}"' in page
    assert "About" not in content_of(admin_client, run_url(delivery.start().run))


def test_who_may_not_view_the_object_learns_nothing_of_it(client, order, delivery):
    run, other = delivery.start(subject=order).run, delivery.start().run
    log_in(client, "view_sequencerun")
    page = content_of(client, run_url(run))
    assert "<dt>About</dt><dd><bdi>Order</bdi></dd>" in page
    for text in (str(order.pk), "Joan", url_of(order)):
        assert text not in page
        assert text not in content_of(client, RUNS)
    # Nor by looking for it.
    for query in ({"subject": f"orders.order:{order.pk}"}, {"q": f"orders.order:{order.pk}"}):
        page = content_of(client, RUNS, **query)
        assert "No matching runs." in page
        assert str(run.pk) not in page
    assert str(other.pk) in content_of(client, RUNS)


@pytest.mark.parametrize(
    "lookup", ["subject_row__object_id", "subject_row__model", "subject_row__object_id__startswith"]
)
def test_no_other_address_asks_for_it(client, order, delivery, lookup):
    delivery.start(subject=order)
    response = log_in(client, "view_sequencerun").get(RUNS, {lookup: str(order.pk)})
    assert response.status_code in (302, 400)


def test_the_list_names_the_objects_and_can_be_narrowed_to_one(admin_client, order, delivery):
    run, other = delivery.start(subject=order).run, delivery.start().run
    page = content_of(admin_client, RUNS)
    assert f"about <bdi>{escape(order)}</bdi>" in page
    for query in ({"subject": f"orders.order:{order.pk}"}, {"q": f" Orders.Order:{order.pk}"}):
        page = content_of(admin_client, RUNS, **query)
        assert str(run.pk) in page
        assert str(other.pk) not in page


@pytest.mark.parametrize(
    "text",
    ["", "x", "orders.order:", "gone.model:17", "orders.order:no-uuid", ":"],
)
def test_what_names_no_object_finds_nothing(admin_client, order, delivery, text):
    run = delivery.start(subject=order).run
    assert str(run.pk) not in content_of(admin_client, RUNS, subject=text)


def test_the_names_of_a_list_cost_as_many_queries_as_one(admin_client, delivery):
    def queries():
        with CaptureQueriesContext(connection) as caught:
            content_of(admin_client, RUNS)
        return len(caught)

    orders = [Order.objects.create(name=str(n), email="x@example.com") for n in range(5)]
    delivery.start(subject=orders[0])
    content_of(admin_client, RUNS)
    one_run = queries()
    delivery.start_many([({}, {"subject": each}) for each in orders])
    assert queries() == one_run


def test_an_object_that_is_gone_is_named_to_those_who_might_have_seen_it(
    admin_client, order, delivery
):
    run, pk = delivery.start(subject=order).run, order.pk
    order.delete()
    assert f"Order {pk} (deleted)" in content_of(admin_client, run_url(run))
    assert str(run.pk) in content_of(admin_client, RUNS, subject=f"orders.order:{pk}")


class OrdersOfJoan(ModelAdmin):
    def get_queryset(self, request):
        return super().get_queryset(request).filter(name=NAME)


def test_a_project_that_shows_some_objects_only_shows_no_others_here(
    client, admin_user, order, delivery
):
    hidden = Order.objects.create(name="Ada", email="ada@example.com")
    seen, unseen = delivery.start(subject=order).run, delivery.start(subject=hidden).run
    site = AdminSite()
    site.register(SequenceRun, SequenceRunAdmin)
    site.register(Order, OrdersOfJoan)
    client.force_login(admin_user)
    with at(site):
        runs = reverse("admin:job_sequences_sequencerun_changelist")
        page = content_of(client, runs)
        assert escape(order) in page
        assert str(hidden) not in page
        assert "about <bdi>Order</bdi>" in page
        assert str(unseen.pk) not in content_of(client, runs, subject=f"orders.order:{hidden.pk}")
        assert str(seen.pk) in content_of(client, runs, subject=f"orders.order:{order.pk}")
        hidden.delete()
        assert "(deleted)" not in content_of(client, run_url(unseen))


def test_an_object_whose_name_raises_is_shown_all_the_same(admin_client, order, delivery):
    run = delivery.start(subject=order).run
    before = Order.__str__
    Order.__str__ = lambda self: 1 / 0
    try:
        page = content_of(admin_client, run_url(run))
        assert "&lt;ZeroDivisionError in __str__&gt;" in page
    finally:
        Order.__str__ = before
    assert fresh(run).subject == order


def test_who_may_not_view_an_object_without_an_admin_learns_nothing_of_it(client, delivery):
    run = delivery.start(subject=Parcel.objects.create(name="book")).run
    log_in(client, "view_sequencerun")
    assert "<dt>About</dt><dd><bdi>Parcel</bdi></dd>" in content_of(client, run_url(run))
    assert "book" not in content_of(client, RUNS)


def test_an_object_without_an_admin_is_named_and_not_linked(admin_client, delivery):
    run = delivery.start(subject=Parcel.objects.create(name="book")).run
    assert "<dt>About</dt><dd><bdi>parcel book</bdi> <a" in content_of(admin_client, run_url(run))
