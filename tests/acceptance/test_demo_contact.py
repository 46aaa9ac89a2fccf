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


def test_the_visitor_sees_how_far_it_is_and_in_the_end_who_answers(client):
    page = client.post(reverse("write"), FORM, follow=True).text
    assert "Ada &lt;b&gt;" in page
    assert "We are reading your message" in page
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in page

    testing.drain()

    run_id = SequenceRun.objects.get().pk
    page = client.get(reverse("thanks", args=[run_id])).text
    message_url = reverse("message", args=[run_id])
    assert f'<a href="{message_url}">See who will reply</a>' in page
    assert '<meta http-equiv="refresh"' not in page
    page = client.get(message_url).text
    assert "<strong>Questions team</strong>" in page
    assert "<p>Can your engine weave<br>algebraic patterns?</p>" in page


def test_a_message_that_is_not_there_yet_has_no_page(client):
    client.post(reverse("write"), FORM)

    answer = client.get(reverse("message", args=[SequenceRun.objects.get().pk]))

    assert answer.status_code == 404


@pytest.mark.parametrize("model", ["message", "team"])
def test_the_admin_lists_messages_and_teams(admin_client, client, model):
    client.post(reverse("write"), FORM)
    testing.drain()

    page = admin_client.get(reverse(f"admin:contact_{model}_changelist")).text

    assert "Questions team" in page
