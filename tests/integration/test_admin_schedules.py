"""Schedules in the admin: seen, made, edited and operated on, by those who may."""

import json
import re
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils.html import escape

from sequences import Sequence, cron, every, step
from sequences.admin import ScheduleAdmin
from sequences.models import Schedule, ScheduleOperation
from sequences.testing import clock, drain, isolate_sequences, sync_schedules
from testproject.orders.models import Order
from tests.console import log_in, url_of
from tests.engine import now

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("caught")]

LIST = reverse("admin:job_sequences_schedule_changelist")
ADD = reverse("admin:job_sequences_schedule_add")
HOUR = timedelta(hours=1)
FORM = {"overlap": "skip", "missed": "latest", "confirm": "yes"}


@pytest.fixture
def report():
    class Report(Sequence):
        class Meta:
            app_label = "shop"
            schedule = every(HOUR, data=lambda slot: {"hour": slot.hour})
            redact = ["token"]

        @step
        def write(self): ...

    return Report


def page_of(schedule, action=""):
    if action:
        return reverse("admin:job_sequences_schedule_action", args=[schedule.pk, action])
    return reverse("admin:job_sequences_schedule_change", args=[schedule.pk])


def text_of(response):
    return response.content.decode()


def test_the_list_shows_each_schedule_with_its_last_run(admin_client, report):
    sync_schedules()
    run = report.schedules.get().run_now()
    paused = report.schedules.create("berlin", cron("0 3 * * *", timezone="Europe/Berlin"))
    paused.pause()
    text = text_of(admin_client.get(LIST))
    assert "every 1 h" in text
    assert "“0 3 * * *” in Europe/Berlin" in text
    assert f"/sequencerun/{run.pk}/change/" in text
    assert ">running<" in text
    assert ">paused<" in text
    for state, names in [("paused", {"berlin"}), ("active", {"default"}), ("orphaned", set())]:
        rows = admin_client.get(LIST, {"state": state}).context["cl"].result_list
        assert {row.name for row in rows} == names


def test_the_list_takes_the_same_queries_however_many_there_are(
    admin_client, report, django_assert_max_num_queries
):
    for number in range(20):
        report.schedules.create(f"s{number}", every(HOUR)).run_now()
    with django_assert_max_num_queries(12):
        admin_client.get(LIST)


def test_the_page_says_what_it_does_and_what_was_done(admin_client, report):
    schedule = report.schedules.create(
        "berlin", cron("0 3 * * *", timezone="UTC"), data={"token": "hunter2", "city": "Berlin"}
    )
    schedule.update(every(HOUR), by="ann", reason="more <often>")
    Schedule.objects.update(skipped_slot=now(), skip_reason="overlap")
    text = text_of(admin_client.get(page_of(schedule)))
    assert "The next run starts in " in text
    assert "was skipped: the last run was unfinished" in text
    assert "&quot;city&quot;: &quot;Berlin&quot;" in text
    assert "hunter2" not in text
    assert "more &lt;often&gt;" in text
    assert "by ann" in text
    assert "3600.0" in text  # what the edit has changed


def test_the_page_names_the_function_that_makes_the_data(admin_client, report):
    sync_schedules()
    text = text_of(admin_client.get(page_of(report.schedules.get())))
    assert "Created by the function" in text
    assert "the code of the sequence" in text
    assert re.search(r"<span>\d{4}-\d\d-\d\d</span> <span>\d\d:\d\d:\d\d UTC</span></time>", text)


def test_a_schedule_is_made(admin_client, report):
    assert "shop.Report" in text_of(admin_client.get(ADD))
    values = {
        "sequence": "shop.Report",
        "name": "berlin",
        "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "catch_up": "6 h",
        "jitter": "2 min",
        "run_data": '{"city": "Berlin"}',
        "reason": "new office",
    }
    response = admin_client.post(ADD, FORM | values | {"overlap": "wait", "missed": "all"})
    schedule = report.schedules.get("berlin")
    assert response.url == page_of(schedule)
    assert schedule.timetable == cron(
        "0 3 * * *",
        timezone="Europe/Berlin",
        data={"city": "Berlin"},
        overlap="wait",
        missed="all",
        catch_up=timedelta(hours=6),
        jitter=timedelta(minutes=2),
    )
    operation = schedule.operations.get()
    assert (operation.action, operation.by, operation.reason) == ("create", "admin", "new office")
    assert LogEntry.objects.get().is_addition()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "Enter a cron expression or an interval."),
        ({"cron": "0 3 * * *", "interval": "5 min"}, "Enter a cron expression or an interval."),
        ({"cron": "0 25 * * *"}, "is not a valid cron expression: invalid hour"),
        ({"cron": "0 3 * * *", "timezone": "Mars"}, "is not a known time zone"),
        ({"interval": "soon"}, "Enter a duration such as"),
        ({"interval": "5 min", "run_data": "[1]"}, "Data must be a JSON object"),
        ({"interval": "5 min", "run_data": "{"}, "Invalid JSON"),
        (
            {"interval": "5 min", "name": "default"},
            "The code already declares a schedule with this name",
        ),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_in_its_form(admin_client, report, values, problem):
    response = admin_client.post(ADD, FORM | {"sequence": "shop.Report", "name": "a"} | values)
    assert response.status_code == 200
    assert problem in text_of(response).replace("&#x27;", "'")
    assert not Schedule.objects.exists()


def test_a_schedule_is_edited_and_hidden_values_stay(admin_client, report):
    schedule = report.schedules.create("berlin", every(HOUR), data={"token": "x", "city": "Berlin"})
    page = admin_client.get(page_of(schedule, "update"))
    assert "marks a hidden value" in text_of(page)
    initial = page.context["form"].initial
    data = json.loads(initial["run_data"]) | {"city": "Bonn"}
    assert data["token"] == "***"
    values = (
        FORM | initial | {"interval": "90 min", "run_data": json.dumps(data), "reason": "moved"}
    )
    admin_client.post(page_of(schedule, "update"), values)
    schedule = report.schedules.get("berlin")
    assert schedule.data == {"token": "x", "city": "Bonn"}
    assert schedule.timetable.interval == 1.5 * HOUR
    assert schedule.operations.last().by == "admin"
    again = admin_client.post(page_of(schedule, "update"), values)
    assert "The schedule has changed in the meantime" in text_of(again)


def test_data_that_is_nested_too_deeply_is_refused_in_the_form(admin_client, report):
    schedule = report.schedules.create("berlin", every(HOUR), data={"token": "x"})
    page = page_of(schedule, "update")
    initial = admin_client.get(page).context["form"].initial
    data = '{"token": "***", "a": %s}' % ("[" * 700 + "]" * 700)
    response = admin_client.post(page, FORM | initial | {"run_data": data})
    assert "Nested too deeply." in text_of(response)


@pytest.mark.parametrize("name", ["sequence", "name", "name__contains", "sequence__exact"])
def test_a_filter_that_no_database_takes_leads_to_the_list(admin_client, report, name):
    report.schedules.create("berlin", every(HOUR))
    answer = admin_client.get(LIST, {name: "a\0b"})
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{LIST}?e=1")


@pytest.mark.parametrize("lookup", ["name__regex", "sequence__iregex"])
def test_a_filter_with_an_expression_is_refused(admin_client, report, lookup):
    report.schedules.create("berlin", every(HOUR))
    assert admin_client.get(LIST, {lookup: "("}).status_code == 400


def test_stars_stand_for_nothing_that_is_not_there(admin_client, report):
    schedule = report.schedules.create("berlin", every(HOUR), data={"city": "Berlin"})
    initial = admin_client.get(page_of(schedule, "update")).context["form"].initial
    values = FORM | initial | {"run_data": '{"token": "***"}'}
    response = admin_client.post(page_of(schedule, "update"), values)
    assert "No hidden value is stored at token" in text_of(response)


@pytest.mark.parametrize(
    ("action", "done"),
    [("pause", "The schedule is paused."), ("remove", "The schedule was removed.")],
)
def test_an_operation_asks_first_and_is_logged(admin_client, report, action, done):
    schedule = report.schedules.create("berlin", every(HOUR))
    page = page_of(schedule, action)
    assert 'name="reason"' in text_of(admin_client.get(page))
    admin_client.post(page, {"reason": "no confirmation"})
    assert ScheduleOperation.objects.count() == 1  # that it was made
    response = admin_client.post(page, {"confirm": "yes", "reason": "why"}, follow=True)
    assert done in text_of(response)
    operation = ScheduleOperation.objects.last()
    assert (operation.action, operation.by, operation.reason) == (action, "admin", "why")


def test_a_run_is_started_now(admin_client, report):
    schedule = report.schedules.create("berlin", every(HOUR))
    response = admin_client.post(page_of(schedule, "run_now"), {"confirm": "yes"})
    run = report.runs.get()
    assert response.url == url_of(run)
    again = admin_client.post(page_of(schedule, "run_now"), {"confirm": "yes"})
    assert "is unfinished" in text_of(again)


@pytest.mark.parametrize("action", ["run_now", "resume", "update", "remove", "pause"])
def test_one_page_operates_on_a_schedule_once(admin_client, report, action):
    schedule = report.schedules.create("berlin", every(HOUR, overlap="allow"))
    if action == "resume":
        schedule.pause()
    page = page_of(schedule, action)
    answer = FORM | admin_client.get(page).context["form"].initial
    if action == "pause":
        schedule.run_now()
        admin_client.post(page, answer)
        schedule.refresh_from_db()
        assert schedule.paused_at is not None, "nobody should have to ask twice"
        return
    schedule.run_now(by="a colleague")
    response = admin_client.post(page, answer)
    assert "It has changed since you opened the page" in text_of(response)
    assert ScheduleOperation.objects.last().by == "a colleague"
    assert report.runs.count() == 1


def test_a_double_submit_starts_one_run(admin_client, report):
    schedule = report.schedules.create("berlin", every(HOUR, overlap="allow"))
    page = page_of(schedule, "run_now")
    answer = FORM | admin_client.get(page).context["form"].initial
    for _ in range(2):
        admin_client.post(page, answer)
    assert report.runs.count() == 1


def test_the_page_of_a_run_leads_back_to_the_schedule_that_has_started_it(
    admin_client, client, report
):
    sync_schedules(report)
    named = report.schedules.create("a:b <i>", every(HOUR))
    default, user_made = report.schedules.get(), report.start(key="schedule:mine").run
    with clock() as moving:
        moving.move(HOUR)
        drain()
    runs = {run.key: run for run in report.runs.all()}
    by_slot = next(run for key, run in runs.items() if key.startswith("schedule:default:"))
    pages = {
        by_slot: default,
        default.run_now(): default,
        next(run for key, run in runs.items() if "a:b" in key): named,
        named.run_now(): named,
    }
    for run, schedule in pages.items():
        text = text_of(admin_client.get(url_of(run)))
        assert f'<a href="{page_of(schedule)}"><bdi>{escape(schedule.name)}</bdi></a>' in text
    assert "Started by schedule" not in text_of(admin_client.get(url_of(user_made)))
    text = text_of(log_in(client, "view_sequencerun").get(url_of(by_slot)))
    assert "Started by schedule" not in text
    Schedule.objects.all().delete()
    assert "Started by schedule" not in text_of(admin_client.get(url_of(by_slot)))


def test_a_schedule_that_was_made_for_an_object_leads_to_it(admin_client, client, report):
    order = Order.objects.create(name="Joan <b>", email="joan@example.com")
    schedule = report.schedules.create("mine", every(HOUR), subject=order)
    url = reverse("admin:orders_order_change", args=[order.pk])
    link = f'<a href="{url}"><bdi>{escape(order)}</bdi></a>'
    assert link in text_of(admin_client.get(page_of(schedule)))
    text = text_of(log_in(client, "view_schedule").get(page_of(schedule)))
    assert "<dt>About</dt><dd><bdi>Order</bdi></dd>" in text
    assert str(order.pk) not in text


@pytest.mark.parametrize("lookup", ["subject_text", "subject_text__startswith", "error", "data"])
def test_no_address_of_the_list_asks_for_an_object_or_for_a_hidden_value(client, report, lookup):
    order = Order.objects.create(name="Joan", email="joan@example.com")
    report.schedules.create("mine", every(HOUR), subject=order)
    log_in(client, "view_schedule")
    response = client.get(LIST, {lookup: f"orders.order:{order.pk}"})
    assert response.status_code in (302, 400)


def test_a_site_without_runs_links_none_of_them(rf, admin_user, report):
    order = Order.objects.create(name="Joan <b>", email="joan@example.com")
    schedule = report.schedules.create("mine", every(HOUR), subject=order)
    site = AdminSite("admin")
    site.register(Schedule, ScheduleAdmin)
    request = rf.get("/")
    request.user = admin_user
    page = site.get_model_admin(Schedule).change_view(request, str(schedule.pk))
    assert str(page.context_data["subject"]) == str(order)
    assert page.context_data["subject"].runs_url == ""


def test_only_who_may_view_runs_is_led_to_those_about_an_object(client, report):
    order = Order.objects.create(name="Joan <b>", email="joan@example.com")
    schedule = report.schedules.create("mine", every(HOUR), subject=order)
    log_in(client, "view_schedule", "view_order")
    text = text_of(client.get(page_of(schedule)))
    assert escape(order) in text
    assert "?subject=" not in text


def test_the_form_of_a_schedule_does_not_tell_whether_a_hidden_value_was_guessed(
    admin_client, report
):
    schedule = report.schedules.create("berlin", every(HOUR), data={"token": "1234"})
    page = text_of(admin_client.get(page_of(schedule, "update")))
    guess = every(HOUR, data={"token": "1234"})
    assert guess.fingerprint() == schedule.timetable.fingerprint()
    assert guess.fingerprint() not in page


@pytest.mark.parametrize("action", ["update", "run_now"])
def test_an_error_about_a_hidden_value_does_not_quote_it(admin_client, action):
    @dataclass
    class Wanted:
        token: str
        city: str

        def __post_init__(self):
            if self.city == "Bonn":
                raise ValueError(f"{self.token} is not for Bonn")

    class Report(Sequence[Wanted]):
        class Meta:
            app_label = "shop"
            redact = ["token"]

        @step
        def write(self): ...

    data = {"token": "4111-secret", "city": "Berlin"}
    schedule = Report.schedules.create("berlin", every(HOUR), data=data)
    form = admin_client.get(page_of(schedule, action)).context["form"]
    values = FORM | form.initial
    if action == "update":
        values["run_data"] = values["run_data"].replace("Berlin", "Bonn")
    else:
        Schedule.objects.update(data=data | {"city": "Bonn"})
    text = text_of(admin_client.post(page_of(schedule, action), values))
    assert "*** is not for Bonn" in text
    assert "4111-secret" not in text


def test_what_a_state_does_not_allow_is_refused(admin_client, report):
    sync_schedules()
    schedule = report.schedules.get()
    text = text_of(admin_client.get(page_of(schedule)))
    assert page_of(schedule, "pause") in text
    assert page_of(schedule, "update") not in text
    response = admin_client.get(page_of(schedule, "update"), follow=True)
    assert "The state of the schedule does not allow this." in text_of(response)
    assert admin_client.get(page_of(schedule, "nothing")).status_code == 404


@pytest.mark.parametrize(
    ("action", "permission"),
    [
        ("pause", "pause_schedule"),
        ("run_now", "run_now_schedule"),
        ("update", "change_schedule"),
        ("remove", "delete_schedule"),
    ],
)
def test_each_operation_takes_its_permission(client, report, action, permission):
    schedule = report.schedules.create("berlin", every(HOUR))
    log_in(client, "view_schedule")
    assert page_of(schedule, action) not in text_of(client.get(page_of(schedule)))
    assert client.post(page_of(schedule, action), {"confirm": "yes"}).status_code == 403
    assert client.get(ADD).status_code == 403
    User.objects.all().delete()
    log_in(client, "view_schedule", permission)
    assert page_of(schedule, action) in text_of(client.get(page_of(schedule)))
    assert client.get(page_of(schedule, action)).status_code == 200


def test_nobody_sees_what_they_may_not(client, report):
    schedule = report.schedules.create("berlin", every(HOUR))
    run = schedule.run_now(reason="secret")
    log_in(client, "view_schedule")
    for page in (LIST, page_of(schedule)):
        text = text_of(client.get(page))
        assert str(run.pk) not in text
        assert "secret" not in text
    User.objects.all().delete()
    log_in(client, "view_sequencerun")
    assert client.get(page_of(schedule)).status_code == 403
    assert client.get(LIST).status_code == 403


def test_the_health_of_runs_names_schedules_to_those_who_may_see_them(client, report):
    report.schedules.create("berlin", every(HOUR))
    Schedule.objects.update(failures=1, error="no route to Berlin", wake_at=now())
    runs = reverse("admin:job_sequences_sequencerun_changelist")
    log_in(client, "view_sequencerun")
    assert "no route to Berlin" not in (page := text_of(client.get(runs)))
    assert "No workers" in page
    User.objects.all().delete()
    log_in(client, "view_sequencerun", "view_schedule")
    assert "no route to Berlin" in text_of(client.get(runs))


def test_a_page_of_a_schedule_that_is_gone_or_posted_to(admin_client, report):
    schedule = report.schedules.create("berlin", every(HOUR))
    assert admin_client.post(page_of(schedule)).status_code == 403
    schedule.remove()
    assert admin_client.get(page_of(schedule)).status_code == 404
    assert admin_client.get(page_of(schedule, "pause")).status_code == 404


def test_a_schedule_whose_class_is_gone_is_shown_without_its_values(admin_client):
    with isolate_sequences():

        class Gone(Sequence):
            class Meta:
                app_label = "shop"

            @step
            def write(self): ...

        schedule = Gone.schedules.create("berlin", every(HOUR), data={"a": "hunter2"})
    text = text_of(admin_client.get(page_of(schedule)))
    assert "This code has no sequence shop.Gone" in text
    assert "hunter2" not in text
    assert ">failing<" in text_of(admin_client.get(LIST))
