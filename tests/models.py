"""What a project's own models may have of runs: foreign keys of every kind."""

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
