from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from sequences.exceptions import InvalidTransition
from testproject.orders import timeline
from testproject.orders.forms import OrderForm
from testproject.orders.models import Order
from testproject.orders.sequences import APPROVAL_ABOVE, FulfilOrder


def place(request: HttpRequest) -> HttpResponse:
    form = OrderForm(request.POST or None)
    if form.is_valid():
        return redirect("order", order_id=accept(form).pk)
    return render(request, "orders/place.html", {"form": form, "limit": APPROVAL_ABOVE})


@transaction.atomic
def accept(form: OrderForm) -> Order:
    """The order and its sequence are written together, or neither is."""
    order: Order = form.save()
    items = [{"id": item.pk, "product": str(item)} for item in order.items.all()]
    data = {"order": str(order.pk), "name": order.name, "items": items, "total": order.total}
    FulfilOrder.start(data, key=str(order.pk), subject=order)
    return order


def show(request: HttpRequest, order_id: UUID) -> HttpResponse:
    order = get_object_or_404(Order, pk=order_id)
    run = get_object_or_404(FulfilOrder.runs.select_related("plan"), key=str(order_id))
    rows = timeline.of(run)
    waits = any(row.step == "approval" and row.status == "waiting" for row in rows)
    return render(
        request, "orders/order.html", {"order": order, "run": run, "rows": rows, "waits": waits}
    )


@require_POST
def approve(request: HttpRequest, order_id: UUID) -> HttpResponse:
    if not request.user.is_staff:
        raise PermissionDenied
    run = get_object_or_404(FulfilOrder.runs, key=str(order_id))
    by = request.user.get_username()
    try:
        run.deliver(FulfilOrder.approval, {"by": by}, by=request.user)
    except InvalidTransition as error:
        messages.error(request, str(error))
    return redirect("order", order_id=order_id)
