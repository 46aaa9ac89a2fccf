"""Actions in the admin: asked for by GET, done by a POST that confirms, by whom it is allowed."""

import html
import json
import re
from datetime import datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from sequences import Sequence, any_of, event, step, subsequence
from sequences.admin import SequenceRunAdmin, bulk_operations, operations
from sequences.admin.action_texts import TEXTS, done_message, title_of
from sequences.exceptions import Abort
from sequences.inspection import actions as run_actions
from sequences.inspection import snapshot
from sequences.models import Operation, RunDeadline, SequenceRun, StepRun
from sequences.testing import drain
from sequences.utils.text import label_of
from tests.console import RUNS, url_of, user_with
from tests.engine import claim, fail, fresh, ledger, perform

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("caught")]

YES = {"confirm": "yes"}


def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card.number", "people.pin"]

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event(timeout=timedelta(days=3))

        @step(delay=timedelta(hours=1))
        def thank(self): ...

    return Order


def started(**data):
    return order().start(data).run


def url(run, action, name="", page="action"):
    path = url_of(run, page, action)
    return f"{path}?step={name}" if name else path


def told(client, response):
    """What the page says to which an answer leads."""
    assert response.status_code == 302, response.content.decode()
    page = client.get(response["Location"]).content.decode()
    return " ".join(re.findall(r'<li class="\w+">(.*?)</li>', page, re.S))


def scene(action):
    """A run in a state that allows this action, and its step."""
    run = started()
    if action in ("deliver", "run_now"):
        drain()
    if action == "run_now":
        fresh(run).deliver("approval")
        drain()
    if action == "resume":
        run.pause()
    if action == "retry":
        fail(claim(run, "charge"), final=False)
    if action == "erase":
        run.cancel()
    steps = {"deliver": "approval", "run_now": "thank", "skip": "charge", "restart_from": "charge"}
    return fresh(run), steps.get(action, "")


def data_for(action, run):
    if action == "edit":
        return {"text": '{"a": 1}', "version": run.version, **YES}
    deadline = {"deadline": "2100-01-01T08:00:00"} if action == "set_deadline" else {}
    return {"reason": "because", **deadline, **YES}


def state_of(run):
    stored = fresh(run)
    return stored.status, stored.version, stored.data, ledger(run), stored.operations.count()


BECOMES = {
    "retry": "running",
    "pause": "paused",
    "resume": "running",
    "cancel": "cancelled",
    "finish": "succeeded",
}


@pytest.mark.parametrize("action", run_actions.ACTIONS)
def test_an_action_is_explained_then_confirmed_then_done(admin_client, admin_user, action):
    run, name = scene(action)
    before = state_of(run)
    asked = admin_client.get(url(run, action, name))
    assert asked.status_code == 200
    assert str(run_actions.ACTIONS[action].explains) in asked.content.decode()
    assert "csrfmiddlewaretoken" in asked.content.decode()
    assert state_of(run) == before, "a GET changes nothing"
    response = admin_client.post(url(run, action, name), data_for(action, run))
    done = fresh(run)
    assert done_message(action, label_of(name), done) in told(admin_client, response)
    assert done.status == BECOMES.get(action, done.status)
    assert done.version > run.version
    operation = done.operations.last()
    assert (operation.action, operation.by, operation.step) == (action, "admin", name)
    assert operation.reason == ("" if action == "edit" else "because")
    entry = LogEntry.objects.get(object_id=str(run.pk))
    assert title_of(action, label_of(name)) in entry.get_change_message()
    # What is erased must not stand there still.
    assert "because" not in entry.change_message
    assert entry.object_repr == f"{run.sequence} {run.pk}"


@pytest.mark.parametrize("action", run_actions.ACTIONS)
def test_a_post_that_does_not_confirm_is_refused(admin_client, action):
    run, name = scene(action)
    before = state_of(run)
    data = data_for(action, run) | {"confirm": ""}
    response = admin_client.post(url(run, action, name), data)
    assert response.status_code == (200 if action == "edit" else 400)
    assert state_of(run) == before


@pytest.mark.parametrize("action", run_actions.ACTIONS)
def test_an_action_needs_its_own_permission_and_the_one_to_view(client, action):
    run, name = scene(action)
    before = state_of(run)
    own = run_actions.ACTIONS[action].permission.removeprefix("job_sequences.")
    others = [code for code, _ in SequenceRun._meta.permissions if code != own]
    client.force_login(user := user_with("view_sequencerun", *others))
    assert client.get(url(run, action, name)).status_code == 403
    assert client.post(url(run, action, name), data_for(action, run)).status_code == 403
    assert url(run, action) not in client.get(url_of(run)).content.decode()
    user.user_permissions.set(Permission.objects.filter(codename=own))
    assert client.post(url(run, action, name), data_for(action, run)).status_code == 403
    assert state_of(run) == before
    user.user_permissions.add(Permission.objects.get(codename="view_sequencerun"))
    assert url(run, action) in client.get(url_of(run)).content.decode()
    assert client.post(url(run, action, name), data_for(action, run)).status_code == 302
    assert state_of(run) != before


@pytest.mark.parametrize("action", run_actions.ACTIONS)
def test_an_action_without_its_token_is_refused(admin_user, action):
    run, name = scene(action)
    before = state_of(run)
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(url(run, action, name), data_for(action, run)).status_code == 403
    assert state_of(run) == before


def test_a_state_that_has_changed_meanwhile_is_told_in_the_errors_own_words(admin_client):
    run = started()
    run.cancel()
    response = admin_client.post(url(run, "pause"), YES)
    assert "Its status is cancelled. Allowed: running." in told(admin_client, response)
    response = admin_client.get(url(run, "pause"))
    assert "does not allow this" in told(admin_client, response)
    assert LogEntry.objects.count() == 0


def test_actions_and_steps_that_there_are_not_are_not_found(admin_client):
    run = started()
    assert admin_client.get(url(run, "delete")).status_code == 404
    assert admin_client.post(url(run, "skip", "none"), YES).status_code == 404
    assert admin_client.post(url(run, "skip"), YES).status_code == 404
    assert admin_client.post(url(SequenceRun(), "pause"), YES).status_code == 404


def test_runs_outside_of_the_queryset_are_out_of_reach(admin_client, monkeypatch):
    run = started()
    rows = SequenceRunAdmin.get_queryset
    monkeypatch.setattr(
        SequenceRunAdmin, "get_queryset", lambda *args: rows(*args).exclude(pk=run.pk)
    )
    assert admin_client.get(url(run, "pause")).status_code == 404
    assert admin_client.post(url(run, "pause"), YES).status_code == 404
    post_many(admin_client, "pause_runs", run, confirm="yes")
    assert fresh(run).status == "running"


def test_a_project_can_restrict_who_does_what_to_which_run(admin_client, monkeypatch):
    mine, other = started(), started()
    monkeypatch.setattr(
        SequenceRunAdmin,
        "has_action_permission",
        lambda self, request, action, run=None: run is None or run.pk == mine.pk,
    )
    assert admin_client.post(url(other, "pause"), YES).status_code == 403
    response = post_many(admin_client, "pause_runs", mine, other, confirm="yes")
    assert "you do not have permission" in told(admin_client, response)
    assert (fresh(mine).status, fresh(other).status) == ("paused", "running")


def test_a_skip_needs_a_reason(admin_client):
    run = started()
    response = admin_client.post(url(run, "skip", "charge"), {**YES, "reason": " "})
    assert response.status_code == 200
    assert "This field is required" in response.content.decode()
    assert ledger(run) == {"charge": "queued"}


def test_a_cancel_can_undo_what_only_the_runs_below_have_undos_for(admin_client):
    class Below(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event()

    class Above(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Below)

    run = Above().run
    drain()
    assert 'name="undo"' in admin_client.get(url(run, "cancel")).content.decode()
    admin_client.post(url(run, "cancel"), {**YES, "undo": "on"})
    page = html.unescape(admin_client.get(url_of(run)).content.decode())
    assert "The child runs of “below” are being rolled back." in page
    drain()
    assert fresh(run).status == "cancelled"
    child = SequenceRun.objects.get(parent__run=run.pk)
    assert ledger(child)["refund"] == "succeeded"


def test_a_cancel_can_undo_where_something_is_declared_to_undo(admin_client):
    run = started()
    perform(claim(run, "charge"))
    assert 'name="undo"' in admin_client.get(url(run, "cancel")).content.decode()
    admin_client.post(url(run, "cancel"), {**YES, "undo": "on"})
    assert fresh(run).status == "undoing"
    assert 'name="undo"' not in admin_client.get(url(run, "cancel")).content.decode()
    admin_client.post(url(run, "cancel"), {**YES, "undo": "on"})
    assert fresh(run).status == "cancelled"


# Events


def waiting():
    run = started()
    drain()
    return fresh(run)


def forms(page):
    """The forms of a page that do something at once, by their addresses."""
    pattern = r'<form method="post" action="([^"]+)" class="seq-at-once">(.*?)</form>'
    return {html.unescape(address): form for address, form in re.findall(pattern, page, re.S)}


def test_a_delivery_is_confirmed_for_it_cannot_be_taken_back(admin_client):
    run = waiting()
    page = admin_client.get(url_of(run)).content.decode()
    address = url(run, "deliver", "approval")
    assert f'href="{address}"' in page
    assert address not in forms(page)
    asked = admin_client.get(address).content.decode()
    assert "This cannot be undone" in asked
    assert 'class="default" value="Deliver"' in asked, "no warning colour for the usual course"
    response = admin_client.post(address, YES)
    assert "Delivered “approval”." in told(admin_client, response)
    drain()
    assert ledger(run)["approval"] == "succeeded"


def test_a_second_delivery_is_refused_and_is_no_manual_action(admin_client):
    class Sold(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def charge(self): ...

        @charge.undo
        def refund(self): ...

        approval = event(choices={"Approve": {"approved": True}, "Refuse": {"approved": False}})

        @step
        def ship(self):
            raise Abort("refused")

    run = Sold.start().run
    drain()
    address = url(run, "deliver", "approval")
    admin_client.post(address, {**YES, "payload": '{"approved": false}'})
    drain()
    assert fresh(run).status == "failed"
    response = admin_client.post(address, {**YES, "payload": '{"approved": true}'})
    assert "only the first delivery counts" in told(admin_client, response)
    assert [one.after for one in run.operations.all()] == [{"approved": False}]
    changes = LogEntry.objects.filter(object_id=str(run.pk))
    assert len(changes) == 1


def test_each_choice_has_a_name_of_its_own_for_a_screen_reader(admin_client):
    class Vacation(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(choices={"\u627f\u8a8d": True, "\u5374\u4e0b": False, "+": 1, "-": 0})

    run = Vacation.start().run
    drain()
    page = admin_client.get(url_of(run)).content.decode()
    names = re.findall(r'<a id="(deliver-[^"]+)"[^>]*labelledby="(\S+) step-approval-name"', page)
    assert len({name for name, _ in names}) == 4
    assert all(name == label for name, label in names)


def test_an_approval_offers_its_choices_side_by_side(admin_client):
    class Vacation(Sequence):
        class Meta:
            app_label = "shop"

        approval = event(choices={"Approve": {"approved": True}, "Refuse": {"approved": False}})

    run = Vacation.start().run
    drain()
    page = admin_client.get(url_of(run)).content.decode()
    head = page[page.index('class="seq-actions"') :].partition("</header>")[0]
    links = re.findall(r'href="([^"]+)"[^>]*>“approval”: (\w+)</a>', head)
    assert [choice for _, choice in links] == ["Approve", "Refuse"]
    address = html.unescape(links[1][0])
    confirmation = admin_client.get(address).content.decode()
    payload = html.unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", confirmation, re.S)[1])
    assert json.loads(payload) == {"approved": False}
    admin_client.post(address, {**YES, "payload": payload})
    drain()
    assert fresh(run).data == {"approval": {"approved": False}}


@pytest.mark.parametrize("action", ["retry", "run_now", "pause", "resume"])
def test_harmless_actions_need_no_page_of_their_own(action, admin_user):
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    run, name = scene(action)
    address = url(run, action, name)
    form = forms(client.get(url_of(run)).content.decode())[address]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
    assert client.post(address, fields)["Location"] == url_of(run)
    assert Operation.objects.filter(run=run.pk).last().action == action


@pytest.mark.parametrize("action", ["skip", "restart_from", "edit", "finish", "cancel", "erase"])
def test_what_cannot_be_taken_back_asks_first(action, admin_client):
    run, name = scene(action)
    page = admin_client.get(url_of(run)).content.decode()
    assert url(run, action, name) not in forms(page)
    assert f'href="{url(run, action, name)}"' in page


def test_a_class_that_is_gone_is_told_before_the_retry(admin_client):
    run, _name = scene("retry")
    SequenceRun.objects.update(sequence="shop.Removed")
    page = admin_client.get(url_of(run)).content.decode()
    assert "No step can run, because this code has no class shop.Removed." in page
    assert url(run, "retry") not in forms(page)
    confirmation = admin_client.get(url(run, "retry")).content.decode()
    assert "no step runs until a release that has the class is deployed" in confirmation
    bulk = admin_client.post(RUNS, {"action": "retry_runs", "_selected_action": [run.pk]})
    text = "This code lacks the classes of some of these runs (shop.Removed)"
    assert text in bulk.content.decode()
    assert "no class" not in admin_client.get(url(run, "cancel")).content.decode().split("<form")[0]


def release(*names):
    """A version of a sequence, with these steps."""
    steps = {name: step(lambda self: None) for name in names}
    meta = type("Meta", (), {"app_label": "shop"})
    return type("Taxes", (Sequence,), {"__module__": __name__, "Meta": meta, **steps})


def test_a_step_that_is_gone_is_told_before_the_retry(admin_client):
    run = release("levy").start().run
    fail(claim(run, "levy"))
    assert "errornote" not in admin_client.get(url(run, "retry")).content.decode()
    release("charge")
    confirmation = admin_client.get(url(run, "retry")).content.decode()
    assert (
        "shop.Taxes no longer declares the step “levy”. The step fails again at once"
        in confirmation
    )


def test_a_payload_is_json(admin_client):
    run = waiting()
    page = admin_client.post(url(run, "deliver", "approval"), {**YES, "payload": "{nope"})
    assert "Invalid JSON" in page.content.decode()
    assert "{nope" in page.content.decode(), "what was typed is kept"
    assert fresh(run).inbox == {}
    for typed in ("[" * 100_000, '"\\u0000"', "NaN"):
        page = admin_client.post(url(run, "deliver", "approval"), {**YES, "payload": typed})
        assert page.status_code == 200
        assert "errorlist" in page.content.decode()
    admin_client.post(url(run, "deliver", "approval"), {**YES, "payload": '{"by": ["Ann"]}'})
    assert fresh(run).inbox == {"approval": {"by": ["Ann"]}}


def test_a_second_delivery_is_told_that_it_does_not_count(admin_client):
    run = waiting()
    admin_client.post(url(run, "deliver", "approval"), {**YES, "payload": "1"})
    response = admin_client.post(url(run, "deliver", "approval"), {**YES, "payload": "2"})
    assert "the first delivery counts" in told(admin_client, response)
    assert fresh(run).inbox == {"approval": 1}


# Other data

SECRETS = {
    "name": "Joel",
    "card": {"number": "4111-secret"},
    "people": [{"n": 1, "pin": "9-secret"}],
}


def edit(client, run, text, **more):
    data = {"text": text, "version": run.version, "reason": "typo", **more}
    return client.post(url(run, "edit"), data)


def form_of(client, run):
    """The text that the form begins with."""
    return client.get(url(run, "edit")).context["form"].initial["text"]


def test_an_edit_shows_what_will_change_and_then_changes_it(admin_client):
    run = started(**SECRETS)
    text = form_of(admin_client, run).replace("Joel", "Ann")
    preview = edit(admin_client, run, text)
    page = preview.content.decode()
    assert [
        line.text for line in preview.context["lines"] if line.kind in ("added", "removed")
    ] == [
        '-  "name": "Joel",',
        '+  "name": "Ann",',
    ]
    assert fresh(run).data == SECRETS, "nothing is stored before it is confirmed"
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    assert fields["version"] == str(run.version)
    response = edit(admin_client, run, text, **YES)
    assert "Data saved." in told(admin_client, response)
    assert fresh(run).data == {**SECRETS, "name": "Ann"}
    assert fresh(run).operations.get().reason == "typo"


def test_no_page_of_an_edit_shows_a_secret_and_none_is_lost(admin_client):
    run = started(**SECRETS)
    text = form_of(admin_client, run)
    assert text.count("***") == 2
    pages = [admin_client.get(url(run, "edit"))]
    pages += [edit(admin_client, run, typed) for typed in (
        text, text.replace("Joel", "A"), text.replace('"name"', '"n"'), "{", "[]",
        text.replace('"number"', '"shown"'), text.replace("Joel", "***"),
    )]  # fmt: skip
    pages.append(admin_client.get(url_of(run)))
    for page in pages:
        assert page.status_code == 200
        assert "-secret" not in page.content.decode()
    edit(admin_client, run, text.replace("Joel", "A"), **YES)
    assert fresh(run).data == {**SECRETS, "name": "A"}
    assert "-secret" not in json.dumps(list(Operation.objects.values_list("before", "after")))


def test_stars_in_another_place_are_refused(admin_client):
    run = started(**SECRETS)
    text = form_of(admin_client, run).replace('"number"', '"shown"')
    for more in ({}, YES):
        page = edit(admin_client, run, text, **more).content.decode()
        assert "the *** at card.shown stands for" in page
    assert fresh(run).data == SECRETS


def test_a_hidden_value_is_replaced_by_writing_another_one(admin_client):
    run = started(**SECRETS)
    text = form_of(admin_client, run).replace('"number": "***"', '"number": "5222-new"')
    preview = edit(admin_client, run, text)
    assert preview.context["secrets"] == ["card.number"]
    assert preview.context["lines"] == []
    edit(admin_client, run, text, **YES)
    assert fresh(run).data == {**SECRETS, "card": {"number": "5222-new"}}


def test_no_answer_tells_whether_a_hidden_value_was_guessed(admin_client):
    run = started(**SECRETS)
    text = form_of(admin_client, run)

    def answers(guess):
        texts = [
            text.replace('"number": "***"', f'"number": "{guess}"'),
            text.replace('"name"', f'"{guess}\\u0000": 1, "name"'),
            text.replace('"n": 1', f'"n": 1, "{guess}": ' + "[" * 40 + "]" * 40),
            text.replace('"pin": "***"}', f'"pin": "***"}}, {{"n": 1, "pin": "{guess}"}}'),
        ]
        pages = (edit(admin_client, run, typed).content.decode() for typed in texts)
        saved = edit(admin_client, run, texts[2], **YES).content.decode()
        return [re.sub(r'csrf\w+" value="\w+"', "", page).replace(guess, "?")
                for page in (*pages, saved)]  # fmt: skip

    assert answers("4111-secret") == answers("4111-mistake")
    assert fresh(run).data == SECRETS


def test_what_changed_meanwhile_is_not_overwritten(admin_client):
    run = started(**SECRETS)
    text = form_of(admin_client, run).replace("Joel", "Ann")
    SequenceRun.objects.get(pk=run.pk).edit({**SECRETS, "name": "Zoe"})
    page = edit(admin_client, run, text, **YES).content.decode()
    assert "The run has changed since you opened this form" in page
    assert "Ann" in page, "what was typed is not lost"
    assert "Zoe" in page, "and stands beside what is there now"
    assert "-secret" not in page
    assert fresh(run).data["name"] == "Zoe"


def test_an_edit_without_a_change_has_nothing_to_confirm(admin_client):
    run = started(**SECRETS)
    page = edit(admin_client, run, form_of(admin_client, run)).content.decode()
    assert "No changes." in page
    assert 'name="confirm"' not in page


def test_one_can_go_back_from_the_difference_to_the_text(admin_client):
    run = started(**SECRETS)
    page = edit(admin_client, run, '{"typed": 1}', again="yes", **YES)
    assert "{&quot;typed&quot;: 1}" in page.content.decode()
    assert fresh(run).data == SECRETS


def test_while_a_step_runs_nothing_is_edited(admin_client):
    run = started(**SECRETS)
    claim(run, "charge")
    response = edit(admin_client, run, "{}", **YES)
    assert "A step is running" in told(admin_client, response)
    assert fresh(run).data == SECRETS


def test_data_that_is_too_large_for_a_form_is_edited_by_code(admin_client, monkeypatch):
    monkeypatch.setattr(operations, "EDITABLE", 10)
    page = admin_client.get(url(started(**SECRETS), "edit")).content.decode()
    assert "Too large to edit here" in page
    assert "<textarea" not in page


# Many


def post_many(client, action, *runs, query="", across="0", **more):
    data = {"action": action, "_selected_action": [str(run.pk) for run in runs], "index": 0}
    return client.post(f"{RUNS}{query}", {**data, "select_across": across, **more})


def test_many_are_asked_for_with_their_states_and_then_done(admin_client, admin_user):
    run, other, ended = started(), started(), started()
    ended.cancel()
    asked = post_many(admin_client, "pause_runs", run, other, ended)
    assert asked.status_code == 200
    page = asked.content.decode()
    assert "3 runs" in page
    assert "2 running" in page
    assert "1 cancelled" in page
    assert fresh(run).status == "running", "it only asks"
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page)
    data = {name: [value for key, value in fields if key == name] for name, _ in fields}
    response = admin_client.post(RUNS, {**data, "reason": "closed"})
    text = told(admin_client, response)
    assert "2 runs paused." in text
    assert "1 run skipped: Its status is cancelled. Allowed: running" in text
    assert url_of(ended) in text
    assert [fresh(one).status for one in (run, other, ended)] == ["paused", "paused", "cancelled"]
    operation = fresh(run).operations.get()
    assert (operation.by, operation.reason) == ("admin", "closed")
    assert LogEntry.objects.filter(object_id__in=[str(run.pk), str(other.pk)]).count() == 2


def test_many_are_asked_for_nothing_that_is_not_done_to_them(admin_client):
    run = started()
    fail(claim(run, "charge"))
    assert 'name="reason"' in (page := post_many(admin_client, "retry_runs", run).content.decode())
    assert 'name="parents"' not in page


def test_all_that_match_the_filter_are_done_and_no_others(admin_client):
    runs = [started() for _ in range(3)]
    runs[0].pause()
    query = "?status__exact=running"
    page = post_many(admin_client, "cancel_runs", runs[1], query=query, across="1")
    assert "2 runs" in page.content.decode()
    post_many(admin_client, "cancel_runs", runs[1], query=query, across="1", confirm="yes")
    assert [fresh(run).status for run in runs] == ["paused", "cancelled", "cancelled"]


def test_a_request_does_so_many_and_says_that_there_are_more(admin_client, monkeypatch):
    monkeypatch.setattr(bulk_operations, "MAX_RUNS_PER_REQUEST", 2)
    monkeypatch.setattr(bulk_operations, "RUNS_PER_QUERY", 1)
    runs = [started() for _ in range(3)]
    assert "the first 2" in post_many(admin_client, "pause_runs", *runs).content.decode()
    response = post_many(admin_client, "pause_runs", *runs, confirm="yes")
    assert "2 runs paused." in (text := told(admin_client, response))
    assert "manage.py sequences" in text
    assert sorted(fresh(run).status for run in runs) == ["paused", "paused", "running"]


def test_those_to_which_something_can_be_done_come_first(admin_client, monkeypatch):
    monkeypatch.setattr(bulk_operations, "MAX_RUNS_PER_REQUEST", 2)
    older, *newer = [started() for _ in range(3)]
    for run in newer:
        run.cancel()
    post_many(admin_client, "pause_runs", older, *newer, confirm="yes")
    assert fresh(older).status == "paused", "however often, the newer ones would be skipped again"


def test_a_request_ends_before_a_proxy_gives_it_up(admin_client, monkeypatch):
    monkeypatch.setattr(bulk_operations, "MAX_SECONDS_PER_REQUEST", -1)
    run = started()
    response = post_many(admin_client, "pause_runs", run, confirm="yes")
    assert "1 more run remains" in told(admin_client, response)
    assert fresh(run).status == "running"


def test_what_concerns_a_step_asks_for_one_that_many_have(admin_client):
    waiting, other = started(), started()
    drain()
    page = post_many(admin_client, "deliver_runs", waiting, other).content.decode()
    assert '<option value="approval">approval (2 runs)</option>' in page
    assert fresh(waiting).inbox == {}, "it only asks"
    payload = {"step": "approval", "payload": '{"ok": true}', "confirm": "yes"}
    waiting.deliver("approval", {"ok": False})
    response = post_many(admin_client, "deliver_runs", waiting, other, **payload)
    text = told(admin_client, response)
    assert "Delivered to 1 run." in text
    assert "1 run skipped: the event was already delivered" in text
    assert fresh(waiting).inbox == {"approval": {"ok": False}}
    assert fresh(other).inbox == {"approval": {"ok": True}}
    entry = LogEntry.objects.get(object_id=str(other.pk))
    assert "Deliver “approval”" in entry.change_message


def test_a_delivery_after_another_event_says_so_and_claims_no_earlier_delivery(admin_client):
    class Request(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()
        refusal = event(after=[])

        @step(after=any_of(approval, refusal))
        def reply(self): ...

    run, other = Request().run, Request().run
    drain()
    run.deliver("refusal")
    payload = {"payload": '{"ok": true}', "confirm": "yes"}
    response = admin_client.post(url(run, "deliver", "approval"), payload)
    expected = "This event is no longer needed: another event or step came first."
    assert expected in (text := told(admin_client, response))
    assert "already" not in text
    response = post_many(admin_client, "deliver_runs", run, other, step="approval", **payload)
    text = told(admin_client, response)
    expected = "1 run skipped: the event is no longer needed because another event or step came"
    assert expected in text
    assert "already" not in text
    assert fresh(run).inbox == {"refusal": None}
    assert fresh(other).inbox == {"approval": {"ok": True}}


def test_a_step_that_none_of_many_has_is_not_asked_for(admin_client):
    run = started()
    for action in ("deliver_runs", "run_now_runs"):
        response = post_many(admin_client, action, run)
        assert "None of these runs has a step" in told(admin_client, response)


def test_many_are_restarted_and_skipped_at_a_chosen_step(admin_client):
    runs = [started() for _ in range(2)]
    drain()
    refused = post_many(admin_client, "skip_runs", *runs, step="approval", confirm="yes")
    assert refused.status_code == 200, "it asks for a reason"
    chosen = {"step": "approval", "reason": "told by phone", "confirm": "yes"}
    post_many(admin_client, "skip_runs", *runs, **chosen)
    assert [ledger(run)["approval"] for run in runs] == ["skipped", "skipped"]
    drain()
    chosen = {"step": "approval", "confirm": "yes"}
    post_many(admin_client, "restart_from_runs", *runs, **chosen)
    drain()
    assert [ledger(run)["approval"] for run in runs] == ["waiting", "waiting"]


def test_a_restart_names_the_events_that_are_asked_for_again_and_has_a_box_to_keep_them(
    admin_client,
):
    run = started()
    drain()
    page = admin_client.get(url(run, "restart_from", "charge")).content.decode()
    assert "keep_deliveries" not in page, "nothing was delivered"
    fresh(run).deliver("approval", "yes")
    drain()
    page = admin_client.get(url(run, "restart_from", "charge")).content.decode()
    assert "Otherwise, the run waits for these again: approval." in page
    assert 'name="keep_deliveries"' in page
    behind = admin_client.get(url(run, "restart_from", "thank")).content.decode()
    assert "keep_deliveries" not in behind
    admin_client.post(url(run, "restart_from", "charge"), {"keep_deliveries": "on", **YES})
    drain()
    assert ledger(run)["approval"] == "succeeded"
    admin_client.post(url(run, "restart_from", "charge"), YES)
    drain()
    assert ledger(run)["approval"] == "waiting"
    page = html.unescape(admin_client.get(url_of(run)).content.decode())
    assert '"deliveries": []' in page


def test_many_restarts_ask_again_unless_the_box_is_ticked(admin_client):
    runs = [started() for _ in range(2)]
    drain()
    for run in runs:
        fresh(run).deliver("approval", "yes")
    drain()
    chosen = {"step": "approval", "confirm": "yes"}
    post_many(admin_client, "restart_from_runs", *runs, keep_deliveries="on", **chosen)
    drain()
    assert [ledger(run)["approval"] for run in runs] == ["succeeded", "succeeded"]
    post_many(admin_client, "restart_from_runs", *runs, **chosen)
    drain()
    assert [ledger(run)["approval"] for run in runs] == ["waiting", "waiting"]


def test_what_waits_for_its_time_is_run_now_in_many(admin_client):
    runs = [started() for _ in range(2)]
    for run in runs:
        run.deliver("approval")
    drain()
    assert [ledger(run)["thank"] for run in runs] == ["waiting", "waiting"]
    post_many(admin_client, "run_now_runs", *runs, step="thank", confirm="yes")
    drain()
    assert [fresh(run).status for run in runs] == ["succeeded", "succeeded"]


def test_many_are_refused_without_the_permission(client):
    run = started()
    client.force_login(user_with("view_sequencerun", "retry_sequencerun"))
    assert "cancel_runs" not in client.get(RUNS).content.decode()
    assert "retry_runs" in client.get(RUNS).content.decode()
    post_many(client, "cancel_runs", run, confirm="yes")
    assert fresh(run).status == "running"


def test_many_are_refused_where_a_project_offers_all_actions_to_everybody(client, monkeypatch):
    def every(self, request, actions):
        return actions

    monkeypatch.setattr(SequenceRunAdmin, "_filter_actions_by_permissions", every)
    run = started()
    client.force_login(user_with("view_sequencerun"))
    assert post_many(client, "cancel_runs", run).status_code == 403
    assert post_many(client, "cancel_runs", run, confirm="yes").status_code == 403
    assert fresh(run).status == "running"


def test_each_of_many_is_a_transaction_of_its_own(admin_client, monkeypatch):
    one, two = started(), started()
    pause = SequenceRun.pause

    def fails_at_the_second(run, **told):
        if Operation.objects.exists():
            raise RuntimeError("away")
        pause(run, **told)

    monkeypatch.setattr(SequenceRun, "pause", fails_at_the_second)
    with pytest.raises(RuntimeError):
        post_many(admin_client, "pause_runs", one, two, confirm="yes")
    assert sorted([fresh(one).status, fresh(two).status]) == ["paused", "running"]


@pytest.mark.parametrize("action", ["edit", "deliver"])
def test_half_of_a_character_is_refused_in_the_form(admin_client, action):
    run = waiting()
    broken = {"text": '{"a": "\\ud800"}', "payload": '{"a": "\\ud800"}', "version": run.version}
    answer = admin_client.post(url(run, action, "approval"), {**YES, **broken})
    assert (
        "Contains half of a surrogate pair, which is not a valid character."
        in answer.content.decode()
    )
    assert fresh(run).version == run.version


@pytest.mark.parametrize("action", ["edit", "deliver"])
@pytest.mark.parametrize(
    "text", ['{"a": ' * 300 + "1" + "}" * 300, '{"a": %s}' % ("[" * 90 + "]" * 90)]
)
def test_what_is_nested_too_deeply_is_refused_in_the_form(admin_client, action, text):
    run = waiting()
    typed = {"text": text, "payload": text, "version": run.version}
    for confirmed in ({}, YES):
        answer = admin_client.post(url(run, action, "approval"), {**confirmed, **typed})
        shown = answer.content.decode()
        assert "Nested too deeply." in shown or answer.status_code == 400
    assert fresh(run).version == run.version


def test_an_action_on_a_run_that_is_gone_meanwhile_is_told(admin_client, monkeypatch):
    run = started()
    real = snapshot.of

    def and_prune(found):
        shown = real(found)
        StepRun.objects.all().delete()
        SequenceRun.objects.all().delete()
        return shown

    monkeypatch.setattr(snapshot, "of", and_prune)
    answer = admin_client.post(url(run, "pause"), YES)
    assert answer.status_code in (302, 404)


@pytest.mark.parametrize("action", run_actions.ACTIONS)
def test_each_text_of_an_action_is_one_message_that_names_what_it_is_about(action):
    texts = TEXTS[action]
    assert ("%(step)s" in str(texts.title)) == run_actions.ACTIONS[action].on_step
    assert title_of(action, "50 % off").count("%") == int(run_actions.ACTIONS[action].on_step)
    for message in (texts.title_of_many, texts.done_to_many):
        one, many = (str(message % {"count": count}) for count in (1, 2))
        assert "1 run" in one
        assert "2 runs" in many


def test_what_is_done_to_a_paused_run_says_that_it_is_paused_still(admin_client):
    run, name = scene("deliver")
    run.pause()
    response = admin_client.post(url(run, "deliver", name), data_for("deliver", run))
    said = told(admin_client, response)
    assert "Delivered “approval”." in said
    assert "The run is still paused." in said


# A deadline


def test_a_deadline_is_shown_changed_and_removed(admin_client):
    run = started()
    assert "<dt>Deadline</dt>" not in admin_client.get(url_of(run)).content.decode()
    response = admin_client.post(
        url(run, "set_deadline"), {"deadline": "2100-01-01T08:00:05", "reason": "late", **YES}
    )
    assert told(admin_client, response) == "Deadline saved."
    operation = fresh(run).operations.get()
    assert (operation.action, operation.by, operation.reason) == ("set_deadline", "admin", "late")
    assert run.deadline.due_at == timezone.make_aware(datetime(2100, 1, 1, 8, 0, 5))  # noqa: DTZ001
    assert "<dt>Deadline</dt>" in admin_client.get(url_of(run)).content.decode()
    asked = admin_client.get(url(run, "set_deadline")).content.decode()
    assert 'value="2100-01-01T08:00:05"' in asked
    admin_client.post(url(run, "set_deadline"), {"deadline": "", **YES})
    assert not RunDeadline.objects.exists()


@pytest.mark.parametrize("typed", ["2000-01-01T08:00", "soon", "9999-12-31T23:59:59"])
def test_a_deadline_that_has_passed_or_is_none_is_refused(admin_client, typed):
    run = started()
    asked = admin_client.post(url(run, "set_deadline"), {"deadline": typed, **YES})
    assert asked.status_code == 200
    assert "errorlist" in asked.content.decode()
    assert not RunDeadline.objects.exists()
    assert not fresh(run).operations.exists()


def test_the_deadline_of_many_is_set_at_once(admin_client):
    runs = [started(), started()]
    form = {"action": "set_deadline_runs", "_selected_action": [run.pk for run in runs]}
    assert "Set the deadline of 2 runs" in admin_client.post(RUNS, form).content.decode()
    admin_client.post(RUNS, form | {"deadline": "2100-01-01T08:00", **YES})
    assert RunDeadline.objects.count() == 2


# --- pages that are out of date


CHANGED = "It has changed since you opened the page. Look at it again before you decide."


def answer_of(client, page):
    """What a browser sends when somebody confirms this page as it is."""
    return answer_to(client.get(page).context["form"])


def answer_to(form):
    return {field.html_name: field.value() for field in form if field.value() is not None} | YES


@pytest.mark.parametrize("way", ["a double submit", "a stale page"])
def test_one_page_restarts_a_run_once(admin_client, way):
    run = started()
    drain()
    page = url(run, "restart_from", "charge")
    answer = answer_of(admin_client, page)
    if way == "a double submit":
        admin_client.post(page, answer)
    else:
        fresh(run).restart_from("charge", by="a colleague")
    drain()
    before = state_of(run)
    assert CHANGED in told(admin_client, admin_client.post(page, answer))
    assert state_of(run) == before


@pytest.mark.parametrize("action", run_actions.ACTIONS)
def test_nothing_is_done_from_a_page_that_does_not_know_the_latest_operation(admin_client, action):
    run, name = scene(action)
    page = url(run, action, name)
    answer = answer_of(admin_client, page) | data_for(action, run)
    Operation.objects.create(run=run, action="retry", by="a colleague", done_at=timezone.now())
    before = state_of(run)
    text = told(admin_client, admin_client.post(page, answer))
    if action == "pause":
        assert fresh(run).status == "paused", "nobody should have to ask twice"
        return
    assert CHANGED in text
    assert state_of(run) == before
    admin_client.post(page, answer_of(admin_client, page) | data_for(action, run))
    assert state_of(run) != before, "from a new page"


def test_what_the_steps_do_meanwhile_does_not_matter(admin_client):
    run = started()
    page = url(run, "cancel")
    answer = answer_of(admin_client, page)
    drain()
    admin_client.post(page, answer)
    assert fresh(run).status == "cancelled"


def test_a_button_that_asks_nothing_works_once(admin_client):
    run, _ = scene("retry")
    bases = set(
        re.findall(r'name="basis" value="(\d+)"', admin_client.get(url_of(run)).content.decode())
    )
    assert bases == {"0"}
    answer = YES | {"basis": "0"}
    admin_client.post(url(run, "retry"), answer)
    fail(claim(run, "charge"), final=False)
    before = state_of(run)
    assert CHANGED in told(admin_client, admin_client.post(url(run, "retry"), answer))
    assert state_of(run) == before
    page = admin_client.get(url_of(run)).content.decode()
    assert f'name="basis" value="{fresh(run).operations.last().pk}"' in page


def test_many_runs_are_restarted_once_from_one_page(admin_client):
    runs = [started(), started()]
    drain()
    form = post_many(admin_client, "restart_from_runs", *runs).context["form"]
    answer = answer_to(form) | {"step": "charge"}
    response = post_many(admin_client, "restart_from_runs", *runs, **answer)
    assert "2 runs restarted" in told(admin_client, response).lower()
    drain()
    before = [state_of(run) for run in runs]
    text = told(admin_client, post_many(admin_client, "restart_from_runs", *runs, **answer))
    assert f"2 runs skipped: {CHANGED[:-1]}" in text
    assert [state_of(run) for run in runs] == before


def test_of_many_runs_only_those_that_have_changed_are_skipped(admin_client):
    changed, other = started(), started()
    form = post_many(admin_client, "cancel_runs", changed, other).context["form"]
    changed.pause()
    response = post_many(admin_client, "cancel_runs", changed, other, **answer_to(form))
    assert f"1 run skipped: {CHANGED[:-1]}" in told(admin_client, response)
    assert [fresh(run).status for run in (changed, other)] == ["paused", "cancelled"]
