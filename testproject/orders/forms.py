from typing import Any

from django import forms

from testproject.orders.models import Order, OrderItem, Product


class ProductsField(forms.ModelMultipleChoiceField):
    """Products with their prices, to select."""

    widget = forms.CheckboxSelectMultiple

    def label_from_instance(self, product: Product) -> str:
        return f"{product}, €{product.price}" + ("" if product.in_stock else " (out of stock)")


class OrderForm(forms.ModelForm):
    """An order and its items."""

    products = ProductsField(queryset=Product.objects.all())

    class Meta:
        model = Order
        fields = ["name", "email"]

    def save(self, commit: bool = True) -> Any:
        order = super().save(commit)
        OrderItem.objects.bulk_create(
            OrderItem(order=order, product=product, price=product.price)
            for product in self.cleaned_data["products"]
        )
        return order
