import time
from datetime import timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.template.loader import render_to_string
from django.utils import timezone

from sequences import Abort, Sequence, event, on_failure, step, subsequence
from testproject.orders.models import Order, OrderItem, Payment

#: The staff checks orders above this amount in euros before they are shipped.
APPROVAL_ABOVE = 500


class ShipParcel(Sequence):
    """From the packing table to the carrier."""

    @step(max_retries=5, min_backoff=500)
    def book_carrier(self):
        self.data["carrier"] = "Snail & Sons"

    @step
    def hand_over(self):
        self.data["tracking"] = f"SN-{self.data['order'][:8].upper()}"


class FulfilOrder(Sequence):
    """From a paid basket to a parcel on its way; if that fails, the customer gets a refund."""

    class Meta:
        max_retries = 3

    @step
    def charge(self):
        # The payment service gets the same key on every attempt, and charges only once.
        Payment.objects.create(
            order_id=self.data["order"], reference=self.idempotency_key, amount=self.data["total"]
        )

    @charge.undo
    def refund(self):
        payment = Payment.objects.filter(order=self.data["order"], refunded_at=None)
        payment.update(refunded_at=timezone.now())

    @step(after=charge, each="items")
    def pack(self, item):
        time.sleep(settings.ORDERS_PACKING_SECONDS)
        packed = OrderItem.objects.filter(pk=item["id"], product__in_stock=True)
        if not packed.update(packed_at=timezone.now()):
            raise Abort(f"{item['product']}: out of stock")

    @step(after=charge)
    def invoice(self):
        order = Order.objects.get(pk=self.data["order"])
        order.invoice = render_to_string("orders/invoice.txt", {"order": order})
        order.save(update_fields=["invoice"])

    approval = event(
        when=lambda self: self.data["total"] > APPROVAL_ABOVE, timeout=timedelta(days=3)
    )

    ship = subsequence(
        ShipParcel,
        data=lambda self: {"name": self.data["name"], "order": self.data["order"]},
        subject=lambda self: self.subject,
    )

    @step
    def thank(self):
        self.mail("Your parcel is on its way", "orders/thanks.txt")

    @on_failure
    def inform(self):
        missing = OrderItem.objects.filter(order=self.data["order"], product__in_stock=False)
        self.mail("We are sorry", "orders/sorry.txt", missing=missing)

    def mail(self, subject, template, **context):
        order = Order.objects.get(pk=self.data["order"])
        EmailMessage(
            subject=subject,
            body=render_to_string(template, {"order": order, "data": self.data, **context}),
            to=[order.email],
            headers={"Message-ID": f"<{self.idempotency_key}@example.com>"},
        ).send()
