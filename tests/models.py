"""What a project's own models may have of runs: foreign keys of every kind. And what runs may be
about: objects with every kind of primary key.
"""

from uuid import uuid4

from django.db import models


def key(on_delete, to="SequenceRun", **options):
    # The tests' own app has no migrations: its tables come before those that it refers to.
    return models.ForeignKey(
        f"job_sequences.{to}",
        on_delete,
        null=True,
        related_name="+",
        db_constraint=False,
        **options,
    )


class Receipt(models.Model):
    """One row of a project, which refers to a run in one of these ways."""

    protects = key(models.PROTECT)
    goes_with = key(models.CASCADE)
    forgets = key(models.SET_NULL)
    defaults = key(models.SET_DEFAULT, default=None)
    ignores = key(models.DO_NOTHING)
    goes_with_step = key(models.CASCADE, "StepRun")
    protects_failure = key(models.PROTECT, "StepFailure")

    def __str__(self):
        return f"receipt {self.pk}"


class Line(models.Model):
    """It keeps its run, unless it goes with its receipt."""

    receipt = models.ForeignKey(Receipt, models.CASCADE, related_name="lines", null=True)
    run = key(models.RESTRICT)

    def __str__(self):
        return f"line {self.pk}"


class Parcel(models.Model):
    """A number is its key."""

    name = models.CharField(max_length=50, default="")

    def __str__(self):
        return f"parcel {self.name}"


class Express(Parcel):
    """The same table."""

    class Meta:
        proxy = True


class Insured(Parcel):
    """A table of its own, whose key is that of its parent."""

    value = models.IntegerField(default=0)


class Customer(models.Model):
    """A UUID is its key."""

    id = models.UUIDField(primary_key=True, default=uuid4)
    name = models.CharField(max_length=50, default="")

    def __str__(self):
        return f"customer {self.name}"


class Country(models.Model):
    """A text is its key."""

    code = models.CharField(max_length=300, primary_key=True)

    def __str__(self):
        return self.code


class Shelf(models.Model):
    """Two columns are its key."""

    pk = models.CompositePrimaryKey("row", "place")
    row = models.CharField(max_length=10)
    place = models.IntegerField()

    def __str__(self):
        return f"{self.row}{self.place}"
