import pytest
from django.core import mail
from django.urls import reverse

from sequences import testing
from testproject import demo
from testproject.orders.models import Order, OrderItem, Payment, Product
from testproject.orders.sequences import FulfilOrder

pytestmark = pytest.mark.django_db
CUSTOMER = {"name": "Joan <b>", "email": "joan@example.com"}


@pytest.fixture(autouse=True)
def _shelves(settings):
    settings.ORDERS_PACKING_SECONDS = 0
    # What the migration has put there is gone after a test that empties the tables.
    Product.objects.all().delete()
    Product.objects.create(slug="tea", name="Tea", price=8)
    Product.objects.create(slug="pot", name="Pot", price=40)
    Product.objects.create(slug="lamp", name="Lamp", price=60, in_stock=False)
    Product.objects.create(slug="clock", name="Clock", price=950)


def place(client, *products):
    answer = client.post(reverse("place_order"), CUSTOMER | {"products": products})
    order = Order.objects.get()
    assert answer.url == reverse("order", args=[order.pk])
    testing.drain()
    return order, FulfilOrder.runs.get(key=str(order.pk))


def page_of(client, order):
    return client.get(reverse("order", args=[order.pk])).text


def states(run):
    return {str(step): step.status for step in run.steps.all()}


def test_a_small_order_is_charged_packed_invoiced_and_shipped_without_an_approval(client):
    order, run = place(client, "tea", "pot")

    assert run.status == "succeeded"
    assert states(run) == {
        "charge": "succeeded",
        "pack": "succeeded",
        "pack[0]": "succeeded",
        "pack[1]": "succeeded",
        "invoice": "succeeded",
        "approval": "skipped",
        "ship": "succeeded",
        "thank": "succeeded",
    }
    payment = Payment.objects.get()
    assert (payment.order, payment.amount, payment.refunded_at) == (order, 48, None)
    assert not OrderItem.objects.filter(packed_at=None).exists()
    [letter] = mail.outbox
    assert letter.to == ["joan@example.com"]
    assert f"Its number is {run.data['ship']['tracking']}." in letter.body
    assert "Joan <b>" in letter.body
    assert letter.body.rstrip().endswith("48 €")


def test_a_large_order_waits_until_somebody_of_the_staff_presses_the_button(client, admin_client):
    order, run = place(client, "clock")
    assert run.status == "running"
    assert states(run)["approval"] == "waiting"
    assert not mail.outbox
    page = page_of(admin_client, order)
    assert "Approve the order" in page
    assert reverse("admin:job_sequences_sequencerun_change", args=[run.pk]) in page

    answer = admin_client.post(reverse("approve_order", args=[order.pk]))
    testing.drain()

    run.refresh_from_db()
    assert answer.url == reverse("order", args=[order.pk])
    assert run.status == "succeeded"
    assert run.data["approval"] == {"by": "admin"}
    assert run.operations.get().by == "admin"
    assert len(mail.outbox) == 1
    assert "Approve the order" not in page_of(admin_client, order)


def test_a_customer_cannot_approve(client):
    order, run = place(client, "clock")

    answer = client.post(reverse("approve_order", args=[order.pk]))

    assert answer.status_code == 403
    assert states(run)["approval"] == "waiting"
    page = page_of(client, order)
    assert "Approve the order" not in page
    assert f"{reverse('admin:login')}?next={reverse('order', args=[order.pk])}" in page


def test_an_approval_is_a_post_with_a_token(admin_user, client):
    order, run = place(client, "clock")
    strict = type(client)(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    url = reverse("approve_order", args=[order.pk])

    assert strict.get(url).status_code == 405
    assert strict.post(url).status_code == 403
    assert states(run)["approval"] == "waiting"


def test_an_approval_that_comes_too_late_says_so(client, admin_client):
    order, run = place(client, "clock")
    run.cancel()

    url = reverse("approve_order", args=[order.pk])
    page = admin_client.post(url, follow=True).text

    assert '<p class="notice">' in page
    assert "cancelled" in page


def test_an_order_of_what_is_out_of_stock_is_paid_back_and_the_customer_is_told(client):
    order, run = place(client, "tea", "lamp")

    assert run.status == "failed"
    assert states(run) == {
        "charge": "succeeded",
        "pack": "failed",
        "pack[0]": "succeeded",
        "pack[1]": "failed",
        "invoice": "succeeded",
        "refund": "succeeded",
        "inform": "succeeded",
    }
    assert Payment.objects.get().refunded_at
    [letter] = mail.outbox
    assert letter.subject == "We are sorry"
    assert "Lamp: out of stock" in letter.body
    assert "We have refunded your 68 €." in letter.body
    page = page_of(client, order)
    assert "We have refunded your €68." in page
    assert "Lamp: out of stock" in page


def test_the_page_shows_items_and_parcel_below_their_steps_and_what_is_to_come(client):
    client.post(reverse("place_order"), CUSTOMER | {"products": ["tea", "pot"]})
    order = Order.objects.get()
    before = page_of(client, order)
    testing.drain()
    after = page_of(client, order)

    assert "Thank you, Joan &lt;b&gt;" in before
    assert before.count("not started") == 6 - 1
    assert '<meta http-equiv="refresh" content="1">' in before
    assert '<td class="part">Tea</td><td><span class="status succeeded">' in after
    assert '<td class="part">hand over</td><td><span class="status succeeded">' in after
    assert "refund" not in after
    assert '<meta http-equiv="refresh"' not in after


@pytest.mark.parametrize(
    "form", [CUSTOMER, {"products": ["tea"]}, CUSTOMER | {"products": ["what"]}]
)
def test_an_incomplete_order_writes_and_starts_nothing(client, form):
    answer = client.post(reverse("place_order"), form)

    assert "errorlist" in answer.text
    assert not Order.objects.exists()
    assert not FulfilOrder.runs.exists()


def test_an_order_that_nobody_fulfils_has_no_page(client):
    order = Order.objects.create(**CUSTOMER)

    assert client.get(reverse("order", args=[order.pk])).status_code == 404


def test_the_start_page_leads_to_both_demonstrations_and_the_admin(client):
    page = client.get(reverse("start")).text

    for name in ("write", "place_order", "admin:index"):
        assert f'href="{reverse(name)}"' in page


@pytest.mark.parametrize(
    ("products", "ending"),
    [
        (["tea"], demo.SHIPPED),
        (["clock"], demo.APPROVED),
        (["lamp"], demo.COMPENSATED),
    ],
)
def test_the_demo_knows_an_order_that_ended_as_it_should_from_the_others(client, products, ending):
    _, run = place(client, *products)
    if ending is demo.APPROVED:
        assert not ending.is_met(run)
        run.deliver("approval")
        testing.drain()
        run.refresh_from_db()

    assert [one for one in demo.ENDINGS if one.is_met(run)] == [ending]
    if ending is demo.COMPENSATED:
        run.steps.filter(step="refund").update(status="failed")
        assert not ending.is_met(run)


@pytest.mark.parametrize("model", ["order", "product"])
def test_the_admin_lists_orders_and_products(admin_client, client, model):
    order, _ = place(client, "tea")

    page = admin_client.get(reverse(f"admin:orders_{model}_changelist")).text

    assert {"order": "joan@example.com", "product": "Clock"}[model] in page
    assert (
        admin_client.get(reverse("admin:orders_order_change", args=[order.pk])).status_code == 200
    )
