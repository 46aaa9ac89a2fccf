from django.db import models


class Topic(models.TextChoices):
    QUESTIONS = "questions"
    ORDERS = "orders"
    PRESS = "press"


class Team(models.Model):
    """The people who answer the messages on a topic."""

    topic = models.CharField(max_length=20, choices=Topic, unique=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Message(models.Model):
    """A message that somebody sent us."""

    name = models.CharField("your name", max_length=100)
    email = models.EmailField("your email address")
    topic = models.CharField(max_length=20, choices=Topic, default=Topic.QUESTIONS)
    body = models.TextField("your message", max_length=5000)
    team = models.ForeignKey(Team, models.PROTECT, null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name}: {self.body[:40]}"
