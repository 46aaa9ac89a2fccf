"""How far a run is, for visitors: signed URLs, permissions, and nothing that is secret."""

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.core import signing
from django.db import connection
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import reverse

from sequences import Abort, Sequence, event, links, on_failure, step
from sequences.exceptions import SequenceError
from sequences.models import SequenceRun, StepRun
from sequences.testing import drain, run_sequence
from tests.engine import change, fail, perform, take
from tests.engine import claim as claim_step

pytestmark = pytest.mark.django_db
SECRET = "s3cr3t-4111"


@pytest.fixture
def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "your order"
            redact = ["card"]

        @step(label="Taking the money")
        def charge(self):
            self.data["charged"] = SECRET
            return {"receipt": SECRET}

        approval = event()

        @step
        def ship_parcel(self):
            raise Abort(f"no {SECRET}")

        @on_failure
        def tell_staff(self): ...

    return Order


def answer_of(client, url, code=200):
    answer = client.get(url)
    assert answer.status_code == code
    return answer.json()


# What it says


def test_a_run_that_was_just_started_says_what_comes_first(client, order):
    run = order().run

    assert answer_of(client, run.status_url()) == {
        "title": "Your order",
        "status": "running",
        "is_finished": False,
        "fraction": 0.0,
        "done": 0,
        "total": 3,
        "at": ["Taking the money"],
        "failed": [],
        "steps": [
            {
                "name": "charge",
                "label": "Taking the money",
                "status": "queued",
                "progress": None,
                "fraction": None,
                "text": "",
            },
            {
                "name": "approval",
                "label": "approval",
                "status": "",
                "progress": None,
                "fraction": None,
                "text": "",
            },
            {
                "name": "ship_parcel",
                "label": "ship parcel",
                "status": "",
                "progress": None,
                "fraction": None,
                "text": "",
            },
        ],
        "poll": 1000,
    }


def test_it_waits_then_fails_and_what_the_failure_began_is_a_step_too(client, order):
    run = order().run
    drain()
    waiting = answer_of(client, run.status_url())
    run.deliver("approval", {"by": SECRET})
    drain()
    failed = answer_of(client, run.status_url())

    assert (waiting["at"], waiting["done"], waiting["poll"]) == (["approval"], 1, 5000)
    assert (failed["status"], failed["is_finished"], failed["poll"]) == ("failed", True, None)
    assert (failed["at"], failed["failed"]) == ([], ["ship parcel"])
    assert failed["steps"][-1]["name"] == "tell_staff"


def test_a_succeeded_run_is_whole(client):
    class Short(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def only(self): ...

    answer = answer_of(client, run_sequence(Short).run.status_url())

    assert (answer["status"], answer["fraction"], answer["at"]) == ("succeeded", 1.0, [])


def test_what_a_step_tells_is_shown_without_what_is_hidden(client, order):
    run = order(card=SECRET).run
    claim_step(run, "charge")
    told = {"done": 3, "total": 12, "text": f"Charging {SECRET}"}
    change(run, "charge", progress=told)

    answer = answer_of(client, run.status_url())

    assert answer["steps"][0]["progress"] == [3, 12]
    assert answer["steps"][0]["text"] == "Charging ***"
    assert answer["fraction"] == round(0.25 / 3, 4)


def test_what_an_item_tells_reaches_the_bar_and_the_answer(client):
    class Album(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("owner",)

        @step(each=lambda self: ["a", "b", "c"])
        def resize(self, photo): ...

        @step
        def publish(self): ...

    run = Album(owner=SECRET).run
    perform(claim_step(run, "resize"))
    first, second, _ = run.steps.filter(kind="item").order_by("item")
    perform(take(first.pk))
    take(second.pk)
    told = {"done": 3, "total": 4, "text": f"Resizing for {SECRET}"}
    StepRun.objects.filter(pk=second.pk).update(progress=told)

    answer = answer_of(client, run.status_url())
    page = client.get(run.status_url().replace("status", "progress")).content.decode()

    assert answer["steps"][0]["progress"] == [1, 3]
    assert answer["steps"][0]["fraction"] == round(1.75 / 3, 4)
    assert answer["steps"][0]["text"] == "Resizing for ***"
    assert answer["fraction"] == round(1.75 / 3 / 2, 4)
    assert f'value="{int(175 / 6)}"' in page


def test_a_step_that_tells_no_numbers_has_no_amount(client, order):
    run = order().run
    claim_step(run, "charge")
    change(run, "charge", progress={"done": "3.5", "total": "12", "text": ""})

    assert answer_of(client, run.status_url())["steps"][0]["progress"] is None


def test_nobody_learns_of_data_payloads_results_and_errors(client, order):
    run = order(name=SECRET).run
    drain()
    run.deliver("approval", {"by": SECRET})
    drain()
    SequenceRun.objects.filter(pk=run.pk).update(key=SECRET)
    assert SECRET in run.failures.get().message
    assert SECRET in run.failures.get().traceback
    assert SECRET in json.dumps(list(run.steps.values_list("result", "payload")))

    for name in ("status", "progress"):
        page = client.get(links.signed_url(name, run.pk, timedelta(hours=1))).text
        assert SECRET not in page
        assert run.pk.hex not in page
        assert str(run.pk) not in page
        assert "Abort" not in page


def test_a_paused_run_is_asked_less_often(client, order):
    run = order().run
    run.pause()

    assert answer_of(client, run.status_url())["poll"] == 5000


@pytest.mark.parametrize(
    ("minutes", "poll"), [(0, 1000), (2, 4000), (60, 15000)], ids=["new", "slow", "very slow"]
)
def test_the_longer_it_takes_the_less_often_it_is_asked(client, order, minutes, poll):
    run = order().run
    started = run.created_at - timedelta(minutes=minutes)
    SequenceRun.objects.filter(pk=run.pk).update(created_at=started)

    assert answer_of(client, run.status_url())["poll"] == pytest.approx(poll, abs=100)


# Who may see it


def test_an_address_is_a_path_that_ends_after_its_time(client, order, monkeypatch):
    run = order().run
    url = run.status_url(expires=timedelta(minutes=5))
    assert url.startswith("/sequences/status/")
    moment = links.timezone.now() + timedelta(minutes=4, seconds=59)
    monkeypatch.setattr(links.timezone, "now", lambda: moment)
    answer_of(client, url)

    moment += timedelta(seconds=2)

    assert answer_of(client, url, 410)["error"] == "expired"
    page = client.get(url.replace("status", "progress"))
    assert page.status_code == 410
    assert "This link has expired." in page.text


def tampered(url):
    content, _, signature = url.rpartition(":")
    yield f"{content}:{signature[:-3]}xx/"
    yield f"{content[:-3]}AAA:{signature}"
    yield f"{content}:/"
    yield f"{content.rpartition('/')[0]}/x/"


@pytest.mark.parametrize("name", ["status", "progress"])
def test_a_tampered_address_looks_as_if_it_never_was(client, order, name):
    run = order().run
    url = links.signed_url(name, run.pk, timedelta(hours=1))
    bodies = {client.get(other).content for other in tampered(url)}
    for other in tampered(url):
        assert client.get(other).status_code == 404
    assert len(bodies) == 1
    assert b"Page not found." in bodies.pop()


def test_the_signature_of_another_run_fits_no_other(client, order):
    one, other = order().run.status_url(), order().run.status_url()
    mixed = one.rpartition(":")[0] + ":" + other.rpartition(":")[2]

    answer_of(client, mixed, 404)


def test_what_is_signed_for_something_else_is_no_address(client, order):
    run = order().run
    content = [run.pk.hex, 32_503_680_000_000]
    for foreign in (signing.dumps(content), signing.Signer(salt="other").sign_object(content)):
        answer_of(client, reverse("sequences:status", args=[foreign]), 404)

    own = signing.Signer(salt="sequences.links").sign_object(content)
    assert answer_of(client, reverse("sequences:status", args=[own]))["status"] == "running"


def test_an_address_outlives_the_rotation_of_the_key(client, order, settings):
    url = order().run.status_url()
    old, settings.SECRET_KEY = settings.SECRET_KEY, "a new one"
    answer_of(client, url, 404)

    settings.SECRET_KEY_FALLBACKS = [old]

    answer_of(client, url)


def test_a_run_that_is_gone_looks_as_if_it_never_was(client, order):
    run = order().run
    url = run.status_url()
    StepRun.objects.all().delete()
    run.delete()

    answer_of(client, url, 404)


@pytest.mark.parametrize("expires", [timedelta(0), timedelta(seconds=-1)])
def test_an_address_that_never_holds_is_refused(order, expires):
    with pytest.raises(SequenceError, match="cannot expire in the past"):
        order().run.status_url(expires=expires)


@override_settings(ROOT_URLCONF="testproject.contact.urls")
def test_a_project_without_the_urls_is_told_how_to_add_them(order):
    with pytest.raises(SequenceError, match=r"include\('sequences.urls'\)"):
        order().run.status_url()


# By its id


def by_id(run):
    return reverse("sequences:run_status", args=[getattr(run, "pk", run)])


def may_see(request, run):
    return request.GET.get("order") == run.key


@pytest.mark.parametrize("who", ["client", "admin_client"])
def test_by_its_id_nobody_sees_a_run_unless_the_project_says_so(request, order, who):
    client = request.getfixturevalue(who)
    there, nowhere = client.get(by_id(order().run)), client.get(by_id(uuid4()))

    assert (there.status_code, nowhere.status_code) == (404, 404)
    assert there.content == nowhere.content


def test_a_permission_lets_in_whoever_has_it(client, django_user_model, order, settings):
    settings.SEQUENCES = {"STATUS_PERMISSION": "job_sequences.view_sequencerun"}
    run = order().run
    user = django_user_model.objects.create_user("joel")
    answer_of(client, by_id(run), 404)
    client.force_login(user)
    answer_of(client, by_id(run), 404)

    user.user_permissions.add(Permission.objects.get(codename="view_sequencerun"))

    assert answer_of(client, by_id(run))["status"] == "running"
    answer_of(client, by_id(uuid4()), 404)


@pytest.mark.parametrize("guard", [may_see, f"{__name__}.may_see"], ids=["itself", "its path"])
def test_a_callable_decides_on_request_and_run(client, order, settings, guard):
    settings.SEQUENCES = {"STATUS_PERMISSION": guard}
    run = order.start({}, key="17").run

    answer_of(client, by_id(run), 404)
    assert answer_of(client, by_id(run) + "?order=17")["status"] == "running"


@override_settings(
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    SEQUENCES={"STATUS_PERMISSION": "job_sequences.view_sequencerun"},
)
def test_without_users_nobody_has_a_permission(client, order):
    answer_of(client, by_id(order().run), 404)


# How it is served


@pytest.mark.parametrize("name", ["status", "progress"])
def test_it_is_read_only_and_never_kept_by_a_cache(client, order, name):
    url = links.signed_url(name, order().run.pk, timedelta(hours=1))
    for method in (client.post, client.put, client.delete, client.patch):
        assert method(url).status_code == 405
    head = client.head(url)

    assert (head.status_code, head.content) == (200, b"")
    assert {"no-store", "private"} <= set(head["Cache-Control"].split(", "))
    assert {"Cookie", "Accept-Language"} <= set(head["Vary"].split(", "))
    assert head["X-Robots-Tag"] == "noindex"
    assert head["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in head


def test_it_is_open_where_all_other_pages_want_a_login(client, order, settings):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]

    answer_of(client, order().run.status_url())


def queries_of(client, url):
    with CaptureQueriesContext(connection) as queries:
        client.get(url)
    # A process reads a plan once, but not from the transaction of a test.
    return [query["sql"] for query in queries if "storedplan" not in query["sql"]]


@pytest.mark.parametrize("name", ["status", "progress"])
def test_an_answer_costs_as_many_queries_whatever_has_happened(client, order, name):
    new = order(blob="x" * 100).run
    failing = order(blob="x" * 100).run
    fail(claim_step(failing, "charge"), final=False)
    failed = run_sequence(order).run
    counts = set()
    for row in (new, failing, failed):
        queries = queries_of(client, links.signed_url(name, row.pk, timedelta(hours=1)))
        assert not any('"data"' in query or "traceback" in query for query in queries)
        counts.add(len(queries))

    clock = connection.vendor != "sqlite"
    assert counts == {2 + clock}, "the run, its steps, and the database's time"


def test_the_items_of_a_fan_out_cost_one_more_however_many_they_are(client):
    class Mails(Sequence):
        class Meta:
            app_label = "shop"

        @step(each=lambda self: range(self.data["count"]))
        def mail(self, item): ...

    counts = []
    for count in (1, 30):
        row = Mails(count=count).run
        perform(claim_step(row, "mail"))
        counts.append(len(queries_of(client, row.status_url())))

    assert answer_of(client, row.status_url())["steps"][0]["progress"] == [0, 30]
    clock = connection.vendor != "sqlite"
    assert counts == [3 + clock] * 2
