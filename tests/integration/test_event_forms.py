"""Events with a Django form, and signed links that deliver: a page for whoever has the mail."""

import re
from datetime import timedelta
from unittest.mock import patch

import pytest
from django import forms
from django.contrib.auth import get_user_model
from django.core.validators import MaxValueValidator
from django.http import QueryDict
from django.test import Client, override_settings
from django.utils import timezone, translation

from sequences import Sequence, any_of, event, links, step
from sequences.exceptions import InvalidData, InvalidDefinition, SequenceError, UnknownStep
from sequences.inspection.deliveries import EventPage
from sequences.models import Operation
from sequences.testing import drain
from tests.engine import fresh

pytestmark = pytest.mark.django_db


class Approval(forms.Form):
    approved = forms.BooleanField(required=False)
    amount = forms.DecimalField(max_digits=6, decimal_places=2, label="Sum")
    until = forms.DateField(required=False)

    def clean(self):
        if self.cleaned_data.get("approved") and not self.cleaned_data.get("until"):
            raise forms.ValidationError("Say until when.")
        return self.cleaned_data


@pytest.fixture
def offer():
    class Offer(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "your offer"
            redact = ("iban",)

        checked = event(
            form=Approval, after=[], choices={"Approve": {"approved": True, "until": "2030-01-01"}}
        )
        reply = event(
            after=[],
            label="Your <reply>",
            choices={"Accept": {"yes": True}, "Decline": {"yes": False}},
        )
        withdrawal = event(after=[])

        @step(after=any_of(reply, withdrawal))
        def decide(self): ...

    return Offer


@pytest.fixture
def run(offer):
    run = offer().run
    drain()
    return fresh(run)


@pytest.fixture
def strict():
    return Client(enforce_csrf_checks=True)


def text_of(response):
    return " ".join(re.sub(r"<[^>]+>", " ", response.content.decode()).split())


# A form


def test_the_payload_is_what_the_form_has_cleaned(run):
    assert run.deliver("checked", {"amount": "12.5", "approved": True, "until": "2030-01-02"})
    drain()
    assert fresh(run).data["checked"] == {
        "approved": True, "amount": "12.5", "until": "2030-01-02",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"amount": "x"}, "rejected by Approval: amount: Enter a number"),
        (None, "amount: This field is required"),
        ({"amount": 1, "approved": True}, "rejected by Approval: Say until when"),
        ([1], "is of type list, not a dict"),
    ],
)
def test_what_the_form_refuses_is_not_delivered(run, payload, problem):
    with pytest.raises(InvalidData, match=problem):
        run.deliver("checked", payload)
    assert not run.delivered("checked")
    assert not Operation.objects.filter(run=run.pk).exists()


def test_a_view_may_deliver_the_form_itself(run):
    form = Approval({"amount": "3"})
    assert run.deliver("checked", form)
    assert run.payload("checked") == {"approved": False, "amount": "3", "until": None}


def test_a_view_may_deliver_what_was_posted(run):
    posted = QueryDict("amount=3&approved=on&until=2030-01-02&csrfmiddlewaretoken=x")
    assert run.deliver("checked", posted)
    assert run.payload("checked") == {"approved": True, "amount": "3", "until": "2030-01-02"}


def test_the_fields_of_a_form_with_a_prefix_are_delivered_with_it_or_without():
    class Prefixed(Approval):
        prefix = "offer"

    class Offers(Sequence):
        class Meta:
            app_label = "shop"

        checked = event(form=Prefixed)

    posts = [QueryDict("offer-amount=3"), {"offer-amount": "3"}, {"amount": "3"}, {"amount": 3}]
    for payload in posts:
        run = Offers().run
        assert run.deliver("checked", payload)
        assert run.payload("checked") == {"approved": False, "amount": "3", "until": None}


def test_objects_of_the_database_are_delivered_by_their_keys():
    users = get_user_model().objects
    ann, joel = users.create_user("ann"), users.create_user("joel")

    class Choose(forms.Form):
        who = forms.ModelChoiceField(users.all())
        others = forms.ModelMultipleChoiceField(users.all())

    class Pick(Sequence):
        class Meta:
            app_label = "shop"

        chosen = event(form=Choose)

    run = Pick().run
    run.deliver("chosen", {"who": ann.pk, "others": [joel.pk]})
    assert run.payload("chosen") == {"who": ann.pk, "others": [joel.pk]}


@pytest.mark.parametrize("form", [forms.CharField, Approval({}), "shop.forms.Approval"])
def test_what_is_no_form_is_refused(form):
    with pytest.raises(InvalidDefinition, match="It must be a Django form class"):

        class Wrong(Sequence):
            class Meta:
                app_label = "shop"

            approval = event(form=form)


def test_the_admin_shows_the_form_and_says_what_is_wrong_with_it(run, admin_client):
    url = f"/admin/job_sequences/sequencerun/{run.pk}/action/deliver/?step=checked"
    page = admin_client.get(url).content.decode()
    assert 'name="payload-amount"' in page
    assert "Payload (JSON)" not in page
    assert 'value="2030-01-01"' in admin_client.get(url + "&choice=Approve").content.decode()
    answer = {"confirm": "yes", "payload-amount": "many", "reason": ""}
    assert "Enter a number" in admin_client.post(url, answer).content.decode()
    assert not run.delivered("checked")
    response = admin_client.post(url, answer | {"payload-amount": "7", "reason": "looks good"})
    assert response.status_code == 302
    assert run.payload("checked") == {"approved": False, "amount": "7", "until": None}
    operation = Operation.objects.get(run=run.pk)
    assert (operation.by, operation.reason) == ("admin", "looks good")


# A link


def test_a_get_shows_what_a_post_delivers_once(run, strict):
    url = run.deliver_url("reply", {"yes": True, "iban": "DE1"}, by="ann")
    for method in (strict.get, strict.head, strict.get):
        assert method(url).status_code == 200
    assert not run.delivered("reply")
    page = strict.get(url)
    assert "Your offer Your &lt;reply&gt; Yes Yes Iban" in text_of(page)
    assert "DE1" not in text_of(page)
    assert "recorded as coming from ann" in text_of(page)
    assert "Thank you" in text_of(strict.post(url))
    assert run.payload("reply") == {"yes": True, "iban": "DE1"}
    for again in (strict.post(url), strict.get(url)):
        assert again.status_code == 200
        assert re.search(r"This was answered by ann .* ago\.", text_of(again))
        assert "<button" not in again.content.decode()
    assert Operation.objects.filter(run=run.pk).count() == 1
    assert Operation.objects.get(run=run.pk).by == "ann"


def test_the_button_is_called_like_the_choice(run, client):
    page = client.get(run.deliver_url("reply", {"yes": False})).content.decode()
    assert '<button type="submit">Decline</button>' in page
    assert "<script" not in page
    assert "style=" not in page


def test_it_works_without_a_login_where_all_other_pages_ask_for_one(run, client):
    middleware = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    from django.conf import settings

    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, middleware]):
        page = client.get(run.deliver_url("reply"))
    assert page.status_code == 200
    assert page["Referrer-Policy"] == "no-referrer"
    assert "no-store" in page["Cache-Control"]
    assert page["X-Robots-Tag"] == "noindex"


def test_a_form_is_shown_where_the_link_has_no_payload(run, client):
    url = run.deliver_url("checked", by="kim")
    assert 'name="amount"' in client.get(url).content.decode()
    wrong = client.post(url, {"amount": "x"})
    assert wrong.status_code == 400
    assert "Enter a number" in text_of(wrong)
    assert "Thank you" in text_of(client.post(url, {"amount": "5"}))
    assert run.payload("checked")["amount"] == "5"


def test_a_payload_that_the_form_refuses_gets_no_link(run):
    with pytest.raises(InvalidData, match="rejected by Approval"):
        run.deliver_url("checked", {"amount": "x"})
    page = run.deliver_url("checked", {"amount": "2"})
    assert "Sum 2" in text_of(Client().get(page))


def test_a_link_with_what_the_form_no_longer_accepts_has_expired(run, client):
    url = run.deliver_url("checked", {"amount": "5"})
    with patch.object(Approval.base_fields["amount"], "validators", [MaxValueValidator(1)]):
        response = client.post(url)
    assert response.status_code == 410
    assert "This link has expired." in text_of(response)
    assert not run.delivered("checked")
    assert "Thank you" in text_of(client.post(url))


def test_a_link_to_what_another_has_decided_is_no_longer_needed(run, client):
    url, other = (run.deliver_url(name, {"yes": True}) for name in ("reply", "withdrawal"))
    assert "Thank you" in text_of(client.post(other))
    for answer in (client.get(url), client.post(url)):
        assert "An answer is no longer needed." in text_of(answer)
    assert not run.delivered("reply")


def test_a_link_of_a_run_that_has_ended_is_no_longer_needed(run, client):
    url = run.deliver_url("reply", {"yes": True})
    run.cancel()
    assert "no longer needed" in text_of(client.post(url))
    run.delete()
    assert client.get(url).status_code == 404


def test_a_link_delivers_once_even_if_the_event_asks_again(run, client):
    url, later = (run.deliver_url("reply", {"yes": True}, by=by) for by in ("ann", "joel"))
    client.post(url)
    drain()
    fresh(run).restart_from("reply")
    drain()
    assert not run.delivered("reply")
    assert "no longer needed" in text_of(client.post(url))
    assert not run.delivered("reply")
    assert "Thank you" in text_of(client.post(later))
    assert "This was answered by joel" in text_of(client.get(later))


@pytest.mark.parametrize("since", ["the key was rotated", "the run was erased"])
def test_a_link_stays_used_whatever_has_happened_since(run, client, settings, since):
    url = run.deliver_url("reply", {"yes": True}, by="ann")
    client.post(url)
    drain()
    if since == "the key was rotated":
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another"
    else:
        fresh(run).cancel(reason="asked for it")
        fresh(run).erase()
        assert not Operation.objects.filter(run=run.pk, reason="asked for it").exists()
    fresh(run).restart_from("reply")
    drain()
    assert "no longer needed" in text_of(client.post(url))
    assert not run.delivered("reply")


def test_a_link_that_came_second_has_delivered_nothing(run, client):
    url, second = (run.deliver_url("reply", {"yes": True}, by=by) for by in ("ann", "joel"))
    client.post(url)
    with patch.object(EventPage, "state", "open"):  # as of before the first delivery
        client.post(second)
    assert [one.by for one in run.operations.all()] == ["ann"]
    assert "This was answered by ann" in text_of(client.get(second))
    drain()
    fresh(run).restart_from("reply")
    drain()
    assert "Thank you" in text_of(client.post(second))


def test_a_link_expires_and_cannot_be_changed(run, client):
    eight_days_ago = timezone.now() - timedelta(days=8)
    with patch("sequences.links.timezone.now", return_value=eight_days_ago):
        url = run.deliver_url("reply", {"yes": True})
    page = client.post(url)
    assert page.status_code == 410
    assert "This link has expired." in text_of(page)
    good = run.deliver_url("reply", {"yes": True})
    assert client.post(good[:-2] + "x/").status_code == 404
    assert client.get("/sequences/deliver/nonsense/").status_code == 404
    assert not run.delivered("reply")


def test_a_link_to_the_status_delivers_nothing_and_the_other_way_round(run, client):
    token = run.status_url().split("/")[-2]
    assert client.post(f"/sequences/deliver/{token}/").status_code == 404
    token = run.deliver_url("reply").split("/")[-2]
    assert client.get(f"/sequences/status/{token}/").status_code == 404


def test_a_link_that_could_not_work_is_not_made(run):
    with pytest.raises(UnknownStep):
        run.deliver_url("decide")
    with pytest.raises(SequenceError, match="in the past"):
        run.deliver_url("reply", max_age=timedelta(0))
    with pytest.raises(SequenceError, match="more than servers accept"):
        run.deliver_url("reply", "".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    with pytest.raises(InvalidData):
        run.deliver_url("reply", object())


def test_whoever_delivers_may_be_a_user(run, client):
    url = run.deliver_url("reply", by=get_user_model()(username="ann"))
    assert links.DeliveryLink.read(url.split("/")[-2]).by == "ann"
    assert "coming from ann" in text_of(client.get(url))


def test_the_page_says_in_which_language_it_is(run, client):
    url = run.deliver_url("reply", ["a", None])
    with translation.override("ar"):
        page = client.get(url, headers={"accept-language": "ar"}).content.decode()
    assert "<html lang=" in page
    assert '["a", null]' in text_of(client.get(url)).replace("&quot;", '"')
