from django.contrib import admin

from sequences.admin import RunsInline
from testproject.orders.models import Order, OrderItem, Payment, Product


class OrderItemInline(admin.TabularInline):
    model = OrderItem
    extra = 0


class PaymentInline(admin.StackedInline):
    model = Payment
    extra = 0


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["name", "email", "created_at"]
    search_fields = ["name", "email"]
    date_hierarchy = "created_at"
    inlines = [OrderItemInline, PaymentInline, RunsInline]


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ["name", "price", "in_stock"]
    list_editable = ["in_stock"]
