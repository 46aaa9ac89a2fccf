from uuid import uuid4

from django.db import models


class Product(models.Model):
    """What the shop sells."""

    slug = models.SlugField(primary_key=True)
    name = models.CharField(max_length=100)
    price = models.PositiveIntegerField("price in euros")
    in_stock = models.BooleanField(default=True)

    class Meta:
        ordering = ["price"]

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """What somebody ordered. Nobody else knows its address: the key is random."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField("your name", max_length=100)
    email = models.EmailField("your email address")
    invoice = models.TextField(blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name}'s order"

    @property
    def total(self) -> int:
        return sum(item.price for item in self.items.all())


class OrderItem(models.Model):
    """One product of an order, at the price at which it was sold."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="items")
    product = models.ForeignKey(Product, models.PROTECT)
    price = models.PositiveIntegerField("price in euros")
    packed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return str(self.product)


class Payment(models.Model):
    """The account at the payment service. It is charged once for each reference."""

    order = models.OneToOneField(Order, models.CASCADE)
    reference = models.CharField(max_length=100, unique=True)
    amount = models.PositiveIntegerField("amount in euros")
    refunded_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.reference
