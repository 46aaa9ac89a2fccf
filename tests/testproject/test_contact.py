import pytest
from django.core import mail
from django.urls import reverse

from sequences import testing
from sequences.models import SequenceRun
from testproject.contact.models import Message

pytestmark = pytest.mark.django_db
FORM = {
    "name": "Ada <b>",
    "email": "ada@example.com",
    "topic": "questions",
    "body": "Can your engine weave\nalgebraic patterns?",
}


def test_a_message_is_kept_assigned_and_mailed_after_two_failures(client):
    answer = client.post(reverse("write"), FORM)
    testing.drain()

    run = SequenceRun.objects.get()
    assert answer.url == reverse("thanks", args=[run.pk])
    assert run.status == "succeeded"
    assert [failure.step for failure in run.failures.all()] == ["send_mail", "send_mail"]
    message = Message.objects.get()
    assert (message.body, message.team.name) == (FORM["body"], "Questions team")
    [letter] = mail.outbox
    assert letter.reply_to == ["ada@example.com"]
    assert "Ada <b> <ada@example.com> wrote:\n\nCan your engine weave" in letter.body


def test_an_incomplete_form_starts_nothing_and_is_shown_again(client):
    answer = client.post(reverse("write"), FORM | {"email": "nobody"})

    assert "Enter a valid email address." in answer.text
    assert not SequenceRun.objects.exists()


def test_the_visitor_sees_what_became_of_the_message(client):
    page = client.post(reverse("write"), FORM, follow=True).text
    assert "Ada &lt;b&gt;" in page
    assert "<strong>running</strong>" in page

    testing.drain()

    page = client.get(reverse("thanks", args=[SequenceRun.objects.get().pk])).text
    assert "<strong>succeeded</strong>" in page
    assert "<td>send_mail</td><td>succeeded</td><td>2</td>" in page


@pytest.mark.parametrize("model", ["message", "team"])
def test_the_admin_lists_messages_and_teams(admin_client, client, model):
    client.post(reverse("write"), FORM)
    testing.drain()

    page = admin_client.get(reverse(f"admin:contact_{model}_changelist")).text

    assert "Questions team" in page
