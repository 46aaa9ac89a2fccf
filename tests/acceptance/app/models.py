from django.db import models


class Entry(models.Model):
    """A user's own row: steps write some, and the tests count them."""

    run = models.UUIDField(db_index=True)
    step = models.CharField(max_length=100)
    note = models.CharField(max_length=200, blank=True)

    def __str__(self):
        return f"{self.run} {self.step} {self.note}"
