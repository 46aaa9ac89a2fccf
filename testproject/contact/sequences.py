from django.conf import settings
from django.core.mail import EmailMessage
from django.template.loader import render_to_string

from sequences import Sequence, step
from testproject.contact.models import Message, Team, Topic


class ContactForm(Sequence):
    """From a submitted form to an email in the team's inbox."""

    @step
    def create_message(self):
        fields = ("name", "email", "topic", "body")
        message = Message.objects.create(**{field: self.data[field] for field in fields})
        self.data["message_id"] = message.pk

    @step
    def assign_message(self):
        topic = Topic(self.data["topic"])
        team, _ = Team.objects.get_or_create(topic=topic, defaults={"name": f"{topic.label} team"})
        Message.objects.filter(pk=self.data["message_id"]).update(team=team)
        self.data["team"] = team.name

    @step
    def render_mail(self):
        message = Message.objects.select_related("team").get(pk=self.data["message_id"])
        self.data["mail"] = render_to_string("contact/mail.txt", {"message": message})

    @step(max_retries=5, min_backoff=500, max_backoff=2_000)
    def send_mail(self):
        if self.attempt <= settings.CONTACT_MAIL_FAILURES:
            raise ConnectionRefusedError("The mail server is down (simulated by the demo).")
        EmailMessage(
            subject=f"A message for the {self.data['team']}",
            body=self.data["mail"],
            to=["team@example.com"],
            reply_to=[self.data["email"]],
            headers={"Message-ID": f"<{self.idempotency_key}@example.com>"},
        ).send()
